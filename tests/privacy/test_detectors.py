"""Detectors on what is known: tiles cover the picture, and drawn people are found where they are."""

import numpy as np
import pytest

from ppma.privacy.detectors.movenet import MoveNet
from ppma.privacy.detectors.opencv_models import CenterFace
from ppma.privacy.detectors.tiles import network_size, tile_batch, tiles
from ppma.privacy.detectors.weights import find
from ppma.synthetic.clip import ClipSpec, render, sample_clip


@pytest.mark.parametrize("size", [(240, 320), (256, 340), (720, 1280), (1080, 1920), (91, 161)])
def test_tiles_cover_the_picture_and_overlap(size):
    seen = np.zeros(size, int)
    for tile_HWC, x, y in tiles(np.zeros((*size, 3), np.uint8)):
        height, width = tile_HWC.shape[:2]
        seen[y : y + height, x : x + width] += 1
        assert max(height, width) <= 500
    assert seen.min() >= 1 and seen.max() == 4


def test_networks_see_the_pictures_proportions():
    assert network_size(256, 340, 416) == (416, 320)
    assert network_size(1080, 1920, 416) == (416, 224)
    assert network_size(64, 64, 416) == (128, 128), "never enlarged more than twice"
    assert tile_batch(np.zeros((256, 340, 3), np.uint8), 320)[0].shape == (5, 256, 320, 3)
    assert tile_batch(np.zeros((100, 1000, 3), np.uint8), 300, multiple=300)[0].shape[1:] == (300, 300, 3), (
        "a square one"
    )
    assert len(tile_batch(np.zeros((100, 160, 3), np.uint8), 320)[0]) == 1, "enlarged twice as a whole"


@pytest.fixture(scope="module")
def drawn():
    """A frame with one drawn person, and whose pixels are theirs."""
    address = ClipSpec(seed=3, split="train", class_name="walk", number=0, size=224, frames=2, fps=8.0, people=1)
    return next(iter(render(sample_clip(address))))


def test_a_drawn_person_is_found_where_they_are(drawn, person_weights):
    boxes_N5 = MoveNet(find("movenet", person_weights))(drawn.picture_PP3)
    x0, y0, x1, y1 = boxes_N5[boxes_N5[:, 4].argmax()][:4]
    rows, columns = np.flatnonzero(drawn.mask_PP.any(1)), np.flatnonzero(drawn.mask_PP.any(0))
    middle = (columns[0] + columns[-1]) / 2, (rows[0] + rows[-1]) / 2
    assert x0 < middle[0] < x1 and y0 < middle[1] < y1 and (y1 - y0) > 0.5 * (rows[-1] - rows[0])


def test_a_face_lies_in_the_upper_part_of_a_person(drawn, person_weights):
    boxes_N5 = CenterFace(find("centerface", person_weights))(drawn.picture_PP3)
    rows = np.flatnonzero(drawn.mask_PP.any(1))
    assert len(boxes_N5) and (boxes_N5[:, 3] < rows[0] + 0.4 * (rows[-1] - rows[0])).any()


def test_nobody_is_found_where_nothing_is(person_weights):
    grey = np.full((120, 160, 3), 128, np.uint8)
    assert MoveNet(find("movenet", person_weights))(grey).shape == (0, 5)
    assert CenterFace(find("centerface", person_weights))(grey).shape == (0, 5)
