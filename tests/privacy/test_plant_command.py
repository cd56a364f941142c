"""Plant and find: six small clips here, two hundred in `make slow`, which go on where they were left."""

import json
import os
from pathlib import Path

import pytest

from ppma.cli import main as ppma
from ppma.privacy.plant import trial as plant_trial
from ppma.privacy.plant.summary import RECALL, RESIDUAL, SEEN_DB


def run(out, *flags):
    return ppma(["plant", "--out", str(out), *map(str, flags)])


SMALL = ("--clips", 6, "--size", 128, "--frames", 2, "--looked-at", 1, "--workers", 1, "--seed", 5)


def test_six_planted_clips(audit_weights, tmp_path, monkeypatch, capsys):
    assert run(tmp_path / "out", *SMALL) == 0
    summary = json.loads((tmp_path / "out" / "report.json").read_text())
    assert summary["clips"] == 6 and summary["frames"] == 6
    assert summary["tall and found"]["recall"] >= RECALL and summary["tall"]["people"] >= 3
    assert not summary["pixels"]["outside_below"]
    assert summary["residual"]["ssdlite"]["before"] > 0.4
    for trial in (tmp_path / "out" / "trials").iterdir():
        checks = json.loads(trial.read_text())["findings"]["checks"]
        assert checks["same outside, before encoding"]["held"] is True and checks["every frame"]["held"] is True
    page = (tmp_path / "out" / "report.md").read_text()
    assert "in at most" in page and (tmp_path / "out" / "report.svg").read_text().endswith("</svg>\n")
    monkeypatch.setattr(plant_trial, "plant", lambda *_: pytest.fail("a finished clip was drawn again"))
    assert run(tmp_path / "out", *SMALL) == 0
    assert run(tmp_path / "out", *SMALL, "--fps", 6) == 2
    assert "holds trials with fps 5.0, not 6.0; give another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--clips", 0), "--clips is 0; it must be 1 to 100000"),
        (("--size", 129), "it must be even"),
        (("--auditors", "nanodet", "blazeface"), "--auditors nanodet blazeface: an audit takes two that find people"),
        (("--plates", "nowhere"), "has no picture or video"),
        (("--weights", "nowhere"), "ppma privacy fetch"),
    ],
)
def test_wrong_input(tmp_path, capsys, flags, reason):
    if flags[0] != "--weights":
        flags = (*flags, "--weights", tmp_path) if flags[0] not in ("--plates",) else flags
    assert run(tmp_path / "out", *flags) == 2
    message = capsys.readouterr().err
    assert reason in message and message.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_two_hundred_planted_clips(audit_weights):
    """About 16 s of one core a clip. Trials are kept in $PPMA_PLANTED (else beside the weights); $PPMA_PLATES adds natural places."""
    out = Path(os.environ.get("PPMA_PLANTED", audit_weights.parent / "planted"))
    plates = ("--plates", os.environ["PPMA_PLATES"]) if "PPMA_PLATES" in os.environ else ()
    assert run(out, "--clips", 200, "--frames", 6, *plates) == 0
    summary = json.loads((out / "report.json").read_text())
    assert summary["clips"] >= 200 and not summary["pixels"]["outside_below"]
    assert summary["tall and found"]["recall"] >= RECALL
    assert summary["pixels"]["seen_db"] >= SEEN_DB
    assert summary["residual"]["any"]["after"] <= RESIDUAL
