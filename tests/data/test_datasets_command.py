"""`ppma datasets` lists all data sets, shows one, and refuses an unknown one."""

from pathlib import Path

import pytest

from ppma.config.command import WRONG_INPUT, run
from ppma.data.dataset import find, known
from ppma.data.datasets_command import main
from ppma.loaders.sources import catalog


def output(capsys, *argv: str) -> str:
    assert run(main, list(argv), prog="ppma datasets") == 0
    return capsys.readouterr().out


def test_the_table_has_every_data_set(capsys):
    catalog.add(Path("data.toml"), name="no-human-kinetics", split="train", manifest=Path("m.csv"), root=Path())
    lines = output(capsys).splitlines()
    for name, dataset in known().items():
        [line] = [line for line in lines if line.split()[:1] == [name]]
        assert f" {dataset.classes} " in line and (f"{dataset.published['val']:,}" in line)
        assert line.rstrip().endswith("yes") == (bool(dataset.terms) or name == "no-human-kinetics150"), line
    assert max(map(len, lines)) <= 132


@pytest.mark.parametrize("name", list(known()))
def test_one_data_set_is_shown_with_all_metadata(name, capsys):
    dataset = find(name)
    text = " ".join(output(capsys, name).split())
    facts = (dataset.license, dataset.citation, dataset.terms, dataset.files, *dataset.unconfirmed, *dataset.layout)
    for fact in facts:
        assert " ".join(fact.split()) in text, fact
    assert f"ppma index --dataset {name} --root DIR" in text


def test_an_unknown_one_is_one_line(capsys):
    assert run(main, ["ucf"], prog="ppma datasets") == WRONG_INPUT
    error = capsys.readouterr().err
    assert "uav-human" in error and error.count("\n") == 1


def test_docs_have_the_same_table():
    page = (Path(__file__).parents[2] / "docs/datasets.md").read_text()
    for name, dataset in known().items():
        counts = [f"{dataset.published[key]:,}" if key in dataset.published else "?" for key in ("train", "val")]
        facts = (f"{dataset.classes}", *counts, dataset.license, dataset.terms or "-")
        assert f"| {' | '.join(facts)} |" in next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
