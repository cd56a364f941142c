"""RandAugment on a batch of views, with PyTorch and Triton: each operation against torchvision and the loader's own."""

import numpy as np
import pytest
import reference_views as reference
import torch

from ppma.kernels import choice
from ppma.kernels.randaugment import randaugment
from ppma.kernels.randaugment_program import Operation, write_program
from ppma.loaders.decode.augment import apply_operation
from ppma.loaders.decode.dali import program_step
from ppma.loaders.samples import GEOMETRIC_REACH, OPERATIONS, operation_argument

# Where not 0, from torchvision. 1: one rounding, or a cut-off of a float sum that falls on the other side.
TORCHVISION = dict.fromkeys(("saturation", "contrast", "sharpness", "autocontrast", *GEOMETRIC_REACH), 1)
# And from OpenCV. saturation: it multiplies with weights of 11 bits. Geometric operations have a bound of their own.
OPENCV = {"saturation": 1}


def cases(level: float) -> list[tuple[str, float]]:
    return [(name, operation_argument(name, level, sign)) for name in OPERATIONS for sign in (1, -1)]


def augmented(frames_THWC: np.ndarray, views: list[list[tuple[str, float]]], device: str = "cpu") -> np.ndarray:
    """Return the frames repeated, one view for each list of operations."""
    frames_VTHWC = torch.from_numpy(np.stack([frames_THWC] * len(views))).to(device)
    program = write_program([[program_step(*op, frames_THWC.shape[1]) for op in ops] for ops in views])
    out = randaugment(frames_VTHWC, program)
    assert torch.equal(frames_VTHWC.cpu(), torch.from_numpy(np.stack([frames_THWC] * len(views))))
    return out.cpu().numpy().astype(int)


@pytest.mark.parametrize(
    ("size", "noise", "level"), [(64, 6.0, 7.0), (57, 40.0, 10.0), (33, 60.0, 2.0), (16, 0.0, 1.7)]
)
def test_operations_are_those_of_torchvision_and_opencv(size: int, noise: float, level: float) -> None:
    frames = reference.picture_frames(2, size, size, noise=noise)
    for made, (name, argument) in zip(augmented(frames, [[op] for op in cases(level)]), cases(level)):
        error = np.abs(made - reference.operation(frames, name, argument))
        assert error.max() <= TORCHVISION.get(name, 0), (name, argument)
        assert error.mean() < 0.5, (name, argument)  # a bias would show
        plain = frames.copy()
        apply_operation(plain, name, argument)
        # OpenCV rounds coordinates to 1/32 px: up to 1/64 px either way on each axis, and 1 for the rounding of the value
        bound = 1 + reference.steps(frames) / 32 if name in GEOMETRIC_REACH else OPENCV.get(name, 0)
        assert np.abs(made - plain).max() <= bound, (name, argument)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_flat_frames(value: int) -> None:
    frames = np.full((2, 24, 24, 3), value, np.uint8)
    for made, (name, argument) in zip(augmented(frames, [[op] for op in cases(7.0)]), cases(7.0)):
        error = np.abs(made - reference.operation(frames, name, argument))
        assert error.max() <= TORCHVISION.get(name, 0), (name, argument)


@pytest.mark.parametrize(("size", "noise", "level"), [(48, 60.0, 10.0), (16, 0.0, 1.7), (2, 60.0, 5.0)])
def test_triton_agrees_with_pytorch(triton_device: str, size: int, noise: float, level: float) -> None:
    """Lookup tables and integer blends are equal; warp and saturation may round a float sum differently."""
    frames = reference.picture_frames(1, size, size, noise=noise)
    drawn = cases(level)[:: 2 if size > 16 else 1]
    views = [[op] for op in drawn]
    made = augmented(frames, views, triton_device)
    with choice.use("torch"):
        plain = augmented(frames, views)
    for ours, theirs, (name, argument) in zip(made, plain, drawn):
        floats = name in (*GEOMETRIC_REACH, "saturation")
        difference = np.abs(ours - theirs)
        assert difference.max() <= floats and (difference > 0).mean() < 0.01, (name, argument)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_any_number_of_operations_is_applied_in_order(
    triton_device: str, implementation: choice.Implementation
) -> None:
    """Views with zero to four operations in one program, each against its operations applied one by one."""
    frames = reference.picture_frames(3, 20, 20, noise=20.0)
    ops = [("equalize", 0.0), ("translate_x", 0.2), ("contrast", 1.6), ("sharpness", 0.3), ("autocontrast", 0.0)]
    views = [[], ops[:4], ops[2:3], ops[1:3], ops[::-1][:4], ops[2:], []]
    with choice.use(implementation):
        made = augmented(frames, views, triton_device)
        for ours, view in zip(made, views):
            expected = frames
            for op in view:
                (expected,) = augmented(expected, [[op]], triton_device).astype(np.uint8)
            assert np.array_equal(ours, expected), view


def test_a_program_aligns_steps_at_the_end() -> None:
    invert, copy, skip = (Operation.INVERT, [0.0]), Operation.COPY, Operation.SKIP
    program = write_program([[], [invert], [invert, (Operation.WARP, [1.0, 2, 3, 4, 5, 6])]])
    assert program.shape == (2, 3, 8)
    assert program[..., 0].tolist() == [[skip, skip, Operation.INVERT], [copy, Operation.INVERT, Operation.WARP]]
    assert program[..., 1].tolist() == [[0, 0, 1], [1, 1, 0]]
    assert program[1, 2, 2:].tolist() == [1, 2, 3, 4, 5, 6]


def test_wrong_input_is_refused() -> None:
    frames, program = torch.zeros(2, 3, 8, 8, 3, dtype=torch.uint8), write_program([[], []])
    assert randaugment(frames, program).shape == frames.shape
    for bad in (frames.float(), frames[..., :2], frames.transpose(2, 3), frames[:1]):
        with pytest.raises(ValueError):
            randaugment(bad, program)
