"""Shadows and reflections: a drawn person with a known shadow, with still and moving camera, and what must stay."""

import json

import cv2
import numpy as np
import pytest
from privacy_stand_ins import RED, RedFinder

from ppma.cli import main as ppma
from ppma.common.video import video_writer
from ppma.loaders.decode.fetch import all_frames
from ppma.privacy.removal import clip, effects, plugins
from ppma.privacy.removal.clip import ClipSource, Pipeline, Settings
from ppma.privacy.removal.command import FramesInMemory
from ppma.privacy.removal.masks import hidden
from ppma.privacy.removal.writing import X264

SIZE = 192, 256
BODY = 56
"""Height of the drawn person, whose shadow is as long."""


def place_of(width):
    rng = np.random.default_rng(0)
    return np.kron(rng.integers(60, 150, (SIZE[0] // 4, width // 4, 3)), np.ones((4, 4, 1))).astype(np.float32)


def cast(left, depth, *, kind="shadow"):
    """Return ratio_HW1 and levels_HWC of what the person at `left` casts: a soft sheared shape, or a mirror image."""
    shape_HW = np.zeros(SIZE, np.float32)
    foot = 100 + BODY
    if kind == "shadow":
        corners = np.array([[left, foot], [left + 14, foot], [left + 54, foot - 26], [left + 42, foot - 30]])
        cv2.fillConvexPoly(shape_HW, corners.astype(np.int32), 1.0)
        return 1 - depth * cv2.GaussianBlur(shape_HW, (0, 0), 2.5)[..., None]
    shape_HW[foot : foot + 30, left : left + 16] = 1
    return shape_HW[..., None]


def write_cast(path, *, depth=0.4, kind="shadow", length=30, pans=0, stands=False):
    """Write a clip of a red person who casts a shadow; return source, where that is (T, H, W), and where the person is."""
    wide = SIZE[1] + pans * length
    place, shadows, people = place_of(wide + -wide % 4), [], []
    rng = np.random.default_rng(1)
    with video_writer(path, fps=10.0, options=X264) as add_frame:
        for t in range(length):
            left = 90 if stands else 4 + round(t * (SIZE[1] - 80) / length)
            frame_HWC = place[:, pans * t : pans * t + SIZE[1]].copy()
            ratio_HW1 = cast(left, depth, kind=kind)
            if kind == "shadow":
                shadows.append(ratio_HW1[..., 0] < 0.95)
                frame_HWC *= ratio_HW1
            else:
                shadows.append(ratio_HW1[..., 0] > 0.5)
                frame_HWC += 0.5 * ratio_HW1 * (np.array([60, 180, 220]) - frame_HWC)
            frame_HWC[100 : 100 + BODY, left : left + 16] = RED
            people.append((frame_HWC == RED).all(-1))
            add_frame((frame_HWC + rng.normal(0, 2, frame_HWC.shape)).clip(0, 255).astype(np.uint8))
    source = ClipSource(path=path, fps=10.0)
    return source, np.stack(shadows), np.stack(people)


def masks_of(source, folder, stand_ins, **settings):
    with Pipeline(Settings(**stand_ins, **settings), folder).plan(source, folder) as plan:
        return np.stack([hidden(plan.spool, t) for t in range(len(plan.spool))]), plan.effects


@pytest.fixture
def red(stand_ins):
    """Settings of stand-ins that detect the person without faces."""
    return {**stand_ins, "detectors": ("red",)}


CASTS = [{"depth": 0.2}, {"depth": 0.6, "pans": 1}, {"kind": "mirror", "pans": 2}]


@pytest.mark.parametrize("drawn", CASTS, ids=str)
def test_what_a_person_casts_is_masked_and_the_place_around_it_is_not(red, tmp_path, drawn):
    source, cast_THW, people_THW = write_cast(tmp_path / "walk.mp4", **drawn)
    without_THW, none = masks_of(source, tmp_path, red)
    with_THW, found = masks_of(source, tmp_path, red, effects=True)
    own_THW, place_THW = cast_THW & ~people_THW, ~cast_THW & ~people_THW & ~without_THW
    assert without_THW[own_THW].mean() < 0.9 and none is None
    assert with_THW[own_THW].mean() > 0.97 and with_THW[place_THW].mean() < 0.025
    assert with_THW[without_THW].all() and found.frames > 20 and found.known_share > 0.85


class Insistent(RedFinder):
    """Detects someone who is not there in every result."""

    def __call__(self, frame_HWC):
        boxes_N5 = super().__call__(frame_HWC)
        return boxes_N5 if len(boxes_N5) else np.array([[10, 10, 20, 40, 0.9]], np.float32)


class Twofold(RedFinder):
    """Detects a person twice, once next to where they are."""

    def __call__(self, frame_HWC):
        boxes_N5 = super().__call__(frame_HWC)
        return np.concatenate([boxes_N5, boxes_N5 + np.array([14, 18, 14, 18, 0], np.float32)])


def test_the_record_of_effects_is_of_the_whole_clip_after_several_rounds(red, tmp_path, monkeypatch):
    other = plugins.Plugin(kind="detector", make=Insistent, license="none", finds="person")
    monkeypatch.setitem(plugins.PLUGINS, "other", other)
    source, _, _ = write_cast(tmp_path / "walk.mp4")
    pipeline = Pipeline(Settings(**red | {"detectors": ("other",)}, effects=True), tmp_path)
    outcome, _ = pipeline.clean(source, tmp_path, "c/v")
    assert outcome.rounds == 3 and outcome.effects.frames > 20 and outcome.effects.known_share > 0.85


def test_without_a_shadow_hardly_anything_is_added(red, tmp_path):
    source, _, _ = write_cast(tmp_path / "walk.mp4", depth=0.0)
    added = masks_of(source, tmp_path, red, effects=True)[0] & ~masks_of(source, tmp_path, red)[0]
    assert added.mean() < 5e-4


def test_behind_who_never_leaves_nothing_is_known_and_nothing_added(red, tmp_path):
    source, _, _ = write_cast(tmp_path / "stand.mp4", stands=True)
    with_THW, found = masks_of(source, tmp_path, red, effects=True)
    assert (with_THW == masks_of(source, tmp_path, red)[0]).all()
    assert found.frames == 0 and found.known_share < 0.25


def test_a_bay_of_the_mask_is_no_shadow(red, tmp_path, monkeypatch):
    """Two boxes of one person give an outline with bays, which are closed together with what is cast, if anything is."""
    twofold = plugins.Plugin(kind="detector", make=Twofold, license="none", finds="person")
    monkeypatch.setitem(plugins.PLUGINS, "other", twofold)
    source, _, _ = write_cast(tmp_path / "stand.mp4", stands=True)
    _, found = masks_of(source, tmp_path, red | {"detectors": ("other",)}, effects=True)
    assert found.frames == 0


def test_light_that_changes_everywhere_is_no_shadow(red, tmp_path):
    """The camera's exposure drops for half of the clip, in steps that the gain explains and in a band that it does not."""
    source, _, _ = write_cast(tmp_path / "walk.mp4", depth=0.0)
    frames_THWC = np.stack([frame for _, frame in all_frames(source.path, 0.0, float("inf"))])
    frames_THWC[:10] = frames_THWC[:10] * np.where(np.arange(SIZE[1]) < 150, 0.7, 1.0)[:, None]
    dark = FramesInMemory(frames_THWC=frames_THWC, fps=10.0)
    added = masks_of(dark, tmp_path, red, effects=True)[0] & ~masks_of(dark, tmp_path, red)[0]
    assert added.mean() < 5e-4


def test_the_command_paints_the_shadow_over_and_records_the_option(red, tmp_path, monkeypatch):
    source, cast_THW, people_THW = write_cast(tmp_path / "walk.mp4")
    own_THW = cast_THW & ~cv2.dilate(people_THW.max(0).astype(np.uint8), np.ones((9, 9))).astype(bool)
    words = ["remove-humans", str(source.path), "--detectors", "red", "--segmenter", "nothing", "--workers", "1"]
    shown, records = {}, {}
    for out, more in (("with", ["--effects"]), ("without", [])):
        monkeypatch.setattr(clip, "extend", effects.extend if more else lambda *_, **__: pytest.fail("not asked for"))
        assert ppma([*words, "--out", str(tmp_path / out), *more]) == 0
        (inp,) = (tmp_path / out / "inp").rglob("*.mp4")
        shown[out] = np.stack([frame for _, frame in all_frames(inp, 0.0, float("inf"))])
        (record,) = (json.loads(file.read_text()) for file in (tmp_path / out / "records").rglob("*.json"))
        records[out] = record["settings"]["effects"], (record["outcome"]["effects"] or {}).get("frames")
    assert records == {"with": (True, 30), "without": (False, None)}
    place_HWC = place_of(SIZE[1])
    errors = {out: np.abs(pictures - place_HWC)[own_THW].mean() for out, pictures in shown.items()}
    assert errors["with"] < errors["without"] / 2


@pytest.mark.parametrize("flags", [("--method", "blur-bodies"), ("--set", "paper", "--inpainter", "median")])
def test_the_option_needs_painting_and_a_detector(tmp_path, capsys, flags):
    assert ppma(["remove-humans", str(tmp_path), "--out", str(tmp_path / "out"), "--effects", *flags]) == 2
    assert "--effects" in capsys.readouterr().err and not (tmp_path / "out").exists()
