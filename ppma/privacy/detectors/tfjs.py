"""Convert the small TensorFlow.js graphs of some detectors to ONNX when they are loaded, and run them in ONNX Runtime.

    <model>.json: nodes and attributes, <model>.bin: weights, float16 or float32  ->  Graph  ->  outputs of chosen nodes

Only the operations that these detectors need are converted, and only the nodes that the chosen ones depend on. Detectors
decode boxes from the outputs themselves. Tensors are laid out as in the graph: NHWC, or NCHW between transpositions.
ONNX Runtime removes most of the transpositions that this adds around convolutions.
"""

import base64
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppma.privacy.detectors.runtime import FLOAT, INT64, Network, Nodes, to_onnx

_TYPES = {"float32": np.float32, "float16": np.float16, "int32": np.int32}
_NHWC_TO_NCHW, _NCHW_TO_NHWC = [0, 3, 1, 2], [0, 2, 3, 1]


def _ints(attributes: dict[str, Any], name: str) -> list[int]:
    return [int(i) for i in attributes[name]["list"].get("i", [])]


def _string(attributes: dict[str, Any], name: str) -> str:
    """Return a string attribute: base64, or in older graphs a list of byte values."""
    value = attributes[name]["s"]
    return bytes(value).decode() if isinstance(value, list) else base64.b64decode(value).decode()


class _Builder(Nodes):
    """The nodes in ONNX of a graph whose constants are known."""

    def __init__(self, values: dict[str, np.ndarray]) -> None:
        """Take the graph's constants by name."""
        super().__init__()
        self.values = values

    def use(self, name: str) -> str:
        """Return ONNX's name of a constant of the graph or of a node's result."""
        if name in self.values:
            self.constant(self.values[name], name)
        return name.removesuffix(":0")

    def in_nchw(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node whose first input and result are NCHW in ONNX and NHWC in the graph."""
        first = self.add("Transpose", [inputs[0]], perm=_NHWC_TO_NCHW)
        result = self.add(op, [first, *inputs[1:]], **attributes)
        return self.add("Transpose", [result], output, perm=_NCHW_TO_NHWC)


Maker = Callable[[_Builder, str, list[str], dict[str, Any]], Any]
"""Adds a node to the builder: its name, its inputs, its attributes."""


def _padding(attributes: dict[str, Any]) -> str:
    """Return ONNX's name of the padding; TensorFlow's SAME puts the odd pixel at the end."""
    return "SAME_UPPER" if _string(attributes, "padding") == "SAME" else "VALID"


def _convolution(depthwise: bool) -> Maker:
    """Return the maker of a Conv2D, possibly depthwise, fused with a bias and an activation."""

    def make(build: _Builder, name: str, inputs: list[str], attributes: dict[str, Any]) -> None:
        assert all(d == 1 for d in _ints(attributes, "dilations")), "none of the graphs dilates"
        fused = [base64.b64decode(s).decode() for s in attributes.get("fused_ops", {"list": {}})["list"].get("s", [])]
        kernel_hwio = build.values[inputs[1]]
        h, w, channels = kernel_hwio.shape[:3]
        turned = (
            kernel_hwio.transpose(2, 3, 0, 1).reshape(-1, 1, h, w) if depthwise else kernel_hwio.transpose(3, 2, 0, 1)
        )
        operands = [build.use(inputs[0]), build.constant(turned), *map(build.use, inputs[2:])]
        shape = {"strides": _ints(attributes, "strides")[1:3], "auto_pad": _padding(attributes)}
        x = build.in_nchw("Conv", operands, "", **shape, group=channels if depthwise else 1)
        for step in fused:
            if step != "BiasAdd":  # an operand of Conv
                x = _ACTIVATIONS[step](build, "", [x], {})
        build.add("Identity", [x], name)

    return make


def _simple(op: str) -> Maker:
    """Return the maker of a node that ONNX has, too."""
    return lambda build, name, inputs, attributes: build.add(op, [build.use(i) for i in inputs], name)


def _clip(build: _Builder, name: str, inputs: list[str], attributes: dict[str, Any]) -> str:
    limits = [build.constant(np.float32(0)), build.constant(np.float32(6))]
    return build.add("Clip", [build.use(inputs[0]), *limits], name)


_ACTIVATIONS: dict[str, Maker] = {"Relu": _simple("Relu"), "Relu6": _clip, "Sigmoid": _simple("Sigmoid")}


def _max_pool(build: _Builder, name: str, inputs: list[str], attributes: dict[str, Any]) -> None:
    sides = {"kernel_shape": _ints(attributes, "ksize")[1:3], "strides": _ints(attributes, "strides")[1:3]}
    build.in_nchw("MaxPool", [build.use(inputs[0])], name, **sides, auto_pad=_padding(attributes))


def _resize(build: _Builder, name: str, inputs: list[str], attributes: dict[str, Any]) -> None:
    """Interpolate linearly; older TensorFlow has no half pixel."""
    assert not attributes["align_corners"].get("b"), "none of the graphs aligns corners"
    centered = bool(attributes.get("half_pixel_centers", {}).get("b"))
    first = build.add("Transpose", [build.use(inputs[0])], perm=_NHWC_TO_NCHW)
    outer = build.add("Shape", [first], start=0, end=2)
    inner = build.add("Cast", [build.use(inputs[1])], to=INT64)
    sizes = build.add("Concat", [outer, inner], axis=0)
    way = "half_pixel" if centered else "asymmetric"
    result = build.add("Resize", [first, "", "", sizes], mode="linear", coordinate_transformation_mode=way)
    build.add("Transpose", [result], name, perm=_NCHW_TO_NHWC)


def _pad(build: _Builder, name: str, inputs: list[str], attributes: dict[str, Any]) -> None:
    pads = build.constant(build.values[inputs[1]].T.astype(np.int64).ravel())
    build.add("Pad", [build.use(inputs[0]), pads, *(build.use(i) for i in inputs[2:])], name)


def _slice(build: _Builder, name: str, inputs: list[str], attributes: dict[str, Any]) -> None:
    """Slice a one-dimensional tensor, which is how graphs read shapes."""
    whole, start, end, step = map(build.use, inputs)
    build.add("Slice", [whole, start, end, build.constant(np.zeros(1, np.int64)), step], name)


def _batch_norm(build: _Builder, name: str, inputs: list[str], attributes: dict[str, Any]) -> None:
    gamma, beta, mean, variance = (build.values[i] for i in inputs[1:])
    scale = gamma / np.sqrt(variance + np.float32(attributes["epsilon"]["f"]))
    scaled = build.add("Mul", [build.use(inputs[0]), build.constant(scale)])
    build.add("Add", [scaled, build.constant(beta - mean * scale)], name)


def _split(build: _Builder, name: str, inputs: list[str], attributes: dict[str, Any]) -> None:
    parts, axis = len(build.values[inputs[1]]), int(build.values[inputs[2]])
    build.add("Split", [build.use(inputs[0]), build.use(inputs[1])], name, outputs=parts, axis=axis)


_MAKERS: dict[str, Maker] = {
    **_ACTIVATIONS,
    **dict.fromkeys(("Conv2D", "_FusedConv2D"), _convolution(False)),
    **dict.fromkeys(("DepthwiseConv2dNative", "FusedDepthwiseConv2dNative"), _convolution(True)),
    **dict.fromkeys(("Add", "AddV2", "BiasAdd"), _simple("Add")),
    **dict.fromkeys(("Pad", "PadV2"), _pad),
    "MaxPool": _max_pool,
    "ResizeBilinear": _resize,
    "DepthToSpace": lambda b, n, i, a: b.in_nchw("DepthToSpace", [b.use(i[0])], n, blocksize=int(a["block_size"]["i"])),
    "LeakyRelu": lambda b, n, i, a: b.add("LeakyRelu", [b.use(i[0])], n, alpha=float(a["alpha"]["f"])),
    "Mul": _simple("Mul"),
    "AddN": _simple("Sum"),
    "FusedBatchNorm": _batch_norm,
    "Sub": _simple("Sub"),
    "Cast": lambda b, n, i, a: b.add("Cast", [b.use(i[0])], n, to=FLOAT),
    "Shape": _simple("Shape"),
    "StridedSlice": _slice,
    "Identity": _simple("Identity"),
    "Transpose": lambda b, n, i, a: b.add("Transpose", [b.use(i[0])], n, perm=b.values[i[1]].tolist()),
    "ConcatV2": lambda b, n, i, a: b.add("Concat", [b.use(name) for name in i[:-1]], n, axis=int(b.values[i[-1]])),
    "SplitV": _split,
    "Mean": lambda b, n, i, a: b.add(
        "ReduceMean", [b.use(i[0]), b.use(i[1])], n, keepdims=int(bool(a["keep_dims"].get("b")))
    ),
}


class Graph:
    """The part of a TensorFlow.js graph from its input to chosen nodes."""

    def __init__(
        self, topology: Path, weights: Sequence[Path], outputs: Sequence[str], side: int = 0, start: str = ""
    ) -> None:
        """Read and convert a graph.

        Args:
            topology: The JSON file.
            weights: The weight files in order.
            outputs: Names of nodes; `name:1` is the second result of a node.
            side: Side of the square image that the sizes inside the graph are for; for other shapes they are scaled.
            start: The node that the batch replaces (default: the placeholder).
        """
        content = json.loads(topology.read_text(encoding="utf-8"))
        self._nodes = {node["name"]: node for node in content["modelTopology"]["node"]}
        data = b"".join(file.read_bytes() for file in weights)
        self._constants = _read_weights(content["weightsManifest"][0]["weights"], data)
        self._side = side
        self.input = start or next(name for name, node in self._nodes.items() if node["op"] == "Placeholder")
        self._steps: list[tuple[str, list[str]]] = []
        self._planned = {self.input, *self._constants}
        for name in outputs:
            self._plan(name.split(":")[0])
        self._sizes: dict[str, np.ndarray] = {}
        if side:
            resizes = {inputs[1] for name, inputs in self._steps if self._nodes[name]["op"] == "ResizeBilinear"}
            self._sizes = {name: self._constants.pop(name) for name in sorted(resizes & set(self._constants))}
        build = _Builder(self._constants)
        for name, inputs in self._steps:
            node = self._nodes[name]
            _MAKERS[node["op"]](build, name, inputs, node.get("attr", {}))
        results = [name.removesuffix(":0") for name in outputs]
        self._network = Network(to_onnx(build, self.input, results, list(self._sizes)))

    def constant(self, name: str) -> np.ndarray:
        """Return a constant of the graph."""
        return self._constants[name]

    def _plan(self, name: str) -> None:
        """Append the nodes that a node depends on, then the node."""
        if name in self._planned:
            return
        inputs = [i for i in self._nodes[name].get("input", ()) if not i.startswith("^")]
        for needed in inputs:
            self._plan(needed.split(":")[0])
        self._steps.append((name, inputs))
        self._planned.add(name)

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        """Return the outputs of the chosen nodes for a batch, float32, in the layout of the graph's input."""
        sides_2 = np.array([side for side in batch.shape[1:] if side != 3])
        sizes = {name: (size * sides_2 / self._side).round().astype(np.int64) for name, size in self._sizes.items()}
        return self._network(batch, sizes)


def _read_weights(entries: Sequence[dict[str, Any]], data: bytes) -> dict[str, np.ndarray]:
    """Return name -> array: float16 becomes float32, and int32 becomes int64, the type of ONNX's shapes."""
    found, at = {}, 0
    for entry in entries:
        kind = _TYPES[entry.get("quantization", {}).get("dtype", entry["dtype"])]
        array = np.frombuffer(data, kind, math.prod(entry["shape"]), at).reshape(entry["shape"])
        at += array.nbytes
        found[entry["name"]] = array.astype(np.int64 if entry["dtype"] == "int32" else _TYPES[entry["dtype"]])
    assert at == len(data), "the file's hash was checked"
    return found
