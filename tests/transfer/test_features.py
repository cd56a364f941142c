"""Cached features: found again by every run with the same encoder, clips and views, by no other, and computed by one process at a time."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from ppma.cli import main as ppma
from ppma.config.errors import InputError
from ppma.config.flags import resolve
from ppma.config.run import EvaluationConfig
from ppma.loaders.sources import catalog
from ppma.models.classify import Classifier
from ppma.train import train
from ppma.training.compute import choose
from ppma.training.distributed import Ranks
from ppma.transfer.features import PLAIN_VIEWS, address, cached_features, compute_features, folder_of

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
FP32, FP64 = choose("fp32", ALONE.device), choose("fp64", ALONE.device)


@pytest.fixture(scope="module")
def data(tmp_path_factory, clip_tree):
    """A copy of the clips that tests may change, with a catalog."""
    folder = tmp_path_factory.mktemp("features")
    shutil.copytree(clip_tree, folder / "clips")
    for split in ("train", "val"):
        flags = f"--root {folder}/clips --out {folder}/{split}.csv --name made --split {split} --data {folder}/data.toml".split()
        assert ppma(["index", str(folder / "clips"), *flags]) == 0
    return folder / "data.toml"


def config_of(data, run_dir, name="probe", *flags):
    shape = [*tiny.FLAGS, "--dataset", "made", "--batch", "4", "--optim.epochs", "1", "--data", str(data)]
    return resolve(name, [*shape, "--run-dir", str(run_dir), *flags])


def model_of(config, seed=0):
    return Classifier(config.vit, {"made": 4}, config.classifier, seed=seed)


def kept(folder):
    return sorted(path.name for path in folder.glob("*.safetensors"))


def test_every_protocol_on_one_encoder_and_data_set_finds_the_same_features(data, tmp_path, caplog):
    runs = tmp_path / "runs"
    train(config_of(data, runs / "first"))
    files = kept(runs / "features")
    assert len(files) == 2  # plain views of train, 2 x 3 views of val
    with caplog.at_level("INFO"):
        train(config_of(data, runs / "published", "probe_published"))  # trains on clips, and is tested on the features
    assert kept(runs / "features") == files and caplog.text.count("read from") == 1
    train(config_of(data, runs / "tuned", "finetune"))
    assert kept(runs / "features") == files  # of weights that nobody else has
    assert len(kept(runs / "tuned/features")) == 1


def test_other_weights_views_clips_or_precision_are_other_features(data, tmp_path):
    config = config_of(data, tmp_path / "run")
    manifest = catalog.find(data).manifest("made", "train")
    model = model_of(config)
    base = address(model, manifest, config.loader, PLAIN_VIEWS, FP32)
    assert base == address(
        model_of(config), manifest, replace(config.loader, workers=4, prefetch_batches=5), PLAIN_VIEWS, FP32
    )
    headless = Classifier(config.vit, {"other": 9}, seed=0)  # the head is drawn apart from the trunk
    assert base == address(headless, manifest, config.loader, PLAIN_VIEWS, FP32)
    heads = Classifier(replace(config.vit, heads=6), {"made": 4}, seed=0)
    others = [
        address(model_of(config, seed=1), manifest, config.loader, PLAIN_VIEWS, FP32),
        address(heads, manifest, config.loader, PLAIN_VIEWS, FP32),  # the same weights, another attention
        address(model, manifest, replace(config.loader, window_seconds=1.0), PLAIN_VIEWS, FP32),
        address(model, manifest, config.loader, EvaluationConfig(windows=2, crops=1), FP32),
        address(model, manifest, config.loader, PLAIN_VIEWS, FP64),
        address(model, catalog.find(data).manifest("made", "val"), config.loader, PLAIN_VIEWS, FP32),
    ]
    assert base not in others[:5] and len(set(others[:5])) == 5
    assert others[5] == base  # the same list of the same clips, under another split's name


def test_a_blurred_copy_under_the_same_names_is_not_taken_for_its_original(data, tmp_path, write_clip):
    config = config_of(data, tmp_path / "run")
    manifest = catalog.find(data).manifest("made", "train")
    before = address(model_of(config), manifest, config.loader, PLAIN_VIEWS, FP32)
    shutil.copytree(data.parent / "clips", tmp_path / "copy")
    moved = type(manifest).read(manifest.path, root=tmp_path / "copy", name="made")
    assert address(model_of(config), moved, config.loader, PLAIN_VIEWS, FP32) == before  # moving changes nothing
    write_clip(moved.file(5), frames=30, direction=(0, -1), colour=(9, 9, 9))
    assert address(model_of(config), moved, config.loader, PLAIN_VIEWS, FP32) != before


def test_cached_features_are_the_computed_ones_and_damage_is_told(data, tmp_path):
    config = config_of(data, tmp_path / "run")
    manifest = catalog.find(data).manifest("made", "train")
    model = model_of(config)
    fresh = compute_features(model, manifest, config.loader, PLAIN_VIEWS, ranks=ALONE, compute=FP32)
    for _ in range(2):
        found = cached_features(model, manifest, config, PLAIN_VIEWS, ranks=ALONE, compute=FP32)
        assert torch.equal(found.features_VWD, fresh.features_VWD) and found.decoded_V.all()
    (name,) = kept(folder_of(config))
    path = folder_of(config) / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"damaged .* delete it"):
        cached_features(model, manifest, config, PLAIN_VIEWS, ranks=ALONE, compute=FP32)


def test_the_folder_of_features_is_a_flag_or_a_variable(data, tmp_path, monkeypatch):
    config = config_of(data, tmp_path / "runs/run")
    assert folder_of(config) == tmp_path / "runs/features"
    monkeypatch.setenv("PPMA_FEATURES", str(tmp_path / "all"))
    assert folder_of(config) == tmp_path / "all"
    assert folder_of(replace(config, features=tmp_path / "own")) == tmp_path / "own"
    assert folder_of(config_of(data, tmp_path / "runs/run", "finetune")) == tmp_path / "runs/run/features"


WORKER = """
if __name__ == "__main__":
    import json, sys
    sys.path.insert(0, sys.argv[1])
    from tests.transfer.test_features import ALONE, FP32, PLAIN_VIEWS, config_of, model_of
    from ppma.transfer import features
    from ppma.loaders.sources import catalog
    computed = []
    whole = features.compute_features
    features.compute_features = lambda *a, **k: computed.append(1) or whole(*a, **k)
    config = config_of(sys.argv[2], sys.argv[3] + "/run")
    manifest = catalog.find(sys.argv[2]).manifest("made", "train")
    found = features.cached_features(model_of(config), manifest, config, PLAIN_VIEWS, ranks=ALONE, compute=FP32)
    print(json.dumps([len(computed), float(found.features_VWD.double().sum())]))
"""


def test_of_processes_that_want_the_same_features_one_computes_them(data, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    argv = [
        sys.executable,
        str(tmp_path / "worker.py"),
        str(Path(__file__).parents[1]),
        str(data),
        str(tmp_path),
    ]
    processes = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert sorted(count for count, _ in told) == [0, 1]
    assert len({total for _, total in told}) == 1
    assert not list((tmp_path / "features").glob(".*.tmp"))


def test_a_killed_process_leaves_no_half_file_and_no_lock(data, tmp_path):
    config = config_of(data, tmp_path / "run")
    manifest = catalog.find(data).manifest("made", "train")
    cached_features(model_of(config), manifest, config, PLAIN_VIEWS, ranks=ALONE, compute=FP32)
    (name,) = kept(folder_of(config))
    stored = load_file(folder_of(config) / name)
    (folder_of(config) / name).unlink()
    (folder_of(config) / f".{name}.abc.tmp").write_bytes(
        b"half"
    )  # what a kill while writing leaves, beside the lock file
    again = cached_features(model_of(config), manifest, config, PLAIN_VIEWS, ranks=ALONE, compute=FP32)
    assert torch.equal(again.features_VWD, stored["features_VWD"])
