"""Inputs and draws of a batch -> its views as one tensor on the device, through DALI.

    list[ClipInput], list[SampleDraw]  ->  grouped by kind  ->  one DALI graph per kind (`graph.py`)  ->  frames_BTHWC uint8, in order

One pipeline per kind, built when that kind first turns up, and results put back in the batch's order on the device: a graph holds only
the decoder it needs, the JPEG decoder gets all images of a batch at once, and a batch of one kind, the usual one, is not touched again.
DALI is imported when the first DaliViews is made; loader workers never import this file.
"""

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ppma.loaders.config import LoaderConfig
from ppma.loaders.draws import ClipInput, SampleDraw, ViewDraw, check_crops, scaled_size
from ppma.loaders.errors import InputError

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

    def __call__(self, inputs: Sequence[ClipInput], draws: Sequence[SampleDraw]) -> torch.Tensor:
        """uint8 (clips * views, T, size, size, 3) on the device, the views of a clip adjacent, clips in the order given.

        On a GPU the result is ready on PyTorch's current stream; the host does not wait for it. Raises UndecodableError.
        """
        self._check(inputs, draws)
        kinds = {kind: [i for i, x in enumerate(inputs) if x.kind == kind] for kind in {x.kind for x in inputs}}
        parts = {kind: self._made(kind, rows, inputs, draws) for kind, rows in kinds.items()}
        if len(parts) == 1:
            return next(iter(parts.values())).contiguous().flatten(0, 1)
        first = next(iter(parts.values()))
        frames_CVTHWC = torch.empty((len(inputs), *first.shape[1:]), dtype=torch.uint8, device=self.torch_device)
        for kind, rows in kinds.items():
            frames_CVTHWC[torch.tensor(rows, device=self.torch_device)] = parts[kind]
        return frames_CVTHWC.flatten(0, 1)

    def _check(self, inputs: Sequence[ClipInput], draws: Sequence[SampleDraw]) -> None:
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
        self, kind: str, rows: list[int], inputs: Sequence[ClipInput], draws: Sequence[SampleDraw]
    ) -> torch.Tensor:
        """The views of the clips of one kind; `rows` are their places in the batch."""
        try:
            return self._run(kind, [inputs[i] for i in rows], [draws[i] for i in rows])
        except RuntimeError as error:
            bad = [] if kind == "frames" else [i for i in rows if not self._decodes(kind, inputs[i], draws[i])]
            if not bad or (len(bad) == len(rows) > 1):
                raise  # not the clips: out of memory, say, or the device is gone
            raise UndecodableError(tuple(bad), "DALI cannot decode it") from error

    def _decodes(self, kind: str, clip: ClipInput, draw: SampleDraw) -> bool:
        try:
            self._run(kind, [clip], [draw])
        except RuntimeError:
            return False
        return True

    def _run(self, kind: str, inputs: list[ClipInput], draws: list[SampleDraw]) -> torch.Tensor:
        """(clips, V, T, size, size, 3) of clips of one kind; for JPEG a transposed view."""
        if kind not in self._pipelines:
            self._pipelines[kind] = self._build(kind)
        repeats = self.config.frames if kind == "jpeg" else 1  # there a sample is a frame, with its clip's draws
        drawn = {name: np.repeat(value, repeats, axis=0) for name, value in self._arguments(inputs, draws).items()}
        stream = [torch.cuda.current_stream(self.torch_device).cuda_stream] if self.device == "gpu" else []
        try:
            stacked, shapes = self._pipelines[kind].run(*stream, **payloads(kind, inputs), **drawn)
        except RuntimeError:
            del self._pipelines[kind]  # an error leaves a pipeline of DALI's unusable
            raise
        _check_shapes(np.array(shapes.as_tensor()), inputs, repeats)
        made = self._to_torch(stacked)
        if kind != "jpeg":
            return made
        return made.unflatten(0, (len(inputs), self.config.frames)).transpose(1, 2)

    def _build(self, kind: str) -> "Pipeline":
        from ppma.loaders import graph

        config = self.config
        return graph.build(
            kind,
            views=config.views,
            size=config.size,
            slots=config.randaugment_ops,
            samples=self.clips_per_batch * (config.frames if kind == "jpeg" else 1),
            device=self.device,
            device_id=self.device_id,
            threads=self.threads,
        )

    def _arguments(self, inputs: list[ClipInput], draws: list[SampleDraw]) -> dict[str, np.ndarray]:
        """Everything drawn, as one array over the clips for each input of the graph."""
        scaled = [scaled_size(clip.height, clip.width, self.config.short_side) for clip in inputs]
        rescale = [size != (clip.height, clip.width) for size, clip in zip(scaled, inputs)]
        named = {"scaled_size": np.array(scaled, np.float32), "rescale": np.array(rescale, np.int32)}
        for v in range(self.config.views):
            named |= view_arguments([draw.views[v] for draw in draws], v, self.config)
        return named

    def _to_torch(self, stacked: Any) -> torch.Tensor:
        """Copy DALI's output to a tensor of PyTorch's on the same device: DALI reuses its own buffer."""
        from nvidia.dali.plugin.pytorch import feed_ndarray

        dense = stacked.as_tensor()
        made = torch.empty(dense.shape(), dtype=torch.uint8, device=self.torch_device)
        stream = torch.cuda.current_stream(self.torch_device) if self.device == "gpu" else None
        return feed_ndarray(dense, made, cuda_stream=stream)


def payloads(kind: str, inputs: list[ClipInput]) -> dict[str, Any]:
    """The graph's data inputs for clips of one kind: a list over the samples, and for video the frames to take."""
    if kind == "video":
        frame_idx = np.array([clip.frame_idx for clip in inputs], np.int32)
        return {"payload": [clip.payloads[0] for clip in inputs], "frame_idx": frame_idx}
    if kind == "jpeg":
        return {"payload": [clip.payloads[i] for clip in inputs for i in clip.frame_idx]}
    return {"payload": [_chosen(clip.payloads[0], clip.frame_idx) for clip in inputs]}


def _chosen(frames_THWC: np.ndarray, frame_idx: tuple[int, ...]) -> np.ndarray:
    return frames_THWC if frame_idx == tuple(range(len(frames_THWC))) else frames_THWC[list(frame_idx)]


def view_arguments(draws: list[ViewDraw], view: int, config: LoaderConfig) -> dict[str, np.ndarray]:
    """The draws of one view of every clip, under the names of the graph's inputs."""
    from ppma.loaders.graph import slot_arguments

    boxes = np.array([draw.crop for draw in draws], np.int32)
    boxes[:, 2:] += boxes[:, :2]  # bottom and right
    named = {f"box_{view}": boxes, f"flip_{view}": np.array([draw.flip for draw in draws], np.int32)}
    for slot in range(config.randaugment_ops):
        branch, value, matrix = zip(*(slot_arguments(draw, slot, config.size) for draw in draws))
        named[f"branch_{view}_{slot}"] = np.array(branch, np.int32)
        named[f"value_{view}_{slot}"] = np.array(value, np.float32)
        named[f"matrix_{view}_{slot}"] = np.stack(matrix)
    return named


def _check_shapes(shapes: np.ndarray, inputs: list[ClipInput], repeats: int) -> None:
    """A file of another size than its manifest says would be squeezed in silence."""
    expected = np.repeat([(clip.height, clip.width, 3) for clip in inputs], repeats, axis=0)
    wrong = np.flatnonzero((shapes[:, -3:] != expected).any(axis=1))
    if len(wrong):
        found, wanted = shapes[wrong[0], -3:-1].tolist(), expected[wrong[0], :2].tolist()
        raise RuntimeError(f"a clip decodes to {found} pixels; its manifest says {wanted}")
