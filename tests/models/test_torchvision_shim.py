"""timm can be imported with this torch, and repeatedly."""

import importlib
from types import SimpleNamespace

import pytest
import torch

from ppma.models import torchvision_shim
from ppma.models.torchvision_shim import ensure_torchvision, plain_nms, timm


def test_timm_makes_models_and_transforms_here():
    model = timm.create_model("test_vit", num_classes=3)
    assert model.head.out_features == 3
    assert len(timm.data.create_transform(**timm.data.resolve_model_data_config(model)).transforms) > 2


def test_asking_again_changes_nothing():
    assert ensure_torchvision() == ensure_torchvision()


def test_any_other_failure_is_raised_as_it_is(monkeypatch):
    def missing(name):
        raise RuntimeError("libcudart.so is missing")

    monkeypatch.setattr(torchvision_shim, "importlib", SimpleNamespace(import_module=missing))
    with pytest.raises(RuntimeError, match="libcudart"):
        ensure_torchvision()


def test_the_plain_suppression_is_torchvisions_meaning():
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(60, 2, generator=generator) * 50
    boxes, scores = (
        torch.cat([low, low + 5 + torch.rand(60, 2, generator=generator) * 30], 1),
        torch.rand(60, generator=generator),
    )
    kept = plain_nms(boxes, scores, 0.5).tolist()
    assert scores[kept].tolist() == sorted(scores[kept].tolist(), reverse=True)
    overlap = importlib.import_module("torchvision").ops.box_iou(boxes, boxes)
    for i in range(60):
        better = [k for k in kept if scores[k] > scores[i]]
        assert (i in kept) == (not (overlap[i, better] > 0.5).any())
    assert plain_nms(boxes[:0], scores[:0], 0.5).shape == (0,)
