"""The DALI graph that decodes clips and crops their views. Importing this file imports DALI.

    encoded video | JPEG frames | decoded frames
        ->  scale the short side once  ->  per view: crop, resize, flip  ->  views, decoded shape

Everything random comes in through `external_source`, one array over the samples per argument; RandAugment follows in
`kernels/randaugment.py`. Samples are clips ("FHWC"), or single frames ("HWC") for JPEG, so that all images of a batch
reach the decoder at once; every operation works on each frame alone. Each operator names its device: one that is fed
from the other device is an error when the graph is built.
"""

from typing import Any

from nvidia.dali import fn, pipeline_def
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.types import DALIImageType, DALIInterpType


def _resize(frames: DataNode, size: DataNode, device: str) -> DataNode:
    """Resize bilinearly; a negative size flips."""
    linear = DALIInterpType.INTERP_LINEAR
    resized: Any = fn.resize(frames, size=size, antialias=False, interp_type=linear, device=device)
    return resized


def make_view(scaled: DataNode, view: int, device: str) -> DataNode:
    """Crop, resize and flip one view of a scaled clip or frame; its parameters are inputs named after the view.

    The crop is cut out before it is resized, so that no pixel from outside it is blended in.
    """
    start, end, size = (fn.external_source(name=f"{name}_{view}") for name in ("start", "end", "size"))
    cropped = fn.slice(scaled, start=start, end=end, axis_names="HW", device=device)
    return _resize(cropped, size, device)


def decode(kind: str, device: str) -> DataNode:
    """Return the decoded frames of a sample, on the device."""
    backend = "mixed" if device == "gpu" else "cpu"
    if kind == "video":
        encoded = fn.external_source(name="payload")
        frame_idx = fn.external_source(name="frame_idx")
        # pad_mode: a frame past the end is an error; by default it is silently black
        return fn.decoders.video(encoded, device=backend, frames=frame_idx, pad_mode="none")
    if kind == "jpeg":
        return fn.decoders.image(fn.external_source(name="payload"), device=backend, output_type=DALIImageType.RGB)
    frames = fn.external_source(name="payload", layout="FHWC")
    return frames.gpu() if device == "gpu" else frames


@pipeline_def(enable_conditionals=True)
def _views(kind: str, views: int, device: str) -> tuple[DataNode, ...]:
    decoded = decode(kind, device)
    shape = decoded.shape()  # the host compares it with the manifest's
    scaled, scaled_size = decoded, fn.external_source(name="scaled_size")
    if fn.external_source(name="rescale"):  # samples of a packed store have their size already
        scaled = _resize(decoded, scaled_size, device)
    return *(make_view(scaled, view, device) for view in range(views)), shape


def build(kind: str, *, views: int, samples: int, device: str, device_id: int, threads: int) -> Pipeline:
    """Return the pipeline for one kind of input; DALI builds it when it first runs.

    Args:
        kind: "video", "jpeg" or "frames".
        views: Crops of each sample; each is an output.
        samples: The largest batch: clips, or frames of JPEG.
        device: "cpu" or "gpu".
        device_id: Index of the GPU.
        threads: DALI's worker threads.
    """
    return _views(
        kind,
        views,
        device,
        batch_size=samples,
        num_threads=threads,
        device_id=device_id if device == "gpu" else None,
        prefetch_queue_depth=1,  # the caller's thread overlaps it with the step
        exec_dynamic=True,  # its outputs stay as long as a tensor refers to them
    )
