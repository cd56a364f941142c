"""Mask R-CNN of torchvision (He et al., 2017; v2 weights of 2022): finds people and outlines each of them.

    frame_HWC (RGB uint8)  ->  network on the GPU where there is one  ->  boxes_N5, or the likeliest of all outlines at each pixel

As detector and as segmenter it is one network, loaded once a process.
Legend: H height, W width of a picture in pixels, N boxes.
"""

from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

import numpy as np
import torch

from ppma.config.errors import InputError
from ppma.models.torchvision_shim import ensure_detection
from ppma.privacy.detectors.boxes import NONE_05

PERSON = 1
"""Of COCO's classes as torchvision counts them."""
LEAST_SCORE = 0.2
"""Low, as for the other detectors: a box too many costs a little background."""


def device() -> torch.device:
    """Where models run; on a CPU they take one thread, since each process works on a clip of its own."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(1)
    return torch.device("cpu")


def as_planes(frame_HWC: np.ndarray) -> np.ndarray:
    """float32 (3, H, W) from 0 to 1."""
    return frame_HWC.transpose(2, 0, 1).astype(np.float32) / 255


@lru_cache(maxsize=1)
def _network(path: Path) -> torch.nn.Module:
    ensure_detection()
    from torchvision.models.detection import maskrcnn_resnet50_fpn_v2

    network: torch.nn.Module = maskrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None, box_score_thresh=LEAST_SCORE
    )
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, KeyError, EOFError, OSError, UnpicklingError) as error:
        words = (str(error).splitlines() or ["it is empty"])[0]
        raise InputError(f"{path}: no weights of torchvision's maskrcnn_resnet50_fpn_v2: {words}") from None
    return network.eval().to(device())


class _MaskRcnn:
    def __init__(self, path: Path) -> None:
        """`path`: the file of the weights."""
        self._network = _network(path)

    def _look(self, frame_HWC: np.ndarray) -> dict[str, np.ndarray]:
        """boxes (N, 4), scores (N,) and masks (N, 1, H, W) of people."""
        picture = torch.from_numpy(as_planes(frame_HWC)).to(next(self._network.parameters()).device)
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            found = self._network([picture])[0]
        person = found["labels"] == PERSON
        return {name: found[name][person].float().cpu().numpy() for name in ("boxes", "scores", "masks")}


class MaskRcnnDetector(_MaskRcnn):
    """Boxes of people."""

    finds: Literal["person", "face"] = "person"

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """boxes_N5."""
        found = self._look(frame_HWC)
        if not len(found["scores"]):
            return NONE_05
        return np.concatenate([found["boxes"], found["scores"][:, None]], axis=1).astype(np.float32)


class MaskRcnnSegmenter(_MaskRcnn):
    """Outlines of people in the whole picture."""

    alone = True

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """probability_HW: of the likeliest person at each pixel."""
        masks_N1HW = self._look(frame_HWC)["masks"]
        if not len(masks_N1HW):
            return np.zeros(frame_HWC.shape[:2], np.float32)
        probability_HW: np.ndarray = masks_N1HW[:, 0].max(0)
        return probability_HW
