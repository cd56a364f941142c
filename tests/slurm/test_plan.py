"""Verbs as jobs: arrays over data sets and seeds, parts that are merged, commands that are not there yet."""

import json
import sys
import types

import pytest

from ppma import cli
from ppma.config.errors import InputError
from ppma.slurm.job import command
from ppma.slurm.plan import plan


@pytest.fixture
def tested(tmp_path, monkeypatch):
    """Runs of two data sets and two seeds, and a catalog that knows the data sets."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made.csv").write_text("x\n")
    names = ("ucf101", "hmdb51")
    (tmp_path / "data.toml").write_text("".join(f'[{name}.val]\nmanifest = "made.csv"\nroot = "."\n' for name in names))
    for name in names:
        for seed in (0, 1):
            (tmp_path / "runs" / f"{name}-{seed}").mkdir(parents=True)
            (tmp_path / "runs" / f"{name}-{seed}" / "config.json").write_text(json.dumps({}))
    return tmp_path


def test_evaluate_is_an_array_over_data_sets_and_seeds(tested):
    flags = [
        "--checkpoint",
        "runs/{dataset}-{seed}",
        "--dataset",
        "ucf101",
        "hmdb51",
        "--seed",
        "0",
        "1",
        "--workers",
        "3",
    ]
    _, (stage,) = plan("evaluate", flags)
    calls = [job.config for job in stage.jobs]
    assert [call[1] for call in calls] == [
        str(tested / "runs" / f"{d}-{s}") for d in ("ucf101", "hmdb51") for s in (0, 1)
    ]
    assert all(call[-2:] == ["--data", str(tested / "data.toml")] and "--workers" in call for call in calls)
    assert stage.folder.parent == tested / "runs"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--checkpoint runs/ucf101-0", "needs --checkpoint RUN and --dataset NAME"),
        ("--checkpoint runs/ucf101-0 --dataset ucf101 --seed 0 1", 'names one run for 2 seeds; write "{seed}"'),
        ("--checkpoint runs/ucf101-{seed} --dataset ucf101 --seed 7", "neither a run folder nor inside one"),
        ("--checkpoint runs/ucf101-0 --dataset k400", "has no source k400.val"),
        ("--checkpoint runs/ucf101-0 --dataset ucf101 --wrokers 2", "--wrokers"),
    ],
)
def test_evaluations_that_cannot_be_are_told(flags, message, tested):
    with pytest.raises(InputError, match=message):
        plan("evaluate", flags.split())


@pytest.fixture
def divisible(monkeypatch):
    """A command `pack` that works in parts, and what it was called with."""
    calls = []
    module = types.ModuleType("divisible")

    def main(argv):
        calls.append(argv)
        if "wrong" in argv:
            raise InputError("wrong is no source")
        return 0

    module.main = main
    monkeypatch.setitem(sys.modules, "divisible", module)
    monkeypatch.setitem(cli.COMMANDS, "pack", cli.Command("divisible", "", shards=True))
    return calls


def test_parts_are_an_array_and_a_job_that_merges_them(divisible):
    shards, (parts, merge) = plan("pack", ["made", "--out", "x", "--parts", "3"])
    assert shards.gpus_per_node == 0
    assert [job.config for job in parts.jobs] == [["pack", "made", "--out", "x", "--part", f"{i}/3"] for i in range(3)]
    assert [job.config for job in merge.jobs] == [["pack", "made", "--out", "x", "--merge", "3"]]
    assert divisible[-1] == ["made", "--out", "x", "--dry-run"]
    assert command(parts.jobs[2].config) == 0 and divisible[-1] == ["made", "--out", "x", "--part", "2/3"]


def test_what_the_command_refuses_is_not_submitted(divisible, capsys):
    with pytest.raises(InputError, match=r"`ppma pack` refuses these flags, see above \(exit code 2\)"):
        plan("pack", ["wrong"])
    assert capsys.readouterr().err == "ppma pack: wrong is no source\n"


def test_a_command_runs_in_one_task(divisible):
    with pytest.raises(InputError, match="pack runs in one task; --parts N"):
        plan("pack", ["--nodes", "2"])


def test_people_are_removed_by_an_array_and_gathered_by_a_job_after_it(tmp_path, write_clip, monkeypatch, capsys):
    """The command itself, without models: the parts do their clips and the merge writes the manifest."""
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        write_clip(tmp_path / "videos" / "a" / f"{i}.mp4", frames=6)
    flags = ["videos", "--out", "removed", "--method", "downsample", "--workers", "1"]
    shards, (parts, merge) = plan("remove-humans", [*flags, "--parts", "2"])
    assert shards.gpus_per_node == 0 and (parts.name, merge.name) == ("remove-humans", "remove-humans-merge")
    assert "3 clips, 0 of them done, 18 frames to go" in capsys.readouterr().out
    assert not (tmp_path / "removed").exists()
    assert [command(job.config) for job in parts.jobs] == [0, 0]
    assert [job.config[-2:] for job in merge.jobs] == [["--merge", "2"]]
    assert command(merge.jobs[0].config) == 0
    assert len((tmp_path / "removed" / "manifest.csv").read_text().splitlines()) == 4


def test_flags_that_remove_humans_refuses_are_not_submitted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="`ppma remove-humans` refuses these flags, see above"):
        plan("remove-humans", ["nowhere", "--out", "removed", "--method", "downsample"])
    assert "nowhere: no such folder or manifest" in capsys.readouterr().err
