"""One clip through stand-ins for the models: what is found is gone, all else is as it was; and drawn people through the real ones."""

import numpy as np
import pytest

from ppma.loaders.fetch import BadClip, all_frames
from ppma.privacy import plugins
from ppma.privacy.boxes import NONE_05
from ppma.privacy.clip import Settings, Source, Workshop, blurred, coarse
from ppma.privacy.plugins import PLUGINS, Plugin
from ppma.privacy.writing import VideoWriter
from ppma.synthetic.clip import Address, draw_clip, shoot

RED = (250, 20, 20)


class RedFinder:
    """Finds what is red, except where it has been told to blink."""

    finds = "person"
    blinks = ()

    def __init__(self):
        self.calls = 0

    def __call__(self, frame_HWC):
        self.calls += 1
        red = (frame_HWC[..., 0] > 180) & (frame_HWC[..., 1] < 90)
        if not red.any() or self.calls - 1 in self.blinks:
            return NONE_05
        rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
        return np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1, 0.9]], np.float32)


class Nothing:
    def __call__(self, frame_HWC):
        return np.zeros(frame_HWC.shape[:2], np.float32)


@pytest.fixture
def stand_ins(monkeypatch):
    monkeypatch.setitem(PLUGINS, "red", Plugin(kind="detector", make=RedFinder, licence="none", finds="person"))
    monkeypatch.setitem(PLUGINS, "red-face", Plugin(kind="detector", make=RedFinder, licence="none", finds="face"))
    monkeypatch.setitem(PLUGINS, "nothing", Plugin(kind="segmenter", make=Nothing, licence="none"))
    return {"detectors": ("red", "red-face"), "segmenter": "nothing"}


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """A clip in which a red block walks across a textured place; returns (source, place)."""
    folder = tmp_path_factory.mktemp("walk")
    rng = np.random.default_rng(0)
    place = np.kron(rng.integers(40, 160, (24, 32, 1)), np.ones((4, 4, 3))).astype(np.uint8)
    video = VideoWriter(folder / "walk.mp4", 10.0, 96, 128)
    for t in range(24):
        frame = place.copy()
        frame[30:80, 4 * t : 4 * t + 16] = RED
        video.add(frame)
    video.finish()
    return Source(path=folder / "walk.mp4", start_seconds=0.0, end_seconds=float("inf"), fps=10.0), place


def frames(path):
    return np.stack([frame for _, frame in all_frames(path, 0.0, float("inf"))])


def treat(walk, folder, **settings):
    return Workshop(Settings(**settings), folder).treat(walk[0], folder, "c/v", "videos")


def test_who_is_found_is_gone_and_the_place_is_back(stand_ins, walk, tmp_path):
    outcome, paths = treat(walk, tmp_path, **stand_ins)
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
    monkeypatch.setattr(VideoWriter, "add", lambda self, picture: seen.append(picture))
    monkeypatch.setattr(VideoWriter, "finish", VideoWriter.drop)
    treat(walk, tmp_path, **stand_ins)
    for picture, hidden, before in zip(seen[::2], seen[1::2], frames(walk[0].path)):
        assert (picture[~hidden] == before[~hidden]).all()


@pytest.mark.parametrize("blinks", [(7,), (7, 8, 9, 10)])
def test_a_detector_that_blinks_leaves_nobody(stand_ins, walk, tmp_path, monkeypatch, blinks):
    monkeypatch.setattr(RedFinder, "blinks", blinks)
    _, paths = treat(walk, tmp_path, **stand_ins)
    after = frames(paths["inp"])
    assert not ((after[..., 0] > 150) & (after[..., 1] < 90)).any()


def test_a_window_of_the_source(stand_ins, walk, tmp_path):
    source = Source(path=walk[0].path, start_seconds=0.5, end_seconds=1.5, fps=10.0)
    outcome, paths = Workshop(Settings(**stand_ins), tmp_path).treat(
        source, tmp_path, "c/v", "frames", keep_original=True
    )
    assert outcome.frames == 10 and sorted(paths) == ["inp", "ori", "seg"]
    assert all(len(list(path.iterdir())) == 10 for path in paths.values())


@pytest.mark.parametrize(
    ("method", "changed", "same"),
    [("blur-faces", True, True), ("blur-bodies", True, True), ("downsample", True, False)],
)
def test_the_other_methods(stand_ins, walk, tmp_path, method, changed, same):
    _, paths = treat(walk, tmp_path, method=method, **stand_ins)
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
    source = Source(path=broken, start_seconds=0.0, end_seconds=float("inf"), fps=10.0)
    with pytest.raises(BadClip):
        Workshop(Settings(**stand_ins), tmp_path).treat(source, out, "c/v", "videos")
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
    assert coarse(frame, 96).shape == frame.shape and (coarse(frame, 96) == frame).all()
    assert len(np.unique(coarse(frame, 1))) < 30


DRAWN = [("wave", 1), ("walk", 1), ("squat", 2), ("jumping_jack", 1), ("bow", 2), ("drink", 1)]
"""Actions, and at most so many people."""


def test_drawn_people_are_hidden(person_weights, tmp_path):
    """Six small clips with exact masks: recall of the mask at least 0.98 for people of 48 pixels and more."""
    workshop, hit, there = Workshop(Settings(), person_weights), 0, 0
    for action, people in DRAWN:
        address = Address(
            seed=3, split="train", class_name=action, number=0, size=128, frames=3, fps=8.0, people=people
        )
        shots = list(shoot(draw_clip(address)))
        source = tmp_path / f"{action}.mp4"
        video = VideoWriter(source, 8.0, 128, 128)
        for shot in shots:
            video.add(shot.picture_PP3)
        video.finish()
        clip = Source(path=source, start_seconds=0.0, end_seconds=float("inf"), fps=8.0)
        _, paths = workshop.treat(clip, tmp_path, f"drawn/{action}", "videos")
        hidden, mask = frames(paths["seg"])[..., 0] > 127, np.stack([shot.mask_PP for shot in shots])
        heights = [np.ptp(np.flatnonzero(m.any(1))) + 1 for m in mask]
        assert min(heights) >= 48
        hit, there = hit + int((hidden & mask).sum()), there + int(mask.sum())
    assert hit / there >= 0.98
    assert plugins.named("detector") == ("yolov3-tiny", "centerface")
