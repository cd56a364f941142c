"""The rasterizer against its plain definition; scenes and cameras; the user's own backgrounds."""

from dataclasses import replace

import numpy as np
import pytest

from ppma.config.errors import InputError
from ppma.synthetic.clip import ClipSpec, render, sample_clip
from ppma.synthetic.render import backgrounds, outfit, raster, scene, textures
from ppma.synthetic.splits import SPLITS, sample_in_split

SIDE = 24


def paint(screen_V3, faces_F3, albedo_V3):
    color, depth = np.zeros((SIDE, SIDE, 3), np.float32), np.full((SIDE, SIDE), raster.FAR, np.float32)
    layer = np.zeros((SIDE, SIDE), np.uint8)
    raster.paint(screen_V3, faces_F3, albedo_V3, np.ones_like(albedo_V3), raster.PERSON, color, depth, layer)
    return color, depth, layer


def plain_paint(screen_V3, faces_F3, albedo_V3):
    """The nearest triangle that faces the eye at each sample's center; float64, sample by sample."""
    color, depth = np.zeros((SIDE, SIDE, 3)), np.full((SIDE, SIDE), raster.FAR)
    for face in faces_F3:
        (xa, ya, za), (xb, yb, zb), (xc, yc, zc) = screen_V3[face].astype(np.float64)
        matrix = np.array([[xa, xb, xc], [ya, yb, yc], [1, 1, 1]])
        if np.linalg.det(matrix) >= 0 or min(za, zb, zc) < raster.NEAR:
            continue
        for y, x in np.ndindex(SIDE, SIDE):
            weights = np.linalg.solve(matrix, [x + 0.5, y + 0.5, 1])
            z = 1 / (weights @ (1 / np.array([za, zb, zc])))
            if (weights > 0).all() and z < depth[y, x]:
                depth[y, x], color[y, x] = z, weights @ albedo_V3[face]
    return color, depth


def test_paint_draws_the_nearest_triangle():
    rng = np.random.default_rng(0)
    screen_V3 = np.concatenate([rng.uniform(-4, SIDE + 4, (60, 2)), rng.uniform(0.05, 5, (60, 1))], 1).astype(
        np.float32
    )
    faces_F3 = rng.permutation(60).reshape(20, 3).astype(np.int32)
    albedo_V3 = rng.uniform(0, 255, (60, 3)).astype(np.float32)
    color, depth, layer = paint(screen_V3, faces_F3, albedo_V3)
    expected_color, expected_depth = plain_paint(screen_V3, faces_F3, albedo_V3)
    same = np.isclose(depth, expected_depth, rtol=1e-4)
    assert same.mean() > 0.995, "only samples on an edge may fall to either side"
    np.testing.assert_allclose(color[same], expected_color[same], atol=0.05)  # float32 weights of slim triangles
    np.testing.assert_array_equal(layer == raster.PERSON, depth < raster.FAR)
    assert 0.2 < (layer == raster.PERSON).mean() < 1


def test_neighboring_triangles_leave_no_gap():
    rng = np.random.default_rng(1)
    for _ in range(50):
        corner = rng.uniform(2, 5, 2)
        square = corner + 14 * np.array([[0, 0], [0, 1], [1, 1], [1, 0]])
        screen_V3 = np.concatenate([square, np.full((4, 1), 2.0)], 1).astype(np.float32)
        _, _, layer = paint(screen_V3, np.array([[0, 1, 2], [0, 2, 3]], np.int32), np.ones((4, 3), np.float32))
        centers = np.arange(SIDE) + 0.5
        inside = [(centers > low + 1e-3) & (centers < low + 14 - 1e-3) for low in corner]
        assert (layer[np.ix_(inside[1], inside[0])] == raster.PERSON).all()


def test_project_is_a_pinhole():
    points = np.array([[0, 5, 0], [1, 5, 0], [0, 5, 1], [0, 10, 1]], np.float32)
    axes = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float32)  # looking along +y: right is +x, down is -z
    out = np.empty_like(points)
    raster.project(points, np.zeros(3, np.float32), axes, np.float32(100), np.float32(50), out)
    np.testing.assert_allclose(out, [[50, 50, 5], [70, 50, 5], [50, 30, 5], [50, 40, 10]], atol=1e-4)


@pytest.mark.parametrize(("face", "expected"), [([0, 1, 2], 1.0), ([0, 2, 1], 0.2)])
def test_light_comes_from_its_side(face, expected):
    """A triangle that faces the sun is fully lit; one that faces away gets the sky's light only."""
    up = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    lit = np.empty_like(up)
    sun, ambient, direct = (np.array(v, np.float32) for v in ([0, 0, 1], [0.4] * 3, [0.6] * 3))
    raster.light_up(up, np.array([face], np.int32), sun, ambient, direct, lit)
    np.testing.assert_allclose(lit, expected, atol=1e-6)


def test_resolve_averages_and_darkens_the_floor_only():
    color = np.arange(4 * 4 * 3, dtype=np.float32).reshape(4, 4, 3) * 4
    layer = np.full((4, 4), raster.FLOOR, np.uint8)
    layer[2:, 2:] = raster.BEYOND
    layer[0, 0], layer[2, 0] = raster.PERSON, raster.PERSON + 3
    picture, mask = np.empty((2, 2, 3), np.uint8), np.empty((2, 2), bool)
    raster.resolve(color, layer, np.ones((2, 2), np.float32), np.float32(0.5), picture, mask)
    factor = np.where(layer == raster.FLOOR, 0.5, 1.0)[..., None]
    expected = (color * factor).reshape(2, 2, 2, 2, 3).mean((1, 3))
    np.testing.assert_array_equal(picture, np.floor(expected + 0.5).astype(np.uint8))
    np.testing.assert_array_equal(mask, [[True, False], [True, False]])


def test_cover_takes_both_faces():
    square = np.array([[2, 2, 1], [10, 2, 1], [2, 10, 1]], np.float32)
    for face in ([0, 1, 2], [0, 2, 1]):
        shadow = np.zeros((12, 12), np.float32)
        raster.cover(square, np.array([face], np.int32), shadow)
        assert 28 <= shadow.sum() <= 36 and set(np.unique(shadow)) == {0, 1}


# -------------------------------------------------------------------------------------------------------------- scenes

FEET = np.cumsum(np.full((12, 2), 0.1), axis=0)


def sample(seed, split="train", still=False):
    rng = np.random.default_rng(seed)
    camera = scene.sample_camera(FEET, 1.2, 1.8, rng, split, still=still)
    return camera, scene.sample_scene(FEET, camera, rng, split)


@pytest.mark.parametrize("split", SPLITS)
def test_camera_and_people_are_inside_and_furniture_is_away(split):
    indoors = 0
    for seed in range(30):
        camera, place = sample(seed, split)
        inside = np.concatenate([camera.eye_T3, np.concatenate([FEET, np.full((len(FEET), 1), 1.8)], 1)])
        assert (inside > place.room_23[0]).all() and (inside < place.room_23[1]).all()
        indoors += place.room_23[1, 2] < raster.OUTDOORS
        assert len(place.boxes_V3) == len(place.boxes_albedo_V3) == 2 * len(place.boxes_F3)
        if len(place.boxes_V3):
            assert place.boxes_F3.max() == len(place.boxes_V3) - 1
            assert np.linalg.norm(place.boxes_V3[:, None, :2] - FEET, axis=-1).min() > 0.5
        light_3 = place.light.direction_3
        assert light_3[2] > 0.5 and np.linalg.norm(light_3) == pytest.approx(1, abs=1e-6)
    assert 8 < indoors < 26


def test_boxes_are_closed_and_face_outward():
    place = next(place for _, place in map(sample, range(50)) if len(place.boxes_V3))
    box_V3, box_F3 = place.boxes_V3[:24], place.boxes_F3[:12]
    a, b, c = (box_V3[box_F3[:, i]] for i in range(3))
    outward = ((a + b + c) / 3 - box_V3.mean(0)) * np.cross(b - a, c - a)
    assert (outward.sum(1) > 0).all() and box_V3[:, 2].min() == 0


def test_a_still_camera_may_follow_but_neither_turns_nor_approaches():
    for seed in range(20):
        assert np.ptp(sample(seed, still=True)[0].axes_T33, axis=0).max() < 1e-6


def test_a_still_empty_scene_is_rendered_once():
    camera, place = next((c, s) for c, s in (sample(seed, still=True) for seed in range(50)) if not c.moving)
    renderer = scene.SceneRenderer(place, camera, 32)
    renderer.render_empty(0)
    before = renderer.canvas.copy()
    renderer.render_empty(5)
    np.testing.assert_array_equal(before.color_SS3, renderer.canvas.color_SS3)
    assert (renderer.canvas.layer_SS > 0).any() and np.isfinite(renderer.canvas.color_SS3).all()
    assert renderer.canvas.color_SS3.min() >= 0


# -------------------------------------------------------------------------------------------------------------- splits


def test_splits_share_the_range_but_no_value():
    values = [[sample_in_split(np.random.default_rng(n), split, -2, 6) for n in range(400)] for split in SPLITS]
    assert [set(np.floor(v).astype(int).tolist()) for v in values] == [{-2, 0, 2, 4}, {-1, 1, 3, 5}]
    focals = [{int(8 * (sample(seed, split)[0].focal - 1.0) / 0.7) % 2 for seed in range(40)} for split in SPLITS]
    assert focals == [{0}, {1}]


def test_splits_share_no_pattern_of_places_and_shirts():
    assert not set(textures.PATTERNS["train"]) & set(textures.PATTERNS["test"])
    assert set(outfit.PATTERNS["train"]) & set(outfit.PATTERNS["test"]) == {"plain"}


# --------------------------------------------------------------------------------------------------------- backgrounds


def test_splits_share_no_background(clip_tree):
    train, test = (backgrounds.list_videos(clip_tree, split) for split in SPLITS)
    assert len(train) == len(test) == 6 and not set(train) & set(test)


def test_too_few_backgrounds_are_refused(tmp_path, write_clip):
    with pytest.raises(InputError, match="0 videos"):
        backgrounds.list_videos(tmp_path, "train")
    write_clip(tmp_path / "one.mp4")
    with pytest.raises(InputError, match="at least 2"):
        backgrounds.list_videos(tmp_path, "test")


def test_a_background_is_read_at_the_clips_frame_rate(tmp_path, write_clip, read_barcode):
    path, rng = write_clip(tmp_path / "film.mp4", width=64, height=64, frames=30), np.random.default_rng(0)
    numbers = [read_barcode(frame) for frame in backgrounds.read_background(path, 10, 5.0, 64, rng)]
    assert np.diff(numbers).tolist() == [2] * 9
    assert len(backgrounds.read_background(path, 100, 10.0, 64, rng)) == 30, "all it has"


def test_a_background_that_is_no_video_is_named(tmp_path):
    path = tmp_path / "bad.mp4"
    path.write_bytes(b"no video")
    with pytest.raises(InputError, match=r"bad\.mp4"):
        backgrounds.read_background(path, 3, 5.0, 64, np.random.default_rng(0))


def test_outside_people_and_shadows_every_pixel_is_the_backgrounds(clip_tree):
    videos = backgrounds.list_videos(clip_tree, "train")
    shot = sample_clip(
        ClipSpec(
            seed=1, split="train", class_name="wave", number=0, size=64, frames=6, fps=5.0, people=1, videos=videos
        )
    )
    shot = replace(shot, scene=replace(shot.scene, light=replace(shot.scene.light, darkness=0.0)))
    for frame, background_PP3 in zip(render(shot, empty=True), shot.background_TPP3, strict=True):
        np.testing.assert_array_equal(frame.empty_PP3, background_PP3)
        np.testing.assert_array_equal(frame.picture_PP3[~frame.mask_PP], background_PP3[~frame.mask_PP])
        assert frame.mask_PP.any()
