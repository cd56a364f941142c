"""`ppma features` writes a row a clip, the same numbers in both formats, and what they came from."""

import json
import shutil

import numpy as np
import pytest
import torch
from pyarrow import parquet

import ppma
from ppma.cli import main as command
from ppma.common.files import file_sha256
from ppma.config.run import EvaluationConfig
from ppma.inference.embeddings import write_rows
from ppma.inference.samples import embed, subset
from ppma.loaders.sources import catalog
from ppma.training.run import open_run


def features(folder, out, *flags, run="mae"):
    return command(["features", "--checkpoint", str(folder / "runs" / run), "--out", str(out), "--workers", "1",
                "--device", "cpu", "--data", str(folder / "data.toml"), *flags])  # fmt: skip


def test_both_formats_hold_the_encoder_s_features_and_their_origin(tiny_runs, tmp_path):
    flags = ["--dataset", "made", "other", "--split", "train"]
    assert features(tiny_runs, tmp_path / "f.npz", *flags) == 0
    arrays = dict(np.load(tmp_path / "f.npz"))
    facts = json.loads(str(arrays.pop("facts")))
    write_rows(tmp_path / "f.parquet", arrays, facts)
    table = parquet.read_table(tmp_path / "f.parquet")
    data = catalog.read(tiny_runs / "data.toml")
    run = open_run(tiny_runs / "runs/mae", device="cpu", workers=1)
    expected = embed(run, data.manifest("made"), EvaluationConfig(windows=1, crops=1)).features_VWD[:, 0].numpy()
    assert arrays["features"].shape == (24, 48) and arrays["features"].dtype == np.float32
    assert np.allclose(arrays["features"][:12], expected, atol=1e-6)
    assert np.array_equal(np.stack(table["features"].to_numpy(zero_copy_only=False)), arrays["features"])
    for name in ("path", "source", "label", "class_name", "decoded"):
        assert table[name].to_pylist() == arrays[name].tolist()
    assert set(arrays["source"]) == {"made", "other"}
    assert facts == json.loads(table.schema.metadata[b"ppma"])
    assert facts["weights_sha256"] == file_sha256(run.weights)
    assert facts["manifests"]["made.train"] == file_sha256(tiny_runs / "made_train.csv")


def test_views_are_averaged(tiny_runs):
    run = open_run(tiny_runs / "runs/mae", device="cpu", workers=1)
    source = subset(catalog.read(tiny_runs / "data.toml").manifest("made", "val"), [0, 7])
    views = embed(run, source, EvaluationConfig(windows=2, crops=3)).features_VWD
    assert views.shape[1] == 6
    found = ppma.Model(run).features(source, windows=2, crops=3)
    assert torch.allclose(found.values, views.mean(dim=1), atol=1e-6)


def test_an_undecodable_clip_stops_it_or_is_marked(tiny_runs, tmp_path, capfd):
    for name in ("data.toml", "made_val.csv"):
        shutil.copy(tiny_runs / name, tmp_path / name)
    root = catalog.read(tiny_runs / "data.toml").entry("made", "val").root
    shutil.copytree(root, tmp_path / "clips")
    catalog.add(
        tmp_path / "data.toml", name="made", split="val", manifest=tmp_path / "made_val.csv", root=tmp_path / "clips"
    )
    broken = sorted((tmp_path / "clips").rglob("*.mp4"))[3]
    broken.write_bytes(b"no video")
    flags = ["--dataset", "made", "--data", str(tmp_path / "data.toml")]
    assert features(tiny_runs, tmp_path / "f.npz", *flags) == 2
    assert broken.name in capfd.readouterr().err and not (tmp_path / "f.npz").exists()
    assert features(tiny_runs, tmp_path / "f.npz", *flags, "--on-bad", "mark") == 0
    arrays = np.load(tmp_path / "f.npz")
    assert arrays["decoded"].sum() == 11 and np.isnan(arrays["features"]).any(axis=1).sum() == 1
    assert np.isnan(arrays["features"][~arrays["decoded"]]).all()


def test_windows_slide_over_the_clips_of_a_data_set(tiny_runs, tmp_path):
    sliding = ["--dataset", "made", "--window", "2", "--stride", "1"]
    assert features(tiny_runs, tmp_path / "f.parquet", *sliding, run="finetune") == 0
    rows = parquet.read_table(tmp_path / "f.parquet").to_pydict()
    model = ppma.load_model(tiny_runs / "runs/finetune", device="cpu", workers=1)
    source = catalog.read(tiny_runs / "data.toml").manifest("made", "val")
    files = model.features([source.file(i) for i in range(len(source))], window=2.0, stride=1.0)
    assert np.allclose(rows["features"], files.values, atol=1e-6) and len(files) == 2 * len(source)
    assert rows["start_seconds"][:4] == [0, 1, 0, 1] and rows["end_seconds"][:2] == [2, 3]
    assert rows["label"] == source.labels.repeat(2).tolist() and rows["path"][0::2] == source.texts("path")
    flags = f"--checkpoint {tiny_runs}/runs/finetune --device cpu --data {tiny_runs}/data.toml --out {tmp_path}/p.npz"
    assert command(["predict", *sliding, "--crops", "1", *flags.split()]) == 0
    logits = model.run.classifier().logits_of_space(files.values[:, None], "made")[:, 0]
    assert np.allclose(np.load(tmp_path / "p.npz")["scores"], logits.softmax(dim=1).detach(), atol=1e-6)


@pytest.mark.parametrize(
    ("out", "flags", "problem"),
    [
        ("f.csv", ["--dataset", "made"], ".npz or .parquet"),
        ("nowhere/f.npz", ["--dataset", "made"], "nowhere"),
        ("f.npz", ["--dataset", "gone"], "gone"),
        ("f.npz", ["--dataset", "made", "--crops", "2"], "crops"),
        ("f.npz", [], "VIDEOS or --dataset"),
    ],
)
def test_wrong_input(tiny_runs, tmp_path, capfd, out, flags, problem):
    assert features(tiny_runs, tmp_path / out, *flags) == 2
    assert problem in capfd.readouterr().err and not list(tmp_path.iterdir())
