"""Every command answers every wrong input with one line on stderr and exit code 2; 75 for a full disk, 130 for Ctrl-C.

COMMANDS x (bad paths to read, bad paths to write, numbers that fit no computation, errors of the system)  ->  (code, stderr)
"""

import errno
import inspect
import io
import logging
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import tiny

from ppma import cli
from ppma.common.files import claim_folder
from ppma.config import command
from ppma.config.command import FAILED, INTERRUPTED, RUN_AGAIN, WRONG_INPUT, run
from ppma.config.errors import DiskFullError, InputError, Stopped
from ppma.config.run import read_config
from ppma.loaders.sources import catalog
from ppma.loaders.sources.store import read_index
from ppma.privacy import policy, verdict
from ppma.slurm import launch, status
from ppma.slurm.cluster import ClusterConfig
from ppma.slurm.plan import VERBS
from ppma.slurm.site import with_site
from ppma.study import results, spec
from ppma.training import run as finished
from ppma.training import seal
from ppma.training.distributed import Stop

ROOT = Path(__file__).resolve().parents[1]
TINY = " ".join(tiny.FLAGS)
RUN = f"{TINY} --batch 4 --data IN/data.toml"
OPEN = "--data IN/data.toml --workers 1 --device cpu"
PPMA = {
    "demo": "--out OUT --videos IN/clips",
    "index": "IN/clips --out OUT.csv --root IN/clips --name new --data IN/data.toml --classes IN/classes.txt",
    "datasets": "--data IN/catalog.toml",
    "pack": "IN/made_train.csv --root IN/clips --out OUT",
    "synthesize": "--out OUT --backgrounds IN/clips",
    "privacy": "fetch --weights OUT",
    "remove-humans": "IN/clips --out OUT",
    "audit": "IN/clips --out OUT --originals IN/clips --makers x",
    "plant": "--out OUT --plates IN/clips",
    "train": f"finetune {RUN} --dataset made --init IN/runs/mae --run-dir OUT --seed 0",
    "evaluate": f"--checkpoint IN/runs/finetune --dataset made --out OUT {OPEN}",
    "average": "IN/runs/mae IN/runs/finetune --out OUT",
    "study": "IN/spec.toml --out OUT",
    "report": "IN/runs --out OUT",
    "features": f"--checkpoint IN/runs/mae --dataset made --out OUT.npz {OPEN}",
    "inspect": f"IN/runs/mae --out OUT.html {OPEN}",
    "predict": "IN/clip.mp4 --checkpoint IN/runs/finetune --out OUT.json --workers 1 --device cpu",
    "convert": "IN/runs/finetune/checkpoints/latest/model.safetensors OUT --heads 3 --frames 4 --size 32 --classes IN/classes.txt",
    "export": "IN/runs/mae OUT",
    "doctor": "",
}
LOCAL = "--cluster debug --runs OUT --site IN/site.toml"
LAUNCH = {
    "pretrain": f"{LOCAL} {RUN}",
    "align": f"{LOCAL} {RUN} --init IN/runs/mae",
    "finetune": f"{LOCAL} {RUN} --dataset made --init IN/runs/mae",
    "probe": f"{LOCAL} {RUN} --dataset made --init IN/runs/mae",
    "evaluate": f"{LOCAL} --checkpoint IN/runs/finetune --dataset made --data IN/data.toml",
    "study": f"{LOCAL} IN/spec.toml --out OUT",
    "index": f"{LOCAL} IN/clips --out OUT.csv",
    "pack": f"{LOCAL} IN/made_train.csv --root IN/clips --out OUT",
    "synthesize": f"{LOCAL} --out OUT --backgrounds IN/clips",
    "remove-humans": f"{LOCAL} IN/clips --out OUT",
    "audit": f"{LOCAL} IN/clips --out OUT --originals IN/clips --makers x",
    "status": "IN/runs/mae",
}
REPORT = "--json OUT.json --plot OUT.png"
BENCHMARKS = {
    "end_to_end": f"{REPORT} --manifest IN/made_train.csv --root IN/clips --clips OUT",
    "gpu_day": "--rehearse --out OUT --warm OUT --clips OUT",
    "kernel_speed": REPORT,
    "loader_throughput": f"{REPORT} --manifest IN/made_train.csv --root IN/clips --clips OUT",
    "loop_cycles": "",
    "person_recall": f"{REPORT} --videos IN/clips",
    "reliability": "--out OUT.md",
    "scaling": REPORT,
    "time_budget": "",
    "train_step": REPORT,
    "url_reads": f"{REPORT} --clips OUT",
}
"""Flags of every command: IN/... is read, OUT... is written."""
CALLS = (
    [("ppma", name) for name in PPMA] + [("launch", name) for name in LAUNCH] + [("bench", name) for name in BENCHMARKS]
)
FLAGS = {"ppma": PPMA, "launch": LAUNCH, "bench": BENCHMARKS}


def call(kind: str, name: str, argv: list[str]) -> int:
    """Call a command in this process as its console script does, and return its exit code."""
    if kind == "bench":
        return run(f"benchmarks.{name}", argv, prog=name)
    return cli.main([name, *argv]) if kind == "ppma" else launch.main([name, *argv])


def test_the_table_names_every_command():
    assert set(PPMA) == set(cli.COMMANDS) and set(LAUNCH) == {*VERBS, "status"}
    scripts = (path for path in (ROOT / "benchmarks").glob("*.py") if "run(main, sys.argv" in path.read_text())
    assert set(BENCHMARKS) == {path.stem for path in scripts}


@pytest.fixture(scope="module")
def world(tiny_runs, clip_tree, tmp_path_factory):
    """A folder with one good input of each kind."""
    folder = tmp_path_factory.mktemp("door") / "in"
    shutil.copytree(tiny_runs, folder, symlinks=True)
    (folder / "clips").symlink_to(clip_tree)
    (folder / "clip.mp4").symlink_to(next(clip_tree.rglob("*.mp4")))
    (folder / "classes.txt").write_text("\n".join(sorted(path.name for path in clip_tree.iterdir())))
    shutil.copy(folder / "data.toml", folder / "catalog.toml")
    (folder / "site.toml").write_text("nodes = 1\n")
    (folder / "spec.toml").write_text(
        f'name = "s"\ntitle = "t"\nseeds = [0]\ndatasets = ["made"]\ncompare = "m"\ndata = "data.toml"\nflags = "{TINY}"\n'
        '[pretrain.m]\ntitle = "M"\nrecipe = "mae_nohuman"\n[protocol.p]\ntitle = "P"\nrecipe = "finetune"\n'
    )
    return folder


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """A folder of paths that cannot be read, by the reason."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "file").write_text("x\n")
    (folder / "empty").write_text("")
    (folder / "latin-1").write_bytes("[größe]\n".encode("latin-1"))
    (folder / "utf-16").write_bytes("[a.train]\n".encode("utf-16"))
    (folder / "zeros").write_bytes(bytes(100))
    (folder / "json").write_text("[[1]]")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling").symlink_to(folder / "nowhere" / "x")
    (folder / "folder").mkdir()
    (folder / "folder" / "x").write_text("x")
    return folder


UNREADABLE = (
    "missing", "file", "empty", "latin-1", "utf-16", "zeros", "json", "loop", "folder", "file/below", "n" * 300,
)  # fmt: skip
ACCEPTED = {
    ("datasets", "--data"): ("missing", "empty", "loop", "file/below"),  # no data set is indexed yet
    ("index", "--data"): ("missing", "empty"),
    ("audit", "--originals"): ("folder",),  # no clip can pass without its original, and the audit says so
    **{
        (name, "--root"): ("folder",) for name in ("end_to_end", "loader_throughput")
    },  # its files are missing one by one
    **{(verb, "--site"): ("empty",) for verb in LAUNCH},
}
"""Paths that are no mistake: (command, flag)."""
UNWRITABLE = ("file/below", "n" * 300, "loop", "dangling")


def good(kind: str, name: str, world: Path, out: Path) -> list[str]:
    """Return the flags of a command that works."""
    return [word.replace("IN/", f"{world}/").replace("OUT", str(out)) for word in shlex.split(FLAGS[kind][name])]


class Answers:
    """Calls commands, and keeps those that did not answer with one line and the right exit code."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd, self.step, self.asked, self.tried, self.wrong = capfd, 1, 0, 0, []

    def ask(self, kind: str, name: str, argv: list[str], code: int = WRONG_INPUT) -> None:
        """Call a command in this process; every exception that leaves it is a wrong answer."""
        self.asked += 1
        if self.asked % self.step:
            return
        self.capfd.readouterr()
        self.tried += 1
        try:
            found = call(kind, name, argv)
        except BaseException as error:  # noqa: BLE001 - reported with all others by `check`
            found = repr(error)
        error = self.capfd.readouterr().err
        said = [line for line in error.splitlines() if line.startswith((name, "ppma", "launch.py"))]
        if found != code or len(said) != 1 or said != error.splitlines()[-1:]:
            self.wrong.append((kind, name, " ".join(argv)[-200:], found, error[-300:]))

    def check(self) -> str:
        """Fail with the wrong answers; return the figure of the promise."""
        assert not self.wrong, "\n".join(map(str, self.wrong))
        return f"{self.tried} of {self.tried}"


@pytest.fixture
def answers(capfd, monkeypatch):
    logging.getLogger().handlers.clear()  # commands log to the stderr of this test
    return Answers(capfd)


@pytest.fixture
def no_work(monkeypatch):
    """Fail where a command starts what takes long: a pool of processes, a training, a download, a compilation."""

    def begin(*_: object, **__: object) -> None:
        raise AssertionError("the work began")

    import torch

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", begin)
    monkeypatch.setattr("urllib.request.urlopen", begin)
    monkeypatch.setattr(torch, "compile", begin)
    monkeypatch.setattr(torch.nn.Module, "__call__", begin)


every = pytest.mark.parametrize(
    "step", [pytest.param(5, id="sample"), pytest.param(1, id="all", marks=pytest.mark.slow)]
)
"""Every fifth question by default, all of them with --slow."""


@every
@pytest.mark.promise("R28")
def test_an_output_that_cannot_be_written_is_noticed_before_the_work(
    world, bad, tmp_path, no_work, step, answers, figure
):
    answers.step = step
    for kind, name in CALLS:
        argv = good(kind, name, world, tmp_path / "out")
        for place, word in enumerate(shlex.split(FLAGS[kind][name])):
            for path in UNWRITABLE if word.startswith("OUT") else ():
                suffix = word.removeprefix("OUT") if path == "file/below" else ""
                answers.ask(kind, name, [*argv[:place], f"{bad / path}{suffix}", *argv[place + 1 :]])
    figure("R28", f"{answers.check()} outputs that cannot be written")


@every
@pytest.mark.promise("R28")
def test_an_input_that_cannot_be_read_is_named(world, bad, tmp_path, no_work, step, answers, figure):
    answers.step = step
    for kind, name in CALLS:
        argv = good(kind, name, world, tmp_path / "out")
        for place, word in enumerate(shlex.split(FLAGS[kind][name])):
            fine = ACCEPTED.get((name, argv[place - 1]), ())
            for path in (path for path in UNREADABLE if word.startswith("IN/") and path not in fine):
                answers.ask(kind, name, [*argv[:place], str(bad / path), *argv[place + 1 :]])
    figure("R28", f"{answers.check()} inputs that cannot be read")


@every
@pytest.mark.promise("R28")
def test_a_number_that_fits_no_computation_is_named(world, tmp_path, no_work, monkeypatch, step, answers, figure):
    """Every numeric flag of every command, found from its config."""

    def stop(config):
        raise Found(config)

    class Found(Exception):
        pass

    answers.step = step
    for kind, name in CALLS:
        argv = good(kind, name, world, tmp_path / "out")
        fields = {}
        with monkeypatch.context() as patch, pytest.raises(Found) as found:
            patch.setattr(command, "_checked", stop)
            call(kind, name, argv)
        fields = {flag: value for flag, value, _ in command._fields(found.value.args[0]) if type(value) in (int, float)}
        for flag, value in fields.items():
            for number in ("1e20", "9" * 30, "nan") if isinstance(value, int) else ("nan", "inf"):
                answers.ask(kind, name, [*argv, flag, number])
    figure("R28", f"{answers.check()} numbers that fit no computation")


def system_error(number: int) -> OSError:
    return OSError(number, os.strerror(number), "/data/clips/x.mp4")


WRONG = (
    "EACCES", "EPERM", "EROFS", "EISDIR", "ENOTDIR", "ENOENT", "EEXIST", "ENAMETOOLONG", "EMLINK", "EMFILE", "ELOOP",
)  # fmt: skip
FAILING = ("EIO", "ESTALE", "ETIMEDOUT")  # a file system that fails is not the user's input
ERRORS = (
    *((system_error(getattr(errno, name)), FAILED) for name in FAILING),
    *((system_error(getattr(errno, name)), WRONG_INPUT) for name in WRONG),
    *((system_error(number), RUN_AGAIN) for number in (errno.ENOSPC, errno.EDQUOT)),
    (DiskFullError("/data: No space left on device"), RUN_AGAIN),
    (Stopped(Stop.SAVE), RUN_AGAIN),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), WRONG_INPUT),
    (MemoryError(), WRONG_INPUT),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99999999999 bytes."), WRONG_INPUT),
    (InputError("two\nlines"), WRONG_INPUT),
    (KeyboardInterrupt(), INTERRUPTED),
)


@every
@pytest.mark.promise("R28")
def test_an_error_of_the_system_is_one_line(world, tmp_path, monkeypatch, step, answers, figure):
    """In every command, when its flags are read."""
    answers.step = step
    for kind, name in CALLS:
        for error, code in ERRORS:

            def fail(config, error=error):
                raise error

            with monkeypatch.context() as patch:
                patch.setattr(command, "_checked", fail)
                answers.ask(kind, name, good(kind, name, world, tmp_path / "out"), code)
    figure("R28", f"{answers.check()} errors of the system")


WORKS_FIRST = {
    "demo", "pack", "synthesize", "remove-humans", "audit", "plant", "privacy", "features", "inspect", "predict", "index",
}  # fmt: skip
"""Commands that need models or long work before they write."""


@pytest.mark.promise("R28")
@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, RUN_AGAIN), (errno.EACCES, WRONG_INPUT), (errno.EMLINK, WRONG_INPUT)]
)
def test_an_error_at_the_first_write_is_one_line(world, tmp_path, monkeypatch, number, code, answers, figure):
    out = tmp_path / "out"

    def refuse(real):
        def make(*args, **kwargs):
            where = str(kwargs.get("dir") or args[0])
            if where.startswith(str(tmp_path)):
                raise OSError(number, os.strerror(number), where)
            return real(*args, **kwargs)

        return make

    for module, name in ((os, "mkdir"), (tempfile, "mkdtemp"), (Path, "touch")):
        monkeypatch.setattr(module, name, refuse(getattr(module, name)))
    for name in sorted(set(PPMA) - WORKS_FIRST - {"doctor", "datasets"}):
        answers.ask("ppma", name, good("ppma", name, world, out), code)
    figure("R28", f"{answers.check()} first writes that fail")


PRESS = """
import importlib, os, pkgutil, runpy, signal, sys
number, kind, *sys.argv[1:] = sys.argv[1:]
importlib.import_module("ppma.cli" if kind == "ppma" else "ppma.config.command")  # what every command imports first

class Press:
    left = int(number)
    def find_spec(self, *_):
        Press.left -= 1
        if Press.left == 0:
            os.write(1, b"pressed")
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Press())
sys.argv[0] = kind
if kind == "launch":
    runpy.run_path("slurm/launch.py", run_name="__main__")
from ppma.cli import main
sys.exit(main())
"""
SOME = [("ppma", "train", 1), ("ppma", "index", 30), ("launch", "pretrain", 2)]
"""Commands, and the import during which Ctrl-C is pressed."""


@pytest.mark.promise("R28")
@every
def test_ctrl_c_while_modules_are_imported_is_one_line(step, world, tmp_path, figure):
    """At the first imports, where Python would show a traceback, and late ones, where a library might."""
    pressed, wrong, draw = 0, [], random.Random(0)
    some = ((1, 3), (3, 60), (60, 900))
    every_call = [(*call, draw.randint(*bounds)) for call in CALLS for bounds in some if call[0] != "bench"]
    for kind, name, number in SOME if step > 1 else every_call:  # imports of benchmarks come before the door
        argv = good(kind, name, world, tmp_path / "out")
        command = [sys.executable, "-c", PRESS, str(number), kind, name, *argv]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
        if "pressed" not in done.stdout:  # it has fewer imports
            continue
        lines = [line for line in done.stderr.splitlines() if "interrupted" in line]
        if done.returncode != INTERRUPTED or len(lines) != 1 or "Traceback" in done.stderr:
            wrong.append((name, number, done.returncode, done.stderr[-300:]))
        pressed += 1
    assert not wrong and pressed
    figure("R28", f"{pressed} of {pressed} Ctrl-C during imports")


CONTENTS = {
    "empty": b"",
    "list": b"[]",
    "lists": b"[[1]]",
    "null": b"null",
    "number": b"1",
    "text": b'"x"',
    "dict": b"{}",
    "dicts": b'[{"a": 1}]',
    "half": b'{"format": "pp',
    "latin-1": "größe".encode("latin-1"),
    "deep": b"[" * 100_000,
}
READERS = {
    "config.json": lambda file: read_config(file.parent),
    "state.json": lambda file: finished._read_metadata(file.with_name("model.safetensors")),
    "seal.json": lambda file: seal.read(file.parent),
    "result.json": lambda file: results.collect(file.parents[1]),
    "environment.json": lambda file: results.collect(file.parents[1]),
    "x.study.json": results.collect,
    "data.toml": lambda file: catalog.read(file).entry("made"),
    "spec.toml": spec.read,
    "site.toml": lambda file: with_site(ClusterConfig(), ["--site", str(file)]),
    "index.json": lambda file: read_index(file.parent),
    "settings.json": lambda file: claim_folder(file, {"seed": 1}, "clips"),
    "launch.json": lambda file: status.main([str(file.parent)]),
    "audit.json": lambda file: verdict._verdicts(file, "0" * 64),
    "review.json": lambda file: verdict._reviewed(file, "0" * 64, []),
    "privacy.toml": policy.read,
}
"""Every file that a run leaves for another, or that a user writes: who reads it."""
FINE = {
    ("site.toml", b""),
    ("privacy.toml", b""),
    *((name, empty) for name in ("state.json", "launch.json") for empty in (b"[]", b"{}")),
}
"""Contents that say nothing and claim nothing."""


@pytest.mark.promise("R28")
def test_a_foreign_file_is_an_input_error_that_names_it(tiny_runs, tmp_path, figure):
    """Never a KeyError, an AttributeError or the like."""
    tried = 0
    for name, read in READERS.items():
        for content in CONTENTS.values():
            folder = tmp_path / f"{tried}" / "run"
            folder.mkdir(parents=True)
            for given in ("config.json", "result.json", "scores.npz", "seal.json"):
                shutil.copy(tiny_runs / "runs" / "finetune" / given, folder / given)
            (folder / name).write_bytes(content)
            tried += 1
            try:
                read(folder / name)
            except InputError as error:
                assert str(folder) in str(error), (name, content[:20])
            else:
                assert (name, content) in FINE, (name, content[:20])
    figure("R28", f"{tried} of {tried} foreign files")


@pytest.mark.parametrize(
    "flags",
    [
        "--loader.crop-scale 1 0.08",
        "--loader.crop-ratio 2 1",
        "--loader.erase-area 0.5 0.1",
        "--loader.erase-ratio 3 0.3",
        "--loader.crop-scale 0.5 2",
        "--seed -1",
        "--seed 1e20",
        "--compile on",
    ],
)
def test_a_setting_of_a_training_that_cannot_be_is_named(flags, world, tmp_path, no_work, monkeypatch, answers):
    """--compile on: where there is no compiler."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    answers.ask("ppma", "train", [*good("ppma", "train", world, tmp_path / "out"), *flags.split()])
    answers.check()
    assert not (tmp_path / "out").exists()


def test_a_byte_order_mark_is_no_mistake(world, tmp_path):
    (tmp_path / "data.toml").write_bytes(b"\xef\xbb\xbf" + (world / "data.toml").read_bytes())
    assert catalog.read(tmp_path / "data.toml").entries.keys() == catalog.read(world / "data.toml").entries.keys()


def test_the_place_of_an_operator_is_found_without_a_look_at_every_module(monkeypatch):
    """torch.library asks for it: on a shared file system that was most of what a rank reads at its start."""
    monkeypatch.setattr(inspect, "modulesbyfile", {})
    monkeypatch.setattr(inspect, "_filesbymodname", {})
    looks = []
    monkeypatch.setattr(os.path, "realpath", lambda path, **_: looks.append(path) or path)

    def main(argv):
        frame = inspect.getframeinfo(sys._getframe())
        return int(
            "getframeinfo(sys._getframe())" not in frame.code_context[0] or inspect.getmodule(main).__name__ != __name__
        )

    assert run(main, [], prog="main") == 0 and len(looks) < 3


def test_names_are_printed_in_every_locale(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert run(lambda argv: sys.stdout.write("größer\udc80"), [], prog="ppma x")
    sys.stdout.flush()
    assert sys.stdout.buffer.getvalue() == b"gr\\xf6\\xdfer\\udc80"
