"""SAM 2 outlines the people in boxes, here with stand-ins of its two files: what is bright in a box is a person."""

import hashlib

import numpy as np
import onnx
import pytest
from onnx import parser

from ppma.config.errors import InputError
from ppma.privacy.detectors.boxes import NONE_05
from ppma.privacy.detectors.sam2 import Sam2
from ppma.privacy.detectors.tools import find_files
from ppma.privacy.removal.command import RemovalConfig
from ppma.privacy.removal.masks import raw_mask
from ppma.privacy.removal.plugins import PLUGINS

ENCODER = """
<ir_version: 10, opset_import: ["": 18]>
encoder (float[1,3,64,64] image)
=> (float[1,3,64,64] high_res_feats_0, float[1,3,64,64] high_res_feats_1, float[1,3,16,16] image_embed) {
    high_res_feats_0 = Identity (image)
    high_res_feats_1 = Identity (image)
    image_embed = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (image)
}
"""
DECODER = """
<ir_version: 10, opset_import: ["": 18]>
decoder (
    float[1,3,16,16] image_embed, float[1,3,64,64] high_res_feats_0, float[1,3,64,64] high_res_feats_1,
    float[N,P,2] point_coords, float[N,P] point_labels, float[N,1,16,16] mask_input, float[M] has_mask_input
) => (float[N,2,16,16] masks, float[N,2] iou_predictions)
<float white = {2.4392}, float tolerance = {0.01}, float first = {0}, float end = {64}, float step = {4}, float center = {2},
 float gain = {20}, float offset = {10}, float[1,2] overlaps = {0.2, 0.9}, float[1,2] corners = {2, 3},
 int64[2] row = {1, -1}, int64[4] column = {1, 1, -1, 1}, int64[1] channels = {1}> {
    sides = Range (first, end, step)
    x = Add (sides, center)
    y = Reshape (x, column)
    box = Reshape (point_coords, row)
    x0, y0, x1, y1 = Split <axis = 1, num_outputs = 4> (box)
    right = Greater (x, x0)
    left = Less (x, x1)
    below = Greater (y, y0)
    above = Less (y, y1)
    in_columns = And (right, left)
    in_rows = And (below, above)
    in_box = And (in_columns, in_rows)
    lightness = ReduceMean <keepdims = 1> (image_embed, channels)
    off = Sub (lightness, white)
    distance = Abs (off)
    is_white = Less (distance, tolerance)
    is_corner = Equal (point_labels, corners)
    corner = Cast <to = 1> (is_corner)
    both = ReduceMin <keepdims = 0> (corner)
    inside = And (in_box, is_white)
    person = Cast <to = 1> (inside)
    shown = Mul (person, both)
    scaled = Mul (shown, gain)
    best = Sub (scaled, offset)
    other = Neg (best)
    masks = Concat <axis = 1> (other, best)
    iou_predictions = Sub (overlaps, has_mask_input)
}
"""


def save(path, text):
    onnx.save(parser.parse_model(text), path)
    return path


@pytest.fixture
def files(tmp_path):
    return save(tmp_path / "encoder.onnx", ENCODER), save(tmp_path / "decoder.onnx", DECODER)


def scene():
    """Return a frame with two white people, and the box of each."""
    frame_HWC = np.full((32, 64, 3), 90, np.uint8)
    frame_HWC[8:24, 16:28] = frame_HWC[4:28, 40:52] = 255
    return frame_HWC, np.array([[14, 6, 30, 26, 0.9], [38, 2, 54, 30, 0.9]], np.float32)


def test_people_are_outlined_in_the_boxes_given(files):
    frame_HWC, boxes_N5 = scene()
    segment = Sam2(*files)
    first_HW, both_HW = segment(frame_HWC, boxes_N5[:1]), segment(frame_HWC, boxes_N5)
    assert first_HW.dtype == np.float32 and first_HW.shape == (32, 64)
    assert first_HW[12:20, 20:24].min() > 0.9 and both_HW[12:20, 20:24].min() > 0.9
    assert both_HW[8:24, 44:48].min() > 0.9 and first_HW[:, 34:].max() < 0.1, "each box is outlined alone"
    assert both_HW[:, :12].max() < 0.1 and both_HW[:4, :34].max() < 0.1
    assert not segment(frame_HWC, NONE_05).any()


def test_the_body_below_a_face_is_outlined(files):
    face_15 = np.array([[20, 8, 24, 10, 0.9]], np.float32)
    mask_HW = raw_mask(scene()[0], NONE_05, face_15, Sam2(*files), "boxes")
    assert mask_HW[14:18, 20:24].all() and not mask_HW[:, 34:].any()


def test_both_files_are_named_by_the_user(files, tmp_path):
    given = [
        f"sam2-{part}={path}#{hashlib.sha256(path.read_bytes()).hexdigest()}"
        for part, path in zip(("encoder", "decoder"), files)
    ]
    models = find_files([PLUGINS["sam2"]], tmp_path, given)
    assert PLUGINS["sam2"].load(tmp_path, models)(*scene()).max() > 0.9
    with pytest.raises(InputError, match="sam2-decoder"):
        find_files([PLUGINS["sam2"]], tmp_path, given[:1])


@pytest.mark.parametrize(
    ("part", "old", "new", "reason"),
    [
        (0, "float[1,3,64,64] image)", "float[1,3,64,32] image)", "S x S"),
        (0, "float[1,3,64,64] image)", "float16[1,3,64,64] image)", "float16"),
        (0, "image_embed", "embedding", "embedding"),
        (1, "mask_input", "mask", "mask_input"),
        (1, "has_mask_input\n)", "has_mask_input, int64[2] orig_im_size\n)", "orig_im_size"),
        (1, "iou_predictions", "scores", "scores"),
    ],
)
def test_files_of_another_layout_are_refused(files, part, old, new, reason):
    text = (ENCODER, DECODER)[part].replace(old, new)
    save(files[part], text)
    with pytest.raises(InputError, match=reason) as refused:
        Sam2(*files)
    assert str(files[part]) in str(refused.value) and "\n" not in str(refused.value)


def test_swapped_or_broken_files_are_refused(files):
    encoder, decoder = files
    with pytest.raises(InputError, match="is not the image encoder"):
        Sam2(decoder, encoder)
    decoder.write_bytes(b"no model")
    with pytest.raises(InputError, match="is not the mask decoder"):
        Sam2(encoder, decoder)


def test_published_masks_need_a_segmenter_without_boxes(tmp_path):
    with pytest.raises(InputError, match="sam2"):
        RemovalConfig(source=tmp_path, out=tmp_path / "out", tools="paper", inpainter="median", segmenter="sam2")
