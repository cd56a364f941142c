"""Conversions: there and back to the bit, every tensor accounted for, the same outputs, and no code of a pickle run."""

import os
from dataclasses import replace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ppma.cli import main as ppma
from ppma.config.errors import InputError
from ppma.config.model import MAEConfig, ViTConfig, preset
from ppma.inference.foreign import is_name, load_by_name, read_models
from ppma.inference.layouts import Format, layout_of, read_as, write_as
from ppma.models import timm_models
from ppma.models.classify import Classifier
from ppma.models.mae import MaskedAutoencoder
from ppma.models.torchvision_shim import timm
from ppma.models.vit import sinusoid_table
from ppma.training import checkpoint

VIT = ViTConfig(width=16, depth=2, heads=2, patch=(2, 8, 8), frames=4, size=16)
MAE = MAEConfig(decoder_width=8, decoder_depth=1, decoder_heads=2)


def filled(module, k_bias=True):
    """A model whose every tensor is random, so that no two can be confused."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        parameter.data.normal_(generator=generator)
        if not k_bias and name.endswith("attn.qkv.bias"):
            parameter.data.chunk(3)[1].zero_()
    return module


def stage_1(k_bias=True, kind="ppma"):
    positions = "before" if kind in ("ppma", "timm") else "after"
    return filled(MaskedAutoencoder(VIT, replace(MAE, decoder_positions=positions)), k_bias)


def classifier(k_bias=True, kind="ppma"):
    return filled(Classifier(VIT, {"converted": 5}), k_bias)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.promise("R18")
@pytest.mark.parametrize("make", [stage_1, classifier])
@pytest.mark.parametrize("kind", get_args(Format))
def test_there_and_back_is_exact_to_the_bit(kind, make, figure):
    ours = make(k_bias=kind != "videomae", kind=kind).state_dict()
    theirs = write_as(kind, ours)
    back = read_as(layout_of(theirs), theirs)
    expected = ours if kind != "timm" else {n: t for n, t in ours.items() if not n.startswith("decoder.")}
    assert layout_of(theirs) == kind and same(back, expected)
    assert same(write_as(kind, back), theirs)
    figure("R18", f"{len(get_args(Format))} formats there and back: 0 differing bits")


@pytest.mark.parametrize("make", [stage_1, classifier])
def test_the_bare_model_of_transformers_lacks_a_prefix(make):
    theirs = write_as("huggingface", make().state_dict())
    bare = {n.removeprefix("videomae."): t for n, t in theirs.items() if n.startswith("videomae.")}
    expected = {n: t for n, t in read_as("huggingface", theirs).items() if n.startswith(("patch_", "blocks.", "norm."))}
    assert layout_of(bare) == "huggingface" and same(read_as("huggingface", bare), expected)


def published(**more):
    """A checkpoint as PPMA releases them: stage 1 with its tables and its pixel head."""
    weights = write_as("ppma", stage_1(**more).state_dict())
    table = sinusoid_table(VIT.tokens, VIT.width).float()[None]
    return weights | {"trunk.pos_embed": table, "trunk.decoder.pos_embed": table.clone()}


def test_published_checkpoints_with_and_without_decoder_and_heads():
    full = published()
    assert same(read_as("ppma", full), stage_1().state_dict())
    headless = {n: t for n, t in full.items() if not n.startswith("heads.")}
    assert "decoder.head.weight" not in read_as("ppma", headless)
    bare = {n: t for n, t in headless.items() if ".decoder." not in n and "mask_token" not in n}
    converted = read_as("ppma", bare)
    assert not any(n.startswith("decoder.") for n in converted) and "fc_norm.weight" in converted


def test_leftovers_and_gaps_are_listed():
    with pytest.raises(InputError, match=r"no place .*trunk\.cls_token"):
        read_as("ppma", published() | {"trunk.cls_token": torch.zeros(1, 1, 16)})
    gap = published()
    del gap["trunk.blocks.0.mlp.fc1.bias"]
    with pytest.raises(InputError, match=r"no tensor trunk\.blocks\.0\.mlp\.fc1\.bias"):
        read_as("ppma", gap)
    with pytest.raises(InputError, match="numbered"):
        read_as("ppma", {n.replace("trunk.blocks.0.", "trunk.blocks.7."): t for n, t in published().items()})
    learned = published() | {"trunk.pos_embed": torch.rand(1, VIT.tokens, VIT.width)}
    with pytest.raises(InputError, match="learned positions"):
        read_as("ppma", learned)


def videomae_features(weights, video_BCTHW):
    """VideoMAE's encoder by its own names: separate q and v biases, none on k (restated)."""
    x = F.conv3d(video_BCTHW, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=VIT.patch)
    x = x.flatten(2).transpose(1, 2) + sinusoid_table(VIT.tokens, VIT.width).to(x)
    for i in range(VIT.depth):
        w = {n.removeprefix(f"blocks.{i}."): t for n, t in weights.items() if n.startswith(f"blocks.{i}.")}
        y = F.layer_norm(x, (16,), w["norm1.weight"], w["norm1.bias"], eps=1e-6)
        bias = torch.cat([w["attn.q_bias"], torch.zeros(16).to(x), w["attn.v_bias"]])
        q, k, v = F.linear(y, w["attn.qkv.weight"], bias).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        y = (((q * 8**-0.5) @ k.transpose(2, 3)).softmax(dim=3) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(y, w["attn.proj.weight"], w["attn.proj.bias"])
        y = F.layer_norm(x, (16,), w["norm2.weight"], w["norm2.bias"], eps=1e-6)
        x = x + F.linear(
            F.gelu(F.linear(y, w["mlp.fc1.weight"], w["mlp.fc1.bias"])), w["mlp.fc2.weight"], w["mlp.fc2.bias"]
        )
    return F.layer_norm(x.mean(dim=1), (16,), weights["fc_norm.weight"], weights["fc_norm.bias"], eps=1e-6)


@pytest.mark.promise("R18")
def test_a_converted_videomae_gives_the_features_it_gave(figure):
    theirs = write_as("videomae", classifier(k_bias=False).double().state_dict())
    model = Classifier(VIT, {"converted": 5}).double().eval()
    model.load_state_dict(read_as("videomae", theirs))
    frames = torch.randint(0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).double(), torch.tensor([0.229, 0.224, 0.225]).double()
    video = ((frames.double() / 255 - mean) / std).permute(0, 4, 1, 2, 3)
    apart = float((model.features(frames) - videomae_features(theirs, video)).detach().abs().max())
    figure("R18", f"features of VideoMAE's own arithmetic within {apart:.1g}")
    assert apart < 1e-6  # mean and std are float32 here


@pytest.mark.promise("R18")
def test_a_k_bias_changes_nothing_but_rounding():
    """Why it may be left out: it adds the same to every score of a query."""
    model = classifier().double().eval()
    frames = torch.randint(0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8)
    before = model.features(frames)
    for block in model.blocks:
        assert block.attn.qkv.bias.data.chunk(3)[1].abs().min() > 0
        block.attn.qkv.bias.data.chunk(3)[1].zero_()
    assert (model.features(frames) - before).abs().max() < 1e-10


SHAPE = ["--heads", "2", "--frames", "4", "--size", "16", "--decoder-heads", "2"]


def test_the_command_and_what_comes_of_it(tmp_path, capfd):
    torch.save({"model": published()}, tmp_path / "released.pth")
    assert ppma(["convert", str(tmp_path / "released.pth"), str(tmp_path / "converted"), *SHAPE]) == 0
    fresh = Classifier(VIT, {"a": 3})
    checkpoint.load_encoder(fresh, tmp_path / "converted")
    assert torch.equal(fresh.blocks[1].attn.qkv.weight, stage_1().blocks[1].attn.qkv.weight)
    assert ppma(["export", "--to", "ppma", str(tmp_path / "converted"), str(tmp_path / "back")]) == 0
    back = torch.load(tmp_path / "back/model.pth", weights_only=True)["model"]
    assert same(back, {n: t for n, t in published().items() if "pos_embed" not in n})
    for argv, message in (
        (["--from", "ppma", str(tmp_path / "gone.pth"), str(tmp_path / "x")], "no such file"),
        (["--from", "videomae", str(tmp_path / "released.pth"), str(tmp_path / "x")], "layout ppma"),
        ([str(tmp_path / "released.pth"), str(tmp_path / "converted")], "exists"),
        ([str(tmp_path / "released.pth"), str(tmp_path / "x")], "--heads"),
    ):
        capfd.readouterr()
        assert ppma(["convert", *argv]) == 2
        assert message in capfd.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/pwned",)

    torch.save({"model": {"trunk.norm.weight": Evil()}}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match=r"evil\.pth is refused"):
        read_models(tmp_path / "evil.pth")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(InputError, match=r"junk\.pth is refused"):
        read_models(tmp_path / "junk.pth")
    torch.save({"epoch": 3}, tmp_path / "no_tensors.pth")
    with pytest.raises(InputError, match="tensors"):
        read_models(tmp_path / "no_tensors.pth")
    assert not (tmp_path / "pwned").exists()


# timm's models: ours make a round trip; those of pictures are refused by name before anything is downloaded


def test_a_registered_model_trained_with_timm_starts_a_run(tmp_path):
    assert timm_models.VideoTransformer
    model = timm.create_model("ppma_vit_tiny_patch16_224", num_classes=3, img_size=32, frames=4, seed=4)
    torch.save(model.state_dict(), tmp_path / "tuned.pth")
    size = ["--size", "32", "--frames", "4"]
    assert ppma(["convert", "--from", "timm", str(tmp_path / "tuned.pth"), str(tmp_path / "converted"), *size]) == 0
    started = Classifier(preset("tiny", size=32, frames=4), {"new": 5}, seed=9)
    checkpoint.load_encoder(started, tmp_path / "converted")
    assert torch.equal(started.blocks[3].mlp.fc2.weight, model.blocks[3].mlp.fc2.weight)
    assert set(load_file(tmp_path / "converted/model.safetensors")) == set(model.state_dict())


def test_models_of_pictures_are_refused_by_name_and_nothing_is_fetched(tmp_path, capfd, monkeypatch):
    made = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: made.append(k) or create(*a, **k))
    assert ppma(["convert", "--from", "timm", "vit_base_patch16_224.mae", str(tmp_path / "x")]) == 2
    error = capfd.readouterr().err
    assert "timm's vit_base_patch16_224.mae embeds single pictures" in error and len(error.strip().splitlines()) == 1
    assert made == [{}] and not (tmp_path / "x").exists()
    for name, message in (("resnet18", "is not a vision transformer"), ("vit_gone", "timm has no model of that name")):
        with pytest.raises(InputError, match=message):
            load_by_name(name)
    with pytest.raises(InputError, match="has no released weights"):
        load_by_name("ppma_vit_tiny_patch16_224")


def test_a_path_is_no_name(tmp_path):
    assert is_name(type(tmp_path)("vit_base_patch16_224.mae"))
    assert not is_name(tmp_path / "gone") and not is_name(type(tmp_path)("weights.pth"))


def test_a_foreign_file_given_to_init_is_told_how_to_convert(tmp_path):
    torch.save({"model": {}}, tmp_path / "videomae.pth")
    with pytest.raises(InputError, match=r"ppma convert .*videomae\.pth DIR"):
        checkpoint.read_weights(tmp_path / "videomae.pth")


def test_heads_of_several_label_spaces_are_numbered_for_ppma_and_left_out_elsewhere():
    ours = filled(Classifier(VIT, {"synapt": 5, "no-human": 3})).state_dict()
    theirs = write_as("ppma", ours)
    assert torch.equal(theirs["heads.0.weight"], ours["heads.synapt.weight"])
    assert torch.equal(theirs["heads.1.bias"], ours["heads.no-human.bias"])
    assert {name for name in read_as("ppma", theirs) if name.startswith("heads.")} >= {"heads.space1.weight"}
    assert not any("head" in name for name in write_as("timm", ours))
