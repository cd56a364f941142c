"""Only sealed files count; a run that is edited, mislabeled or of other weights stops the report."""

import json

import made_runs
import numpy as np
import pytest

from ppma.config.errors import InputError
from ppma.study.results import collect
from ppma.training import seal

RIGHT = {(m, "probe", "ucf", s): np.arange(60) % (4 - i) == 0 for i, m in enumerate(("random", "full")) for s in (0, 1)}


@pytest.fixture
def study(tmp_path):
    return made_runs.study(tmp_path / "study", RIGHT, compare="full")


def rewrite(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def reseal(folder, **changes):
    old = json.loads((folder / seal.SEAL).read_text())
    seal.write(folder, **{name: changes.get(name, old[name]) for name in ("manifests", "init", "seconds")})


def test_results_are_counted_from_the_scores(study):
    found = collect(study)
    assert found.title == "A made <study> & more" and list(found.methods) == ["random", "full"] and not found.missing
    for result in found.results:
        right_V = RIGHT[result.method, result.protocol, result.dataset, result.seed]
        assert np.array_equal(result.right_DV, right_V[None])
        assert result.pretrain_seconds == (0 if result.method == "random" else 3600 * (1 + result.seed))
    assert len({result.videos for result in found.results}) == 1
    assert collect(study / "made.study.json").results[0].folder == found.results[0].folder


@pytest.mark.parametrize(
    ("changes", "sealed", "problem"),
    [
        ({"result.json": {"top1": 0.99}}, None, r"full\.probe\.ucf-s1/result\.json"),
        ({"result.json": {"top1": 0.99}}, {}, r"top1 0\.99"),  # disagrees with the scores
        ({"result.json": {"seed": 0}, "config.json": {"seed": 0}}, {}, "seed 0"),  # the run of another cell
        ({}, {"init": "0" * 64}, "full-s1"),  # started from other weights than the named ones
        ({"../../made.study.json": {"title": "better"}}, None, r"made\.study\.json"),
    ],
)
def test_a_run_that_is_not_what_it_says_is_refused(study, changes, sealed, problem):
    """Whether or not it was sealed again after the change."""
    folder = study / "runs/full.probe.ucf-s1"
    for name, values in changes.items():
        rewrite(folder / name, **values)
    if sealed is not None:
        reseal(folder, **sealed)
    with pytest.raises(InputError, match=problem):
        collect(study)


def test_missing_runs_are_named(study):
    (study / "runs/full.probe.ucf-s1" / seal.SEAL).unlink()
    found = collect(study)
    assert found.missing == ("full.probe.ucf-s1",) and len(found.results) == 3


def test_unplanned_runs_are_named_after_their_recipes(tmp_path):
    mae = made_runs.trained(tmp_path / "mae")
    align = made_runs.trained(tmp_path / "align", init=mae, recipe="align_nohuman", seconds=1800)
    made_runs.tested(tmp_path / "probe", RIGHT["full", "probe", "ucf", 0], init=align)
    made_runs.tested(tmp_path / "plain", RIGHT["full", "probe", "ucf", 0])
    found = collect(tmp_path)
    costs = {result.method: result.pretrain_seconds for result in found.results}
    assert costs == {"from scratch": 0, "mae_nohuman > align_nohuman": 5400}
    assert found.results[0].command == ("ppma", "train", "probe")


def test_the_same_test_twice_counts_once_and_another_split_is_another_data_set(tmp_path):
    right_V = RIGHT["full", "probe", "ucf", 0]
    run = made_runs.tested(tmp_path / "probe", right_V)
    for name, split in (("again", "val"), ("other", "test")):
        folder = made_runs.tested(run / name, right_V)
        (folder / "config.json").unlink()
        rewrite(folder / "result.json", split=split)
        reseal(folder)
    assert [(r.folder, r.dataset) for r in collect(tmp_path).results] == [(run, "made"), (run / "other", "made (test)")]


def test_a_mixture_of_two_starts_from_both(tmp_path):
    one = made_runs.trained(tmp_path / "one")
    two = made_runs.trained(tmp_path / "two", recipe="align_nohuman", seconds=60)
    run = made_runs.tested(tmp_path / "mixed", RIGHT["full", "probe", "ucf", 0])
    paths = [str(start / "checkpoints" / "latest") for start in (one, two)]
    rewrite(run / "config.json", init=None, average=paths)
    reseal(run, init=seal.starts_hash([seal.read(start).weights for start in (one, two)]))
    (found,) = collect(tmp_path).results
    assert (found.method, found.pretrain_seconds) == ("mae_nohuman + align_nohuman", 3660)
    rewrite(run / "config.json", average=paths[::-1])
    reseal(run)
    with pytest.raises(InputError, match=r"two.*, .*one"):
        collect(tmp_path)


def test_a_folder_without_results_is_refused(tmp_path, study):
    with pytest.raises(InputError, match="nowhere"):
        collect(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        collect(tmp_path / "empty")
    (study / "two.study.json").write_text("{}")
    with pytest.raises(InputError, match=r"made\.study\.json"):
        collect(study)


def test_few_shot_draws_are_rows_over_the_same_videos(tmp_path):
    """A few-shot run lists its videos once per draw."""
    right_DV = np.stack([np.arange(40) % (2 + draw) == 0 for draw in range(3)])
    run = made_runs.tested(tmp_path / "few", right_DV.ravel(), draws=3)
    (found,) = collect(run.parent).results
    assert np.array_equal(found.right_DV, right_DV) and found.right5_DV.shape == (3, 40)
    one = made_runs.tested(tmp_path / "one", right_DV[0])
    assert {result.videos for result in collect(one.parent).results} == {found.videos}
