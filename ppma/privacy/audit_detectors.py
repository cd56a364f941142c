"""The auditor's own detectors, none of which `ppma remove-humans` offers: what made a mask cannot judge it.

    frame_HWC (RGB uint8)  ->  tiles at two scales, each letterboxed into the network's square  ->  boxes_N5: x0, y0, x1, y1, score

nanodet and centernet find bodies by different means (a box as a distribution of distances, a heat map of middles), hog upright bodies by
gradients alone, blazeface faces. Each looks at the whole picture and at overlapping parts of it.
The operating points (thresholds) are not lower than a hit still means something: in 40 drawn and natural places without people nanodet gave
one false alarm and the others none (docs/planted/report.md).
Legend: H height, W width of a picture in pixels, N boxes, B parts of a picture, S side of a network's input.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import cv2
import numpy as np

from ppma.loaders.errors import InputError
from ppma.privacy import weights
from ppma.privacy.boxes import NONE_05, suppress
from ppma.privacy.detectors import MOST_ENLARGED, tiles
from ppma.privacy.tfjs import Graph


class Auditor(Protocol):
    """Finds people, or their faces, in one picture."""

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """boxes_N5 float32, all of them at or above the operating point."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """A part of the picture in a network's square: where it lies and how much it was enlarged."""

    x: int
    y: int
    scale: float

    def back(self, boxes_N5: np.ndarray) -> np.ndarray:
        """Boxes in the network's square as boxes in the picture."""
        corners_N4 = boxes_N5[:, :4] / self.scale + np.array([self.x, self.y, self.x, self.y])
        return np.hstack([corners_N4, boxes_N5[:, 4:]]).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class AuditorKind:
    """One of the detectors, under which terms it may be used, and at which operating point it judges."""

    make: Callable[..., Auditor]
    """Of the files of its weights, when it has any, and a threshold."""
    finds: Literal["person", "face"]
    licence: str
    threshold: float
    """Its operating point: from this score on a box is a hit."""
    weights: str = ""
    """Key of `weights.WEIGHTS`, or empty for one without weights."""


def looks(frame_HWC: np.ndarray, side: int) -> tuple[np.ndarray, list[Look]]:
    """(batch_BSS3 uint8, where each lies): the whole picture and its tiles, each scaled into a square with grey beside it.

    No tiles of a picture that is enlarged MOST_ENLARGED times as a whole: more shows nothing more.
    """
    squares, places = [], []
    enough = side >= MOST_ENLARGED * max(frame_HWC.shape[:2])
    for part_HWC, x, y in [(frame_HWC, 0, 0), *(() if enough else tiles(frame_HWC))]:
        height, width = part_HWC.shape[:2]
        scale = side / max(height, width)
        square = np.full((side, side, 3), 114, np.uint8)
        h, w = (max(1, round(n * scale)) for n in (height, width))
        square[:h, :w] = cv2.resize(part_HWC, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        squares.append(square)
        places.append(Look(x=x, y=y, scale=scale))
    return np.stack(squares), places


def _gather(places: list[Look], found: list[np.ndarray], overlap: float = 0.5) -> np.ndarray:
    boxes = [place.back(boxes_N5) for place, boxes_N5 in zip(places, found) if len(boxes_N5)]
    return suppress(np.concatenate(boxes), overlap) if boxes else NONE_05


class NanoDet:
    """NanoDet-g (RangiLyu, 2021) on COCO: box edges as distributions of distances on grids of 8, 16 and 32 pixels."""

    side = 416
    strides = (8, 16, 32)
    mean_3, deviation_3 = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
    """Of blue, green and red, as it was trained."""
    _outputs = ("Sigmoid_154", "Split_153:1", "Sigmoid_165", "Split_164:1", "Sigmoid_176", "Split_175:1")

    def __init__(self, files: dict[str, Path], threshold: float) -> None:
        """`files`: nanodet.json and nanodet.bin."""
        self.threshold = threshold
        names = [f"PartitionedCall/onnx_tf_prefix_{name}" for name in self._outputs]
        self._graph = Graph(files["nanodet.json"], files["nanodet.bin"], names)

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """boxes_N5 of people."""
        squares_BSS3, places = looks(frame_HWC, self.side)
        batch = (squares_BSS3[..., ::-1] - np.array(self.mean_3)) / np.array(self.deviation_3)
        maps = self._graph(np.ascontiguousarray(batch.transpose(0, 3, 1, 2), np.float32))
        found = [
            np.concatenate(
                [self._boxes(maps[2 * k][b, 0], maps[2 * k + 1][b], stride) for k, stride in enumerate(self.strides)]
            )
            for b in range(len(places))
        ]
        return _gather(places, found)

    def _boxes(self, score_hw: np.ndarray, edges_Chw: np.ndarray, stride: int) -> np.ndarray:
        rows, columns = np.nonzero(score_hw >= self.threshold)
        if not len(rows):
            return NONE_05
        bins_N4K = edges_Chw[:, rows, columns].T.reshape(len(rows), 4, -1)
        weights_N4K = np.exp(bins_N4K - bins_N4K.max(-1, keepdims=True))
        weights_N4K /= weights_N4K.sum(-1, keepdims=True)
        left, top, right, bottom = stride * (weights_N4K @ np.arange(bins_N4K.shape[-1])).T
        x, y = (columns + 0.5) * stride, (rows + 0.5) * stride
        return np.stack([x - left, y - top, x + right, y + bottom, score_hw[rows, columns]], 1)


class CenterNet:
    """A CenterNet on MobileNetV3 (TTFNet's form, Liu et al., 2020) on COCO: heat of each class at the middle of an object."""

    side, stride = 512, 4

    def __init__(self, files: dict[str, Path], threshold: float) -> None:
        """`files`: centernet.json and centernet.bin."""
        self.threshold = threshold
        self._graph = Graph(files["centernet.json"], files["centernet.bin"], ["tower_0/keypoints", "tower_0/wh"])

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """boxes_N5 of people."""
        squares_BSS3, places = looks(frame_HWC, self.side)
        heat_BhwC, edges_Bhw4 = self._graph(squares_BSS3.astype(np.float32))
        return _gather(places, [self._boxes(heat[..., 0], edges) for heat, edges in zip(heat_BhwC, edges_Bhw4)])

    def _boxes(self, heat_hw: np.ndarray, edges_hw4: np.ndarray) -> np.ndarray:
        peaks = (heat_hw >= self.threshold) & (heat_hw == cv2.dilate(heat_hw, np.ones((3, 3), np.uint8)))
        rows, columns = np.nonzero(peaks)
        left, top, right, bottom = edges_hw4[rows, columns].T
        x, y = columns * self.stride, rows * self.stride
        return np.stack([x - left, y - top, x + right, y + bottom, heat_hw[rows, columns]], 1)


class BlazeFace:
    """MediaPipe's face detector for the full range (Bazarevsky et al., 2019), on a grid of 4 pixels of 192."""

    side, stride = 192, 4

    def __init__(self, files: dict[str, Path], threshold: float) -> None:
        """`files`: blazeface.json and blazeface.bin."""
        self.threshold = threshold
        names = [
            f"StatefulPartitionedCall/model/d2sp_{kind}_face_4/d2sp_{kind}_face_4"
            for kind in ("classifier", "regressor")
        ]
        self._graph = Graph(files["blazeface.json"], files["blazeface.bin"], names)

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """boxes_N5 of faces."""
        squares_BSS3, places = looks(frame_HWC, self.side)
        logits_Bhw1, edges_BhwC = self._graph(squares_BSS3.astype(np.float32) / np.float32(127.5) - 1)
        scores_Bhw = 1 / (1 + np.exp(-np.clip(logits_Bhw1[..., 0], -50, 50)))
        found = [self._boxes(score_hw, edges_hwC) for score_hw, edges_hwC in zip(scores_Bhw, edges_BhwC)]
        return _gather(places, found, 0.3)

    def _boxes(self, score_hw: np.ndarray, edges_hwC: np.ndarray) -> np.ndarray:
        rows, columns = np.nonzero(score_hw >= self.threshold)
        x, y, width, height = edges_hwC[rows, columns, :4].T
        x, y = x + (columns + 0.5) * self.stride, y + (rows + 0.5) * self.stride
        return np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2, score_hw[rows, columns]], 1)


class Hog:
    """OpenCV's people detector on histograms of gradients (Dalal and Triggs, 2005): upright people only, but no network."""

    def __init__(self, threshold: float) -> None:
        """`threshold`: distance from the plane of the support vector machine."""
        self.threshold = threshold
        self._hog = cv2.HOGDescriptor()
        self._hog.setSVMDetector(np.asarray(cv2.HOGDescriptor.getDefaultPeopleDetector(), np.float32))

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """boxes_N5 of people of about 64 pixels and more."""
        scale = 2.0 if max(frame_HWC.shape) <= 400 else 1.5 if max(frame_HWC.shape) <= 640 else 1.0
        larger = cv2.resize(frame_HWC, None, fx=scale, fy=scale)
        if larger.shape[0] < 128 or larger.shape[1] < 64:
            return NONE_05
        boxes, scores = self._hog.detectMultiScale(larger, hitThreshold=self.threshold, winStride=(8, 8), scale=1.1)
        if not len(boxes):
            return NONE_05
        x, y, width, height = np.asarray(boxes, np.float32).T / scale
        return suppress(np.stack([x, y, x + width, y + height, np.ravel(scores)], 1).astype(np.float32))


AUDITORS: dict[str, AuditorKind] = {
    "nanodet": AuditorKind(make=NanoDet, finds="person", weights="auditors", licence="Apache-2.0", threshold=0.4),
    "centernet": AuditorKind(
        make=CenterNet,
        finds="person",
        weights="auditors",
        licence="Apache-2.0",
        threshold=0.4,
    ),
    "hog": AuditorKind(make=Hog, finds="person", licence="Apache-2.0 (OpenCV)", threshold=0.8),
    "blazeface": AuditorKind(make=BlazeFace, finds="face", weights="auditors", licence="Apache-2.0", threshold=0.6),
}
"""By the name that a report gives them."""


def check(names: tuple[str, ...], makers: set[str], flag: str = "--detectors") -> None:
    """InputError unless they may judge masks made by `makers`: known, two for people and one for faces, and none that made them."""
    for name in names:
        if name not in AUDITORS:
            raise InputError(f"{flag}: there is no auditor {name!r}; auditors are {', '.join(AUDITORS)}")
    if both := sorted(set(names) & makers):
        raise InputError(f"{', '.join(both)} made the masks and cannot judge them; leave it out of {flag}")
    finds = [AUDITORS[name].finds for name in names]
    if finds.count("person") < 2 or "face" not in finds:
        raise InputError(f"{flag} {' '.join(names)}: an audit takes two that find people and one that finds faces")


def load(name: str, folder: Path, threshold: float | None = None) -> Auditor:
    """The auditor of that name, at its operating point unless told otherwise, with its weights from `folder`.

    InputError when they are not there, or are not what they should be.
    """
    kind = AUDITORS[name]
    threshold = kind.threshold if threshold is None else threshold
    return kind.make(weights.find(kind.weights, folder), threshold) if kind.weights else kind.make(threshold)
