"""Masks: generous around boxes, joined over time, kept on disk to the bit."""

import numpy as np
import pytest

from ppma.privacy.detectors.boxes import NONE_05
from ppma.privacy.removal.masks import Spool, dilation_pixels, hidden, published_mask, raw_mask

FRAME = np.zeros((60, 80, 3), np.uint8)
BOX = np.array([[30, 10, 50, 50, 0.9]], np.float32)


def nothing(frame_HWC):
    return np.zeros(frame_HWC.shape[:2], np.float32)


def everything(frame_HWC):
    return np.ones(frame_HWC.shape[:2], np.float32)


class Alone:
    """A segmenter that needs no boxes, and takes everything for people."""

    whole_frame = True

    def __init__(self):
        self.calls = 0

    def __call__(self, frame_HWC):
        self.calls += 1
        return everything(frame_HWC)


nothing.whole_frame = everything.whole_frame = False


def test_no_box_no_mask_whatever_the_segmenter_says():
    assert not raw_mask(FRAME, NONE_05, NONE_05, everything).any()


def test_a_box_is_hidden_even_where_the_segmenter_sees_nobody():
    mask_HW = raw_mask(FRAME, BOX, NONE_05, nothing)
    assert mask_HW[10:51, 40].all() and mask_HW[30, 30:50].all() and not mask_HW[:, :25].any()


def test_the_segmenter_adds_within_reach_of_a_box_only():
    def beside(frame_HWC):
        return everything(frame_HWC) if frame_HWC.shape != FRAME.shape else nothing(frame_HWC)

    beside.whole_frame = False

    mask_HW = raw_mask(FRAME, BOX, NONE_05, beside)
    assert mask_HW[4:56, 26:54].all() and not mask_HW[:, :26].any() and not mask_HW[:, 56:].any()


def test_faces_without_a_segmenter_hide_heads_alone():
    face = np.array([[38, 20, 46, 30, 0.9]], np.float32)
    mask_HW = raw_mask(FRAME, BOX, face, None)
    assert mask_HW[20:30, 38:46].all() and not mask_HW[40:].any()


def test_boxes_that_leave_the_picture_are_no_trouble():
    boxes = np.array([[-20, -20, 5, 5, 0.9], [78, 58, 200, 200, 0.9], [300, 300, 310, 310, 0.9]], np.float32)
    assert raw_mask(FRAME, boxes, boxes, everything).shape == (60, 80)


def test_a_segmenter_that_needs_no_box_looks_at_all():
    everywhere = Alone()
    assert raw_mask(FRAME, NONE_05, NONE_05, everywhere).all() and everywhere.calls == 1
    raw_mask(FRAME, BOX, BOX, everywhere)
    assert everywhere.calls == 2, "once a picture, not once a box"


def test_the_published_mask_is_the_map_cut_at_a_half_and_grown_four_pixels(tmp_path):
    def half(frame_HWC):
        probability_HW = np.full(frame_HWC.shape[:2], 0.5, np.float32)
        probability_HW[30, 40] = 0.51
        return probability_HW

    mask_HW = published_mask(FRAME, half)
    assert mask_HW.sum() == 1
    spool = Spool(tmp_path)
    spool.append(mask_HW)
    spool.append(np.zeros_like(mask_HW))
    rows, columns = np.where(hidden(spool, 0, masks="published"))
    assert set(zip(rows, columns)) == {
        (30 + y, 40 + x) for y in range(-4, 5) for x in range(-4, 5) if abs(x) + abs(y) <= 4
    }
    assert not hidden(spool, 1, masks="published").any() and spool.filled == 1
    spool.close()


def test_a_picture_that_is_nearly_hidden_is_hidden_whole(tmp_path):
    spool = Spool(tmp_path)
    for rows in (30, 36):
        mask_HW = np.zeros((40, 40), np.uint8)
        mask_HW[:rows] = 1
        spool.append(mask_HW)
    assert not hidden(spool, 0, after=0).all() and hidden(spool, 1, before=0).all()
    spool.close()


def test_the_spool_gives_back_what_went_in_in_any_order(tmp_path):
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 2, (6, 13, 17), dtype=np.uint8)
    spool = Spool(tmp_path)
    for mask_HW in masks:
        spool.append(mask_HW)
    assert len(spool) == 6 and all((spool.read(t) == masks[t]).all() for t in (5, 0, 3, 3, 1))
    assert not list(tmp_path.iterdir()), "it has no name that a kill could leave behind"
    spool.close()


@pytest.mark.parametrize("t", [3, 5, 7])
def test_what_is_hidden_joins_frames_around_and_grows(tmp_path, t):
    spool = Spool(tmp_path)
    for i in range(11):
        mask_HW = np.zeros((40, 40), np.uint8)
        mask_HW[20, 20] = i == 5
        spool.append(mask_HW)
    hidden_HW, radius = hidden(spool, t), dilation_pixels(40, 40)
    assert hidden_HW[20, 20 - radius] and not hidden_HW[20, 20 - radius - 1]
    assert not hidden(spool, 2).any() and not hidden(spool, 8).any()
    spool.close()
