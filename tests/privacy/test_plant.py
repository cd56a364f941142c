"""Plant and find: planted clips and their ground truth, the control, the numbers of the report, and the command."""

import json
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from privacy_stand_ins import RED

from ppma.cli import main as ppma
from ppma.config.errors import InputError
from ppma.privacy.plant import trial as trials
from ppma.privacy.plant.clip import HEIGHTS, LONG_EVERY, Design, design, list_plates, plant
from ppma.privacy.plant.report import RECALL, RESIDUAL, SEEN_DB, markdown, plot, summarize
from ppma.privacy.plant.trial import Sighting, Trial, measure
from ppma.privacy.removal.clip import Pipeline, Settings
from tests.privacy.test_audit_findings import findings


def planted_clip(**changes):
    fields = {
        "number": 3, "seed": 0, "action": "wave", "body_pixels": 60, "most_people": 3, "light": "day", "plate": None,
        "pans": False, "size": 128, "frames": 2, "fps": 5.0,
    }  # fmt: skip
    return plant(Design(**{**fields, **changes}))


@pytest.mark.parametrize("body_pixels", [32, 60, 96])
def test_people_have_the_designed_height(body_pixels):
    planted = planted_clip(body_pixels=body_pixels, most_people=1, action="walk")
    heights = [np.ptp(np.flatnonzero(own_PP.any(1))) + 1 for own_PP in planted.people_NTPP[0]]
    assert max(heights) == pytest.approx(body_pixels, rel=0.25)


def test_outside_people_and_shadows_the_frame_is_the_empty_scene():
    planted = planted_clip()
    people_TPP = planted.people_NTPP.any(0)
    assert len(planted.people_NTPP) > 1 and (planted.people_NTPP.sum(0) <= 4).all()
    differs_TPP = (planted.frames_TPP3 != planted.empty_TPP3).any(-1)
    assert differs_TPP[people_TPP].mean() > 0.95
    brighter = planted.frames_TPP3.astype(int) > planted.empty_TPP3.astype(int) + 1
    assert not brighter.any(-1)[~people_TPP].any(), "outside people there is only shadow"


def test_a_design_decides_the_clip_and_noise_is_that_of_the_empty_scene():
    planted, again = (planted_clip(light="dim") for _ in range(2))
    assert (planted.frames_TPP3 == again.frames_TPP3).all() and (planted.people_NTPP == again.people_NTPP).all()
    far = ~cv2.dilate(planted.people_NTPP.any((0, 1)).astype(np.uint8), np.ones((61, 61))).astype(bool)
    assert far.any() and (planted.frames_TPP3 == planted.empty_TPP3)[:, far].mean() > 0.99
    assert planted.frames_TPP3.mean() < 0.6 * planted_clip().frames_TPP3.mean()


def test_plates_replace_the_place_and_pan(tmp_path):
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 255, (40, 50, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "plate.png"), picture)
    (plate,) = list_plates(tmp_path)
    still, pans = (planted_clip(plate=plate, pans=moves, most_people=1) for moves in (False, True))
    assert not still.moving and (still.empty_TPP3[0] == still.empty_TPP3[1])[:40].all()
    assert pans.moving and not (pans.empty_TPP3[0] == pans.empty_TPP3[1])[:40].all()
    with pytest.raises(InputError, match="nothing"):
        list_plates(tmp_path / "nothing")


def test_heights_take_turns_in_designs():
    def design_of(number):
        return design(number, seed=1, size=256, frames=6, long_frames=24, fps=5.0, plates=())

    every = [design_of(n) for n in range(128)]
    long = [one for one in every if one.frames == 24]
    assert len(long) == 128 // LONG_EVERY and not any(one.pans for one in long)
    assert {one.body_pixels for one in every} == set(HEIGHTS) and {one.body_pixels for one in long} == set(HEIGHTS)
    assert {one.light for one in every} == {"day", "dim"} and max(one.most_people for one in every) == 8
    assert every[5] == design_of(5)


# -------------------------------------------------------------------------------------------------------------- control


class Witness:
    """Stands in for the inspector and keeps the frames it is shown."""

    def __init__(self):
        self.shown = []

    def inspect(self, pair, sha256):
        return replace(findings(), detectors={}, outside_db=50.0, looked_at=[0, 3])

    def best_scores(self, frames):
        self.shown.append(np.stack(frames).astype(int))
        return {}


def test_the_control_shows_neither_found_nor_missed_people(stand_ins, tmp_path):
    """The stand-in detects a red block and misses the rendered people, who stay in the cleaned clip."""
    planted = planted_clip(size=128, frames=4)
    planted.frames_TPP3[:, 40:80, 20:40] = RED
    witness = Witness()
    trial = measure(planted, Pipeline(Settings(**stand_ins), tmp_path), witness, tmp_path)
    place, control = witness.shown
    assert len(place) == len(control) == 2 and (place == planted.empty_TPP3[[0, 3]]).all()
    changed = np.abs(control - place)
    hidden = np.zeros((128, 128), bool)
    hidden[40:80, 20:40] = True
    elsewhere = changed[:, :, 50:].mean()  # far from the mask: encoding only
    assert elsewhere < 4 and changed[:, hidden].mean() > 1.5 * elsewhere, "painted where the mask is"
    people = planted.people_NTPP.any(0)[[0, 3]] & ~hidden
    assert people.sum() > 100 and changed[people].mean() < 5
    assert np.abs(planted.frames_TPP3[[0, 3]].astype(int) - place)[people].mean() > 20
    assert not ((control[..., 0] > 180) & (control[..., 1] < 90)).any() and trial.people == len(planted.people_NTPP)


# --------------------------------------------------------------------------------------------------------------- report


def sighting(person, height, pixels, hidden, found, back=False):
    seen = {"nanodet": True, "centernet": found, "blazeface": False}
    return Sighting(
        person=person, frame=0, height=height, pixels=pixels, hidden=hidden, found=found, audited=seen,
        left=dict.fromkeys(seen, False), back=back,
    )  # fmt: skip


def made_trial(number, sights, **changes):
    fields = {
        "design": {"number": number, "light": "day", "plate": None}, "moving": False, "people": 2, "sights": sights,
        "outside_db": 44.0, "seen_db": 30.0, "seen_pixels": 100, "alarms": {"nanodet": [0.1], "centernet": [0.9], "blazeface": [0.0]},
        "control": {"nanodet": [0.9], "centernet": [0.9], "blazeface": [0.0]},
        "findings": findings(name=f"c/{number}"),
    }  # fmt: skip
    return Trial(**{**fields, **changes})


@pytest.fixture
def summary():
    first = made_trial(0, [sighting(0, 100, 1000, 1000, True), sighting(1, 60, 500, 0, False)])
    second = made_trial(1, [sighting(0, 30, 100, 50, True)], outside_db=39.0, seen_db=None, moving=True, people=5)
    return summarize([first, second])


def test_recall_is_of_found_people_and_of_all_people(summary):
    assert summary["tall and found"]["recall"] == 1.0 and summary["tall and found"]["people"] == 1
    assert summary["tall"]["recall"] == pytest.approx(2 / 3) and summary["tall"]["found"] == 0.5
    assert summary["all"]["recall"] == pytest.approx(1050 / 1600)
    assert summary["heights"]["16 to 31"]["recall"] == 0.5 and "128 up" not in summary["heights"]


def test_people_are_counted_once_and_removed_only_if_hidden_in_every_frame_and_not_painted_back():
    whole, part, back = (
        sighting(0, 60, 100, 96, True),
        sighting(1, 60, 100, 94, True),
        sighting(2, 60, 100, 100, True, True),
    )
    again = [replace(one, frame=1, hidden=100, back=False) for one in (whole, part, back)]
    rows = summarize([made_trial(0, [whole, part, back, *again]), made_trial(1, [sighting(0, 30, 9, 9, False)])])[
        "people"
    ]
    assert rows.keys() == {"48 up", "16 to 31", "48 to 63"} and rows["48 up"] == rows["48 to 63"]
    tall, low = rows["48 up"], rows["16 to 31"]
    assert (tall["people"], tall["removed"], tall["shown"], tall["back"]) == (3, 1, 1, 1)
    assert low["share"] == low["high"] == 1.0 and low["low"] == pytest.approx(0.05)


def test_a_person_who_is_painted_back_is_told_from_a_background_that_returns():
    planted = planted_clip(frames=1, most_people=1)
    hidden_PP = planted.people_NTPP[0, 0]
    assert hidden_PP.sum() > 100
    assert trials._painted_back(planted, 0, hidden_PP, planted.frames_TPP3[0])
    assert not trials._painted_back(planted, 0, hidden_PP, planted.empty_TPP3[0])
    assert not trials._painted_back(
        replace(planted, frames_TPP3=planted.empty_TPP3), 0, hidden_PP, planted.empty_TPP3[0]
    )


def test_pixels_controls_and_residuals(summary):
    pixels, residual = summary["pixels"], summary["residual"]
    assert pixels["outside_worst_db"] == 39.0 and pixels["outside_below"] == 1
    assert pixels["seen_db"] == pytest.approx(30.0) and pixels["seen_clips"] == 1
    hits = {which: {name: row[which]["hits"] for name, row in residual.items()} for which in ("empty", "control")}
    assert hits["empty"] == {"nanodet": 0, "centernet": 2, "blazeface": 0, "any": 2}
    assert hits["control"] == {"nanodet": 2, "centernet": 2, "blazeface": 0, "any": 2}
    assert residual["nanodet"]["highest alarm"] == 0.9 and residual["any"]["highest alarm"] is None
    share, low, high = residual["nanodet"]["beyond control"]
    assert share == low == high == residual["nanodet"]["after"] - 2 / summary["frames"]
    assert residual["any"]["after"] == 0.0 and residual["any"]["upper"] == pytest.approx(1 - 0.05**0.5)


def test_the_page_names_reached_and_missed_goals(summary):
    page = markdown(summary, {"frames": 6})
    assert "**missed**: outside the mask 39.0 dB" in page and "**reached**: 100.0 % of the pixels" in page
    assert "66.7 %" in page and "10.0 % of frames" in page and plot(summary).axes
    rows = [line.count("|") for line in page.splitlines() if line.startswith("|")]
    assert rows and all(count in (8, 9, 10) for count in rows), "every row of a table has the cells of its head"


def test_a_page_without_detected_people_has_no_tables_of_them(summary):
    page = markdown({**summary, "kinds": {kind: {} for kind in summary["kinds"]}}, {"frames": 6})
    assert "| camera" not in page and "| visible height" in page


# -------------------------------------------------------------------------------------------------------------- command


def run(out, *flags):
    return ppma(["plant", "--out", str(out), *map(str, flags)])


SMALL = ("--clips", 6, "--size", 128, "--frames", 2, "--looked-at", 1, "--workers", 1, "--seed", 5)


def test_six_planted_clips(audit_weights, tmp_path, monkeypatch, capsys):
    assert run(tmp_path / "out", *SMALL) == 0
    summary = json.loads((tmp_path / "out" / "report.json").read_text())
    assert summary["clips"] == 6 and summary["frames"] == 6
    assert summary["tall and found"]["recall"] >= RECALL and summary["tall"]["people"] >= 3
    assert not summary["pixels"]["outside_below"] and summary["residual"]["nanodet"]["before"] > 0.4
    for trial in (tmp_path / "out" / "trials").iterdir():
        checks = json.loads(trial.read_text())["findings"]["checks"]
        assert checks["same outside, before encoding"]["held"] is True and checks["every frame"]["held"] is True
    page = (tmp_path / "out" / "report.md").read_text()
    assert "in at most" in page and (tmp_path / "out" / "report.svg").read_text().endswith("</svg>\n")
    monkeypatch.setattr(trials, "plant", lambda *_: pytest.fail("a finished clip was rendered again"))
    assert run(tmp_path / "out", *SMALL) == 0
    assert run(tmp_path / "out", *SMALL, "--fps", 6) == 2
    assert "fps 5.0, not 6.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--clips 0", "--clips is 0"),
        ("--size 129", "--size"),
        ("--auditors nanodet blazeface", "--auditors"),
        ("--plates nowhere", "nowhere"),
        ("--weights nowhere", "ppma privacy fetch"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(tmp_path, capsys, request, flags, named):
    if flags.startswith("--plates"):  # checked after the weights
        request.getfixturevalue("audit_weights")
    assert run(tmp_path / "out", *flags.split()) == 2
    message = capsys.readouterr().err
    assert named in message and message.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_two_hundred_planted_clips(audit_weights):
    """Takes about 16 s of one core per clip. $PPMA_PLANTED: folder of the trials; $PPMA_PLATES: folder of plates."""
    out = Path(os.environ.get("PPMA_PLANTED", audit_weights.parent / "planted"))
    plates = ("--plates", os.environ["PPMA_PLATES"]) if "PPMA_PLATES" in os.environ else ()
    assert run(out, "--clips", 200, "--frames", 6, *plates) == 0
    summary = json.loads((out / "report.json").read_text())
    assert summary["clips"] >= 200 and not summary["pixels"]["outside_below"]
    assert summary["tall and found"]["recall"] >= RECALL
    assert summary["pixels"]["seen_db"] >= SEEN_DB
    assert summary["residual"]["any"]["after"] <= RESIDUAL
