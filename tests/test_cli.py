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
from ppma.config.command import DONE, FAILED, WRONG_INPUT, name_rank, parse, run
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
    asked = ("ppma tr", "ppma train fin", "ppma datasets --da", "ppma train finetune --optim.ep")
    lines = [f"COMP_WORDS=({w}); COMP_CWORD={w.count(' ')}; _ppma; echo ${{COMPREPLY[@]}}\n" for w in asked]
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


def raising(error):
    """Return the main function of a command that raises an error."""

    def main(argv: list[str]) -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("no file a.csv:\n  make it"), WRONG_INPUT),
        (ConnectionError("no file a.csv: make it"), FAILED),  # ranks that do not meet: a launcher starts them again
        (FloatingPointError("no file a.csv: make it"), FAILED),  # a loss that stays NaN is no wrong flag either
    ],
)
def test_an_error_that_is_no_defect_is_one_line(error, code, capsys):
    assert run(raising(error), [], prog="ppma x") == code
    assert capsys.readouterr().err == "ppma x: no file a.csv: make it\n"


@pytest.mark.parametrize(
    "defect",
    [ZeroDivisionError(), OSError("handle is closed"), RuntimeError("mat1 and mat2 shapes cannot be multiplied")],
)
def test_a_defect_keeps_its_traceback(defect):
    """An OSError without a number comes from Python, not from the system."""
    with pytest.raises(type(defect)):
        run(raising(defect), [], prog="ppma x")


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


def test_python_m_ppma_starts_without_torch():
    code = "import sys, runpy; sys.argv = ['ppma', '--version']\ntry: runpy.run_module('ppma', run_name='__main__')\n"
    code += "except SystemExit as e: assert not e.code and 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __version__


def test_a_closed_terminal_changes_no_exit_code(monkeypatch):
    """Writing to it is an error, EIO, and the signal that comes with it stops a training with 75."""

    class Closed(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Closed())
    assert run(raising(Stopped(Stop.SAVE)), [], prog="it") == 75
