"""`ppma.load_model` opens every kind of model; features and predictions are those of the command line, and bad input is one line."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import write_barcoded_clip
from pyarrow import parquet

import ppma
from ppma.cli import main as command
from ppma.inference.export import FeatureExtractor
from ppma.inference.samples import plain_views
from ppma.inference.videos import find_videos, rows_of
from ppma.loaders.decode.fetch import all_frames


@pytest.fixture(scope="module")
def model(tiny_runs):
    return ppma.load_model(tiny_runs / "runs/finetune", device="cpu", workers=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two videos of 3 and 7 seconds, one of them in a folder below."""
    folder = tmp_path_factory.mktemp("videos")
    write_barcoded_clip(folder / "a.mp4", frames=30, width=96, height=72)
    write_barcoded_clip(folder / "below/b.mp4", frames=70, width=64, height=96, direction=(0, 1))
    return folder


def test_the_package_is_imported_in_no_time_and_knows_its_names():
    code = "import sys; before = set(sys.modules); import ppma; print(set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'ppma'}"
    for name in ppma.__all__:
        assert getattr(ppma, name) is not None and name in dir(ppma)
    with pytest.raises(AttributeError):
        ppma.nothing  # noqa: B018


def test_command_line_and_python_give_the_same_rows(tiny_runs, model, folder, tmp_path):
    flags = ["--checkpoint", str(tiny_runs / "runs/finetune"), "--device", "cpu", "--workers", "1"]
    sliding = ["--window", "2", "--stride", "1.5"]
    out = tmp_path / "f.npz"
    assert command(["features", str(folder), *flags, *sliding, "--out", str(out)]) == 0
    rows, found = np.load(out), model.features(find_videos(folder), window=2.0, stride=1.5)
    assert np.array_equal(rows["features"], found.values) and np.array_equal(np.asarray(found), found.values)
    assert rows["path"].tolist() == list(found.video) and len(found) == 2 + 5
    assert rows["start_seconds"].tolist() == [0, 1, 0, 1.5, 3, 4.5, 5] and rows["end_seconds"].tolist()[-1] == 7
    assert command(["predict", str(folder), *flags, *sliding, "--out", str(tmp_path / "p.parquet")]) == 0
    table = parquet.read_table(tmp_path / "p.parquet")
    predictions = model.predict(find_videos(folder), window=2.0, stride=1.5)
    scores = np.concatenate([one.window_scores for one in predictions]).astype(np.float32)
    assert np.array_equal(np.stack(table["scores"].to_numpy(zero_copy_only=False)), scores)
    assert json.loads(table.schema.metadata[b"ppma"])["classes"] == list(predictions[0].class_names)
    assert predictions[0].top[0][1] == predictions[0].scores.max() and len(predictions[0].top) == 4


def test_frames_give_what_their_file_gives(model, folder):
    """With their rate, windows and crops included; without it a clip is one window."""
    path = folder / "below/b.mp4"
    frames = np.stack([frame for _, frame in all_frames(path, 0, float("inf"))])
    for asked in ({"window": 2.0, "stride": 1.5, "crops": 3, "batch_clips": 2}, {"windows": 2}):
        expected, found = model.features(path, **asked), model.features(frames, fps=10, **asked)
        assert torch.allclose(found.values, expected.values, atol=1e-6)
        assert np.allclose(found.start_seconds, expected.start_seconds) and found.end_seconds[-1] == 7
    prediction = model.predict([frames, frames], window=2.0, fps=10)[1]
    assert np.allclose(prediction.window_scores, model.predict(path, window=2.0).window_scores, atol=1e-6)
    rows = rows_of([path], window=None, stride=None, mark_bad=False, workers=1).manifest
    seen = torch.from_numpy(plain_views(rows, model.run.loader))
    assert torch.allclose(model.features(seen).values, model.features(path).values, atol=1e-6)
    assert not model.features(seen).values.is_inference()  # it can be trained on
    assert model.predict(seen[0]).scores == pytest.approx(model.predict(seen)[0].scores)
    assert np.isnan(model.predict(seen[0]).start_seconds).all()


@pytest.mark.parametrize("run", ["mae", "finetune"])
def test_tokens_and_the_final_norm_are_those_of_the_module(tiny_runs, run):
    model = ppma.load_model(tiny_runs / "runs" / run, device="cpu")
    vit, frames = model.run.config.vit, np.random.default_rng(0).integers(0, 256, (1, 4, 32, 32, 3), dtype=np.uint8)
    tokens = model.features(frames, tokens=True).values
    assert tokens.shape == (1, vit.tokens, vit.width)
    assert torch.allclose(tokens.mean(dim=1), model.features(frames).values, atol=1e-6)
    with torch.no_grad():
        exported = FeatureExtractor(model.run.model)(torch.from_numpy(frames))
    assert torch.allclose(model.features(frames, final_norm=True).values, exported, atol=1e-5)


def test_bad_input_is_one_line(model, folder, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "config.json").write_text('{"model_type": "videomae"}')
    (tmp_path / "vivit").mkdir()
    (tmp_path / "vivit/config.json").write_text('{"model_type": "vivit"}')
    os.mkfifo(tmp_path / "pipe")
    frames = np.zeros((4, 32, 32, 3))
    for call in (
        lambda: model.features(tmp_path / "text.mp4"),
        lambda: model.features([]),
        lambda: model.features([folder / "a.mp4", frames.astype(np.uint8)]),
        lambda: model.features("-"),
        lambda: model.features("rtsp://camera/1"),
        lambda: model.features(tmp_path / "pipe"),
        lambda: model.features("/dev/video0"),
        lambda: model.features(frames),
        lambda: model.features(frames.astype(np.uint8), window=1.0),
        lambda: model.features(folder / "a.mp4", fps=10),
        lambda: model.predict(frames.astype(np.uint8), fps=0),
        lambda: model.features(folder / "a.mp4", tokens=True, crops=3),
        lambda: model.features(folder / "a.mp4", window=-1.0),
        lambda: model.predict(folder / "a.mp4", space="gone"),
        lambda: ppma.load_model(tmp_path),
        lambda: ppma.load_model(tmp_path / "vivit"),
        lambda: ppma.load_model(tmp_path / "gone"),
        lambda: ppma.load_model(folder),
        lambda: find_videos(tmp_path / "gone"),
    ):
        with pytest.raises(ppma.InputError) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_video_that_cannot_be_read_is_marked(model, folder, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    found = model.features([tmp_path / "text.mp4", folder / "a.mp4"], on_bad="mark")
    assert found.decoded.tolist() == [False, True] and found.values.isnan().all(dim=1).tolist() == [True, False]
    bad, good = model.predict([tmp_path / "text.mp4", folder / "a.mp4"], on_bad="mark")
    assert np.isnan(bad.scores).all() and not np.isnan(good.scores).any()
