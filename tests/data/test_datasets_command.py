"""`ppma datasets`: the table, one data set, and what is said of one that is not there."""

from pathlib import Path

import pytest

from ppma.config.command import WRONG_INPUT, run
from ppma.data import datasets
from ppma.data.datasets_command import main
from ppma.loaders.sources import catalog


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PPMA_DATA", raising=False)


def said(capsys, *argv: str) -> str:
    assert run(main, list(argv), prog="ppma datasets") == 0
    return capsys.readouterr().out


def test_the_table_has_every_data_set(capsys):
    catalog.add(Path("data.toml"), name="no-human-kinetics", split="train", manifest=Path("m.csv"), root=Path())
    lines = said(capsys).splitlines()
    for name, dataset in datasets.known().items():
        [line] = [line for line in lines if line.split()[:1] == [name]]
        assert f" {dataset.classes} " in line and (f"{dataset.published['val']:,}" in line)
        assert line.rstrip().endswith("yes") == (bool(dataset.terms) or name == "no-human-kinetics150"), line
    assert max(map(len, lines)) <= 132


@pytest.mark.parametrize("name", list(datasets.known()))
def test_one_data_set_with_all_that_is_known(name, capsys):
    dataset = datasets.find(name)
    text = " ".join(said(capsys, name).split())
    for fact in (
        dataset.licence,
        dataset.citation,
        dataset.terms,
        dataset.files,
        *dataset.unconfirmed,
        *dataset.layout,
    ):
        assert " ".join(fact.split()) in text, fact
    assert f"ppma index --dataset {name} --root DIR" in text


def test_an_unknown_one_gets_the_list(capsys):
    assert run(main, ["ucf"], prog="ppma datasets") == WRONG_INPUT
    error = capsys.readouterr().err
    assert "did you mean" in error and "uav-human" in error and error.count("\n") == 1


def test_the_documented_table_is_this_one():
    page = (Path(__file__).parents[2] / "docs/datasets.md").read_text()
    for name, dataset in datasets.known().items():
        counts = [f"{dataset.published[key]:,}" if key in dataset.published else "?" for key in ("train", "val")]
        facts = (f"{dataset.classes}", *counts, dataset.licence, dataset.terms or "-")
        assert f"| {' | '.join(facts)} |" in next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
