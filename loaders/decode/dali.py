"""Inputs and draws of a batch -> its views as one tensor on the device, through DALI.

    list[DaliInput], list[Sample]  ->  grouped by kind  ->  one DALI graph per kind (`graph.py`)  ->  put in the batch's order
    ->  RandAugment (`kernels/randaugment.py`)  ->  frames_BTHWC uint8

One pipeline per kind, built when that kind first turns up: a graph holds only the decoder it needs, and the JPEG decoder gets all images
of a batch at once. The frames are copied once, from DALI's buffers into the returned tensor or by the first step of RandAugment.
DALI is imported when the first DaliViews is made; loader workers never import this file.
"""

import importlib.metadata
import importlib.util
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ppma.config.errors import InputError
from ppma.config.loader import LoaderConfig
from ppma.kernels.randaugment import randaugment
from ppma.kernels.randaugment_program import Operation, write_program
from ppma.loaders.prefetch import upload
from ppma.loaders.samples import GEOMETRIC_REACH, DaliInput, Sample, ViewParams, check_crops, scaled_size, warp_matrix

if TYPE_CHECKING:
    from nvidia.dali.pipeline import Pipeline

Device = Literal["cpu", "gpu"]

INSTALL = "pip install nvidia-dali-cuda130==2.4.0"
DISTRIBUTIONS = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
"""What DALI is called on PyPI; `nvidia-dali` itself is an empty package there."""


class UndecodableError(RuntimeError):
    """Clips of a batch that cannot be decoded, or have another size than their manifest says. The batch is lost, DaliViews is not."""

    def __init__(self, indices: tuple[int, ...], reason: str) -> None:
        """`indices` are the clips' places in the batch that was asked for."""
        super().__init__(f"clips {indices} of the batch: {reason}")
        self.indices = indices


def available(device: Device) -> tuple[bool, str]:
    """Whether the DALI form can run on the device, and why (not): one line for the doctor and the log."""
    installed = [name for name in DISTRIBUTIONS if _version(name)]
    if not installed or importlib.util.find_spec("nvidia.dali") is None:
        return False, f"DALI is not installed: {INSTALL}"
    if device == "gpu" and not torch.cuda.is_available():
        return False, "PyTorch sees no NVIDIA GPU"
    return True, f"{installed[0]} {_version(installed[0])}"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


class DaliViews:
    """Makes the views of batches of clips: `frames_BTHWC = views(inputs, draws)`."""

    def __init__(
        self, config: LoaderConfig, clips_per_batch: int, *, device: Device, device_id: int = 0, threads: int
    ) -> None:
        """`clips_per_batch` is the largest batch, in clips; `threads` are DALI's, for this rank."""
        ready, reason = available(device)
        if not ready:
            raise InputError(f"loader.implementation dali on {device}: {reason}")
        self.config, self.clips_per_batch, self.threads = config, clips_per_batch, threads
        self.device, self.device_id = device, device_id
        self.torch_device = torch.device("cuda", device_id) if device == "gpu" else torch.device("cpu")
        self._pipelines: dict[str, Pipeline] = {}

    def __call__(self, inputs: Sequence[DaliInput], draws: Sequence[Sample]) -> torch.Tensor:
        """Decode the clips and make their views.

        Args:
            inputs: Encoded or decoded clips, of any mixture of kinds.
            draws: What is drawn for each clip.

        Returns:
            uint8 (clips * views, T, size, size, 3), the views of a clip adjacent, clips in the order given. It is PyTorch's memory, and on
            a GPU ready on the calling thread's current stream: the host does not wait for it.

        Raises:
            UndecodableError: Some clips cannot be decoded.
        """
        self._check(inputs, draws)
        kinds = {kind: [i for i, x in enumerate(inputs) if x.kind == kind] for kind in {x.kind for x in inputs}}
        parts = [(rows, self._made(kind, rows, inputs, draws)) for kind, rows in kinds.items()]
        views = [view for draw in draws for view in draw.views]
        program = write_program([[numbered(*op, self.config.size) for op in view.ops] for view in views])
        if len(parts) == len(parts[0][1]) == 1:
            return randaugment(parts[0][1][0], program)
        frames_CVTHWC = self._in_order(parts, len(inputs))
        frames_BTHWC = frames_CVTHWC.flatten(0, 1)
        return randaugment(frames_BTHWC, program) if any(view.ops for view in views) else frames_BTHWC

    def _in_order(self, parts: list[tuple[list[int], list[torch.Tensor]]], clips: int) -> torch.Tensor:
        """Copy the views of every kind, (rows, T, size, size, 3) each, to (clips, V, T, size, size, 3)."""
        _, (first, *others) = parts[0]
        shape = (clips, 1 + len(others), *first.shape[1:])
        frames_CVTHWC = torch.empty(shape, dtype=torch.uint8, device=self.torch_device)
        for rows, made in parts:
            for view, frames_RTHWC in enumerate(made):
                if len(rows) == clips:
                    frames_CVTHWC[:, view].copy_(frames_RTHWC)
                else:
                    frames_CVTHWC[:, view].index_copy_(0, upload(torch.tensor(rows), self.torch_device), frames_RTHWC)
        return frames_CVTHWC

    def _check(self, inputs: Sequence[DaliInput], draws: Sequence[Sample]) -> None:
        if not 0 < len(inputs) == len(draws) <= self.clips_per_batch:
            raise ValueError(
                f"{len(inputs)} inputs, {len(draws)} draws; 1 to {self.clips_per_batch} of each are needed"
            )
        for clip, draw in zip(inputs, draws):
            if len(clip.frame_idx) != self.config.frames or len(draw.views) != self.config.views:
                found = f"{len(clip.frame_idx)} frames, {len(draw.views)} views"
                raise ValueError(f"a clip has {found}; {self.config.frames} and {self.config.views} are configured")
            check_crops(draw.views, *scaled_size(clip.height, clip.width, self.config.short_side))
            if max(len(view.ops) for view in draw.views) > self.config.randaugment_ops:
                raise ValueError(
                    f"a view has more operations than loader.randaugment_ops {self.config.randaugment_ops}"
                )

    def _made(
        self, kind: str, rows: list[int], inputs: Sequence[DaliInput], draws: Sequence[Sample]
    ) -> list[torch.Tensor]:
        """The views of the clips of one kind; `rows` are their places in the batch."""
        try:
            return self._run(kind, [inputs[i] for i in rows], [draws[i] for i in rows])
        except RuntimeError as error:
            bad = [] if kind == "frames" else [i for i in rows if not self._decodes(kind, inputs[i], draws[i])]
            if not bad or (len(bad) == len(rows) > 1):
                raise  # not the clips: out of memory, say, or the device is gone
            raise UndecodableError(tuple(bad), "DALI cannot decode it") from error

    def _decodes(self, kind: str, clip: DaliInput, draw: Sample) -> bool:
        try:
            self._run(kind, [clip], [draw])
        except RuntimeError:
            return False
        return True

    def _run(self, kind: str, inputs: list[DaliInput], draws: list[Sample]) -> list[torch.Tensor]:
        """Return (clips, T, size, size, 3) of each view of clips of one kind, in DALI's own buffers."""
        if kind not in self._pipelines:
            self._pipelines[kind] = self._build(kind)
        repeats = self.config.frames if kind == "jpeg" else 1  # there a sample is a frame, with its clip's draws
        drawn = {name: np.repeat(value, repeats, axis=0) for name, value in self._arguments(inputs, draws).items()}
        stream = [torch.cuda.current_stream(self.torch_device).cuda_stream] if self.device == "gpu" else []
        try:
            *views, shapes = self._pipelines[kind].run(*stream, **payloads(kind, inputs), **drawn)
        except RuntimeError:
            del self._pipelines[kind]  # an error leaves a pipeline of DALI's unusable
            raise
        _check_shapes(np.array(shapes.as_tensor()), inputs, repeats)
        # DALI bound its outputs to the current stream, as for its own PyTorch iterator: the stream waits for them before it reads them,
        # and DALI reuses a buffer, once no tensor refers to it, only after what the stream was given until then.
        made = [torch.from_dlpack(view.as_tensor()) for view in views]
        return [frames.reshape(len(inputs), self.config.frames, *frames.shape[-3:]) for frames in made]

    def _build(self, kind: str) -> "Pipeline":
        from ppma.loaders.decode import dali_graph as graph

        config = self.config
        return graph.build(
            kind,
            views=config.views,
            samples=self.clips_per_batch * (config.frames if kind == "jpeg" else 1),
            device=self.device,
            device_id=self.device_id,
            threads=self.threads,
        )

    def _arguments(self, inputs: list[DaliInput], draws: list[Sample]) -> dict[str, np.ndarray]:
        """Everything drawn, as one array over the clips for each input of the graph."""
        scaled = [scaled_size(clip.height, clip.width, self.config.short_side) for clip in inputs]
        rescale = [size != (clip.height, clip.width) for size, clip in zip(scaled, inputs)]
        named = {"scaled_size": np.array(scaled, np.float32), "rescale": np.array(rescale)}
        for v in range(self.config.views):
            named |= view_arguments([draw.views[v] for draw in draws], v, self.config.size)
        return named


def payloads(kind: str, inputs: list[DaliInput]) -> dict[str, Any]:
    """The graph's data inputs for clips of one kind: a list over the samples, and for video the frames to take."""
    if kind == "video":
        frame_idx = np.array([clip.frame_idx for clip in inputs], np.int32)
        return {"payload": [clip.payloads[0] for clip in inputs], "frame_idx": frame_idx}
    if kind == "jpeg":
        return {"payload": [clip.payloads[i] for clip in inputs for i in clip.frame_idx]}
    return {"payload": [_chosen(clip.payloads[0], clip.frame_idx) for clip in inputs]}


def _chosen(frames_THWC: np.ndarray, frame_idx: tuple[int, ...]) -> np.ndarray:
    return frames_THWC if frame_idx == tuple(range(len(frames_THWC))) else frames_THWC[list(frame_idx)]


def view_arguments(draws: list[ViewParams], view: int, size: int) -> dict[str, np.ndarray]:
    """Return the crop and the size, negative for a flip, of one view of every clip, under the names of the graph's inputs."""
    top, left, height, width = np.array([draw.crop for draw in draws], np.int32).T
    return {
        f"start_{view}": np.stack([top, left], axis=1),
        f"end_{view}": np.stack([top + height, left + width], axis=1),
        f"size_{view}": np.array([(size, -size if draw.flip else size) for draw in draws], np.float32),
    }


def numbered(name: str, argument: float, size: int) -> tuple[Operation, list[float]]:
    """Return a drawn operation on a view of `size` pixels as `write_program` takes it."""
    if name in GEOMETRIC_REACH:
        return Operation.WARP, warp_matrix(name, argument, size).ravel().tolist()
    if name == "posterize":
        argument = 256 - 2 ** (8 - int(argument))  # the bits to keep, as a mask
    if name == "solarize":
        argument = math.ceil(argument * 255)
    return Operation[name.upper()], [argument]


def _check_shapes(shapes: np.ndarray, inputs: list[DaliInput], repeats: int) -> None:
    """A file of another size than its manifest says would be squeezed in silence."""
    expected = np.repeat([(clip.height, clip.width, 3) for clip in inputs], repeats, axis=0)
    wrong = np.flatnonzero((shapes[:, -3:] != expected).any(axis=1))
    if len(wrong):
        found, wanted = shapes[wrong[0], -3:-1].tolist(), expected[wrong[0], :2].tolist()
        raise RuntimeError(f"a clip decodes to {found} pixels; its manifest says {wanted}")
