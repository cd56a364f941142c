"""What the headspace analysis says of three rates, and that it measures them."""

import pytest
import torch

from benchmarks import headspace
from benchmarks.headspace import rate, sentence


@pytest.mark.parametrize(
    ("step", "loader", "both", "says"),
    [
        (100.0, 300.0, 98.0, "The training step is the bottleneck: with the loader it keeps 98% of its speed."),
        (100.0, 300.0, 120.0, "keeps 100% of its speed"),
        (
            100.0,
            40.0,
            38.0,
            "The loader is the bottleneck: it gives 40.0 clips/s where the step could take 100.0; more workers",
        ),
        (
            100.0,
            120.0,
            60.0,
            "Each alone is fast enough (step 100.0, loader 120.0 clips/s), together they give 60.0: they share",
        ),
    ],
)
def test_one_sentence_names_the_bottleneck(step, loader, both, says):
    assert says in sentence(step, loader, both, cpu=True)


def test_batches_that_were_ready_are_not_counted(monkeypatch):
    clock = [0.0]
    took = iter([0.0, 0.0, *[1.0] * 8])  # two batches wait already, each further one takes a second
    monkeypatch.setattr(headspace.time, "perf_counter", lambda: clock[0])

    def one():
        clock[0] += next(took)

    assert rate(torch.device("cpu"), 4.0, one, ahead=2) == headspace.BATCH_CLIPS
