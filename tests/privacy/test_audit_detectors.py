"""The auditor's detectors detect rendered people and nothing in empty scenes; a maker of masks may not judge."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime import InferenceSession as Session

from ppma.config.errors import InputError
from ppma.privacy.detectors.auditors import AUDITORS, BUNDLED, check, load
from ppma.privacy.detectors.runtime import Nodes, to_onnx
from ppma.privacy.detectors.tiles import detect_frames, tile_batch
from ppma.privacy.detectors.tools import find_files
from ppma.privacy.removal.plugins import PLUGINS
from ppma.synthetic.clip import ClipSpec, render, sample_clip


def test_boxes_come_back_to_where_they_were():
    """A white block in a corner is in the same place in every look that shows it, once taken back."""
    frame = np.zeros((120, 200, 3), np.uint8)
    frame[80:110, 150:190] = 255
    squares, places = tile_batch(frame, 160)
    seen = 0
    for square, place in zip(squares, places):
        bright = (square[..., 0] > 250) & (square[..., 2] > 250)
        if bright.sum() < 400:
            continue
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        box = np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1, 0.5]], np.float32)
        np.testing.assert_allclose(place.back(box)[0], [150, 80, 190, 110, 0.5], atol=1.5)
        seen += 1
    assert seen >= 2


@pytest.fixture(scope="module")
def drawn():
    """A frame with one drawn person, and the same without."""
    address = ClipSpec(seed=34, split="train", class_name="walk", number=0, size=224, frames=2, fps=8.0, people=1)
    return next(iter(render(sample_clip(address), empty=True)))


@pytest.mark.parametrize("name", BUNDLED)
def test_a_drawn_person_is_found_and_an_empty_place_is_empty(name, drawn, audit_weights):
    auditor = load(name, audit_weights)
    assert auditor(drawn.empty_PP3).shape == (0, 5)
    boxes_N5 = auditor(drawn.picture_PP3)
    rows, columns = np.flatnonzero(drawn.mask_PP.any(1)), np.flatnonzero(drawn.mask_PP.any(0))
    assert len(boxes_N5), name
    x0, y0, x1, y1 = boxes_N5[boxes_N5[:, 4].argmax()][:4]
    assert x0 < (columns[0] + columns[-1]) / 2 < x1 and y0 > rows[0] - 20 and y1 < rows[-1] + 20
    if AUDITORS[name].finds == "face":
        assert y1 < rows[0] + 0.4 * (rows[-1] - rows[0])


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("name", BUNDLED)
def test_a_gpu_gets_the_tiles_of_several_frames_at_once(name, drawn, audit_weights, monkeypatch):
    """The boxes are those of the CPU, which takes one tile at a time."""
    frames, run, batches = [drawn.picture_PP3, drawn.empty_PP3, drawn.picture_PP3[:, ::-1]], Session.run, []

    def counted(session, outputs, inputs):
        batches.append(len(next(iter(inputs.values()))))
        return run(session, outputs, inputs)

    monkeypatch.setattr(Session, "run", counted)
    one_by_one = detect_frames({name: load(name, audit_weights)}, frames)
    count = len(batches)
    assert set(batches) == {1}
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda _: ["CUDAExecutionProvider"])
    batches.clear()
    together = detect_frames({name: load(name, audit_weights)}, frames)
    assert batches == ([count - 3, 3] if name == "yolov3-tiny" else [count]), "its whole frames have another size"
    for ours, theirs in zip(together, one_by_one):
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert len(together[0][name]) and not len(together[1][name])


def test_no_auditor_is_offered_to_the_remover():
    assert not set(AUDITORS) & set(PLUGINS)


@pytest.mark.parametrize(
    ("names", "makers", "reason"),
    [
        (("nanodet", "yolo", "blazeface"), set(), "there is no auditor 'yolo'; auditors are nanodet"),
        (("nanodet", "centernet", "blazeface"), {"blazeface", "selfie"}, "blazeface made the masks and cannot judge"),
        (("nanodet", "blazeface"), set(), "two that find people and one that finds faces"),
        (("nanodet", "centernet"), set(), "two that find people and one that finds faces"),
    ],
)
def test_who_may_not_judge(names, makers, reason):
    with pytest.raises(InputError, match=reason):
        check(names, makers)
    check(tuple(AUDITORS), {"movenet", "centerface", "selfie", "median"})


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("provider", ["CPUExecutionProvider", "CUDAExecutionProvider"])
def test_a_yolox_of_the_user_finds_what_its_grid_says(provider, tmp_path, monkeypatch):
    """A stand-in of constant rows: one person in a cell of the second grid, scores below the point elsewhere.

    Like the published files it takes one picture at a time, on a GPU too.
    """
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [provider])
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda _: [provider])
    side, cells = 64, 64 + 16 + 4
    rows = np.zeros((1, cells, 85), np.float32)
    rows[0, 64 + 1 * 4 + 2, :6] = [0.5, 0.25, np.log(2), np.log(1.5), 0.8, 0.5]  # stride 16, row 1, column 2
    nodes = Nodes()
    free = nodes.add("ReduceMin", ["image"], keepdims=0)
    nodes.add("Add", [nodes.add("Mul", [free, nodes.constant(np.float32(0))]), nodes.constant(rows)], "rows")
    model = onnx.load_from_string(to_onnx(nodes, "image", ["rows"]))
    for place, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 3, side, side)):
        place.dim_value = size
    file = tmp_path / "yolox.onnx"
    onnx.save(model, file)
    models = find_files([AUDITORS["yolox"]], tmp_path, [f"yolox={file}"])
    detect = load("yolox", tmp_path, models=models)
    (box,) = detect(np.zeros((side // 2, side // 2, 3), np.uint8))
    np.testing.assert_allclose(box, [(40 - 16) / 2, (20 - 12) / 2, (40 + 16) / 2, (20 + 12) / 2, 0.4], rtol=1e-5)
    assert len(detect(np.zeros((2 * side, 2 * side, 3), np.uint8))), "a frame and its tiles"
    with pytest.raises(InputError, match="SHA-256"):
        find_files([AUDITORS["yolox"]], tmp_path, [f"yolox={file}#{'0' * 64}"])
    with pytest.raises(InputError, match="no chosen tool"):
        find_files([AUDITORS["nanodet"]], tmp_path, [f"yolox={file}"])


def test_an_onnx_file_that_is_not_yolox_is_refused(tmp_path):
    nodes = Nodes()
    nodes.add("Relu", ["image"], "rows")
    (tmp_path / "yolox.onnx").write_bytes(to_onnx(nodes, "image", ["rows"]))
    with pytest.raises(InputError, match="S x S"):
        load("yolox", tmp_path, models=find_files([AUDITORS["yolox"]], tmp_path))
    (tmp_path / "yolox.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match="is not YOLOX"):
        load("yolox", tmp_path, models=find_files([AUDITORS["yolox"]], tmp_path))
