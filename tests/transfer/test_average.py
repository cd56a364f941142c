"""A weighted average of encoders: what is averaged, what is remembered, and what is refused."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from ppma.cli import main as ppma
from ppma.config.flags import resolve
from ppma.config.model import MAEConfig, ViTConfig
from ppma.models.classify import Classifier
from ppma.models.mae import MaskedAutoencoder
from ppma.training import checkpoint
from ppma.transfer.average import average

VIT = ViTConfig(width=16, depth=2, heads=2, patch=(2, 8, 8), frames=4, size=16)
MAE = MAEConfig(decoder_width=8, decoder_depth=1, decoder_heads=2)


def saved(folder, module):
    checkpoint.save_weights(folder, module.state_dict(), {})
    return folder


@pytest.fixture
def models(tmp_path):
    return [saved(tmp_path / f"m{seed}", Classifier(VIT, {"x": 3 + seed}, seed=seed)) for seed in range(3)]


def test_every_tensor_is_the_weighted_mean(models, tmp_path):
    argv = ["average", *map(str, models), "--weights", "1", "2", "5", "--out", str(tmp_path / "out/averaged")]
    assert ppma(argv) == 0
    found = load_file(tmp_path / "out/averaged/model.safetensors")
    parts = [load_file(model / "model.safetensors") for model in models]
    assert found.keys() == {name for name in parts[0] if not name.startswith("head.")}
    for name, tensor in found.items():
        expected = sum(w * p[name].double() for w, p in zip((0.125, 0.25, 0.625), parts))
        assert torch.equal(tensor, expected.float()), name
    assert not torch.equal(found["blocks.0.mlp.fc1.weight"], parts[0]["blocks.0.mlp.fc1.weight"])


def test_the_parents_are_remembered(models, tmp_path):
    assert ppma(["average", *map(str, models[:2]), "--out", str(tmp_path / "averaged")]) == 0
    record = json.loads((tmp_path / "averaged/state.json").read_text())["parents"]
    hashes = [hashlib.sha256((m / "model.safetensors").read_bytes()).hexdigest() for m in models[:2]]
    assert [p["sha256"] for p in record] == hashes and [p["weight"] for p in record] == [0.5, 0.5]
    assert [p["path"] for p in record] == [str(m) for m in models[:2]]


def test_an_average_starts_a_run_of_any_phase(models, tmp_path):
    stage_1 = saved(tmp_path / "stage_1", MaskedAutoencoder(VIT, MAE, seed=7))
    assert ppma(["average", str(models[0]), str(stage_1), "--out", str(tmp_path / "averaged")]) == 0
    assert "fc_norm.weight" not in load_file(tmp_path / "averaged/model.safetensors")  # stage 1 has another norm
    for module in (Classifier(VIT, {"other": 9}, seed=3), MaskedAutoencoder(VIT, MAE, seed=3)):
        checkpoint.load_encoder(module, tmp_path / "averaged")
        mean = average([models[0], stage_1])
        assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in mean.items())


def test_wrong_input_is_one_line_and_leaves_nothing(models, tmp_path, capfd):
    wide = saved(tmp_path / "wide", Classifier(replace(VIT, width=32), {"x": 3}))
    deep = saved(tmp_path / "deep", Classifier(replace(VIT, depth=3), {"x": 3}))
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    save_file({"other": torch.zeros(1)}, tmp_path / "none.safetensors")
    out = ["--out", str(tmp_path / "averaged")]
    a, b = map(str, models[:2])
    for argv, problem in (
        ([a], "two models"),
        ([a, b, "--weights", "1"], "--weights"),
        ([a, b, "--weights", "0", "0"], "--weights"),
        ([a, b, "--weights", "nan", "1"], "--weights"),
        ([a, str(wide)], "has shapes"),
        ([a, str(deep)], "blocks.2.attn.proj.bias"),
        ([a, str(tmp_path / "gone")], "gone"),
        ([a, str(tmp_path / "junk.safetensors")], "junk.safetensors"),
        ([str(tmp_path / "none.safetensors"), a], "none.safetensors"),
    ):
        assert ppma(["average", *argv, *out]) == 2
        error = capfd.readouterr().err
        assert problem in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "averaged").exists()
    assert ppma(["average", a, b, "--out", a]) == 2


def test_encoders_that_differ_in_what_tensors_do_not_show(models, tmp_path, capfd):
    run = resolve("probe", ["--size", "16", "--frames", "4"])
    for model, heads in zip(models, (2, 4)):
        (model / "config.json").write_text(replace(run, vit=replace(VIT, heads=heads)).to_json())
    assert ppma(["average", *map(str, models[:2]), "--out", str(tmp_path / "averaged")]) == 2
    assert "vit.heads is 2 and 4" in capfd.readouterr().err
