"""A curve for each class, named, the same bytes each time."""

import numpy as np

from ppma.inference.curves_figure import scores_over_time


def test_the_drawing_names_its_curves_and_is_the_same_each_time():
    curves = [("archery", np.array([0.2, 0.8])), ("sign & walk", np.array([0.8, 0.2]))]
    drawing = scores_over_time(np.array([1.0, 2.0]), curves)
    assert "archery" in drawing and "sign &amp; walk" in drawing and drawing.startswith("<svg")
    assert drawing == scores_over_time(np.array([1.0, 2.0]), curves)
