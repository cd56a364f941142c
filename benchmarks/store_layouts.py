"""Compare layouts of a packed frame: JPEG, or H.264 with only key frames and indexed packets.

    natural frames  ->  each layout  ->  16 frames of a window decoded to RGB, in turn  ->  ms of CPU per clip, bytes per frame, PSNR

Both are read from memory. One open H.264 decoder receives the wanted packets and is flushed; OpenCV converts its planes
to RGB in half the time of swscale.

    python benchmarks/store_layouts.py
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import rows
from benchmarks.natural_clips import FPS, HEIGHT, WIDTH, natural_frames
from ppma.config.command import DONE, parse, run

Decode = Callable[[list[int]], list[np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class LayoutConfig(rows.ReportConfig):
    """Measure CPU time, size and quality of the layouts that a packed store may have."""

    frames: int = 240
    """Frames of the clip."""
    windows: int = 24
    """Measured windows, each of 16 frames with stride 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(62, "frames")
        self.at_least(1, "windows")


def jpeg(frames: list[np.ndarray], quality: int) -> tuple[float, Decode]:
    """Return (bytes per frame, decoder) of JPEG frames."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
    blobs = [cv2.imencode(".jpg", frame[..., ::-1], flags)[1].ravel() for frame in frames]
    size = statistics.mean(blob.nbytes for blob in blobs)
    return size, lambda wanted: [cv2.imdecode(blobs[i], cv2.IMREAD_COLOR_RGB) for i in wanted]


def intra(frames: list[np.ndarray], options: dict[str, str]) -> tuple[float, Decode]:
    """Return (bytes per frame, decoder) of intra-only H.264."""
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    encoder.time_base, encoder.options = Fraction(1, FPS), {"g": "1", **options}
    encoder.gop_size = 1
    packets = []
    for i, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        picture.pts = i
        packets += [bytes(packet) for packet in encoder.encode(picture)]
    packets += [bytes(packet) for packet in encoder.encode(None)]
    decoder: Any = av.CodecContext.create("h264", "r")
    decoder.extradata, decoder.thread_count = encoder.extradata, 1

    def decode(wanted: list[int]) -> list[np.ndarray]:
        pictures = [picture for i in wanted for picture in decoder.decode(av.Packet(packets[i]))]
        pictures += decoder.decode(None)
        decoder.flush_buffers()
        return [cv2.cvtColor(picture.to_ndarray(), cv2.COLOR_YUV2RGB_I420) for picture in pictures]

    return statistics.mean(map(len, packets)), decode


def psnr(decode: Decode, frames: list[np.ndarray]) -> float:
    """Return the PSNR of the middle frame in dB."""
    middle = len(frames) // 2
    error = np.mean((decode([middle])[0].astype(float) - frames[middle]) ** 2)
    return float(10 * np.log10(255**2 / error))


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    config = parse(LayoutConfig, argv, prog="store_layouts")
    cv2.setNumThreads(1)
    frames = list(natural_frames(0, config.frames))
    layouts = {f"jpeg quality {quality}": jpeg(frames, quality) for quality in (80, 90, 95)}
    for crf in ("10", "14", "18", "23"):
        layouts[f"h264 intra crf {crf}"] = intra(frames, {"crf": crf})
        layouts[f"h264 intra crf {crf} fastdecode"] = intra(frames, {"crf": crf, "tune": "fastdecode"})
    spent: dict[str, list[float]] = {name: [] for name in layouts}
    for start in np.random.default_rng(0).integers(0, config.frames - 61, config.windows).tolist():
        for name, (_, decode) in layouts.items():
            began = time.thread_time()
            decode(list(range(start, start + 61, 4)))
            spent[name].append(1e3 * (time.thread_time() - began))
    made = []
    for name, (size, decode) in layouts.items():
        quality = {"bytes_per_frame": round(size, 1), "psnr_db": round(psnr(decode, frames), 2)}
        median, spread = round(statistics.median(spent[name]), 2), rows.spread(spent[name])
        made.append({"layout": name, "cpu_ms_per_clip": median, **quality, "spread": spread})
    rows.report(made, config, benchmark="store_layouts")
    return DONE


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="store_layouts"))
