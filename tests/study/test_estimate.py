"""Time left, from the speed of the runs that ended."""

from ppma.study.estimate import Left, arithmetic, left
from ppma.training import seal
from tests.study.test_plan import data, end, plan  # noqa: F401  # fixtures


def test_what_is_left_is_judged_by_runs_of_the_same_phase(plan):  # noqa: F811
    runs = plan()
    done = [run.name == "stage1" and run.seed == 0 for run in runs]
    first = runs[done.index(True)]
    end(first)
    seal.write(first.folder, manifests={}, init=None, seconds=100.0)
    found = left(runs, done)
    assert found.runs == 19 and found.unknown == ("classify", "probe")
    assert found.seconds == 100  # stage 1 of the other seed; of the other phases nothing is known
    assert (
        found.words()
        == "19 runs, at least 0:01:40 (not counted: runs of phase classify, probe, none of which has ended)"
    )


def test_arithmetic_grows_with_epochs_and_views(plan):  # noqa: F811
    by_name = {run.name: run.config for run in plan() if run.seed == 0}
    assert arithmetic(by_name["full"]) > arithmetic(by_name["other"]) > arithmetic(by_name["random.probe.ucf101"])


def test_words():
    assert Left(runs=0, seconds=0, unknown=()).words() == "nothing"
    assert Left(runs=1, seconds=0, unknown=("mae",)).words() == "1 run, time not known before a mae run has ended"
    assert Left(runs=2, seconds=5400, unknown=()).words(2.0) == "2 runs, about 1:30:00, which costs 3.00"
