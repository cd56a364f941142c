"""Every protocol tests a class by its name: a test split that lacks a class, and so numbers the others anew, gets the same scores."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny

from ppma.cli import main as ppma
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.models.classify import Classifier
from ppma.training import checkpoint

PROTOCOLS = {
    "finetune": (), "probe": (), "knn": ("--knn.k", "3"), "few_shot": ("--few-shot.shots", "1", "--few-shot.draws", "2"),
    "attentive_probe": ("--attentive.heads", "3", "--attentive.cells", "1", "2", "2"),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory, clip_tree):
    """An encoder, and the splits val, `fewer` (val without its first class) and `more` (with one class of another name)."""
    folder = tmp_path_factory.mktemp("by_name")
    tiny.make_data(folder, clip_tree, "train", "val")
    val = catalog.read(folder / "data.toml").manifest("made", "val")
    rows = [val.clip(i) for i in range(len(val))]
    splits = {
        "fewer": [replace(row, label=row.label - 1) for row in rows if row.label],
        "more": [replace(row, class_name="surfing") if row.label == 0 else row for row in rows],
    }
    for split, clips in splits.items():
        Manifest.write(folder / f"{split}.csv", clips)
        catalog.add(folder / "data.toml", name="made", split=split, manifest=folder / f"{split}.csv", root=clip_tree)
    checkpoint.save_weights(folder / "encoder", Classifier(tiny.shrink("probe").vit, {"x": 3}, seed=3).state_dict(), {})
    return folder


def train(data, name, split, *flags):
    argv = [*tiny.FLAGS, "--dataset", "made", "--batch", 4, "--optim.epochs", 1, "--data", data / "data.toml"]
    argv += ["--init", data / "encoder", "--run-dir", data / "runs" / f"{name}-{split}", "--evaluation.split", split]
    return ppma(["train", name, *map(str, argv), *PROTOCOLS[name], *flags])


def scores(folder):
    """{video: (name of its class, {class name: scores of every draw})}"""
    with np.load(folder / "scores.npz") as found:
        names = found["class_name"].tolist()
        return {
            video: (
                {names[label] for label in found["label"][found["video"] == video]},
                dict(zip(names, found["scores"][found["video"] == video].T.tolist())),
            )
            for video in found["video"].tolist()
        }


@pytest.mark.promise("R21")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("finetune", "knn") else pytest.mark.slow) for name in PROTOCOLS]
)
def test_a_split_without_a_class_is_scored_by_name(data, name, capfd, figure):
    assert train(data, name, "val") == train(data, name, "fewer") == 0
    whole, fewer = (scores(data / "runs" / f"{name}-{split}") for split in ("val", "fewer"))
    assert len(whole) == 12 and len(fewer) == 9
    for video, (label, found) in fewer.items():
        assert label == whole[video][0] == {video.split("/")[0]}
        assert all(found[other] == pytest.approx(values, abs=1e-6) for other, values in whole[video][1].items())
    # a class that the head lacks is refused before the training, or counts as wrong
    capfd.readouterr()
    assert train(data, name, "more") == 2 and not (data / "runs" / f"{name}-more").exists()
    assert "surfing" in capfd.readouterr().err
    assert train(data, name, "more", "--evaluation.on-unknown-class", "mark") == 0
    result, marked = (
        json.loads((data / f"runs/{name}-more/result.json").read_text()),
        scores(data / f"runs/{name}-more"),
    )
    missed = [entry for entry in result["per_class"] if entry["name"] == "surfing"]
    assert len(marked) == 12 and [entry["top1"] for entry in missed] == [0.0]
    for video, (label, found) in marked.items():
        assert label == whole[video][0] or label == {"surfing"}
        assert all(found[other] == pytest.approx(values, abs=1e-6) for other, values in whole[video][1].items())
    figure("R21", f"{name} scores a split that lacks a class as the whole one")


@pytest.mark.promise("R21")
def test_evaluate_matches_by_name(data, capfd):
    assert train(data, "finetune", "val", "--resume") == 0
    run = data / "runs/finetune-val"
    command = f"evaluate --checkpoint {run} --dataset made --data {data}/data.toml --device cpu".split()
    assert ppma([*command, "--evaluation.split", "fewer"]) == 0
    whole, fewer = (scores(data / "runs/finetune-val" / folder) for folder in ("", "evaluate-made-fewer"))
    assert len(fewer) == 9 and all(whole[video][0] == label for video, (label, _) in fewer.items())
    assert all(
        found == {c: pytest.approx(v, abs=1e-6) for c, v in whole[video][1].items()}
        for video, (_, found) in fewer.items()
    )
    assert ppma([*command, "--evaluation.split", "more"]) == 2
    assert "surfing" in capfd.readouterr().err and not (data / "runs/finetune-val/evaluate-made-more").exists()
