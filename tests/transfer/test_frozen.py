"""The protocols on a frozen encoder from clips to a result: one command, one cache of features, one contract of files."""

import json

import numpy as np
import pytest
import tiny

from ppma.cli import main as ppma
from ppma.common.statistics import top_k_correct
from ppma.models.classify import Classifier
from ppma.training import checkpoint, seal

FEW = ("--few-shot.shots", "1", "2", "--few-shot.draws", "3")
PROTOCOLS = {
    "probe": (),
    "probe_grid": ("--grid.rates", "1e-3", "1e-2", "--grid.held-out", "0.3"),
    "knn": ("--knn.k", "3"),
    "few_shot": FEW,
    "attentive_probe": ("--attentive.heads", "3", "--attentive.cells", "1", "2", "2"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, clip_tree):
    """A folder with a run of every protocol on one encoder and one data set."""
    folder = tmp_path_factory.mktemp("protocols")
    tiny.make_data(folder, clip_tree, "train", "val")
    encoder = Classifier(tiny.shrink("probe").vit, {"x": 3}, seed=3)
    checkpoint.save_weights(folder / "encoder", encoder.state_dict(), {})
    for name, flags in PROTOCOLS.items():
        assert train(folder, name, *flags) == 0
    return folder


def train(folder, name, *flags, run=None):
    argv = [*tiny.FLAGS, "--dataset", "made", "--batch", 4, "--optim.epochs", 2, "--data", folder / "data.toml"]
    argv += ["--init", folder / "encoder", "--run-dir", folder / "runs" / (run or name), *flags]
    return ppma(["train", name, *map(str, argv)])


def read(folder, name):
    return json.loads((folder / "runs" / name / "result.json").read_text())


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_keeps_the_contract_of_a_result(runs, name):
    result, scores = read(runs, name), np.load(runs / "runs" / name / "scores.npz")
    assert {"checkpoint", "ece", *seal.RESULT_KEYS} <= result.keys()
    assert result["protocol"].startswith(name) and result["n_videos"] == len(scores["video"]) == len(scores["label"])
    for k in (1, 5):
        assert result[f"top{k}"] == pytest.approx(top_k_correct(scores["scores"], scores["label"], k).mean(), abs=1e-12)
    assert np.allclose(scores["scores"].sum(axis=1), 1, atol=1e-5)
    assert seal.read(runs / "runs" / name).init == seal.sha256(runs / "encoder/model.safetensors")


def test_all_share_the_features_of_one_encoder_and_data_set(runs):
    assert len(list((runs / "runs/features").glob("*.safetensors"))) == 2  # plain views of train, 2 x 3 views of val


def test_the_grid_s_choice_is_recorded_and_used(runs):
    grid, folder = read(runs, "probe_grid")["grid"], runs / "runs/probe_grid"
    assert len(grid["tried"]) == 4 and grid["held_out_clips"] == 4 and grid["chosen"]["rate"] in (1e-3, 1e-2)
    assert json.loads((folder / "checkpoints/latest/state.json").read_text())["grid"] == grid
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    peak = max(row["train/lr"] for row in rows if "train/lr" in row)
    assert peak == pytest.approx(grid["chosen"]["rate"] * 4 / 32, rel=0.2)  # at a batch of 4 of 32
    assert train(runs, "probe_grid", *PROTOCOLS["probe_grid"], "--resume") == 0


def test_few_shot_reports_every_number_of_clips_over_its_draws(runs):
    result = read(runs, "few_shot")
    assert [found["clips_per_class"] for found in result["few_shot"]] == [1, 2] and result["draws"] == 3
    last = result["few_shot"][-1]
    assert len(last["top1_of_draws"]) == 3 and np.mean(last["top1_of_draws"]) == pytest.approx(result["top1"])
    assert result["ci95"] == last["ci95"] and result["interval"] == "Student's t, over draws"
    assert result["n_videos"] == 36  # each of 12 once a draw


def test_an_attentive_probe_is_tested_again_from_its_checkpoint(runs):
    argv = ["--checkpoint", runs / "runs/attentive_probe", "--dataset", "made", "--data", runs / "data.toml"]
    assert ppma(["evaluate", *map(str, [*argv, "--out", runs / "runs/again"])]) == 0
    first, again = read(runs, "attentive_probe"), read(runs, "again")
    assert first["top1"] == again["top1"] and first["ece"] == pytest.approx(again["ece"], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "flags", "problem"),
    [
        ("few_shot", ("--few-shot.shots", "9"), "few_shot.shots"),
        ("knn", ("--sources", "made", "made"), "one data set"),
        ("attentive_probe", ("--attentive.heads", "5"), "attentive.heads"),
        ("attentive_probe", ("--grid.rates", "1", "--attentive.heads", "3"), "grid.rates"),
        ("probe_grid", ("--grid.held-out", "0.9", "--batch", "8"), "--batch"),
        ("adaptive_average", ("--init", "None"), "--average"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(runs, capfd, name, flags, problem):
    assert train(runs, name, *flags, run="refused") == 2
    assert problem in capfd.readouterr().err and not (runs / "runs/refused").exists()
