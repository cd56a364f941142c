"""The rasteriser against the plain meaning: which triangle is nearest at a sample, and what four samples make of a pixel."""

import numpy as np

from ppma.synthetic.render import raster

SIDE = 24


def paint(screen_V3, faces_F3, albedo_V3, side=SIDE):
    color, depth = np.zeros((side, side, 3), np.float32), np.full((side, side), raster.FAR, np.float32)
    layer = np.zeros((side, side), np.uint8)
    raster.paint(screen_V3, faces_F3, albedo_V3, np.ones_like(albedo_V3), raster.PERSON, color, depth, layer)
    return color, depth, layer


def plain(screen_V3, faces_F3, albedo_V3, side=SIDE):
    """The nearest triangle that faces the eye at each sample's center; float64, one sample after the other."""
    color, depth = np.zeros((side, side, 3)), np.full((side, side), raster.FAR)
    for face in faces_F3:
        (xa, ya, za), (xb, yb, zb), (xc, yc, zc) = screen_V3[face].astype(np.float64)
        matrix = np.array([[xa, xb, xc], [ya, yb, yc], [1, 1, 1]])
        if np.linalg.det(matrix) >= 0 or min(za, zb, zc) < raster.NEAR:
            continue
        for y in range(side):
            for x in range(side):
                weights = np.linalg.solve(matrix, [x + 0.5, y + 0.5, 1])
                z = 1 / (weights @ (1 / np.array([za, zb, zc])))
                if (weights > 0).all() and z < depth[y, x]:
                    depth[y, x], color[y, x] = z, weights @ albedo_V3[face]
    return color, depth


def test_paint_is_the_nearest_triangle():
    rng = np.random.default_rng(0)
    screen_V3 = np.concatenate([rng.uniform(-4, SIDE + 4, (60, 2)), rng.uniform(0.05, 5, (60, 1))], 1).astype(
        np.float32
    )
    faces_F3, albedo_V3 = (
        rng.permutation(60).reshape(20, 3).astype(np.int32),
        rng.uniform(0, 255, (60, 3)).astype(np.float32),
    )
    color, depth, layer = paint(screen_V3, faces_F3, albedo_V3)
    expected_color, expected_depth = plain(screen_V3, faces_F3, albedo_V3)
    same = np.isclose(depth, expected_depth, rtol=1e-4)
    assert same.mean() > 0.995, "only samples on an edge may fall to either side"
    np.testing.assert_allclose(color[same], expected_color[same], atol=0.05)  # float32 weights of slim triangles
    np.testing.assert_array_equal(layer == raster.PERSON, depth < raster.FAR)
    assert 0.2 < (layer == raster.PERSON).mean() < 1


def test_neighbours_leave_no_gap():
    """Two triangles that share an edge cover a square without a hole, wherever the edge runs."""
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


def test_light_comes_from_its_side():
    """A triangle that faces the sun is as bright as can be, one that turns its back gets the sky's light only."""
    up = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    lit = np.empty_like(up)
    sun, ambient, direct = (np.array(v, np.float32) for v in ([0, 0, 1], [0.4] * 3, [0.6] * 3))
    raster.light_up(up, np.array([[0, 1, 2]], np.int32), sun, ambient, direct, lit)
    np.testing.assert_allclose(lit, 1.0, atol=1e-6)
    raster.light_up(up, np.array([[0, 2, 1]], np.int32), sun, ambient, direct, lit)
    np.testing.assert_allclose(lit, 0.2, atol=1e-6)


def test_settle_averages_and_dims_the_floor_only():
    color = np.arange(4 * 4 * 3, dtype=np.float32).reshape(4, 4, 3) * 4
    layer = np.full((4, 4), raster.FLOOR, np.uint8)
    layer[2:, 2:] = raster.BEYOND
    layer[0, 0] = raster.PERSON
    shadow = np.ones((2, 2), np.float32)
    picture, mask = np.empty((2, 2, 3), np.uint8), np.empty((2, 2), bool)
    raster.settle(color, layer, shadow, np.float32(0.5), picture, mask)
    factor = np.where(layer == raster.FLOOR, 0.5, 1.0)[..., None]
    expected = (color * factor).reshape(2, 2, 2, 2, 3).mean((1, 3))
    np.testing.assert_array_equal(picture, np.floor(expected + 0.5).astype(np.uint8))
    np.testing.assert_array_equal(mask, [[True, False], [False, False]])


def test_cover_takes_both_faces():
    square = np.array([[2, 2, 1], [10, 2, 1], [2, 10, 1]], np.float32)
    for face in ([0, 1, 2], [0, 2, 1]):
        shadow = np.zeros((12, 12), np.float32)
        raster.cover(square, np.array([face], np.int32), shadow)
        assert 28 <= shadow.sum() <= 36 and set(np.unique(shadow)) == {0, 1}
