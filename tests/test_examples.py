"""Every example in the help of every command runs as it is written, on small data in one folder, in the order of the table."""

import contextlib
import importlib
import re
import shlex
import shutil
from pathlib import Path

import dataset_trees
import made_runs
import numpy as np
import pytest
import tiny

from ppma.cli import COMMANDS
from ppma.cli import main as ppma
from ppma.config import command
from ppma.config.flags import resolve
from ppma.config.recipes import RECIPES
from ppma.loaders.sources import catalog
from tests.inference.test_convert_layouts import SHAPE, hub_cache, training_checkpoint

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {
    "ppma demo": "study/test_demo.py",
    "ppma synthesize": "synthetic/test_production.py",
    "ppma privacy fetch": "privacy/test_models.py",
    "ppma remove-humans": "privacy/test_remove_humans.py",
    "ppma audit": "privacy/test_audit.py",
    "ppma plant": "privacy/test_plant.py",
    "ppma study": "study/test_work.py",
    "ppma inspect": "inference/test_inspect.py",
    "ppma export runs": "inference/test_export.py",
}
"""Commands that take long or need a download: the test that runs each of them. By default only their flags are read here."""
TRAINING = [*tiny.FLAGS, "--batch", "4", "--optim.epochs", "1", "--pictures-every", "0"]
SMALLER = {
    "ppma train mae": [*TRAINING, *tiny.MAE_FLAGS, "--run-dir", "runs/new"],
    "ppma train finetune": [*TRAINING, "--evaluation.windows", "1", "--run-dir", "runs/tuned"],
    **{f"ppma {name}": ["--device", "cpu", "--workers", "1"] for name in ("evaluate", "features", "predict")},
    "ppma convert videomae": SHAPE,
}
"""What is added to an example: the size of the model and a folder for a run that is there already, or fewer processes."""


def examples(name):
    """The examples in the help of a command: its indented lines."""
    command_help, patch = [], pytest.MonkeyPatch()
    with patch.context() as patched, contextlib.suppress(SystemExit):
        patched.setattr("sys.stdout.write", command_help.append)
        importlib.import_module(COMMANDS[name].module).main(["--help"])
    return re.findall(r"^  (ppma .*)$", "".join(command_help), flags=re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tiny_runs, clip_tree, tmp_path_factory):
    """Videos, data sets, runs and checkpoints under the names in the help."""
    folder = tmp_path_factory.mktemp("examples")
    tiny.named_world(folder, tiny_runs, clip_tree)
    for name in ("no-human-kinetics", "synapt"):
        made = {"manifest": tiny_runs / "made_train.csv", "root": clip_tree}
        catalog.add(folder / "data.toml", name=name, split="train", **made)
    for name in ("align_nohuman", "align_synthetic", "align_nohuman_synthetic"):
        (folder / "runs" / name).symlink_to(folder / "runs/finetune-ucf101")
    (folder / "clips").symlink_to(next(clip_tree.iterdir()))
    (folder / "videos/real/street").mkdir(parents=True)
    shutil.copy(folder / "clip.mp4", folder / "videos/real/street")
    (folder / "videos/virtual").symlink_to(clip_tree)
    dataset_trees.hmdb51(folder / "data/hmdb51", shutil.copy(folder / "clip.mp4", folder / "data.mp4"))
    (folder / "theirs").mkdir()
    training_checkpoint(folder / "theirs")[0].rename(folder / "videomae_vitb.pth")
    hub_cache(folder)[0].rename(folder / "models--MCG-NJU--videomae-base-finetuned-kinetics")
    right_V = np.arange(16) % 3 > 0
    made_runs.study(folder / "runs/small-study", {("full", "probe", "made", 0): right_V}, compare="full")
    return folder


class Understood(Exception):
    """Carries nothing: the flags of a command fit."""


def stop(config):
    raise Understood


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_runs(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PPMA_DATA", raising=False)
    lines = examples(name)
    assert lines and all(line.startswith(f"ppma {name}") for line in lines)
    for line in lines:
        elsewhere = [test for start, test in ELSEWHERE.items() if line.startswith(start)]
        more = [word for start, words in SMALLER.items() if line.startswith(start) for word in words]
        words = [*shlex.split(line)[1:], *more]
        if elsewhere:
            assert (ROOT / "tests" / elsewhere[0]).is_file()
            with monkeypatch.context() as patched, pytest.raises(Understood):
                patched.setattr(command, "_checked", stop)
                ppma(words)
        else:
            assert ppma(words) == 0, line


@pytest.mark.slow
def test_long_examples_run(folder, person_weights, audit_weights, monkeypatch):
    """Those on videos, and the export; a demo, a study and planted people take ten minutes to hours."""
    monkeypatch.chdir(folder)
    for name in ("synthesize", "remove-humans", "audit", "export"):
        for line in examples(name):
            assert ppma(shlex.split(line)[1:]) in (command.DONE, command.FAILED_AUDIT), line


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_of_every_recipe_fits(name):
    """tests/test_train.py runs each of them."""
    (line,) = re.findall(rf"`ppma (train {name}[^`]*)`", " ".join(RECIPES[name].__doc__.split()))[:1]
    resolve(name, shlex.split(line)[2:])
