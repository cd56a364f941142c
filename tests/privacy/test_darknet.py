"""A network of random weights with every kind of section, against OpenCV's reader of the same files."""

import cv2
import numpy as np

from ppma.privacy.detectors import darknet

CONVOLUTION = "[convolutional]\n{norm}filters={filters}\nsize={size}\nstride={stride}\npad=1\nactivation={activation}\n"
YOLO = "[yolo]\nmask={mask}\nanchors = 10,14, 23,27\nclasses=1\nnum=2\n"


def layer(filters, size=3, stride=1, norm=True):
    kinds = ("batch_normalize=1\n", "leaky") if norm else ("", "linear")
    return CONVOLUTION.format(norm=kinds[0], filters=filters, size=size, stride=stride, activation=kinds[1])


def test_a_network_is_opencvs(tmp_path):
    cfg = "".join([
        "[net]\nwidth=32\nheight=32\nchannels=3 # comment\n", layer(4), "[maxpool]\nsize=2\nstride=2\n", layer(6, stride=2),
        "[maxpool]\nsize=2\nstride=1\n", layer(6, size=1, norm=False), YOLO.format(mask=1), "[route]\nlayers = -3\n",
        "[upsample]\nstride=2\n", "[route]\nlayers = -1, 1\n", layer(6, norm=False), YOLO.format(mask=0),
    ])  # fmt: skip
    rng = np.random.default_rng(0)
    counts = [
        4 * 4 + 4 * 27,
        6 * 4 + 6 * 36,
        6 + 36,
        6 + 6 * 90,
    ]  # of each convolution: 4 or 1 per filter, and the kernel
    weights = rng.uniform(0.1, 1, sum(counts)).astype(np.float32)
    (tmp_path / "n.cfg").write_text(cfg)
    (tmp_path / "n.weights").write_bytes(np.array([0, 2, 0, 0, 0], np.int32).tobytes() + weights.tobytes())
    network, heads = darknet.load(tmp_path / "n.cfg", tmp_path / "n.weights")
    assert [head.anchors_A2.tolist() for head in heads] == [[[23, 27]], [[10, 14]]]
    images = rng.uniform(0, 1, (2, 3, 64, 32)).astype(np.float32)
    theirs = cv2.dnn.readNetFromDarknet(str(tmp_path / "n.cfg"), str(tmp_path / "n.weights"))
    theirs.setInput(images)
    for ours, wanted in zip(network(images), theirs.forward(["conv_4", "conv_9"])):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5)
