"""Each operation of the DALI graph against torchvision, on the CPU, and the graph's form for a GPU as far as it goes without one."""

import numpy as np
import pytest
import reference_views as reference

from ppma.loaders import graph
from ppma.loaders.config import LoaderConfig
from ppma.loaders.draws import GEOMETRIC_REACH, OPERATIONS, ClipInput, SampleDraw, ViewDraw, operation_argument
from ppma.loaders.pipeline import DaliViews

# 1: one rounding, or a cut-off that falls on the other side. equalize: torchvision divides by a step cut off to an integer, up to
# 1 / step too large; at 224 x 224 the step is about 196, so 255 / 196 and two roundings.
TOLERANCE = {"invert": 0, "posterize": 0, "equalize": 3}


def sample(crop: tuple[int, int, int, int], *ops: tuple[str, float]) -> SampleDraw:
    view = ViewDraw(key=0, crop=crop, flip=False, ops=ops, erase=(0, 0, 0, 0))
    return SampleDraw(epoch=0, index=0, source=0, clip=0, start_seconds=0.0, end_seconds=1.0, views=(view,))


def operations_of_dali(frames: np.ndarray, ops: list[tuple[str, float]]) -> np.ndarray:
    """Every operation on the same clip, as one batch."""
    t, size = frames.shape[:2]
    config = LoaderConfig(frames=t, size=size, short_side=size, views=1, randaugment_ops=1)
    clip = ClipInput(kind="frames", payloads=(frames,), frame_idx=tuple(range(t)), height=size, width=size)
    views = DaliViews(config, len(ops), device="cpu", threads=1)
    return views([clip] * len(ops), [sample((0, 0, size, size), op) for op in ops]).numpy()


def cases(level: float) -> list[tuple[str, float]]:
    return [(name, operation_argument(name, level, sign)) for name in OPERATIONS for sign in (1, -1)]


@pytest.mark.parametrize(("size", "noise", "level"), [(224, 6.0, 7.0), (224, 40.0, 10.0), (33, 6.0, 2.0)])
def test_operations_are_torchvisions(size: int, noise: float, level: float) -> None:
    frames = reference.picture_frames(2, size, size, noise=noise)
    for made, (name, argument) in zip(operations_of_dali(frames, cases(level)), cases(level)):
        if name == "equalize" and size < 224:
            continue  # the step is too small there for the two formulas to agree
        error = np.abs(made.astype(int) - reference.operation(frames, name, argument))
        assert error.max() <= TOLERANCE.get(name, 1), (name, argument)
        assert error.mean() < 0.5 or name == "equalize", (name, argument)  # a bias would show


@pytest.mark.parametrize("value", [0, 77, 255])
def test_flat_frames(value: int) -> None:
    frames = np.full((2, 24, 24, 3), value, np.uint8)
    for made, (name, argument) in zip(operations_of_dali(frames, cases(7.0)), cases(7.0)):
        error = np.abs(made.astype(int) - reference.operation(frames, name, argument))
        assert error.max() <= TOLERANCE.get(name, 1), (name, argument)


def test_arguments_of_a_slot() -> None:
    draw = sample((0, 0, 8, 8), ("posterize", 2.0), ("solarize", 0.4), ("shear_x", 0.1)).views[0]
    assert graph.slot_arguments(draw, 0, 8)[:2] == (graph.BRANCHES["posterize"], 0b11000000)
    assert graph.slot_arguments(draw, 1, 8)[:2] == (graph.BRANCHES["solarize"], pytest.approx(102))
    branch, _, matrix = graph.slot_arguments(draw, 2, 8)
    assert branch == graph.WARP and matrix == pytest.approx(np.array([[1, 0.1, 0], [0, 1, 0]]))
    assert graph.slot_arguments(draw, 3, 8)[0] == graph.NONE
    pixelwise = [graph.BRANCHES[name] for name in OPERATIONS if name not in GEOMETRIC_REACH]
    assert len(set(pixelwise) | {graph.NONE, graph.WARP}) == 11


@pytest.mark.parametrize("kind", ["frames", "video", "jpeg"])
def test_the_graph_for_a_gpu_is_well_formed(kind: str) -> None:
    """DALI checks names, arguments and devices of every operator while the graph is written; running it needs the GPU."""
    pipe = graph.build(kind, views=2, size=32, slots=2, samples=4, device="gpu", device_id=0, threads=1)
    assert pipe.device_id == 0
