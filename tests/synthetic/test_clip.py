"""Clips: exact masks, empty twins, cameras, and the cost of rendering."""

import time
from dataclasses import replace

import numpy as np
import pytest

from ppma.synthetic.clip import SCENE_KINDS, ClipSpec, render, sample_clip, scene_kind
from ppma.synthetic.motion import actions
from ppma.synthetic.production import encode
from ppma.synthetic.render.raster import OUTDOORS

PLAIN = ClipSpec(seed=5, split="train", class_name="squat", number=0, size=48, frames=8, fps=4.0, people=1)


def shaded(shot, darkness):
    return replace(shot, scene=replace(shot.scene, light=replace(shot.scene.light, darkness=darkness)))


@pytest.mark.parametrize(("number", "people"), [(0, 1), (1, 1), (2, 3), (3, 3)])
def test_masks_are_exact(number, people):
    """Without shadows a frame equals the empty one outside the mask bit for bit, and differs nearly everywhere inside."""
    shot = shaded(sample_clip(replace(PLAIN, number=number, people=people)), 0.0)
    inside = changed = 0
    for frame in render(shot, empty=True):
        differs_PP = (frame.picture_PP3 != frame.empty_PP3).any(-1)
        assert not (differs_PP & ~frame.mask_PP).any()
        each_NPP = np.stack([frame.person_mask(n) for n in range(len(shot.people))])
        np.testing.assert_array_equal(each_NPP.any(0), frame.mask_PP)
        inside, changed = inside + frame.mask_PP.sum(), changed + differs_PP.sum()
    assert inside > 8 * 40 and changed > 0.97 * inside  # skin may have the color of the wall


def test_a_shadow_only_darkens_the_floor():
    for frame in render(shaded(sample_clip(PLAIN), 0.6), empty=True):
        outside, empty = frame.picture_PP3[~frame.mask_PP], frame.empty_PP3[~frame.mask_PP]
        assert (outside <= empty).all() and (outside < empty).any()


def test_the_spec_decides_the_clip():
    def pictures(spec):
        return np.stack([frame.picture_PP3 for frame in render(sample_clip(spec))])

    first = pictures(PLAIN)
    np.testing.assert_array_equal(first, pictures(PLAIN))
    for other in ({"seed": 6}, {"number": 1}, {"split": "test"}, {"class_name": "lunge"}):
        assert (pictures(replace(PLAIN, **other)) != first).mean() > 0.3, other


def test_scene_and_camera_do_not_depend_on_the_class():
    focals, rooms = [], []
    for name in ("wave", "bow", "clap"):
        shots = [sample_clip(replace(PLAIN, class_name=name, number=n, frames=2)) for n in range(12)]
        focals.append(np.mean([shot.camera.focal for shot in shots]))
        rooms.append(np.mean([shot.scene.room_23[1, 2] < OUTDOORS for shot in shots]))
    assert np.ptp(focals) < 0.25 and all(0.15 < share < 0.98 for share in rooms)


@pytest.mark.parametrize("name", ["walk", "run", "jumping_jack", "cartwheel", "get_up_from_back", "crawl"])
def test_people_are_in_the_picture(name):
    """Every frame shows at least a part of the person, and nearly always all of it."""
    cut = []
    for number in range(4):
        for frame in render(sample_clip(replace(PLAIN, class_name=name, number=number))):
            assert frame.mask_PP.mean() > 0.01
            border = np.concatenate([frame.mask_PP[0], frame.mask_PP[-1], frame.mask_PP[:, 0], frame.mask_PP[:, -1]])
            cut.append(border.any())
    assert np.mean(cut) < 0.35


def test_there_are_several_people_if_asked():
    counts = {len(sample_clip(replace(PLAIN, number=n, frames=2, people=4)).people) for n in range(12)}
    assert counts <= {1, 2, 3, 4} and len(counts) >= 3


def test_at_least_25_frames_per_second_on_one_core(tmp_path):
    """At 128 pixels, rendering and encoding, CPU time, median over classes; measured: 90 and more, so others may run meanwhile."""
    rates = []
    for number, name in enumerate(actions.CLASSES[::5]):
        spec = replace(PLAIN, class_name=name, number=number, size=128, frames=36, fps=12.0)
        list(render(sample_clip(replace(spec, frames=2))))  # compile, load bodies
        start = time.process_time()
        encode(tmp_path / "clip.mp4", (frame.picture_PP3 for frame in render(sample_clip(spec))), spec.fps)
        rates.append(36 / (time.process_time() - start))
    assert np.median(rates) >= 25, rates


def test_the_kind_of_a_scene_is_what_is_rendered():
    """It follows from the spec alone, and is true of the clip; a still camera moves only to follow."""
    seen = set()
    for number in range(24):
        spec = replace(PLAIN, class_name="bow", number=number, frames=4)
        place, motion = scene_kind(spec).split(", camera ")
        shot = sample_clip(spec)
        assert (shot.scene.room_23[1, 2] < OUTDOORS) == (place == "room")
        moves = np.linalg.norm(shot.camera.eye_T3 - shot.camera.eye_T3[0], axis=1).max() > 1e-6
        assert shot.camera.moving == moves and (moves or motion == "still")
        seen.add((scene_kind(spec), moves))
        right, down, ahead = shot.camera.axes_T33[0]
        np.testing.assert_allclose(np.cross(right, down), ahead, atol=1e-6)
        assert down[2] < 0, "the picture is upright"
    assert {kind for kind, _ in seen} <= set(SCENE_KINDS) and len(seen) >= 6
    assert any("still" in kind and not moves for kind, moves in seen) and any(moves for _, moves in seen)
