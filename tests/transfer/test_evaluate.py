"""An evaluation scores exactly the listed videos, once each, at any batch size; its scores are those of a plain restatement."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from ppma.cli import main as ppma
from ppma.common.ports import free_port
from ppma.config.command import RUN_AGAIN
from ppma.config.errors import InputError
from ppma.config.loader import LoaderConfig
from ppma.config.run import EvaluationConfig
from ppma.loaders.decode.augment import make_views
from ppma.loaders.decode.fetch import read_window
from ppma.loaders.sampler import EvaluationSampler
from ppma.loaders.samples import ViewParams, evaluation_crops, scaled_size
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.models.classify import Classifier
from ppma.phases import train
from ppma.slurm import job
from ppma.training.compute import choose
from ppma.training.run import open_run, trained_steps
from ppma.transfer.features import compute_features


@pytest.fixture
def tested(tiny_runs):
    """A fine-tuned run, which ended with a test, and the tested videos."""
    return tiny_runs / "runs/finetune", catalog.read(tiny_runs / "data.toml").manifest("made", "val")


def evaluate(folder, out, *flags):
    argv = ["--checkpoint", folder / "runs/finetune", "--dataset", "made", "--data", folder / "data.toml", "--out", out]
    return ppma(["evaluate", *map(str, (*argv, *flags))])


def test_result_and_scores_hold_every_video_once(tested, clip_tree):
    run, _ = tested
    result, scores = json.loads((run / "result.json").read_text()), np.load(run / "scores.npz")
    assert {"dataset", "split", "protocol", "checkpoint", "seed", "n_videos", "top1", "top5", "ci95"} <= result.keys()
    assert sorted(scores["video"]) == sorted(str(path.relative_to(clip_tree)) for path in clip_tree.rglob("*.mp4"))
    assert scores["scores"].shape == (12, 4) and np.allclose(scores["scores"].sum(axis=1), 1, atol=1e-5)
    assert result["top1"] == (scores["scores"].argmax(axis=1) == scores["label"]).mean()


def test_scores_equal_a_plain_restatement(tested):
    """Two windows at both ends, three squares along the long side, softmax, mean; one clip at a time."""
    run, manifest = tested
    model = open_run(run, device="cpu").classifier().double().eval()
    loader = LoaderConfig(frames=4, size=32, short_side=32, crop="center", views=3)
    scores = np.load(run / "scores.npz")["scores"]
    for clip in range(len(manifest)):
        duration = manifest.durations[clip]
        views = []
        for start in (0.0, max(0.0, duration - 2.7)):
            frames = read_window(manifest.file(clip), start, min(start + 2.7, duration), 4)
            boxes = evaluation_crops(*scaled_size(*frames.shape[1:3], 32), 32)
            params = [ViewParams(key=0, crop=box, flip=False, ops=(), erase=(0, 0, 0, 0)) for box in boxes]
            views.append(torch.from_numpy(make_views(frames, params, loader, None)))
        with torch.no_grad():
            expected = model.logits(torch.cat(views)).softmax(dim=1).mean(dim=0)
        assert np.abs(expected.numpy() - scores[clip]).max() < 1e-5  # float32 there, float64 here


def test_published_views_average_logits_of_a_second_window_at_half_of_the_last_start(
    tested, tiny_runs, tmp_path, monkeypatch
):
    run, manifest = tested
    starts, model = [], open_run(run, device="cpu").classifier().eval()
    there = EvaluationSampler.sample

    def sample(self, clip, window):
        starts.append((window, there(self, clip, window).start_seconds))
        return there(self, clip, window)

    monkeypatch.setattr(EvaluationSampler, "sample", sample)
    assert evaluate(tiny_runs, tmp_path / "out", "--published") == 0
    assert dict(starts)[1] == pytest.approx((manifest.durations[-1] - 2.7) / 2) and dict(starts)[1] > 0
    (cached,) = tmp_path.rglob("made-val-*.safetensors")
    logits = model.logits_of_space(load_file(cached)["features_VWD"], "made")
    expected = logits.double().mean(dim=1).softmax(dim=-1).detach().numpy()
    assert np.abs(np.load(tmp_path / "out/scores.npz")["scores"] - expected).max() < 1e-6
    assert "logits" in json.loads((tmp_path / "out/result.json").read_text())["protocol"]


def test_the_batch_size_changes_nothing_and_the_cache_is_used(tested, tiny_runs, tmp_path, caplog):
    run, manifest = tested
    model, loader = (
        open_run(run, device="cpu").model,
        LoaderConfig(frames=4, size=32, short_side=36, views=1, workers=1),
    )
    found = [
        compute_features(
            model, manifest, loader, EvaluationConfig(batch_clips=n), ranks=tiny.ALONE, compute=choose("fp32", tiny.ALONE.device)
        ).features_VWD
        for n in (1, 5, 64)
    ]  # fmt: skip
    assert found[0].shape == (12, 6, 48)
    assert all(
        (found[0] - other).abs().max() < 1e-5 for other in found
    )  # matrix products of other sizes round otherwise
    with caplog.at_level("INFO"):
        assert evaluate(tiny_runs, tmp_path / "again") == evaluate(tiny_runs, tmp_path / "again") == 0
    assert caplog.text.count("read from") == 1
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (run, tmp_path / "again"))
    assert first["top1"] == second["top1"] and second["n_videos"] == 12


def test_an_undecodable_video_fails_the_test_or_counts_as_wrong(tested, tiny_runs, tmp_path, clip_tree, capfd):
    shutil.copytree(clip_tree, tmp_path / "clips")
    (tmp_path / "clips/broken.mp4").write_bytes(b"not a video")
    rows = [tested[1].clip(i) for i in range(3)]
    rows[1] = replace(rows[1], path="broken.mp4")
    Manifest.write(tmp_path / "broken.csv", rows)
    broken = {"name": "made", "split": "val", "manifest": tmp_path / "broken.csv", "root": tmp_path / "clips"}
    catalog.add(tmp_path / "data.toml", **broken)
    flags = ["--data", tmp_path / "data.toml"]
    assert evaluate(tiny_runs, tmp_path / "out", *flags) == 2
    assert "broken.mp4" in capfd.readouterr().err
    assert evaluate(tiny_runs, tmp_path / "out", *flags, "--evaluation.on-bad", "mark") == 0
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["n_videos"] == 3 and result["n_undecodable"] == 1 and result["top5"] == pytest.approx(2 / 3)


@pytest.mark.promise("R31")
def test_a_stopped_test_goes_on_with_the_videos_that_it_has_not_scored(
    tested, tiny_runs, tmp_path, monkeypatch, figure
):
    """SIGTERM in the third batch of six, and in the fifth; the scores are those of a test without a stop, to the bit."""
    flags = ["--evaluation.batch-clips", 2]
    assert evaluate(tiny_runs, tmp_path / "whole", *flags) == 0
    tokens, calls = Classifier.tokens, []

    def stopping(model, *inputs):
        calls.append(1)
        if len(calls) in (3, 6):
            os.kill(os.getpid(), signal.SIGTERM)
        return tokens(model, *inputs)

    monkeypatch.setattr(Classifier, "tokens", stopping)
    out = tmp_path / "out"
    assert [evaluate(tiny_runs, out, *flags) for _ in range(3)] == [RUN_AGAIN, RUN_AGAIN, 0]
    assert len(calls) == 8, "two batches were lost, no other was computed twice"
    one, other = (np.load(folder / "scores.npz") for folder in (tmp_path / "whole", out))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert (out / "result.json").read_text() == (tmp_path / "whole/result.json").read_text()
    assert not (out / "scored").exists()
    figure("R31", "2 stops of a test of 6 batches: 2 batches lost, 0 bits differ")


@pytest.mark.slow
@pytest.mark.promise("R31")
def test_a_test_that_is_killed_again_and_again_on_other_numbers_of_ranks(tiny_runs, tmp_path, figure):
    """SIGKILL to all of 1, 2, 3 and 2 ranks as soon as they have scored something, then 3 ranks to the end."""
    flags = ["--evaluation.batch-clips", "1", "--device", "cpu"]
    assert evaluate(tiny_runs, tmp_path / "whole", *flags) == 0
    argv = ["--checkpoint", tiny_runs / "runs/finetune", "--dataset", "made", "--data", tiny_runs / "data.toml", *flags]
    command = [sys.executable, "-m", "ppma", "evaluate", *map(str, argv), "--out", str(tmp_path / "out")]

    def start(ranks):
        port = free_port()
        places = [job.local_environment(rank, ranks, port) for rank in range(ranks)]
        return [subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", **place}) for place in places]

    def scored():
        return len(list((tmp_path / "out/scored").glob("*/[0-9]*")))

    done = []
    for ranks in (1, 2, 3, 2):
        before, processes = scored(), start(ranks)
        while scored() == before and all(process.poll() is None for process in processes):
            time.sleep(0.01)
        for process in processes:
            process.kill()
        done.append(scored())
        assert {process.wait() for process in processes} == {-signal.SIGKILL}
    assert [process.wait() for process in start(3)] == [0, 0, 0]
    one, other = (np.load(folder / "scores.npz") for folder in (tmp_path / "whole", tmp_path / "out"))
    assert all(np.array_equal(one[name], other[name]) for name in one) and done[-1] < 12
    assert (tmp_path / "out/result.json").read_text() == (tmp_path / "whole/result.json").read_text()
    figure("R31", f"4 SIGKILLs of 1 to 3 ranks, {done[-1]} of 12 videos kept: 0 bits differ")


@pytest.mark.parametrize(("number", "requeues"), [(signal.SIGUSR2, 1), (signal.SIGTERM, 0)])
def test_a_job_whose_nodes_are_taken_away_is_requeued(tiny_runs, tmp_path, monkeypatch, number, requeues):
    called = []
    monkeypatch.setattr(job, "requeue", lambda: called.append(1))
    monkeypatch.setattr(Classifier, "tokens", lambda *_: os.kill(os.getpid(), number))
    argv = ["--checkpoint", tiny_runs / "runs/finetune", "--dataset", "made", "--data", tiny_runs / "data.toml"]
    assert job.evaluate([*map(str, argv), "--out", str(tmp_path), "--device", "cpu"]) == RUN_AGAIN
    assert len(called) == requeues


def test_the_result_names_the_step_and_an_unfinished_run_is_a_warning(tested, tiny_runs, tmp_path, caplog):
    """A fine-tuning of three steps: the test at its end, one of its last checkpoint, and one of a run of twice the length."""
    run, _ = tested
    (last,) = (path.name for path in (run / "checkpoints").glob("step_*"))
    step = int(last.removeprefix("step_"))
    assert json.loads((run / "result.json").read_text())["step"] == step
    assert trained_steps(run) == step and "not finished" not in caplog.text
    longer = tmp_path / "longer"
    shutil.copytree(run, longer)
    config = json.loads((run / "config.json").read_text())
    config["optim"]["epochs"] *= 2
    (longer / "config.json").write_text(json.dumps(config))
    assert trained_steps(longer) == step and f"step {step} of {2 * step}" in caplog.text
    shutil.copy(run / "checkpoints" / last / "model.safetensors", tmp_path)
    assert trained_steps(tmp_path / "model.safetensors") is None


@pytest.mark.parametrize("flags", [["--checkpoint", "gone"], ["--dataset", "gone"], ["--dataset", "other"]])
def test_wrong_input_is_one_line(tiny_runs, tmp_path, capfd, flags):
    capfd.readouterr()
    assert evaluate(tiny_runs, tmp_path / "out", *flags, "--evaluation.split", "train") == 2
    assert flags[1] in capfd.readouterr().err and not (tmp_path / "out").exists()


def test_a_label_outside_the_head_is_refused_before_the_training(tested, tmp_path, clip_tree):
    data = tiny.make_data(tmp_path, clip_tree, "train")
    Manifest.write(tmp_path / "high.csv", [replace(tested[1].clip(i), label=i + 3) for i in range(3)])
    catalog.add(data, name="made", split="high", manifest=tmp_path / "high.csv", root=clip_tree)
    with pytest.raises(InputError, match="label"):
        train(tiny.config("finetune", data, tmp_path / "run", "--evaluation.split", "high"))
    assert not (tmp_path / "run").exists()
