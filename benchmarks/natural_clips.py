"""Generate clips that cost as much to decode as natural video, in every codec, as JPEG folders and packed.

    seed  ->  frames (1/f texture under a moving camera, three textured bodies, sensor noise)  ->  DIR/<content>/... and manifests

Calibrated on Kinetics clips of 340 x 256: JPEG at quality 90 takes 20 kB per frame there and 22 kB here, and H.264
(x264 defaults) has B-frames and similar bit rates. The width is a multiple of 16, so that DALI reuses its decoders from
clip to clip.
"""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from ppma.common.video import video_writer
from ppma.common.workers import parallel_map
from ppma.config.errors import InputError
from ppma.config.loader import LoaderConfig
from ppma.data.encoders import DEFAULT_GOP
from ppma.data.encoders import QUALITY as PACK_QUALITY
from ppma.data.frame_rates import kept_rates
from ppma.data.shard_writer import PackRow, ShardJob, write_rows, write_shard
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.loaders.sources.store import INDEX, Codec, PackParameters, Store, StoreIndex, locate_packed

WIDTH, HEIGHT, FPS, FRAMES = 336, 256, 25, 300
QUALITY = 90
ENCODERS: dict[str, tuple[str, str, int, dict[str, str]]] = {
    "h264_gop250": ("libx264", "mp4", 250, {"crf": "20", "sc_threshold": "0", "preset": "medium"}),
    "h264_gop12": ("libx264", "mp4", 12, {"crf": "20", "sc_threshold": "0", "preset": "medium"}),
    "h264_gop1": ("libx264", "mp4", 1, {"crf": "20", "preset": "medium"}),
    "vp9": ("libvpx-vp9", "webm", 128, {"crf": "33", "b": "0", "deadline": "realtime", "cpu-used": "8"}),
    "mpeg4": ("mpeg4", "avi", 12, {"b": "700000"}),
}
"""content: encoder, container suffix, frames between key frames, encoder options."""
CONTENTS = (*ENCODERS, "jpeg_folder", "packed", "packed_hevc")
PACKED = {"jpeg_folder", "packed"}
"""The same JPEG frames as files and in a store, made together."""


def _texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return a colored 1/f^1.5 texture, uint8 (side, side, 3)."""
    spectrum = np.fft.rfft2(rng.standard_normal((side, side, 3)), axes=(0, 1))
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    image = np.fft.irfft2(spectrum / np.maximum(frequency, 1 / side)[..., None] ** 1.5, s=(side, side), axes=(0, 1))
    image[..., 1:] = 0.35 * image[..., 1:] + 0.8 * image[..., :1]  # the channels of natural pictures are correlated
    return np.clip(128 + 45 * image / image.std(), 0, 255).astype(np.uint8)


def _warped(texture: np.ndarray, matrix: list[list[float]], width: int) -> np.ndarray:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(texture, np.array(matrix), (width, HEIGHT), flags=flags)


def natural_frames(seed: int, count: int = FRAMES, width: int = WIDTH) -> Iterator[np.ndarray]:
    """Yield RGB frames, uint8 (256, width, 3)."""
    rng = np.random.default_rng(seed)
    ground, bodies = _texture(rng, 1024), [_texture(rng, 256) for _ in range(3)]
    phase = rng.uniform(0, 2 * np.pi, (4, 3))
    noise = [rng.normal(0, 1.2, (HEIGHT, width, 3)).round().astype(np.int16) for _ in range(8)]
    for t in range(count):
        zoom = 1.6 + 0.3 * np.sin(t / 60 + phase[3, 0])
        x, y = 512 + 150 * np.sin(t / 70 + phase[3, 1]), 512 + 100 * np.cos(t / 80 + phase[3, 2])
        frame = _warped(ground, [[zoom, 0, x - zoom * width / 2], [0, zoom, y - zoom * HEIGHT / 2]], width)
        for i, body in enumerate(bodies):
            x = width * (0.5 + 0.4 * np.sin(t / (12 + 5 * i) + phase[i, 0]))
            y = HEIGHT * (0.5 + 0.35 * np.cos(t / (15 + 4 * i) + phase[i, 1]))
            angle = t / 20 + phase[i, 2]
            c, s = 2 * np.cos(angle), 2 * np.sin(angle)
            mask = np.zeros((HEIGHT, width), np.uint8)
            cv2.ellipse(mask, (int(x), int(y)), (45, 28), np.degrees(angle), 0, 360, 255, -1)
            cv2.copyTo(_warped(body, [[c, -s, 128 - c * x + s * y], [s, c, 128 - s * x - c * y]], width), mask, frame)
        yield np.clip(frame + noise[t % 8], 0, 255).astype(np.uint8)


def encode(path: Path, content: str, frames: list[np.ndarray]) -> None:
    """Write the frames in one of the formats in ENCODERS."""
    codec, _, spacing, options = ENCODERS[content]
    with video_writer(path, fps=FPS, options=options, codec=codec, spacing=spacing) as add:
        for frame in frames:
            add(frame)


def _make_clip(job: tuple[int, int, dict[str, Path]]) -> None:
    """Write one clip (seed, frames, file of each content) in every format."""
    seed, frames, paths = job
    pictures = list(natural_frames(seed, frames))
    for content, path in paths.items():
        encode(path, content, pictures)


def video_store(codec: Codec, window: LoaderConfig) -> PackParameters:
    """Return the parameters of `ppma pack --codec CODEC --fps auto` for these windows."""
    quality, gop = PACK_QUALITY[codec][0], min(DEFAULT_GOP, window.frames // 2)
    shape = window.frames, window.window_seconds
    return PackParameters(short_side=HEIGHT, fps=None, quality=quality, codec=codec, gop=gop, window=shape)


def clip_row(path: str, codec: str, spacing: int, frames: int, width: int = WIDTH) -> Clip:
    """Return the manifest row of a generated clip."""
    shape = {"frames": frames, "width": width, "height": HEIGHT, "key_frame_spacing": spacing}
    return Clip(path=path, label=0, codec=codec, fps=float(FPS), duration_seconds=frames / FPS, **shape)


def store_of(source: Manifest, folder: Path, parameters: PackParameters) -> Store:
    """Pack the clips of a manifest into a store of one shard."""
    folder.mkdir(exist_ok=True)
    rates = kept_rates(source, parameters)
    rows = [
        PackRow(
            row=i, path=str(source.file(i)), label=0, start_seconds=float(source.starts[i]), end_seconds=float(source.ends[i]),
            fps=float(rates[i]) if np.isfinite(rates[i]) else None,
        )
        for i in range(len(source))
    ]  # fmt: skip
    *_, shard = write_shard(ShardJob(folder=folder, number=0, rows=rows, parameters=parameters))
    write_rows(folder, [shard], len(rows))
    index = StoreIndex(manifest_sha256="", rows=len(rows), parameters=parameters, shards=(shard,), complete=True)
    (folder / INDEX).write_text(index.dump())
    return Store(folder)


def _pack(folder: Path, videos: Manifest) -> None:
    """Pack the videos into a store, and write the same JPEG files to DIR/jpeg_folder."""
    made = store_of(videos, folder / "packed.beton", PackParameters(short_side=HEIGHT, fps=None, quality=QUALITY))
    for i in range(len(videos)):
        address = made.address(i)
        assert address is not None
        file, place = locate_packed(address)
        offsets, _ = file.table(place)
        (folder / "jpeg_folder" / f"{i}").mkdir(parents=True, exist_ok=True)
        for k, (begin, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist())):
            (folder / "jpeg_folder" / f"{i}" / f"{k + 1:06d}.jpg").write_bytes(file.read(begin, end - begin))


@contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Start processes inside the block that ignore Ctrl-C, because the process that starts them also ends them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _make(folder: Path, clips: int, frames: int, videos: dict[str, list[str]]) -> None:
    """Write the videos of these contents, one process per clip."""
    for name in videos:
        try:
            (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"no clips can be made in {folder}: {error.strerror}; choose another --clips") from None
    jobs = [(i, frames, {name: folder / paths[i] for name, paths in videos.items()}) for i in range(clips)]
    list(parallel_map(_make_clip, jobs, len(os.sched_getaffinity(0))))


def make_clips(
    folder: Path, *, clips: int = 4, frames: int = FRAMES, contents: tuple[str, ...] = CONTENTS
) -> dict[str, Manifest]:
    """Generate clips that do not exist yet.

    Args:
        folder: Where the files are.
        clips: Number of clips per content.
        frames: Frames per clip.
        contents: Any of CONTENTS. Packed clips are those of h264_gop250.

    Returns:
        A manifest for each content.

    Raises:
        InputError: The folder cannot be created.
    """
    if PACKED & set(contents):
        contents = (*contents, *sorted(PACKED))
    if {*PACKED, "packed_hevc"} & set(contents):
        contents = tuple(dict.fromkeys(("h264_gop250", *contents)))
    videos = {name: [f"{name}/{i}.{ENCODERS[name][1]}" for i in range(clips)] for name in contents if name in ENCODERS}
    mark, as_wanted = folder / "made.json", {"clips": clips, "frames": frames, "version": 5}
    marked = json.loads(mark.read_text()) if mark.exists() else {}
    there = {name: marked[name] for name in CONTENTS if name in marked}
    missing = [name for name in contents if there.get(name) != as_wanted]
    if missing:
        _make(folder, clips, frames, {name: paths for name, paths in videos.items() if name in missing})
    names = {"libx264": "h264", "libvpx-vp9": "vp9", "mpeg4": "mpeg4"}
    rows = {
        name: [clip_row(path, names[ENCODERS[name][0]], ENCODERS[name][2], frames) for path in paths]
        for name, paths in videos.items()
    }
    if "packed" in contents:
        rows["jpeg_folder"] = [clip_row(f"jpeg_folder/{i}", "jpeg", 1, frames) for i in range(clips)]
    made = {name: Manifest.from_clips(listed, root=folder, name=name) for name, listed in rows.items()}
    if PACKED & set(missing):
        _pack(folder, made["h264_gop250"])
    if "packed_hevc" in missing:
        store_of(
            made["h264_gop250"],
            folder / "packed_hevc.beton",
            video_store("hevc", LoaderConfig(window_seconds=61 / FPS)),
        )
    if missing:
        mark.write_text(json.dumps(there | dict.fromkeys(missing, as_wanted)))
    for name in (content for content in contents if content in ("packed", "packed_hevc")):
        made[name] = made["h264_gop250"].packed_in(Store(folder / f"{name}.beton"))
        made[name].name = name
    return made
