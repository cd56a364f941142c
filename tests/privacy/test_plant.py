"""Planted clips: people are as tall as the design says, every pixel of each is known, and the place alone is the rest."""

import cv2
import numpy as np
import pytest

from ppma.config.errors import InputError
from ppma.privacy.plant.clip import HEIGHTS, LONG_EVERY, Design, design, list_plates, plant


def wanted(**changes):
    fields = {
        "number": 3, "seed": 0, "action": "wave", "body_pixels": 60, "most_people": 3, "light": "day", "plate": None,
        "pans": False, "size": 128, "frames": 2, "fps": 5.0,
    }  # fmt: skip
    return Design(**{**fields, **changes})


@pytest.mark.parametrize("body_pixels", [32, 60, 96])
def test_people_are_as_tall_as_the_design_says(body_pixels):
    planted = plant(wanted(body_pixels=body_pixels, most_people=1, action="walk"))
    heights = [np.ptp(np.flatnonzero(own_PP.any(1))) + 1 for own_PP in planted.people_NTPP[0]]
    assert max(heights) == pytest.approx(body_pixels, rel=0.25)


def test_all_but_people_and_their_shadows_is_the_place_alone():
    planted = plant(wanted())
    people_TPP = planted.people_NTPP.any(0)
    assert len(planted.people_NTPP) > 1 and (planted.people_NTPP.sum(0) <= 4).all()
    differs_TPP = (planted.frames_TPP3 != planted.empty_TPP3).any(-1)
    assert differs_TPP[people_TPP].mean() > 0.95
    brighter = planted.frames_TPP3.astype(int) > planted.empty_TPP3.astype(int) + 1
    assert not brighter.any(-1)[~people_TPP].any(), "beside people there is nothing but shadow"


def test_a_clip_is_the_same_each_time_and_noise_is_the_same_with_people_and_without():
    planted, again = (plant(wanted(light="dim")) for _ in range(2))
    assert (planted.frames_TPP3 == again.frames_TPP3).all() and (planted.people_NTPP == again.people_NTPP).all()
    far = ~cv2.dilate(planted.people_NTPP.any((0, 1)).astype(np.uint8), np.ones((61, 61))).astype(bool)
    assert far.any() and (planted.frames_TPP3 == planted.empty_TPP3)[:, far].mean() > 0.99
    assert planted.frames_TPP3.mean() < 0.6 * plant(wanted()).frames_TPP3.mean()


def test_plates_stand_in_for_the_place_and_pan(tmp_path):
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 255, (40, 50, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "plate.png"), picture)
    (plate,) = list_plates(tmp_path)
    still, pans = (plant(wanted(plate=plate, pans=moves, most_people=1)) for moves in (False, True))
    assert not still.moving and (still.empty_TPP3[0] == still.empty_TPP3[1])[:40].all()
    assert pans.moving and not (pans.empty_TPP3[0] == pans.empty_TPP3[1])[:40].all()
    with pytest.raises(InputError, match="has no picture or video"):
        list_plates(tmp_path / "nothing")


def test_designs_take_turns():
    every = [design(n, seed=1, size=256, frames=6, long_frames=24, fps=5.0, plates=()) for n in range(128)]
    long = [one for one in every if one.frames == 24]
    assert len(long) == 128 // LONG_EVERY and not any(one.pans for one in long)
    assert {one.body_pixels for one in every} == set(HEIGHTS) and {one.body_pixels for one in long} == set(HEIGHTS)
    assert {one.light for one in every} == {"day", "dim"} and max(one.most_people for one in every) == 8
    assert every[5] == design(5, seed=1, size=256, frames=6, long_frames=24, fps=5.0, plates=())
