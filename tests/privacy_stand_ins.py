"""Stand-ins for the models that find people, and a clip they work on: somebody is what is red."""

from pathlib import Path

import numpy as np

from ppma.privacy.detectors.boxes import NONE_05
from ppma.privacy.removal.writing import VideoWriter

RED = (250, 20, 20)
FLAGS = ("--detectors", "red", "red-face", "--segmenter", "nothing", "--workers", "1")
"""Of `ppma remove-humans` with the plug-ins of the fixture `stand_ins`."""


class RedFinder:
    """Finds what is red, except where it has been told to blink."""

    finds = "person"
    blinks = ()

    def __init__(self):
        self.calls = 0

    def __call__(self, frame_HWC):
        self.calls += 1
        red = (frame_HWC[..., 0] > 180) & (frame_HWC[..., 1] < 90)
        if not red.any() or self.calls - 1 in self.blinks:
            return NONE_05
        rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
        return np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1, 0.9]], np.float32)


class Nothing:
    """A segmenter that sees nobody."""

    alone = False

    def __call__(self, frame_HWC):
        return np.zeros(frame_HWC.shape[:2], np.float32)


def write_walk(path: Path, *, length: int = 24, height: int = 96, width: int = 128) -> np.ndarray:
    """A clip in which a red block walks across a textured place, to and fro; returns the place."""
    rng = np.random.default_rng(0)
    place_HWC = np.kron(rng.integers(40, 160, (height // 4, width // 4, 1)), np.ones((4, 4, 3))).astype(np.uint8)
    video, way = VideoWriter(path, 10.0, height, width), width - 32
    for t in range(length):
        frame_HWC, x = place_HWC.copy(), abs((4 * t + way) % (2 * way) - way)
        frame_HWC[30:80, x : x + 16] = RED
        video.add(frame_HWC)
    video.finish()
    return place_HWC
