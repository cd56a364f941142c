"""The graph of runs: their order, which runs are reused, and what changes a key."""

import json
import shlex
from dataclasses import replace

import pytest
import tiny

from ppma.config.errors import InputError
from ppma.config.flags import resolve
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.study import spec
from ppma.study.plan import Planner
from ppma.training import seal
from tests.study.test_spec import GOOD

SPEC = GOOD.replace("mae_nohuman --model tiny", "mae_nohuman --model tiny --loader.workers 3")
TEXT = SPEC.partition("[pretrain.foreign]")[0] + SPEC[SPEC.index("[protocol") :]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.toml"
    for name in ("no-human-kinetics", "synapt", "ucf101", "hmdb51"):
        made = tiny.source(name)
        Manifest.write(tmp_path / f"{name}.csv", [made.clip(i) for i in range(len(made))])
        for split in ("train", "val"):
            catalog.add(path, name=name, split=split, manifest=tmp_path / f"{name}.csv", root=tmp_path)
    return path


@pytest.fixture
def plan(tmp_path, data):
    def plan(text=TEXT, **kwargs):
        (tmp_path / "spec.toml").write_text(text)
        return Planner(spec.read(tmp_path / "spec.toml"), tmp_path / "runs", data, **kwargs).runs_in_order()

    return plan


def keys(runs):
    return {(run.name, run.seed): run.key for run in runs}


def end(run):
    """Make the files of a finished run."""
    weights = run.folder / "checkpoints" / "latest" / seal.MODEL if run.config else run.folder / seal.MODEL
    weights.parent.mkdir(parents=True)
    weights.write_bytes(run.key.encode())
    manifests, init = {}, None
    if run.config:
        (run.folder / "config.json").write_text(run.config.to_json())
        manifests = seal.manifest_hashes(run.config)
        init = seal.read(run.needs[0].folder).weights if run.needs else None
    seal.write(run.folder, manifests=manifests, init=init, seconds=1.0)


def test_inputs_come_first_and_nothing_twice(plan):
    runs = plan()
    assert [run.name for run in runs if run.seed == 0] == [
        "random.probe.ucf101", "random.probe.hmdb51", "stage1", "full", "full.probe.ucf101", "full.probe.hmdb51",
        "other", "mean", "mean.probe.ucf101", "mean.probe.hmdb51",
    ]  # fmt: skip
    assert len({run.folder for run in runs}) == len(runs) == 20
    for place, run in enumerate(runs):
        assert all(runs.index(parent) < place and parent.seed == run.seed for parent in run.needs)
    by_name = {run.name: run for run in runs if run.seed == 1}
    assert by_name["full.probe.ucf101"].config.init == by_name["full"].folder / "checkpoints" / "latest"
    assert by_name["mean.probe.ucf101"].config.init == by_name["mean"].folder
    assert by_name["random.probe.ucf101"].config.init is None
    assert by_name["mean"].command[-5:-2] == ("--weights", "1", "3.5") and by_name["mean"].config is None


def test_the_command_of_a_run_gives_its_config(plan):
    for run in plan():
        if run.config is not None and run.seed == 1:
            verb, recipe, *flags = run.command
            assert verb == "train" and resolve(recipe, flags) == run.config, shlex.join(run.command)


def test_a_name_changes_no_key_and_a_setting_does(plan):
    before = keys(plan())
    renamed = keys(plan(TEXT.replace("stage1", "first").replace('"made"', '"again"').replace("workers 3", "workers 7")))
    assert before == {(name.replace("first", "stage1"), seed): key for (name, seed), key in renamed.items()}
    changed = keys(plan(TEXT.replace("mae_nohuman --model tiny", "mae_nohuman --model tiny --optim.epochs 7")))
    same = {name for name in before if before[name] == changed[name]}
    assert same == {(name, seed) for name in ("random.probe.ucf101", "random.probe.hmdb51") for seed in (0, 1)}


def test_other_clips_change_the_keys_of_runs_that_read_them(plan, tmp_path):
    before, file = keys(plan()), tmp_path / "hmdb51.csv"
    file.write_text(file.read_text().replace("31.mp4", "32.mp4"))
    after = keys(plan())
    changed = {name for name, _ in before if before[name, 0] != after[name, 0]}
    assert changed == {f"{method}.probe.hmdb51" for method in ("random", "full", "mean")}


def test_published_follows_the_data_set_of_a_test(plan):
    text = TEXT.replace('"probe --model tiny"', '"finetune --published --model tiny"').replace('"hmdb51"', '"synapt"')
    tests = [run for run in plan(text) if run.row]
    assert {(run.row.dataset, run.config.loader.assumed_fps) for run in tests} == {("ucf101", 25.0), ("synapt", None)}
    assert all(resolve(run.command[1], run.command[2:]) == run.config for run in tests[:2])


def test_a_new_setting_at_its_default_finds_old_runs(plan):
    run = next(run for run in plan() if run.name == "stage1")
    end(run)
    file = run.folder / "config.json"
    saved = json.loads(file.read_text())
    del saved["classifier"]["token_drop"]
    file.write_text(json.dumps(saved))
    seal.write(run.folder, manifests=seal.manifest_hashes(run.config), init=None, seconds=1.0)
    assert run.state() == "done"


def test_finished_runs_are_found_under_any_name(plan):
    for run in plan():
        if run.seed == 0:
            end(run)
    runs = plan(TEXT.replace("stage1", "first").replace('"made"', '"again"'))
    assert [run.seed for run in runs if run.state() == "done"] == [0] * 10
    assert next(run for run in runs if run.name == "first").folder.name.startswith("stage1-s0-")
    runs[-1].folder.mkdir()
    assert [run.state() for run in runs if run.seed == 1][-2:] == ["open", "started"]


def test_an_edited_run_is_not_reused(plan):
    first = next(run for run in plan() if run.name == "stage1")
    end(first)
    (first.folder / "checkpoints/latest" / seal.MODEL).write_bytes(b"other")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        first.state()
    with (first.folder / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(InputError, match=r"config\.json"):
        first.state()


def test_another_run_in_the_folder_is_refused(plan):
    runs = [run for run in plan() if run.seed == 0]
    for run in runs:
        end(run)
    full = next(run for run in runs if run.name == "full")
    (full.folder / "config.json").write_text(replace(full.config, seed=5).to_json())
    seal.write(full.folder, manifests=seal.manifest_hashes(full.config), init=None, seconds=1.0)
    with pytest.raises(InputError, match="seed: 5 -> 0; the weights"):
        full.state()


def test_own_clips_are_added_in_stage_1_only(plan, data, tmp_path):
    catalog.add(data, name="real", split="train", manifest=tmp_path / "ucf101.csv", root=tmp_path)
    runs = {run.name: run for run in plan(added={"no-human-kinetics": "real"}) if run.seed == 0}
    assert runs["stage1"].config.sources == ("no-human-kinetics", "real")
    assert runs["full"].config.sources == ("no-human-kinetics", "synapt")
    assert runs["full"].key != keys(plan())["full", 0]


ADAPTIVE = """
[pretrain.adaptive]
title = "Adaptive average"
adaptive = ["full", "other"]
recipe = "adaptive_average --model tiny"
protocols = ["probe"]
"""


def test_a_learned_mixture_is_tested_by_its_own_recipe_from_all_that_it_mixes(plan):
    text = TEXT + ADAPTIVE + '[protocol.knn]\ntitle = "Neighbors"\nrecipe = "knn --model tiny"\n'
    runs = [run for run in plan(text) if run.seed == 0]
    mixed = [run for run in runs if run.name.startswith("adaptive")]
    assert [run.name for run in mixed] == ["adaptive.probe.ucf101", "adaptive.probe.hmdb51"]
    assert all([parent.name for parent in run.needs] == ["full", "other"] for run in mixed)
    assert all(run.config.recipe == "adaptive_average" for run in mixed)
    assert mixed[0].config.average == tuple(parent.folder / "checkpoints" / "latest" for parent in mixed[0].needs)
    assert resolve(mixed[0].command[1], mixed[0].command[2:]) == mixed[0].config
    assert [run.config.phase for run in runs if ".knn." in run.name] == ["knn"] * 6
    changed = keys(plan(text.replace("align_nohuman --model tiny", "align_nohuman --model tiny --batch 64")))
    assert mixed[0].key != changed[mixed[0].name, 0]
    for run in runs:
        if run.name in ("stage1", "full", "other"):
            end(run)
    weights = [seal.read(run.folder).weights for run in mixed[0].needs]
    mixed[0].folder.mkdir()
    (mixed[0].folder / "config.json").write_text(mixed[0].config.to_json())
    manifests = seal.manifest_hashes(mixed[0].config)
    seal.write(mixed[0].folder, manifests=manifests, init=seal.starts_hash(weights), seconds=1.0)
    assert mixed[0].state() == "done"
    seal.write(mixed[0].folder, manifests=manifests, init=seal.starts_hash(weights[::-1]), seconds=1.0)
    with pytest.raises(InputError, match="the weights it started from"):
        mixed[0].state()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"probe --model tiny"', '"align_nohuman"', r"\[protocol\.probe\]: align_nohuman"),  # does not end with a test
        ("--loader.workers 3", "--loader.wrokers 3", "wrokers"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(plan, old, new, problem):
    with pytest.raises(InputError, match=problem):
        plan(TEXT.replace(old, new))


def test_missing_data_is_refused(plan, data):
    data.write_text(data.read_text().replace("[synapt.train]", "[other.train]"))
    with pytest.raises(InputError, match=r"synapt\.train"):
        plan()
