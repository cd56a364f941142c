"""Neighbors, the plane and confusions, on points and scores whose answer is known."""

import numpy as np
import tiny

from ppma.inference.neighbors import confused, cosines, maps, nearest, plane, rows_of


def test_the_nearest_are_by_angle_about_the_mean_and_not_itself():
    angles = np.radians([0, 10, 90, 100, 180, 270])
    points = 5 + np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cosine_VV = cosines(points - points.mean(axis=0) + 100)  # a large common part
    assert nearest(cosine_VV, 0, np.arange(6), 2)[0] == 1
    assert nearest(cosine_VV, 2, np.array([0, 2, 3, 4]), 1).tolist() == [3]
    assert np.allclose(np.diag(cosine_VV), 1)


def test_the_plane_keeps_the_directions_of_most_variance():
    rng = np.random.default_rng(0)
    long, short = rng.normal(size=(2, 200))
    basis, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    points = 3 + np.outer(10 * long, basis[0]) + np.outer(2 * short, basis[1])
    place_V2, share_2 = plane(points)
    assert abs(np.corrcoef(place_V2[:, 0], long)[0, 1]) > 0.99
    assert abs(np.corrcoef(place_V2[:, 1], short)[0, 1]) > 0.99
    assert np.isclose(share_2.sum(), 1) and share_2[0] > share_2[1]
    assert np.allclose(plane(points.copy())[0], place_V2)


def test_the_map_names_sources_and_the_most_frequent_classes():
    names = [f"class {i % 13}" for i in range(60)]
    figure = maps(np.random.default_rng(0).normal(size=(60, 2)), np.array([0.6, 0.2]), ["a"] * 30 + ["b"] * 30, names)
    left, right = (axes.get_legend_handles_labels()[1] for axes in figure.axes)
    assert left == ["a", "b"] and right[0] == "3 others" and len(right) == 11


def test_confusions_are_counted_and_the_surest_come_first(tmp_path):
    scores = np.array([[0.1, 0.9, 0.0], [0.4, 0.6, 0.0], [0.8, 0.2, 0], [0.1, 0.1, 0.8], [0.9, 0.1, 0], [np.nan] * 3])
    np.savez(tmp_path / "scores.npz", scores=scores, label=[0, 0, 0, 1, 2, 2], video=list("abcdef"))
    found = confused(tmp_path / "scores.npz", 5)
    assert [(p.label, p.named, p.count, p.of) for p in found] == [(0, 1, 2, 3), (1, 2, 1, 1), (2, 0, 1, 2)]
    assert found[0].videos == ("a", "b")
    assert len(confused(tmp_path / "scores.npz", 1)) == 1


def test_rows_are_found_by_path():
    assert rows_of(tiny.source("made"), ["3.mp4", "gone.mp4", "0.mp4"]) == [3, 0]
