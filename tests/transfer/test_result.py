"""Every figure of result.json is computed from the scores in scores.npz."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from ppma.common.statistics import calibration, predictions, top_k_correct
from ppma.config.recipes import RECIPES
from ppma.transfer.result import mean_over_views, write_result

SCORES = np.array(
    [[0.9, 0.1, 0.0, 0.0], [0.2, 0.6, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4], [0.1, 0.1, 0.1, 0.7],
     [0.3, 0.3, 0.2, 0.2], [np.nan] * 4, [0.05, 0.05, 0.8, 0.1], [0.0, 0.0, 0.0, 1.0]]
)  # fmt: skip
"""Labels 0 1 2 3 0 1 2 3: right, right, taken for 3, right, a tie that counts as 1, undecodable, right, right."""


def write(folder, **more):
    folder.mkdir(exist_ok=True)
    config = replace(RECIPES["probe"](dataset="made"), run_dir=folder)
    source = tiny.source("made", clips=8)
    return write_result(
        config, source, more.pop("scores", SCORES), protocol="p", weights="w", step=7, writes=True, **more
    )


def test_result_json_keeps_its_contract_and_adds_to_it(tmp_path):
    result = write(tmp_path / "run")
    assert result == json.loads((tmp_path / "run/result.json").read_text())
    contract = {"dataset", "split", "protocol", "checkpoint", "seed", "n_videos", "top1", "top5", "ci95"}
    assert contract <= result.keys()
    assert (result["n_videos"], result["n_undecodable"], result["top1"]) == (8, 1, 5 / 8)
    assert result["mean_class_top1"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 2 + 1) / 4)
    assert [c["top1"] for c in result["per_class"]] == [0.5, 0.5, 0.5, 1.0]
    assert [(c["label"], c["name"], c["videos"]) for c in result["per_class"]] == [(i, str(i), 2) for i in range(4)]
    low, high = result["ci95"]["top1"]
    assert low < 5 / 8 < high < 1 and result["interval"] == "Wilson, over videos"


def test_the_confusion_matrix_says_what_was_taken_for_what(tmp_path):
    write(tmp_path / "run")
    head, *rows = csv.reader((tmp_path / "run/confusion.csv").open())
    assert head == ["label", "name", "0", "1", "2", "3", "undecodable"]
    assert ["".join(row[2:]) for row in rows] == ["11000", "01001", "00110", "00020"]


def test_figures_are_counted_from_the_scores_that_are_saved(tmp_path):
    """1 + 1e-12 and 1 are one number in float32: a tie there, so the video is wrong, as whoever reads the file must find."""
    scores = np.array([[0.5 + 1e-12, 0.5, 0, 0]] + [[0, 1.0, 0, 0]] * 7)
    result = write(tmp_path / "run", scores=scores)
    saved = np.load(tmp_path / "run/scores.npz")
    assert result["per_class"][0]["top1"] == 0.0 and saved["scores"].dtype == np.float32


def test_draws_are_rows_of_their_own_and_may_bring_another_interval(tmp_path):
    more = {"ci95": {"top1": [0.1, 0.2]}, "interval": "over draws"}
    result = write(tmp_path / "run", scores=np.concatenate([SCORES, SCORES[::-1]]), draws=2, more=more)
    saved = np.load(tmp_path / "run/scores.npz")
    assert result["n_videos"] == 16 == len(saved["video"]) and result["interval"] == "over draws"
    assert (saved["video"][:8] == saved["video"][8:]).all() and (saved["label"][:8] == saved["label"][8:]).all()


def test_a_class_that_the_head_lacks_is_wrong_at_any_k():
    scores = mean_over_views(torch.tensor([[[0.6, 0.4]], [[0.3, 0.7]]]), torch.tensor([True, True]), classes=3)
    labels = np.array([2, 1])
    assert top_k_correct(scores, labels, 5).tolist() == [False, True]
    assert predictions(scores, labels).tolist() == [0, 1] and np.isfinite(calibration(scores, labels)[0])
