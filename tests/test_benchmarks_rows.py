"""Rows are written, found again, compared and drawn."""

import json

import pytest

from benchmarks import rows

MADE = [
    {"kernel": "patchify", "shape": "4 x 157", "batch": 4, "microseconds": 20.0, "ratio": None, "repeats": 5},
    {"kernel": "attention", "shape": "4 x 157", "batch": 4, "microseconds": 50.0, "ratio": 2.0, "repeats": 5},
]


def report(tmp_path, made=MADE, **flags):
    return rows.report(made, benchmark="speed", measure="microseconds", folder=tmp_path, **flags)


def test_a_row_says_where_it_comes_from(tmp_path, capsys):
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
