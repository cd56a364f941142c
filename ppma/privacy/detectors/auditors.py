"""The detectors of `ppma audit`, none of which `ppma remove-humans` offers: a tool that made masks cannot judge them.

    frame_HWC (RGB uint8)  ->  the frame and its tiles at the network's size  ->  boxes_N5: x0, y0, x1, y1, score

Three networks detect bodies by different means: nanodet predicts distributions of edge distances, centernet heat maps of
centers, yolov3-tiny offsets of anchor boxes; blazeface detects faces. A file of the user adds yolox. Operating points
(thresholds) are sensitive: a missed person is worse than a false positive, which costs a look. They were chosen on half
of the labeled real clips and are reported on the other half (benchmarks/person_recall.py, LOG.md 2026-11-28).
Legend: H height, W width of a frame in pixels, N boxes or anchors, B tiles, h and w of a network's input
or map, S its side.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ppma.config.errors import InputError, reading
from ppma.privacy.detectors import darknet
from ppma.privacy.detectors.boxes import NONE_05, suppress
from ppma.privacy.detectors.runtime import Network, sigmoid
from ppma.privacy.detectors.tfjs import Graph
from ppma.privacy.detectors.tiles import TileDetector, network_size, tiles
from ppma.privacy.detectors.tools import USER_MODELS, Detector, Model, Tool


@dataclass(frozen=True, kw_only=True)
class AuditorKind(Tool):
    """A detector, its license and its operating point."""

    threshold: float
    """Operating point: the least score of a detection; the last argument of the constructor."""


class YoloV3Tiny(TileDetector):
    """YOLOv3-tiny (Redmon and Farhadi, 2018) on COCO, whose class 0 is a person; about 0.25 s for 340 x 256 pixels."""

    whole, part = 416, 320
    """Long side of the network's input for the frame (as published) and for a tile, which 320 still enlarges."""

    def __init__(self, files: dict[str, Path], threshold: float) -> None:
        """Use `files["yolov3-tiny.cfg"]` and `files["yolov3-tiny.weights"]`."""
        self.threshold = threshold
        self._network, self._heads = darknet.load(files["yolov3-tiny.cfg"], files["yolov3-tiny.weights"])

    def _stretched(self, parts: Sequence[np.ndarray], long_side: int) -> list[np.ndarray]:
        """Return boxes_N5 in each of these parts of one size, each stretched to the network's input."""
        height, width = parts[0].shape[:2]
        size = network_size(height, width, long_side)
        images = [cv2.resize(part_HWC, size, interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1) for part_HWC in parts]
        heads = self._network(np.stack(images).astype(np.float32) / np.float32(255))
        found = (
            np.concatenate([self._boxes(map_Khw, head, size) for map_Khw, head in zip(maps, self._heads)])
            for maps in zip(*heads)
        )
        return [boxes_N5 * np.array([width, height, width, height, 1], np.float32) for boxes_N5 in found]

    def _boxes(self, map_Khw: np.ndarray, head: darknet.Head, size: tuple[int, int]) -> np.ndarray:
        """Return boxes_N5 relative to the frame."""
        logits_A85hw = map_Khw.reshape(len(head.anchors_A2), -1, *map_Khw.shape[1:])
        score_Ahw = sigmoid(logits_A85hw[:, 4]) * sigmoid(logits_A85hw[:, 5])  # something is there, a person
        which, rows, columns = np.nonzero(score_Ahw > self.threshold)
        x, y, w, h = logits_A85hw[which, :4, rows, columns].T
        grid_2 = np.array(map_Khw.shape[:0:-1])
        center_N2 = (sigmoid(np.stack([x, y], 1)) + np.stack([columns, rows], 1)) / grid_2
        half_N2 = np.exp(np.stack([w, h], 1)) * head.anchors_A2[which] / np.array(size) / 2
        return np.hstack([center_N2 - half_N2, center_N2 + half_N2, score_Ahw[which, rows, columns, None]]).astype(
            np.float32
        )

    def detect(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return boxes_N5 of people in each of these frames of one size."""
        cut = [[*tiles(frame_HWC)] for frame_HWC in frames]
        found = iter(self._stretched([tile_HWC for own in cut for tile_HWC, _, _ in own], self.part))
        return [
            suppress(
                np.concatenate([whole_N5, *(next(found) + np.array([x, y, x, y, 0], np.float32) for _, x, y in own)])
            )
            for whole_N5, own in zip(self._stretched(frames, self.whole), cut)
        ]


class NanoDet(TileDetector):
    """NanoDet-g (RangiLyu, 2021) on COCO: predicts distributions of edge distances on grids of 8, 16 and 32 pixels."""

    side = 416
    strides = (8, 16, 32)
    mean_3 = np.array([103.53, 116.28, 123.675], np.float32)
    deviation_3 = np.array([57.375, 57.12, 58.395], np.float32)
    """Normalization of blue, green and red in training."""
    _outputs = ("Sigmoid_154", "Split_153:1", "Sigmoid_165", "Split_164:1", "Sigmoid_176", "Split_175:1")

    def __init__(self, files: dict[str, Path], threshold: float) -> None:
        """Load `files["nanodet.json"]` and `files["nanodet.bin"]`."""
        self.threshold = threshold
        names = [f"PartitionedCall/onnx_tf_prefix_{name}" for name in self._outputs]
        self._graph = Graph(files["nanodet.json"], [files["nanodet.bin"]], names, self.side)

    def in_tiles(self, tiles_BhwC: np.ndarray) -> Iterator[np.ndarray]:
        """Yield boxes_N5 of people in each tile."""
        batch = (tiles_BhwC[..., ::-1] - self.mean_3) / self.deviation_3
        for maps in zip(*self._graph(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))):
            of_strides = zip(maps[::2], maps[1::2], self.strides)  # scores and edges of each
            yield np.concatenate([self._boxes(score_1hw[0], edges_Chw, s) for score_1hw, edges_Chw, s in of_strides])

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


class CenterNet(TileDetector):
    """CenterNet on MobileNetV3 (as TTFNet, Liu et al., 2020) on COCO: predicts a heat map of centers per class."""

    side, stride = 512, 4

    def __init__(self, files: dict[str, Path], threshold: float) -> None:
        """Load `files["centernet.json"]` and `files["centernet.bin"]`."""
        self.threshold = threshold
        names = ["tower_0/keypoints", "tower_0/wh"]
        self._graph = Graph(files["centernet.json"], [files["centernet.bin"]], names, self.side)

    def in_tiles(self, tiles_BhwC: np.ndarray) -> list[np.ndarray]:
        """Return boxes_N5 of people in each tile."""
        heat_BhwC, edges_Bhw4 = self._graph(tiles_BhwC.astype(np.float32))
        return [self._boxes(heat_hw, edges_hw4) for heat_hw, edges_hw4 in zip(heat_BhwC[..., 0], edges_Bhw4)]

    def _boxes(self, heat_hw: np.ndarray, edges_hw4: np.ndarray) -> np.ndarray:
        peaks = (heat_hw >= self.threshold) & (heat_hw == cv2.dilate(heat_hw, np.ones((3, 3), np.uint8)))
        rows, columns = np.nonzero(peaks)
        left, top, right, bottom = edges_hw4[rows, columns].T
        x, y = columns * self.stride, rows * self.stride
        return np.stack([x - left, y - top, x + right, y + bottom, heat_hw[rows, columns]], 1)


class YoloX(TileDetector):
    """YOLOX (Ge et al., 2021) on COCO, from a file of the user: predicts one box for each cell of three grids."""

    strides = (8, 16, 32)

    def __init__(self, file: Path, threshold: float) -> None:
        """Load the file; InputError if it is not YOLOX for square images."""
        self.threshold = threshold
        with reading(file, USER_MODELS["yolox"].what):
            self._network = Network(file.read_bytes())
            self.side = self.multiple = self._network.side
        grids = [(np.indices((self.side // s,) * 2)[::-1].reshape(2, -1).T, s) for s in self.strides]
        self._cell_N2 = np.concatenate([grid_N2 for grid_N2, _ in grids])
        self._stride_N1 = np.concatenate([np.full((len(grid_N2), 1), s) for grid_N2, s in grids])

    def in_tiles(self, tiles_BSS3: np.ndarray) -> list[np.ndarray]:
        """Return boxes_N5 of people in each tile."""
        (rows_BN85,) = self._network(np.ascontiguousarray(tiles_BSS3[..., ::-1].transpose(0, 3, 1, 2), np.float32))
        return [self._boxes(rows_N85) for rows_N85 in rows_BN85]

    def _boxes(self, rows_N85: np.ndarray) -> np.ndarray:
        score_N = rows_N85[:, 4] * rows_N85[:, 5]  # something is there, a person
        kept_N = score_N >= self.threshold
        stride_N1 = self._stride_N1[kept_N]
        center_N2 = (rows_N85[kept_N, :2] + self._cell_N2[kept_N]) * stride_N1
        half_N2 = np.exp(rows_N85[kept_N, 2:4]) * stride_N1 / 2
        return np.hstack([center_N2 - half_N2, center_N2 + half_N2, score_N[kept_N, None]])


class BlazeFace(TileDetector):
    """MediaPipe's full-range face detector (Bazarevsky et al., 2019), on a grid of 4 pixels at 192 x 192."""

    side, stride, overlap = 192, 4, 0.3

    def __init__(self, files: dict[str, Path], threshold: float) -> None:
        """Load `files["blazeface.json"]` and `files["blazeface.bin"]`."""
        self.threshold = threshold
        names = [f"d2sp_{kind}_face_4" for kind in ("classifier", "regressor")]
        names = [f"StatefulPartitionedCall/model/{name}/{name}" for name in names]
        self._graph = Graph(files["blazeface.json"], [files["blazeface.bin"]], names, self.side)

    def in_tiles(self, tiles_BhwC: np.ndarray) -> list[np.ndarray]:
        """Return boxes_N5 of faces in each tile."""
        logits_Bhw1, edges_BhwC = self._graph(tiles_BhwC.astype(np.float32) / np.float32(127.5) - 1)
        return [self._boxes(*maps) for maps in zip(sigmoid(logits_Bhw1[..., 0]), edges_BhwC)]

    def _boxes(self, score_hw: np.ndarray, edges_hwC: np.ndarray) -> np.ndarray:
        rows, columns = np.nonzero(score_hw >= self.threshold)
        x, y, width, height = edges_hwC[rows, columns, :4].T
        x, y = x + (columns + 0.5) * self.stride, y + (rows + 0.5) * self.stride
        return np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2, score_hw[rows, columns]], 1)


AUDITORS: dict[str, AuditorKind] = {
    "nanodet": AuditorKind(make=NanoDet, finds="person", weights="auditors", license="Apache-2.0", threshold=0.45),
    "centernet": AuditorKind(make=CenterNet, finds="person", weights="auditors", license="Apache-2.0", threshold=0.45),
    "yolov3-tiny": AuditorKind(
        make=YoloV3Tiny, finds="person", weights="yolov3-tiny", license="MIT as packaged (darknet)", threshold=0.4
    ),
    "yolox": AuditorKind(make=YoloX, finds="person", user_models=("yolox",), license="Apache-2.0", threshold=0.3),
    "blazeface": AuditorKind(make=BlazeFace, finds="face", weights="auditors", license="Apache-2.0", threshold=0.5),
}
"""Auditors by the names that reports use. yolox has the operating point of its authors' demo, which was not measured."""
BUNDLED = tuple(name for name, kind in AUDITORS.items() if kind.weights)
"""The auditors that `ppma privacy fetch` gets."""
POINTS_DATE = "2026-11-28"
"""When these operating points were measured (LOG.md); it changes with them."""


def check(names: tuple[str, ...], makers: set[str], flag: str = "--detectors") -> None:
    """Raise an InputError, which names the flag, unless these auditors may judge the masks of these makers.

    An audit needs two auditors for people and one for faces, none of which made masks.
    """
    for name in names:
        if name not in AUDITORS:
            raise InputError(f"{flag}: there is no auditor {name!r}; auditors are {', '.join(AUDITORS)}")
    if both := sorted(set(names) & makers):
        raise InputError(f"{', '.join(both)} made the masks and cannot judge them; leave it out of {flag}")
    finds = [AUDITORS[name].finds for name in names]
    if finds.count("person") < 2 or "face" not in finds:
        raise InputError(f"{flag} {' '.join(names)}: an audit needs two that find people and one that finds faces")


def load(name: str, folder: Path, threshold: float | None = None, models: Sequence[Model] = ()) -> Detector:
    """Construct an auditor from its files, see `Tool.load`; a threshold takes the place of its operating point."""
    kind = AUDITORS[name]
    detector: Detector = kind.load(folder, models, kind.threshold if threshold is None else threshold)
    return detector
