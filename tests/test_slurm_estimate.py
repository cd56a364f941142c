"""The estimate: the newest row that is about such a model, or the reason why there is none."""

import json
from dataclasses import replace

from ppma.recipes import RECIPES
from ppma.slurm import estimate


def test_the_newest_row_of_such_a_model_counts(tmp_path, monkeypatch):
    base = RECIPES["mae_nohuman"]()
    row = {"phase": "mae", "width": 768, "depth": 12, "size": 224, "device": "H200"}
    rows = [
        {**row, "date": "2026-02-01", "clips_per_s": 2000.0}, {**row, "date": "2026-01-01", "clips_per_s": 1.0},
        {**row, "date": "2026-03-01", "clips_per_s": 5.0, "width": 1024},
    ]  # fmt: skip
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    monkeypatch.setattr(estimate, "source_root", lambda: tmp_path)
    assert estimate.clips_per_s(base) == (2000.0, "H200")
    (tmp_path / "data.toml").write_text('[no-human-kinetics.train]\nmanifest = "m.csv"\nroot = "."\n')
    config = replace(base, data=tmp_path / "data.toml")
    assert estimate.hours_left(config, 8) == "not known: no manifest to count"
    (tmp_path / "m.csv").write_text("header\n" + "row\n" * 14400)
    assert estimate.hours_left(config, 2).startswith("0.2 h at 2000 clips/s a process (H200)")
    assert estimate.hours_left(RECIPES["align_scratch"](), 2).startswith("not known: no benchmark")
