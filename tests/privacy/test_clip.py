"""One clip through stand-ins for the models: what is found is gone, all else is as it was; and drawn people through the real ones."""

import contextlib

import numpy as np
import pytest
from privacy_stand_ins import RedFinder, write_walk

from ppma.common.video import video_writer
from ppma.loaders.decode.fetch import BadClip, all_frames
from ppma.privacy.removal import clip, plugins
from ppma.privacy.removal.clip import ClipSource, Pipeline, Settings, blurred, downsampled
from ppma.privacy.removal.writing import X264
from ppma.synthetic.clip import ClipSpec, render, sample_clip


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """A clip in which a red block walks across a textured place; returns (source, place)."""
    folder = tmp_path_factory.mktemp("walk")
    place = write_walk(folder / "walk.mp4")
    return ClipSource(path=folder / "walk.mp4", start_seconds=0.0, end_seconds=float("inf"), fps=10.0), place


def frames(path):
    return np.stack([frame for _, frame in all_frames(path, 0.0, float("inf"))])


def clean(walk, folder, **settings):
    return Pipeline(Settings(**settings), folder).clean(walk[0], folder, "c/v")


def test_who_is_found_is_gone_and_the_place_is_back(stand_ins, walk, tmp_path):
    outcome, paths = clean(walk, tmp_path, **stand_ins)
    after, hidden = frames(paths["inp"]), frames(paths["seg"])[..., 0] > 127
    assert outcome.frames == outcome.frames_with_people == 24 and outcome.boxes == {"red": 24, "red-face": 24}
    assert outcome.seen_share > 0.99 and outcome.shots == 1
    error = (after.astype(float) - walk[1]) ** 2
    assert 10 * np.log10(255**2 / error[hidden].mean()) > 30
    before = frames(walk[0].path).astype(float)
    assert 10 * np.log10(255**2 / ((after - before)[~hidden] ** 2).mean()) > 40
    assert not ((after[..., 0] > 150) & (after[..., 1] < 90)).any()


def test_outside_the_mask_nothing_changes_before_encoding(stand_ins, walk, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(clip, "part_writer", lambda *_: contextlib.nullcontext(seen.append))
    clean(walk, tmp_path, **stand_ins)
    for picture, hidden, before in zip(seen[::2], seen[1::2], frames(walk[0].path)):
        assert (picture[~hidden] == before[~hidden]).all()


@pytest.mark.parametrize("blinks", [(7,), (7, 8, 9, 10)])
def test_a_detector_that_blinks_leaves_nobody(stand_ins, walk, tmp_path, monkeypatch, blinks):
    monkeypatch.setattr(RedFinder, "blinks", blinks)
    _, paths = clean(walk, tmp_path, **stand_ins)
    after = frames(paths["inp"])
    assert not ((after[..., 0] > 150) & (after[..., 1] < 90)).any()


def test_a_window_of_the_source(stand_ins, walk, tmp_path):
    source = ClipSource(path=walk[0].path, start_seconds=0.5, end_seconds=1.5, fps=10.0)
    settings = Settings(layout="frames", keep_original=True, **stand_ins)
    outcome, paths = Pipeline(settings, tmp_path).clean(source, tmp_path, "c/v")
    assert outcome.frames == 10 and sorted(paths) == ["inp", "ori", "seg"]
    assert all(len(list(path.iterdir())) == 10 for path in paths.values())


@pytest.mark.parametrize(
    ("method", "changed", "same"),
    [("blur-faces", True, True), ("blur-bodies", True, True), ("downsample", True, False)],
)
def test_the_other_methods(stand_ins, walk, tmp_path, method, changed, same):
    _, paths = clean(walk, tmp_path, method=method, **stand_ins)
    before, after = frames(walk[0].path).astype(float), frames(paths["inp"])
    hidden = frames(paths["seg"])[..., 0] > 127
    assert (np.abs(after - before)[hidden].max() > 60) == changed
    assert hidden.all() != same


def test_faces_alone_ask_for_no_other_model(stand_ins):
    assert Settings(method="blur-faces", **stand_ins).used == ("red-face",)
    assert Settings(method="blur-bodies", **stand_ins).used == ("red", "red-face", "nothing")
    assert Settings(method="downsample", **stand_ins).used == ()


def test_a_source_that_breaks_leaves_nothing_behind(stand_ins, walk, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(walk[0].path.read_bytes()[:900])
    out = tmp_path / "out"
    out.mkdir()
    source = ClipSource(path=broken, start_seconds=0.0, end_seconds=float("inf"), fps=10.0)
    with pytest.raises(BadClip):
        Pipeline(Settings(**stand_ins), tmp_path).clean(source, out, "c/v")
    assert not [path for path in out.rglob("*") if path.is_file()]


def test_blurring_leaves_blobs_of_each_part_alone():
    rng = np.random.default_rng(0)
    frame, hidden = rng.integers(0, 255, (80, 80, 3), dtype=np.uint8), np.zeros((80, 80), bool)
    hidden[10:30, 10:30] = hidden[50:70, 50:70] = True
    picture = blurred(frame, hidden)
    assert (picture[~hidden] == frame[~hidden]).all()
    assert picture[10:30, 10:30].astype(float).std() < 0.5 * frame[10:30, 10:30].astype(float).std()


def test_downsampling_keeps_so_many_pixels():
    frame = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    assert downsampled(frame, 96).shape == frame.shape and (downsampled(frame, 96) == frame).all()
    assert len(np.unique(downsampled(frame, 1))) < 30


DRAWN = [("walk", 0), ("run", 0), ("wave", 0), ("squat", 1), ("jumping_jack", 0), ("drink", 0)]
"""Actions and numbers of clips in which one person is drawn, more than 48 pixels tall."""
SIZE, LENGTH, FPS = 128, 6, 8.0


class Watched:
    """An inpainter that remembers which pixels it took from other frames."""

    def __init__(self, inpainter):
        self.inpainter, self.seen = inpainter, []

    def __call__(self, *arguments):
        picture_HWC, seen_HW = self.inpainter(*arguments)
        self.seen.append(seen_HW)
        return picture_HWC, seen_HW


def psnr(errors):
    return 10 * np.log10(255**2 / np.concatenate(errors).mean())


def found(boxes_N5, mask_HW):
    """Whether the middle of a box lies within the bounds of a mask."""
    if not len(boxes_N5):
        return False
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    x, y = (boxes_N5[:, 0] + boxes_N5[:, 2]) / 2, (boxes_N5[:, 1] + boxes_N5[:, 3]) / 2
    return bool(((columns[0] < x) & (x < columns[-1]) & (rows[0] < y) & (y < rows[-1])).any())


def test_drawn_people_are_hidden_and_the_place_comes_back(person_weights, tmp_path, record_property):
    """Six small clips with exact masks and empty twins: the figures that the issue asks for."""
    pipeline, looked = Pipeline(Settings(), person_weights), []

    def find(frame_HWC):
        boxes = Pipeline.detect(pipeline, frame_HWC)
        looked.append(np.concatenate(list(boxes.values())))
        return boxes

    pipeline.detect = find
    hits, outside, inside = [], [], []
    for action, number in DRAWN:
        address = ClipSpec(
            seed=3, split="train", class_name=action, number=number, size=SIZE, frames=LENGTH, fps=FPS, people=1
        )
        shots = list(render(sample_clip(address), empty=True))
        path = tmp_path / f"{action}.mp4"
        with video_writer(path, fps=FPS, options=X264) as add_frame:
            for shot in shots:
                add_frame(shot.picture_PP3)
        pipeline._inpainter = watched = Watched(plugins.load("median", person_weights))
        source = ClipSource(path=path, start_seconds=0.0, end_seconds=float("inf"), fps=FPS)
        looked.clear()
        _, paths = pipeline.clean(source, tmp_path, f"drawn/{action}")
        before, after, hidden = frames(path), frames(paths["inp"]), frames(paths["seg"])[..., 0] > 127
        masks, empty = np.stack([shot.mask_PP for shot in shots]), np.stack([shot.empty_PP3 for shot in shots])
        assert min(np.ptp(np.flatnonzero(mask.any(1))) + 1 for mask in masks) >= 48
        known = any(found(boxes_N5, mask_HW) for boxes_N5, mask_HW in zip(looked, masks))
        hits.append((known, int((hidden & masks).sum()), int(masks.sum())))
        outside.append(((after.astype(float) - before) ** 2)[~hidden].ravel())
        inside.append(((after.astype(float) - empty) ** 2)[np.stack(watched.seen)].ravel())
    recall = {
        kind: sum(hit for known, hit, _ in hits if known or kind == "all")
        / sum(there for known, _, there in hits if known or kind == "all")
        for kind in ("found", "all")
    }
    record_property("recall", recall | {"outside_db": psnr(outside), "inside_db": psnr(inside)})
    assert sum(known for known, _, _ in hits) >= 5, "the detectors of the set hardly find drawn people"
    assert recall["found"] >= 0.98 and recall["all"] >= 0.95, recall
    assert psnr(outside) > 40
    assert sum(map(len, inside)) > 1000 and psnr(inside) > 24
