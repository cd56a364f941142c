"""Mask R-CNN of torchvision (He et al., 2017; v2 weights of 2022) as a detector and as a segmenter of people.

    frame_HWC (RGB uint8)  ->  network, on the GPU if there is one  ->  boxes_N5, or probability_HW of people

Both share one network per process.
Legend: H height, W width of a frame in pixels, N boxes.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from ppma.config.errors import InputError
from ppma.models.torchvision_shim import ensure_detection
from ppma.privacy.detectors.boxes import NONE_05
from ppma.training.checkpoint import read_pickle

PERSON = 1
"""Index of a person among torchvision's COCO classes."""
LEAST_SCORE = 0.2
"""Low, as for the other detectors: a false positive costs some background, a miss leaves a person in the picture."""


def device() -> torch.device:
    """Return where models run; on a CPU, limit torch to one thread, since clips are spread over processes."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(1)
    return torch.device("cpu")


def as_planes(frame_HWC: np.ndarray) -> np.ndarray:
    """Convert a uint8 frame to float32 (3, H, W) from 0 to 1."""
    return frame_HWC.transpose(2, 0, 1).astype(np.float32) / 255


@lru_cache(maxsize=1)
def _network(path: Path) -> torch.nn.Module:
    ensure_detection()
    from torchvision.models.detection import maskrcnn_resnet50_fpn_v2

    network: torch.nn.Module = maskrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None, box_score_thresh=LEAST_SCORE
    )
    try:
        network.load_state_dict(read_pickle(path))
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: no weights of torchvision's maskrcnn_resnet50_fpn_v2: {reason}") from None
    return network.eval().to(device())


class MaskRcnnDetector:
    """Detects people."""

    def __init__(self, path: Path) -> None:
        """Load the file of the weights."""
        self._network = _network(path)

    def _people(self, frame_HWC: np.ndarray) -> dict[str, np.ndarray]:
        """Return boxes (N, 4), scores (N,) and masks (N, 1, H, W) of people."""
        planes = torch.from_numpy(as_planes(frame_HWC)).to(next(self._network.parameters()).device)
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            found = self._network([planes])[0]
        person = found["labels"] == PERSON
        return {name: found[name][person].float().cpu().numpy() for name in ("boxes", "scores", "masks")}

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """Return boxes_N5 of people."""
        found = self._people(frame_HWC)
        if not len(found["scores"]):
            return NONE_05
        return np.concatenate([found["boxes"], found["scores"][:, None]], axis=1).astype(np.float32)


class MaskRcnnSegmenter(MaskRcnnDetector):
    """Segments people in the whole frame."""

    def __call__(self, frame_HWC: np.ndarray, boxes_N5: np.ndarray = NONE_05) -> np.ndarray:
        """Return probability_HW of the most likely person at each pixel."""
        masks_N1HW = self._people(frame_HWC)["masks"]
        return masks_N1HW[:, 0].max(0, initial=0.0)
