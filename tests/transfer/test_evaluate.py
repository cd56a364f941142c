"""An evaluation scores exactly the listed videos, once each, whatever the batches; its scores are those of a plain restatement."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from ppma.cli import main as ppma
from ppma.config.errors import InputError
from ppma.config.flags import resolve
from ppma.config.loader import LoaderConfig
from ppma.config.run import EvaluationConfig
from ppma.loaders.decode.augment import make_views
from ppma.loaders.decode.fetch import read_window
from ppma.loaders.samples import ViewParams, evaluation_crops, scaled_size
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.train import train
from ppma.training.compute import choose
from ppma.training.distributed import Ranks
from ppma.training.run import open_run
from ppma.transfer.features import compute_features

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, clip_tree):
    """A fine-tuned tiny run and its catalog; the clips are a copy that tests may damage."""
    folder = tmp_path_factory.mktemp("evaluate")
    shutil.copytree(clip_tree, folder / "clips")
    for split in ("train", "val"):
        flags = f"--root {folder}/clips --out {folder}/{split}.csv --name made --split {split} --data {folder}/data.toml".split()
        assert ppma(["index", str(folder / "clips"), *flags]) == 0
    argv = [*tiny.FLAGS, "--dataset", "made", "--batch", "4", "--optim.epochs", "1", "--data", f"{folder}/data.toml"]
    train(resolve("finetune", [*argv, "--run-dir", str(folder / "run")]))
    return folder


def test_result_and_scores_hold_every_video_once(trained):
    result = json.loads((trained / "run/result.json").read_text())
    assert {"dataset", "split", "protocol", "checkpoint", "seed", "n_videos", "top1", "top5", "ci95"} <= result.keys()
    scores = np.load(trained / "run/scores.npz")
    assert sorted(scores["video"]) == sorted(
        str(p.relative_to(trained / "clips")) for p in (trained / "clips").rglob("*.mp4")
    )
    assert scores["scores"].shape == (12, 4) and np.allclose(scores["scores"].sum(axis=1), 1, atol=1e-5)
    assert result["top1"] == (scores["scores"].argmax(axis=1) == scores["label"]).mean()


def test_scores_equal_a_plain_restatement(trained):
    """Two windows at both ends, three squares along the long side, softmax, mean; one clip at a time."""
    model = open_run(trained / "run", device="cpu").classifier()
    model = model.double().eval()
    manifest = catalog.find(trained / "data.toml").manifest("made", "val")
    loader = LoaderConfig(frames=4, size=32, short_side=32, crop="center", views=3)
    scores = np.load(trained / "run/scores.npz")["scores"]
    for clip in range(len(manifest)):
        duration = manifest.durations[clip]
        views = []
        for start in (0.0, max(0.0, duration - 2.7)):
            frames = read_window(manifest.file(clip), start, min(start + 2.7, duration), 4)
            boxes = evaluation_crops(*scaled_size(*frames.shape[1:3], 32), 32)
            draws = [ViewParams(key=0, crop=box, flip=False, ops=(), erase=(0, 0, 0, 0)) for box in boxes]
            views.append(torch.from_numpy(make_views(frames, draws, loader, None)))
        with torch.no_grad():
            expected = model.logits(torch.cat(views)).softmax(dim=1).mean(dim=0)
        assert np.abs(expected.numpy() - scores[clip]).max() < 1e-5  # float32 there, float64 here


def test_the_batch_size_changes_nothing_and_the_cache_is_used(trained, caplog):
    model = open_run(trained / "run", device="cpu").classifier()
    manifest = catalog.find(trained / "data.toml").manifest("made", "val")
    loader = LoaderConfig(frames=4, size=32, short_side=36, views=1, workers=1)
    compute = choose("fp32", ALONE.device)
    found = [
        compute_features(
            model, manifest, loader, EvaluationConfig(batch_clips=n), ranks=ALONE, compute=compute
        ).features_VWD
        for n in (1, 5, 64)
    ]
    assert found[0].shape == (12, 6, 48)
    assert all(
        (found[0] - other).abs().max() < 1e-5 for other in found
    )  # matrix products of other sizes round otherwise
    argv = ["evaluate", "--checkpoint", str(trained / "run"), "--dataset", "made", "--data", str(trained / "data.toml")]
    with caplog.at_level("INFO"):
        assert ppma([*argv, "--out", str(trained / "again")]) == 0
        assert ppma([*argv, "--out", str(trained / "again")]) == 0
    assert "read from" in caplog.text
    first, second = (json.loads((trained / name / "result.json").read_text()) for name in ("run", "again"))
    assert first["top1"] == second["top1"] and second["n_videos"] == 12


def test_an_undecodable_video_fails_the_test_or_counts_as_wrong(trained, capfd):
    manifest = catalog.find(trained / "data.toml").manifest("made", "val")
    (trained / "clips/broken.mp4").write_bytes(b"not a video")
    rows = [manifest.clip(i) for i in range(3)]
    rows[1] = replace(rows[1], path="broken.mp4")
    Manifest.write(trained / "broken.csv", rows)
    catalog.add(
        trained / "data.toml", name="made", split="broken", manifest=trained / "broken.csv", root=trained / "clips"
    )
    argv = ["evaluate", "--checkpoint", str(trained / "run"), "--dataset", "made", "--data", str(trained / "data.toml")]
    argv += ["--evaluation.split", "broken", "--out", str(trained / "broken")]
    assert ppma(argv) == 2
    assert "broken.mp4" in capfd.readouterr().err
    assert ppma([*argv, "--evaluation.on-bad", "mark"]) == 0
    result = json.loads((trained / "broken/result.json").read_text())
    assert result["n_videos"] == 3 and result["n_undecodable"] == 1 and result["top5"] == pytest.approx(2 / 3)


def test_wrong_input(trained, tmp_path, capfd):
    data = ["--data", str(trained / "data.toml")]
    assert ppma(["evaluate", "--checkpoint", str(tmp_path), "--dataset", "made", *data]) == 2
    assert "neither a run folder" in capfd.readouterr().err
    assert ppma(["evaluate", "--checkpoint", str(trained / "run"), "--dataset", "gone", *data]) == 2
    assert "has no source gone.val" in capfd.readouterr().err


def test_a_label_outside_the_head_is_refused(trained):
    manifest = catalog.find(trained / "data.toml").manifest("made", "val")
    rows = [replace(manifest.clip(i), label=i + 3) for i in range(3)]
    Manifest.write(trained / "high.csv", rows)
    catalog.add(trained / "data.toml", name="made", split="high", manifest=trained / "high.csv", root=trained / "clips")
    argv = [*tiny.FLAGS, "--dataset", "made", "--batch", "4", "--optim.epochs", "1", "--data", f"{trained}/data.toml"]
    with pytest.raises(InputError, match="label"):
        train(resolve("finetune", [*argv, "--run-dir", str(trained / "high"), "--evaluation.split", "high"]))
    assert not (trained / "high").exists()  # seen before the training, not after it
