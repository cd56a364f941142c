"""Views are pure functions of their address, independent of each other, and distributed as their sources say."""

import dataclasses
import math

import numpy as np
import pytest

from ppma.common import philox
from ppma.config.loader import LoaderConfig
from ppma.loaders.samples import (
    OPERATIONS,
    check_crops,
    evaluation_crops,
    operation_argument,
    random_crop,
    random_erase_box,
    random_operations,
    scaled_size,
    view_params,
)

ALIGN = LoaderConfig(flip_probability=0.5, randaugment_ops=4, erase_probability=0.25)
N = 4000


def rng(i: int = 0) -> np.random.Generator:
    return philox.generator(11, philox.Purpose.CROP, sample=i)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(240, 320, (256, 341)), (320, 240, (341, 256)), (256, 340, (256, 340)), (161, 91, (452, 256)), (9, 9, (256, 256))],
)
def test_scaled_size_rounds_the_long_side_down(height: int, width: int, expected: tuple[int, int]) -> None:
    assert scaled_size(height, width, 256) == expected


def test_an_address_gives_the_same_view() -> None:
    assert view_params(1, 2, 3, 0, 240, 320, ALIGN) == view_params(1, 2, 3, 0, 240, 320, ALIGN)
    others = [(2, 2, 3, 0), (1, 3, 3, 0), (1, 2, 4, 0), (1, 2, 3, 1)]
    assert len({view_params(*address, 240, 320, ALIGN) for address in [(1, 2, 3, 0), *others]}) == 5


def test_one_augmentation_does_not_change_another() -> None:
    bare = view_params(0, 0, 0, 0, 240, 320, LoaderConfig())
    full = view_params(0, 0, 0, 0, 240, 320, dataclasses.replace(ALIGN, erase_probability=1.0))
    assert (bare.key, bare.crop) == (full.key, full.crop)
    assert bare.ops == () and bare.erase == (0, 0, 0, 0) and not bare.flip
    louder = view_params(0, 0, 0, 0, 240, 320, dataclasses.replace(ALIGN, randaugment_ops=14, erase_probability=1.0))
    assert louder.ops != full.ops and louder.erase == full.erase


def test_crops_are_distributed_as_random_resized_crops() -> None:
    boxes = np.array([random_crop(rng(i), 256, 340, LoaderConfig()) for i in range(N)])
    top, left, h, w = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= 256).all() and (left + w <= 340).all()
    area, ratio = h * w / (256 * 340), w / h
    # half a pixel of rounding either way on a side of at least 70 pixels: 1 % of the ratio, 2 % of the area
    assert area.min() >= 0.078 and area.max() <= 1.02
    assert ratio.min() >= 0.74 and ratio.max() <= 1.35
    small = area < 0.5  # these always fit, so their areas are uniform
    assert abs(np.log(ratio[small]).mean()) < 0.015  # log-uniform and symmetric: standard error 0.003
    assert abs(area[small].mean() - 0.29) < 0.01  # standard error 0.003
    assert abs((top[small] / (256 - h[small])).mean() - 0.5) < 0.03


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(256, 2000, (0, 829, 256, 341)), (2000, 256, (829, 0, 341, 256))]
)
def test_a_crop_that_never_fits_falls_back_to_the_middle(height: int, width: int, expected: tuple[int, ...]) -> None:
    assert random_crop(rng(), height, width, LoaderConfig(crop_scale=(1.0, 1.0))) == expected


def test_tiny_frames_have_crops() -> None:
    for height, width in [(1, 1), (1, 7), (5, 2)]:
        draw = view_params(0, 0, 0, 0, height, width, LoaderConfig(short_side=1, size=1))
        check_crops([draw], *scaled_size(height, width, 1))


def test_center_and_evaluation_crops() -> None:
    config = LoaderConfig(crop="center", short_side=224)
    assert random_crop(rng(), 224, 299, config) == (0, 38, 224, 224)
    assert evaluation_crops(224, 299, 224) == ((0, 0, 224, 224), (0, 38, 224, 224), (0, 75, 224, 224))
    assert evaluation_crops(299, 224, 224) == ((0, 0, 224, 224), (38, 0, 224, 224), (75, 0, 224, 224))
    for side in range(224, 400):  # pytorchvideo.transforms.functional.uniform_crop, its middle one
        middle = math.ceil((side - 224) / 2)
        assert evaluation_crops(224, side, 224)[1] == (0, middle, 224, 224)
        assert evaluation_crops(side, 224, 224)[1] == (middle, 0, 224, 224)
    fixed = view_params(0, 0, 0, 2, 240, 320, config, crop=(0, 75, 224, 224))
    assert fixed.crop == (0, 75, 224, 224)


def test_randaugment_applies_four_of_fourteen_operations_half_of_the_time() -> None:
    drawn = [random_operations(rng(i), ALIGN) for i in range(N)]
    names = [name for ops in drawn for name, _ in ops]
    assert all(len({name for name, _ in ops}) == len(ops) <= 4 for ops in drawn)
    assert abs(len(names) / N - 2.0) < 0.08  # binomial(4, 1/2): standard error 0.016
    counts = np.array([names.count(name) for name in OPERATIONS]) / len(names)
    assert np.abs(counts - 1 / 14).max() < 0.012  # standard error 0.003
    angles = np.array([a for ops in drawn for name, a in ops if name == "rotate"])
    assert abs(np.abs(angles).mean() - 21) < 0.5 and abs((angles > 0).mean() - 0.5) < 0.1
    assert abs(np.abs(angles).std() - 1.5) < 0.2  # 0.5 of 10 levels, 30 degrees


@pytest.mark.parametrize(
    ("name", "level", "sign", "expected"),
    [
        ("brightness", 7, -1, 0.37),
        ("sharpness", 10, 1, 1.9),
        ("posterize", 7.0, 1, 2.0),
        ("posterize", 7.6, 1, 1.0),
        ("solarize", 7, 1, 0.3),
        ("rotate", 7, -1, -21.0),
        ("shear_x", 7, 1, 0.21),
        ("translate_y", 10, -1, -0.45),
        ("equalize", 7, 1, 0.0),
    ],
)
def test_arguments_of_operations(name: str, level: float, sign: int, expected: float) -> None:
    assert operation_argument(name, level, sign) == pytest.approx(expected)


def test_erasing_boxes() -> None:
    boxes = np.array([random_erase_box(rng(i), ALIGN) for i in range(N)])
    drawn = boxes[boxes[:, 2] > 0]
    assert abs(len(drawn) / N - 0.25) < 0.03  # standard error 0.007
    top, left, h, w = drawn.T
    assert (top + h <= 224).all() and (left + w <= 224).all() and (drawn[:, :2] >= 0).all()
    area, ratio = h * w / 224**2, h / w
    assert area.min() >= 0.019 and area.max() <= 0.34
    assert ratio.min() >= 0.28 and ratio.max() <= 3.5  # half a pixel of rounding on a side of at least 17
    assert abs(area.mean() - 0.177) < 0.012  # standard error 0.003


def test_a_crop_outside_the_frame_is_named() -> None:
    draw = view_params(0, 0, 0, 0, 240, 320, LoaderConfig(), crop=(0, 300, 64, 64))
    with pytest.raises(ValueError, match=r"\(0, 300, 64, 64\).*256 x 341"):
        check_crops([draw], 256, 341)
