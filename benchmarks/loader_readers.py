"""Read clips with every library that is compared, into the same uint8 views (clips * views, 16, 224, 224, 3).

    Manifest, LoaderConfig  ->  TrainingSampler, the same for all  ->  endless batches of one reader

`published` is the published PPMA loader, after pytorchvideo: PyAV decodes every frame of the window to float RGB, 16
frames are kept, resized and cropped in float. The others fetch the 16 frames with their library's fastest
single-threaded method and crop and resize with OpenCV, as our loader does. All but ours and FFCV run in a torch
DataLoader with the same number of workers.
"""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import av
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ppma.common.frames import is_frames, list_frames
from ppma.config.loader import LoaderConfig
from ppma.loaders.sampler import TrainingSampler
from ppma.loaders.samples import Sample, choose_frames, scaled_size
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.store import is_packed, read_packed
from ppma.loaders.stream import ClipStream

BATCH_CLIPS, CYCLE_BATCHES = 4, 4
AHEAD = 2
"""Prefetched batches: per DataLoader worker (torch's default), of our stream, of FFCV."""

ReadFrames = Callable[[Path, list[int]], list[np.ndarray]]
"""(file, frame numbers) -> RGB frames."""


def _wanted(manifest: Manifest, draw: Sample, frames: int) -> list[int]:
    times = np.arange(manifest.frames[draw.clip]) / manifest.fps[draw.clip]
    return choose_frames(times, draw.start_seconds, draw.end_seconds, frames)


def _views(frames: list[np.ndarray], draw: Sample, config: LoaderConfig) -> torch.Tensor:
    """Make the views as a user of that library would: resize if needed, crop, resize."""
    out = np.empty((len(draw.views), len(frames), config.size, config.size, 3), np.uint8)
    height, width = scaled_size(*frames[0].shape[:2], config.short_side)
    for t, frame in enumerate(frames):
        if frame.shape[:2] != (height, width):
            frame = cv2.resize(frame, (width, height))
        for v, view in enumerate(draw.views):
            top, left, h, w = view.crop
            cv2.resize(frame[top : top + h, left : left + w], (config.size, config.size), dst=out[v, t])
    return torch.from_numpy(out)


def _decord(path: Path, wanted: list[int]) -> list[np.ndarray]:
    import decord

    return list(decord.VideoReader(str(path), num_threads=1).get_batch(wanted).asnumpy())


def _torchcodec(path: Path, wanted: list[int]) -> list[np.ndarray]:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate")
    return list(decoder.get_frames_at(wanted).data.numpy())


def _opencv_video(path: Path, wanted: list[int]) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    capture.set(cv2.CAP_PROP_POS_FRAMES, wanted[0])
    frames, at = [], wanted[0]
    for number in wanted:
        while at <= number:
            capture.grab()
            at += 1
        frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
    return frames


def _opencv(path: Path, wanted: list[int]) -> list[np.ndarray]:
    if is_packed(path):
        jpegs = read_packed(path, lambda _: wanted).pictures
        return [cv2.cvtColor(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB) for jpeg in jpegs]
    if is_frames(path):
        files = list_frames(path)
        return [cv2.cvtColor(cv2.imread(str(files[i])), cv2.COLOR_BGR2RGB) for i in wanted]
    return _opencv_video(path, wanted)


def _published_window(path: Path, draw: Sample, wanted: list[int]) -> torch.Tensor:
    """Return every frame of the window as float32 (C, T, H, W), like pytorchvideo's EncodedVideo and FrameVideo."""
    if is_frames(path):
        files = list_frames(path)
        window = [cv2.cvtColor(cv2.imread(str(files[i])), cv2.COLOR_BGR2RGB) for i in range(wanted[0], wanted[-1] + 1)]
        return torch.from_numpy(np.stack(window)).permute(3, 0, 1, 2).float()
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        base = stream.time_base or 1
        origin = stream.start_time or 0
        first, stop = (origin + int(s / base) for s in (draw.start_seconds, draw.end_seconds))
        container.seek(max(first - 1024, 0), any_frame=False, backward=True, stream=stream)
        for frame in container.decode(stream):
            if frame.pts is None or frame.pts >= stop:
                break
            if frame.pts >= first:
                frames.append(frame.to_rgb().to_ndarray())
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).float()


def _published(manifest: Manifest, draw: Sample, config: LoaderConfig) -> torch.Tensor:
    window_CTHW = _published_window(manifest.file(draw.clip), draw, _wanted(manifest, draw, config.frames))
    keep = torch.linspace(0, window_CTHW.shape[1] - 1, config.frames).long()
    frames_CTHW = window_CTHW[:, keep] / 255.0
    size = scaled_size(frames_CTHW.shape[2], frames_CTHW.shape[3], config.short_side)
    frames_CTHW = F.interpolate(frames_CTHW, size=size, mode="bilinear", align_corners=False)
    views = []
    for view in draw.views:
        top, left, h, w = view.crop
        crop = frames_CTHW[:, :, top : top + h, left : left + w]
        views.append(F.interpolate(crop, size=(config.size, config.size), mode="bilinear", align_corners=False))
    return (torch.stack(views).permute(0, 2, 3, 4, 1) * 255).round().to(torch.uint8)


def _by_frames(read: ReadFrames, manifest: Manifest, draw: Sample, config: LoaderConfig) -> torch.Tensor:
    wanted = _wanted(manifest, draw, config.frames)
    return _views(read(manifest.file(draw.clip), wanted), draw, config)


PEERS: dict[str, Callable[[Manifest, Sample, LoaderConfig], torch.Tensor]] = {
    "published": _published,
    "torchcodec": partial(_by_frames, _torchcodec),
    "decord2": partial(_by_frames, _decord),
    "opencv": partial(_by_frames, _opencv),
}
MODULES = {"torchcodec": "torchcodec", "decord2": "decord", "ffcv": "ffcv"}


def installed(reader: str) -> bool:
    """True if the library of a reader is installed."""
    return reader not in MODULES or importlib.util.find_spec(MODULES[reader]) is not None


def reads(reader: str, content: str) -> bool:
    """True if a reader supports a content."""
    if reader == "ffcv":
        return content == "packed"
    if content == "packed":
        return reader in ("ours", "opencv")
    return content != "jpeg_folder" or reader in ("ours", "published", "opencv")


class _Endless(IterableDataset):
    """Yield whole batches, so that a worker sends one tensor per batch, as DataLoader's own collation would."""

    def __init__(self, reader: str, manifest: Manifest, config: LoaderConfig) -> None:
        self.reader, self.manifest, self.config = reader, manifest, config

    def __iter__(self) -> Iterator[torch.Tensor]:
        cv2.setNumThreads(1)
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        sampler = sampler_of(self.manifest, self.config)
        for number in count(first, step):
            epoch, at = divmod(number, sampler.steps_per_epoch)
            draws = sampler.samples(epoch, at)
            yield torch.cat([PEERS[self.reader](self.manifest, draw, self.config) for draw in draws])


class Cycle:
    """A sampler that repeats the same few batches, so that every full cycle is the same work for every reader."""

    def __init__(self, sampler: TrainingSampler) -> None:
        self._sampler = sampler
        self.steps_per_epoch, self.views = sampler.steps_per_epoch, sampler.views

    def samples(self, epoch: int, step: int, rank: int = 0, world_size: int = 1) -> list[Sample]:
        """Return the samples of a step of the first epoch."""
        return self._sampler.samples(0, step, rank, world_size)

    def replacement(self, draw: Sample, attempt: int) -> None:
        """Return None: generated clips are never bad."""


def sampler_of(manifest: Manifest, config: LoaderConfig, batch_clips: int = BATCH_CLIPS) -> Cycle:
    """Return the sampler that every reader follows."""
    clips = CYCLE_BATCHES * batch_clips
    return Cycle(TrainingSampler([manifest], config, seed=0, batch_clips=batch_clips, epoch_clips=clips))


def _ours(manifest: Manifest, config: LoaderConfig, device: str) -> Iterator[torch.Tensor]:
    with ClipStream(
        sampler_of(manifest, config), [manifest], config, epochs=1 << 30, on_bad="fail", device=device
    ) as stream:
        for batch in stream:
            yield batch.frames_BTHWC


def _ffcv(manifest: Manifest, config: LoaderConfig) -> Iterator[torch.Tensor]:
    from ppma.loaders.decode.ffcv import FfcvViews

    sampler = sampler_of(manifest, config)
    shard = manifest.file(0)
    shard = shard.with_name(shard.name.partition("#")[0])
    pixels = int((manifest.widths * manifest.heights).max())
    views = FfcvViews(shard, config, batch_clips=BATCH_CLIPS, views=config.views, pixels=pixels)
    draws = [draw for step in range(sampler.steps_per_epoch) for draw in sampler.samples(0, step)] * 16
    while True:
        for views_BVTHWC, bad_B in views.run([manifest.file(draw.clip) for draw in draws], draws):
            assert not bad_B.any()
            yield torch.from_numpy(views_BVTHWC).flatten(0, 1)


def batches(reader: str, manifest: Manifest, config: LoaderConfig, device: str) -> tuple[Iterator[torch.Tensor], int]:
    """Return the endless batches of a reader, and how many of them are prefetched."""
    config = replace(config, prefetch_batches=AHEAD)
    if reader == "ours":
        return _ours(manifest, config, device), AHEAD
    if reader == "ffcv":
        return _ffcv(manifest, config), AHEAD + 1
    loader = DataLoader(
        _Endless(reader, manifest, config),
        batch_size=None,
        num_workers=config.workers,
        prefetch_factor=AHEAD,
        multiprocessing_context="fork",  # PyTorch's default on Linux; a spawned process would inherit "spawn"
    )
    return iter(loader), AHEAD * config.workers
