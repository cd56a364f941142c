"""The estimate: the newest row that is about such a model, or the reason why there is none."""

import json
from dataclasses import replace

from ppma.config.recipes import RECIPES
from ppma.slurm import estimate


def test_the_newest_row_of_such_a_model_counts(tmp_path, monkeypatch):
    base = RECIPES["mae_nohuman"]()
    row = {"phase": "mae", "implementation": "ours", "model": "base", "machine": "NVIDIA H200, 16 CPUs"}
    rows = [
        {**row, "clips_per_s": 1.0},
        {**row, "clips_per_s": 2000.0},
        {**row, "clips_per_s": 5.0, "model": "large"},
        {**row, "clips_per_s": 6.0, "implementation": "published"},
        {**row, "clips_per_s": 0.2, "machine": "Xeon, 2 CPUs"},
    ]
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "train_step.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    monkeypatch.setattr(estimate, "source_root", lambda: tmp_path)
    assert estimate.clips_per_s(base, on_gpu=True) == (2000.0, "NVIDIA H200, 16 CPUs")
    assert estimate.clips_per_s(base, on_gpu=False) == (0.2, "Xeon, 2 CPUs")
    (tmp_path / "data.toml").write_text('[no-human-kinetics.train]\nmanifest = "m.csv"\nroot = "."\n')
    config = replace(base, data=tmp_path / "data.toml")
    assert estimate.hours_left(config, 8, on_gpu=True) == "not known: no manifest to count"
    (tmp_path / "m.csv").write_text("header\n" + "row\n" * 14400)
    assert estimate.hours_left(config, 2, on_gpu=True).startswith(
        "0.2 h at 2000 clips/s a process (NVIDIA H200, 16 CPUs)"
    )
    assert estimate.hours_left(RECIPES["align_scratch"](), 2, on_gpu=True).startswith(
        "not known: benchmarks/train_step.py was not run for it on a GPU"
    )
