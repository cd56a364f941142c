"""Regions: the camera is inside, furniture neither touches people nor hides them, every array fits its neighbour."""

import numpy as np
import pytest

from ppma.synthetic.render import scene as module
from ppma.synthetic.render.surroundings import OUTDOORS
from ppma.synthetic.splits import SPLITS

FEET = np.cumsum(np.full((12, 2), 0.1), axis=0)


def draw(seed, split="train", still=False):
    rng = np.random.default_rng(seed)
    camera = module.sample_camera(FEET, 1.2, 1.8, rng, split, still=still)
    return camera, module.sample_scene(FEET, camera, rng, split)


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_hold_together(split):
    indoors = 0
    for seed in range(30):
        camera, scene = draw(seed, split)
        inside = np.concatenate([camera.eye_T3, np.concatenate([FEET, np.full((len(FEET), 1), 1.8)], 1)])
        assert (inside > scene.room_23[0]).all() and (inside < scene.room_23[1]).all()
        indoors += scene.room_23[1, 2] < OUTDOORS
        assert len(scene.boxes_V3) == len(scene.boxes_albedo_V3) == 2 * len(scene.boxes_F3)
        if len(scene.boxes_V3):
            assert scene.boxes_F3.max() == len(scene.boxes_V3) - 1
            away = np.linalg.norm(scene.boxes_V3[:, None, :2] - FEET, axis=-1).min()
            assert away > 0.5, "nobody stands in the furniture"
        assert scene.light.direction_3[2] > 0.5 and np.linalg.norm(scene.light.direction_3) == pytest.approx(
            1, abs=1e-6
        )
    assert 8 < indoors < 26


def test_boxes_are_closed_and_face_outward():
    """Every side's normal points away from the middle; every edge is shared by two sides."""
    boxes = next(scene for _, scene in map(draw, range(50)) if len(scene.boxes_V3))
    box_V3, box_F3 = boxes.boxes_V3[:24], boxes.boxes_F3[:12]
    a, b, c = (box_V3[box_F3[:, i]] for i in range(3))
    outward = ((a + b + c) / 3 - box_V3.mean(0)) * np.cross(b - a, c - a)
    assert (outward.sum(1) > 0).all()
    assert box_V3[:, 2].min() == 0


def test_a_standing_camera_does_not_move():
    for seed in range(20):
        camera, _ = draw(seed, still=True)
        # the path is long enough for it to follow: it may shift with the people, but neither turns nor comes nearer
        assert np.ptp(camera.axes_T33, axis=0).max() < 1e-6


def test_test_cameras_are_elsewhere():
    """Focal lengths lie in sectors of their own."""
    sectors = [{int(8 * (draw(seed, split)[0].focal - 1.0) / 0.7) % 2 for seed in range(40)} for split in SPLITS]
    assert sectors == [{0}, {1}]


def test_empty_stage_is_drawn_once_for_a_standing_camera():
    camera, scene = next((c, s) for c, s in (draw(seed, still=True) for seed in range(50)) if not c.moving)
    stage = module.SceneRenderer(scene, camera, 32)
    stage.frame(0)
    before = stage.canvas.copy()
    stage.frame(5)
    np.testing.assert_array_equal(before.color_SS3, stage.canvas.color_SS3)
    assert (stage.canvas.layer_SS > 0).any() and np.isfinite(stage.canvas.color_SS3).all()
    assert stage.canvas.color_SS3.min() >= 0
