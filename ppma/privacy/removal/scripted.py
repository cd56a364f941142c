"""Plug-ins that run TorchScript files: a segmenter, LaMa for pixels that no other frame shows, and video inpainters.

    frame_HWC, hidden_HW (and reference frames)  ->  float tensors from 0 to 1  ->  TorchScript  ->  frames

They run on the GPU if there is one. `tools.USER_MODELS` states what each file takes and returns.
Legend: T frames, H height, W width.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from ppma.config.errors import InputError
from ppma.privacy.detectors.boxes import NONE_05
from ppma.privacy.detectors.maskrcnn import as_planes, device
from ppma.privacy.removal.camera import Reference, seen_from
from ppma.privacy.removal.exemplar import smoothed
from ppma.privacy.removal.figures import Figures
from ppma.privacy.removal.fill import Memory, TemporalMedian

STRIDE = 8
"""LaMa and ProPainter halve their input three times."""
NEIGHBORS = 10
"""Reference frames that a video inpainter gets."""


class Script:
    """A TorchScript file, loaded once and called without gradients."""

    def __init__(self, path: Path) -> None:
        """Load the file; InputError if it is not TorchScript."""
        self.path, self.device = path, device()
        try:
            self._module = torch.jit.load(str(path), map_location=self.device).eval()
        except RuntimeError as error:
            raise InputError(f"{path}: torch cannot load it as TorchScript: {str(error).splitlines()[0]}") from None

    def __call__(self, shape: tuple[int, ...], *inputs: np.ndarray) -> np.ndarray:
        """Return the output for float32 inputs; InputError if it is not one tensor of this shape."""
        try:
            with torch.inference_mode():
                output = self._module(*(torch.from_numpy(np.ascontiguousarray(x)).to(self.device) for x in inputs))
        except RuntimeError as error:
            message = [line for line in str(error).splitlines() if line.strip()][-1]
            raise InputError(f"{self.path}: does not take tensors of {_sizes(*inputs)}: {message}") from None
        if not isinstance(output, torch.Tensor):
            raise InputError(f"{self.path}: returns {type(output).__name__}, not one tensor")
        result: np.ndarray = output.float().cpu().numpy()
        if result.shape != shape:
            raise InputError(f"{self.path}: returns {_sizes(result)}, not {'x'.join(map(str, shape))}")
        return result


def _sizes(*arrays: np.ndarray) -> str:
    return ", ".join("x".join(map(str, array.shape)) for array in arrays)


def _as_frame(planes_3HW: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(planes_3HW.transpose(1, 2, 0) * 255), 0, 255).astype(np.uint8)


class ScriptedSegmenter:
    """Segments people in the whole frame with a TorchScript model."""

    def __init__(self, path: Path) -> None:
        """Load the TorchScript file."""
        self._script = Script(path)

    def __call__(self, frame_HWC: np.ndarray, boxes_N5: np.ndarray = NONE_05) -> np.ndarray:
        """Return probability_HW, float32."""
        height, width = frame_HWC.shape[:2]
        return self._script((1, 1, height, width), as_planes(frame_HWC)[None])[0, 0]


class Lama:
    """LaMa (Suvorov et al., 2022): synthesizes a hole from the image around it."""

    def __init__(self, path: Path) -> None:
        """Load the TorchScript file."""
        self._script = Script(path)

    def __call__(self, frame_HWC: np.ndarray, hole_HW: np.ndarray) -> np.ndarray:
        """Return the frame with the hole filled."""
        if not hole_HW.any():
            return frame_HWC
        height, width = hole_HW.shape
        margins = ((0, -height % STRIDE), (0, -width % STRIDE))
        # Hidden pixels are blanked here: the file is not trusted to ignore them.
        planes_3hw = np.pad(as_planes(smoothed(frame_HWC, hole_HW)), ((0, 0), *margins), mode="symmetric")
        hole_hw = np.pad(hole_HW.astype(np.float32), margins, mode="symmetric")
        painted = self._script((1, *planes_3hw.shape), planes_3hw[None], hole_hw[None, None])
        picture_HWC = frame_HWC.copy()
        picture_HWC[hole_HW] = _as_frame(painted[0, :, :height, :width])[hole_HW]
        return picture_HWC


def median_and_lama(path: Path) -> TemporalMedian:
    """Return an inpainter that uses the background of other frames, and LaMa where none shows it."""
    return TemporalMedian(Lama(path))


class ScriptedClip:
    """A video inpainter: gets the frame and references of its shot, warped to the frame's camera pose."""

    def __init__(self, path: Path, size: tuple[int, int] | None = None) -> None:
        """Load the TorchScript file; `size` is the width and height at which it paints (default: the frame's)."""
        self._script, self._size = Script(path), size

    def __call__(
        self,
        frame_HWC: np.ndarray,
        hidden_HW: np.ndarray,
        here_33: np.ndarray,
        references: Sequence[Reference],
        memory: Memory,
        figures: Figures,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Paint the hidden pixels; see `plugins.Inpainter`. All count as synthesized, `memory` and `figures` are not used."""
        seen_HW = np.zeros_like(hidden_HW)
        if not hidden_HW.any():
            return frame_HWC, seen_HW
        height, width = hidden_HW.shape
        size = self._size or (width + -width % STRIDE, height + -height % STRIDE)
        others = references[:: max(1, -(-len(references) // NEIGHBORS))]
        views = [(frame_HWC, ~hidden_HW), *(seen_from(other, here_33) for other in others)]
        blanked = [smoothed(frame, free == 0) for frame, free in views]
        frames_T3hw = np.stack([as_planes(cv2.resize(f, size, interpolation=cv2.INTER_LINEAR)) for f in blanked])
        hidden_T1hw = np.stack([_shrunk_mask(free, size)[None] for _, free in views])
        painted = self._script((1, *frames_T3hw.shape), frames_T3hw[None], hidden_T1hw[None])
        full_HWC = cv2.resize(_as_frame(painted[0, 0]), (width, height), interpolation=cv2.INTER_LINEAR)
        picture_HWC = frame_HWC.copy()
        picture_HWC[hidden_HW] = full_HWC[hidden_HW]
        return picture_HWC, seen_HW


def _shrunk_mask(free_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return float32 at (width, height), 1 where any pixel in the area is hidden."""
    hidden_HW = cv2.resize(1.0 - free_HW.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return (hidden_HW > 0).astype(np.float32)
