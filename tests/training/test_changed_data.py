"""A checkpoint knows the manifests that it was trained on: a resume on others is refused, or goes on and says what changed."""

import json
import shutil
from dataclasses import replace

import pytest
import tiny

from ppma.cli import main as ppma
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.training import tasks
from ppma.training.lineage import history, read

RUNS = {
    "mae_nohuman": ("--sources", "made", *tiny.MAE_FLAGS),
    "finetune": ("--dataset", "made", "--evaluation.no-at-end"),
}


def permuted(rows):
    """The same clips; the classes are numbered the other way around."""
    return [replace(row, label=3 - row.label) for row in rows]


CHANGES = {
    "other numbers": permuted,
    "other names": lambda rows: [replace(row, class_name=f"x{row.label}") for row in rows],
    "a clip less": lambda rows: rows[:-1],
    "another license": lambda rows: [replace(rows[0], licence="CC-BY"), *rows[1:]],
}


@pytest.fixture(scope="module")
def started(tmp_path_factory, clip_tree):
    """{recipe: folder with data.toml, a finished run `whole` and a run `cut`, which has the first of its two checkpoints}."""
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "ClipStream", tiny.MadeClips)
        for name in RUNS:
            folders[name] = folder = tmp_path_factory.mktemp(name)
            tiny.make_data(folder, clip_tree, "train")
            assert train(folder, name, "whole") == 0
            shutil.copytree(folder / "whole", folder / "cut", symlinks=True)
            newest = folder / "cut/checkpoints/latest"
            shutil.rmtree(newest.resolve())
            newest.unlink()
        yield folders


def train(folder, name, run, *flags):
    argv = [*tiny.FLAGS, "--batch", 4, "--optim.epochs", 2, "--checkpoint-every", 3, "--data", folder / "data.toml"]
    return ppma(["train", name, *map(str, [*RUNS[name], *argv, "--run-dir", folder / run]), *flags])


def changed(started, name, change, tmp_path):
    """A copy of the folder with another manifest."""
    shutil.copytree(started[name], tmp_path / "run", symlinks=True)
    source = catalog.read(started[name] / "data.toml").manifest("made")
    Manifest.write(tmp_path / "other.csv", CHANGES[change]([source.clip(i) for i in range(len(source))]))
    catalog.add(
        tmp_path / "run/data.toml", name="made", split="train", manifest=tmp_path / "other.csv", root=source.root
    )
    return tmp_path / "run"


@pytest.mark.promise("R22")
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_resume_on_other_data_is_refused(name, change, started, tmp_path, capfd, figure):
    folder = changed(started, name, change, tmp_path)
    before = (folder / "cut/metrics.jsonl").read_bytes()
    capfd.readouterr()
    assert train(folder, name, "cut", "--resume") == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert "--allow-changed-data" in error[-1] and "made" in error[-1]
    assert (folder / "cut/metrics.jsonl").read_bytes() == before
    assert train(folder, name, "cut", "--resume", "--dry-run") == 2
    figure("R22", f"{len(RUNS) * len(CHANGES)} of {len(RUNS) * len(CHANGES)} changes of a manifest refused")


@pytest.mark.promise("R22")
def test_the_same_data_elsewhere_are_the_same(started, tmp_path, clip_tree):
    shutil.copytree(started["finetune"], tmp_path / "moved", symlinks=True)
    assert train(tmp_path / "moved", "finetune", "cut", "--resume") == 0


@pytest.mark.promise("R21")
def test_classes_with_other_numbers_train_on_to_the_same_weights(started, tmp_path, capfd):
    """The labels are matched by name with the head of the checkpoint."""
    folder = changed(started, "finetune", "other numbers", tmp_path)
    assert train(folder, "finetune", "cut", "--resume", "--allow-changed-data") == 0
    assert tiny.equal(tiny.weights(folder / "whole"), tiny.weights(folder / "cut"))
    states = [json.loads((folder / run / "checkpoints/latest/state.json").read_text()) for run in ("whole", "cut")]
    assert states[0]["label_spaces"] == states[1]["label_spaces"] and len(states[0]["label_spaces"]["made"]) == 4
    hashes = {
        seen.manifest_sha256
        for one in history(read(folder / "cut/checkpoints/latest/model.safetensors"))
        for seen in one.sources
    }
    assert len(hashes) == 2  # the lineage has both manifests
    assert train(folder, "finetune", "cut", "--resume") == 0  # the newest checkpoint is of these data


@pytest.mark.promise("R22")
@pytest.mark.parametrize("name", RUNS)
def test_with_the_flag_a_run_goes_on_with_fewer_clips(name, started, tmp_path, caplog):
    folder = changed(started, name, "a clip less", tmp_path)
    with caplog.at_level("INFO"):
        assert train(folder, name, "cut", "--resume", "--allow-changed-data") == 0
    assert "12 -> 11 clips" in caplog.text


@pytest.mark.promise("R21")
def test_a_class_that_the_checkpoint_lacks_is_refused_even_so(started, tmp_path, capfd):
    folder = changed(started, "finetune", "other names", tmp_path)
    assert train(folder, "finetune", "cut", "--resume", "--allow-changed-data") == 2
    assert "x0" in capfd.readouterr().err
