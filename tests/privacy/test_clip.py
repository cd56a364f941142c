"""One clip: masks are generous, what is detected is gone, all else is unchanged; and rendered people through the real models."""

import contextlib

import numpy as np
import pytest
from privacy_stand_ins import RED, RedFinder, write_stand, write_walk

from ppma.common.video import video_writer
from ppma.config.errors import BadClip
from ppma.loaders.decode.fetch import all_frames
from ppma.privacy.detectors.boxes import NONE_05
from ppma.privacy.removal import clip, plugins, steady
from ppma.privacy.removal.blur import blurred, downsampled
from ppma.privacy.removal.clip import ClipSource, Pipeline, Settings
from ppma.privacy.removal.masks import Spool, dilation_pixels, hidden, limbs, published_mask, raw_mask
from ppma.privacy.removal.writing import X264
from ppma.synthetic.clip import ClipSpec, render, sample_clip

# ------------------------------------------------------------------------------------------------------------------- masks

FRAME = np.zeros((60, 80, 3), np.uint8)
BOX = np.array([[30, 10, 50, 50, 0.9]], np.float32)


class Constant:
    """A segmenter that returns one probability everywhere; with `around` in boxes only."""

    def __init__(self, probability, *, around=False):
        self.probability, self.around, self.calls = probability, around, 0

    def __call__(self, frame_HWC):
        self.calls += 1
        likely = 0.0 if self.around and frame_HWC.shape == FRAME.shape else self.probability
        return np.full(frame_HWC.shape[:2], likely, np.float32)


def spooled(folder, masks):
    spool = Spool(folder)
    for mask_HW in masks:
        spool.append(mask_HW)
    return contextlib.closing(spool)


def test_without_boxes_only_a_segmenter_of_whole_frames_masks():
    assert not raw_mask(FRAME, NONE_05, NONE_05, Constant(1.0), "cuts").any()
    segment = Constant(1.0)
    assert raw_mask(FRAME, NONE_05, NONE_05, segment, "frames").all() and segment.calls == 1
    raw_mask(FRAME, BOX, BOX, segment, "frames")
    assert segment.calls == 2, "once a frame, not once a box"


def test_a_box_is_masked_and_the_segmenter_adds_what_is_near():
    mask_HW = raw_mask(FRAME, BOX, NONE_05, Constant(0.0), "cuts")
    assert mask_HW[10:51, 40].all() and mask_HW[30, 30:50].all() and not mask_HW[:, :25].any()
    mask_HW = raw_mask(FRAME, BOX, NONE_05, Constant(1.0, around=True), "cuts")
    assert mask_HW[4:56, 26:54].all() and not mask_HW[:, :26].any() and not mask_HW[:, 56:].any()


def test_without_a_segmenter_faces_mask_heads_only():
    face = np.array([[38, 20, 46, 30, 0.9]], np.float32)
    mask_HW = raw_mask(FRAME, BOX, face, None, "cuts")
    assert mask_HW[20:30, 38:46].all() and not mask_HW[40:].any()


def test_boxes_may_leave_the_frame():
    boxes = np.array([[-20, -20, 5, 5, 0.9], [78, 58, 200, 200, 0.9], [300, 300, 310, 310, 0.9]], np.float32)
    assert raw_mask(FRAME, boxes, boxes, Constant(1.0), "cuts").shape == (60, 80)


def test_the_published_mask_is_thresholded_at_a_half_and_dilated_by_four_pixels(tmp_path):
    mask_HW = published_mask(FRAME, Constant(0.5))
    assert not mask_HW.any() and published_mask(FRAME, Constant(0.51)).all()
    mask_HW[30, 40] = 1
    with spooled(tmp_path, [mask_HW, np.zeros_like(mask_HW)]) as spool:
        assert spool.filled == 1 and not hidden(spool, 1, masks="published").any()
        rows, columns = np.where(hidden(spool, 0, masks="published"))
    diamond = {(30 + y, 40 + x) for y in range(-4, 5) for x in range(-4, 5) if abs(x) + abs(y) <= 4}
    assert set(zip(rows, columns)) == diamond


def test_a_frame_that_is_mostly_hidden_is_hidden_completely(tmp_path):
    masks = np.zeros((2, 40, 40), np.uint8)
    masks[0, :30] = masks[1, :36] = 1
    with spooled(tmp_path, masks) as spool:
        assert not hidden(spool, 0, around=0).all() and hidden(spool, 1, around=0).all()


def test_the_spool_returns_masks_in_any_order(tmp_path):
    masks = np.random.default_rng(0).integers(0, 2, (6, 13, 17), dtype=np.uint8)
    with spooled(tmp_path, masks) as spool:
        assert len(spool) == 6 and all((spool.read(t) == masks[t]).all() for t in (5, 0, 3, 3, 1))
        assert not list(tmp_path.iterdir()), "it has no name that a kill could leave behind"


def test_a_hole_within_a_mask_is_hidden_and_a_bay_is_not(tmp_path):
    masks = np.zeros((1, 60, 80), np.uint8)
    masks[0, 10:50, 10:40] = masks[0, 10:50, 50:70] = 1
    masks[0, 22:38, 17:33] = masks[0, 22:38, 50:62] = 0  # the first is enclosed
    with spooled(tmp_path, masks) as spool:
        hidden_HW = hidden(spool, 0)
        assert hidden_HW[10:50, 10:40].all() and not hidden_HW[26:34, 50:58].any()
        assert not hidden(spool, 0, masks="published")[30, 25]


def test_hidden_pixels_join_neighboring_frames_and_are_dilated(tmp_path):
    masks = np.zeros((11, 40, 40), np.uint8)
    masks[5, 20, 20] = 1
    radius = dilation_pixels(40, 40)
    with spooled(tmp_path, masks) as spool:
        for t in range(11):
            hidden_HW = hidden(spool, t)
            assert hidden_HW[20, 20 - radius] == (3 <= t <= 7) and not hidden_HW[20, 20 - radius - 1]


# -------------------------------------------------------------------------------------------------------------------- clips


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """A clip in which a red block moves across a textured background; returns (source, background)."""
    folder = tmp_path_factory.mktemp("walk")
    place = write_walk(folder / "walk.mp4")
    return ClipSource(path=folder / "walk.mp4", fps=10.0), place


def frames(path):
    return np.stack([frame for _, frame in all_frames(path, 0.0, float("inf"))])


@pytest.fixture
def every_frame(monkeypatch):
    """Search every frame, so that calls of the stand-ins have the numbers of frames."""
    for module in (clip, steady):
        monkeypatch.setattr(module, "STEP", 1)


def clean(walk, folder, **settings):
    return Pipeline(Settings(**settings), folder).clean(walk[0], folder, "c/v")


def test_detected_people_are_gone_and_the_background_is_back(stand_ins, walk, tmp_path):
    outcome, paths = clean(walk, tmp_path, **stand_ins)
    after, inside = frames(paths["inp"]), frames(paths["seg"])[..., 0] > 127
    assert outcome.frames == outcome.frames_with_people == 24 and outcome.boxes == {"red": 24, "red-face": 24}
    assert outcome.seen_share > 0.99 and outcome.shots == 1
    error = (after.astype(float) - walk[1]) ** 2
    assert 10 * np.log10(255**2 / error[inside].mean()) > 30
    before = frames(walk[0].path).astype(float)
    assert 10 * np.log10(255**2 / ((after - before)[~inside] ** 2).mean()) > 40
    assert not is_red(after).any()


def test_outside_the_mask_nothing_changes_before_encoding(stand_ins, walk, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(clip, "part_writer", lambda *_: contextlib.nullcontext(seen.append))
    clean(walk, tmp_path, **stand_ins)
    for picture, inside, before in zip(seen[::2], seen[1::2], frames(walk[0].path), strict=True):
        assert (picture[~inside] == before[~inside]).all()


@pytest.mark.parametrize("blinks", [(7,), (7, 8, 9, 10)])
def test_frames_that_a_detector_misses_are_cleaned_too(every_frame, stand_ins, walk, tmp_path, monkeypatch, blinks):
    monkeypatch.setattr(RedFinder, "blinks", blinks)
    _, paths = clean(walk, tmp_path, **stand_ins)
    after = frames(paths["inp"])
    assert not is_red(after).any()


def is_red(pictures):
    return (pictures[..., 0] > 150) & (pictures[..., 1] < 90)


@pytest.mark.parametrize("blinks", [range(4, 34), range(34), range(4, 38)])
def test_who_stands_still_is_hidden_in_every_frame_though_a_detector_loses_them_for_seconds(
    every_frame, stand_ins, tmp_path, monkeypatch, blinks
):
    """Neither shown where the detector misses them, nor painted back elsewhere from those frames."""
    monkeypatch.setattr(RedFinder, "blinks", blinks)
    write_stand(tmp_path / "stand.mp4")
    source = ClipSource(path=tmp_path / "stand.mp4", fps=10.0)
    outcome, paths = Pipeline(Settings(**stand_ins), tmp_path).clean(source, tmp_path, "c/v")
    assert not is_red(frames(paths["inp"])).any() and outcome.boxes["red"] == 38


def test_who_leaves_is_not_kept(every_frame, stand_ins, tmp_path, monkeypatch):
    monkeypatch.setattr(RedFinder, "blinks", range(10, 20))
    write_stand(tmp_path / "stand.mp4", length=40, leaves=20)
    source = ClipSource(path=tmp_path / "stand.mp4", fps=10.0)
    _, paths = Pipeline(Settings(**stand_ins), tmp_path).clean(source, tmp_path, "c/v")
    inside = frames(paths["seg"])[..., 0] > 127
    assert inside[:20, 50, 58].all() and not inside[26:].any() and not is_red(frames(paths["inp"])).any()


@pytest.mark.parametrize("blinks", [(3, 4), (5, 6)])
def test_a_person_whom_a_detector_loses_in_a_fast_pan_is_masked_where_the_camera_has_moved_them(
    every_frame, stand_ins, tmp_path, monkeypatch, blinks
):
    """The boxes of two frames do not overlap, and the blur leaves nothing to follow."""
    monkeypatch.setattr(RedFinder, "blinks", blinks)
    place_HWC = np.kron(np.random.default_rng(0).integers(40, 160, (24, 120, 1)), np.ones((4, 4, 3))).astype(np.uint8)
    with video_writer(tmp_path / "pan.mp4", fps=10.0, options=X264) as add_frame:
        for t in range(7):
            frame_HWC = np.mean([place_HWC[:, 30 * t + by : 30 * t + by + 256] for by in range(0, 30, 6)], 0)
            frame_HWC[30:80, 210 - 30 * t : 226 - 30 * t] = RED
            add_frame(frame_HWC.astype(np.uint8))
    source = ClipSource(path=tmp_path / "pan.mp4", fps=10.0)
    with Pipeline(Settings(**stand_ins), tmp_path).plan(source, tmp_path) as plan:
        for t in range(7):
            mask_HW = plan.spool.read(t)
            assert mask_HW[40:70, 214 - 30 * t : 222 - 30 * t].all() and mask_HW.mean() < 0.5, t


def write_limb(path, *, pans=0):
    """Write a clip of a red person with an arm that moves up fast; the camera moves by `pans` pixels a frame."""
    place_HWC = np.kron(np.random.default_rng(0).integers(40, 160, (24, 48, 1)), np.ones((4, 4, 3))).astype(np.uint8)
    with video_writer(path, fps=10.0, options=X264) as add_frame:
        for t in range(6):
            frame_HWC = place_HWC[:, pans * t : pans * t + 128].copy()
            left = 50 - pans * t
            frame_HWC[30:80, left : left + 16] = RED
            frame_HWC[70 - 12 * t : 80 - 12 * t, left + 16 : left + 34] = 230
            add_frame(frame_HWC)


@pytest.mark.parametrize("pans", [0, 3])
def test_a_limb_in_fast_motion_that_reaches_out_of_the_mask_is_masked_too(stand_ins, tmp_path, pans):
    write_limb(tmp_path / "limb.mp4", pans=pans)
    source = ClipSource(path=tmp_path / "limb.mp4", fps=10.0)
    settings = Settings(**stand_ins)
    with Pipeline(settings, tmp_path).plan(source, tmp_path) as plan:
        for t in range(6):
            left, top = 66 - pans * t, 70 - 12 * t
            mask_HW = plan.spool.read(t)
            assert mask_HW[top : top + 10, left : left + 16].all() and mask_HW.mean() < 0.25


def test_what_moves_apart_from_a_person_or_is_larger_is_no_limb():
    mask_HW, still_hw, moved_hw = np.zeros((3, 96, 128), np.uint8)
    mask_HW[30:80, 50:66] = 1
    moved_hw[30:40, 90:100] = 200  # apart
    assert not limbs(mask_HW, still_hw, moved_hw, still_hw).any()
    moved_hw[30:80, 66:96] = 200  # larger
    assert not limbs(mask_HW, still_hw, moved_hw, still_hw).any()


class PaintsBack:
    """An inpainter that leaves the person where they are."""

    def __call__(self, frame_HWC, hidden_HW, *_):
        return frame_HWC.copy(), np.zeros_like(hidden_HW)


def test_whom_an_inpainter_paints_back_is_hidden_flat(stand_ins, walk, tmp_path, monkeypatch):
    plugin = plugins.Plugin(kind="inpainter", make=PaintsBack, license="none")
    monkeypatch.setitem(plugins.PLUGINS, "paints-back", plugin)
    outcome, paths = clean(walk, tmp_path, inpainter="paints-back", **stand_ins)
    assert not is_red(frames(paths["inp"])).any() and outcome.flattened >= 24 and outcome.seen_share == 0


class Ghosts:
    """An inpainter that paints a red person who is not the hidden one."""

    def __call__(self, frame_HWC, hidden_HW, *_):
        picture_HWC = np.where(hidden_HW[..., None], np.uint8(90), frame_HWC)
        picture_HWC[40:60, 53:63] = (200, 60, 60)
        return picture_HWC, np.zeros_like(hidden_HW)


class Shy(RedFinder):
    """Detects someone blue, in nobody else's presence."""

    def __call__(self, frame_HWC):
        boxes_N5 = super().__call__(frame_HWC)
        return boxes_N5 if len(boxes_N5) else super().__call__(frame_HWC[..., ::-1])


class Everywhere(RedFinder):
    """Detects someone in every frame."""

    def __call__(self, frame_HWC):
        return np.array([[20, 20, 40, 60, 0.9]], np.float32)


def looked_at_again(folder, monkeypatch, stand_ins, kind, make, **settings):
    """Clean a clip of someone red, and someone blue beside them, with another detector or inpainter."""
    finds = "person" if kind == "detector" else ""
    monkeypatch.setitem(plugins.PLUGINS, "other", plugins.Plugin(kind=kind, make=make, license="none", finds=finds))
    write_stand(folder / "stand.mp4", length=12, blue=kind == "detector")
    source = ClipSource(path=folder / "stand.mp4", fps=10.0)
    outcome, paths = Pipeline(Settings(**{**stand_ins, **settings}), folder).clean(source, folder, "c/v")
    return outcome, frames(paths["inp"])


def test_a_fill_that_looks_like_a_person_once_is_flat_in_the_whole_shot(every_frame, stand_ins, tmp_path, monkeypatch):
    """A fill that were flat in some frames only would flicker."""
    monkeypatch.setattr(RedFinder, "blinks", (12, 13, 15, 16, 17))  # of the result, it looks at frame 4 only
    stand_ins = {**stand_ins, "detectors": ("red",)}
    outcome, after = looked_at_again(tmp_path, monkeypatch, stand_ins, "inpainter", Ghosts, inpainter="other")
    assert outcome.clean and outcome.rounds == 2 and not is_red(after).any()
    assert outcome.boxes == {"red": 12}, "the fill is not a person to mask"


def test_who_is_detected_only_in_the_result_is_removed_in_the_second_round(stand_ins, tmp_path, monkeypatch):
    outcome, after = looked_at_again(tmp_path, monkeypatch, stand_ins, "detector", Shy, detectors=("other",))
    assert outcome.clean and outcome.rounds == 2 and not is_red(after).any() and not is_red(after[..., ::-1]).any()


def test_a_clip_in_whose_result_people_are_still_detected_is_not_clean(stand_ins, tmp_path, monkeypatch):
    outcome, _ = looked_at_again(tmp_path, monkeypatch, stand_ins, "detector", Everywhere, detectors=("other",))
    assert not outcome.clean and outcome.rounds == 3


def test_only_the_window_of_the_source_is_cleaned(stand_ins, walk, tmp_path):
    source = ClipSource(path=walk[0].path, start_seconds=0.5, end_seconds=1.5, fps=10.0)
    settings = Settings(layout="frames", keep_original=True, **stand_ins)
    outcome, paths = Pipeline(settings, tmp_path).clean(source, tmp_path, "c/v")
    assert outcome.frames == 10 and sorted(paths) == ["inp", "ori", "seg"]
    assert all(len(list(path.iterdir())) == 10 for path in paths.values())


@pytest.mark.parametrize(("method", "whole"), [("blur-faces", False), ("blur-bodies", False), ("downsample", True)])
def test_the_other_methods_change_hidden_pixels(stand_ins, walk, tmp_path, method, whole):
    outcome, paths = clean(walk, tmp_path, method=method, **stand_ins)
    assert outcome.clean is None, "people who are blurred are not searched for"
    before, after = frames(walk[0].path).astype(float), frames(paths["inp"])
    inside = frames(paths["seg"])[..., 0] > 127
    assert np.abs(after - before)[inside].max() > 60 and inside.all() == whole


def test_a_method_loads_only_the_models_it_needs(stand_ins):
    assert Settings(method="blur-faces", **stand_ins).used == ("red-face",)
    assert Settings(method="blur-bodies", **stand_ins).used == ("red", "red-face", "nothing")
    assert Settings(method="downsample", **stand_ins).used == ()


def test_a_source_that_breaks_leaves_no_file(stand_ins, walk, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(walk[0].path.read_bytes()[:900])
    out = tmp_path / "out"
    out.mkdir()
    source = ClipSource(path=broken, fps=10.0)
    with pytest.raises(BadClip):
        Pipeline(Settings(**stand_ins), tmp_path).clean(source, out, "c/v")
    assert not [path for path in out.rglob("*") if path.is_file()]


def test_blurring_changes_hidden_pixels_only():
    rng = np.random.default_rng(0)
    frame, hidden = rng.integers(0, 255, (80, 80, 3), dtype=np.uint8), np.zeros((80, 80), bool)
    hidden[10:30, 10:30] = hidden[50:70, 50:70] = True
    picture = blurred(frame, hidden)
    assert (picture[~hidden] == frame[~hidden]).all()
    assert picture[10:30, 10:30].astype(float).std() < 0.5 * frame[10:30, 10:30].astype(float).std()


def test_downsampling_keeps_the_short_side():
    frame = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    assert downsampled(frame, 96).shape == frame.shape and (downsampled(frame, 96) == frame).all()
    assert len(np.unique(downsampled(frame, 1))) < 30


DRAWN = [("walk", 0), ("run", 0), ("wave", 0), ("squat", 1), ("jumping_jack", 0), ("drink", 0)]
"""Actions and numbers of clips with one rendered person of more than 48 pixels."""
SIZE, LENGTH, FPS = 128, 6, 8.0


class Watched:
    """An inpainter that records which pixels it took from other frames."""

    def __init__(self, inpainter):
        self.inpainter, self.seen = inpainter, []

    def __call__(self, *arguments):
        picture_HWC, seen_HW = self.inpainter(*arguments)
        self.seen.append(seen_HW)
        return picture_HWC, seen_HW


def psnr(errors):
    return 10 * np.log10(255**2 / np.concatenate(errors).mean())


def found(boxes_N5, mask_HW):
    """True if the center of a box is within the bounds of a mask."""
    if not len(boxes_N5):
        return False
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    x, y = (boxes_N5[:, 0] + boxes_N5[:, 2]) / 2, (boxes_N5[:, 1] + boxes_N5[:, 3]) / 2
    return bool(((columns[0] < x) & (x < columns[-1]) & (rows[0] < y) & (y < rows[-1])).any())


def test_rendered_people_are_hidden_and_the_background_is_restored(person_weights, tmp_path, record_property):
    """Recall of pixels and PSNR on six small clips with exact masks and their empty scenes."""
    pipeline, looked = Pipeline(Settings(), person_weights), []

    def find(frames):
        found = Pipeline._find(pipeline, frames)
        looked.extend(np.concatenate(list(boxes.values())) for boxes in found)
        return found

    pipeline._find = find
    hits, outside, inside = [], [], []
    for action, number in DRAWN:
        clip_number = {"class_name": action, "number": number}
        spec = ClipSpec(seed=3, split="train", size=SIZE, frames=LENGTH, fps=FPS, people=1, **clip_number)
        shots = list(render(sample_clip(spec), empty=True))
        path = tmp_path / f"{action}.mp4"
        with video_writer(path, fps=FPS, options=X264) as add_frame:
            for shot in shots:
                add_frame(shot.picture_PP3)
        pipeline._inpainter = watched = Watched(plugins.PLUGINS["median"].load(person_weights))
        source = ClipSource(path=path, fps=FPS)
        looked.clear()
        _, paths = pipeline.clean(source, tmp_path, f"drawn/{action}")
        before, after, hidden = frames(path), frames(paths["inp"]), frames(paths["seg"])[..., 0] > 127
        masks, empty = np.stack([shot.mask_PP for shot in shots]), np.stack([shot.empty_PP3 for shot in shots])
        assert min(np.ptp(np.flatnonzero(mask.any(1))) + 1 for mask in masks) >= 48
        known = any(found(boxes_N5, mask_HW) for boxes_N5 in looked for mask_HW in masks)
        hits.append((known, int((hidden & masks).sum()), int(masks.sum())))
        outside.append(((after.astype(float) - before) ** 2)[~hidden].ravel())
        inside.append(((after.astype(float) - empty) ** 2)[np.stack(watched.seen)].ravel())
    recall = {
        kind: sum(hit for known, hit, _ in hits if known or kind == "all")
        / sum(there for known, _, there in hits if known or kind == "all")
        for kind in ("found", "all")
    }
    record_property("recall", str(recall | {"outside_db": psnr(outside), "inside_db": psnr(inside)}))
    assert sum(known for known, _, _ in hits) >= 5, "too few people are detected"
    assert recall["found"] >= 0.98 and recall["all"] >= 0.95, recall
    assert psnr(outside) > 40
    assert sum(map(len, inside)) > 1000 and psnr(inside) > 24
