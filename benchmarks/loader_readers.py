"""Read clips with every library that is compared, into the same uint8 views (clips * views, 16, 224, 224, 3).

    Manifest, LoaderConfig  ->  TrainingSampler, the same for all  ->  endless batches of one reader

`published` is the published PPMA loader, after pytorchvideo: PyAV decodes every frame of the window to float RGB, 16
frames are kept, resized and cropped in float. The others fetch the 16 frames with their library's fastest
single-threaded method and crop and resize with OpenCV, as our loader does. They run in a torch DataLoader with the same
number of workers; SPDL runs in its own pipeline with as many threads. The two readers on NVDEC have as many threads and
crop and resize on the GPU.
"""

import importlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import count, islice
from math import ceil
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.natural_clips import FPS
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
    return list(_torchcodec_on("cpu", path, wanted).permute(0, 2, 3, 1).numpy())


def _torchcodec_on(device: str, path: Path, wanted: list[int]) -> torch.Tensor:
    from torchcodec.decoders import VideoDecoder

    order: Any = "NHWC" if device == "cpu" else "NCHW"
    decoder = VideoDecoder(
        str(path), dimension_order=order, num_ffmpeg_threads=1, seek_mode="approximate", device=device
    )
    frames = decoder.get_frames_at(wanted).data
    return frames.permute(0, 3, 1, 2) if device == "cpu" else frames


def _pynvvideocodec(device: str, path: Path, wanted: list[int]) -> torch.Tensor:
    import PyNvVideoCodec as nvc

    number = torch.device(device).index or 0
    decoder = nvc.SimpleDecoder(
        str(path), gpu_id=number, use_device_memory=True, output_color_type=nvc.OutputColorType.RGBP
    )
    return torch.stack([torch.from_dlpack(frame) for frame in decoder.get_batch_frames_by_index(wanted)])


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


def _pyav(path: Path, wanted: list[int]) -> list[np.ndarray]:
    frames: list[np.ndarray] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        rate, base, origin = stream.average_rate or 1, stream.time_base or 1, stream.start_time or 0
        container.seek(origin + int(wanted[0] / rate / base), stream=stream)
        for frame in container.decode(stream):
            if round(((frame.pts or 0) - origin) * base * rate) == wanted[len(frames)]:
                frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == len(wanted):
                break
    return frames


def _spdl_video(path: Path, wanted: list[int]) -> list[np.ndarray]:
    import spdl.io

    first, last = (wanted[0] - 0.5) / FPS, (wanted[-1] + 0.5) / FPS
    packets = spdl.io.demux_video(str(path), timestamp=(max(first, 0), last))
    chosen = "+".join(f"eq(n,{number - wanted[0]})" for number in wanted)
    kept = f"trim=start={first}:end={last},select='{chosen}',format=pix_fmts=rgb24"
    one = spdl.io.decode_config(decoder_options={"threads": "1"})
    return list(
        spdl.io.to_numpy(spdl.io.convert_frames(spdl.io.decode_packets(packets, decode_config=one, filter_desc=kept)))
    )


def _spdl_jpeg(jpegs: list[bytes]) -> list[np.ndarray]:
    import spdl.io

    return list(spdl.io.to_numpy(spdl.io.load_image_batch(jpegs, width=None, height=None)))


def _opencv_jpeg(jpegs: list[bytes]) -> list[np.ndarray]:
    return [cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB) for jpeg in jpegs]


def _torchvision_jpeg(jpegs: list[bytes]) -> list[np.ndarray]:
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8) for jpeg in jpegs]
    return [frame.permute(1, 2, 0).numpy() for frame in decode_jpeg(encoded, mode=ImageReadMode.RGB)]


def _jpegs(path: Path, wanted: list[int]) -> list[bytes]:
    if is_packed(path):
        return [jpeg.tobytes() for jpeg in read_packed(path, lambda _: wanted).pictures]
    files = list_frames(path)
    return [files[i].read_bytes() for i in wanted]


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
        first, stop = (origin + ceil(s / base - 1e-6) for s in (draw.start_seconds, draw.end_seconds))
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


VIDEO: dict[str, ReadFrames] = {
    "torchcodec": _torchcodec,
    "decord2": _decord,
    "opencv": _opencv_video,
    "pyav": _pyav,
    "spdl": _spdl_video,
}
JPEG: dict[str, Callable[[list[bytes]], list[np.ndarray]]] = {
    "opencv": _opencv_jpeg,
    "spdl": _spdl_jpeg,
    "torchvision": _torchvision_jpeg,
}
ON_GPU: dict[str, Callable[[str, Path, list[int]], torch.Tensor]] = {
    "torchcodec_cuda": _torchcodec_on,
    "pynvvideocodec": _pynvvideocodec,
}
"""(device, file, frame numbers) -> RGB frames (T, 3, H, W) on the device."""


def _by_frames(reader: str, manifest: Manifest, draw: Sample, config: LoaderConfig) -> torch.Tensor:
    path, wanted = manifest.file(draw.clip), _wanted(manifest, draw, config.frames)
    jpeg = is_packed(path) or is_frames(path)
    return _views(JPEG[reader](_jpegs(path, wanted)) if jpeg else VIDEO[reader](path, wanted), draw, config)


def views_on_gpu(frames_TCHW: torch.Tensor, draw: Sample, config: LoaderConfig) -> torch.Tensor:
    """Crop and resize on the frames' device, in float, as users of a GPU decoder do."""
    height, width = scaled_size(*frames_TCHW.shape[2:], config.short_side)
    resize = partial(F.interpolate, mode="bilinear", align_corners=False)
    frames = frames_TCHW.float()
    frames = frames if frames.shape[2:] == (height, width) else resize(frames, size=(height, width))
    crops = [frames[:, :, top : top + h, left : left + w] for top, left, h, w in (view.crop for view in draw.views)]
    views = torch.stack([resize(crop, size=(config.size, config.size)) for crop in crops])
    return views.round().to(torch.uint8).permute(0, 1, 3, 4, 2)


PEERS: dict[str, Callable[[Manifest, Sample, LoaderConfig], torch.Tensor]] = {
    "published": _published,
    **{reader: partial(_by_frames, reader) for reader in {**VIDEO, **JPEG}},
}
MODULES = {
    "torchcodec": "torchcodec.decoders",
    "decord2": "decord",
    "ffcv": "ffcv",
    "spdl": "spdl.io",
    "torchvision": "torchvision.io",
    "torchcodec_cuda": "torchcodec.decoders",
    "pynvvideocodec": "PyNvVideoCodec",
}


def why_not(reader: str) -> str:
    """Import the library of a reader; return why that fails, or an empty string."""
    try:
        module = importlib.import_module(MODULES.get(reader, "cv2"))
        if reader == "spdl":
            module.decode_config()  # loads FFmpeg
        if reader == "torchvision":  # it imports where its decoders do not
            module.decode_jpeg(torch.from_numpy(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].ravel()))
    except (ImportError, OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return ""


def reads(reader: str, content: str) -> bool:
    """True if a reader supports a content."""
    if reader == "ffcv":
        return content == "packed"
    if content.startswith("packed"):
        return reader == "ours" or (reader in JPEG and content == "packed")
    if content == "jpeg_folder":
        return reader in ("ours", "published") or reader in JPEG
    return reader in ("ours", "published") or reader in VIDEO or (reader in ON_GPU and content != "mpeg4")


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


def _draws(manifest: Manifest, config: LoaderConfig) -> Iterator[Sample]:
    sampler = sampler_of(manifest, config)
    for step in count():
        yield from sampler.samples(*divmod(step, sampler.steps_per_epoch))


def _spdl(manifest: Manifest, config: LoaderConfig) -> Iterator[torch.Tensor]:
    from spdl.pipeline import PipelineBuilder

    cv2.setNumThreads(1)
    built = PipelineBuilder().add_source(_draws(manifest, config))
    built = built.pipe(
        lambda draw: PEERS["spdl"](manifest, draw, config), concurrency=config.workers, output_order="input"
    )
    pipeline = built.aggregate(BATCH_CLIPS).pipe(torch.cat).add_sink(AHEAD).build(num_threads=config.workers)
    with pipeline.auto_stop():
        yield from pipeline


def _on_gpu(reader: str, manifest: Manifest, config: LoaderConfig, device: str) -> Iterator[torch.Tensor]:
    def views(draw: Sample) -> torch.Tensor:
        frames_TCHW = ON_GPU[reader](device, manifest.file(draw.clip), _wanted(manifest, draw, config.frames))
        return views_on_gpu(frames_TCHW, draw, config)

    draws = _draws(manifest, config)
    with ThreadPoolExecutor(config.workers) as pool:
        pending = deque(pool.submit(views, draw) for draw in islice(draws, config.workers + BATCH_CLIPS))
        while True:
            pending.extend(pool.submit(views, draw) for draw in islice(draws, BATCH_CLIPS))
            yield torch.cat([pending.popleft().result() for _ in range(BATCH_CLIPS)])


def batches(reader: str, manifest: Manifest, config: LoaderConfig, device: str) -> tuple[Iterator[torch.Tensor], int]:
    """Return the endless batches of a reader, and how many of them are prefetched."""
    config = replace(config, prefetch_batches=AHEAD)
    if reader == "ours":
        return _ours(manifest, config, device), AHEAD
    if reader == "ffcv":
        return _ffcv(manifest, config), AHEAD + 1
    if reader == "spdl":
        return _spdl(manifest, config), AHEAD + 2
    if reader in ON_GPU:
        return _on_gpu(reader, manifest, config, device), 1
    loader = DataLoader(
        _Endless(reader, manifest, config),
        batch_size=None,
        num_workers=config.workers,
        prefetch_factor=AHEAD,
        multiprocessing_context="fork",  # PyTorch's default on Linux; a spawned process would inherit "spawn"
    )
    return iter(loader), AHEAD * config.workers
