"""The probe runs the encoder once: what the benchmark compares, and 25 times the speed over 50 epochs at full size."""

from dataclasses import replace

import pytest

from benchmarks import probe_speed
from benchmarks.natural_clips import clip_row
from benchmarks.probe_speed import BenchmarkConfig, make_data, measure, protocols
from ppma.config.run import differences
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest


def test_the_protocols_differ_in_where_the_encoder_runs(tmp_path):
    config = BenchmarkConfig(clips=8, device="cpu")
    probe, every_epoch = protocols(tmp_path, tmp_path / "data.toml", config)

    names = {line.split(":")[0] for line in differences(replace(every_epoch, run_dir=probe.run_dir), probe)}
    assert names == {
        "phase",
        "classifier.mix.probability",
        "classifier.mix.smoothing",
    }  # a probe neither mixes nor smooths


def test_clips_are_pieces_of_videos_with_labels(tmp_path, monkeypatch):
    def make_clips(folder, *, clips, frames, contents):
        rows = [clip_row(f"{number}.mp4", "h264", 250, frames) for number in range(clips)]
        return {name: Manifest.from_clips(rows, root=folder, name=name) for name in contents}

    monkeypatch.setattr(probe_speed, "make_clips", make_clips)  # which would encode them
    manifest = catalog.read(make_data(tmp_path, BenchmarkConfig(clips=8, classes=4))).manifest("made")
    assert manifest.labels.tolist() == [0, 1, 2, 3] * 2 and (manifest.ends - manifest.starts == 1.5).all()
    assert manifest.starts.max() == 4.5 and manifest.starts.min() == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_probe_over_50_epochs_is_25_times_faster(tmp_path):
    row = measure(BenchmarkConfig(), tmp_path)
    assert row["epochs"] == 50 and row["ratio"] >= 25, row
    assert row["later_ratio"] > row["ratio"]
