"""Checkpoints are complete or absent, old ones are deleted last, and an encoder loads nothing but the encoder."""

import json

import pytest
import torch
from safetensors.torch import save_file

from ppma.config.errors import InputError
from ppma.config.model import MAEConfig, ViTConfig
from ppma.models.classify import Classifier
from ppma.models.mae import MaskedAutoencoder
from ppma.training import checkpoint

VIT = ViTConfig(width=16, depth=2, heads=2, patch=(2, 8, 8), frames=4, size=16)
MAE = MAEConfig(decoder_width=8, decoder_depth=1, decoder_heads=2)


def save(folder, step, **more):
    return checkpoint.save(
        folder, step=step, model={"a": torch.full((2,), float(step))}, training={"x": step}, state={"n": 1}, **more
    )


def test_the_newest_is_found_old_ones_go_and_latest_points_to_it(tmp_path):
    for step in (1, 2, 30):
        save(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step_00000002", "step_00000030"]
    newest = checkpoint.newest(tmp_path)
    assert newest.step == 30 and newest.state == {"step": 30, "n": 1}
    assert checkpoint.load_training(newest) == {"x": 30}
    assert (tmp_path / "latest").resolve() == newest.folder
    for path in (tmp_path, newest.folder, newest.folder / "model.safetensors"):
        assert checkpoint.read_weights(path)["a"].tolist() == [30.0, 30.0]


def test_what_was_never_completed_is_not_taken_up(tmp_path):
    save(tmp_path, 1)
    (tmp_path / ".step_00000002.abc").mkdir()  # a kill in the middle of writing
    (tmp_path / "step_00000003").mkdir()  # not ours: no state.json
    assert checkpoint.newest(tmp_path).step == 1
    assert checkpoint.newest(tmp_path / "none") is None


def test_a_step_is_never_written_over(tmp_path):
    folder = save(tmp_path, 1)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert save(tmp_path, 1) == folder and (folder / "model.safetensors").stat().st_mtime_ns == before


def test_an_encoder_starts_from_stage_1_without_its_tail(tmp_path):
    mae = MaskedAutoencoder(VIT, MAE, seed=3)
    torch.nn.init.normal_(mae.norm.weight)
    checkpoint.save(tmp_path, step=1, model=mae.state_dict(), training={}, state={})
    fresh = Classifier(VIT, {"a": 5}, seed=9)
    kept = {name: value.clone() for name, value in fresh.state_dict().items()}
    left = checkpoint.load_encoder(fresh, tmp_path)
    assert all(name.startswith(("decoder.", "norm.")) for name in left) and "norm.weight" in left
    for name, value in fresh.state_dict().items():
        expected = mae.state_dict()[name] if name.startswith(("patch_embed", "blocks")) else kept[name]
        assert torch.equal(value, expected), name
    checkpoint.load_encoder(fresh, tmp_path, keep_norm=True)
    assert torch.equal(fresh.fc_norm.weight, mae.norm.weight)


def test_a_classifier_passes_its_encoder_on_and_a_misfit_changes_nothing(tmp_path):
    first = Classifier(VIT, {"a": 5}, seed=3)
    torch.nn.init.normal_(first.fc_norm.weight)
    checkpoint.save(tmp_path / "a", step=1, model=first.state_dict(), training={}, state={})
    second = Classifier(VIT, {"b": 7}, seed=4)
    checkpoint.load_encoder(second, tmp_path / "a", keep_norm=True)
    assert torch.equal(second.fc_norm.weight, first.fc_norm.weight)
    assert torch.equal(second.blocks[0].attn.qkv.weight, first.blocks[0].attn.qkv.weight)
    state = {
        name: value
        for name, value in Classifier(VIT, {"a": 5}, seed=9).state_dict().items()
        if "patch_embed.proj.bias" not in name
    }
    checkpoint.save(tmp_path / "b", step=1, model=state, training={}, state={})
    before = {name: value.clone() for name, value in second.state_dict().items()}
    with pytest.raises(InputError, match=r"patch_embed\.proj\.bias is missing"):
        checkpoint.load_encoder(second, tmp_path / "b")
    assert all(torch.equal(value, before[name]) for name, value in second.state_dict().items())


def test_misfits_are_named(tmp_path):
    wide = MaskedAutoencoder(ViTConfig(width=32, depth=1, heads=2, patch=(2, 8, 8), frames=4, size=16), MAE)
    checkpoint.save(tmp_path, step=1, model=wide.state_dict(), training={}, state={})
    with pytest.raises(InputError) as caught:
        checkpoint.load_encoder(Classifier(VIT, {"a": 5}), tmp_path)
    text = str(caught.value)
    assert "blocks.0.attn.proj.bias has shape (32,), the model's has (16,)" in text and " more" in text
    with pytest.raises(InputError, match=r"decoder\.blocks\.0\.attn\.proj\.bias is not part of this model"):
        checkpoint.load_model(Classifier(VIT, {"a": 5}), _stage_1(tmp_path))


def _stage_1(folder):
    """A checkpoint of the same encoder, with stage 1's tail."""
    return checkpoint.save(
        folder / "mae", step=1, model=MaskedAutoencoder(VIT, MAE).state_dict(), training={}, state={}
    )


@pytest.mark.parametrize("content", [b"", b"\x80\x04\x95 a pickle", b"\xff" * 100])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="not a readable safetensors file"):
        checkpoint.read_weights(tmp_path)
    with pytest.raises(InputError, match="no checkpoint here"):
        checkpoint.read_weights(tmp_path / "nowhere")


def test_weights_alone_can_be_read(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "foreign.safetensors")
    assert checkpoint.read_weights(tmp_path / "foreign.safetensors")["a"].sum() == 3
    assert json.loads((save(tmp_path, 5) / "state.json").read_text())["step"] == 5
