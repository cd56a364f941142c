"""Models that come as TorchScript files: a segmenter, LaMa for what no other frame shows, and inpainters of whole clips.

    frame_HWC and what is hidden in it (and other frames of the shot)  ->  float tensors from 0 to 1  ->  the script  ->  pictures

Each runs on the GPU where there is one. What a script must take and return stands in `user_models.USER_MODELS`.
Legend: B batch (1), T frames, H height, W width.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from ppma.config.errors import InputError
from ppma.privacy.detectors.maskrcnn import as_planes, device
from ppma.privacy.removal.camera import Reference, seen_from
from ppma.privacy.removal.exemplar import smoothed
from ppma.privacy.removal.fill import Memory, TemporalMedian

STRIDE = 8
"""LaMa and ProPainter halve their input three times."""
PUBLISHED_SIZE = (432, 240)
"""Width and height at which E2FGVI paints in the paper, and the only one that its first release takes."""
NEIGHBOURS = 10
"""Other frames that a clip inpainter is shown beside the one to be painted."""


class Script:
    """A TorchScript file, loaded once and called without gradients."""

    def __init__(self, path: Path) -> None:
        """InputError when torch cannot load it."""
        self.path, self.device = path, device()
        try:
            self._module = torch.jit.load(str(path), map_location=self.device).eval()
        except RuntimeError as error:
            raise InputError(f"{path}: torch cannot load it as TorchScript: {str(error).splitlines()[0]}") from None

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        """float32 output of float32 inputs. InputError when the script does not take them."""
        try:
            with torch.inference_mode():
                output = self._module(*(torch.from_numpy(np.ascontiguousarray(x)).to(self.device) for x in inputs))
        except RuntimeError as error:
            shapes = ", ".join("x".join(map(str, x.shape)) for x in inputs)
            words = [line for line in str(error).splitlines() if line.strip()][-1]
            raise InputError(f"{self.path}: does not take tensors of {shapes}: {words}") from None
        if not isinstance(output, torch.Tensor):
            raise InputError(f"{self.path}: returns {type(output).__name__}, not one tensor")
        result: np.ndarray = output.float().cpu().numpy()
        return result

    def shaped(self, shape: tuple[int, ...], *inputs: np.ndarray) -> np.ndarray:
        """The output, which must have this shape."""
        output = self(*inputs)
        if output.shape != shape:
            raise InputError(
                f"{self.path}: returns {'x'.join(map(str, output.shape))}, not {'x'.join(map(str, shape))}"
            )
        return output


def as_picture(planes_CHW: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3)."""
    return np.clip(np.rint(planes_CHW.transpose(1, 2, 0) * 255), 0, 255).astype(np.uint8)


class ScriptedSegmenter:
    """How likely each pixel is a person's, from the whole picture."""

    alone = True

    def __init__(self, path: Path) -> None:
        """`path`: the TorchScript file."""
        self._script = Script(path)

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """probability_HW."""
        height, width = frame_HWC.shape[:2]
        return self._script.shaped((1, 1, height, width), as_planes(frame_HWC)[None])[0, 0]


class Lama:
    """Guesses what is hidden from the picture around it (Suvorov et al., 2022)."""

    def __init__(self, path: Path) -> None:
        """`path`: the TorchScript file."""
        self._script = Script(path)

    def __call__(self, frame_HWC: np.ndarray, hole_HW: np.ndarray) -> np.ndarray:
        """The frame with the hole filled."""
        if not hole_HW.any():
            return frame_HWC
        height, width = hole_HW.shape
        right, below = -width % STRIDE, -height % STRIDE
        # the script gets a mask too, but what is hidden is not handed out on the word of a file
        planes_CHW = np.pad(as_planes(smoothed(frame_HWC, hole_HW)), ((0, 0), (0, below), (0, right)), mode="symmetric")
        hole = np.pad(hole_HW.astype(np.float32), ((0, below), (0, right)), mode="symmetric")
        painted = self._script.shaped((1, *planes_CHW.shape), planes_CHW[None], hole[None, None])
        picture_HWC = frame_HWC.copy()
        picture_HWC[hole_HW] = as_picture(painted[0, :, :height, :width])[hole_HW]
        return picture_HWC


def median_and_lama(path: Path) -> TemporalMedian:
    """Background where other frames show it, LaMa's guess elsewhere."""
    return TemporalMedian(Lama(path))


class ScriptedClip:
    """A video inpainter: it is shown the frame and some others of the shot, moved to where the camera looks now."""

    def __init__(self, path: Path, size: tuple[int, int] | None) -> None:
        """`path`: the TorchScript file; `size`: width and height at which it paints, the frame's own when None."""
        self._script, self._size = Script(path), size

    def _working_size(self, height: int, width: int) -> tuple[int, int]:
        return self._size or (width + -width % STRIDE, height + -height % STRIDE)

    def __call__(
        self,
        frame_HWC: np.ndarray,
        hidden_HW: np.ndarray,
        here: np.ndarray,
        references: Sequence[Reference],
        memory: Memory,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(picture_HWC, seen_HW); see `plugins.Inpainter`. All counts as guessed: such a model does not tell what it saw.

        `memory` is left alone: the model sees other frames, and keeps them alike itself.
        """
        seen_HW = np.zeros_like(hidden_HW)
        if not hidden_HW.any():
            return frame_HWC, seen_HW
        height, width = hidden_HW.shape
        size = self._working_size(height, width)
        others = references[:: max(1, -(-len(references) // NEIGHBOURS))]
        views = [(frame_HWC, ~hidden_HW), *(seen_from(other, here, (height, width)) for other in others)]
        blanked = [smoothed(frame, free == 0) for frame, free in views]
        frames_TCHW = np.stack([as_planes(cv2.resize(f, size, interpolation=cv2.INTER_LINEAR)) for f in blanked])
        hidden_T1HW = np.stack([_small(free, size)[None] for _, free in views])
        painted = self._script.shaped((1, *frames_TCHW.shape), frames_TCHW[None], hidden_T1HW[None])
        full_HWC = cv2.resize(as_picture(painted[0, 0]), (width, height), interpolation=cv2.INTER_LINEAR)
        picture_HWC = frame_HWC.copy()
        picture_HWC[hidden_HW] = full_HWC[hidden_HW]
        return picture_HWC, seen_HW


def _small(free_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32, 1 where any pixel that it stands for is hidden."""
    hidden_HW = cv2.resize(1.0 - free_HW.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return (hidden_HW > 0).astype(np.float32)
