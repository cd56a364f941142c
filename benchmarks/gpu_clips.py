"""Run the video items of gpu_day.py: which frames are decoded, how fast, and whether the step waits for them.

Day  ->  Parts, each of which yields Figures. With `day.tiny` the same code runs with small shapes on a CPU, where DALI decodes VP8,
VP9, MJPEG and JPEG, and PyAV the rest.

    python -m benchmarks.gpu_clips FOLDER [tiny]     generates the clips that `clips_of` waits for
"""

import importlib.util
import io
import os
import shutil
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal

import av
import cv2
import numpy as np
import torch

from benchmarks import end_to_end as whole_step
from benchmarks.day import Day, Figure, Part
from benchmarks.gpu_steps import config_of, device_of
from benchmarks.loader_readers import BATCH_CLIPS, ON_GPU, batches, sampler_of, why_not
from benchmarks.natural_clips import (
    ENCODERS,
    FPS,
    HEIGHT,
    WIDTH,
    clip_row,
    encode,
    make_clips,
    natural_frames,
    store_of,
    video_store,
)
from benchmarks.training import make_trainer
from ppma.config.loader import LoaderConfig
from ppma.kernels.timing import synchronize
from ppma.loaders.batch import ClipBatch
from ppma.loaders.decode.augment import make_views
from ppma.loaders.decode.dali import DaliViews
from ppma.loaders.decode.dali_input import DALI_CPU_CODECS, DALI_GPU_CODECS, DaliInput
from ppma.loaders.decode.fetch import read_window
from ppma.loaders.decode.remux import encoded_window
from ppma.loaders.sampler import TrainingSampler
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.store import Codec, Store
from ppma.loaders.stream import ClipStream

READY, FAILED = "ready", "failed"
CONTENTS = ("h264_gop250", "h264_gop12", "h264_gop1", "jpeg_folder", "packed")
TINY_CONTENTS = ("vp9", "jpeg_folder", "packed")
TINY_FRAMES = 24
"""Frames of every clip in a rehearsal; windows take 20."""
ODD_WIDTH = 340
"""A width found in Kinetics that is not a multiple of 16: DALI creates a new decoder for every clip."""
VIDEO_STORES: dict[str, Codec] = {"packed_hevc": "hevc", "packed_h264": "h264"}
"""The clips of h264_gop250 as `ppma pack --codec hevc --fps auto` packs them."""
WINDOWS_A_SECOND = 585
"""Goal for one H200: what stage 1 is expected to take from a loader, which has not been measured."""
LEVELS = 2.0
"""Largest mean difference between two decoders of the same stream, in levels of 255."""


# ---------------------------------------------------------------------------------------------------------------- clips


def contents_of(tiny: bool) -> dict[str, Any]:
    """Return the arguments of `make_clips`."""
    if tiny:
        return {"clips": 2, "frames": TINY_FRAMES, "contents": TINY_CONTENTS}
    return {"clips": 8, "contents": CONTENTS}


def shape_of(tiny: bool) -> LoaderConfig:
    """Return frames, seconds and size of a window."""
    return LoaderConfig(
        views=1, size=32 if tiny else 224, frames=4 if tiny else 16, window_seconds=0.8 if tiny else 2.7
    )


def odd_clip(tiny: bool) -> tuple[str, str, int]:
    """Return file, content and frames of the clip of ODD_WIDTH."""
    return ("odd/0.webm", "vp9", TINY_FRAMES) if tiny else ("odd/0.mp4", "h264_gop12", 300)


def make(folder: Path, *, tiny: bool) -> None:
    """Generate the clips of all items, and mark the folder as ready, with the seconds it took, or as failed."""
    for mark in (READY, FAILED):
        (folder / mark).unlink(missing_ok=True)
    began = time.monotonic()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        videos = make_clips(folder, **contents_of(tiny))["h264_gop250"]
        for store, codec in VIDEO_STORES.items():
            store_of(videos, folder / f"{store}.beton", video_store(codec, shape_of(tiny)))
        name, content, frames = odd_clip(tiny)
        (folder / name).parent.mkdir(exist_ok=True)
        encode(folder / name, content, list(natural_frames(0, frames, ODD_WIDTH)))
    except Exception:
        (folder / FAILED).write_text(traceback.format_exc())
        raise
    (folder / READY).write_text(f"{time.monotonic() - began:.1f}")


def clips_of(day: Day) -> dict[str, Manifest]:
    """Wait until the clips are generated; return a manifest for each content, and for `odd`."""
    while not (day.clips / READY).exists():
        if (day.clips / FAILED).exists():
            raise RuntimeError(f"the clips could not be made: {(day.clips / FAILED).read_text().splitlines()[-1]}")
        time.sleep(0.2)
    made = make_clips(day.clips, **contents_of(day.tiny))
    for store in VIDEO_STORES:
        made[store] = made["h264_gop250"].packed_in(Store(day.clips / f"{store}.beton"))
        made[store].name = store
    path, content, frames = odd_clip(day.tiny)
    row = clip_row(path, "vp9" if day.tiny else "h264", ENCODERS[content][2], frames, ODD_WIDTH)
    return made | {"odd": Manifest.from_clips([row], root=day.clips, name="odd")}


def first_batch(
    manifest: Manifest,
    config: LoaderConfig,
    clips: int,
    device: torch.device,
    on_bad: Literal["replace", "fail"] = "fail",
) -> tuple[ClipBatch, TrainingSampler, dict[str, str]]:
    """Return the first training batch of `clips` clips, the sampler it follows, and {bad file: reason}."""
    sampler = TrainingSampler([manifest], config, seed=0, batch_clips=clips, epoch_clips=clips)
    with ClipStream(sampler, [manifest], config, device=device, on_bad=on_bad) as stream:
        return next(iter(stream)), sampler, dict(stream.bad_files)


# ------------------------------------------------------------------------------------------------------------- barcodes


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """A codec with its GOP structure, container and colors."""

    codec: str
    suffix: str
    gop: int
    options: dict[str, str] = field(default_factory=dict)
    width: int = WIDTH
    colorspace: str = "ITU601"


ENCODINGS = {
    "h264 GOP 12": Encoding(codec="libx264", suffix=".mp4", gop=12, options={"x264-params": "open-gop=0"}),
    "h264 GOP 250": Encoding(codec="libx264", suffix=".mp4", gop=250),
    "h264 intra": Encoding(codec="libx264", suffix=".mp4", gop=1),
    "h264 open GOP": Encoding(codec="libx264", suffix=".mp4", gop=12, options={"x264-params": "open-gop=1:bframes=3"}),
    "h264 open GOP, MKV": Encoding(codec="libx264", suffix=".mkv", gop=12, options={"x264-params": "open-gop=1:bframes=3"}),
    "h264 width 340": Encoding(codec="libx264", suffix=".mp4", gop=12, width=ODD_WIDTH),
    "h264 BT.709": Encoding(codec="libx264", suffix=".mp4", gop=12, colorspace="ITU709"),
    "hevc closed GOP": Encoding(codec="libx265", suffix=".mp4", gop=12, options={"x265-params": "open-gop=0:log-level=error"}),
    "hevc open GOP": Encoding(codec="libx265", suffix=".mp4", gop=12, options={"x265-params": "log-level=error"}),
    "hevc BT.709": Encoding(
        codec="libx265", suffix=".mp4", gop=12, options={"x265-params": "open-gop=0:log-level=error"}, colorspace="ITU709"
    ),
    "av1": Encoding(codec="libsvtav1", suffix=".mp4", gop=24, options={"preset": "12"}),
    "vp9": Encoding(codec="libvpx-vp9", suffix=".webm", gop=24, options={"deadline": "realtime", "cpu-used": "8"}),
    "mpeg4": Encoding(codec="mpeg4", suffix=".mp4", gop=12),
    "mpeg4 B-frames": Encoding(codec="mpeg4", suffix=".mp4", gop=12, options={"bf": "2"}),
    "mpeg4 B-frames, AVI": Encoding(codec="mpeg4", suffix=".avi", gop=12, options={"bf": "2"}),
    "mjpeg": Encoding(codec="mjpeg", suffix=".avi", gop=1),
}  # fmt: skip
TINY_ENCODINGS = ("h264 BT.709", "vp9", "mjpeg")
NAMES = {"libx264": "h264", "libx265": "hevc", "libsvtav1": "av1", "libvpx-vp9": "vp9"}
BITS, BLOCK = 7, 16
"""The frame number is drawn as blocks of 16 x 16 pixels in the middle of the top rows, inside a center crop."""
NUMBERED = 100
"""Frames of a numbered clip."""


def numbered(count: int, width: int) -> list[np.ndarray]:
    """Return natural frames, each with its number as a barcode."""
    frames = list(natural_frames(3, count, width))
    left = (width - BITS * BLOCK) // 2
    for number, frame_HWC in enumerate(frames):
        for bit in range(BITS):
            frame_HWC[:BLOCK, left + bit * BLOCK : left + (bit + 1) * BLOCK] = 235 if number >> bit & 1 else 16
    return frames


def read_number(frame_HWC: np.ndarray) -> int:
    """Return the number in a center crop."""
    left = (frame_HWC.shape[1] - BITS * BLOCK) // 2
    blocks = [frame_HWC[4 : BLOCK - 4, left + b * BLOCK + 4 : left + (b + 1) * BLOCK - 4].mean() for b in range(BITS)]
    return sum(1 << bit for bit, mean in enumerate(blocks) if mean > 128)


def write_encoded(path: Path, encoding: Encoding, frames: list[np.ndarray]) -> Path:
    """Encode the frames, with the color matrix both applied and tagged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(encoding.codec, rate=Fraction(FPS), options=encoding.options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if encoding.codec == "mjpeg" else "yuv420p"
        context = stream.codec_context
        context.gop_size, context.bit_rate = encoding.gop, 4_000_000
        if encoding.colorspace == "ITU709":
            context.colorspace = context.color_primaries = context.color_trc = 1
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture = picture.reformat(format=stream.pix_fmt, dst_colorspace=encoding.colorspace)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def barcodes(day: Day) -> Iterator[Part]:
    """Compare frames from the loader, where DALI decodes what it supports, with PyAV's of the same windows, per
    encoding."""
    count = TINY_FRAMES if day.tiny else NUMBERED
    names = TINY_ENCODINGS if day.tiny else tuple(ENCODINGS)
    pictures = {width: numbered(count, width) for width in {ENCODINGS[name].width for name in names}}
    folder = day.clips.with_name(f"{day.clips.name}-numbered")
    with ThreadPoolExecutor(min(len(names), os.cpu_count() or 1)) as pool:
        jobs = {}
        for i, name in enumerate(names):
            own = ENCODINGS[name]
            jobs[name] = pool.submit(write_encoded, folder / f"{i}{own.suffix}", own, pictures[own.width])
        for name, job in jobs.items():
            yield Part(
                what=name,
                measure=lambda name=name, job=job: check_frames(
                    day, name, numbered_manifest(name, job.result(), count)
                ),
            )
        for store, codec in VIDEO_STORES.items():

            def check(store: str = store, codec: Codec = codec, first: str = names[0]) -> Iterator[Figure]:
                source = numbered_manifest(first, jobs[first].result(), count)
                packed = store_of(
                    source,
                    folder / f"{store}.beton",
                    video_store(codec, NUMBERED_SHAPE),
                )
                return check_frames(day, store, source.packed_in(packed))

            yield Part(what=store, measure=check)


NUMBERED_SHAPE = LoaderConfig(
    views=1,
    frames=8,
    window_seconds=0.8,
    size=HEIGHT,
    short_side=HEIGHT,
    crop="center",
    workers=1,
    implementation="dali",
)


def numbered_manifest(name: str, path: Path, frames: int) -> Manifest:
    """Return a manifest of a numbered clip in one of ENCODINGS."""
    encoding = ENCODINGS[name]
    codec = NAMES.get(encoding.codec, encoding.codec)
    row = clip_row(path.name, codec, encoding.gop, frames, encoding.width)
    return Manifest.from_clips([row], root=path.parent, name=name)


def check_frames(day: Day, name: str, manifest: Manifest) -> Iterator[Figure]:
    """Count wrong frames, and measure the mean difference of colors, over random windows."""
    config = NUMBERED_SHAPE
    clips = 2 if day.tiny else 16
    batch, sampler, _ = first_batch(manifest, config, clips, device_of(day))
    wrong, apart = 0, 0.0
    for made_THWC, draw in zip(batch.frames_BTHWC.cpu().numpy(), sampler.samples(0, 0), strict=True):
        window = read_window(manifest.file(0), draw.start_seconds, draw.end_seconds, config.frames)
        right_THWC = make_views(window, draw.views, config)[0]
        wrong += sum(read_number(m) != read_number(r) for m, r in zip(made_THWC, right_THWC, strict=True))
        apart += float(np.abs(made_THWC.astype(np.int16) - right_THWC).mean()) / clips
    note = f"{batch.counters.fallbacks} of {clips} windows decoded by PyAV"
    yield Figure(what=f"{name}: wrong frames", value=wrong, unit=f"of {clips * config.frames}", most=0, note=note)
    yield Figure(what=f"{name}: apart from PyAV", value=apart, unit="of 255", most=LEVELS)


# ------------------------------------------------------------------------------------------------------------- bad JPEG

BROKEN = {
    "zeros": lambda data: bytes(len(data)),
    "header cut off": lambda data: data[:100],
    "half a file": lambda data: data[: len(data) // 2],
}


def bad_jpeg(day: Day) -> Iterator[Part]:
    """Break one image of a batch, and check that the process survives and names and replaces the clip."""
    for kind in ("zeros",) if day.tiny else BROKEN:
        yield Part(what=kind, measure=partial(with_bad_jpeg, day, kind))


def with_bad_jpeg(day: Day, kind: str) -> Iterator[Figure]:
    """Read one batch. libjpeg may decode half a file to a picture whose lower part is gray."""
    clips, frames = (4, 4) if day.tiny else (32, 16)
    clips_of(day)
    good = sorted((day.clips / "jpeg_folder" / "0").iterdir())[:frames]
    folder = day.clips.with_name(f"{day.clips.name}-broken") / kind.replace(" ", "-")
    for number in range(clips):
        (folder / str(number)).mkdir(parents=True, exist_ok=True)
        for file in good:
            shutil.copy(file, folder / str(number) / file.name)
    bad = folder / "1" / good[2].name
    bad.write_bytes(BROKEN[kind](bad.read_bytes()))
    listed = [clip_row(str(number), "jpeg", 1, frames) for number in range(clips)]
    manifest = Manifest.from_clips(listed, root=folder, name="broken")
    config = LoaderConfig(
        frames=frames, size=32 if day.tiny else 224, views=1, workers=2, implementation="dali", max_bad_fraction=1.0,
        window_seconds=frames / FPS,
    )  # fmt: skip
    batch, _, bad_files = first_batch(manifest, config, clips, device_of(day), on_bad="replace")
    rows, files = len(batch.frames_BTHWC), batch.counters.bad_files
    yield Figure(what=f"{kind}: rows made", value=rows, unit=f"of {clips}", least=clips)
    least = None if kind == "half a file" else 1
    yield Figure(
        what=f"{kind}: bad files named", value=files, unit="", least=least, note="; ".join(bad_files.values())[:120]
    )


# ------------------------------------------------------------------------------------------------------------ end to end


def end_to_end(day: Day) -> Iterator[Part]:
    """Measure stage 1 from packed, short-GOP and untouched clips with every reader; packed clips have a bound."""
    made, cores = clips_of(day), len(os.sched_getaffinity(0))
    readers: tuple[Any, ...] = ("dali", "plain") if day.tiny else ("dali", "ffcv", "plain")
    config = whole_step.BenchmarkConfig(
        workers=min(16, cores), implementation=readers, views=2 if day.tiny else 4, steps=2 if day.tiny else 30
    )
    trainer = make_trainer(config_of(day, "mae", 128), device_of(day))
    names = ("packed",) if day.tiny else ("packed", "packed_hevc", "h264_gop12", "h264_gop250")
    sources = [made[name] for name in names]
    packed: list[float] = []
    for manifest, reader in whole_step.cases(sources, config):

        def measure(manifest: Manifest = manifest, reader: Any = reader) -> Iterator[Figure]:
            row = whole_step.measure(manifest, config, trainer, reader)
            name = f"{row['source']}, {row['reader']}"
            note = f"waited {row['stall_percent']:.0f} % of the time, {row['fallback_percent']:.0f} % by PyAV"
            yield Figure(what=name, value=row["clips_per_s"], unit="clips/s", note=note)
            yield Figure(what=name, value=row["of_cached"], unit="of the cached step")
            if manifest.name == "packed":
                packed.append(row["of_cached"])

        if reader == "ffcv" and not importlib.util.find_spec("ffcv"):
            continue
        yield Part(what=f"{manifest.name}, {reader}", measure=measure)
    yield Part(what="packed", measure=lambda: fastest(day, packed))


def fastest(day: Day, shares: list[float]) -> Iterator[Figure]:
    """Compare the fastest reader of packed clips with its bound."""
    must = {} if day.tiny else {"least": 0.97}
    yield Figure(what="packed, fastest reader", value=max(shares), unit="of the cached step", **must)


# ------------------------------------------------------------------------------------------------------- decoding alone


def nvdec(day: Day) -> Iterator[Part]:
    """Measure the frames decoded per second, by key frame distance, width and threads; packed video has a bound."""
    made = clips_of(day)
    for name in VIDEO_STORES:
        yield Part(what=name, measure=partial(store_rate, day, made[name], name))
    sources = ("vp9", "odd") if day.tiny else ("h264_gop12", "h264_gop250", "h264_gop1", "odd")
    for name in sources:
        for threads in (2,) if day.tiny else (8, 4, 16, 1) if name == "h264_gop12" else (8,):
            what = f"{name} ({made[name].clip(0).width} wide), {threads} threads"
            yield Part(what=what, measure=partial(decode_rate, day, made[name], threads, what))


def nvjpeg(day: Day) -> Iterator[Part]:
    """Measure the JPEG images decoded per second, by threads."""
    packed = clips_of(day)["packed"]
    for threads in (2,) if day.tiny else (8, 2, 16):
        what = f"packed ({packed.clip(0).width} wide), {threads} threads"
        yield Part(what=what, measure=partial(decode_rate, day, packed, threads, what))


def peers(day: Day) -> Iterator[Part]:
    """Measure the other decoders on NVDEC, in threads, to the same views as ours."""
    made = clips_of(day)
    for name in ("vp9",) if day.tiny else ("h264_gop12", "h264_gop250"):
        for reader in ("ours", *ON_GPU):
            yield Part(what=f"{name}, {reader}", measure=partial(peer_rate, day, made[name], reader))


def peer_rate(day: Day, manifest: Manifest, reader: str) -> Iterator[Figure]:
    """Measure windows/s of one view for three seconds; the first batch is compared with the plain reader's."""
    what = f"{manifest.name}, {reader}"
    if why := why_not(reader):
        yield Figure(what=what, value=None, unit="windows/s", note=f"not measured: {why}"[:120])
        return
    shape: dict[str, Any] = {"frames": 4, "size": 32, "window_seconds": 0.8} if day.tiny else {"window_seconds": 2.44}
    config = LoaderConfig(views=1, workers=2 if day.tiny else 8, implementation="dali", **shape)
    flow, ahead = batches(reader, manifest, config, day.device)
    first = next(flow).cpu().int()
    plain = next(batches("ours", manifest, replace(config, implementation="plain"), "cpu")[0])
    apart = (first - plain.int()).abs().double().mean().item()
    for _ in range(ahead):
        next(flow)
    synchronize(device_of(day))
    began, count, seconds = time.perf_counter(), 0, 0.05 if day.tiny else 3.0
    while time.perf_counter() - began < seconds:
        next(flow)
        count += BATCH_CLIPS
    synchronize(device_of(day))
    yield Figure(what=what, value=count / (time.perf_counter() - began), unit="windows/s")
    yield Figure(what=f"{what}: apart from PyAV", value=apart, unit="of 255", most=LEVELS)


def windows(manifest: Manifest, count: int, config: LoaderConfig, device: str) -> tuple[list[DaliInput], list[Any]]:
    """Return encoded windows and their draws."""
    sampler = TrainingSampler([manifest], config, seed=0, batch_clips=count, epoch_clips=count)
    draws = sampler.samples(0, 0)
    codecs = DALI_GPU_CODECS if device == "cuda" else DALI_CPU_CODECS
    inputs = [
        encoded_window(manifest.file(d.clip), d.start_seconds, d.end_seconds, config.frames, codecs) for d in draws
    ]
    return inputs, draws


def pictures_in(clip: DaliInput) -> int:
    """Return how many pictures are decoded: all packets of a window, or the images."""
    if clip.kind != "video":
        return len(clip.payloads)
    with av.open(io.BytesIO(clip.payloads[0].tobytes())) as container:
        return sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))


def store_rate(day: Day, manifest: Manifest, what: str) -> Iterator[Figure]:
    """Count the pictures that a decoder is given for each that a window shows, and measure windows per second."""
    config = shape_of(day.tiny)
    inputs, _ = windows(manifest, 32, config, "cuda")
    pictures = sum(map(pictures_in, inputs)) / sum(len(set(clip.frame_idx)) for clip in inputs)
    yield Figure(what=f"{what}: decoded for each shown", value=pictures, unit="pictures", most=1.3)
    if day.device == "cuda":
        [rate] = decode_rate(day, manifest, 8, f"{what}, 8 threads")
        yield rate
        per_window = rate.value / pictures / config.frames if rate.value is not None else None
        yield Figure(what=f"{what}, 8 threads", value=per_window, unit="windows/s", goal=WINDOWS_A_SECOND)


def decode_rate(day: Day, manifest: Manifest, threads: int, what: str) -> Iterator[Figure]:
    """Measure DALI alone on batches of windows for two seconds."""
    config = shape_of(day.tiny)
    count, seconds = (2, 0.05) if day.tiny else (32, 2.0)
    inputs, draws = windows(manifest, count, config, day.device)
    views = DaliViews(config, count, device="gpu" if day.device == "cuda" else "cpu", threads=threads)
    device = device_of(day)
    views(inputs, draws)
    synchronize(device)
    began, batches = time.perf_counter(), 0
    while batches < 2 or time.perf_counter() - began < seconds:
        views(inputs, draws)
        batches += 1
    synchronize(device)
    took = time.perf_counter() - began
    unit = "images/s" if inputs[0].kind == "jpeg" else "frames/s"
    note = f"{batches * count / took:.0f} windows/s"
    yield Figure(what=what, value=batches * sum(map(pictures_in, inputs)) / took, unit=unit, note=note)


# ------------------------------------------------------------------------------------------------------ views, and waits


def gpu_views(day: Day) -> Iterator[Part]:
    """Compare the same crops, flips and RandAugment by DALI here and OpenCV on the CPU, from lossless frames."""
    yield Part(what="views", measure=partial(views_apart, day))


def views_apart(day: Day) -> Iterator[Figure]:
    """Compare views of PNG folders, which both decode to the same frames."""
    clips, frames, size = (2, 2, 64) if day.tiny else (16, 8, 224)
    folder = day.clips.with_name(f"{day.clips.name}-png")
    for number in range(clips):
        (folder / str(number)).mkdir(parents=True, exist_ok=True)
        for t, frame in enumerate(natural_frames(number, frames)):
            cv2.imwrite(str(folder / str(number) / f"{t:03d}.png"), frame[..., ::-1])
    listed = [clip_row(str(number), "png", 1, frames) for number in range(clips)]
    manifest = Manifest.from_clips(listed, root=folder, name="png")
    shape: dict[str, Any] = {"frames": frames, "size": size, "window_seconds": frames / FPS, "workers": 2}
    config = LoaderConfig(views=1, flip_probability=0.5, randaugment_ops=4, implementation="dali", **shape)
    ours, _, _ = first_batch(manifest, config, clips, device_of(day))
    plain, _, _ = first_batch(manifest, replace(config, implementation="plain"), clips, torch.device("cpu"))
    apart = (ours.frames_BTHWC.cpu().int() - plain.frames_BTHWC.cpu().int()).abs().double()
    yield Figure(what="mean difference", value=apart.mean().item(), unit="of 255", most=1.0)
    medians = apart.flatten(1).median(dim=1).values
    yield Figure(what="largest median of a view", value=medians.max().item(), unit="of 255", most=1.0)


@contextmanager
def waits(device: torch.device) -> Iterator[list[bool]]:
    """Record each wait for the GPU inside the block: True if the current thread waited."""
    found: list[bool] = []
    own = threading.get_ident()

    def note(message: Any, category: Any, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            found.append(threading.get_ident() == own)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def no_sync(day: Day) -> Iterator[Part]:
    """Count waits in ten steps of stage 1 with the loader between two log intervals. A CPU has none."""
    yield Part(what="packed", measure=partial(count_waits, day, clips_of(day)["packed"]))


def count_waits(day: Day, manifest: Manifest) -> Iterator[Figure]:
    """Count waits of the training thread, of which there must be none, and of others, which do not block it."""
    config, device = config_of(day, "mae", 128), device_of(day)
    views, steps = (2, 2) if day.tiny else (4, 10)
    loader = LoaderConfig(views=views, size=config.vit.size, frames=config.vit.frames, workers=2 if day.tiny else 8)
    trainer = make_trainer(config, device)
    sampler = sampler_of(manifest, loader, config.batch // views)
    with ClipStream(sampler, [manifest], loader, device=device, epochs=1 << 30) as stream:
        flow: Iterator[ClipBatch] = iter(stream)
        for _ in range(2):
            trainer.train_step(next(flow))
        with waits(device) as found:
            for _ in range(steps):
                trainer.train_step(next(flow))
    note = stream.implementation
    yield Figure(what="waits of the step's thread", value=sum(found) / steps, unit="a step", most=0, note=note)
    yield Figure(what="waits of other threads", value=(len(found) - sum(found)) / steps, unit="a step")


if __name__ == "__main__":
    make(Path(sys.argv[1]), tiny=sys.argv[2:] == ["tiny"])
