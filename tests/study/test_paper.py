"""docs/paper.toml plans every row of the paper's table, and a dry run of it looks at all nine data sets."""

from collections import Counter
from pathlib import Path

import pytest
import tiny

from ppma.cli import main as ppma
from ppma.config.command import DONE
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.slurm.launch import main as launch
from ppma.study import spec
from ppma.study.plan import Planner

SPEC = Path(__file__).resolve().parents[2] / "docs" / "paper.toml"
TESTED = ("ucf101", "hmdb51", "mini-ssv2", "diving48", "ikea-fa", "uav-human")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A catalog of the paper's sources, each of 128 empty clips."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PPMA_DATA", str(tmp_path / "data.toml"))
    made = tiny.source("made", clips=128)
    for i in range(128):
        (tmp_path / made.clip(i).path).touch()
    Manifest.write(tmp_path / "made.csv", [made.clip(i) for i in range(128)])
    for name in ("no-human-kinetics", "kinetics", "synapt", *TESTED):
        for split in ("train", "val") if name in TESTED else ("train",):
            catalog.add(tmp_path / "data.toml", name=name, split=split, manifest=tmp_path / "made.csv", root=tmp_path)
    return tmp_path / "data.toml"


def test_every_row_is_tested_by_both_protocols_on_six_data_sets(data, tmp_path):
    runs = Planner(spec.read(SPEC), tmp_path / "runs", data).runs_in_order()
    tests = Counter(run.row.method for run in runs if run.row)
    assert tests == dict.fromkeys((method.name for method in spec.read(SPEC).methods), 12) | {"adaptive": 6}
    assert len(tests) == 13 and len(runs) == 12 * 12 + 6 + 13
    by_name = {run.name: run for run in runs}
    starts = {name: [other.name for other in run.needs] for name, run in by_name.items()}
    assert starts["nohuman_then_synthetic"] == ["mae_nohuman"] and starts["ppma.probe.uav-human"] == ["ppma"]
    assert starts["adaptive.probe.ucf101"] == starts["averaged"] == ["nohuman", "nohuman_then_synthetic"]
    assert by_name["adaptive.probe.ucf101"].config.recipe == "adaptive_average"


def test_published_is_one_word_in_it(data, tmp_path):
    (tmp_path / "paper.toml").write_text(SPEC.read_text().replace('flags = ""', 'flags = "--published"'))
    runs = Planner(spec.read(tmp_path / "paper.toml"), tmp_path / "runs", data).runs_in_order()
    configs = {run.name: run.config for run in runs if run.config}
    assert configs["mae_joint"].loader.mix == "batch" and configs["ppma"].classifier.shared_head
    rates = {name: configs[f"ppma.finetune.{name}"].loader.assumed_fps for name in TESTED}
    assert rates == dict.fromkeys(TESTED, 25.0) | {"mini-ssv2": None}, "the authors read only Mini-SSv2 as video"
    for name in ("ppma.finetune.ucf101", "ppma.probe.mini-ssv2", "adaptive.probe.hmdb51"):
        assert (configs[name].evaluation.average, configs[name].evaluation.last_window) == ("logits", "pytorchvideo")
        assert configs[name].evaluation.at_end


def test_dry_runs_of_the_whole_table(data, tmp_path, capsys):
    argv = [str(SPEC), "--out", "runs/paper", "--dry-run"]
    assert ppma(["study", *argv]) == DONE
    assert "163 of 163 runs to do" in capsys.readouterr().out
    assert launch(["study", *argv, "--cpus-per-task", "4"]) == DONE
    assert capsys.readouterr().err == "" and not (tmp_path / "runs").exists()
