"""An export is run before it is written, and can be used without this package's loader."""

import importlib.util
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers_restated import VideoMAE

import ppma as ppma_package
from ppma.cli import main as ppma
from ppma.config.loader import LoaderConfig
from ppma.config.model import PIXEL_MEAN, PIXEL_STD, PRESETS, MAEConfig, ViTConfig, preset
from ppma.config.run import RunConfig
from ppma.inference import export
from ppma.inference.samples import plain_views
from ppma.inference.videos import rows_of
from ppma.models import timm_models
from ppma.models.classify import Classifier
from ppma.models.mae import MaskedAutoencoder
from ppma.training import checkpoint, lineage
from ppma.training.run import open_run


@pytest.fixture
def runs(tiny_runs):
    return tiny_runs / "runs"


@pytest.fixture
def small(monkeypatch):
    """The shape of the preset "tiny", smaller still, also for timm."""
    monkeypatch.setitem(PRESETS, "tiny", ViTConfig(width=48, depth=2, heads=3))
    return preset("tiny", size=32, frames=4, head_norm_eps=1e-5)


def test_all_doors_give_the_same_numbers(clip_tree, tmp_path, small):
    """Command line, Python, transformers, ONNX, torch.export and timm: features after the final norm, and scores."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")
    transformers = pytest.importorskip("transformers", reason="the extra [huggingface] is not installed")
    spaces = {"acts": ("run", "sit", "wave")}
    save(tmp_path / "run", Classifier(small, spaces), small, "classify", label_spaces=spaces)
    video, run = str(next(clip_tree.rglob("*.mp4"))), str(tmp_path / "run")
    model = ppma_package.load_model(run, device="cpu", workers=1)
    rows = rows_of([video], window=None, stride=None, mark_bad=False, workers=1).manifest
    clip = plain_views(rows, replace(model.run.loader, window_seconds=9.0))
    video_BTCHW = (torch.from_numpy(clip).permute(0, 1, 4, 2, 3) / 255 - MEAN) / STD

    flags = ["--checkpoint", run, "--device", "cpu", "--workers", "1", "--window", "9", "--crops", "1"]
    assert ppma(["features", video, *flags, "--final-norm", "--out", str(tmp_path / "f.npz")]) == 0
    assert ppma(["predict", video, *flags, "--out", str(tmp_path / "p.npz")]) == 0
    for project in ("huggingface", "timm"):
        assert ppma(["export", "--to", project, run, str(tmp_path / project)]) == 0
    out = tmp_path / "exported"
    assert ppma(["export", run, str(out)]) == 0
    as_run = {"model.safetensors", "config.json", "state.json", "lineage.json"}
    assert {path.name for path in out.iterdir()} == as_run | {"export.json", "README.md", "encoder.pt2", "encoder.onnx"}
    session = onnxruntime.InferenceSession(out / "encoder.onnx", providers=["CPUExecutionProvider"])
    theirs = transformers.VideoMAEForVideoClassification.from_pretrained(tmp_path / "huggingface").eval()
    arguments = {"img_size": 32, "frames": 4, "num_classes": 3, "head_norm_eps": 1e-5}
    arguments["checkpoint_path"] = tmp_path / "timm/model.safetensors"
    of_timm = timm_models.timm.create_model("ppma_vit_tiny_patch16_224", **arguments).eval()
    with torch.no_grad():
        pooled = of_timm.forward_head(of_timm.forward_features(video_BTCHW.transpose(1, 2)), pre_logits=True)
        features = {
            "command line": np.load(tmp_path / "f.npz")["features"],
            "python": model.features(video, window=9.0, final_norm=True).values,
            "transformers": theirs.fc_norm(theirs.videomae(video_BTCHW).last_hidden_state.mean(dim=1)),
            "onnx": session.run(None, {export.INPUT: clip})[0],
            "torch.export": torch.export.load(out / "encoder.pt2").module()(torch.from_numpy(clip)),
            "timm": pooled,
        }
        scores = {
            "command line": np.load(tmp_path / "p.npz")["scores"],
            "transformers": theirs(video_BTCHW).logits.softmax(dim=1),
            "timm": of_timm(video_BTCHW.transpose(1, 2)).softmax(dim=1),
        }
    ours = model.predict(video, window=9.0, crops=1).window_scores
    for found, expected in ((features, features["python"].numpy()), (scores, ours)):
        far = {door: np.abs(np.asarray(values) - expected).max() for door, values in found.items()}
        assert max(far.values()) < 1e-5, far


def test_the_folder_is_a_model_and_the_card_describes_its_run(runs, tmp_path):
    assert ppma(["export", str(runs / "finetune"), str(tmp_path / "out"), "--no-onnx"]) == 0
    facts = json.loads((tmp_path / "out/export.json").read_text())
    vit = ViTConfig(**{**facts["vit"], "patch": tuple(facts["vit"]["patch"])})
    fresh = Classifier(vit, {"other": 9})
    checkpoint.load_encoder(fresh, tmp_path / "out")
    run, exported = (ppma_package.load_model(path, device="cpu") for path in (runs / "finetune", tmp_path / "out"))
    assert torch.equal(fresh.blocks[0].attn.qkv.weight, run.run.model.blocks[0].attn.qkv.weight)
    card = (tmp_path / "out/README.md").read_text()
    assert "Recipe: `finetune`" in card and "made val" in card and "top-1" in card and "No claim of anonymity" in card
    assert torch.equal(exported.features(CLIP).values, run.features(CLIP).values)
    assert exported.class_names == run.class_names


def test_the_form_of_a_stage_1_run_gives_its_features(runs, tmp_path, monkeypatch):
    """Their mean over the tokens, for another number of clips; one that differs is not kept."""
    assert ppma(["export", str(runs / "mae"), str(tmp_path / "out"), "--no-onnx"]) == 0
    with torch.no_grad():
        expected = export.FeatureExtractor(open_run(runs / "mae", device="cpu").model)(CLIP)
    assert far(torch.export.load(tmp_path / "out/encoder.pt2").module()(CLIP), expected) < 1e-5
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="differs from the model"):
        ppma(["export", str(runs / "mae"), str(tmp_path / "x"), "--no-onnx"])
    assert not (tmp_path / "x").exists()


def test_wrong_input_leaves_nothing_behind(runs, tmp_path, capfd, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for argv, problem in (
        ([str(tmp_path), str(tmp_path / "x")], str(tmp_path)),
        ([str(runs / "mae"), str(tmp_path / "there")], "exists"),
        ([str(runs / "mae"), str(tmp_path / "x")], "pip install onnx"),
    ):
        assert ppma(["export", *argv]) == 2
        assert problem in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


# For other projects. What `from_pretrained` computes is restated in transformers_restated.py


CLIP = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
VIDEO_BTCHW = (CLIP.permute(0, 1, 4, 2, 3) / 255 - MEAN) / STD


def save(folder, model, vit, phase, **state):
    """A run folder without training, with random weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)), alpha=0.05)
    loader = LoaderConfig(frames=vit.frames, size=vit.size, views=1)
    mae = model.mae if phase == "mae" else MAEConfig()
    config = RunConfig(recipe="made", phase=phase, sources=("made",), vit=vit, mae=mae, loader=loader, batch=1)
    checkpoint.save_weights(folder, model.state_dict(), state, config=config.to_json())
    return model.eval()


def to(project, folder, *flags):
    assert ppma(["export", "--to", project, str(folder), str(folder / "out"), *flags]) == 0
    return folder / "out"


def far(a, b):
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def test_transformers_gives_the_features_logits_and_gradients_of_a_run(runs, tmp_path):
    shutil.copytree(runs / "finetune", tmp_path / "run", symlinks=True)
    out = to("huggingface", tmp_path / "run")
    files = {path.name for path in out.iterdir()}
    assert files == {"model.safetensors", "config.json", "preprocessor_config.json", "README.md", "lineage.json"}
    theirs, model = VideoMAE(out), open_run(runs / "finetune", device="cpu").classifier()
    names = model.class_names["made"]
    assert theirs.config["id2label"] == {str(label): name for label, name in enumerate(names)}
    assert theirs.config["label2id"][names[2]] == 2
    assert far(model.tokens(model.patches(CLIP), None), theirs.hidden_states(VIDEO_BTCHW)) < 1e-5
    model.fc_norm.eps = 1e-5  # what transformers has, without a setting
    own, foreign = model.blocks[0].mlp.fc1.weight, theirs.weights["videomae.encoder.layer.0.intermediate.dense.weight"]
    foreign.requires_grad_(True)
    losses = [logits.logsumexp(1).sum() for logits in (model.logits(CLIP), theirs.logits(VIDEO_BTCHW))]
    assert far(model.logits(CLIP), theirs.logits(VIDEO_BTCHW)) < 1e-5
    assert far(*(torch.autograd.grad(loss, w)[0] for loss, w in zip(losses, (own, foreign)))) < 1e-5
    card = (out / "README.md").read_text()
    assert "library_name: transformers" in card and 'pipeline("video-classification"' in card and "hf upload" in card
    block = json.loads(card.split("```json\n")[1].split("```")[0])
    source = block["prov:wasDerivedFrom"][0]
    assert source["@type"] == "sc:Dataset" and source["name"] == "made train" and source["license"] == ["made here"]
    processor = json.loads((out / "preprocessor_config.json").read_text())
    assert processor["size"]["shortest_edge"] == 32 and processor["image_mean"] == list(PIXEL_MEAN)
    with pytest.raises(ppma_package.InputError, match="ppma convert"):
        ppma_package.load_model(out)
    assert ppma(["convert", str(out), str(tmp_path / "back")]) == 0
    assert lineage.read(tmp_path / "back/model.safetensors").sources[0].name == "made"
    back, run = (ppma_package.load_model(path, device="cpu") for path in (tmp_path / "back", runs / "finetune"))
    assert torch.allclose(back.features(CLIP).values, run.features(CLIP).values, atol=1e-5)
    predictions = back.predict(CLIP[0]), run.predict(CLIP[0])
    assert predictions[0].scores == pytest.approx(predictions[1].scores, abs=1e-5)
    assert [name for name, _ in predictions[0].top] == [name for name, _ in predictions[1].top]


def test_transformers_reconstructs_with_a_decoder_of_videomae(tmp_path):
    """A decoder as in the paper has no place there, so only the encoder goes."""
    vit = ViTConfig(width=48, depth=1, heads=3, patch=(2, 8, 8), frames=4, size=32, head_norm_eps=1e-5)
    shape = MAEConfig(decoder_width=32, decoder_depth=2, decoder_heads=2, decoder_positions="after")
    model = save(tmp_path / "run", MaskedAutoencoder(vit, shape), vit, "mae")
    theirs = VideoMAE(to("huggingface", tmp_path / "run"))
    assert theirs.config["architectures"] == ["VideoMAEForPreTraining"]
    prediction, _, masked_idx = model.predict(CLIP, torch.arange(2))
    masked = torch.zeros(2, vit.tokens, dtype=torch.bool).scatter(1, masked_idx, True)
    order = masked_idx.argsort(dim=1)[..., None].expand_as(prediction)  # transformers predicts in raster order
    assert far(prediction.gather(1, order), theirs.reconstruction(VIDEO_BTCHW, masked)) < 1e-5
    if transformers := importlib.util.find_spec("transformers") and importlib.import_module("transformers"):
        loaded = transformers.VideoMAEForPreTraining.from_pretrained(theirs.folder).eval()
        assert far(loaded(VIDEO_BTCHW, masked).logits, theirs.reconstruction(VIDEO_BTCHW, masked)) < 1e-5
    assert far(model.features(CLIP), theirs.hidden_states(VIDEO_BTCHW)) < 1e-5
    own = MaskedAutoencoder(vit, replace(shape, decoder_positions="before"))
    save(tmp_path / "paper", own, vit, "mae")
    theirs = VideoMAE(to("huggingface", tmp_path / "paper"))
    assert theirs.config["architectures"] == ["VideoMAEModel"] and not any("decoder" in n for n in theirs.weights)
    assert far(own.features(CLIP), theirs.hidden_states(VIDEO_BTCHW)) < 1e-5


def test_one_head_of_several_is_chosen_by_its_label_space(tmp_path, capfd):
    vit = ViTConfig(width=48, depth=1, heads=3, patch=(2, 8, 8), frames=4, size=32, head_norm_eps=1e-5)
    spaces = {"acts": ("run", "sit"), "more": ("a", "b", "c")}
    model = save(tmp_path / "run", Classifier(vit, spaces), vit, "classify", label_spaces=spaces)
    assert ppma(["export", "--to", "huggingface", str(tmp_path / "run"), str(tmp_path / "x")]) == 2
    assert "acts, more" in capfd.readouterr().err and not (tmp_path / "x").exists()
    theirs = VideoMAE(to("huggingface", tmp_path / "run", "--space", "more"))
    assert far(model.logits(CLIP, "more"), theirs.logits(VIDEO_BTCHW)) < 1e-5
    assert list(theirs.config["id2label"].values()) == ["a", "b", "c"]


@pytest.mark.parametrize("phase", ["classify", "mae"])
def test_timm_creates_the_model_with_its_weights(tmp_path, small, phase):
    state = {"label_spaces": {"acts": 3}} if phase == "classify" else {}
    shape = MAEConfig(decoder_width=32, decoder_depth=1, decoder_heads=2)
    model = Classifier(small, {"acts": 3}) if state else MaskedAutoencoder(small, shape)
    save(tmp_path / "run", model, small, phase, **state)
    out = to("timm", tmp_path / "run")
    (call,) = [line for line in (out / "README.md").read_text().splitlines() if "create_model" in line]
    scope = {"timm": timm_models.timm}
    exec(call.replace("DIR", str(out)), scope)
    theirs = scope["model"].eval()(VIDEO_BTCHW.transpose(1, 2))
    assert far(model.logits(CLIP) if state else model.features(CLIP).mean(dim=1), theirs) < 1e-5


def test_transformers_itself_reads_the_folder(runs, clip_tree, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra [huggingface] is not installed")
    shutil.copytree(runs / "finetune", tmp_path / "run", symlinks=True)
    out, model = to("huggingface", tmp_path / "run"), open_run(runs / "finetune", device="cpu").classifier()
    model.fc_norm.eps = 1e-5
    bare = transformers.VideoMAEModel.from_pretrained(out).eval()
    theirs = transformers.VideoMAEForVideoClassification.from_pretrained(out).eval()
    assert far(model.tokens(model.patches(CLIP), None), bare(VIDEO_BTCHW).last_hidden_state) < 1e-5
    assert far(model.logits(CLIP), theirs(VIDEO_BTCHW).logits) < 1e-5
    assert far(VideoMAE(out).logits(VIDEO_BTCHW), theirs(VIDEO_BTCHW).logits) < 1e-5
    classify = transformers.pipeline("video-classification", model=str(out))
    found = classify(str(next(clip_tree.rglob("*.mp4"))), num_frames=4)
    assert {one["label"] for one in found} <= set(model.class_names["made"])
