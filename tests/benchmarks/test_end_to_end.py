"""The step with the loader in the loop, on a few generated clips: the row's fields exist and are consistent."""

import pytest
import torch

from benchmarks import end_to_end
from benchmarks.end_to_end import BenchmarkConfig, make_step, measure
from ppma.cli import main as ppma
from ppma.config.errors import InputError
from ppma.loaders.sources.manifest import Manifest


@pytest.fixture(scope="module")
def clips(clip_tree, tmp_path_factory):
    file = tmp_path_factory.mktemp("manifest") / "clips.csv"
    assert ppma(["index", str(clip_tree), "--root", str(clip_tree), "--out", str(file)]) == 0
    return Manifest.read(file, root=clip_tree, name="clips")


def test_a_row(clips):
    config = BenchmarkConfig(batch=2, views=2, workers=1, steps=2, size=32)
    row = measure(clips, config, make_step(config, torch.device("cpu")))
    assert (row["source"], row["reader"], row["model"], row["batch"]) == ("clips", "plain", "tiny", 2)
    assert row["clips_per_s"] > 0 and 0 <= row["stall_percent"] <= 100 and row["of_cached"] > 0


@pytest.mark.parametrize(("device", "batch"), [("cpu", 4), ("cuda", 128)])
def test_views_must_divide_the_batch_which_depends_on_the_device(device, batch, monkeypatch):
    monkeypatch.setattr(end_to_end, "make_trainer", lambda config, device: config.batch)
    made = make_step(BenchmarkConfig(views=batch), torch.device(device))
    assert made == batch
    for config in (BenchmarkConfig(views=3), BenchmarkConfig(batch=6)):
        with pytest.raises(InputError, match="batch"):
            make_step(config, torch.device(device))
