"""Build a network node by node as ONNX, and run it in ONNX Runtime.

    Nodes: add(), constant()  ->  to_onnx()  ->  Network  ->  arrays in, arrays out

A network runs on a GPU if the package onnxruntime-gpu is installed. On a CPU it runs on one thread, since clips are
spread over processes, and one picture at a time, whose maps fit into a core's cache.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ppma.config.errors import InputError

_OPSET, _IR = 18, 10
"""ONNX releases that onnxruntime 1.20 and later read."""
FLOAT, INT64 = 1, 7
"""ONNX's numbers of these types."""


class Nodes:
    """The nodes and constants of an ONNX graph, in the order in which they run."""

    def __init__(self) -> None:
        """Begin with no node."""
        self.nodes: list[tuple[str, Sequence[str], Sequence[str], dict[str, Any]]] = []
        """Operation, inputs, results and attributes of each node."""
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, array: ArrayLike, name: str = "") -> str:
        """Add a constant; return its name, given or made up."""
        name = name or f"constant {len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def add(self, op: str, inputs: Sequence[str], output: str = "", outputs: int = 1, **attributes: Any) -> str:
        """Add a node; return the name of its result, given or made up. A second result is `name:1`."""
        output = output or f"{op} {len(self.nodes)}"
        names = [output, *(f"{output}:{number}" for number in range(1, outputs))]
        self.nodes.append((op, inputs, names, attributes))
        return output


def to_onnx(nodes: Nodes, image: str, outputs: Sequence[str], sizes: Sequence[str] = ()) -> bytes:
    """Return the nodes as an ONNX file.

    Args:
        nodes: The graph.
        image: Name of its input, a float32 batch of four dimensions.
        outputs: Names of the results to return.
        sizes: Names of further inputs, each a height and a width.

    Raises:
        InputError: The package onnx is missing.
    """
    onnx = _package("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    inputs = [helper.make_tensor_value_info(image, FLOAT, [None] * 4)]
    graph = helper.make_graph(
        [helper.make_node(op, names, results, **more) for op, names, results, more in nodes.nodes],
        "detector",
        inputs + [helper.make_tensor_value_info(name, INT64, [2]) for name in sizes],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in nodes.constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    return model.SerializeToString()


def on_gpu() -> bool:
    """Return True if networks run on a GPU; False where ONNX Runtime is missing, which not every tool needs."""
    return (
        find_spec("onnxruntime") is not None
        and "CUDAExecutionProvider" in _package("onnxruntime").get_available_providers()
    )


def _package(name: str) -> Any:
    """Import a package of the extra `privacy`; InputError if it is missing."""
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(f"detectors need {error.name}: pip install onnx onnxruntime") from None


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return the probability of a logit."""
    return 1 / (1 + np.exp(-np.clip(x, -50, 50)))


class Network:
    """A network in ONNX Runtime, whose first input is a float32 batch of four dimensions."""

    def __init__(self, onnx: bytes) -> None:
        """Load the content of an ONNX file.

        Raises:
            InputError: The package onnxruntime is missing.
            ValueError: ONNX Runtime cannot run this, or the first input has another type.
        """
        onnxruntime = _package("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors: a user's export may cost hundreds of warnings
        providers = ["CUDAExecutionProvider"] * on_gpu() + ["CPUExecutionProvider"]
        ort = onnxruntime.capi.onnxruntime_pybind11_state
        try:
            self._session = onnxruntime.InferenceSession(onnx, options, providers=providers)
        except (ort.Fail, ort.InvalidArgument, ort.InvalidGraph, ort.InvalidProtobuf, ort.NotImplemented) as error:
            raise ValueError(str(error)) from None
        self._image = self._session.get_inputs()[0]
        gpu = "CUDAExecutionProvider" in self._session.get_providers()  # not where CUDA's libraries are missing
        self._batches = gpu and not isinstance(self._image.shape[0], int)  # a user's file may take one picture only
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]
        if self._image.type != "tensor(float)":
            raise ValueError(f"takes {self._image.type} for {self._image.name}, not tensor(float)")

    @property
    def side(self) -> int:
        """S of a batch N x 3 x S x S; ValueError if that is not its shape."""
        shape = list(self._image.shape)
        if len(shape) != 4 or shape[2] != shape[3] or not isinstance(shape[3], int):
            raise ValueError(f"takes images of shape {shape}, not 1 x 3 x S x S")
        return shape[3]

    def __call__(self, batch: np.ndarray, more: Mapping[str, np.ndarray] | None = None) -> list[np.ndarray]:
        """Return the results for a batch, float32, and further inputs by name."""
        parts = [batch] if self._batches else np.split(batch, len(batch))
        results = [self._session.run(None, {self._image.name: part, **(more or {})}) for part in parts]
        return results[0] if len(parts) == 1 else [np.concatenate(maps) for maps in zip(*results)]
