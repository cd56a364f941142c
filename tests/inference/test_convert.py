"""Conversions: there and back to the bit, every tensor accounted for, and the same outputs."""

from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ppma.cli import main as ppma
from ppma.config.errors import InputError
from ppma.config.model import preset
from ppma.inference.foreign import is_name, load_by_name
from ppma.inference.layouts import Format, layout_of, read_as, write_as
from ppma.models import timm_models
from ppma.models.classify import Classifier
from ppma.models.torchvision_shim import timm
from ppma.models.vit import sinusoid_table
from ppma.training import checkpoint
from tests.inference.test_convert_layouts import VIT, classifier, refused, released, same, stage_1, tables

FRAMES = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.promise("R18")
@pytest.mark.parametrize("phase", ["mae", "classify"])
@pytest.mark.parametrize("kind", get_args(Format))
def test_there_and_back_is_exact_to_the_bit(kind, phase, figure):
    k_bias, positions = kind != "videomae", "before" if kind in ("ppma", "timm") else "after"
    ours = stage_1(positions, k_bias) if phase == "mae" else classifier(k_bias)
    theirs = write_as(kind, ours)
    back = read_as(layout_of(theirs), theirs)
    expected = ours if kind != "timm" else {n: t for n, t in ours.items() if not n.startswith("decoder.")}
    assert layout_of(theirs) == kind and same(back, expected)
    assert same(write_as(kind, back), theirs)
    figure("R18", f"{len(get_args(Format))} formats there and back: 0 differing bits")


@pytest.mark.parametrize("make", [stage_1, classifier])
def test_the_bare_model_of_transformers_lacks_a_prefix(make):
    theirs = write_as("huggingface", make())
    bare = {n.removeprefix("videomae."): t for n, t in theirs.items() if n.startswith("videomae.")}
    expected = {n: t for n, t in read_as("huggingface", theirs).items() if n.startswith(("patch_", "blocks.", "norm."))}
    assert layout_of(bare) == "huggingface" and same(read_as("huggingface", bare), expected)


@pytest.fixture(scope="module")
def published():
    weights = write_as("ppma", stage_1("before"))
    return weights | tables(weights)


def test_published_checkpoints_with_and_without_decoder_and_heads(published):
    assert same(read_as("ppma", published), stage_1("before"))
    headless = {n: t for n, t in published.items() if not n.startswith("heads.")}
    assert "decoder.head.weight" not in read_as("ppma", headless)
    bare = {n: t for n, t in headless.items() if ".decoder." not in n and "mask_token" not in n}
    converted = read_as("ppma", bare)
    assert not any(n.startswith("decoder.") for n in converted) and "fc_norm.weight" in converted


@pytest.mark.parametrize(
    ("changes", "old", "new", "problem"),
    [
        ({"trunk.cls_token": torch.zeros(1, 1, 16)}, "", "", r"no place .*trunk\.cls_token"),
        ({}, "trunk.blocks.0.mlp.fc1.bias", None, r"no tensor trunk\.blocks\.0\.mlp\.fc1\.bias"),
        ({}, "trunk.blocks.0.", "trunk.blocks.7.", "numbered"),
        ({"trunk.pos_embed": torch.rand(1, VIT.tokens, VIT.width)}, "", "", "learned positions"),
    ],
)
def test_leftovers_and_gaps_are_listed(published, changes, old, new, problem):
    weights = {n.replace(old, new or ""): t for n, t in (published | changes).items() if new is not None or n != old}
    with pytest.raises(InputError, match=problem):
        read_as("ppma", weights)


def videomae_features(weights, video_BCTHW):
    """VideoMAE's encoder by its own names: separate q and v biases, none on k (restated)."""
    x = F.conv3d(video_BCTHW, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=VIT.patch)
    x = x.flatten(2).transpose(1, 2) + sinusoid_table(VIT.tokens, VIT.width).to(x)
    width, eps = (VIT.width,), VIT.norm_eps
    for i in range(VIT.depth):
        w = {n.removeprefix(f"blocks.{i}."): t for n, t in weights.items() if n.startswith(f"blocks.{i}.")}
        y = F.layer_norm(x, width, w["norm1.weight"], w["norm1.bias"], eps=eps)
        bias = torch.cat([w["attn.q_bias"], torch.zeros(width).to(x), w["attn.v_bias"]])
        q, k, v = F.linear(y, w["attn.qkv.weight"], bias).unflatten(2, (3, VIT.heads, -1)).permute(2, 0, 3, 1, 4)
        y = (((q * q.shape[3] ** -0.5) @ k.transpose(2, 3)).softmax(dim=3) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(y, w["attn.proj.weight"], w["attn.proj.bias"])
        y = F.layer_norm(x, width, w["norm2.weight"], w["norm2.bias"], eps=eps)
        hidden = F.gelu(F.linear(y, w["mlp.fc1.weight"], w["mlp.fc1.bias"]))
        x = x + F.linear(hidden, w["mlp.fc2.weight"], w["mlp.fc2.bias"])
    return F.layer_norm(x.mean(dim=1), width, weights["fc_norm.weight"], weights["fc_norm.bias"], eps=VIT.head_norm_eps)


@pytest.mark.promise("R18")
def test_a_converted_videomae_gives_the_features_it_gave(figure):
    theirs = {name: tensor.double() for name, tensor in write_as("videomae", classifier()).items()}
    model = Classifier(VIT, {"made": 4}).double().eval()
    model.load_state_dict(read_as("videomae", theirs))
    mean, std = torch.tensor([0.485, 0.456, 0.406]).double(), torch.tensor([0.229, 0.224, 0.225]).double()
    video = ((FRAMES.double() / 255 - mean) / std).permute(0, 4, 1, 2, 3)
    apart = float((model.features(FRAMES) - videomae_features(theirs, video)).detach().abs().max())
    figure("R18", f"features of VideoMAE's own arithmetic within {apart:.1g}")
    assert apart < 1e-6  # mean and std are float32 here


@pytest.mark.promise("R18")
def test_a_k_bias_changes_nothing_but_rounding():
    """Why it may be left out: it adds the same to every score of a query."""
    features = []
    for k_bias in (True, False):
        model = Classifier(VIT, {"made": 4}).eval()
        model.load_state_dict(classifier(k_bias))
        assert bool(model.blocks[0].attn.qkv.bias.chunk(3)[1].any()) == k_bias
        features.append(model.double().features(FRAMES))
    assert (features[0] - features[1]).abs().max() < 1e-10


def test_wrong_input_is_one_line(tmp_path, capfd):
    file, _ = released(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "junk.pth").write_bytes(b"junk")
    for source, flags, message in (
        (tmp_path / "gone.pth", ["--from", "ppma"], "no such file"),
        (file, ["--from", "videomae"], "layout ppma"),
        (file, [], "--heads"),
        (tmp_path / "junk.pth", [], "junk.pth is refused"),
    ):
        assert message in refused(capfd, source, tmp_path / "x", *flags)
    assert ppma(["convert", str(file), str(tmp_path / "there")]) == 2


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
    line = refused(capfd, "vit_base_patch16_224.mae", tmp_path / "x", "--from", "timm")
    assert "timm's vit_base_patch16_224.mae embeds single pictures" in line and made == [{}]
    for name, message in (
        ("resnet18", "is not a vision transformer"),
        ("vit_gone", "timm has no model of that name"),
        ("ppma_vit_tiny_patch16_224", "has no released weights"),
    ):
        with pytest.raises(InputError, match=message):
            load_by_name(name)


def test_a_path_is_no_name(tmp_path):
    assert is_name(Path("vit_base_patch16_224.mae"))
    assert not is_name(tmp_path / "gone") and not is_name(Path("weights.pth"))


def test_a_foreign_file_given_to_init_is_told_how_to_convert(tmp_path):
    torch.save({"model": {}}, tmp_path / "videomae.pth")
    with pytest.raises(InputError, match=r"ppma convert .*videomae\.pth DIR"):
        checkpoint.read_weights(tmp_path / "videomae.pth")


def test_heads_of_several_label_spaces_are_numbered_for_ppma_and_left_out_elsewhere():
    ours = classifier(spaces={"synapt": 5, "no-human": 3})
    theirs = write_as("ppma", ours)
    assert torch.equal(theirs["heads.0.weight"], ours["heads.synapt.weight"])
    assert torch.equal(theirs["heads.1.bias"], ours["heads.no-human.bias"])
    assert {name for name in read_as("ppma", theirs) if name.startswith("heads.")} >= {"heads.space1.weight"}
    assert not any("head" in name for name in write_as("timm", ours))
