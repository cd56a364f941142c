"""What finds, outlines and paints over people, chosen by name: three short interfaces and a table of who fulfils them.

    name  ->  Plugin: kind, licence, weights  ->  load()  ->  a detector, segmenter or inpainter

A new one is a class with `__call__` and a line in PLUGINS; weights are a line in `weights.WEIGHTS`.
Legend: H height, W width, N boxes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from ppma.loaders.errors import InputError
from ppma.privacy import weights
from ppma.privacy.camera import Reference
from ppma.privacy.detectors import CenterFace, YoloV3Tiny
from ppma.privacy.fill import Telea, TemporalMedian
from ppma.privacy.segmenters import Selfie

Kind = Literal["detector", "segmenter", "inpainter"]


class Detector(Protocol):
    """Finds people, or their faces, in one picture."""

    finds: Literal["person", "face"]

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """boxes_N5 float32 (x0, y0, x1, y1 in pixels, score) of an RGB uint8 picture."""


class Segmenter(Protocol):
    """Outlines the person in one picture."""

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """probability_HW float32 that a pixel is a person's."""


class Inpainter(Protocol):
    """Paints what may lie behind people."""

    def __call__(
        self, frame_HWC: np.ndarray, hidden_HW: np.ndarray, here: np.ndarray, references: Sequence[Reference]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(picture_HWC, seen_HW): the frame with `hidden_HW` painted, and which of its pixels come from other frames.

        `here`: 3 x 3 homography from the shot's first frame to this one; `references`: frames of the same shot with theirs.
        """


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """One of them, and under which terms it may be used."""

    kind: Kind
    make: Callable[..., Any]
    """Of the files of its weights, by name, when it has any."""
    licence: str
    weights: str = ""
    """Key of `weights.WEIGHTS`, or empty for one without weights."""
    finds: str = ""
    """What a detector finds: person or face."""


PLUGINS: dict[str, Plugin] = {
    "yolov3-tiny": Plugin(
        kind="detector", make=YoloV3Tiny, weights="yolov3-tiny", licence="MIT as packaged (darknet)", finds="person"
    ),
    "centerface": Plugin(kind="detector", make=CenterFace, weights="centerface", licence="MIT", finds="face"),
    "selfie": Plugin(kind="segmenter", make=Selfie, weights="selfie", licence="Apache-2.0"),
    "median": Plugin(kind="inpainter", make=TemporalMedian, licence="Apache-2.0 (ppma)"),
    "telea": Plugin(kind="inpainter", make=Telea, licence="Apache-2.0 (OpenCV)"),
}


def named(kind: Kind) -> tuple[str, ...]:
    """The names of a kind."""
    return tuple(name for name, plugin in PLUGINS.items() if plugin.kind == kind)


def check(name: str, kind: Kind, flag: str) -> Plugin:
    """The plug-in of that name; InputError that lists the names there are."""
    if name not in named(kind):
        raise InputError(f"{flag}: there is no {kind} {name!r}; {kind}s are {', '.join(named(kind))}")
    return PLUGINS[name]


def load(name: str, folder: Path) -> Any:
    """The plug-in of that name, with its weights from `folder`. InputError when they are not there, or are not what they should be."""
    plugin = PLUGINS[name]
    return plugin.make(weights.find(plugin.weights, folder)) if plugin.weights else plugin.make()
