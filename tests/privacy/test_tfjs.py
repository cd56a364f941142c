"""Hand-written TensorFlow.js graphs against loops: padding, strides, both ways to resize, unused nodes."""

import base64
import json

import numpy as np
import pytest

from ppma.privacy.detectors.tfjs import Graph

RNG = np.random.default_rng(0)


def word(text):
    return {"s": base64.b64encode(text.encode()).decode()}


def ints(*values):
    return {"list": {"i": [str(v) for v in values]}}


def graph(tmp_path, nodes, constants, outputs, **more):
    """Write and load a model of these nodes, with float weights stored as float16."""
    entries, data = [], b""
    for name, array in constants.items():
        half = array.dtype == np.float32
        entry = {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)}
        entries.append(entry | ({"quantization": {"dtype": "float16"}} if half else {}))
        data += array.astype(np.float16 if half else np.int32).tobytes()
    every = [{"name": "x", "op": "Placeholder"}, *nodes, {"name": "not run", "op": "NonMaxSuppressionV3"}]
    content = {"modelTopology": {"node": every}, "weightsManifest": [{"weights": entries}]}
    (tmp_path / "model.json").write_text(json.dumps(content))
    parts = [tmp_path / "first.bin", tmp_path / "second.bin"]
    for part, content in zip(parts, (data[: len(data) // 3], data[len(data) // 3 :])):
        part.write_bytes(content)
    return Graph(tmp_path / "model.json", parts, outputs, **more)


def by_loops(x_HWC, kernel_hwio, stride):
    """Convolve with TensorFlow's SAME padding, whose odd pixel is at the end."""
    h, w, _, out = kernel_hwio.shape
    rows, columns = (-(-side // stride) for side in x_HWC.shape[:2])
    missing = [max((n - 1) * stride + k - side, 0) for n, k, side in zip((rows, columns), (h, w), x_HWC.shape)]
    padded = np.pad(x_HWC, [(m // 2, m - m // 2) for m in missing] + [(0, 0)])
    y = np.zeros((rows, columns, out))
    for r in range(rows):
        for c in range(columns):
            cut = padded[r * stride : r * stride + h, c * stride : c * stride + w]
            y[r, c] = np.einsum("hwi,hwio->o", cut, kernel_hwio)
    return y


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_a_fused_convolution_is_the_loops(tmp_path, side, size):
    kernel = RNG.normal(size=(size, size, 3, 5)).astype(np.float16).astype(np.float32)
    bias = np.arange(5, dtype=np.float32)
    attributes = {
        "strides": ints(1, 2, 2, 1), "dilations": ints(1, 1, 1, 1), "padding": word("SAME"),
        "fused_ops": {"list": {"s": [word("BiasAdd")["s"], word("Relu")["s"]]}},
    }  # fmt: skip
    node = {"name": "y", "op": "_FusedConv2D", "input": ["x", "k", "b"], "attr": attributes}
    x = RNG.normal(size=(2, side, side, 3)).astype(np.float32)
    (y,) = graph(tmp_path, [node], {"k": kernel, "b": bias}, ["y"])(x)
    wanted = np.stack([np.maximum(by_loops(one, kernel, 2) + bias, 0) for one in x])
    np.testing.assert_allclose(y, wanted, atol=1e-5)


def test_a_depthwise_convolution_keeps_channels_apart(tmp_path):
    kernel = RNG.normal(size=(3, 3, 4, 1)).astype(np.float16).astype(np.float32)
    attributes = {"strides": ints(1, 1, 1, 1), "dilations": ints(1, 1, 1, 1), "padding": word("SAME")}
    node = {"name": "y", "op": "DepthwiseConv2dNative", "input": ["x", "k"], "attr": attributes}
    x = RNG.normal(size=(1, 6, 7, 4)).astype(np.float32)
    (y,) = graph(tmp_path, [node], {"k": kernel}, ["y"])(x)
    for c in range(4):
        np.testing.assert_allclose(
            y[0, ..., c : c + 1], by_loops(x[0, ..., c : c + 1], kernel[:, :, c : c + 1], 1), atol=1e-5
        )


def test_resizing_in_both_forms(tmp_path):
    x = RNG.normal(size=(1, 5, 6, 2)).astype(np.float32)
    for centered in (False, True):
        attributes = {"align_corners": {"b": False}, "half_pixel_centers": {"b": centered}}
        node = {"name": "y", "op": "ResizeBilinear", "input": ["x", "size"], "attr": attributes}
        (y,) = graph(tmp_path, [node], {"size": np.array([10, 12], np.int32)}, ["y"])(x)
        if centered:
            np.testing.assert_allclose(y[:, 0, 0], x[:, 0, 0], atol=1e-6)
            # pixels have middles: every other row is three quarters of the nearer one
            tall = 0.25 * x[:, :-1] + 0.75 * x[:, 1:]
            np.testing.assert_allclose(y[:, 2::2, 2::2], 0.25 * tall[:, :, :-1] + 0.75 * tall[:, :, 1:], atol=1e-6)
        else:
            np.testing.assert_allclose(y[:, ::2, ::2], x, atol=1e-6)  # the older form keeps every pixel where it was
            np.testing.assert_allclose(y[:, 1:-1:2, ::2], (x[:, :-1] + x[:, 1:]) / 2, atol=1e-6)


def test_the_rest_of_the_operations(tmp_path):
    x = RNG.normal(size=(1, 4, 4, 8)).astype(np.float32)
    pool = {"ksize": ints(1, 3, 3, 1), "strides": ints(1, 2, 2, 1), "padding": word("SAME")}
    nodes = [
        {"name": "deep", "op": "DepthToSpace", "input": ["x"], "attr": {"block_size": {"i": "2"}}},
        {"name": "pool", "op": "MaxPool", "input": ["x"], "attr": pool},
        {"name": "pad", "op": "Pad", "input": ["x", "pads"]},
        {"name": "cut", "op": "SplitV", "input": ["x", "sizes", "last"]},
        {"name": "glued", "op": "ConcatV2", "input": ["cut:1", "cut", "last"]},
        {"name": "mean", "op": "Mean", "input": ["x", "sides"], "attr": {"keep_dims": {"b": True}}},
        {"name": "turned", "op": "Transpose", "input": ["x", "order"]},
        {"name": "leaky", "op": "LeakyRelu", "input": ["x"], "attr": {"alpha": {"f": 0.1}}},
    ]
    constants = {
        "pads": np.array([[0, 0], [1, 2], [3, 0], [0, 0]]), "sizes": np.array([3, 5]), "last": np.array(3),
        "sides": np.array([1, 2]), "order": np.array([0, 3, 1, 2]),
    }  # fmt: skip
    outputs = [node["name"] for node in nodes if node["name"] != "cut"]
    run = graph(
        tmp_path, nodes, {name: array.astype(np.int32) for name, array in constants.items()}, [*outputs, "cut:1"]
    )
    deep, pool, pad, glued, mean, turned, leaky, cut = run(x)
    assert (deep[0, 3, 2] == x[0, 1, 1, 4:6]).all() and (deep[0, 2, 3] == x[0, 1, 1, 2:4]).all()
    assert (pool[0, 0, 0] == x[0, :3, :3].max((0, 1))).all() and (pool[0, 1, 1] == x[0, 2:, 2:].max((0, 1))).all()
    assert pad.shape == (1, 7, 7, 8) and (pad[:, 1:5, 3:] == x).all() and pad.sum() == pytest.approx(x.sum(), abs=1e-4)
    assert (cut == x[..., 3:]).all() and (glued == np.concatenate([x[..., 3:], x[..., :3]], -1)).all()
    np.testing.assert_allclose(mean, x.mean((1, 2), keepdims=True), atol=1e-6)
    assert (turned == x.transpose(0, 3, 1, 2)).all()
    np.testing.assert_allclose(leaky, np.where(x > 0, x, 0.1 * x), atol=1e-6)


def test_sizes_inside_a_graph_follow_the_picture(tmp_path):
    attributes = {"align_corners": {"b": False}, "half_pixel_centers": {"b": True}}
    nodes = [
        {"name": "shift", "op": "Sub", "input": ["x", "mean"]},
        {"name": "y", "op": "ResizeBilinear", "input": ["shift", "size"], "attr": attributes},
        {"name": "shape", "op": "Shape", "input": ["y"]},
        {"name": "height", "op": "StridedSlice", "input": ["shape", "one", "two", "one"]},
        {"name": "cast", "op": "Cast", "input": ["height"]},
    ]  # fmt: skip
    constants = {
        "size": np.array([4, 4], np.int32), "one": np.array([1], np.int32), "two": np.array([2], np.int32), "mean": np.ones(3, np.float32),
    }  # fmt: skip
    run = graph(tmp_path, nodes, constants, ["y", "cast"], side=8)
    for height, width in ((8, 8), (6, 16)):
        y, cast = run(np.ones((1, height, width, 3), np.float32))
        assert y.shape == (1, height // 2, width // 2, 3) and cast == height // 2 and not y.any()


def test_a_graph_may_start_after_its_placeholder(tmp_path):
    """An older graph: strings as bytes, a separate batch norm."""
    names = ("gamma", "beta", "mean", "variance")
    kernel = np.zeros((1, 1, 2, 2), np.float32) + np.eye(2, dtype=np.float32)
    attributes = {
        "strides": ints(1, 1, 1, 1), "dilations": ints(1, 1, 1, 1), "padding": {"s": list(b"SAME")},
    }  # fmt: skip
    nodes = [
        {"name": "entry", "op": "NotKnown", "input": ["x"]},
        {"name": "same", "op": "Conv2D", "input": ["entry", "kernel"], "attr": attributes},
        {"name": "biased", "op": "BiasAdd", "input": ["same", "beta"]},
        {"name": "sum", "op": "AddN", "input": ["entry", "biased", "entry"]},
        {"name": "y", "op": "FusedBatchNorm", "input": ["sum", *names], "attr": {"epsilon": {"f": 0.5}}},
    ]
    gamma, beta, mean, variance = (np.array(v, np.float32) for v in ([1, 2], [0.5, 0], [3, 1], [1.5, 3.5]))
    constants = {"kernel": kernel, "gamma": gamma, "beta": beta, "mean": mean, "variance": variance}
    x = RNG.normal(size=(1, 3, 4, 2)).astype(np.float32)
    (y,) = graph(tmp_path, nodes, constants, ["y"], start="entry")(x)
    wanted = gamma * (3 * x + beta - mean) / np.sqrt(variance + 0.5) + beta
    np.testing.assert_allclose(y, wanted, atol=1e-5)
