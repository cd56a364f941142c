"""Detectors and segmenters: boxes and tracks, tiles that cover the frame, rendered people found where they are."""

import numpy as np
import pytest
import torch

from ppma.config.errors import InputError
from ppma.privacy.detectors import maskrcnn
from ppma.privacy.detectors.boxes import NONE_05, bridge, grown, keep_sure, linger, overlaps, stay, suppress
from ppma.privacy.detectors.maskrcnn import LEAST_SCORE, MaskRcnnDetector, MaskRcnnSegmenter
from ppma.privacy.detectors.movenet import MoveNet
from ppma.privacy.detectors.opencv_models import CenterFace, Selfie
from ppma.privacy.detectors.ssdlite import SsdLite, confirm_weak
from ppma.privacy.detectors.tiles import network_size, tile_batch, tiles
from ppma.privacy.detectors.weights import find
from ppma.synthetic.clip import ClipSpec, render, sample_clip

# ------------------------------------------------------------------------------------------------------------------- boxes


def box(x, y, width=10, height=20, score=0.9):
    return np.array([[x, y, x + width, y + height, score]], np.float32)


def test_the_better_of_two_boxes_on_one_person_stays():
    kept = suppress(np.concatenate([box(0, 0, score=0.4), box(1, 0, score=0.8), box(50, 0)]))
    assert sorted(kept[:, 0].tolist()) == [1, 50]
    assert suppress(NONE_05).shape == (0, 5)


def test_overlap_is_intersection_over_union():
    assert overlaps(box(0, 0), box(5, 0))[0, 0] == pytest.approx(1 / 3)
    assert overlaps(box(0, 0), box(10, 0))[0, 0] == 0


def test_grown_adds_shares_of_the_sides():
    assert grown(box(10, 10), 0.1, 0.5, 0.2, 0.0)[0, :4].tolist() == [9, 0, 22, 30]


def test_a_gap_is_filled_on_a_line():
    frames = [box(0, 0), NONE_05, NONE_05, box(6, 0)]
    bridged = bridge(frames, gap=2)
    assert [len(boxes) for boxes in bridged] == [1, 1, 1, 1]
    assert [float(boxes[0, 0]) for boxes in bridged] == pytest.approx([0, 2, 4, 6])
    assert [len(boxes) for boxes in frames] == [1, 0, 0, 1], "the boxes given are not changed"


def test_a_fast_person_is_followed_over_a_gap():
    frames = [box(6 * t, 0) for t in range(4)] + [NONE_05] * 4 + [box(48, 0)]
    bridged = bridge(frames, gap=4)
    assert [float(boxes[0, 0]) for boxes in bridged] == pytest.approx([6 * t for t in range(9)])
    assert not len(bridge([box(0, 0), NONE_05, NONE_05, box(48, 0)], gap=4)[1]), "without a speed it is another person"


def test_weak_boxes_are_confirmed_by_a_second_detector_or_tracked_ones():
    asked = []

    def only_bright(cut):
        asked.append(cut.shape)
        height, width = cut.shape[:2]
        return np.array([[0, 0, width, height, 0.2]] if cut.mean() > 128 else NONE_05, np.float32)

    frame = np.zeros((400, 600, 3), np.uint8)
    frame[:, :300] = 255
    weak = np.concatenate([box(100, 50, 100, 250, 0.3), box(400, 50, score=0.3), box(500, 50, score=0.4)])
    boxes = np.concatenate([weak, box(450, 10, score=0.8), box(599, 399, score=0.3)])
    known = box(500, 52)
    kept = confirm_weak(frame, boxes, known, only_bright)
    assert kept[:, 4].tolist() == pytest.approx([0.5, 0.3, 0.5, 0.8, 0.3]) and (kept[:, :4] == boxes[:, :4]).all()
    assert len(asked) == 3 and max(asked[0]) <= 150, "the tracked and the sure ones are not looked at"


def test_weak_boxes_before_a_sure_one_of_the_same_track_are_kept():
    frames = [box(0, 0, score=0.3), box(1, 0, score=0.3), box(2, 0, score=0.6), box(50, 0, score=0.4)]
    assert [len(boxes) for boxes in keep_sure(frames)] == [1, 1, 1, 0]


def still_scene(changes=range(0), shift=0):
    """Return the view of each of 9 frames: a figure at x 20, absent in `changes`, which moves by `shift` per frame."""
    rng = np.random.default_rng(0)
    place, figure = (rng.integers(0, 255, size, dtype=np.uint8) for size in ((40, 60), (20, 10)))
    views = [np.clip(place + rng.normal(0, 3, place.shape), 0, 255).astype(np.uint8) for _ in range(9)]
    for t in set(range(9)) - set(changes):
        views[t][10:30, 20 + t * shift : 30 + t * shift] = figure
    return views.__getitem__


@pytest.mark.parametrize(
    ("changes", "kept"), [(range(0), range(9)), ([0, 1, 7, 8], range(2, 7)), ([6], range(9)), ([6, 7], range(6))]
)
def test_a_lost_person_is_kept_while_the_place_does_not_change(changes, kept):
    """It may look different for one frame."""
    frames = [NONE_05] * 4 + [box(20, 10)] + [NONE_05] * 4
    stayed = stay(frames, still_scene(changes), 1.0, 1)
    assert [t for t in range(9) if len(stayed[t])] == list(kept)
    assert all(boxes[0].tolist() == box(20, 10)[0].tolist() for boxes in stayed if len(boxes))


@pytest.mark.parametrize("shift", [1, 3])
def test_a_lost_person_is_followed_as_they_sway_or_the_camera_pans_and_given_up_when_detected_again(shift):
    frames = [box(20, 10)] + [NONE_05] * 7 + [box(20 + 8 * shift, 10)]
    stayed = stay(frames, still_scene(shift=shift), 1.0, 1)
    assert [float(boxes[0, 0]) for boxes in stayed] == [20 + t * shift for t in range(9)] and len(stayed[8]) == 1


def test_a_box_within_another_is_not_lost():
    """The upper body is detected first, then the whole person."""
    frames = [box(20, 10), box(10, 5, 40, 34), *[NONE_05] * 7]
    stayed = stay(frames, still_scene(), 1.0, 1)
    assert [boxes[:, 0].tolist() for boxes in stayed] == [[20, 10], *[[10]] * 8]


@pytest.mark.parametrize(("wall", "kept"), [(220, 5), (50, 9)])
def test_a_plain_wall_does_not_pass_for_dark_hair_but_a_change_of_exposure_is_followed(wall, kept):
    """From frame 5 on, pixels of gray level 30 have that of `wall`: a person who left, or one in other light."""
    rng = np.random.default_rng(0)
    views = [np.clip(rng.normal(30 if t < 5 else wall, 3, (40, 60)), 0, 255).astype(np.uint8) for t in range(9)]
    stayed = stay([box(20, 10)] + [NONE_05] * 8, views.__getitem__, 1.0, 1)
    assert [t for t in range(9) if len(stayed[t])] == list(range(kept))


def test_one_weak_detection_is_not_kept():
    frames = [NONE_05, box(20, 10, score=0.4), NONE_05] + [NONE_05] * 6
    assert not len(stay(frames, still_scene(), 1.0, 1)[2])


def test_a_track_is_extended_before_its_first_detection_and_after_its_last():
    frames = [NONE_05, NONE_05, NONE_05, box(20, 0), box(26, 0), NONE_05, NONE_05, NONE_05]
    stayed = linger(frames, 2)
    assert [len(boxes) for boxes in stayed] == [0, 1, 1, 1, 1, 1, 1, 0]
    assert [float(boxes[0, 0]) for boxes in stayed[1:7]] == pytest.approx([8, 14, 20, 26, 32, 38])
    assert [len(boxes) for boxes in frames] == [0, 0, 0, 1, 1, 0, 0, 0], "the boxes given are not changed"


def test_a_single_detection_and_the_ends_of_a_clip_are_not_extended():
    assert [len(boxes) for boxes in linger([NONE_05, box(0, 0), NONE_05], 2)] == [0, 1, 0]
    assert [len(boxes) for boxes in linger([box(0, 0), box(2, 0)], 2)] == [1, 1]
    assert linger([], 2) == []


def test_long_gaps_and_other_people_are_not_bridged():
    assert not len(bridge([box(0, 0), NONE_05, NONE_05, box(2, 0)], gap=1)[1])
    assert not len(bridge([box(0, 0), NONE_05, box(40, 0)], gap=5)[1])
    assert [len(boxes) for boxes in bridge([box(0, 0), box(1, 0), box(2, 0)], gap=5)] == [1, 1, 1]


# ------------------------------------------------------------------------------------------------------------------- tiles


@pytest.mark.parametrize("size", [(240, 320), (256, 340), (720, 1280), (1080, 1920), (91, 161)])
def test_tiles_cover_the_frame_and_overlap(size):
    seen = np.zeros(size, int)
    for tile_HWC, x, y in tiles(np.zeros((*size, 3), np.uint8)):
        height, width = tile_HWC.shape[:2]
        seen[y : y + height, x : x + width] += 1
        assert max(height, width) <= 500
    assert seen.min() >= 1 and seen.max() == 4


def test_inputs_have_the_proportions_of_the_frame():
    assert network_size(256, 340, 416) == (416, 320)
    assert network_size(1080, 1920, 416) == (416, 224)
    assert network_size(64, 64, 416) == (128, 128), "never enlarged more than twice"
    assert tile_batch(np.zeros((256, 340, 3), np.uint8), 320)[0].shape == (5, 256, 320, 3)
    assert tile_batch(np.zeros((100, 1000, 3), np.uint8), 300, 300)[0].shape[1:] == (300, 300, 3)
    assert len(tile_batch(np.zeros((100, 160, 3), np.uint8), 320)[0]) == 1, "no tiles: enlarged twice as a whole"


# ------------------------------------------------------------------------------------------------------------------ models


@pytest.fixture(scope="module")
def shot():
    """A frame with one rendered person and the person's pixels."""
    spec = ClipSpec(seed=3, split="train", class_name="walk", number=0, size=224, frames=2, fps=8.0, people=1)
    return next(iter(render(sample_clip(spec), empty=True)))


def test_the_remover_finds_a_rendered_person_and_face_and_nothing_in_gray(shot, person_weights):
    rows, columns = np.flatnonzero(shot.mask_PP.any(1)), np.flatnonzero(shot.mask_PP.any(0))
    detect, detect_faces = MoveNet(find("movenet", person_weights)), CenterFace(find("centerface", person_weights))
    people_N5, faces_N5 = detect(shot.picture_PP3), detect_faces(shot.picture_PP3)
    x0, y0, x1, y1 = people_N5[people_N5[:, 4].argmax()][:4]
    x, y = (columns[0] + columns[-1]) / 2, (rows[0] + rows[-1]) / 2
    assert x0 < x < x1 and y0 < y < y1 and (y1 - y0) > 0.5 * (rows[-1] - rows[0])
    assert len(faces_N5) and (faces_N5[:, 3] < rows[0] + 0.4 * (rows[-1] - rows[0])).any()
    gray = np.full((120, 160, 3), 128, np.uint8)
    assert detect(gray).shape == detect_faces(gray).shape == (0, 5)


def test_the_second_detector_confirms_a_rendered_person_and_not_the_empty_place(shot, person_weights):
    rows, columns = np.flatnonzero(shot.mask_PP.any(1)), np.flatnonzero(shot.mask_PP.any(0))
    weak = np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1, 0.3]], np.float32)
    detect = SsdLite(find("ssdlite", person_weights))
    assert confirm_weak(shot.picture_PP3, weak, NONE_05, detect)[0, 4] == 0.5
    assert confirm_weak(shot.empty_PP3, weak, NONE_05, detect)[0, 4] < 0.5


def test_the_segmenter_separates_a_rendered_person_from_the_background(shot, person_weights):
    probability_HW = Selfie(find("selfie", person_weights))(shot.picture_PP3)
    assert probability_HW.shape == shot.mask_PP.shape and 0 <= probability_HW.min() <= probability_HW.max() <= 1
    assert probability_HW[shot.mask_PP].mean() > 2 * probability_HW[~shot.mask_PP].mean()


class Labeled(torch.nn.Module):
    """Answers as torchvision's detection models do, with boxes and masks of these labels."""

    def __init__(self, labels):
        super().__init__()
        self.parameter = torch.nn.Parameter(torch.zeros(1))
        self.labels = torch.tensor(labels, dtype=torch.int64)

    def forward(self, frames):
        assert len(frames) == 1 and frames[0].shape == (3, 24, 32) and frames[0].dtype == torch.float32
        count = len(self.labels)
        masks = torch.zeros(count, 1, 24, 32)
        for i in range(count):
            masks[i, :, 4 * i : 4 * i + 4] = 0.9
        boxes = torch.tensor([[1.0, 4 * i, 9, 4 * i + 4] for i in range(count)]).reshape(count, 4)
        return [{"boxes": boxes, "scores": torch.full((count,), 0.8), "labels": self.labels, "masks": masks}]


def test_mask_rcnn_returns_people_only(monkeypatch, tmp_path):
    frame = np.zeros((24, 32, 3), np.uint8)
    monkeypatch.setattr(maskrcnn, "_network", lambda path: Labeled([1, 17, 1]))
    boxes, outline = MaskRcnnDetector(tmp_path)(frame), MaskRcnnSegmenter(tmp_path)(frame)
    assert boxes.dtype == np.float32
    np.testing.assert_allclose(boxes, [[1, 0, 9, 4, 0.8], [1, 8, 9, 12, 0.8]])
    assert outline[0].max() == outline[8].max() == pytest.approx(0.9) and not outline[4:8].any()
    monkeypatch.setattr(maskrcnn, "_network", lambda path: Labeled([]))
    assert MaskRcnnDetector(tmp_path)(frame).shape == (0, 5)
    assert MaskRcnnSegmenter(tmp_path)(frame).shape == (24, 32) and not MaskRcnnSegmenter(tmp_path)(frame).any()


def test_weights_of_another_model_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    for content in (b"nothing", b""):
        path.write_bytes(content)
        maskrcnn._network.cache_clear()
        with pytest.raises(InputError, match=r"weights\.pth"):
            MaskRcnnDetector(path)


@pytest.mark.slow
def test_the_whole_network_runs_with_or_without_torchvisions_operators(tmp_path):
    """Random weights: the shapes of the results are checked."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn_v2

    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save(maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).state_dict(), path)
    detect = MaskRcnnDetector(path)
    detect._network.roi_heads.score_thresh = 0.0
    frame = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    assert detect(frame).shape[1] == 5 and MaskRcnnSegmenter(path)(frame).shape == (96, 128)
    assert MaskRcnnSegmenter(path)._network is detect._network and LEAST_SCORE < 0.5
