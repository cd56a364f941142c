"""An export is run before it is written, and can be used without this package's loader."""

import json

import numpy as np
import pytest
import torch

from ppma.cli import main as ppma
from ppma.config.model import ViTConfig
from ppma.inference import export
from ppma.models.classify import Classifier
from ppma.training import checkpoint
from ppma.training.run import open_run


@pytest.fixture
def runs(tiny_runs):
    return tiny_runs / "runs"


@pytest.mark.parametrize("name", ["mae", "finetune"])
def test_every_form_gives_the_model_s_features(runs, tmp_path, name):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")
    out = tmp_path / "exported"
    assert ppma(["export", str(runs / name), str(out)]) == 0
    files = {path.name for path in out.iterdir()}
    as_run = {"model.safetensors", "config.json", "state.json", "lineage.json"}
    assert files == as_run | {"export.json", "README.md", "encoder.pt2", "encoder.onnx"}
    model = open_run(runs / name, device="cpu").model
    frames = torch.randint(0, 256, (5, 4, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = export.FeatureExtractor(model)(frames)
    session = onnxruntime.InferenceSession(str(out / "encoder.onnx"), providers=["CPUExecutionProvider"])
    from_onnx = session.run(None, {"frames_BTHWC": frames.numpy()})[0]
    from_program = torch.export.load(out / "encoder.pt2").module()(frames)
    for found in (torch.from_numpy(np.asarray(from_onnx)), from_program.detach()):
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_the_folder_starts_another_run_and_the_card_tells_the_run(runs, tmp_path):
    assert ppma(["export", str(runs / "finetune"), str(tmp_path / "out"), "--no-onnx"]) == 0
    facts = json.loads((tmp_path / "out/export.json").read_text())
    vit = ViTConfig(**{**facts["vit"], "patch": tuple(facts["vit"]["patch"])})
    fresh = Classifier(vit, {"other": 9})
    checkpoint.load_encoder(fresh, tmp_path / "out")
    original = open_run(runs / "finetune", device="cpu").model
    assert torch.equal(fresh.blocks[0].attn.qkv.weight, original.blocks[0].attn.qkv.weight)
    card = (tmp_path / "out/README.md").read_text()
    assert "Recipe: `finetune`" in card and "made val" in card and "top-1" in card and "No claim of anonymity" in card


def test_wrong_input_leaves_nothing_behind(runs, tmp_path, capfd, monkeypatch):
    (tmp_path / "there").mkdir()
    for argv, problem in (
        ([str(tmp_path), str(tmp_path / "x")], str(tmp_path)),
        ([str(runs / "mae"), str(tmp_path / "there")], "exists"),
    ):
        assert ppma(["export", *argv]) == 2
        assert problem in capfd.readouterr().err
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="differs from the model"):
        ppma(["export", str(runs / "mae"), str(tmp_path / "x"), "--no-onnx"])
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
