"""The auditor's own detectors, none of which `ppma remove-humans` offers: what made a mask cannot judge it.

    frame_HWC (RGB uint8)  ->  the picture and its tiles, each scaled to the network's size  ->  boxes_N5: x0, y0, x1, y1, score

Four networks find bodies by different means: nanodet by distributions of distances, centernet by heat at their middles, ssdlite and
yolov3-tiny by shifts of fixed boxes; hog finds upright bodies by gradients alone, blazeface faces.
An operating point (threshold) is where a hit means somebody: 5 % above the highest score, rounded up to a twentieth, in 396 frames of 198
planted clips (seed 1) without their people, as they are and painted over by the remover (LOG.md, 2026-11-25); `ppma plant` tells it.
Below it a detector sees more people, and takes places and paint for people: together they did so in one frame of twenty.
Legend: H height, W width of a picture in pixels, N boxes, B parts of a picture, S side of a network's input.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import cv2
import numpy as np

from ppma.config.errors import InputError
from ppma.privacy.detectors import weights
from ppma.privacy.detectors.boxes import NONE_05, suppress
from ppma.privacy.detectors.tfjs import Graph
from ppma.privacy.detectors.tiles import gather, network_size, tile_batch, tiles


class Auditor(Protocol):
    """Finds people, or their faces, in one picture."""

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """boxes_N5 float32, all of them at or above the operating point."""


@dataclass(frozen=True, kw_only=True)
class AuditorKind:
    """One of the detectors, under which terms it may be used, and at which operating point it judges."""

    make: Callable[..., Auditor]
    """Of the files of its weights, when it has any, and a threshold."""
    finds: Literal["person", "face"]
    license: str
    threshold: float
    """Its operating point: from this score on a box is a hit."""
    weights: str = ""
    """Key of `weights.WEIGHTS`, or empty for one without weights."""


class YoloV3Tiny:
    """YOLOv3-tiny on 80 classes of COCO, of which 0 is a person (Redmon and Farhadi, 2018). About 0.25 s a picture of 340 x 256."""

    whole, part = 416, 320
    """Long side of the network's input for the picture, the published one, and for a tile of it, which is still enlarged in that."""

    def __init__(self, files: dict[str, Path], threshold: float) -> None:
        """`files`: yolov3-tiny.cfg and yolov3-tiny.weights."""
        self.threshold = threshold
        self._files = str(files["yolov3-tiny.cfg"]), str(files["yolov3-tiny.weights"])
        self._nets: dict[tuple[int, int], cv2.dnn.Net] = {}

    def _net(self, size: tuple[int, int]) -> cv2.dnn.Net:
        """A network for each input size: changing the size of one lays out its memory anew."""
        if size not in self._nets:
            self._nets[size] = cv2.dnn.readNetFromDarknet(*self._files)
        return self._nets[size]

    def _look(self, frame_HWC: np.ndarray, long_side: int) -> np.ndarray:
        height, width = frame_HWC.shape[:2]
        size = network_size(height, width, long_side)
        net = self._net(size)
        net.setInput(cv2.dnn.blobFromImage(frame_HWC, 1 / 255, size))
        rows_N85 = np.vstack(net.forward(net.getUnconnectedOutLayersNames()))
        rows_N85 = rows_N85[rows_N85[:, 5] > self.threshold]
        half_N2 = rows_N85[:, 2:4] / 2
        corners_N4 = np.hstack([rows_N85[:, :2] - half_N2, rows_N85[:, :2] + half_N2]) * [width, height, width, height]
        return np.hstack([corners_N4, rows_N85[:, 5:6]]).astype(np.float32)

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """boxes_N5 of people."""
        found = [self._look(frame_HWC, self.whole)]
        for tile_HWC, x, y in tiles(frame_HWC):
            found.append(self._look(tile_HWC, self.part) + np.array([x, y, x, y, 0], np.float32))
        return suppress(np.concatenate(found))


class NanoDet:
    """NanoDet-g (RangiLyu, 2021) on COCO: box edges as distributions of distances on grids of 8, 16 and 32 pixels."""

    side = 416
    strides = (8, 16, 32)
    mean_3 = np.array([103.53, 116.28, 123.675], np.float32)
    deviation_3 = np.array([57.375, 57.12, 58.395], np.float32)
    """Of blue, green and red, as it was trained."""
    _outputs = ("Sigmoid_154", "Split_153:1", "Sigmoid_165", "Split_164:1", "Sigmoid_176", "Split_175:1")

    def __init__(self, files: dict[str, Path], threshold: float) -> None:
        """`files`: nanodet.json and nanodet.bin."""
        self.threshold = threshold
        names = [f"PartitionedCall/onnx_tf_prefix_{name}" for name in self._outputs]
        self._graph = Graph(files["nanodet.json"], [files["nanodet.bin"]], names, self.side)

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """boxes_N5 of people."""
        tiles_BhwC, places = tile_batch(frame_HWC, self.side)
        batch = (tiles_BhwC[..., ::-1] - self.mean_3) / self.deviation_3
        maps = self._graph(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))
        found = [
            np.concatenate(
                [self._boxes(maps[2 * k][b, 0], maps[2 * k + 1][b], stride) for k, stride in enumerate(self.strides)]
            )
            for b in range(len(places))
        ]
        return gather(places, found)

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
        self._graph = Graph(
            files["centernet.json"], [files["centernet.bin"]], ["tower_0/keypoints", "tower_0/wh"], self.side
        )

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """boxes_N5 of people."""
        tiles_BhwC, places = tile_batch(frame_HWC, self.side)
        heat_BhwC, edges_Bhw4 = self._graph(tiles_BhwC.astype(np.float32))
        return gather(places, [self._boxes(heat[..., 0], edges) for heat, edges in zip(heat_BhwC, edges_Bhw4)])

    def _boxes(self, heat_hw: np.ndarray, edges_hw4: np.ndarray) -> np.ndarray:
        peaks = (heat_hw >= self.threshold) & (heat_hw == cv2.dilate(heat_hw, np.ones((3, 3), np.uint8)))
        rows, columns = np.nonzero(peaks)
        left, top, right, bottom = edges_hw4[rows, columns].T
        x, y = columns * self.stride, rows * self.stride
        return np.stack([x - left, y - top, x + right, y + bottom, heat_hw[rows, columns]], 1)


class SsdLite:
    """SSDLite on MobileNetV2 (Sandler et al., 2018) on COCO: boxes as shifts of 1917 fixed ones on grids of 19 places a side to 1."""

    side, parts, maps = 300, 5, 6
    person, classes = 1, 91

    def __init__(self, files: dict[str, Path], threshold: float) -> None:
        """`files`: ssdlite.json and ssdlite-1.bin to ssdlite-5.bin."""
        self.threshold = threshold
        kinds = ("BoxEncoding", "Class")
        names = [f"BoxPredictor_{k}/{kind}Predictor/BiasAdd" for kind in kinds for k in range(self.maps)]
        parts = [files[f"ssdlite-{number + 1}.bin"] for number in range(self.parts)]
        self._graph = Graph(files["ssdlite.json"], parts, names, start="Preprocessor/sub")
        self._fixed_N4 = self._graph.constant("Postprocessor/ExpandDims")[0]

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """boxes_N5 of people."""
        tiles_BSS3, places = tile_batch(
            frame_HWC, self.side, multiple=self.side
        )  # square: the fixed boxes are meant for that
        maps = self._graph(tiles_BSS3.astype(np.float32) / np.float32(127.5) - 1)
        shifts, logits = maps[: self.maps], maps[self.maps :]
        shifts_BN4 = np.concatenate([m.reshape(len(places), -1, 4) for m in shifts], 1)
        logits_BN = np.concatenate([m.reshape(len(places), -1, self.classes)[..., self.person] for m in logits], 1)
        scores_BN = 1 / (1 + np.exp(-logits_BN))
        return gather(places, [self._boxes(*both) for both in zip(scores_BN, shifts_BN4)])

    def _boxes(self, score_N: np.ndarray, shifts_N4: np.ndarray) -> np.ndarray:
        kept_N = score_N >= self.threshold
        y0, x0, y1, x1 = self._fixed_N4[kept_N].T
        dy, dx, dh, dw = shifts_N4[kept_N].T
        height, width = y1 - y0, x1 - x0
        y, x = (y0 + y1) / 2 + dy / 10 * height, (x0 + x1) / 2 + dx / 10 * width
        height, width = height * np.exp(dh / 5), width * np.exp(dw / 5)
        corners_4N = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2]) * self.side
        return suppress(np.vstack([corners_4N, score_N[kept_N]]).T)


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
        self._graph = Graph(files["blazeface.json"], [files["blazeface.bin"]], names, self.side)

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """boxes_N5 of faces."""
        tiles_BhwC, places = tile_batch(frame_HWC, self.side)
        logits_Bhw1, edges_BhwC = self._graph(tiles_BhwC.astype(np.float32) / np.float32(127.5) - 1)
        scores_Bhw = 1 / (1 + np.exp(-np.clip(logits_Bhw1[..., 0], -50, 50)))
        found = [self._boxes(score_hw, edges_hwC) for score_hw, edges_hwC in zip(scores_Bhw, edges_BhwC)]
        return gather(places, found, 0.3)

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
    "nanodet": AuditorKind(make=NanoDet, finds="person", weights="auditors", license="Apache-2.0", threshold=0.7),
    "centernet": AuditorKind(make=CenterNet, finds="person", weights="auditors", license="Apache-2.0", threshold=0.6),
    "ssdlite": AuditorKind(make=SsdLite, finds="person", weights="ssdlite", license="Apache-2.0", threshold=0.8),
    "yolov3-tiny": AuditorKind(
        make=YoloV3Tiny, finds="person", weights="yolov3-tiny", license="MIT as packaged (darknet)", threshold=0.7
    ),
    "hog": AuditorKind(make=Hog, finds="person", license="Apache-2.0 (OpenCV)", threshold=1.0),
    "blazeface": AuditorKind(make=BlazeFace, finds="face", weights="auditors", license="Apache-2.0", threshold=0.8),
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
