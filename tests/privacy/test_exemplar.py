"""Patch-based inpainting: search against brute force, vote against its restatement, textures that continue."""

import cv2
import numpy as np
import pytest

from ppma.privacy.removal import exemplar
from ppma.privacy.removal.exemplar import RADIUS, complete, pull_push, smoothed

WINDOW = np.s_[-RADIUS : RADIUS + 1]


def bricks(height=128, width=160):
    """Return a wall of bricks with grain and bright mortar."""
    rng = np.random.default_rng(4)
    picture = rng.normal((150, 70, 50), 6, (height, width, 3))
    for row, y in enumerate(range(0, height, 12)):
        picture[y : y + 2] = 210
        for x in range(row % 2 * 12, width, 24):
            picture[y : y + 12, x : x + 2] = 210
    return np.clip(picture, 0, 255).astype(np.uint8)


def hole_in(picture, rows=np.s_[40:84], columns=np.s_[50:100]):
    hole = np.zeros(picture.shape[:2], bool)
    hole[rows, columns] = True
    return hole


def patch(level, place):
    return level[place[0] - RADIUS : place[0] + RADIUS + 1, place[1] - RADIUS : place[1] + RADIUS + 1].astype(int)


@pytest.fixture(scope="module")
def level():
    """(values with margin, _Level) of a small picture of smooth blobs, its hole filled smoothly."""
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 255, (10, 12, 3), dtype=np.uint8), (48, 40), interpolation=cv2.INTER_CUBIC)
    hole = hole_in(picture, np.s_[15:25], np.s_[20:30])
    values = exemplar._textured(picture, hole, 5)
    values[hole] = pull_push(values, hole)[hole]
    return exemplar._margin(np.rint(values).astype(np.uint8)), exemplar._Level.of(hole)


def test_the_search_is_close_to_brute_force(level):
    values, each = level
    match, costs = each.anywhere(), np.zeros(len(each.targets_N2), np.int64)
    for turn in range(10):
        exemplar._search(values, each.source_hw, each.targets_N2, match, costs, turn)
    sources = np.stack([patch(values, place) for place in each.sources_M2])
    best = np.array([((sources - patch(values, place)) ** 2).sum((1, 2, 3)).min() for place in each.targets_N2])
    own = [((patch(values, a) - patch(values, b)) ** 2).sum() for a, b in zip(each.targets_N2, match)]
    assert (costs == own).all() and (costs >= best).all()
    assert costs.sum() <= 1.05 * best.sum() and (costs == best).mean() > 0.75


def test_matches_are_inside_the_frame_and_outside_the_hole(level):
    values, each = level
    match, costs = each.anywhere(), np.zeros(len(each.targets_N2), np.int64)
    exemplar._search(values, each.source_hw, each.targets_N2, match, costs, 0)
    margin = np.ones_like(each.hole_hw)
    margin[RADIUS:-RADIUS, RADIUS:-RADIUS] = False
    for y, x in match:
        around = np.s_[y - RADIUS : y + RADIUS + 1, x - RADIUS : x + RADIUS + 1]
        assert not (each.hole_hw | margin)[around].any()


@pytest.mark.parametrize("sharp", [False, True])
def test_the_vote_is_its_plain_restatement(level, sharp):
    values, each = level
    match, trust = each.anywhere(), each.nearness_N
    painted = values.copy()
    exemplar._vote(painted, each.hole_hw, each.targets_N2, match, trust, sharp)
    assert (painted[~each.hole_hw] == values[~each.hole_hw]).all()
    for y, x in np.argwhere(each.hole_hw)[::7]:
        by = y - each.targets_N2[:, 0], x - each.targets_N2[:, 1]
        over = (np.abs(by[0]) <= RADIUS) & (np.abs(by[1]) <= RADIUS)
        words = values[match[over, 0] + by[0][over], match[over, 1] + by[1][over]].astype(float)
        expected = words[trust[over].argmax()] if sharp else np.average(words, axis=0, weights=trust[over])
        assert np.abs(painted[y, x] - expected).max() <= 0.51


def test_a_wall_of_bricks_continues():
    picture = bricks()
    hole = hole_in(picture)
    painted = complete(np.where(hole[..., None], np.uint8(0), picture), hole)
    assert (painted[~hole] == picture[~hole]).all()
    errors = {name: np.abs(p.astype(int) - picture)[hole].mean() for name, p in
              (("pieces", painted), ("smooth", smoothed(picture, hole)))}  # fmt: skip
    assert errors["pieces"] < 0.4 * errors["smooth"], errors
    assert painted[hole].std() > 0.9 * picture[hole].std(), "mortar and bricks, not their mean"


def test_texture_keeps_bricks_sharp(monkeypatch):
    """A third of the wall is out of focus: by color alone, some of its smooth patches would win."""
    picture = bricks(192, 192)
    picture[:60] = cv2.GaussianBlur(picture, None, 6)[:60]
    hole = hole_in(picture, np.s_[80:150], np.s_[50:140])
    with_texture = complete(picture, hole)[hole].std() / picture[hole].std()
    monkeypatch.setattr(exemplar, "TEXTURE_WEIGHT", 0.0)
    without = complete(picture, hole)[hole].std() / picture[hole].std()
    assert with_texture > 0.97 > without


@pytest.mark.parametrize("size", [(1, 2), (5, 200), (37, 53), (120, 160), (480, 480)])
def test_holes_of_any_size_are_filled_from_their_surroundings(size):
    frame, hole = np.full((*size, 3), 90, np.uint8), np.ones(size, bool)
    hole[:, 0] = hole[: size[0] // 8] = hole[:, : size[1] // 8] = False
    frame[hole] = 255
    assert (complete(frame, hole) == 90).all(), "nothing of the 255 seeps in"


@pytest.mark.parametrize("pattern", ["dots", "lines", "specks"])
def test_holes_all_over_leave_too_little_to_copy_at_some_levels(pattern):
    picture, hole = bricks(128, 160), np.zeros((128, 160), bool)
    if pattern == "specks":
        hole[:] = np.random.default_rng(1).random(hole.shape) < 0.1
    else:
        hole[::6, :: 6 if pattern == "dots" else 1] = True
    hole[40:80, 40:80] = True
    shown = np.where(hole[..., None], np.uint8(0), picture)
    painted = complete(shown, hole)
    assert (painted[~hole] == picture[~hole]).all() and painted[hole].min() > 20


@pytest.mark.parametrize("vote", ["first", "later, with bad matches"])
def test_every_pixel_of_a_hole_a_thousand_pixels_wide_is_painted(vote):
    """500 pixels from the known area, weights by nearness alone are 0 in float32."""
    hole = np.zeros((20, 1100), bool)
    hole[:, 50:1050] = True
    each = exemplar._Level.of(hole)
    middle = np.abs(each.targets_N2[:, 1] - 550) < 100
    worst = exemplar.SIDE**2 * exemplar.DEPTH * 255**2
    weights = each.nearness_N if vote == "first" else each.weights(np.where(middle, worst, 0))
    values = np.where(hole[..., None], np.uint8(255), np.full((*hole.shape, exemplar.DEPTH), 90, np.uint8))
    level = exemplar._margin(values)
    exemplar._vote(level, each.hole_hw, each.targets_N2, each.anywhere(), weights, False)
    assert (level[RADIUS:-RADIUS, RADIUS:-RADIUS] == 90).all()


@pytest.mark.parametrize("rim", [1, 10, 50])
def test_what_is_painted_does_not_depend_on_what_is_hidden(rim):
    rng = np.random.default_rng(1)
    hole = np.ones((150, 200), bool)
    hole[:rim] = False
    first, second = (rng.integers(0, 256, (*hole.shape, 3), dtype=np.uint8) for _ in range(2))
    second[:rim] = first[:rim]
    painted = complete(first, hole)
    assert (painted == complete(second, hole)).all() and (painted[~hole] == first[~hole]).all()


def test_a_hole_everywhere_gets_one_color_and_no_hole_changes_nothing():
    picture = bricks()
    everywhere = np.ones(picture.shape[:2], bool)
    assert (complete(picture, everywhere) == np.rint(picture.mean((0, 1)))).all()
    assert complete(picture, ~everywhere) is picture
