"""Measure clips per second, CPU time and memory of every installed way of reading clips.

    clips (generated, or --manifest)  ->  each reader in its own process, in turn, several rounds  ->  medians and ratios as rows

All readers produce the same views of the same windows: the pixels of their first batches are compared. A reader's
process keeps running, with batches prefetched, and idles between rounds. CPU time is that of the whole process tree
from idle to idle, over all batches it made; clips/s is timed while batches flow. Ratios are to the published loader on
the same content; for `packed`, on the H.264 video that was packed. `make bench` records the rows and writes the tables
of README and docs/loader.md; --headspace asks instead which store and reader feed the training step of this machine.
"""

import contextlib
import math
import multiprocessing
import os
import re
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import rows
from benchmarks.natural_clips import CONTENTS, FPS, ignoring_interrupts, make_clips
from ppma.config.cache import cache_folder
from ppma.config.command import DONE, OutFolder, parse, run
from ppma.config.errors import InputError
from ppma.config.loader import LoaderConfig
from ppma.loaders.sources.manifest import Manifest

READERS = ("ours", "ffcv", "torchcodec", "decord2", "opencv", "pyav", "spdl", "torchvision", "published")
GPU_READERS = ("torchcodec_cuda", "pynvvideocodec")
BATCH_CLIPS, CYCLE_BATCHES = 4, 4  # as in loader_readers, which imports torch
STRIDE, FRAMES = 4, 16
MOST_TURNS = 8
"""Upper bound on cycles per measurement: on a busy machine a batch may seem to take no time."""
REST_SECONDS, REST_AT_MOST = 0.12, 10.0
TABLE_BEGIN, TABLE_END = "<!-- loader_throughput.py writes this table -->", "<!-- to here -->"
TABLE = re.compile(f"({TABLE_BEGIN}\n).*?({TABLE_END})", re.DOTALL)
ON_CPU = tuple(content for content in CONTENTS if content != "h264_gop1")
MOST_APART = 1.5
"""Mean difference in levels of 255 between two readers' first batches: chroma filters, DCTs and rounding differ."""
FOUR_VIEWS = (("h264_gop250", ("ours", "published")), ("packed", ("ours", "ffcv")))
"""Contents and readers that are also measured with four views, as in stage 1."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(rows.ReportConfig):
    """Measure clips per second, CPU time and memory of every installed way of reading clips.

    python benchmarks/loader_throughput.py
    """

    manifest: Path | None = None
    """Measure these clips (FILE.csv from `ppma index`) instead of generated ones."""
    root: Path | None = None
    """Folder that the paths in --manifest are relative to (default: the manifest's folder)."""
    contents: tuple[str, ...] = ()
    """Any of h264_gop250, h264_gop12, h264_gop1, vp9, mpeg4, jpeg_folder, packed, packed_hevc (default: all except h264_gop1 on a
    CPU, all on a GPU)."""
    readers: tuple[str, ...] = ()
    """Any of ours, ffcv, torchcodec, decord2, opencv, pyav, spdl, torchvision, published, torchcodec_cuda,
    pynvvideocodec (default: all; the last two on a GPU). A reader that cannot be imported is named in the rows."""
    views: int = 1
    """Crops per clip. With the default contents, four crops are measured too for h264_gop250 and packed."""
    workers: int = 2
    """Worker processes (FFCV, SPDL and GPU decoders: threads) per reader."""
    rounds: int = 5
    """Measurements per reader, taken in turn."""
    seconds: float = 0.6
    """Length of one measurement."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where our views are made; the other readers run on the CPU."""
    clips: OutFolder = field(default_factory=lambda: cache_folder() / "benchmark-clips")
    """Folder for the generated clips, reused by the next run."""
    headspace: bool = False
    """Measure our readers, by worker count, against the training step, and say which to use."""
    pages: tuple[Path, ...] = ()
    """Write the table into these Markdown files, between the lines that mark its place."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "views", "workers", "rounds")
        if self.seconds <= 0:
            raise InputError(f"--seconds {self.seconds:g} must be above 0")
        for page in self.pages:
            if not (page.is_file() and TABLE.search(page.read_text())):
                raise InputError(f"--pages {page}: has no line {TABLE_BEGIN}")
        if self.root is not None and not self.root.is_dir():
            raise InputError(
                f"--root {self.root}: no such folder; give the one that the paths of --manifest start from"
            )
        for name, known in (("contents", CONTENTS), ("readers", READERS + GPU_READERS)):
            for value in getattr(self, name):
                if value not in known:
                    raise InputError(f"--{name} has {value!r}; it may have {', '.join(known)}")


@dataclass(frozen=True)
class Case:
    """One content with one number of views, and the readers to compare on it."""

    content: str
    views: int
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Measure:
    """One round of one reader."""

    clips_per_s: float
    cpu_ms_per_clip: float
    rss_mb: float


def serve(connection: Connection, reader: str) -> None:
    """Run a reader in this process until the other end of the connection closes."""
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the benchmark was ended
        _answer(connection, reader)


def _answer(connection: Connection, reader: str) -> None:
    """Open contents and read batches on request, and reply with (clips/s, clips made); stop at None."""
    from benchmarks import loader_readers

    flow: Iterator[Any] = iter(())
    ahead, views = 0, 1
    connection.send(loader_readers.why_not(reader))
    while (order := connection.recv()) is not None:
        if isinstance(order, tuple):
            manifest, config, device = order
            del flow  # ends the workers of the content before
            flow, ahead = loader_readers.batches(reader, manifest, config, device)
            views = config.views
            connection.send((next(flow).cpu().numpy(), ahead))
            continue
        for _ in range(ahead):
            next(flow)
        began = time.perf_counter()
        rows_made = sum(len(next(flow)) for _ in range(order))
        seconds = time.perf_counter() - began
        connection.send((rows_made / views / seconds, (ahead + order) * BATCH_CLIPS))


def _proc(path: str) -> str:
    """Read a file in /proc; empty if its thread or process has just ended."""
    try:
        return Path(f"/proc/{path}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def tree(pid: int) -> list[int]:
    """Return the pids of a process and all its descendants."""
    threads = [thread.name for thread in Path(f"/proc/{pid}/task").glob("*")]
    children = [int(child) for thread in threads for child in _proc(f"{pid}/task/{thread}/children").split()]
    return [pid, *(member for child in children for member in tree(child))]


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of a process tree so far."""
    ticks = 0
    for member in tree(pid):
        fields = _proc(f"{member}/stat").rpartition(")")[2].split()
        ticks += sum(int(ticks) for ticks in fields[11:13])
    return ticks / 100


def memory_mb(pid: int) -> float:
    """Return the proportional set size of a process tree, which counts shared memory once."""
    total = 0
    for member in tree(pid):
        for line in _proc(f"{member}/smaps_rollup").splitlines():
            total += int(line.split()[1]) if line.startswith("Pss:") else 0
    return total / 1024


class Reader:
    """A reader's process, controlled from this one."""

    def __init__(self, name: str) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        # Not a daemon: a DataLoader's workers are its children.
        self._process = context.Process(target=serve, args=(theirs, name))
        with ignoring_interrupts():
            self._process.start()
        theirs.close()
        self._batches = 1

    def wait_until_ready(self) -> str:
        """Wait for the process to import its library, which takes seconds; return why it cannot, or an empty string."""
        why: str = self._connection.recv()
        return why

    def _rest(self) -> float:
        """Wait until the process tree is idle and return its CPU seconds."""
        pid = self._process.pid or 0
        deadline, last = time.monotonic() + REST_AT_MOST, cpu_seconds(pid)
        while time.monotonic() < deadline:
            time.sleep(REST_SECONDS)
            now = cpu_seconds(pid)
            if now - last < 0.011:
                return now
            last = now
        return last

    def open(self, manifest: Manifest, config: LoaderConfig, device: str, seconds: float) -> np.ndarray:
        """Start reading a content, calibrate for measurements of about `seconds`, and return the first batch."""
        self._connection.send((manifest, config, device))
        batch, ahead = self._connection.recv()
        self._rest()
        self._connection.send(CYCLE_BATCHES)
        rate, _ = self._connection.recv()
        turns = min(math.ceil((seconds * rate / BATCH_CLIPS + ahead) / CYCLE_BATCHES), MOST_TURNS)
        turns += turns * CYCLE_BATCHES - ahead < 2  # a rate of fewer batches says nothing
        self._batches = turns * CYCLE_BATCHES - ahead
        return np.asarray(batch)

    def measure(self) -> Measure:
        """Measure one round."""
        before = self._rest()
        self._connection.send(self._batches)
        rate, made = self._connection.recv()
        memory = memory_mb(self._process.pid or 0)
        return Measure(rate, 1e3 * (self._rest() - before) / made, memory)

    def close(self) -> None:
        """End the idle process."""
        self._connection.send(None)
        self._process.join(30)
        self.kill()

    def kill(self) -> None:
        """Kill the process and its children at once. Idempotent."""
        if self._process.is_alive():
            for member in tree(self._process.pid or 0):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)
        self._process.join()


def contents_of(config: BenchmarkConfig) -> tuple[str, ...]:
    """Return the requested contents, or the defaults of the device."""
    return config.contents or (CONTENTS if config.device == "gpu" else ON_CPU)


def readers_of(config: BenchmarkConfig) -> tuple[str, ...]:
    """Return the requested readers, or the defaults of the device."""
    return config.readers or READERS + (GPU_READERS if config.device == "gpu" else ())


def cases(config: BenchmarkConfig) -> list[Case]:
    """Return what to measure, in order."""
    from benchmarks.loader_readers import reads

    readers = readers_of(config)
    if config.manifest is not None:
        return [Case("manifest", config.views, tuple(r for r in readers if reads(r, "h264_gop250")))]
    found = [Case(c, config.views, tuple(r for r in readers if reads(r, c))) for c in contents_of(config)]
    if not config.contents and config.views == 1:
        found += [Case(c, 4, tuple(r for r in some if r in readers)) for c, some in FOUR_VIEWS]
    return [case for case in found if case.readers]


def measure(config: BenchmarkConfig, manifests: dict[str, Manifest], cases: list[Case]) -> list[dict[str, Any]]:
    """Return the rows of all cases. The readers of a case take turns, round after round."""
    readers = {name: Reader(name) for name in dict.fromkeys(r for case in cases for r in case.readers)}
    found: dict[tuple[str, str, int], list[Measure]] = {}
    try:
        left_out = {name: why for name, reader in readers.items() if (why := reader.wait_until_ready())}
        for name, why in left_out.items():
            print(f"{name} cannot be imported and is left out: {why}", flush=True)
        for case in cases:
            able = {name: readers[name] for name in case.readers if name not in left_out}
            measured = measure_case(config, case, able, manifests[case.content])
            found |= {(name, case.content, case.views): rounds for name, rounds in measured.items()}
            line = "  ".join(f"{name} {_median(rounds, 'cpu_ms_per_clip'):.1f}" for name, rounds in measured.items())
            print(f"{case.content}, views {case.views}: {line} ms of CPU a clip", flush=True)
        for reader in readers.values():
            reader.close()
    finally:
        for reader in readers.values():
            reader.kill()
    return to_rows(found, config) + [{"reader": name, "left_out": why} for name, why in left_out.items()]


def measure_case(
    config: BenchmarkConfig, case: Case, readers: dict[str, Reader], manifest: Manifest
) -> dict[str, list[Measure]]:
    """Check that the readers give the same pixels, then measure them in turn."""
    window_seconds = (STRIDE * (FRAMES - 1) + 1) / FPS
    plain = LoaderConfig(frames=FRAMES, views=case.views, window_seconds=window_seconds, workers=config.workers)
    first: np.ndarray | None = None
    for name, reader in readers.items():
        on_gpu = config.device == "gpu" and name in ("ours", *GPU_READERS)
        own = replace(plain, implementation="dali" if on_gpu and name == "ours" else "plain")
        batch = reader.open(manifest, own, "cuda" if on_gpu else "cpu", config.seconds)
        first = batch if first is None else first
        apart = np.abs(batch.astype(np.int16) - first).mean()
        assert apart < MOST_APART, f"{name} gives other pixels of {case.content}: {apart:.2f} levels apart"
    rounds: dict[str, list[Measure]] = {name: [] for name in readers}
    for _ in range(config.rounds):
        for name, reader in readers.items():
            rounds[name].append(reader.measure())
    return rounds


def _median(measures: list[Measure], name: str) -> float:
    return statistics.median(getattr(m, name) for m in measures)


def to_rows(found: dict[tuple[str, str, int], list[Measure]], config: BenchmarkConfig) -> list[dict[str, Any]]:
    """Return one flat row per reader, content and number of views."""
    made = []
    for (reader, content, views), measures in found.items():
        source = "h264_gop250" if content.startswith("packed") else content
        published = found.get(("published", source, views))
        cpu = [m.cpu_ms_per_clip for m in measures]
        made.append(
            {
                "reader": reader,
                "content": content,
                "views": views,
                "device": config.device if reader in ("ours", *GPU_READERS) else "cpu",
                "workers": config.workers,
                "clips_per_s": round(_median(measures, "clips_per_s"), 2),
                "cpu_ms_per_clip": round(statistics.median(cpu), 3),
                "spread": rows.spread(cpu),
                "peak_rss_mb": round(max(m.rss_mb for m in measures), 1),
                "ratio_to_published": published
                and round(_median(published, "cpu_ms_per_clip") / statistics.median(cpu), 2),
                "rounds": len(measures),
            }
        )
    return made


NAMES = {"ffcv": "our FFCV reader", "opencv": "OpenCV", "pyav": "PyAV", "spdl": "SPDL", "published": "published way"}
LABELS = {
    "h264_gop250": "H.264, key frames 250 apart",
    "h264_gop12": "H.264, key frames 12 apart",
    "h264_gop1": "H.264, key frames only",
    "vp9": "VP9",
    "mpeg4": "MPEG-4",
    "jpeg_folder": "folder of JPEG frames",
    "packed": "packed store",
    "packed_hevc": "packed as HEVC, for NVDEC",
    "manifest": "--manifest",
}


def page_table(measured: list[rows.Row]) -> str:
    """Return the rows of one run as Markdown: ms of CPU a clip by content and reader, and who was left out."""
    read = [row for row in measured if "content" in row]
    names = [name for name in READERS + GPU_READERS if any(row["reader"] == name for row in read)]
    lines = ["| | " + " | ".join(NAMES.get(name, name) for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for content, views in dict.fromkeys((row["content"], row["views"]) for row in read):
        here = {row["reader"]: row for row in read if (row["content"], row["views"]) == (content, views)}
        cells = [f"{here[name]['cpu_ms_per_clip']:.1f}" if name in here else "" for name in names]
        lines.append(f"| {LABELS[content]}{', four views a clip' * (views == 4)} | " + " | ".join(cells) + " |")
    one = read[0]
    where = f"Milliseconds of CPU a clip, {one['workers']} workers, medians of {one['rounds']} rounds"
    left = [f"{row['reader']} could not be imported ({row['left_out']})." for row in measured if row.get("left_out")]
    return "\n".join([*lines, "", " ".join([f"{where}; {one['machine']}, {one['date'][:10]}.", *left])])


def page_plot(measured: list[rows.Row], file: Path) -> None:
    """Plot the table of the pages: ms of CPU a clip as one bar per reader, grouped by content."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    read = [row for row in measured if "content" in row]
    names = [name for name in READERS + GPU_READERS if any(row["reader"] == name for row in read)]
    colors = dict(zip(names, [*(f"C{i}" for i in range(10)), "black"]))  # matplotlib's C10 is C0 again
    figure = Figure(figsize=(8, 1.2 + 0.17 * len(read)), layout="constrained")
    axes, place = figure.subplots(), 0
    labels: dict[float, str] = {}
    for content, views in dict.fromkeys((row["content"], row["views"]) for row in read):
        here = [row for row in read if (row["content"], row["views"]) == (content, views)]
        labels[place + (len(here) - 1) / 2] = LABELS[content] + ",\nfour views a clip" * (views == 4)
        for row in here:
            bar = axes.barh(place, row["cpu_ms_per_clip"], color=colors[row["reader"]])
            axes.bar_label(bar, fmt="{:.1f}", padding=3, fontsize=7)
            place += 1
        place += 1
    axes.set_yticks(list(labels), list(labels.values()))
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.margins(x=0.05, y=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("ms of CPU a clip")
    handles = [Patch(color=colors[name], label=NAMES.get(name, name)) for name in names]
    axes.legend(handles=handles, frameon=False, loc="center right")
    figure.savefig(file, dpi=120)


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    config = parse(BenchmarkConfig, argv, prog="loader_throughput")
    if config.device == "gpu":
        from ppma.loaders.decode.dali import available

        ready, why = available("gpu")
        if not ready:
            raise InputError(f"--device gpu: {why}")
    if config.manifest is not None:
        manifests = {"manifest": Manifest.read(config.manifest, root=config.root)}
    else:
        print(f"making clips in {config.clips} (once)", flush=True)
        manifests = make_clips(config.clips, contents=contents_of(config))
    if config.headspace:
        from benchmarks import loader_headspace

        manifests |= make_clips(config.clips, contents=("jpeg_folder", "packed", "packed_hevc"))
        print(loader_headspace.advice(manifests, on_gpu=config.device == "gpu"))
        return DONE
    made = measure(config, manifests, cases(config))
    made = rows.report(made, replace(config, plot=None), benchmark="loader_throughput", measure="cpu_ms_per_clip")
    if config.plot:
        page_plot(made, config.plot)
    for page in config.pages:
        page.write_text(TABLE.sub(lambda found: f"{found[1]}{page_table(made)}\n{found[2]}", page.read_text()))
    return DONE


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="loader_throughput"))
