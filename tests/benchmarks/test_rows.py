"""Rows are written, read, compared and plotted."""

import importlib
import json

import pytest
import torch

from benchmarks import rows
from benchmarks.natural_clips import make_clips
from ppma.config.command import parse, run
from ppma.config.errors import InputError

MADE = [
    {"kernel": "patchify", "shape": "4 x 157", "batch": 4, "microseconds": 20.0, "ratio": None, "repeats": 5},
    {"kernel": "attention", "shape": "4 x 157", "batch": 4, "microseconds": 50.0, "ratio": 2.0, "repeats": 5},
]


def report(tmp_path, made=MADE, **flags):
    return rows.report(
        made, rows.ReportConfig(**{"record": True} | flags), benchmark="speed", measure="microseconds", folder=tmp_path
    )


def test_a_row_has_its_provenance(tmp_path, capsys):
    (row, _) = report(tmp_path)
    assert row["benchmark"] == "speed" and row["microseconds"] == 20.0
    assert "torch" in row["versions"] and "CPUs" in row["machine"] and row["date"].endswith("+00:00")
    assert rows.history("speed", tmp_path)[0] == row
    assert "patchify" in capsys.readouterr().out


def test_whole_numbers_and_words_are_the_keys(tmp_path):
    assert rows.keys_of(report(tmp_path)) == ["kernel", "shape", "batch"]


def test_comparison_takes_the_newest_row_of_the_same_keys_and_machine(tmp_path, capsys, monkeypatch):
    for microseconds in (100.0, 40.0):
        report(tmp_path, [MADE[0] | {"microseconds": microseconds}])
    monkeypatch.setattr(rows, "machine", lambda: "another")
    report(tmp_path, [MADE[0] | {"microseconds": 1.0}])
    monkeypatch.undo()
    capsys.readouterr()
    new = report(tmp_path, compare=True)
    changes = rows.comparison(new, rows.history("speed", tmp_path)[:3], rows.keys_of(new), "microseconds")
    assert [(c["kernel"], c["old"], c["new"], c["new_over_old"]) for c in changes] == [("patchify", 40.0, 20.0, 0.5)]
    assert "new_over_old" in capsys.readouterr().out


def test_json_and_picture(tmp_path):
    made = report(tmp_path, json=tmp_path / "rows.json", plot=tmp_path / "rows.png")
    assert json.loads((tmp_path / "rows.json").read_text()) == made
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("values", "expected"), [([1.0, 5.0], None), ([8.0, 9.0, 10.0, 11.0, 12.0], 0.15)])
def test_spread_is_half_the_middle_half_over_the_median(values, expected):
    assert rows.spread(values) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(("flag", "file"), [("json", "gone/rows.json"), ("plot", "."), ("plot", "rows.txt")])
def test_unwritable_output_is_refused_before_anything_is_measured(flag, file, tmp_path):
    with pytest.raises(InputError, match=f"--{flag}"):
        parse(rows.ReportConfig, [f"--{flag}", str(tmp_path / file)], prog="rows")


WRONG = {
    "train_step": (
        ["--batch", "0"],
        ["--model", "giant"],
        ["--size", "100"],
        ["--implementation", "magic"],
        ["--repeats", "0"],
    ),
    "end_to_end": (
        ["--steps", "0"],
        ["--model", "giant"],
        ["--batch", "6"],
        ["--views", "3"],
        ["--manifest", "gone.csv"],
    ),
    "kernel_speed": (["--batch", "-1"], ["--kernel", "magic"], ["--json", "gone/rows.json"]),
    "loader_throughput": (
        ["--rounds", "0"],
        ["--readers", "magic"],
        ["--pages", "gone.md"],
        ["--clips", "/proc/here"],
        ["--manifest", "gone.csv"],
    ),
    "scaling": (["--gpus", "0"], ["--model", "giant"]),
}


@pytest.mark.parametrize(("benchmark", "flags"), [(name, flags) for name, some in WRONG.items() for flags in some])
def test_wrong_flags_are_one_line_and_exit_2(benchmark, flags, capfd):
    main = importlib.import_module(f"benchmarks.{benchmark}").main
    assert run(main, flags, prog=benchmark) == 2
    assert len(capfd.readouterr().err.strip().splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_loader_on_a_missing_gpu_is_refused(capfd):
    from benchmarks.loader_throughput import main

    assert run(main, ["--device", "gpu"], prog="loader_throughput") == 2
    assert "--device gpu: " in capfd.readouterr().err


def test_existing_clips_are_kept_when_others_are_requested(tmp_path):
    """Benchmarks share the folder but use different contents."""
    make_clips(tmp_path, clips=1, frames=4, contents=("mpeg4",))
    before = (tmp_path / "mpeg4/0.avi").stat()
    made = make_clips(tmp_path, clips=1, frames=4, contents=("mpeg4", "packed"))
    assert {"mpeg4", "h264_gop250", "jpeg_folder", "packed"} == set(made)
    assert made["packed"].frames.tolist() == [4] and len(list((tmp_path / "jpeg_folder/0").iterdir())) == 4
    assert (tmp_path / "mpeg4/0.avi").stat().st_mtime_ns == before.st_mtime_ns
    assert not list(tmp_path.rglob(".*.avi")), "what is being written has another name until it is complete"
