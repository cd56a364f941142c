"""The command table and the manners of `ppma`: what exists can be called, what does not is answered in one line."""

import errno
import importlib
import io
import logging
import re
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch

from ppma import __version__, cli
from ppma.cli import COMMANDS, main
from ppma.config.command import DONE, FAILED, INTERRUPTED, WRONG_INPUT, name_rank, parse, run
from ppma.config.errors import InputError, Stopped
from ppma.training.distributed import Stop


@dataclass(frozen=True, kw_only=True)
class Inner:
    ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.ratio > 1:
            raise InputError(f"ratio is {self.ratio}; it must be at most 1")


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Do a thing."""

    name: str
    count: int = 3
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_and_has_help(name, capsys):
    module = importlib.import_module(COMMANDS[name].module)
    try:
        code = module.main(["--help"])
    except SystemExit as stop:  # tyro's way
        code = stop.code
    assert not code
    text = capsys.readouterr().out
    assert f"ppma {name}" in text
    assert all(flag in text for flag in ("--part", "--merge", "--dry-run")) or not COMMANDS[name].shards


@pytest.mark.parametrize("engine", [["--engine", "slurm"], ["--engine=slurm"]])
def test_engine_slurm_is_the_verb_of_the_launcher(monkeypatch, engine):
    calls = []
    monkeypatch.setattr(cli, "run", lambda module, argv, prog: calls.append((module, argv)) or 0)
    assert main(["pack", "made", *engine, "--parts", "3"]) == 0
    assert calls == [("ppma.slurm.launch", ["pack", "made", "--parts", "3"])]


def test_help_names_every_command_in_its_group_and_an_example(capsys):
    assert main([]) == main(["--help"]) == 0
    text = capsys.readouterr().out
    assert sorted(name for names in cli.GROUPS.values() for name in names) == sorted(COMMANDS)
    assert all(f"\n{group}" in text for group in cli.GROUPS)
    assert all(f"\n  {name} " in text for name in COMMANDS) and "Start with: ppma " in text


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_recipes_and_flags(shell, capsys, monkeypatch):
    some = {name: COMMANDS[name] for name in ("train", "datasets")}  # importing all takes seconds
    monkeypatch.setattr(cli, "COMMANDS", some)
    assert main(["--completion", shell]) == 0
    script = capsys.readouterr().out
    ask = "COMP_WORDS=({words}); COMP_CWORD={at}; _ppma; echo ${{COMPREPLY[@]}}\n"
    lines = [
        ask.format(words=words, at=len(words.split()) - 1)
        for words in ("ppma tr", "ppma train fin", "ppma datasets --da")
    ]
    lines.append(ask.format(words="ppma train finetune --optim.ep", at=3))
    bash = script.partition("bashcompinit\n")[2] if shell == "zsh" else script
    done = subprocess.run(["bash", "-c", bash + "".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["train", "finetune", "--data", "--optim.epochs"]
    assert main(["--completion", "tcsh"]) == WRONG_INPUT


def test_unknown_command_names_the_closest(capsys):
    assert main(["doctr"]) == WRONG_INPUT
    error = capsys.readouterr().err
    assert "'doctr'" in error and "did you mean doctor?" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        ([], "--name is missing"),
        (["--name", "a", "--count", "many"], "--count: 'many' is not a whole number"),
        (["--name", "a", "--cuont", "2"], "--cuont"),
        (["--name", "a", "--inner.ratio", "2"], "ratio is 2.0; it must be at most 1"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_2(argv, word, capsys):
    assert run(lambda argv: parse(Flags, argv, prog="ppma thing").count, argv, prog="ppma thing") == WRONG_INPUT
    error = capsys.readouterr().err
    assert error.startswith("ppma thing: ") and word in error and error.count("\n") == 1
    assert "ppma thing --help" in error


def test_log_lines_carry_the_time_and_the_rank_of_several(monkeypatch):
    root, out = logging.Logger("root"), io.StringIO()
    monkeypatch.setattr(logging, "root", root)
    monkeypatch.setattr(sys, "stderr", out)
    assert run(lambda argv: root.info("step %d of 9", 5) or DONE, [], prog="ppma x") == DONE
    name_rank(3)
    root.info("step 6 of 9")
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(rf"{time} step 5 of 9\n{time} rank 3: step 6 of 9\n", out.getvalue())


def test_right_flags():
    assert parse(Flags, ["--name", "a", "--inner.ratio", "0.25"], prog="p") == Flags(name="a", inner=Inner(ratio=0.25))


def test_input_error_is_one_line_and_a_defect_keeps_its_traceback(capsys):
    def wrong(argv: list[str]) -> int:
        raise InputError("no file a.csv:\n  make it")

    assert run(wrong, [], prog="ppma x") == WRONG_INPUT
    assert capsys.readouterr().err == "ppma x: no file a.csv: make it\n"
    with pytest.raises(ZeroDivisionError):
        run(lambda argv: 1 // 0, [], prog="ppma x")

    def closed(argv: list[str]) -> int:
        raise OSError("handle is closed")  # by Python, not by the system

    with pytest.raises(OSError, match="handle"):
        run(closed, [], prog="ppma x")


OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has a total capacity of 79.25 GiB of which 1.12 GiB is free."
)
TOO_OLD = (
    "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be asynchronous."
)
BUSY = "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call."
OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver."


@pytest.mark.parametrize(
    ("kind", "message", "word"),
    [
        (torch.OutOfMemoryError, OUT_OF_MEMORY, "--accumulate 2"),
        (torch.AcceleratorError, BUSY, "nvidia-smi"),
        (torch.AcceleratorError, TOO_OLD, "ppma doctor"),
        (RuntimeError, OLD_DRIVER, "update the NVIDIA driver"),
    ],
)
def test_a_gpu_that_does_not_serve_is_one_line_with_the_remedy(kind, message, word, monkeypatch, capsys):
    """Also where torch.compile wraps the error of the GPU in one of its own."""

    def fail(config):
        try:
            raise kind(message)
        except RuntimeError as error:
            raise RuntimeError("backend='inductor' raised") from error

    for work in (fail, lambda config: (_ for _ in ()).throw(kind(message))):
        monkeypatch.setattr("ppma.phases.train", work)
        assert main(["train", "mae_nohuman"]) == WRONG_INPUT
        error = capsys.readouterr().err
        assert error.startswith("ppma train: ") and word in error and error.count("\n") == 1


@pytest.mark.parametrize("kind", [ConnectionError, FloatingPointError])
def test_a_failure_that_is_no_wrong_input_is_one_line_with_code_1(kind, capsys):
    """Ranks that do not meet, and a loss that stays NaN: a launcher must not take either for a wrong flag."""

    def fail(argv: list[str]) -> int:
        raise kind("rank 1 of 2 could not meet the others")

    assert run(fail, [], prog="ppma x") == FAILED
    assert capsys.readouterr().err == "ppma x: rank 1 of 2 could not meet the others\n"


def test_any_other_runtime_error_keeps_its_traceback(monkeypatch):
    def fail(config):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("ppma.phases.train", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        main(["train", "mae_nohuman"])


def test_interrupt_has_a_code_of_its_own():
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    assert run(interrupted, [], prog="ppma x") == INTERRUPTED


def test_python_m_ppma_starts_without_torch():
    code = "import sys, runpy; sys.argv = ['ppma', '--version']\ntry: runpy.run_module('ppma', run_name='__main__')\n"
    code += "except SystemExit as e: assert not e.code and 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __version__


CTRL_C = """
import os, signal, sys, threading, time
from ppma.cli import main
delay = float(sys.argv.pop(1))
threading.Thread(target=lambda: (time.sleep(delay), os.kill(os.getpid(), signal.SIGINT)), daemon=True).start()
sys.exit(main())
"""


@pytest.mark.parametrize("delay", [0.05, 0.3])
def test_ctrl_c_in_the_first_second_is_one_line(delay, tmp_path):
    """While torch is imported: `ppma.cli` itself imports nothing slow."""
    flags = ["train", "mae_nohuman", "--data", str(tmp_path / "none.toml")]
    done = subprocess.run(
        [sys.executable, "-c", CTRL_C, str(delay), *flags], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "ppma train: interrupted\n")


def test_a_closed_terminal_changes_no_exit_code(monkeypatch):
    """Writing to it is an error, EIO, and the signal that comes with it stops a training with 75."""

    class Closed(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    def stopped(argv):
        raise Stopped(Stop.SAVE)

    monkeypatch.setattr(sys, "stderr", Closed())
    assert run(stopped, [], prog="it") == 75
