"""A finished run of every recipe is opened by every command that takes a run, or refused in one line where it cannot be."""

from functools import cache

import pytest
import tiny
import torch
from conftest import CLASSES
from safetensors.torch import load_file

from ppma.cli import main as ppma
from ppma.config.errors import InputError
from ppma.config.flags import resolve
from ppma.config.recipes import RECIPES
from ppma.config.run import UNTRAINED
from ppma.inference import samples
from ppma.loaders.sources import catalog
from ppma.models.attentive import AttentiveClassifier
from ppma.models.classify import Classifier
from ppma.models.mae import MaskedAutoencoder
from ppma.phases import train
from ppma.training import tasks
from ppma.training.run import MIXING, open_run
from ppma.transfer import features

STAGES = ("scenes", "actions", "probe")
RUNS = (*(name for name in RECIPES if name != "demo"), *(f"demo-{stage}" for stage in STAGES))
MODELS = {
    "mae_nohuman": MaskedAutoencoder, "align_nohuman": Classifier, "align_nohuman_synthetic": Classifier, "demo-actions": Classifier,
    "probe": Classifier, "attentive_probe": AttentiveClassifier, "adaptive_average": Classifier, "knn": None,
}  # fmt: skip
"""One run of each kind of model and heads; `ppma export`, which takes seconds, sees the others in `make slow`."""
MORE = {
    "attentive_probe": "--attentive.heads 3", "few_shot": "--few-shot.shots 1 --few-shot.draws 1", "knn": "--knn.k 2",
    "probe_grid": "--grid.rates 1e-3 1e-2 --grid.weight-decays 0 --grid.held-out 0.34", "adaptive_average": "--mixing tensor --init None",
}  # fmt: skip


@cache
def config_of(name, folder):
    recipe, _, stage = name.partition("-")
    flags = [*tiny.FLAGS, "--vit.depth", "1", "--batch", "8", "--optim.epochs", "1", "--evaluation.no-at-end"]
    flags += ["--data", str(folder / "data.toml"), "--run-dir", str(folder / "runs" / name), "--precision", "fp32"]
    flags += ["--evaluation.windows", "1", "--evaluation.crops", "1", *MORE.get(name, "").split()]
    if recipe == "adaptive_average":
        flags += ["--average", *(str(folder / "runs" / start) for start in ("align_nohuman", "align_synthetic"))]
    if stage:
        flags += ["--stage", stage]
    if recipe.startswith("mae_") or stage == "scenes":
        flags += tiny.MAE_FLAGS
    return resolve(recipe, flags)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, clip_tree):
    """A run of one step of every recipe, on made pixels; the manifests are of real clips, under all names that recipes ask for."""
    folder = tmp_path_factory.mktemp("every_recipe")
    assert ppma(["index", str(clip_tree), "--root", str(clip_tree), "--out", str(folder / "all.csv")]) == 0
    for name in {source for run in RUNS for source in config_of(run, folder).sources}:
        for split in ("train", "val"):
            catalog.add(folder / "data.toml", name=name, split=split, manifest=folder / "all.csv", root=clip_tree)
    (folder / "video").symlink_to(next(clip_tree.rglob("*.mp4")))
    with pytest.MonkeyPatch.context() as patch:
        for module in (tasks, features, samples):
            patch.setattr(module, "ClipStream", tiny.MadeClips)
        for name in RUNS:
            train(config_of(name, folder))
        yield folder


def call(runs, command, name, out):
    """Exit code of a command on a run."""
    run, source, phase = str(runs / "runs" / name), config_of(name, runs).sources[0], config_of(name, runs).phase
    device, data = ["--device", "cpu"], ["--data", str(runs / "data.toml")]
    argv = {
        "evaluate": ["--checkpoint", run, "--dataset", source, "--out", out / "tested", "--evaluation.crops", "1", *device, *data],
        "predict": [runs / "video", "--checkpoint", run, "--space", source, "--crops", "1", *device],
        "features": ["--checkpoint", run, "--dataset", source, "--out", out / "f.npz", *device, *data],
        "inspect": [run, "--out", out / "page.html", "--examples", "1", "--clips", "4", *device, *data],
        "export": [run, out / "exported", "--no-onnx"],
        "export --to": ["--to", "huggingface", run, out / "there", *([] if phase == "mae" else ["--space", source])],
        "average": [run, runs / "runs/mae_nohuman", "--out", out / "averaged"],
    }[command]  # fmt: skip
    return ppma([*command.split()[:1], *map(str, argv)])


def refused(command, name, runs):
    """Whether a kind of run has not what a command needs: weights, a head, or a place for its pooling elsewhere."""
    phase = config_of(name, runs).phase
    return (
        phase in UNTRAINED
        or (phase == "mae" and command in ("evaluate", "predict"))
        or (phase == "attentive" and command == "export --to")
    )


FAST = ("evaluate", "predict", "features", "inspect", "export --to", "average")
CASES = [(command, name) for command in FAST for name in RUNS]
CASES += [pytest.param("export", name, marks=[] if name in MODELS else pytest.mark.slow) for name in RUNS]


@pytest.mark.parametrize(("command", "name"), CASES)
def test_every_command_takes_a_run_of_every_recipe(runs, tmp_path, capfd, command, name):
    capfd.readouterr()
    code = call(runs, command, name, tmp_path)
    if not refused(command, name, runs):
        assert code == 0 and (command == "predict" or list(tmp_path.iterdir()))
        return
    error = capfd.readouterr().err
    assert code == 2 and len(error.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", RUNS)
def test_an_opened_run_is_what_was_trained(runs, name):
    config = config_of(name, runs)
    if config.phase in UNTRAINED:
        with pytest.raises(InputError, match="no weights"):
            open_run(runs / "runs" / name)
        return
    run = open_run(runs / "runs" / name, device="cpu")
    assert run.config == config and run.folder == runs / "runs" / name and not run.model.training
    assert type(run.model) is MODELS.get(name, type(run.model))
    stored, held = load_file(run.weights), run.model.state_dict()
    assert held.keys() == stored.keys() - {MIXING} and all(torch.equal(held[key], stored[key]) for key in held)
    heads = dict.fromkeys(config.sources, tuple(sorted(CLASSES))) if config.phase != "mae" else {}
    assert run.class_names == heads
    for path in (run.weights, run.weights.parent):
        assert open_run(path, device="cpu").weights.samefile(run.weights)


def test_what_is_no_run_is_refused(runs, tmp_path):
    with pytest.raises(InputError, match="neither a run folder"):
        open_run(tmp_path)
    assert ppma(["average", str(runs / "runs/probe"), str(runs / "runs/finetune"), "--out", str(tmp_path / "a")]) == 0
    with pytest.raises(InputError, match="neither a run folder"):  # weights without the run that they are of
        open_run(tmp_path / "a")
    (tmp_path / "config.json").write_text(config_of("probe", runs).to_json())
    with pytest.raises(InputError, match="names no label spaces"):
        open_run(tmp_path / "a")
