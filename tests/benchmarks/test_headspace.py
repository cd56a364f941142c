"""What the headspace analysis says of three rates, and that it measures the step of `ppma train` on batches of its size."""

import pytest
import torch

from benchmarks import headspace
from benchmarks.headspace import rate, sentence
from benchmarks.natural_clips import make_clips
from ppma.training.trainer import Trainer


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

    assert rate(torch.device("cpu"), 4.0, one, ahead=2, rows=128) == 128


def test_the_three_rates(monkeypatch, tmp_path, capsys):
    clips = make_clips(tmp_path, clips=2, frames=40, contents=("mpeg4",))["mpeg4"]
    seen = []
    real = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda self, batch: (seen.append(len(batch.key_B)), real(self, batch)))
    made = headspace.headspace(clips, device="cpu", workers=1, views=2, seconds=0.01, size=32)
    assert [row["what"] for row in made] == ["step on a cached batch", "loader alone", "both"]
    assert all(row["clips_per_s"] > 0 and row["batch"] == 8 for row in made) and set(seen) == {8}
    assert capsys.readouterr().out.count("\n") == 1
