"""Convert a darknet network, a file of sections and one of weights, to ONNX.

    <model>.cfg, <model>.weights  ->  Nodes  ->  for each [yolo] section a map (B, anchors * (5 + classes), h, w), and its anchors

Source of the formats: darknet (Redmon). The sections of YOLOv3-tiny are known; batch norms become part of the
convolutions.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppma.privacy.detectors.runtime import Network, Nodes, to_onnx

_EPSILON = 1e-6
"""Darknet's, in batch norms."""
_LEAK = 0.1
"""Darknet's slope of the leaky rectifier below zero."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """A map of boxes."""

    output: str
    anchors_A2: np.ndarray
    """Width and height in pixels of the network's input."""


def _sections(text: str) -> list[dict[str, str]]:
    """Return the sections of a configuration, each with its name under ""."""
    found: list[dict[str, str]] = []
    for line in (line.split("#")[0].strip() for line in text.splitlines()):
        if line.startswith("["):
            found.append({"": line.strip("[]")})
        elif line:
            key, _, value = line.partition("=")
            found[-1][key.strip()] = value.strip()
    return found


class _Reader:
    """Takes arrays from the file of weights in order."""

    def __init__(self, path: Path) -> None:
        major, minor, _ = np.fromfile(path, np.int32, 3)
        header = 20 if major * 10 + minor >= 2 else 16  # the number of pictures seen takes 8 bytes, or 4
        self.rest = np.fromfile(path, np.float32, offset=header)

    def take(self, *shape: int) -> np.ndarray:
        count = int(np.prod(shape))
        part, self.rest = self.rest[:count], self.rest[count:]
        return part.reshape(shape)


def load(cfg: Path, weights: Path) -> tuple[Network, list[Head]]:
    """Return the network, whose input is RGB from 0 to 1 as NCHW, and its heads in the order of its results."""
    reader, nodes = _Reader(weights), Nodes()
    results, channels = ["image"], [3]  # of the input, then of each section
    heads: list[Head] = []
    for section in _sections(cfg.read_text())[1:]:
        kind, last, width = section[""], results[-1], channels[-1]
        if kind == "convolutional":
            width, side = int(section["filters"]), int(section["size"])
            bias = reader.take(width)
            scale, mean, variance = (
                reader.take(3, width) if "batch_normalize" in section else (1.0, 0.0, 1.0 - _EPSILON)
            )
            gain = scale / np.sqrt(variance + _EPSILON) * np.ones(width, np.float32)
            kernel = reader.take(width, channels[-1], side, side) * gain[:, None, None, None]
            operands = [nodes.constant(a.astype(np.float32)) for a in (kernel, bias - mean * gain)]
            stride = [int(section["stride"])] * 2
            last = nodes.add("Conv", [last, *operands], strides=stride, pads=[side // 2 * int(section["pad"])] * 4)
            if section["activation"] == "leaky":
                last = nodes.add("LeakyRelu", [last], alpha=_LEAK)
        elif kind == "maxpool":
            size, stride = [int(section["size"])] * 2, [int(section["stride"])] * 2
            last = nodes.add("MaxPool", [last], kernel_shape=size, strides=stride, auto_pad="SAME_UPPER")
        elif kind == "upsample":
            factor = np.array([1, 1, *[float(section["stride"])] * 2], np.float32)
            last = nodes.add("Resize", [last, "", nodes.constant(factor)], mode="nearest")
        elif kind == "route":
            numbers = [int(n) for n in section["layers"].split(",")]
            places = [n + 1 if n >= 0 else len(results) + n for n in numbers]  # results[0] is the input
            last, width = nodes.add("Concat", [results[p] for p in places], axis=1), sum(channels[p] for p in places)
        else:
            assert kind == "yolo", f"[{kind}] is no section of YOLOv3-tiny"
            anchors_A2 = np.array(section["anchors"].split(","), float).reshape(-1, 2)
            heads.append(Head(output=last, anchors_A2=anchors_A2[[int(n) for n in section["mask"].split(",")]]))
        results.append(last)
        channels.append(width)
    assert not len(reader.rest), "the file's hash was checked"
    return Network(to_onnx(nodes, "image", [head.output for head in heads])), heads
