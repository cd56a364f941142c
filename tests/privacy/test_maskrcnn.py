"""Mask R-CNN: people alone are taken from what the network says; the real network with torchvision's structure in the slow form."""

import numpy as np
import pytest
import torch

from ppma.config.errors import InputError
from ppma.privacy.detectors import maskrcnn
from ppma.privacy.detectors.maskrcnn import LEAST_SCORE, MaskRcnnDetector, MaskRcnnSegmenter

FRAME = np.zeros((24, 32, 3), np.uint8)


class Says(torch.nn.Module):
    """Answers as torchvision's detection models do."""

    def __init__(self, labels):
        super().__init__()
        self.anything = torch.nn.Parameter(torch.zeros(1))
        self.labels = torch.tensor(labels, dtype=torch.int64)

    def forward(self, pictures):
        assert len(pictures) == 1 and pictures[0].shape == (3, 24, 32) and pictures[0].dtype == torch.float32
        count = len(self.labels)
        masks = torch.zeros(count, 1, 24, 32)
        for i in range(count):
            masks[i, :, 4 * i : 4 * i + 4] = 0.9
        boxes = torch.tensor([[1.0, 4 * i, 9, 4 * i + 4] for i in range(count)]).reshape(count, 4)
        return [{"boxes": boxes, "scores": torch.full((count,), 0.8), "labels": self.labels, "masks": masks}]


def test_people_are_taken_and_nothing_else(monkeypatch, tmp_path):
    monkeypatch.setattr(maskrcnn, "_network", lambda path: Says([1, 17, 1]))
    boxes = MaskRcnnDetector(tmp_path)(FRAME)
    assert boxes.dtype == np.float32 and boxes.tolist() == [
        pytest.approx([1, 0, 9, 4, 0.8]),
        pytest.approx([1, 8, 9, 12, 0.8]),
    ]
    outline = MaskRcnnSegmenter(tmp_path)(FRAME)
    assert outline[0].max() == outline[8].max() == pytest.approx(0.9) and not outline[4:8].any()


def test_nobody_is_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(maskrcnn, "_network", lambda path: Says([]))
    assert MaskRcnnDetector(tmp_path)(FRAME).shape == (0, 5) and not MaskRcnnSegmenter(tmp_path)(FRAME).any()


def test_a_file_of_something_else_is_told(tmp_path):
    path = tmp_path / "weights.pth"
    for content in (b"nothing", b""):
        path.write_bytes(content)
        maskrcnn._network.cache_clear()
        with pytest.raises(InputError, match="no weights of torchvision's maskrcnn_resnet50_fpn_v2"):
            MaskRcnnDetector(path)


@pytest.mark.slow
def test_the_whole_network_runs_here_with_or_without_torchvisions_operators(tmp_path):
    """Random weights: what it says means nothing, that it says it in the right shapes does."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn_v2

    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save(maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).state_dict(), path)
    detect = MaskRcnnDetector(path)
    detect._network.roi_heads.score_thresh = 0.0
    frame = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    assert detect(frame).shape[1] == 5 and MaskRcnnSegmenter(path)(frame).shape == (96, 128)
    assert MaskRcnnSegmenter(path)._network is detect._network and LEAST_SCORE < 0.5
