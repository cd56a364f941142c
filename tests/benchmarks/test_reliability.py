"""The table of what is promised: every promise has a test, README shows all, and a failure cannot look like a figure."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.reliability import PROMISES, Proofs, main, table
from ppma.config.command import DONE, WRONG_INPUT, run

ROOT = Path(__file__).resolve().parents[2]


def report(outcome, *figures, when="call", promise="R6", name="tests/a/test_b.py::test_c"):
    properties = [("promise", promise), *((f"figure {promise}", figure) for figure in figures)]
    return SimpleNamespace(when=when, outcome=outcome, user_properties=properties, nodeid=name)


def proofs_of(*reports):
    proofs = Proofs()
    for one in reports:
        proofs.pytest_runtest_logreport(one)
    return proofs


@pytest.mark.parametrize(
    ("reports", "result", "holds"),
    [
        ([], "not proven: no test", False),
        ([report("passed", when="setup"), report("passed", "0 of 60 files")], "0 of 60 files", True),
        ([report("passed", "0 of 60"), report("passed", "0 of 60"), report("passed", "9 ms")], "0 of 60; 9 ms", True),
        ([report("passed"), report("skipped", when="setup")], "1 of 1 tests", True),
        ([report("skipped", when="setup")], "not run", False),
        ([report("passed", "0 of 60 files"), report("failed", when="setup")], "**1 of 2 tests failed**", False),
    ],
)
def test_a_row_says_what_the_tests_showed(reports, result, holds):
    proofs = proofs_of(*reports)
    assert (proofs.result("R6"), proofs.holds("R6")) == (result, holds)


def test_the_table_names_the_files_once():
    rows = table(proofs_of(report("passed"), report("passed")), ["R6"]).splitlines()
    assert len(rows) == 3 and rows[2].count("`a/test_b.py`") == 1 and PROMISES["R6"] in rows[2]


def test_wrong_names_are_refused(capsys):
    assert run(main, ["--only", "R99"], prog="reliability") == WRONG_INPUT
    assert "R99" in capsys.readouterr().err


def test_one_promise_is_proven_by_the_command(tmp_path, monkeypatch, capsys):
    """A tiny tree of tests: one is marked."""
    monkeypatch.setattr("benchmarks.reliability.ROOT", tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_x.py").write_text(
        "import pytest\n@pytest.mark.promise('R7')\ndef test_a(): pass\ndef test_b(): raise ValueError\n"
    )
    (tmp_path / "tests/conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    assert run(main, ["--only", "R7", "--out", str(tmp_path / "table.md")], prog="reliability") == DONE
    assert "1 of 1 tests" in (tmp_path / "table.md").read_text()


def test_every_promise_has_a_test():
    files = (ROOT / "tests").rglob("test_*.py")
    assert {name for file in files for name in re.findall(r'mark\.promise\("(R\d+)"\)', file.read_text())} == set(
        PROMISES
    )


def test_readme_shows_every_promise():
    shown = re.findall(r"^\| (R\d+) \| (.+?) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert shown == list(PROMISES.items())
