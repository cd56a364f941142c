"""The plain reader's views against plain torch, step by step and as a whole."""

import numpy as np
import pytest
import reference_views as reference
from torchvision.transforms import functional as F

from ppma.config.loader import LoaderConfig
from ppma.loaders.decode.augment import apply_operation, make_views
from ppma.loaders.samples import GEOMETRIC_REACH, OPERATIONS, ViewParams, operation_argument, view_params

CONFIG = LoaderConfig(size=56, short_side=64, frames=3)
# 0: the same integers. 1: one rounding, or a float sum truncated to the integer next to it. 2 (saturation): the
# reference truncates twice, the one matrix of the fast path once, with weights of 11 bits.
TOLERANCE = {"contrast": 1, "saturation": 2, "sharpness": 1, "autocontrast": 1}


def plain_view(crop: tuple[int, int, int, int], *, flip: bool = False, ops: tuple = ()) -> ViewParams:
    return ViewParams(key=0, crop=crop, flip=flip, ops=ops, erase=(0, 0, 0, 0))


def difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize(
    ("height", "width"), [(64, 85), (85, 64), (161, 91), (91, 161), (20, 24), (7, 9), (240, 320), (64, 64), (720, 70)]
)
def test_scale_crop_and_flip_match_the_reference(height: int, width: int) -> None:
    frames = reference.picture_frames(3, height, width, noise=40)
    draws = [view_params(1, 0, 0, v, height, width, CONFIG) for v in range(3)]
    scaled = reference.short_side_size(height, width, CONFIG.short_side)
    draws += [plain_view((0, 0, *scaled), flip=True), plain_view((scaled[0] - 1, scaled[1] - 1, 1, 1))]
    made = make_views(frames, draws, CONFIG)
    assert made.shape == (5, 3, 56, 56, 3)
    # each resize rounds once in fixed point: up to 1 off; the second one passes the first one's error on undiminished
    tolerance = 1 if (height, width) == scaled else 2
    for view, draw in zip(made, draws):
        assert difference(view, reference.view(frames, draw, CONFIG)) <= tolerance


@pytest.mark.parametrize("height", [64, 128])
def test_resize_keeps_the_mean(height: int) -> None:
    frames = reference.picture_frames(3, height, height * 4 // 3, noise=40)
    draw = view_params(1, 0, 0, 0, height, height * 4 // 3, CONFIG)
    made = make_views(frames, [draw], CONFIG)[0].astype(float)
    # OpenCV truncates two intermediate products: the result is about an eighth of a gray level too dark
    assert abs((made - reference.view(frames, draw, CONFIG)).mean()) < 0.25


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in GEOMETRIC_REACH])
def test_pixelwise_operation_is_torchvisions(name: str, sign: int) -> None:
    for size, level, noise in ((56, 7.3, 6), (33, 10.0, 60), (16, 1.7, 0)):
        frames = reference.picture_frames(4, size, size, seed=size, noise=noise)
        argument = operation_argument(name, level, sign)
        made = frames.copy()
        apply_operation(made, name, argument)
        assert difference(made, reference.operation(frames, name, argument)) <= TOLERANCE.get(name, 0)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in GEOMETRIC_REACH])
@pytest.mark.parametrize("value", [0, 77, 255])
def test_flat_frames(name: str, value: int) -> None:
    frames = np.full((2, 24, 24, 3), value, np.uint8)
    argument = operation_argument(name, 7.0, 1)
    made = frames.copy()
    apply_operation(made, name, argument)
    assert difference(made, reference.operation(frames, name, argument)) <= 1


@pytest.mark.parametrize("name", GEOMETRIC_REACH)
@pytest.mark.parametrize("sign", [1, -1])
def test_geometric_operation_moves_pixels_as_torchvision_does(name: str, sign: int) -> None:
    frames = reference.picture_frames(2, 57, 57)
    argument = operation_argument(name, 6.6, sign)
    made = frames.copy()
    apply_operation(made, name, argument)
    expected = reference.operation(frames, name, argument)
    # OpenCV rounds coordinates to 1/32 px: up to 1/64 px either way on each axis, and 1 for the rounding of the value
    assert difference(made, expected) <= 1 + 2 * reference.steps(frames) / 64
    assert np.abs(made.astype(int) - expected).mean() < 0.5


@pytest.mark.parametrize("angle", [23.0, -11.5])
def test_reference_rotation_is_torchvisions(angle: float) -> None:
    frames_TCHW = reference.torch.from_numpy(reference.picture_frames(2, 57, 57)).permute(0, 3, 1, 2)
    theirs = F.rotate(frames_TCHW, angle, interpolation=F.InterpolationMode.BILINEAR, fill=[128.0])
    ours = reference.geometric(frames_TCHW, "rotate", angle)
    inside = slice(14, -14)  # away from the border, where torchvision counts the fill twice; 1: its float32 coordinates
    assert difference(theirs[..., inside, inside].numpy(), ours[..., inside, inside].numpy()) <= 1


def test_whole_chain() -> None:
    config = LoaderConfig(size=56, short_side=64, flip_probability=0.5, randaugment_ops=4, randaugment_probability=1.0)
    frames = reference.picture_frames(3, 90, 120)
    draws = [view_params(5, 0, sample, 0, 90, 120, config) for sample in range(20)]
    made = make_views(frames, draws, config)
    assert np.array_equal(made, make_views(frames, draws, config))
    errors = [np.abs(v.astype(int) - reference.view(frames, d, config)) for v, d in zip(made, draws)]
    # equalize and solarize are not continuous: a difference of 1 before them is a large one after, but for few pixels
    assert np.mean([np.median(e) <= 1 for e in errors]) == 1.0
    assert np.mean([e.mean() for e in errors]) < 1.0


def test_a_static_clip_stays_static() -> None:
    config = LoaderConfig(
        size=48, short_side=64, views=3, flip_probability=0.5, randaugment_ops=14, randaugment_probability=1.0
    )
    frames = np.repeat(reference.picture_frames(1, 72, 96), 5, axis=0)
    draws = [view_params(0, 0, 0, v, 72, 96, config) for v in range(3)]
    made = make_views(frames, draws, config)
    assert (made == made[:, :1]).all()
    assert not np.array_equal(made[0], made[1])


def test_out_is_filled_in_place_and_frames_are_left_alone() -> None:
    frames = reference.picture_frames(2, 64, 80)
    before = frames.copy()
    draws = [plain_view((0, 0, 56, 56), ops=(("invert", 0.0), ("rotate", 20.0))), plain_view((8, 3, 40, 60))]
    out = np.zeros((2, 2, 56, 56, 3), np.uint8)
    assert make_views(frames, draws, CONFIG, out) is out
    assert np.array_equal(out, make_views(frames, draws, CONFIG))
    assert np.array_equal(frames, before)


def test_a_view_as_large_as_the_crop_is_a_copy() -> None:
    frames = reference.picture_frames(2, 64, 80)
    made = make_views(frames, [plain_view((8, 11, 56, 56))], CONFIG)
    assert np.array_equal(made[0], frames[:, 8:64, 11:67])
