"""Files made to break a reader: mutated, oversized, among good ones, very long. None crashes, hangs or shows another frame."""

import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from damaged_clips import FRAMES, VPX, encode, number_of

from ppma.common.workers import parallel_map
from ppma.config.errors import BadClip
from ppma.loaders.decode.fetch import read_window
from ppma.loaders.samples import choose_frames
from ppma.loaders.sources.pictures import Unusable
from ppma.loaders.sources.probe import probe

# ------------------------------------------------------------------------------------------------------ mutated files

X265_CLOSED = {"preset": "ultrafast", "x265-params": "log-level=none:open-gop=0"}
KINDS: dict[str, Callable[[], bytes]] = {
    "h264.mp4": lambda: encode("mp4"),
    "h264.mkv": lambda: encode("matroska"),
    "h264.ts": lambda: encode("mpegts"),
    "mpeg4.mp4": lambda: encode("mp4", codec="mpeg4", options={"b": "400k"}, b_frames=2),
    "mpeg4.avi": lambda: encode("avi", codec="mpeg4", options={"b": "400k"}),
    "mpeg2.mkv": lambda: encode("matroska", codec="mpeg2video", options={"b": "800k"}, b_frames=2),
    "vp8.webm": lambda: encode("webm", codec="libvpx", options=VPX),
    "vp9.webm": lambda: encode("webm", codec="libvpx-vp9", options=VPX),
    "mjpeg.avi": lambda: encode("avi", codec="mjpeg", pixels="yuvj420p", options={}),
    "hevc.mp4": lambda: encode("mp4", codec="libx265", options=X265_CLOSED),
}
"""Name -> a good file. HEVC has closed groups: after a key frame of an open group (CRA), a slice whose damaged header
refers to earlier pictures shows gray where a decode from the start shows them; FFmpeg marks neither as corrupt."""
HANGS_SECONDS = 60


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Return a file with flipped, missing, repeated or zeroed bytes, or without its end."""
    changed = bytearray(data)
    at, size = int(rng.integers(len(data))), int(rng.integers(1, 2000))
    how = rng.integers(5)
    if how == 0:
        for place in rng.integers(len(data), size=rng.integers(1, 20)):
            changed[place] ^= 1 << int(rng.integers(8))
    elif how == 1:
        del changed[at:]
    elif how == 2:
        del changed[at : at + size]
    elif how == 3:
        changed[at:at] = changed[at : at + size]
    else:
        changed[at : at + size] = bytes(len(changed[at : at + size]))
    return bytes(changed)


def plain_decode(path: Path) -> tuple[list[float], list[int], bool]:
    """Return times and numbers of the frames that a plain decode from the first key frame on shows, and if some failed."""
    times: list[float] = []
    numbers: list[int] = []
    started = failed = False
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, first = "NONE", None
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return times, numbers, failed
                started |= packet.is_keyframe or not packet.size
                for frame in stream.codec_context.decode(packet) if started else []:
                    first = frame.pts if first is None else first
                    times.append(float((frame.pts - first) * stream.time_base))
                    numbers.append(number_of(frame.to_ndarray(format="rgb24")))
            except av.error.FFmpegError:
                failed = True


def by_the_clock(start: float, seconds: float) -> list[int]:
    """Return the numbers of a window of the file before it was changed."""
    first, stop = (int(np.ceil(round(25 * at, 6))) for at in (start, min(start + 0.6, seconds)))
    return [first + int(i) for i in np.linspace(0, stop - 1 - first, 4)]


def verdict(path: Path) -> str:
    """Return what becomes of a file: refused, bad (some window), read, or a "false ok" for frames that it does not show.

    The pixels of unnoticed damage are what was in the decoder's buffers, so frames are compared by the numbers they show.
    """
    av.logging.set_level(av.logging.PANIC)
    try:
        seconds = probe(path).duration_seconds
    except Unusable:
        return "refused"
    found, truth = "read", None
    for start in (0.0, 0.3 * seconds, 0.7 * seconds):
        try:
            got = [number_of(frame) for frame in read_window(path, start, start + 0.6, 4)]
        except BadClip:
            found = "bad"
            continue
        times, numbers, failed = truth = truth or plain_decode(path)
        chosen = choose_frames(times, start, start + 0.6, 4)
        shown = [numbers[i] for i in chosen]
        inside = sorted(got) == got and set(got) <= set(numbers[chosen[0] : chosen[-1] + 1])
        right = got in (shown, by_the_clock(start, seconds))  # AVI's index keeps the time of what follows a lost frame
        if not right and not (failed and inside):  # frames that were not chosen may be missing
            return f"false ok at {start:.2f} s: {got} for {shown}"
    return found


def verdicts(folder: Path, count: int) -> Counter[str]:
    """Mutate and read `count` files in other processes; return how often each verdict was given, false ones by file."""
    rng, paths = np.random.default_rng(6), []
    for name, make in KINDS.items():
        data = make()
        for number in range(count // len(KINDS)):
            paths.append(folder / f"{number}_{name}")
            paths[-1].write_bytes(mutate(data, rng))
    found = parallel_map(
        judge, paths, 1, timeout_seconds=HANGS_SECONDS, on_lost=lambda path, why: f"{path.name}: {why}"
    )
    return Counter(found)


def judge(path: Path) -> str:
    """Return the verdict of a file, with its name if it is false."""
    found = verdict(path)
    return f"{path.name}: {found}" if found.startswith("false") else found


@pytest.mark.promise("R6")
@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_mutated_file_neither_crashes_nor_hangs_nor_shows_other_frames(tmp_path, count, figure):
    found = verdicts(tmp_path, count)
    wrong = {name: n for name, n in found.items() if name not in ("refused", "bad", "read")}
    figure("R6", f"{len(wrong)} of {count} mutated files crash, hang or are falsely read")
    assert not wrong and found["refused"] and found["read"]


# -------------------------------------------------------------------------------------------------- bad among good files


@pytest.mark.promise("R7")
def test_the_bad_files_among_good_ones_are_named_and_counted(tmp_path, write_clip, figure):
    """5 % of them."""
    from ppma.loaders.sources.manifest import Manifest  # late: the processes that read mutated files import no torch
    from tests.loaders.test_stream import CONFIG, collect, row

    clip = write_clip(tmp_path / "0.mp4", frames=24)
    for number in range(1, 40):
        shutil.copy(clip, tmp_path / f"{number}.mp4")
    bad = {tmp_path / "7.mp4", tmp_path / "31.mp4"}
    for path in bad:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    manifest = Manifest.from_clips(
        [row(f"{number}.mp4", number % 4) for number in range(40)], root=tmp_path, name="made"
    )
    batches = collect(manifest, config=replace(CONFIG, max_bad_fraction=0.05), epochs=1)
    assert batches[-1].counters.bad_files == len(bad)
    figure("R7", f"{batches[-1].counters.bad_files} of 2 bad files among 40 counted")


# ------------------------------------------------------------------------------------------------------ oversized files


def grow_vp8() -> bytes:
    """VP8 whose second key frame says 16383 x 16383 (RFC 6386, 9.1)."""
    data = bytearray(encode("webm", codec="libvpx", options=VPX))
    key = data.index(b"\x9d\x01\x2a", data.index(b"\x9d\x01\x2a") + 3)
    data[key + 3 : key + 7] = b"\xff\x3f\xff\x3f"
    return bytes(data)


def grow_mjpeg() -> bytes:
    """MJPEG whose frames from the 31st on say 60000 x 60000."""
    data = bytearray(encode("avi", codec="mjpeg", pixels="yuvj420p", options={}))
    at = 0
    for number in range(FRAMES):
        at = data.index(b"\xff\xc0\x00\x11", at + 1)
        if number >= 30:
            data[at + 5 : at + 9] = (60000).to_bytes(2, "big") * 2
    return bytes(data)


def flat(number: int, width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 70 + number, np.uint8)


def patched(container: str, old: bytes, new: bytes, **how: object) -> bytes:
    """Return a file with the first `old` replaced."""
    data = encode(container, **how)
    assert old in data
    return data.replace(old, new, 1)


BOMBS: dict[str, Callable[[], bytes]] = {
    "grows.webm": grow_vp8,
    "grows.avi": grow_mjpeg,
    "header.webm": lambda: patched(
        "webm", b"\xb0\x82\x01\x40\xba\x81\xf0", b"\xb0\x82\xff\xff\xba\x81\xff", codec="libvpx", options=VPX
    ),
    "samples.mp4": lambda: more_samples(encode("mp4")),
}
"""Small files that promise frames above the limit, or billions of them."""


def more_samples(data: bytes) -> bytes:
    """Return an MP4 whose table of sizes (stsz) promises 4 billion frames of one size, without the table."""
    changed = bytearray(data)
    at = changed.index(b"stsz")
    changed[at + 8 : at + 16] = (100).to_bytes(4, "big") + b"\xff" * 4
    return bytes(changed)


@pytest.mark.promise("R10")
def test_oversized_files_are_refused_in_bounded_memory(tmp_path, figure):
    for name, make in BOMBS.items():
        (tmp_path / name).write_bytes(make())
    for name, at in (("000001.png", 16), ("000001.jpg", 0)):
        folder = tmp_path / f"frames_{name[-3:]}"
        folder.mkdir()
        (folder / name).write_bytes(large_picture(name, at))
    code = """if True:
        import sys
        from pathlib import Path
        from ppma.loaders.sources.probe import probe
        from ppma.loaders.sources.pictures import Unusable
        for check in ("quick", "full"):
            for file in sorted(Path(sys.argv[1]).iterdir()):
                try:
                    probe(file, check=check)
                    print("accepted", file.name)
                except Unusable as reason:
                    print("refused", file.name, reason)
        print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    """
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    *answers, peak_kb = done.stdout.splitlines()
    assert len(answers) == 2 * (len(BOMBS) + 2) and all(line.startswith("refused") for line in answers), answers
    figure("R10", f"{len(answers)} of {len(answers)} refused, peak {int(peak_kb) / 1000:.0f} MB")
    assert int(peak_kb) / 1000 < 300


def large_picture(name: str, at: int) -> bytes:
    """Return a picture whose header says 50000 x 50000."""
    frame = av.VideoFrame.from_ndarray(flat(0, 64, 48), format="rgb24")
    codec, pixels = ("png", "rgb24") if at else ("mjpeg", "yuvj420p")
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 64, 48, pixels, Fraction(1, 25)
    data = bytearray(b"".join(map(bytes, [*encoder.encode(frame.reformat(format=pixels)), *encoder.encode(None)])))
    if at:
        data[at : at + 8] = (50000).to_bytes(4, "big") * 2
    else:
        at = data.index(b"\xff\xc0\x00\x11")
        data[at + 5 : at + 9] = (50000).to_bytes(2, "big") * 2
    return bytes(data)


# ------------------------------------------------------------------------------------------------------ a very long file

HOUR_COPIES = 360
"""Of 10 s."""


def repeat(source: Path, target: Path, copies: int) -> None:
    """Write the packets of a file `copies` times, one after the other."""
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        stream = container.streams.video[0]
        copy = out.add_stream_from_template(stream)
        packets = [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in container.demux(stream) if p.size]
        lasts, base = round(10 / stream.time_base), stream.time_base
        for number in range(copies):
            for data, pts, dts, is_key in packets:
                packet = av.Packet(data)
                packet.pts, packet.dts = pts + number * lasts, dts + number * lasts
                packet.time_base, packet.is_keyframe, packet.stream = base, is_key, copy
                out.mux(packet)


def cpu_seconds(path: Path, starts: np.ndarray, read_barcode: Callable[[np.ndarray], int]) -> float:
    """Return the CPU time of a window; the frames must be those of the clock."""
    began = time.process_time()
    windows = [read_window(path, float(start), float(start) + 2.4, 16) for start in starts]
    seconds = (time.process_time() - began) / len(starts)
    for start, window in zip(starts, windows):
        first = int(np.ceil(round(float(start) * 25, 6)))
        assert [read_barcode(frame) for frame in window] == [(first + int(i)) % 250 for i in np.linspace(0, 59, 16)]
    return seconds


@pytest.mark.slow
@pytest.mark.promise("R30")
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_seek_in_an_hour_costs_what_it_costs_in_ten_seconds(tmp_path, write_clip, read_barcode, figure, suffix):
    made = write_clip(tmp_path / "made.mp4", frames=250, fps=25, key_frame_spacing=50)
    ten, hour = tmp_path / f"ten.{suffix}", tmp_path / f"hour.{suffix}"
    repeat(made, ten, 1)
    repeat(made, hour, HOUR_COPIES)
    assert probe(hour).frames == 250 * HOUR_COPIES
    starts = np.arange(20) * 0.36
    short = min(cpu_seconds(ten, starts, read_barcode) for _ in range(3))
    late = min(cpu_seconds(hour, starts + 10 * (HOUR_COPIES - 1), read_barcode) for _ in range(3))
    figure("R30", f"a window after 59 min costs {late / short:.1f} times one of a 10 s {suffix} ({1000 * late:.1f} ms)")
    assert late < 10 * short
