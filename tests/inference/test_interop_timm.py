"""timm's models: ours go there and back, those of pictures are refused by name before anything is fetched."""

import pytest
import torch
from safetensors.torch import load_file

from ppma.cli import main as ppma
from ppma.config.errors import InputError
from ppma.config.model import preset
from ppma.inference.convert_timm import is_name, load_by_name
from ppma.models import timm_models
from ppma.models.classify import Classifier
from ppma.models.torchvision_shim import timm
from ppma.training import checkpoint


def test_a_registered_model_trained_with_timm_starts_a_run(tmp_path):
    assert timm_models.VideoTransformer
    model = timm.create_model("ppma_vit_tiny_patch16_224", num_classes=3, img_size=32, frames=4, seed=4)
    torch.save(model.state_dict(), tmp_path / "tuned.pth")
    assert ppma(["convert", "--from", "timm", str(tmp_path / "tuned.pth"), str(tmp_path / "converted")]) == 0
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
    for name, message in (("resnet18", "is no vision transformer"), ("vit_gone", "timm has no model of that name")):
        with pytest.raises(InputError, match=message):
            load_by_name(name)
    with pytest.raises(InputError, match="has no released weights"):
        load_by_name("ppma_vit_tiny_patch16_224")


def test_a_path_is_no_name(tmp_path):
    assert is_name(type(tmp_path)("vit_base_patch16_224.mae"))
    assert not is_name(tmp_path / "gone") and not is_name(type(tmp_path)("weights.pth"))


def test_a_foreign_file_given_to_init_is_told_how_to_convert(tmp_path):
    torch.save({"model": {}}, tmp_path / "videomae.pth")
    with pytest.raises(InputError, match=r"ppma convert --from PROJECT .*videomae\.pth DIR"):
        checkpoint.read_weights(tmp_path / "videomae.pth")
