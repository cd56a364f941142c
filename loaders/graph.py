"""The DALI graph of a clip's views, as plain functions of DataNodes with the device a parameter. Imports DALI: import it late.

    encoded video | JPEG frames | decoded frames  ->  short side scaled once  ->  per view: crop, resize, flip, RandAugment  ->  views

Every draw comes in through `external_source`, one small tensor a sample; nothing is drawn here. Samples are clips ("FHWC"), or single
frames ("HWC") for JPEG, so that all images of a batch reach the decoder at once. Every operation works on each frame alone, so both
layouts share these functions. Branches on a draw are DALI conditionals: a branch sees only the samples that take it.
"""

from typing import Any

import numpy as np
from nvidia.dali import fn, math, pipeline_def
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.types import Constant, DALIDataType, DALIImageType, DALIInterpType

from ppma.loaders.augment import WARP_FILL
from ppma.loaders.draws import GEOMETRIC_REACH, OPERATIONS, ViewDraw, warp_matrix

NONE, WARP = 0, 1
BRANCHES = {name: WARP if name in GEOMETRIC_REACH else 2 + i for i, name in enumerate(OPERATIONS)}
"""Operation -> the branch of the graph that does it; all geometric ones are a matrix for one warp."""
BLUR = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
"""torchvision's smoothing for sharpness."""


def slot_arguments(draw: ViewDraw, slot: int, size: int) -> tuple[int, float, np.ndarray]:
    """(branch, value, matrix) of one RandAugment slot of a view, in the units that `apply_operation` takes."""
    identity = np.eye(2, 3, dtype=np.float32)
    if slot >= len(draw.ops):
        return NONE, 0.0, identity
    name, argument = draw.ops[slot]
    if name in GEOMETRIC_REACH:
        return WARP, 0.0, warp_matrix(name, argument, size).astype(np.float32)
    if name == "posterize":
        argument = float(256 - 2 ** (8 - int(argument)))  # the bits to keep, as a mask
    if name == "solarize":
        argument *= 255
    return BRANCHES[name], argument, identity


def _resize(frames: DataNode, size: DataNode | list[int]) -> DataNode:
    resized: Any = fn.resize(frames, size=size, antialias=False, interp_type=DALIInterpType.INTERP_LINEAR)
    return resized


def _to_uint8(values: DataNode) -> DataNode:
    """Clamped and cut off, as torchvision does; 1/512 keeps float noise from pulling integers down."""
    return fn.cast(math.floor(math.clamp(values, 0.0, 255.0) + 1 / 512), dtype=DALIDataType.UINT8)


def _blend(frames: DataNode, other: DataNode, factor: DataNode) -> DataNode:
    return _to_uint8(frames * factor + other * (1 - factor))


def _grey(frames: DataNode) -> DataNode:
    """One channel; half a step less than rounded, since torchvision cuts off."""
    return fn.color_space_conversion(frames, image_type=DALIImageType.RGB, output_type=DALIImageType.GRAY) - 0.5


def _autocontrast(frames: DataNode) -> DataNode:
    low = fn.cast(fn.reductions.min(frames, axis_names="HW", keep_dims=True), dtype=DALIDataType.FLOAT)
    high = fn.cast(fn.reductions.max(frames, axis_names="HW", keep_dims=True), dtype=DALIDataType.FLOAT)
    flat = fn.cast(high == low, dtype=DALIDataType.FLOAT)  # a flat channel stays as it is: low 0, scale 1
    scale = (1 - flat) * 255.0 / (high - low + flat) + flat
    return _to_uint8((frames - low * (1 - flat)) * scale)


def _invert(frames: DataNode) -> DataNode:
    return frames ^ Constant(255, dtype=DALIDataType.UINT8)  # 255 - x, without leaving uint8


def _equalize(frames: DataNode) -> DataNode:
    """DALI leaves out the lowest filled bin of the histogram (OpenCV's formula), torchvision the highest: so upside down."""
    return _invert(fn.equalize(_invert(frames)))


def _sharpness(frames: DataNode, factor: DataNode, inner: DataNode) -> DataNode:
    """`inner` is 0 on the outermost pixels, which stay as they are."""
    blurred = fn.filter(frames, Constant(BLUR))
    return _to_uint8(frames + (1 - factor) * inner * (fn.cast(blurred, dtype=DALIDataType.FLOAT) - frames))


def apply_operation(
    frames: DataNode, branch: DataNode, value: DataNode, matrix: DataNode, inner: DataNode, device: str
) -> DataNode:
    """One RandAugment slot: each sample takes the branch drawn for it."""
    amount = value.gpu() if device == "gpu" else value
    if branch == WARP:
        frames = fn.warp_affine(frames, matrix=matrix, fill_value=WARP_FILL, interp_type=DALIInterpType.INTERP_LINEAR)
    elif branch == BRANCHES["brightness"]:
        frames = _to_uint8(frames * amount)
    elif branch == BRANCHES["contrast"]:
        frames = _blend(frames, fn.reductions.mean(_grey(frames), axis_names="HWC", keep_dims=True), amount)
    elif branch == BRANCHES["saturation"]:
        frames = _blend(frames, _grey(frames), amount)
    elif branch == BRANCHES["sharpness"]:
        frames = _sharpness(frames, amount, inner)
    elif branch == BRANCHES["autocontrast"]:
        frames = _autocontrast(frames)
    elif branch == BRANCHES["equalize"]:
        frames = _equalize(frames)
    elif branch == BRANCHES["invert"]:
        frames = _invert(frames)
    elif branch == BRANCHES["posterize"]:
        frames = frames & fn.cast(amount, dtype=DALIDataType.UINT8)
    elif branch == BRANCHES["solarize"]:
        frames = frames ^ fn.cast((frames >= amount) * 255, dtype=DALIDataType.UINT8)
    return frames


def make_view(scaled: DataNode, view: int, *, size: int, slots: int, inner: DataNode, device: str) -> DataNode:
    """Crop, resize, flip and augment one view of a scaled clip or frame; its draws are inputs named after the view."""
    box = fn.external_source(name=f"box_{view}")
    frames = fn.slice(scaled, start=box[:2], end=box[2:], axis_names="HW")
    frames = _resize(frames, [size, size])
    if fn.external_source(name=f"flip_{view}") != 0:
        frames = fn.flip(frames, horizontal=1)
    for slot in range(slots):
        branch = fn.external_source(name=f"branch_{view}_{slot}")
        value = fn.external_source(name=f"value_{view}_{slot}")
        matrix = fn.external_source(name=f"matrix_{view}_{slot}")
        frames = apply_operation(frames, branch, value, matrix, inner, device)
    return frames


def decode(kind: str, device: str) -> DataNode:
    """The decoded frames of a sample, on the device."""
    backend = "mixed" if device == "gpu" else "cpu"
    if kind == "video":
        encoded = fn.external_source(name="payload")
        frame_idx = fn.external_source(name="frame_idx")
        # pad_mode: a frame past the end is an error; the default makes it black in silence
        return fn.decoders.video(encoded, device=backend, frames=frame_idx, pad_mode="none")
    if kind == "jpeg":
        return fn.decoders.image(fn.external_source(name="payload"), device=backend, output_type=DALIImageType.RGB)
    frames = fn.external_source(name="payload", layout="FHWC")
    return frames.gpu() if device == "gpu" else frames


@pipeline_def(enable_conditionals=True)
def _views(kind: str, views: int, size: int, slots: int, device: str) -> tuple[DataNode, DataNode]:
    decoded = decode(kind, device)
    shape = decoded.shape()  # the host checks it against the manifest's
    scaled, scaled_size = decoded, fn.external_source(name="scaled_size")
    if fn.external_source(name="rescale") != 0:
        scaled = _resize(decoded, scaled_size)
    edge = np.zeros((size, size, 1), np.float32)
    edge[1:-1, 1:-1] = 1
    inner = Constant(edge, device=device)
    made = [make_view(scaled, v, size=size, slots=slots, inner=inner, device=device) for v in range(views)]
    return fn.stack(*made, axis=0), shape


def build(
    kind: str, *, views: int, size: int, slots: int, samples: int, device: str, device_id: int, threads: int
) -> Pipeline:
    """The pipeline for one kind of input; `samples` is the largest batch. Depth 1: the caller's thread is what overlaps it."""
    return _views(
        kind,
        views,
        size,
        slots,
        device,
        batch_size=samples,
        num_threads=threads,
        device_id=device_id if device == "gpu" else None,
        prefetch_queue_depth=1,
        exec_dynamic=True,
    )
