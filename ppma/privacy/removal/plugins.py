"""What finds, outlines and paints over people, chosen by name: three short interfaces, a table of who fulfils them, and three sets.

    name  ->  Plugin: kind, licence, weights  ->  load()  ->  a detector, segmenter or inpainter
    set   ->  Choice: which of them together, and how masks are made of what they find

A new one is a class with `__call__` and a line in PLUGINS; weights are a line in `weights.WEIGHTS` where a package carries them, and in
`user_models.USER_MODELS` where users bring them. Modules that need torch are imported when one of theirs is loaded.
Legend: H height, W width, N boxes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from ppma.config.errors import InputError
from ppma.privacy.detectors import weights
from ppma.privacy.detectors.centerface import CenterFace
from ppma.privacy.detectors.selfie import Selfie
from ppma.privacy.detectors.user_models import USER_MODELS, Model, choose
from ppma.privacy.removal.camera import Reference
from ppma.privacy.removal.fill import Memory, TemporalMedian

Kind = Literal["detector", "segmenter", "inpainter"]
Masks = Literal["generous", "published"]
"""generous: outlines within boxes, ellipses, joined over time, dilated in proportion; published: the segmenter alone at 0.5, dilated with
a 3 x 3 cross four times (PAPER: how humans were removed)."""


class Detector(Protocol):
    """Finds people, or their faces, in one picture."""

    finds: Literal["person", "face"]

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """boxes_N5 float32 (x0, y0, x1, y1 in pixels, score) of an RGB uint8 picture."""


class Segmenter(Protocol):
    """Outlines the person in one picture."""

    alone: bool
    """It tells people from the rest in the whole picture, and needs no box to look into."""

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """probability_HW float32 that a pixel is a person's."""


class Inpainter(Protocol):
    """Paints what may lie behind people."""

    def __call__(
        self,
        frame_HWC: np.ndarray,
        hidden_HW: np.ndarray,
        here: np.ndarray,
        references: Sequence[Reference],
        memory: Memory,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(picture_HWC, seen_HW): the frame with `hidden_HW` painted, and which of its pixels come from other frames.

        `here`: 3 x 3 homography from the shot's first frame to this one; `references`: frames of the same shot with theirs; `memory`:
        what was made up in the shot so far, so that it can stay.
        """


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """One of them, and under which terms it may be used."""

    kind: Kind
    make: Callable[..., Any]
    """Of the files of its weights, by name, or of the one file that the user brings, when it has any."""
    license: str
    weights: str = ""
    """Key of `weights.WEIGHTS`, or empty."""
    user_model: str = ""
    """Key of `user_models.USER_MODELS`, or empty."""
    finds: str = ""
    """What a detector finds: person or face."""
    non_commercial: bool = False
    """Its licence forbids commercial use; it runs only when the user says that theirs is none."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What works together."""

    detectors: tuple[str, ...]
    segmenter: str
    inpainter: str
    masks: Masks = "generous"
    layout: Literal["videos", "frames"] = "videos"


def _movenet(files: dict[str, Path]) -> Detector:
    from ppma.privacy.detectors.movenet import MoveNet

    return MoveNet(files)


def _mask_rcnn_detector(path: Path) -> Detector:
    from ppma.privacy.detectors.maskrcnn import MaskRcnnDetector

    return MaskRcnnDetector(path)


def _mask_rcnn_segmenter(path: Path) -> Segmenter:
    from ppma.privacy.detectors.maskrcnn import MaskRcnnSegmenter

    return MaskRcnnSegmenter(path)


def _scripted_segmenter(path: Path) -> Segmenter:
    from ppma.privacy.removal.scripted import ScriptedSegmenter

    return ScriptedSegmenter(path)


def _median_and_lama(path: Path) -> Inpainter:
    from ppma.privacy.removal.scripted import median_and_lama

    return median_and_lama(path)


def _e2fgvi(path: Path) -> Inpainter:
    from ppma.privacy.removal.scripted import PUBLISHED_SIZE, ScriptedClip

    return ScriptedClip(path, PUBLISHED_SIZE)


def _propainter(path: Path) -> Inpainter:
    from ppma.privacy.removal.scripted import ScriptedClip

    return ScriptedClip(path, None)


PLUGINS: dict[str, Plugin] = {
    "movenet": Plugin(kind="detector", make=_movenet, weights="movenet", license="Apache-2.0", finds="person"),
    "centerface": Plugin(kind="detector", make=CenterFace, weights="centerface", license="MIT", finds="face"),
    "maskrcnn": Plugin(
        kind="detector",
        make=_mask_rcnn_detector,
        user_model="maskrcnn",
        license="BSD-3-Clause (torchvision)",
        finds="person",
    ),
    "selfie": Plugin(kind="segmenter", make=Selfie, weights="selfie", license="Apache-2.0"),
    "maskrcnn-outline": Plugin(
        kind="segmenter", make=_mask_rcnn_segmenter, user_model="maskrcnn", license="BSD-3-Clause (torchvision)"
    ),
    "semask": Plugin(
        kind="segmenter", make=_scripted_segmenter, user_model="semask", license="that of the file you bring"
    ),
    "median": Plugin(kind="inpainter", make=TemporalMedian, license="Apache-2.0 (ppma)"),
    "lama": Plugin(kind="inpainter", make=_median_and_lama, user_model="lama", license="Apache-2.0"),
    "e2fgvi": Plugin(
        kind="inpainter", make=_e2fgvi, user_model="e2fgvi", license="CC BY-NC 4.0: non-commercial", non_commercial=True
    ),
    "propainter": Plugin(
        kind="inpainter",
        make=_propainter,
        user_model="propainter",
        license="S-Lab License 1.0: non-commercial",
        non_commercial=True,
    ),
}

SETS: dict[str, Choice] = {
    "default": Choice(detectors=("movenet", "centerface"), segmenter="selfie", inpainter="median"),
    "quality": Choice(detectors=("maskrcnn", "movenet", "centerface"), segmenter="maskrcnn-outline", inpainter="lama"),
    "paper": Choice(detectors=(), segmenter="semask", inpainter="e2fgvi", masks="published", layout="frames"),
}
"""default runs offline on a CPU with what `ppma privacy fetch` gets; quality wants weights that users bring, and better a GPU; paper is
the published pipeline, whose inpainter is for non-commercial use."""


def named(kind: Kind) -> tuple[str, ...]:
    """The names of a kind."""
    return tuple(name for name, plugin in PLUGINS.items() if plugin.kind == kind)


def check(name: str, kind: Kind, flag: str) -> Plugin:
    """The plug-in of that name; InputError that lists the names there are."""
    if name not in named(kind):
        raise InputError(f"{flag}: there is no {kind} {name!r}; {kind}s are {', '.join(named(kind))}")
    return PLUGINS[name]


def check_terms(names: Iterable[str], *, accept_non_commercial: bool) -> None:
    """InputError for a plug-in whose licence forbids commercial use, unless the user says that theirs is none."""
    for name in names:
        if PLUGINS[name].non_commercial and not accept_non_commercial:
            raise InputError(
                f"{PLUGINS[name].kind} {name} is under {PLUGINS[name].license} use only; give --accept-non-commercial if yours is, "
                f"or choose another with --{PLUGINS[name].kind}"
            )


def files_of(names: Iterable[str], folder: Path, given: Iterable[str] = ()) -> tuple[Model, ...]:
    """Check that the weights of these plug-ins are there; those that users bring, as `given` (NAME=FILE) or in the folder."""
    used = [PLUGINS[name] for name in names]
    models = choose((plugin.user_model for plugin in used if plugin.user_model), given, folder)
    for plugin in used:
        if plugin.weights:
            weights.find(plugin.weights, folder)
    return models


def load(name: str, folder: Path, models: Sequence[Model] = ()) -> Any:
    """The plug-in of that name, with its weights from `folder` or, where users bring them, from `models`.

    InputError when they are not there, or are not what they should be.
    """
    plugin = PLUGINS[name]
    if plugin.user_model:
        files = {model.name: model for model in models or choose((plugin.user_model,), (), folder)}
        return plugin.make(files[plugin.user_model].path)
    return plugin.make(weights.find(plugin.weights, folder)) if plugin.weights else plugin.make()


def state(plugin: Plugin, folder: Path) -> str:
    """Where its weights are, in words; empty where all is there."""
    if plugin.weights and weights.missing([plugin.weights], folder):
        return "not fetched: ppma privacy fetch"
    if plugin.user_model and not (folder / USER_MODELS[plugin.user_model].file).is_file():
        model = USER_MODELS[plugin.user_model]
        return f"bring {model.file} ({model.what}), or give --models {plugin.user_model}=FILE"
    return ""
