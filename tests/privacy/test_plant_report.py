"""Figures of planted people from trials written by hand."""

import pytest

from ppma.privacy.plant.report import markdown, plot
from ppma.privacy.plant.summary import summarize
from ppma.privacy.plant.trial import Sight, Trial
from tests.privacy.test_audit_judge import findings


def sight(person, height, pixels, hidden, found):
    seen = {"nanodet": True, "centernet": found, "blazeface": False}
    return Sight(
        person=person,
        frame=0,
        height=height,
        pixels=pixels,
        hidden=hidden,
        found=found,
        audited=seen,
        left=dict.fromkeys(seen, False),
    )


def trial(number, sights, **changes):
    fields = {
        "design": {"number": number, "light": "day", "plate": None}, "moving": False, "people": 2, "sights": sights,
        "outside_db": 44.0, "seen_db": 30.0, "seen_pixels": 100, "alarms": {"nanodet": [0.1], "centernet": [0.9], "blazeface": [0.0]},
        "control": {"nanodet": [0.9], "centernet": [0.9], "blazeface": [0.0]},
        "findings": findings(name=f"c/{number}"),
    }  # fmt: skip
    return Trial(**{**fields, **changes})


@pytest.fixture
def summary():
    first = trial(0, [sight(0, 100, 1000, 1000, True), sight(1, 60, 500, 0, False)])
    second = trial(1, [sight(0, 30, 100, 50, True)], outside_db=39.0, seen_db=None, moving=True, people=5)
    return summarize([first, second])


def test_found_people_and_all_people_are_told_apart(summary):
    assert summary["tall and found"]["recall"] == 1.0 and summary["tall and found"]["people"] == 1
    assert summary["tall"]["recall"] == pytest.approx(2 / 3) and summary["tall"]["found"] == 0.5
    assert summary["all"]["recall"] == pytest.approx(1050 / 1600)
    assert summary["heights"]["16 to 31"]["recall"] == 0.5 and "128 up" not in summary["heights"]


def test_pixels_alarms_and_residuals(summary):
    assert summary["pixels"]["outside_worst_db"] == 39.0 and summary["pixels"]["outside_below"] == 1
    assert summary["pixels"]["seen_db"] == pytest.approx(30.0) and summary["pixels"]["seen_clips"] == 1
    empty, control = (
        {name: row[which]["hits"] for name, row in summary["residual"].items()} for which in ("empty", "control")
    )
    assert empty == {"nanodet": 0, "centernet": 2, "blazeface": 0, "any": 2}
    assert control == {"nanodet": 2, "centernet": 2, "blazeface": 0, "any": 2}
    assert (
        summary["residual"]["nanodet"]["highest alarm"] == 0.9 and summary["residual"]["any"]["highest alarm"] is None
    )
    share, low, high = summary["residual"]["nanodet"]["beyond control"]
    assert share == low == high == summary["residual"]["nanodet"]["after"] - 2 / summary["frames"]
    assert summary["residual"]["any"]["after"] == 0.0 and summary["residual"]["any"]["upper"] == pytest.approx(
        1 - 0.05**0.5
    )


def test_the_page_names_what_is_missed(summary):
    page = markdown(summary, {"frames": 6})
    assert "**missed**: outside the mask 39.0 dB" in page and "**reached**: 100.0 % of the pixels" in page
    assert "are hit in 10.0 % of frames, and unpainted in 10.0 %" in page
    assert "whether found or not, 66.7 %" in page and plot(summary).axes
