"""Frames between two detected ones take their boxes only if nothing happens between: no one is lost for speed."""

import sys

import numpy as np
import pytest
from privacy_stand_ins import RED, RedFinder

from ppma.common.video import video_writer
from ppma.loaders.decode.fetch import all_frames
from ppma.privacy.detectors.boxes import NONE_05
from ppma.privacy.removal import steady as steady_frames
from ppma.privacy.removal.clip import ClipSource, Pipeline, Settings
from ppma.privacy.removal.steady import GPU_GROUPS, STEP, between, search
from ppma.privacy.removal.writing import X264

BODY = (30, 20, 46, 80)
REACH = {"body": (0.2, 0.15, 0.2, 0.15), "face": (1.5, 0.8, 1.5, 6.0)}
LENGTH = 4 * STEP + 1


def boxes(*corners, dx=0.0):
    return np.array([[x0 + dx, y0, x1 + dx, y1, 0.9] for x0, y0, x1, y1 in corners], np.float32).reshape(-1, 5)


def views(*, spot=None):
    """Views of STEP + 1 noisy frames; `spot`: (frame, x, y, size) of what is brighter."""
    rng = np.random.default_rng(0)
    frames = np.kron(rng.integers(40, 160, (24, 32)), np.ones((4, 4))) + rng.normal(0, 2, (STEP + 1, 96, 128))
    if spot:
        t, x, y, size = spot
        frames[t, y : y + size, x : x + size] += 60
    return list(frames.clip(0, 255).astype(np.uint8))


def steady(first, last, **seen):
    found = [{"body": NONE_05, "face": NONE_05, **one} for one in (first, last)]
    return between(*found, views(**seen), 1.0, REACH)


def test_boxes_between_two_that_agree_follow_the_motion_and_are_a_little_larger():
    found = steady({"body": boxes(BODY)}, {"body": boxes(BODY, dx=4)})
    assert len(found) == STEP - 1
    for t, at in enumerate(found, 1):
        x0, y0, x1, y1, _ = at["body"][0]
        x = 4 * t / STEP
        assert len(at["body"]) == 1 and not len(at["face"])
        assert 28 < x0 - x < 30 and 46 < x1 - x < 48 and 15 < y0 < 20 and 80 < y1 < 85


@pytest.mark.parametrize(
    ("first", "last"),
    [
        ({}, {"body": boxes(BODY)}),  # enters
        ({"body": boxes(BODY)}, {}),  # is lost
        ({"body": boxes(BODY)}, {"body": boxes(BODY, (80, 20, 96, 80))}),  # another one enters
        ({"body": boxes(BODY)}, {"body": boxes(BODY, dx=12)}),  # moves fast
        ({"body": boxes(BODY)}, {"body": boxes((30, 20, 38, 50))}),  # looks smaller
        ({"body": boxes(BODY)}, {"body": boxes(BODY), "face": boxes((100, 20, 108, 30))}),  # a face elsewhere
    ],
)
def test_frames_disagree_about_who_is_there(first, last):
    assert steady(first, last) is None and steady(last, first) is None


def test_a_second_box_of_a_person_is_kept_from_the_frame_that_has_it():
    hand, face = (32, 40, 40, 50), (33, 22, 41, 32)
    found = steady({"body": boxes(BODY, hand)}, {"body": boxes(BODY), "face": boxes(face)})
    assert [(len(at["body"]), len(at["face"])) for at in found] == [(2, 1)] * (STEP - 1)


@pytest.mark.parametrize("t", range(1, STEP + 1))
def test_a_picture_that_changes_outside_people_disagrees(t):
    assert steady({"body": boxes(BODY)}, {"body": boxes(BODY)}, spot=(t, 90, 40, 6)) is None
    assert steady({"body": boxes(BODY)}, {"body": boxes(BODY)}, spot=(t, 34, 40, 6)) is not None, "within a person"
    assert steady({"body": boxes(BODY)}, {"body": boxes(BODY)}, spot=(t, 90, 40, 2)) is not None, "noise"


@pytest.mark.parametrize(("gpu", "batches"), [(False, [1] * 6), (True, [GPU_GROUPS, 2])])
def test_a_gpu_searches_several_frames_at_once(gpu, batches, monkeypatch):
    monkeypatch.setattr(steady_frames, "on_gpu", lambda: gpu)
    sizes = []

    def find(frames):
        sizes.append(len(frames))
        return [{"body": frame} for frame in frames]

    frames = list(np.arange(4 * STEP + 3))
    groups = list(search(iter(frames), find))
    assert [frame for group, _ in groups for frame in group] == frames and sizes == batches
    assert all(found["body"] == group[-1] for group, found in groups) and len(groups[0][0]) == 1
    assert list(search(iter(()), find)) == []


def test_frames_are_searched_without_onnx_runtime(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert len(list(search(iter(range(STEP + 1)), lambda frames: [{} for _ in frames]))) == 2


def cleaned(folder, stand_ins, people):
    """Clean a clip with a red person at people(t) = x or None; return the pictures and the frames that were searched."""
    searched = []

    class Finder(RedFinder):
        def __call__(self, frame_HWC):
            searched.append(frame_HWC)
            return super().__call__(frame_HWC)

    place_HWC = np.kron(np.random.default_rng(0).integers(40, 160, (24, 32, 1)), np.ones((4, 4, 3))).astype(np.uint8)
    with video_writer(folder / "clip.mp4", fps=10.0, options=X264) as add_frame:
        for t in range(LENGTH):
            frame_HWC = place_HWC + np.uint8(t)  # no two frames are the same
            if (x := people(t)) is not None:
                frame_HWC[30:80, x : x + 16] = RED
            add_frame(frame_HWC)
    source = ClipSource(path=folder / "clip.mp4", fps=10.0)
    pipeline = Pipeline(Settings(**stand_ins), folder)
    pipeline._detectors = {"red": Finder()}
    outcome, paths = pipeline.clean(source, folder, "c/v")
    pictures = [[frame for _, frame in all_frames(path, 0.0, float("inf"))] for path in (source.path, paths["inp"])]
    first_pass = {t for t, frame in enumerate(pictures[0]) if any(np.array_equal(frame, one) for one in searched)}
    return outcome, np.stack(pictures[1]), first_pass


def is_red(pictures):
    return (pictures[..., 0] > 150) & (pictures[..., 1] < 90)


@pytest.mark.parametrize("speed", [0, 1])
def test_who_stands_or_walks_steadily_is_hidden_in_frames_that_are_not_searched(stand_ins, tmp_path, speed):
    outcome, after, searched = cleaned(tmp_path, stand_ins, lambda t: 40 + speed * t)
    assert searched == set(range(0, LENGTH, STEP)) and not is_red(after).any()
    assert outcome.boxes["red"] == LENGTH


def test_who_is_there_for_one_frame_between_two_searched_ones_is_found(stand_ins, tmp_path):
    _, after, searched = cleaned(tmp_path, stand_ins, lambda t: 40 if t == STEP + 2 else None)
    assert set(range(STEP, 2 * STEP + 1)) <= searched and not is_red(after).any()


def test_who_enters_and_leaves_is_hidden_from_the_first_frame_to_the_last(stand_ins, tmp_path):
    _, after, searched = cleaned(tmp_path, stand_ins, lambda t: 40 if STEP < t < 3 * STEP - 1 else None)
    assert {STEP + 1, 3 * STEP - 2} <= searched and not is_red(after).any()
    assert len(searched) < LENGTH
