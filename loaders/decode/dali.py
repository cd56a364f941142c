"""Decode a batch and make its views on the device through DALI.

    list[DaliInput], list[Sample]  ->  grouped by kind  ->  one DALI graph per kind (`dali_graph`)  ->  batch order
    ->  RandAugment (`kernels/randaugment.py`)  ->  frames_BTHWC uint8

Each kind has its own pipeline, built when the kind first occurs: a graph holds only the decoder it needs, and the JPEG
decoder gets all images of a batch at once. Frames are copied once, from DALI's buffers into the returned tensor or by
the first operation of RandAugment. DALI is imported when the first pipeline is built.
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
from ppma.loaders.decode.dali_input import DaliInput
from ppma.loaders.prefetch import upload
from ppma.loaders.samples import GEOMETRIC_REACH, Sample, ViewParams, check_crops, scaled_size, warp_matrix

if TYPE_CHECKING:
    from nvidia.dali.pipeline import Pipeline

Device = Literal["cpu", "gpu"]

INSTALL = "pip install nvidia-dali-cuda130==2.4.0"
DISTRIBUTIONS = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
"""DALI's names on PyPI; `nvidia-dali` itself is an empty package there."""

DECODE_ENGINES = {
    "H100": 7, "H200": 7, "B200": 7, "A100": 5, "A30": 4, "L4": 4, "L40": 3, "L40S": 3, "A10": 2, "A40": 2, "T4": 2,
}  # fmt: skip
"""Number of NVDEC engines by product. Source: NVIDIA's data sheets of these GPUs."""
UNKNOWN_ENGINES = 2


def available(device: Device) -> tuple[bool, str]:
    """Return whether DALI can run on the device, and its version or what is missing."""
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


def decode_threads(config: LoaderConfig, device: torch.device) -> int:
    """Return the number of DALI's threads: on a GPU one per decode engine, since more decode nothing faster."""
    if device.type == "cpu":
        return config.workers
    words = torch.cuda.get_device_name(device).replace("-", " ").split()
    return next((DECODE_ENGINES[word] for word in words if word in DECODE_ENGINES), UNKNOWN_ENGINES)


class UndecodableError(RuntimeError):
    """Clips of a batch cannot be decoded, or differ in size from their manifest; `indices` are their places.

    The batch is lost; the DaliViews that raised it is still usable.
    """

    def __init__(self, indices: tuple[int, ...]) -> None:
        super().__init__(f"DALI cannot decode the clips {indices} of the batch")
        self.indices = indices


class DaliViews:
    """Make the views of batches of clips: `frames_BTHWC = dali_views(inputs, samples)`."""

    def __init__(
        self, config: LoaderConfig, clips_per_batch: int, *, device: Device, device_id: int = 0, threads: int
    ) -> None:
        """Check that DALI can run.

        Args:
            config: Size, frames and number of the views.
            clips_per_batch: The largest batch, in clips.
            device: "cpu" or "gpu".
            device_id: Index of the GPU.
            threads: DALI's threads for this rank.

        Raises:
            InputError: DALI is not installed, or there is no GPU.
        """
        ready, reason = available(device)
        if not ready:
            raise InputError(f"loader.implementation dali on {device}: {reason}")
        self.config, self.clips_per_batch, self.threads = config, clips_per_batch, threads
        self.device, self.device_id = device, device_id
        self.torch_device = torch.device("cuda", device_id) if device == "gpu" else torch.device("cpu")
        self._pipelines: dict[str, Pipeline] = {}

    def __call__(self, inputs: Sequence[DaliInput], samples: Sequence[Sample]) -> torch.Tensor:
        """Decode the clips and make their views.

        Args:
            inputs: Encoded or decoded clips, of any mixture of kinds.
            samples: The sample of each clip.

        Returns:
            uint8 (clips * views, T, size, size, 3), the views of a clip adjacent, clips in the order given. On a GPU it is
            ready on the calling thread's current stream: the host does not wait for it.

        Raises:
            UndecodableError: Some clips cannot be decoded.
        """
        for clip, sample in zip(inputs, samples):
            check_crops(sample.views, *scaled_size(clip.height, clip.width, self.config.short_side))
        # 1. decode, crop and resize each kind
        kinds = {kind: [i for i, x in enumerate(inputs) if x.kind == kind] for kind in {x.kind for x in inputs}}
        made = [(rows, self._make(kind, rows, inputs, samples)) for kind, rows in kinds.items()]
        # 2. batch order and RandAugment
        views = [view for sample in samples for view in sample.views]
        program = write_program([[program_step(*op, self.config.size) for op in view.ops] for view in views])
        if len(made) == len(made[0][1]) == 1:
            return randaugment(made[0][1][0], program)
        frames_BTHWC = self._in_order(made, len(inputs)).flatten(0, 1)
        return randaugment(frames_BTHWC, program) if any(view.ops for view in views) else frames_BTHWC

    def _in_order(self, made: list[tuple[list[int], list[torch.Tensor]]], clips: int) -> torch.Tensor:
        """Copy the views of every kind, (rows, T, size, size, 3) each, to (clips, V, T, size, size, 3)."""
        first = made[0][1]
        shape = (clips, len(first), *first[0].shape[1:])
        frames_CVTHWC = torch.empty(shape, dtype=torch.uint8, device=self.torch_device)
        for rows, views in made:
            for view, frames_RTHWC in enumerate(views):
                if len(rows) == clips:
                    frames_CVTHWC[:, view].copy_(frames_RTHWC)
                else:
                    frames_CVTHWC[:, view].index_copy_(0, upload(torch.tensor(rows), self.torch_device), frames_RTHWC)
        return frames_CVTHWC

    def _make(
        self, kind: str, rows: list[int], inputs: Sequence[DaliInput], samples: Sequence[Sample]
    ) -> list[torch.Tensor]:
        """Return the views of the clips of one kind; `rows` are their places in the batch."""
        try:
            return self._run(kind, [inputs[i] for i in rows], [samples[i] for i in rows])
        except RuntimeError as error:
            bad = [] if kind == "frames" else [i for i in rows if not self._decodes(kind, inputs[i], samples[i])]
            if not bad or (len(bad) == len(rows) > 1):
                raise  # not the clips: the device is out of memory or gone
            raise UndecodableError(tuple(bad)) from error

    def _decodes(self, kind: str, clip: DaliInput, sample: Sample) -> bool:
        try:
            self._run(kind, [clip], [sample])
        except RuntimeError:
            return False
        return True

    def _run(self, kind: str, inputs: list[DaliInput], samples: list[Sample]) -> list[torch.Tensor]:
        """Return (clips, T, size, size, 3) of each view of clips of one kind, in DALI's own buffers."""
        if kind not in self._pipelines:
            self._pipelines[kind] = self._build(kind)
        repeats = self.config.frames if kind == "jpeg" else 1  # there a DALI sample is a frame
        arguments = {k: np.repeat(value, repeats, axis=0) for k, value in self._arguments(inputs, samples).items()}
        stream = [torch.cuda.current_stream(self.torch_device).cuda_stream] if self.device == "gpu" else []
        try:
            *views, shapes = self._pipelines[kind].run(*stream, **payloads(kind, inputs), **arguments)
        except RuntimeError:
            del self._pipelines[kind]  # after an error a DALI pipeline is unusable
            raise
        _check_shapes(np.array(shapes.as_tensor()), inputs, self.config.frames, repeats)
        # DALI bound its outputs to the current stream, as in its own PyTorch iterator: the stream waits for them before
        # it reads them, and DALI reuses a buffer that no tensor refers to only after the stream's work until then.
        made = [torch.from_dlpack(view.as_tensor()) for view in views]
        return [frames.reshape(len(inputs), self.config.frames, *frames.shape[-3:]) for frames in made]

    def _build(self, kind: str) -> "Pipeline":
        from ppma.loaders.decode import dali_graph

        samples = self.clips_per_batch * (self.config.frames if kind == "jpeg" else 1)
        views, device, threads = self.config.views, self.device, self.threads
        return dali_graph.build(
            kind, views=views, samples=samples, device=device, device_id=self.device_id, threads=threads
        )

    def _arguments(self, inputs: list[DaliInput], samples: list[Sample]) -> dict[str, np.ndarray]:
        """Return one array over the clips for each argument of the graph."""
        scaled = [scaled_size(clip.height, clip.width, self.config.short_side) for clip in inputs]
        rescale = [size != (clip.height, clip.width) for size, clip in zip(scaled, inputs)]
        named = {"scaled_size": np.array(scaled, np.float32), "rescale": np.array(rescale)}
        for v in range(self.config.views):
            named |= view_arguments([sample.views[v] for sample in samples], v, self.config.size)
        return named


def payloads(kind: str, inputs: list[DaliInput]) -> dict[str, Any]:
    """Return the graph's data inputs for clips of one kind: lists over the samples."""
    if kind == "video":
        frame_idx = np.array([clip.frame_idx for clip in inputs], np.int32)
        return {"payload": [clip.payloads[0] for clip in inputs], "frame_idx": frame_idx}
    if kind == "jpeg":
        return {"payload": [clip.payloads[i] for clip in inputs for i in clip.frame_idx]}
    return {"payload": [clip.payloads[0] for clip in inputs]}


def view_arguments(views: list[ViewParams], view: int, size: int) -> dict[str, np.ndarray]:
    """Return {input of the graph: array} with the crops and sizes (negative for a flip) of one view of every clip."""
    top, left, height, width = np.array([params.crop for params in views], np.int32).T
    return {
        f"start_{view}": np.stack([top, left], axis=1),
        f"end_{view}": np.stack([top + height, left + width], axis=1),
        f"size_{view}": np.array([(size, -size if params.flip else size) for params in views], np.float32),
    }


def program_step(name: str, argument: float, size: int) -> tuple[Operation, list[float]]:
    """Return a RandAugment operation on a view of `size` pixels as `write_program` takes it."""
    if name in GEOMETRIC_REACH:
        return Operation.WARP, warp_matrix(name, argument, size).ravel().tolist()
    if name == "posterize":
        argument = 256 - 2 ** (8 - int(argument))  # the bits to keep, as a mask
    if name == "solarize":
        argument = math.ceil(argument * 255)
    return Operation[name.upper()], [argument]


def _check_shapes(shapes: np.ndarray, inputs: list[DaliInput], frames: int, repeats: int) -> None:
    """Raise RuntimeError if a clip decodes to another size or count of frames than was asked for.

    `shapes` holds a row for each clip, (T, H, W, C), or for each frame of a JPEG clip, (H, W, C). A clip of another size
    would be silently squeezed.
    """
    expected = np.repeat([(frames, clip.height, clip.width, 3) for clip in inputs], repeats, axis=0)
    wrong = np.flatnonzero((shapes != expected[:, -shapes.shape[1] :]).any(axis=1))
    if len(wrong):
        found, wanted = shapes[wrong[0], :-1].tolist(), expected[wrong[0], -shapes.shape[1] : -1].tolist()
        raise RuntimeError(f"a clip decodes to {found} (frames, height, width), not {wanted}")
