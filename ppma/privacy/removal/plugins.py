"""Detectors, segmenters and inpainters that users choose by name: their interfaces, the table PLUGINS, and SETS.

    name  ->  Plugin: kind, license, files  ->  Plugin.load()  ->  a detector, segmenter or inpainter
    set   ->  Choice: tools that work together, and how masks and files are made

To add one, write a class with `__call__` and a line in PLUGINS. Its weights are an entry of `weights.WEIGHTS` if a
package carries them, or of `tools.USER_MODELS` if users provide them.
Legend: H height, W width, N boxes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from ppma.config.errors import InputError
from ppma.privacy.detectors import weights
from ppma.privacy.detectors.boxes import NONE_05
from ppma.privacy.detectors.opencv_models import CenterFace, Selfie
from ppma.privacy.detectors.sam2 import Sam2
from ppma.privacy.detectors.tools import USER_MODELS, Tool
from ppma.privacy.removal.camera import Reference
from ppma.privacy.removal.figures import Figures
from ppma.privacy.removal.fill import Memory, TemporalMedian
from ppma.privacy.removal.writing import Layout

Kind = Literal["detector", "segmenter", "inpainter"]
Takes = Literal["frames", "boxes", "cuts", ""]
Masks = Literal["generous", "published"]
"""generous: outlines within boxes and ellipses, joined over time, dilated in proportion to the picture; published: the
segmenter alone, thresholded at 0.5 and dilated four times with a 3 x 3 cross, as in the paper."""


class Segmenter(Protocol):
    """Segments people in one frame."""

    def __call__(self, frame_HWC: np.ndarray, boxes_N5: np.ndarray = NONE_05) -> np.ndarray:
        """Return probability_HW, float32: how likely each pixel belongs to a person, or to one in the boxes."""


class Inpainter(Protocol):
    """Paints the background behind people."""

    def __call__(
        self,
        frame_HWC: np.ndarray,
        hidden_HW: np.ndarray,
        here_33: np.ndarray,
        references: Sequence[Reference],
        memory: Memory,
        figures: Figures,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Paint the hidden pixels of a frame.

        Args:
            frame_HWC: RGB uint8; not to be changed.
            hidden_HW: bool, the pixels to paint.
            here_33: Homography from the shot's first frame to this one.
            references: Other frames of the shot with their homographies.
            memory: What was synthesized in the shot so far; using it is optional.
            figures: The hidden people, whom no reference may paint back; whom the result shows is hidden flat.

        Returns:
            picture_HWC, unchanged outside `hidden_HW`, and seen_HW: the pixels painted from other frames.
        """


@dataclass(frozen=True, kw_only=True)
class Plugin(Tool):
    """A detector, segmenter or inpainter and its terms of use."""

    kind: Kind
    takes: Takes = ""
    """Of a segmenter. frames: it finds people itself; boxes: it needs their boxes; cuts: it needs the parts of the frame
    that boxes cut out."""
    confirmed_by: str = ""
    """Of a detector: the one that confirms its boxes of low scores, or empty."""
    non_commercial: bool = False
    """The license forbids commercial use, so --accept-non-commercial is required."""


E2FGVI_SIZE = (432, 240)
"""Width and height at which E2FGVI paints in the paper, and the only size that its first release takes."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Tools that work together, and how masks and files are made."""

    detectors: tuple[str, ...] = ("movenet", "centerface")
    segmenter: str = "selfie"
    inpainter: str = "median"
    masks: Masks = "generous"
    layout: Layout = "videos"


def _torch(name: str, *more: Any) -> Callable[[Path], Any]:
    """Return a constructor that imports its module, and with it torch, on first use."""
    module, _, attribute = name.rpartition(".")
    return lambda file: getattr(import_module(f"ppma.privacy.{module}"), attribute)(file, *more)


PLUGINS: dict[str, Plugin] = {
    "movenet": Plugin(
        kind="detector", make=_torch("detectors.movenet.MoveNet"), weights="movenet", license="Apache-2.0",
        finds="person", confirmed_by="ssdlite",
    ),
    "centerface": Plugin(kind="detector", make=CenterFace, weights="centerface", license="MIT", finds="face"),
    "maskrcnn": Plugin(
        kind="detector", make=_torch("detectors.maskrcnn.MaskRcnnDetector"), user_models=("maskrcnn",),
        license="BSD-3-Clause (torchvision)", finds="person",
    ),
    "ssdlite": Plugin(
        kind="detector", make=_torch("detectors.ssdlite.SsdLite"), weights="ssdlite", license="Apache-2.0",
        finds="person",
    ),
    "selfie": Plugin(kind="segmenter", make=Selfie, weights="selfie", license="Apache-2.0", takes="cuts"),
    "maskrcnn-outline": Plugin(
        kind="segmenter", make=_torch("detectors.maskrcnn.MaskRcnnSegmenter"), user_models=("maskrcnn",),
        license="BSD-3-Clause (torchvision)", takes="frames",
    ),
    "sam2": Plugin(
        kind="segmenter", make=Sam2, user_models=("sam2-encoder", "sam2-decoder"),
        license="Apache-2.0", takes="boxes",
    ),
    "semask": Plugin(
        kind="segmenter", make=_torch("removal.scripted.ScriptedSegmenter"), user_models=("semask",),
        license="that of the file you provide", takes="frames",
    ),
    "median": Plugin(kind="inpainter", make=TemporalMedian, license="Apache-2.0 (ppma)"),
    "lama": Plugin(
        kind="inpainter", make=_torch("removal.scripted.median_and_lama"), user_models=("lama",), license="Apache-2.0"
    ),
    "e2fgvi": Plugin(
        kind="inpainter", make=_torch("removal.scripted.ScriptedClip", E2FGVI_SIZE), user_models=("e2fgvi",),
        license="CC BY-NC 4.0: non-commercial", non_commercial=True,
    ),
    "propainter": Plugin(
        kind="inpainter", make=_torch("removal.scripted.ScriptedClip"), user_models=("propainter",),
        license="S-Lab License 1.0: non-commercial", non_commercial=True,
    ),
}  # fmt: skip

SETS: dict[str, Choice] = {
    "default": Choice(),
    "quality": Choice(detectors=("maskrcnn", "movenet", "centerface"), segmenter="maskrcnn-outline", inpainter="lama"),
    "paper": Choice(detectors=(), segmenter="semask", inpainter="e2fgvi", masks="published", layout="frames"),
}
"""default: runs offline on a CPU with what `ppma privacy fetch` gets; quality: larger weights from their
publishers, faster on a GPU; paper: the published pipeline, whose inpainter is for non-commercial use."""


def named(kind: Kind) -> tuple[str, ...]:
    """Return the names of all plug-ins of a kind."""
    return tuple(name for name, plugin in PLUGINS.items() if plugin.kind == kind)


def check(name: str, kind: Kind, flag: str) -> None:
    """Raise an InputError that lists the choices unless `name` is a plug-in of that kind."""
    if name not in named(kind):
        raise InputError(f"{flag}: there is no {kind} {name!r}; {kind}s are {', '.join(named(kind))}")


def check_terms(names: Iterable[str], *, accept_non_commercial: bool) -> None:
    """Raise an InputError for a plug-in whose license forbids commercial use, unless the user accepts that."""
    for name in names:
        plugin = PLUGINS[name]
        if plugin.non_commercial and not accept_non_commercial:
            raise InputError(
                f"{plugin.kind} {name} is licensed under {plugin.license} use only; give --accept-non-commercial if your"
                f" use is, or choose another with --{plugin.kind}"
            )


def state(plugin: Plugin, folder: Path) -> str:
    """Return which weights are missing and how to get them, or an empty string."""
    if plugin.weights and weights.missing([plugin.weights], folder):
        return "not fetched: ppma privacy fetch"
    for name, model in ((name, USER_MODELS[name]) for name in plugin.user_models):
        if not (folder / model.file).is_file():
            if model.url:
                return "not fetched: ppma privacy fetch --set quality"
            return f"provide {model.file} ({model.what}), or give --models {name}=FILE"
    return ""
