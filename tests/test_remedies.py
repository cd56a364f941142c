"""Remedies in messages are tested like code: what a message tells the user to run exists, and running it helps.

Those of `ppma index` and of the probe are followed in tests/data/test_remedies.py.
"""

import ast
import dataclasses
import importlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import pytest
import tiny

from ppma.cli import COMMANDS
from ppma.cli import main as ppma
from ppma.config.flags import OWN_HELP
from ppma.config.run import RunConfig
from ppma.slurm.cluster import ClusterConfig
from ppma.slurm.plan import VERBS

ROOT = Path(__file__).resolve().parents[1]
SPOKEN = ("InputError", "require", "BadClip", "Problem", "Unusable")
"""Calls whose texts a user reads."""
FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9.-]*[a-z0-9])(?![\w…]*…)")
COMMAND = re.compile(r"ppma ([a-z][a-z-]*)")


def texts(path: Path) -> Iterator[str]:
    """Yield the messages and remedies of a source file, with … for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        name = getattr(getattr(node, "func", None), "id", "")
        remedy = isinstance(node, ast.Assign) and any(re.search("REMED|AGAIN", ast.unparse(t)) for t in node.targets)
        if name in SPOKEN or remedy:
            for part in ast.walk(node):
                if isinstance(part, ast.JoinedStr):
                    yield "".join(p.value if isinstance(p, ast.Constant) else "…" for p in part.values)
                elif isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value


def flags_of(config: type, prefix: str = "") -> Iterator[str]:
    """Yield every flag of a config class, those of inner configs too."""
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        name = f"{prefix}{field.name.strip('_').replace('_', '-')}"
        yield name
        kinds = (hints[field.name], *getattr(hints[field.name], "__args__", ()))
        for kind in kinds:
            if dataclasses.is_dataclass(kind) and prefix.count(".") < 2:
                yield from flags_of(kind, f"{name}.")


def known_flags() -> set[str]:
    """Return the flags of all commands: the fields of the configs in their modules, of recipes, and of the launcher."""
    names = [command.module for command in COMMANDS.values()] + ["ppma.slurm.plan", "ppma.privacy.audit.review"]
    names += [f"benchmarks.{name}" for name in ("rows", "gpu_day", "end_to_end", "loader_throughput")]
    kinds = [kind for name in names for kind in vars(importlib.import_module(name)).values() if isinstance(kind, type)]
    ours = [
        kind for kind in kinds if dataclasses.is_dataclass(kind) and kind.__module__.startswith(("ppma", "benchmarks"))
    ]
    found = {flag for config in {*ours, RunConfig, ClusterConfig} for flag in flags_of(config)}
    renamed = {"set", "help", "help-all", "no-onnx", *(name.replace("_", "-") for name in OWN_HELP)}
    return found | renamed | {f"no-{flag}" for flag in found}


@pytest.mark.promise("R27")
def test_every_command_and_flag_that_a_message_names_exists(figure):
    known, named, wrong = known_flags(), 0, []
    for path in sorted({*ROOT.glob("ppma/**/*.py"), *ROOT.glob("slurm/*.py"), *ROOT.glob("loaders/**/*.py")}):
        for text in texts(path):
            if re.search(r"\b(pip|apt-get|ffmpeg|npm|sbatch|sacct\w*)\b", text):  # their flags are theirs
                text = (COMMAND.findall(text) and " ".join(f"ppma {name}" for name in COMMAND.findall(text))) or ""
            for flag in FLAG.findall(text):
                named += 1
                wrong += [] if flag in known else [(path.name, f"--{flag}", text)]
            for command in re.findall(r"`ppma ([a-z-]+)", text):
                named += 1
                wrong += [] if command in COMMANDS else [(path.name, command, text)]
            for verb in re.findall(r"launch\.py ([a-z-]+)", text):
                named += 1
                wrong += [] if verb in {*VERBS, "status"} else [(path.name, verb, text)]
    assert not wrong and named > 100
    figure("R27", f"{named} of {named} named commands and flags exist")


MAE_RUN = "train mae_nohuman RUN --sources made other"
STEPS = {
    "a run that exists": (
        f"{MAE_RUN} --run-dir IN/runs/mae --dry-run",
        ("--resume", f"{MAE_RUN} MAE --optim.epochs 1 --run-dir IN/runs/mae --resume --dry-run"),
        ("--run-dir", f"{MAE_RUN} --run-dir OUT --dry-run"),
    ),
    "reversed range": (
        f"{MAE_RUN} --run-dir OUT --dry-run --loader.crop-scale 1 0.08",
        ("smaller number first", f"{MAE_RUN} --run-dir OUT --dry-run --loader.crop-scale 0.08 1"),
    ),
    "batch": (
        f"{MAE_RUN} --run-dir OUT --dry-run --loader.views 2 --batch 3",
        ("multiple of 2", f"{MAE_RUN} --run-dir OUT --dry-run --loader.views 2 --batch 4"),
    ),
    "graphs on a CPU": (
        f"{MAE_RUN} --run-dir OUT --dry-run --compile graphs",
        ("--compile on", f"{MAE_RUN} --run-dir OUT --dry-run --compile on"),
    ),
    "no head": (
        "predict IN/clip.mp4 --checkpoint IN/runs/mae --device cpu",
        ("ppma train probe --init", "train probe RUN --dataset made --init IN/runs/mae --run-dir OUT --dry-run"),
    ),
    "folder of the output": (
        "features --checkpoint IN/runs/mae --dataset made --data IN/data.toml --out OUT/f.npz --device cpu",
        ("create it first", "mkdir OUT"),
    ),
    "taken name": (
        "average IN/runs/mae IN/runs/finetune --out IN/runs/mae",
        ("new name", "average IN/runs/mae IN/runs/finetune --out OUT"),
    ),
    "no mean of one": (
        "average IN/runs/mae --out OUT",
        ("two models", "average IN/runs/mae IN/runs/finetune --out OUT"),
    ),
    "setting without a value": (
        f"{MAE_RUN} --run-dir OUT --dry-run --set optim.epochs",
        ("--set optim.epochs=2", f"{MAE_RUN} --run-dir OUT --dry-run --set optim.epochs=2"),
    ),
    "average of nothing": (
        "train adaptive_average RUN --dataset made --run-dir OUT --dry-run",
        (
            "--average RUN RUN",
            "train adaptive_average RUN --dataset made --run-dir OUT --dry-run --average IN/runs/mae IN/runs/finetune",
        ),
    ),
}
"""What is refused, and (what the message says, what follows it)."""


@pytest.mark.promise("R27")
@pytest.mark.parametrize("name", STEPS)
def test_following_the_remedy_helps(name, tiny_runs, clip_tree, tmp_path, capfd):
    run = " ".join([*tiny.FLAGS, "--batch", "4", "--data", f"{tiny_runs}/data.toml"])

    places = {
        "MAE": " ".join(tiny.MAE_FLAGS),
        "IN/clip.mp4": "CLIP",
        "IN": str(tiny_runs),
        "OUT": str(tmp_path / "out"),
    }

    def do(line: str) -> int:
        line = re.sub(r"\bRUN\b", run, line) if line.startswith("train") else line
        for name, place in places.items():
            line = line.replace(name, place)
        clip = str(next(clip_tree.rglob("*.mp4")))
        return ppma([clip if word == "CLIP" else word for word in line.split()])

    wrong, *remedies = STEPS[name]
    for said, follow in remedies:
        assert do(wrong) == 2
        assert said in capfd.readouterr().err
        if follow.startswith("mkdir"):
            (tmp_path / "out").mkdir()
            follow = wrong
        assert do(follow) == 0, capfd.readouterr().err
        capfd.readouterr()
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
