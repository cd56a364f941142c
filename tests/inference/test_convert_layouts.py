"""Checkpoints that people hold: every accepted layout converts, works and comes back to the bit; the others are refused."""

import argparse
import json
import os
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers_restated import VideoMAE

from ppma.cli import main as ppma
from ppma.config.errors import InputError
from ppma.config.model import PIXEL_MEAN, PIXEL_STD, MAEConfig, ViTConfig
from ppma.inference.convert import _ratio
from ppma.inference.foreign import _Skipped, open_foreign, read_models
from ppma.inference.layouts import write_as
from ppma.models.classify import Classifier
from ppma.models.mae import MaskedAutoencoder
from ppma.models.vit import sinusoid_table
from ppma.training import checkpoint
from ppma.training.run import open_run

VIT = ViTConfig(width=48, depth=2, heads=3, patch=(2, 8, 8), frames=4, size=32, norm_eps=1e-12, head_norm_eps=1e-5)
MAE = MAEConfig(decoder_width=32, decoder_depth=1, decoder_heads=2, decoder_positions="after")
SHAPE = ["--heads", "3", "--decoder-heads", "2", "--frames", "4", "--size", "32"]
CONFIG = {
    "model_type": "videomae", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8,
    "tubelet_size": 2, "num_frames": 4, "layer_norm_eps": 1e-12, "use_mean_pooling": True, "qkv_bias": True, "hidden_act": "gelu",
    "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1,
    "id2label": {"0": "b", "1": "a", "2": "d", "3": "c"},
}  # fmt: skip


def filled(module, k_bias=False):
    """The tensors of a model, all random, so that no two can be confused; without `k_bias`, which VideoMAE lacks, it is 0."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in module.named_parameters():
        scale = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.1
        parameter.data.normal_(generator=generator).mul_(scale)
        if name.endswith("qkv.bias") and not k_bias:
            parameter.data.chunk(3)[1].zero_()
    return module.state_dict()


def classifier(k_bias=False, spaces=None):
    return filled(Classifier(VIT, spaces or {"made": 4}), k_bias)


def stage_1(positions="after", k_bias=False):
    return filled(MaskedAutoencoder(VIT, replace(MAE, decoder_positions=positions)), k_bias)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def convert(source, out, *flags):
    return ppma(["convert", str(source), str(out), *map(str, flags)])


def refused(capfd, source, out, *flags):
    """The one line with which a conversion is refused; nothing is left behind."""
    capfd.readouterr()
    assert convert(source, out, *flags) == 2 and not out.exists()
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert "\x1b" not in line and line.isprintable()
    return line


# The layouts, as their authors write them. Each returns the path to convert, and the tensors that must come back.


def training_checkpoint(folder):
    """VideoMAE's training script saves its arguments and numpy scalars next to the weights."""
    weights = write_as("videomae", classifier())
    rest = {"epoch": 4, "args": argparse.Namespace(lr=np.float64(1e-3), model="vit"), "scaler": {"scale": 2.0}}
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": np.float64(2e-3), "params": [0]}]}
    torch.save({"model": weights, "optimizer": optimizer, **rest}, folder / "new.pth")
    with zipfile.ZipFile(folder / "new.pth") as new, zipfile.ZipFile(folder / "old.pth", "w") as old:
        for name in new.namelist():  # as numpy 1 wrote it
            old.writestr(name, new.read(name).replace(b"numpy._core", b"numpy.core"))
    return folder / "old.pth", weights


def of_one_module(folder):
    """DistributedDataParallel's prefix, around a compiled module."""
    weights = write_as("videomae", stage_1())
    torch.save({"module": {f"module._orig_mod.{n}": t for n, t in weights.items()}}, folder / "ddp.pt")
    return folder / "ddp.pt", weights


def state_dict(folder):
    """state_dict() of transformers 5: biases of linear layers, none for k."""
    weights = write_as("huggingface", classifier())
    kept = {n: t for n, t in weights.items() if not n.endswith(("q_bias", "v_bias", "key.bias"))}
    torch.save(kept, folder / "state.pth")
    return folder / "state.pth", weights


def saved_folder(folder):
    """save_pretrained, in two shards."""
    weights = write_as("huggingface", stage_1())
    kept = {n: t for n, t in weights.items() if not n.endswith(("query.bias", "value.bias", "key.bias"))}
    config = {**CONFIG, "use_mean_pooling": False}
    (folder / "config.json").write_text(json.dumps(config))
    names, shards = sorted(kept), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for part, shard in enumerate(shards):
        save_file({n: kept[n] for n in names[part::2]}, folder / shard)
    index = {"weight_map": {n: shards[i % 2] for i, n in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder, weights


def hub_cache(folder):
    """models--ORG--NAME: the snapshot of refs/main holds links to blobs."""
    weights = write_as("huggingface", classifier())
    top, snapshot = folder / "models--org--name", folder / "models--org--name/snapshots/0123abc"
    for made in (snapshot, top / "refs", top / "blobs", top / "snapshots/older"):
        made.mkdir(parents=True)
    (top / "refs/main").write_text("0123abc\n")
    save_file(weights, top / "blobs/aa")
    (top / "blobs/bb").write_text(json.dumps(CONFIG))
    (snapshot / "model.safetensors").symlink_to("../../blobs/aa")
    (snapshot / "config.json").symlink_to("../../blobs/bb")
    return top, weights


def released(folder):
    """Stage 1 as PPMA releases it, with its fixed tables of positions."""
    weights = write_as("ppma", stage_1("before", k_bias=True))
    torch.save({"model": weights | tables(weights)}, folder / "released.pth")
    return folder / "released.pth", weights


def tables(weights):
    made = {"trunk.pos_embed": sinusoid_table(VIT.tokens, VIT.width).float()[None]}
    return made | {"trunk.decoder.pos_embed": sinusoid_table(VIT.tokens, MAE.decoder_width).float()[None]}


def encoder_of_stage_1(folder):
    """A released stage 1 file without its decoder, which leaves the mask token."""
    weights = write_as("ppma", stage_1("before"))
    kept = {n: t for n, t in weights.items() if not n.startswith(("trunk.decoder.", "heads."))}
    torch.save({"model": kept}, folder / "trunk.pth")
    return folder / "trunk.pth", kept


LAYOUTS = {
    training_checkpoint: "videomae", of_one_module: "videomae", state_dict: "huggingface", saved_folder: "huggingface",
    hub_cache: "huggingface", encoder_of_stage_1: "ppma", released: "ppma",
}  # fmt: skip


@pytest.mark.promise("R18")
@pytest.mark.parametrize("make", LAYOUTS, ids=lambda make: make.__name__)
def test_a_layout_converts_works_and_comes_back_to_the_bit(make, tmp_path):
    (tmp_path / "theirs").mkdir()
    source, weights = make(tmp_path / "theirs")
    shape = () if make in (saved_folder, hub_cache) else SHAPE
    assert convert(source, tmp_path / "run", *shape) == 0
    run = open_run(tmp_path / "run", device="cpu")
    assert run.model.features(torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)).isfinite().all()
    assert (run.config.vit.heads, run.config.vit.size) == (3, 32)
    kind = LAYOUTS[make]
    assert ppma(["export", "--to", kind, str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    file = tmp_path / "back/model.safetensors"
    back = load_file(file) if file.exists() else torch.load(tmp_path / "back/model.pth", weights_only=True)["model"]
    assert same(back, weights)


def test_an_ensemble_becomes_models_to_average(tmp_path, capfd):
    weights = write_as("ppma", classifier())
    other = {name: tensor + 1 for name, tensor in weights.items()}
    torch.save({"ensemble_weights": [weights, other]}, tmp_path / "pair.pth")
    assert convert(tmp_path / "pair.pth", tmp_path / "pair", *SHAPE) == 0
    models = [str(tmp_path / f"pair/model_{number}") for number in (0, 1)]
    assert ppma(["average", *models, "--out", str(tmp_path / "mean")]) == 0
    mean = checkpoint.read_weights(tmp_path / "mean")["blocks.1.mlp.fc2.weight"]
    assert torch.allclose(mean, weights["trunk.blocks.1.mlp.fc2.weight"] + 0.5)
    torch.save({"ensemble_weights": [weights, {"trunk.cls_token": torch.ones(1)}]}, tmp_path / "bad.pth")
    assert "no place" in refused(capfd, tmp_path / "bad.pth", tmp_path / "x", *SHAPE)


# What is refused


def test_a_head_on_the_first_token_is_refused_with_the_reason(tmp_path, capfd):
    folder, _ = hub_cache(tmp_path)
    config = folder / "snapshots/0123abc/config.json"
    config.unlink()
    config.write_text(json.dumps({**CONFIG, "use_mean_pooling": False}))
    assert "use_mean_pooling" in refused(capfd, folder, tmp_path / "run")
    bare = {n: t for n, t in write_as("huggingface", classifier()).items() if not n.startswith("fc_norm")}
    save_file(bare, tmp_path / "x.safetensors")
    assert "use_mean_pooling" in refused(capfd, tmp_path / "x.safetensors", tmp_path / "run", *SHAPE)


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_code_in_the_arguments_of_a_checkpoint_never_runs(tmp_path, capfd):
    """Not even the classes that are read past are built: their names lead to an object that ignores everything."""
    args = argparse.Namespace(lr=np.float64(1.0))
    torch.save({"model": {"a": torch.ones(1)}, "args": args}, tmp_path / "good.pth")
    with torch.serialization.safe_globals([(_Skipped, "argparse.Namespace")]), pytest.raises(InputError, match="numpy"):
        checkpoint.read_pickle(tmp_path / "good.pth")
    assert list(read_models(tmp_path / "good.pth")[0]) == ["a"]
    args.evil = Evil(tmp_path / "pwned")
    torch.save({"model": {"a": torch.ones(1)}, "args": args}, tmp_path / "evil.pth")
    line = refused(capfd, tmp_path / "evil.pth", tmp_path / "run")
    assert "mkdir" in line and not (tmp_path / "pwned").exists()
    torch.save({"model": {"a": torch.ones(1)}, "args": argparse.ArgumentParser}, tmp_path / "class.pth")
    assert "argparse.ArgumentParser" in refused(capfd, tmp_path / "class.pth", tmp_path / "run")


def test_other_architectures_are_refused_with_a_reason_and_the_known_layouts(tmp_path, capfd):
    files = {
        "jepa.pt": {"encoder": {"module.backbone.blocks.0.norm1.weight": torch.ones(1)}, "predictor": {}},
        "backbone.pt": {"module.backbone.patch_embed.proj.weight": torch.ones(1)},
        "escape.pt": {"\x1b[31mred": torch.ones(1)},
        "resnet.pt": {"layer1.0.conv1.weight": torch.ones(1)},
        "step.pt": {"epoch": 3},
        "more.pt": {"model": {**write_as("videomae", classifier()), "attn.scale": torch.ones(1)}},
    }
    words = {
        "jepa.pt": "V-JEPA 2",
        "backbone.pt": "rotating",
        "escape.pt": "control",
        "more.pt": "no place",
        "step.pt": "tensors",
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
        line = refused(capfd, tmp_path / name, tmp_path / "run", *SHAPE)
        assert words.get(name, "no known layout") in line and "known layouts: ppma" in line
    (tmp_path / "jepa").mkdir()
    (tmp_path / "jepa/config.json").write_text(json.dumps({"model_type": "vjepa2"}))
    assert "V-JEPA 2" in refused(capfd, tmp_path / "jepa", tmp_path / "run")
    (tmp_path / "jepa/config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "bert" in refused(capfd, tmp_path / "jepa", tmp_path / "run")
    assert "hf download" in refused(capfd, "MCG-NJU/videomae-base", tmp_path / "run")


def test_biases_that_contradict_each_other_are_refused(tmp_path, capfd):
    weights = write_as("huggingface", classifier())
    weights["videomae.encoder.layer.0.attention.attention.q_bias"] += 1
    save_file(weights, tmp_path / "x.safetensors")
    assert "differ" in refused(capfd, tmp_path / "x.safetensors", tmp_path / "run", *SHAPE)


def test_videomae_v2_converts_in_half_precision(tmp_path):
    """Its distilled base model is the layout of VideoMAE in float16; the giant's MLP ratio is no round number."""
    half = {n: t.half() for n, t in write_as("videomae", classifier()).items()}
    torch.save({"module": half}, tmp_path / "v2.pth")
    assert convert(tmp_path / "v2.pth", tmp_path / "run", *SHAPE) == 0
    model = open_run(tmp_path / "run", device="cpu").model
    assert torch.equal(model.head.weight, half["head.weight"].float())
    assert int(1408 * _ratio(1408, 6144)) == 6144
    config = {"model_type": "VideoMAEv2_Base", "model_config": {"num_heads": 3, "img_size": 32, "num_frames": 4}}
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/config.json").write_text(json.dumps(config))
    save_file({f"model.{n}": t for n, t in half.items()}, tmp_path / "hub/model.safetensors")
    assert open_foreign(tmp_path / "hub").config["model_type"] == "VideoMAEv2_Base"
    assert convert(tmp_path / "hub", tmp_path / "again") == 0


# A converted classifier through every door


@pytest.mark.promise("R18")
def test_a_converted_classifier_gives_the_logits_it_gave(tiny_runs, clip_tree, tmp_path, monkeypatch, figure, capfd):
    (tmp_path / "hub").mkdir()
    folder, _ = hub_cache(tmp_path / "hub")
    names = open_run(tiny_runs / "runs/finetune", device="cpu").class_names["made"]
    labels = {str(label): name for label, name in enumerate(reversed(names))}
    (folder / "blobs/bb").write_text(json.dumps({**CONFIG, "id2label": labels}))
    assert convert(folder, tmp_path / "run", "--dataset", "made") == 0

    seen, patches = [], Classifier.patches
    monkeypatch.setattr(Classifier, "patches", lambda self, x, *a, **k: seen.append(x) or patches(self, x, *a, **k))
    flags = f"--dataset made --data {tiny_runs}/data.toml --workers 1 --device cpu --out {tmp_path}/tested"
    assert ppma(["evaluate", "--checkpoint", str(tmp_path / "run"), *flags.split()]) == 0
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    frames = torch.cat(seen)
    videos = (frames.permute(0, 1, 4, 2, 3) / 255 - mean) / std
    theirs = VideoMAE(folder / "snapshots/0123abc", spelling=4).logits(videos)
    scores = np.load(tmp_path / "tested/scores.npz")["scores"]
    expected = theirs.double().softmax(dim=1).view(len(scores), -1, 4).mean(dim=1)
    apart = float(np.abs(scores - expected.numpy()).max())
    assert apart < 1e-5

    argv = [next(clip_tree.rglob("*.mp4")), "--checkpoint", tmp_path / "run", "--device", "cpu", "--crops", "1"]
    assert ppma(["predict", *map(str, argv)]) == 0 and names[0] in capfd.readouterr().out

    assert ppma(["export", "--to", "huggingface", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    for spelling in (4, 5):
        back = VideoMAE(tmp_path / "back", spelling)
        assert torch.equal(back.logits(videos), theirs)
    assert back.config["id2label"] == labels
    model = open_run(tmp_path / "run", device="cpu").classifier()
    logits = float((model.logits(frames) - theirs).detach().abs().max() / theirs.abs().max())
    figure("R18", f"a classifier of transformers: logits within {logits:.0e}, scores of `ppma evaluate` {apart:.0e}")
    assert logits < 1e-5
