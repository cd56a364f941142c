"""A dry run refuses, in one line and with exit code 2, whatever is missing when the run starts."""

import dataclasses
from pathlib import Path

import pytest
import tiny

from ppma.cli import main as ppma
from ppma.config.command import WRONG_INPUT
from ppma.loaders.sources import catalog, labels
from ppma.loaders.sources.manifest import Manifest
from ppma.slurm.launch import main as launch

MODEL = ["--model", "tiny"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A catalog with two training sources and a data set without its test split. Their clips are one empty file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PPMA_DATA", str(tmp_path / "data.toml"))
    for name, splits in (
        ("no-human-kinetics", ["train"]),
        ("synapt", ["train"]),
        ("ucf101", ["train"]),
        ("hmdb51", ["train", "val"]),
    ):
        made = tiny.source(name, clips=130)
        Manifest.write(tmp_path / f"{name}.csv", [made.clip(i) for i in range(130)])
        for split in splits:
            catalog.add(
                tmp_path / "data.toml", name=name, split=split, manifest=tmp_path / f"{name}.csv", root=tmp_path
            )
    for i in range(130):
        (tmp_path / made.clip(i).path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / made.clip(i).path).touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("finetune --dataset hmdb51 --init runs/gone", ["--init runs/gone"]),
        ("finetune --dataset hmdb51 --init empty", ["--init empty"]),
        ("finetune --dataset ucf101", ["ucf101.val"]),
        ("probe --dataset diving48", ["diving48.train"]),
        ("align_nohuman --sources gone", ["gone.train"]),
        ("adaptive_average --dataset hmdb51", ["--average"]),
        ("adaptive_average --dataset hmdb51 --average runs/a runs/b", ["--average runs/a"]),
    ],
)
def test_what_is_missing_is_refused_before_the_run(argv, words, here, capfd):
    assert ppma(["train", *argv.split(), *MODEL, "--dry-run"]) == WRONG_INPUT
    error = capfd.readouterr().err
    assert all(word in error for word in words) and error.count("\n") == 1 and not Path("runs").exists()


def test_a_test_split_of_other_classes_is_refused(here, capfd):
    made = [
        dataclasses.replace(clip, class_name=f"other {clip.label}")
        for clip in map(tiny.source("x", clips=130).clip, range(130))
    ]
    Manifest.write(here / "other.csv", made)
    catalog.add(here / "data.toml", name="hmdb51", split="val", manifest=here / "other.csv", root=here)
    for start in (lambda argv: ppma(["train", *argv]), launch):
        assert start(["finetune", "--dataset", "hmdb51", *MODEL, "--dry-run"]) == WRONG_INPUT
        assert "lacks" in capfd.readouterr().err


def test_the_launcher_names_all_that_is_missing_and_submits_nothing(here, capfd):
    argv = ["finetune", "--dataset", "ucf101", "--init", "runs/gone", *MODEL, "--cluster", "local", "--dry-run"]
    assert launch(argv) == WRONG_INPUT
    lines = capfd.readouterr().err.splitlines()
    assert [sum(word in line for line in lines) for word in ("ucf101.val", "runs/gone")] == [1, 1]
    assert launch([word for word in argv if word != "--dry-run"]) == WRONG_INPUT and not Path("runs").exists()


def test_a_study_names_the_files_that_are_missing(here, capfd):
    spec = 'name = "s"\ntitle = "s"\nseeds = [0]\ndatasets = ["hmdb51"]\ncompare = "random"\n[pretrain.random]\ntitle = "Random"\n'
    Path("spec.toml").write_text(spec + '[protocol.probe]\ntitle = "Probe"\nrecipe = "probe --model tiny"\n')
    assert ppma(["study", "spec.toml", "--dry-run"]) == 0
    Path(tiny.source("hmdb51", clips=130).clip(0).path).unlink()
    assert ppma(["study", "spec.toml", "--dry-run"]) == WRONG_INPUT
    assert "hmdb51" in capfd.readouterr().err and not Path("runs").exists()


def test_a_shared_head_needs_the_numbers_of_the_authors(here, monkeypatch, capfd):
    names = labels.class_names(catalog.find().manifest("synapt"))
    monkeypatch.setattr(labels, "PUBLISHED_ORDERS", {labels._hash(sorted(names)): labels._hash(names[::-1])})
    flags = [*MODEL, "--batch", "16", "--published", "--dry-run"]
    assert ppma(["train", "align_nohuman_synthetic", *flags]) == WRONG_INPUT
    assert "--classes" in capfd.readouterr().err
    monkeypatch.setattr(labels, "PUBLISHED_ORDERS", {labels._hash(sorted(names)): labels._hash(names)})
    assert ppma(["train", "align_nohuman_synthetic", *flags]) == 0
