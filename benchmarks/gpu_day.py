"""Measure everything that needs a GPU, in one call.

    python benchmarks/gpu_day.py --seconds 560 --out DIR
    python benchmarks/gpu_day.py --rehearse --out DIR            every item's code, tiny, without a GPU
    python benchmarks/gpu_day.py --list

Rows are written to DIR/rows.jsonl as they are measured, the table to DIR/table.txt. A second call with the same DIR
continues where the first stopped. To keep the rows: `cat DIR/rows.jsonl >> benchmarks/results/gpu_day.jsonl`. `--warm
DIR` is a folder of compiled kernels that is used and filled, so that little is compiled at the start. On a machine
without a GPU the same flag fills it, and the folder may be moved. Fill it with the GPU machine's torch and at the
commit to be measured: its keys contain the versions and the kernel source.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from benchmarks import day, rows
from benchmarks.day import Item
from ppma.compile_check import check as compile_check
from ppma.compile_check.check import Phase
from ppma.config.cache import cache_folder
from ppma.config.command import DONE, INTERRUPTED, OutFolder, parse, run
from ppma.config.errors import InputError

STEPS, CLIPS = "benchmarks.gpu_steps", "benchmarks.gpu_clips"
ITEMS = (
    Item(name="environment", seconds=15, what="the card, and its two ceilings", parts=f"{STEPS}:environment"),
    Item(name="kernels", seconds=25, what="own kernels against float64 references", parts=f"{STEPS}:kernels"),
    Item(name="compiled_step", seconds=140, what="the compiled step starts; loss = eager = CPU", parts=f"{STEPS}:compiled_step"),
    Item(name="barcodes", seconds=40, what="every codec and GOP gives the requested frames", parts=f"{CLIPS}:barcodes"),
    Item(name="bad_jpeg", seconds=20, what="one bad JPEG in 512", parts=f"{CLIPS}:bad_jpeg", clips=True),
    Item(name="attention", seconds=40, what="attention backends by graph replay", parts=f"{STEPS}:attention"),
    Item(name="stage1", seconds=90, what="stage 1 against the published step", parts=f"{STEPS}:stage1"),
    Item(name="end_to_end", seconds=100, what="stage 1 with the loader", parts=f"{CLIPS}:end_to_end", clips=True),
    Item(name="stage2", seconds=60, what="stage 2 against the published step", parts=f"{STEPS}:stage2"),
    Item(name="nvdec", seconds=70, what="decoded frames/s by GOP, width, threads", parts=f"{CLIPS}:nvdec", clips=True),
    Item(name="nvjpeg", seconds=20, what="decoded images/s", parts=f"{CLIPS}:nvjpeg", clips=True),
    Item(name="peers", seconds=50, what="PyNvVideoCodec, torchcodec CUDA", parts=f"{CLIPS}:peers", clips=True),
    Item(name="memory_bound", seconds=20, what="patchify and pixel_loss", parts=f"{STEPS}:memory_bound"),
    Item(name="profile", seconds=45, what="stage 1 by kernel class", parts=f"{STEPS}:profile"),
    Item(name="gpu_views", seconds=20, what="GPU views = CPU views", parts=f"{CLIPS}:gpu_views"),
    Item(name="no_sync", seconds=45, what="no wait of the host in a step", parts=f"{CLIPS}:no_sync", clips=True),
    Item(name="graphs_fp16", seconds=150, what="CUDA graphs, fp16", parts=f"{STEPS}:graphs_fp16"),
)  # fmt: skip
"""In order of importance. `compiled_step` compiles both steps from scratch, which takes most of a minute each in Python
alone; later items reuse the result."""
NAMES = tuple(item.name for item in ITEMS)
WARMED: tuple[tuple[Phase, int], ...] = (("mae", 128), ("mae", 64), ("mae", 256), ("align", 64))
"""Steps that --warm compiles on a machine without a GPU."""


@dataclass(frozen=True, kw_only=True)
class DayConfig:
    """Measure everything that needs a GPU, in one call."""

    seconds: float = 560.0
    """Total time."""
    out: OutFolder = Path("runs/gpu-day")
    """Folder for rows.jsonl, table.txt, log.txt, failures.txt and profile.json."""
    only: tuple[str, ...] = ()
    """Run these items even if they are finished."""
    warm: OutFolder | None = None
    """Folder of compiled kernels to use and fill. On a machine without a GPU it is only filled, for an H100 or H200;
    use the GPU machine's torch."""
    clips: OutFolder = field(default_factory=lambda: cache_folder() / "gpu-day-clips")
    """Folder for generated clips, reused by the next run; keep it outside --out, whose files may be transferred."""
    rehearse: bool = False
    """Run every item's code with tiny shapes on the CPU."""
    show: Annotated[bool, tyro.conf.arg(name="list")] = False
    """List the items and stop."""
    commit: str = ""
    """Commit of the code, if its repository is not present."""

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in NAMES:
                raise InputError(f"--only has {name!r}; it may have {', '.join(NAMES)}")
        if self.seconds <= 0:
            raise InputError(f"--seconds is {self.seconds:g}; it must be above 0")


def has_gpu() -> bool:
    """True if the driver shows a GPU. Asks the file system: this process must not touch CUDA, since it forks."""
    return Path("/dev/nvidiactl").exists()


def use_cache(folder: Path) -> None:
    """Have inductor and Triton keep their results in `folder`."""
    for name, below in compile_check.cache_environment(folder.resolve()).items():
        os.environ[name] = below
        Path(below).mkdir(parents=True, exist_ok=True)
    compile_check.relocate(folder.resolve())


FILL_ATTENTION = """
from benchmarks.kernel_speed import ATTENTION_SHAPES
from ppma.kernels.ahead_of_time import fill_attention
fill_attention(90, ATTENTION_SHAPES[:3])
"""


def fill_cache(folder: Path) -> None:
    """Compile the day's steps, and every kernel that attention may choose, for an H100 or H200 that is not present.

    Only Triton's machine code is kept, some megabytes: inductor rejects graphs made for another device.
    """
    with tempfile.TemporaryDirectory() as scratch:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment |= compile_check.cache_environment(Path(scratch))
        root = Path(__file__).parents[1]
        subprocess.run([sys.executable, "-c", FILL_ATTENTION], cwd=root, env=environment, check=True)
        for phase, batch in WARMED:
            settings = compile_check.Settings(batch=batch, all_configs=True)
            report = compile_check.check(phase, settings, folder=Path(scratch))
            print(f"{phase} B{batch}: {report.compiled} kernels compiled, {report.found} found", flush=True)
        for file in Path(scratch).glob("triton/*/*"):
            if file.suffix in (".cubin", ".json"):
                kept = folder / file.relative_to(scratch)
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, kept)


@contextmanager
def making_clips(today: day.Day) -> Iterator[None]:
    """Generate the clips in the background: the first items do not need them and leave most cores idle."""
    command = [sys.executable, "-m", CLIPS, str(today.clips), *(["tiny"] if today.tiny else [])]
    today.clips.parent.mkdir(parents=True, exist_ok=True)
    for mark in ("ready", "failed"):  # left by an earlier run
        (today.clips / mark).unlink(missing_ok=True)
    with (today.out / day.LOG).open("a") as log:
        where: dict[str, Any] = {"cwd": Path(__file__).parents[1], "stdout": log, "stderr": log}
        maker = subprocess.Popen(["nice", "-n", "10", *command], start_new_session=True, **where)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(maker.pid, signal.SIGKILL)
        maker.wait()


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    config = parse(DayConfig, argv, prog="gpu_day")
    if config.show:
        print("\n".join(f"{item.name:14} {item.seconds:4.0f} s  {item.what}" for item in ITEMS))
        return DONE
    if config.warm is not None and not config.rehearse and not has_gpu():
        fill_cache(config.warm)
        return DONE
    if not (config.rehearse or has_gpu()):
        raise InputError("there is no NVIDIA GPU here; --rehearse walks through every item on the CPU")
    config.out.mkdir(parents=True, exist_ok=True)
    if config.warm is not None or not config.rehearse:
        use_cache(config.warm or cache_folder() / "compiled")
    today = day.Day(
        out=config.out.resolve(), device="cpu" if config.rehearse else "cuda", tiny=config.rehearse,
        clips=(config.out / "clips" if config.rehearse else config.clips).resolve(),
        commit=config.commit or rows.commit(),
    )  # fmt: skip
    items = day.choose(ITEMS, day.Book(folder=today.out).read(), config.only)
    with making_clips(today) if any(item.clips for item in items) else nullcontext():
        whole = day.run(items, today, config.seconds, preload=(STEPS,))
    return DONE if whole else INTERRUPTED


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="gpu_day"))
