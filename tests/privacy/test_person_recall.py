"""The measure of person recall on labeled frames: matching, the choice of points, and the labels themselves."""

import numpy as np
import pytest

from benchmarks import person_recall
from benchmarks.person_recall import Results, Tool
from ppma.config.errors import InputError

TALL, WIDE = [10, 10, 30, 70], [100, 10, 160, 50]


def boxes(*rows):
    return np.array(rows, float).reshape(-1, 5)


def test_a_box_detects_one_person_and_the_best_box_comes_first():
    labels_L4 = np.array([TALL, WIDE], float)
    twice = boxes([*TALL, 0.4], [12, 12, 30, 70, 0.9], [*WIDE, 0.3])
    scores_L, stray = person_recall.match(twice, labels_L4, "person")
    assert scores_L.tolist() == [0.9, 0.3] and stray == 0


def test_a_box_beside_all_labels_is_stray_and_one_that_overlaps_a_little_is_neither():
    labels_L4 = np.array([TALL], float)
    assert person_recall.match(boxes([*WIDE, 0.8]), labels_L4, "person") == (np.zeros(1), 0.8)
    assert person_recall.match(boxes([20, 10, 60, 70, 0.8]), labels_L4, "person") == (np.zeros(1), 0.0)
    assert person_recall.match(boxes([*WIDE, 0.8]), np.zeros((0, 4)), "person")[1] == 0.8


def test_a_face_detects_the_person_who_holds_its_center():
    labels_L4 = np.array([TALL, WIDE], float)
    assert person_recall.match(boxes([15, 12, 22, 20, 0.7]), labels_L4, "face")[0].tolist() == [0.7, 0]


def test_a_point_is_the_lowest_within_the_budget():
    stray_F = np.zeros(100)
    stray_F[:3] = 0.32, 0.52, 0.91
    assert person_recall.choose(stray_F) == 0.55


def test_rows_count_the_reporting_half_and_people_whom_the_remover_missed():
    tools = {f"a {n}": Tool(user=n, finds="person", detect=lambda f: f, point=0.5) for n in ("remover", "auditor")}
    people = {"a remover": np.array([0.9, 0.2, 0.1, 0]), "a auditor": np.array([0, 0.6, 0.1, 0.9])}
    people[person_recall.FOLLOWING] = np.array([0, 0, 0.1, 0])
    stray = {"a remover": np.array([0, 0, 0, 0.9]), "a auditor": np.array([0.7, 0, 0, 0])}
    stray[person_recall.FOLLOWING] = np.array([0, 0.2, 0, 0])
    seen = Results(
        height_P=np.array([60, 60, 20, 60]), report_P=np.array([True, True, True, False]),
        hidden_P=np.array([0.95, 0.5, np.nan, 1]), report_F=np.array([True, True, True, False]),
        labeled_F=np.array([True, False, False, True]), stretch_F=np.array([1, 1, 2, 0]),
        people=people, stray=stray,
    )  # fmt: skip
    measured = {
        row["detector"]: row
        for row in person_recall.measure(seen, tools)
        if row["half"] == "report" and row["points"] == "product"
    }
    assert measured["a remover"]["48+"].startswith("0.50") and measured["a remover"]["48+"].endswith("of 2")
    assert measured["any auditor, missed by remover"]["48+"].startswith("1.00")
    assert measured["any auditor, missed by remover"]["<24"].startswith("0.00")
    followed = measured[f"{person_recall.FOLLOWING}, missed by remover"]
    assert followed["<24"].startswith("1.00") and followed["48+"].startswith("1.00"), (
        "those who are followed count, too"
    )
    assert measured[person_recall.FOLLOWING]["stray_in_empty"].startswith("0.67")
    strays = {name: measured["a auditor"][f"stray_in_{name}"][:4] for name in ("empty", "stretches", "all")}
    assert strays == {"empty": "0.33", "stretches": "0.50", "all": "1.00"}
    assert measured["a remover"]["stray_in_empty"].startswith("0.00")
    assert measured["masks of the remover"]["48+"].startswith("0.50")
    assert measured["any auditor, not under a mask"]["48+"].endswith("of 1")
    assert measured["any remover, where cleaned"]["<24"] == "-"


def test_a_mask_hides_a_person_by_the_share_of_the_core_that_it_covers():
    mask_HW = np.zeros((80, 180), bool)
    mask_HW[:40] = True  # the upper half of TALL
    bits_Hw = np.packbits(mask_HW, axis=1)
    assert person_recall.hidden_share(TALL, bits_Hw, 180) == pytest.approx(0.5, abs=0.05)
    assert person_recall.hidden_share(WIDE, np.packbits(~mask_HW, axis=1), 180) < 0.5
    assert np.isnan(person_recall.hidden_share(TALL, None, 180))


def test_labels_fit_their_frames_and_both_halves_have_people_and_empty_frames():
    clips = person_recall.read_labels()
    frames = [(clip, labels) for clip in clips.values() for labels in clip["frames"].values()]
    assert len(frames) >= 200
    for clip, labels in frames:
        width, height = clip["size"]
        for x0, y0, x1, y1, parts, flags in labels:
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
            assert parts and set(parts) <= set("hbla") and set(flags) <= set("ocrp")
    for clip in clips.values():
        empty = {str(number) for stretch in person_recall.stretches(clip) for number in stretch}
        assert not any(clip["frames"].get(number) for number in empty)
    for half in ("choose", "report"):
        numbers = [len(labels) for clip, labels in frames if clip["half"] == half]
        assert sum(numbers) >= 100 and 0 in numbers


def test_missing_clips_are_named(tmp_path):
    with pytest.raises(InputError, match=r"walk\.avi"):
        person_recall.find_clips(tmp_path, {"00": {"name": "walk.avi"}})
    with pytest.raises(InputError, match="--cleaned"):
        person_recall.read_masks(tmp_path, {"00": tmp_path / "walk.avi"})
