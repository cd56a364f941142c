"""What every test may count on: when a test is skipped, how many threads it has, and small clips made on the spot.

`slow` tests run with --slow or -m slow only; `cuda` and `slurm` tests where the machine has what they need.
PPMA_REQUIRE=gpu,slurm turns a missing GPU or cluster from a skip into a failure, so that a machine bought for a check cannot skip it.
"""

import fcntl
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_threads = max(1, min(4, (os.cpu_count() or 1) // _processes))
os.environ.setdefault("OMP_NUM_THREADS", str(_threads))  # before torch is imported, and for child processes

# A shell ignores SIGINT for what it starts in the background, and children would inherit that: tests press Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton kernels run on the CPU; read when they are defined

CLASSES = {"moving left": (-1, 0), "moving right": (1, 0), "rising, [slowly]": (0, -1), "größer fallend": (0, 1)}
"""Class names of the generated tree, awkward on purpose, and the direction (x, y) in which their square moves."""
SIZES = ((64, 48), (96, 72), (72, 96))
"""Width and height of a class's clips, one clip each."""
BITS, BLOCK = 8, 8
"""The frame number stands in the top rows: 8 blocks of 8 x 8 pixels, bright for a one. It survives every codec used here."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


SLURM_CLUSTER = Path(__file__).with_name("slurm-cluster")


def _can_start_slurm() -> bool:
    """Root, who may make namespaces, with SLURM installed or apt-get to install it."""
    tools = shutil.which("slurmctld", path="/usr/sbin:/sbin") or shutil.which("apt-get")
    if os.geteuid() != 0 or tools is None or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, check=False).returncode == 0


NEEDS: dict[str, tuple[str, Callable[[], bool], str]] = {
    "cuda": ("gpu", _has_gpu, "needs an NVIDIA GPU"),
    "slurm": ("slurm", _can_start_slurm, "needs root, namespaces and SLURM or apt-get, to start a cluster"),
}
"""marker: (its name in PPMA_REQUIRE, whether the machine has it, why a test is skipped)."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    item.user_properties += [("promise", mark.args[0]) for mark in item.iter_markers("promise")]
    slow_asked = item.config.getoption("--slow") or "slow" in (item.config.option.markexpr or "")
    if item.get_closest_marker("slow") and not slow_asked:
        pytest.skip("slow: `make slow` runs it")
    required = set(filter(None, os.environ.get("PPMA_REQUIRE", "").split(",")))
    for marker, (name, available, reason) in NEEDS.items():
        if item.get_closest_marker(marker) and not available():
            if name in required:
                pytest.fail(f"PPMA_REQUIRE asks for {name}: {reason}", pytrace=False)
            pytest.skip(reason)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Seed torch, so that what a test draws does not depend on the tests before it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """A function that keeps a figure for the table of benchmarks/reliability.py: figure("R6", "0 of 60 files")."""
    return lambda promise, measured: request.node.user_properties.append((f"figure {promise}", measured))


_locks: list[int] = []
"""Open while this process runs a test: the gate and the lock of `pytest_runtest_protocol`."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Let no process of `make test` run another test while one marked `alone` runs; several in a row wait for others once."""
    alone = item.get_closest_marker("alone")
    if not _locks:
        mode = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        _locks[:] = gate, running = [os.open(path, os.O_RDONLY) for path in (Path(__file__).parent, __file__)]
        fcntl.flock(gate, mode)  # whoever waits to run alone closes the gate to all others
        fcntl.flock(running, mode)
        fcntl.flock(gate, fcntl.LOCK_UN)
    try:
        return (yield)
    finally:
        if not (alone and nextitem and nextitem.get_closest_marker("alone")):
            while _locks:
                os.close(_locks.pop())


@pytest.fixture(scope="session")
def real_videos() -> Path | None:
    """Folder of real clips, <class>/<file>, from $PPMA_VIDEOS or beside the repository; None where there is none: use `clip_tree` then."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "videos"
    folder = Path(os.environ.get("PPMA_VIDEOS", beside))
    return folder if folder.is_dir() else None


def barcoded_frame(
    number: int, *, width: int, height: int, direction: tuple[int, int], color: np.ndarray
) -> np.ndarray:
    """One RGB frame: its number as a barcode in the top rows, below it a square that moves two pixels a frame, wrapping round."""
    frame_HWC = np.full((height, width, 3), 48, dtype=np.uint8)
    for bit in range(BITS):
        frame_HWC[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 235 if number >> bit & 1 else 16
    field, side = height - BLOCK, min(width, height) // 4
    rows = BLOCK + (field // 2 + 2 * number * direction[1] + np.arange(side)) % field
    columns = (width // 2 + 2 * number * direction[0] + np.arange(side)) % width
    frame_HWC[np.ix_(rows, columns)] = color
    return frame_HWC


def write_barcoded_clip(
    path: Path,
    *,
    frames: int = 30,
    fps: int = 10,
    width: int = 64,
    height: int = 48,
    codec: str = "libx264",
    key_frame_spacing: int = 12,
    direction: tuple[int, int] = (1, 0),
    color: tuple[int, int, int] = (220, 60, 60),
) -> Path:
    """Encode a clip of barcoded frames (at most 256, at least 64 pixels wide) with PyAV; the container follows from the suffix."""
    import av  # late: tests of kernels run on machines without it

    assert frames <= 1 << BITS and width >= BITS * BLOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        # threads of libvpx spin while they wait: twenty times the CPU time of one
        stream = container.add_stream(codec, rate=Fraction(fps), options={"threads": "1"} if codec == "libvpx" else {})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = key_frame_spacing
        stream.codec_context.bit_rate = 400_000
        for number in range(frames):
            picture = barcoded_frame(number, width=width, height=height, direction=direction, color=np.array(color))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def write_clip() -> Callable[..., Path]:
    """The function `write_barcoded_clip(path, *, frames, fps, width, height, codec, key_frame_spacing, direction, color)`."""
    return write_barcoded_clip


@pytest.fixture(scope="session")
def read_barcode() -> Callable[[np.ndarray], int]:
    """A function from a decoded frame_HWC (RGB, full size) to the number written into it."""

    def read(frame_HWC: np.ndarray) -> int:
        bright = [frame_HWC[2 : BLOCK - 2, b * BLOCK + 2 : (b + 1) * BLOCK - 2].mean() > 128 for b in range(BITS)]
        return sum(1 << bit for bit, on in enumerate(bright) if on)

    return read


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that the processes of one session share, empty at its start."""
    base = tmp_path_factory.getbasetemp()  # of one process of the session
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


BuiltOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def built_once(session_folder: Path) -> BuiltOnce:
    """A function (name, build) -> folder, which the first process that asks for it fills, for all of the session."""

    def built(name: str, build: Callable[[Path], None]) -> Path:
        folder = session_folder / name
        with folder.with_suffix(".built").open("a") as state:
            fcntl.flock(state, fcntl.LOCK_EX)
            if not os.fstat(state.fileno()).st_size:
                shutil.rmtree(folder, ignore_errors=True)  # of a process whose build failed
                folder.mkdir()
                build(folder)
                state.write("built")
        return folder

    return built


def _write_clips(root: Path) -> None:
    generator = np.random.default_rng(0)
    for name, direction in CLASSES.items():
        for index, (width, height) in enumerate(SIZES):
            color = tuple(int(c) for c in generator.integers(120, 255, 3))
            path = root / name / f"clip {index}.mp4"
            codec = "mpeg4" if index == 2 else "libx264"
            write_barcoded_clip(path, width=width, height=height, codec=codec, direction=direction, color=color)


@pytest.fixture(scope="session")
def clip_tree(built_once: BuiltOnce) -> Path:
    """A folder <class>/<video>.mp4 of 4 classes x 3 clips, 30 frames at 10 per second, for reading only: it serves the whole session.

    The class is visible in the direction of motion, and nowhere else.
    """
    return built_once("clips", _write_clips)


@pytest.fixture
def probe_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe clips in this process: starting another one takes longer than the few clips of a test."""
    from ppma.loaders.sources.probe import Unusable, probe

    def probe_each(files: Iterable[tuple[Any, Path]], **how: Any) -> Iterator[tuple[Any, Any]]:
        how = {name: value for name, value in how.items() if name in ("max_pixels", "check")}
        for key, path in files:
            try:
                yield key, probe(path, **how)
            except Unusable as reason:
                yield key, str(reason)

    for caller in ("ppma.data.index", "ppma.loaders.sources.listing"):
        monkeypatch.setattr(f"{caller}.probe_each", probe_each)


def _train_tiny_runs(folder: Path) -> None:
    import tiny

    from ppma.config.flags import resolve
    from ppma.phases import train

    data = tiny.make_data(folder, folder.with_name("clips"), "train", "val", "other.train")
    common = [*tiny.FLAGS, "--batch", "4", "--optim.epochs", "1", "--data", str(data)]
    mae = ["--sources", "made", "other", "--run-dir", f"{folder}/runs/mae", *tiny.MAE_FLAGS]
    train(resolve("mae_nohuman", [*common, *mae]))
    tested = ["--dataset", "made", "--init", f"{folder}/runs/mae", "--run-dir", f"{folder}/runs/finetune"]
    train(resolve("finetune", [*common, *tested]))


@pytest.fixture(scope="session")
def tiny_runs(built_once: BuiltOnce, clip_tree: Path) -> Path:
    """A folder with data.toml (sources `made` and `other`, of the same clips), runs/mae and runs/finetune of it, for reading only."""
    return built_once("tiny_runs", _train_tiny_runs)


@pytest.fixture(scope="session")
def compile_cache(session_folder: Path) -> Path:
    """Folder of the compilers' caches for all proofs of one session, so each kernel is compiled once."""
    folder = session_folder / "compile_cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def compiled_kernels(built_once: BuiltOnce, compile_cache: Path) -> list[Any]:
    """Every Triton kernel as an `ahead_of_time.CompiledKernel`, compiled for every GPU of `ahead_of_time.CAPABILITIES`."""
    from ppma.compile_check.check import cache_environment
    from ppma.kernels import ahead_of_time

    def build(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_CACHE_DIR", cache_environment(compile_cache)["TRITON_CACHE_DIR"])
            (folder / "kernels").write_bytes(pickle.dumps(ahead_of_time.table()))

    return pickle.loads((built_once("compiled_kernels", build) / "kernels").read_bytes())


def _fetched(wanted: Iterable[str]) -> Path:
    """Return the folder of fetched weights; skip the test where some of them are missing."""
    from ppma.privacy.detectors.weights import default_folder, missing

    folder = default_folder()
    if lacking := missing(set(wanted) - {""}, folder):
        pytest.skip(f"{', '.join(lacking)} not in {folder}: `ppma privacy fetch` puts them there")
    return folder


@pytest.fixture(scope="session")
def person_weights() -> Path:
    """Folder of the models that find people; the test is skipped where `ppma privacy fetch` was not run."""
    from ppma.privacy.removal.clip import Settings
    from ppma.privacy.removal.plugins import PLUGINS

    return _fetched(PLUGINS[name].weights for name in Settings().used)


@pytest.fixture(scope="session")
def audit_weights(person_weights: Path) -> Path:
    """The same folder, with the detectors of the auditor in it."""
    from ppma.privacy.detectors.auditors import AUDITORS

    return _fetched(kind.weights for kind in AUDITORS.values())


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Enter the plug-ins of `privacy_stand_ins`, which find what is red; returns the Settings that name them."""
    import privacy_stand_ins

    from ppma.privacy.removal.plugins import PLUGINS

    for name, plugin in privacy_stand_ins.PLUGINS.items():
        monkeypatch.setitem(PLUGINS, name, plugin)
    return {"detectors": ("red", "red-face"), "segmenter": "nothing"}


@pytest.fixture
def owners_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watch the owners of leases without waiting: those of this process are alive, however slow the machine is."""
    from ppma.common import shares

    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(shares, "time", SimpleNamespace(time=time.time, monotonic=lambda: now[0], sleep=sleep))


@pytest.fixture(params=["interpreted", pytest.param("compiled", marks=pytest.mark.cuda)])
def triton_device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device to run Triton kernels on, inside a block that forces them: "cpu" in the interpreter, "cuda" compiled."""
    choice = pytest.importorskip("ppma.kernels.choice")
    if request.param == "interpreted" and not (choice.INTERPRETED and choice.INSTALLED):
        pytest.skip("Triton is not installed" if not choice.INSTALLED else "compiled on this GPU instead")
    with choice.use("triton"):
        yield "cpu" if request.param == "interpreted" else "cuda"


@dataclass(frozen=True)
class SlurmCluster:
    """A throw-away SLURM of two nodes, node1 and node2, partitions main (preempted, 7 days) and high (1 day)."""

    environment: dict[str, str]
    """For processes that use it."""

    def __call__(self, *command: str, check: bool = True) -> str:
        """Run a command such as squeue; returns what it prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=120)
        assert not check or done.returncode == 0, (command, done.stderr)
        return done.stdout

    def power(self, switch: str, node: str) -> None:
        """kill-node or boot-node."""
        self(str(SLURM_CLUSTER), switch, node)


@pytest.fixture(scope="session")
def slurm_cluster(request: pytest.FixtureRequest) -> Iterator[SlurmCluster]:
    """Start the cluster for the tests of this session, 12 s, and stop it after them."""
    folder = Path(f"/var/tmp/ppma-slurm-{os.getpid()}")
    environment = {**os.environ, "SLURM_CLUSTER_DIR": str(folder), "XDG_CONFIG_HOME": str(folder / "no-site")}
    command = [str(SLURM_CLUSTER), "start", "2"]
    started = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if started.returncode:
        give_up = pytest.fail if "slurm" in os.environ.get("PPMA_REQUIRE", "").split(",") else pytest.skip
        give_up(f"the SLURM cluster does not start: {started.stderr[-2000:]}")
    try:
        path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        yield SlurmCluster({**environment, "PATH": path, "SLURM_CONF": str(folder / "etc" / "slurm.conf")})
    finally:
        subprocess.run([str(SLURM_CLUSTER), "stop"], env=environment, check=False)
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)
