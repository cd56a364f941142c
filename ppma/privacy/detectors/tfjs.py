"""Run the small TensorFlow.js graphs of some detectors with torch on a CPU, without TensorFlow or conversion.

    <model>.json: nodes and attributes, <model>.bin: weights, float16 or float32  ->  Graph  ->  outputs of chosen nodes

Only the operations that these detectors need are implemented, and only the nodes that the chosen ones depend on are
run. Detectors decode boxes from the outputs themselves. Tensors are laid out as in the graph: NHWC, or NCHW between
transpositions.
"""

import base64
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

_TYPES = {"float32": np.float32, "float16": np.float16, "int32": np.int32}

Values = Sequence[torch.Tensor]
Operation = Callable[[Values], torch.Tensor | tuple[torch.Tensor, ...]]


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread within the block, since clips are spread over processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _ints(attributes: dict[str, Any], name: str) -> list[int]:
    return [int(i) for i in attributes[name]["list"].get("i", [])]


def _string(attributes: dict[str, Any], name: str) -> str:
    """Return a string attribute: base64, or in older graphs a list of byte values."""
    value = attributes[name]["s"]
    return bytes(value).decode() if isinstance(value, list) else base64.b64decode(value).decode()


def _same(x_NCHW: torch.Tensor, kernel: Sequence[int], strides: Sequence[int], value: float = 0.0) -> torch.Tensor:
    """Pad as TensorFlow's SAME does: the odd pixel goes to the end."""
    pads: list[int] = []
    for side, k, s in reversed(list(zip(x_NCHW.shape[2:], kernel, strides))):
        missing = max((math.ceil(side / s) - 1) * s + k - side, 0)
        pads += [missing // 2, missing - missing // 2]
    return F.pad(x_NCHW, pads, value=value)


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Relu": F.relu,
    "Relu6": F.relu6,
    "Sigmoid": torch.sigmoid,
}


def _convolution(attributes: dict[str, Any], depthwise: bool) -> Operation:
    """Return a Conv2D, possibly depthwise, fused with a bias, an addend or an activation."""
    strides, same = _ints(attributes, "strides")[1:3], _string(attributes, "padding") == "SAME"
    assert all(d == 1 for d in _ints(attributes, "dilations")), "none of the graphs dilates"
    fused = [base64.b64decode(s).decode() for s in attributes.get("fused_ops", {"list": {}})["list"].get("s", [])]

    def run(values: Values) -> torch.Tensor:
        x_NCHW, kernel_hwio = values[0].permute(0, 3, 1, 2), values[1]
        h, w, channels = kernel_hwio.shape[:3]
        weight = kernel_hwio.permute(2, 3, 0, 1).reshape(-1, 1, h, w) if depthwise else kernel_hwio.permute(3, 2, 0, 1)
        x_NCHW = _same(x_NCHW, (h, w), strides) if same else x_NCHW
        bias = values[2] if "BiasAdd" in fused else None
        x = F.conv2d(x_NCHW, weight, bias, strides, groups=channels if depthwise else 1).permute(0, 2, 3, 1)
        extra = iter(values[3:])
        for name in fused:
            if name in ("Add", "AddV2"):
                x = x + next(extra)
            elif name == "Prelu":
                x = torch.where(x > 0, x, x * next(extra))
            elif name != "BiasAdd":
                x = _ACTIVATIONS[name](x)
        return x

    return run


def _max_pool(attributes: dict[str, Any]) -> Operation:
    kernel, strides = _ints(attributes, "ksize")[1:3], _ints(attributes, "strides")[1:3]
    same = _string(attributes, "padding") == "SAME"

    def run(values: Values) -> torch.Tensor:
        x_NCHW = values[0].permute(0, 3, 1, 2)
        x_NCHW = _same(x_NCHW, kernel, strides, -math.inf) if same else x_NCHW
        for dim, k, s in zip((2, 3), kernel, strides):  # separable: three times as fast as torch's on NHWC
            x_NCHW = reduce(torch.maximum, x_NCHW.unfold(dim, k, s).unbind(-1))
        return x_NCHW.permute(0, 2, 3, 1)

    return run


def _along(x: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """Interpolate linearly along one dimension as older TensorFlow does, for which torch has no option."""
    source = (torch.arange(size, dtype=torch.float32) * (x.shape[dim] / size)).clamp(0, x.shape[dim] - 1)
    low = source.floor().long()
    shape = [1] * x.ndim
    shape[dim] = size
    share = (source - low).reshape(shape)
    first, second = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp(max=x.shape[dim] - 1))
    return first + (second - first) * share


def _resize(attributes: dict[str, Any]) -> Operation:
    centered = bool(attributes.get("half_pixel_centers", {}).get("b"))
    assert not attributes["align_corners"].get("b"), "none of the graphs aligns corners"

    def run(values: Values) -> torch.Tensor:
        height, width = values[1].tolist()
        if not centered:
            return _along(_along(values[0], 1, height), 2, width)
        return F.interpolate(values[0].permute(0, 3, 1, 2), (height, width), mode="bilinear").permute(0, 2, 3, 1)

    return run


def _pad(values: Values) -> torch.Tensor:
    pads = values[1].flip(0).flatten().tolist()
    return F.pad(values[0], pads, value=float(values[2]) if len(values) > 2 else 0.0)


def _depth_to_space(attributes: dict[str, Any]) -> Operation:
    block = int(attributes["block_size"]["i"])

    def run(values: Values) -> torch.Tensor:
        n, h, w, c = values[0].shape
        x = values[0].reshape(n, h, w, block, block, c // block**2).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(n, h * block, w * block, c // block**2)

    return run


def _slice(attributes: dict[str, Any]) -> Operation:
    """Return a slice of a one-dimensional tensor, which is how graphs read shapes."""
    single = bool(int(attributes.get("shrink_axis_mask", {}).get("i", 0)))

    def run(values: Values) -> torch.Tensor:
        start, end, step = (int(v) for v in values[1:])
        part = values[0][start:end:step]
        return part[0] if single else part

    return run


def _batch_norm(attributes: dict[str, Any]) -> Operation:
    epsilon = float(attributes["epsilon"]["f"])

    def run(values: Values) -> torch.Tensor:
        x, gamma, beta, mean, variance = values
        scale = gamma * torch.rsqrt(variance + epsilon)
        return x * scale + (beta - mean * scale)

    return run


_MAKERS: dict[str, Callable[[dict[str, Any]], Operation]] = {
    **dict.fromkeys(("Conv2D", "_FusedConv2D"), lambda a: _convolution(a, False)),
    **dict.fromkeys(("DepthwiseConv2dNative", "FusedDepthwiseConv2dNative"), lambda a: _convolution(a, True)),
    **dict.fromkeys(("Add", "AddV2", "BiasAdd"), lambda a: lambda v: v[0] + v[1]),
    **dict.fromkeys(("Pad", "PadV2"), lambda a: _pad),
    "MaxPool": _max_pool,
    "ResizeBilinear": _resize,
    "DepthToSpace": _depth_to_space,
    "LeakyRelu": lambda a: lambda v: F.leaky_relu(v[0], float(a["alpha"]["f"])),
    "Mul": lambda a: lambda v: v[0] * v[1],
    "AddN": lambda a: lambda v: reduce(torch.add, v),
    "FusedBatchNorm": _batch_norm,
    "Sub": lambda a: lambda v: v[0] - v[1],
    "Cast": lambda a: lambda v: v[0].float(),
    "Shape": lambda a: lambda v: torch.tensor(v[0].shape),
    "StridedSlice": _slice,
    "Relu": lambda a: lambda v: F.relu(v[0]),
    "Relu6": lambda a: lambda v: F.relu6(v[0]),
    "Sigmoid": lambda a: lambda v: torch.sigmoid(v[0]),
    "Identity": lambda a: lambda v: v[0],
    "Transpose": lambda a: lambda v: v[0].permute(v[1].tolist()),
    "ConcatV2": lambda a: lambda v: torch.cat(list(v[:-1]), int(v[-1])),
    "SplitV": lambda a: lambda v: torch.split(v[0], v[1].tolist(), int(v[2])),
    "Mean": lambda a: lambda v: v[0].mean(v[1].flatten().tolist(), keepdim=bool(a["keep_dims"].get("b"))),
}


class Graph:
    """The part of a TensorFlow.js graph from its input to chosen nodes."""

    def __init__(
        self, topology: Path, weights: Sequence[Path], outputs: Sequence[str], side: int = 0, start: str = ""
    ) -> None:
        """Read a graph.

        Args:
            topology: The JSON file.
            weights: The weight files in order.
            outputs: Names of nodes; `name:1` is the second result of a node.
            side: Side of the square image that the sizes inside the graph are for; for other shapes they are scaled.
            start: The node that the batch replaces (default: the placeholder).
        """
        content = json.loads(topology.read_text(encoding="utf-8"))
        self._nodes = {node["name"]: node for node in content["modelTopology"]["node"]}
        self._constants = _read_weights(
            content["weightsManifest"][0]["weights"], b"".join(file.read_bytes() for file in weights)
        )
        self._outputs, self._side = tuple(outputs), side
        self.input = start or next(name for name, node in self._nodes.items() if node["op"] == "Placeholder")
        self._steps: list[tuple[str, tuple[str, ...], Operation]] = []
        self._planned = {self.input, *self._constants}
        for name in outputs:
            self._plan(name.split(":")[0])
        resizes = {inputs[1] for name, inputs, _ in self._steps if self._nodes[name]["op"] == "ResizeBilinear"}
        self._sizes = {name: self._constants[name] for name in resizes & set(self._constants)}

    def constant(self, name: str) -> np.ndarray:
        """Return a constant of the graph."""
        return self._constants[name].numpy()

    def _plan(self, name: str) -> None:
        """Append the nodes that a node depends on, then the node."""
        if name in self._planned:
            return
        node = self._nodes[name]
        inputs = tuple(i for i in node.get("input", ()) if not i.startswith("^"))
        for needed in inputs:
            self._plan(needed.split(":")[0])
        self._steps.append((name, inputs, _MAKERS[node["op"]](node.get("attr", {}))))
        self._planned.add(name)

    def _sizes_for(self, batch: np.ndarray) -> dict[str, torch.Tensor]:
        """Return the sizes that the graph resizes to, for a batch (B, H, W, 3) or (B, 3, H, W)."""
        if not self._side:
            return {}
        sides = torch.tensor([s for s in batch.shape[1:] if s != 3], dtype=torch.float64)
        return {name: (size * sides / self._side).round().int() for name, size in self._sizes.items()}

    @torch.inference_mode()
    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        """Return the outputs of the chosen nodes for a batch in the layout of the graph's input."""
        values: dict[str, torch.Tensor | tuple[torch.Tensor, ...]] = {
            **self._constants,
            **self._sizes_for(batch),
            self.input: torch.from_numpy(batch),
        }

        def value(name: str) -> torch.Tensor:
            base, _, number = name.partition(":")
            found = values[base]
            return found[int(number or 0)] if isinstance(found, tuple) else found

        with one_thread():
            for name, inputs, operation in self._steps:
                values[name] = operation([value(i) for i in inputs])
        return [value(name).numpy() for name in self._outputs]


def _read_weights(entries: Sequence[dict[str, Any]], data: bytes) -> dict[str, torch.Tensor]:
    """Return name -> tensor; float16 becomes float32, which torch's CPU kernels support."""
    found, at = {}, 0
    for entry in entries:
        kind = _TYPES[entry.get("quantization", {}).get("dtype", entry["dtype"])]
        count = math.prod(entry["shape"])
        array = np.frombuffer(data, kind, count, at).reshape(entry["shape"])
        at += array.nbytes
        found[entry["name"]] = torch.from_numpy(array.astype(_TYPES[entry["dtype"]]))
    assert at == len(data), "the file's hash was checked"
    return found
