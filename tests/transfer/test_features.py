"""Cached features: found again by every run with the same encoder, clips and views, by no other, and computed by one process at a time."""

import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import tiny
import torch
from processes import on_ranks
from safetensors.torch import load_file

from ppma.config.errors import InputError, Stopped
from ppma.config.run import EvaluationConfig
from ppma.loaders.sources import catalog
from ppma.models.classify import Classifier
from ppma.phases import train
from ppma.training.compute import choose
from ppma.transfer import features
from ppma.transfer.features import PLAIN_VIEWS, address, cached_features, compute_features, folder_of

FP32, FP64 = choose("fp32", tiny.ALONE.device), choose("fp64", tiny.ALONE.device)
cached = partial(cached_features, views=PLAIN_VIEWS, ranks=tiny.ALONE, compute=FP32)


@pytest.fixture(scope="module")
def data(tmp_path_factory, clip_tree):
    return tiny.make_data(tmp_path_factory.mktemp("features"), clip_tree, "train", "val")


@pytest.fixture
def config(data, tmp_path):
    return tiny.config("probe", data, tmp_path / "runs/run")


@pytest.fixture
def manifest(data):
    return catalog.find(data).manifest("made", "train")


def model_of(config, seed=0):
    return Classifier(config.vit, {"made": 4}, config.classifier, seed=seed)


def kept(folder):
    return sorted(path.name for path in folder.glob("*.safetensors"))


class Stopping(RuntimeError):
    """Stands for a kill."""


@pytest.mark.promise("R31")
def test_a_killed_pass_goes_on_at_another_world_size_with_the_same_bits(config, manifest, tmp_path, monkeypatch):
    """Two ranks are killed, then three, each with some batches done; one rank computes the rest."""
    views, model = replace(PLAIN_VIEWS, batch_clips=2), model_of(config)
    monkeypatch.setattr(features, "ClipStream", tiny.MadeClips)
    tokens, computed, left = Classifier.tokens, [], [10**6]

    def counted(model, patches, visible):
        if len(computed) == left[0]:
            raise Stopping
        computed.append(1)
        return tokens(model, patches, visible)

    monkeypatch.setattr(Classifier, "tokens", counted)
    run = partial(compute_features, model, manifest, config.loader, views, compute=FP32)
    whole = run(ranks=tiny.ALONE)
    computed.clear()
    monkeypatch.setattr(features, "distributed", SimpleNamespace(on_main=lambda ranks, work: work()))
    for rank, world_size, most in ((0, 2, 1), (1, 2, 2), (2, 3, 1)):  # batch 0; 2 and 4; then 5
        left[0] = len(computed) + most
        with pytest.raises((Stopping, ValueError)):  # a rank that is done finds no other to exchange with
            run(ranks=replace(tiny.ALONE, rank=rank, world_size=world_size), kept=tmp_path / "kept")
    assert kept(tmp_path / "kept") == [f"{number:08d}.safetensors" for number in (0, 2, 4, 5)]
    left[0] = 10**6
    rest = run(ranks=tiny.ALONE, kept=tmp_path / "kept")
    assert len(computed) == 6
    assert torch.equal(rest.features_VWD, whole.features_VWD) and torch.equal(rest.decoded_V, whole.decoded_V)


@pytest.mark.promise("R31")
@pytest.mark.parametrize("recipe", ["knn", "probe"])
def test_a_signal_stops_a_protocol_in_a_pass_that_it_then_finishes(recipe, data, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "ClipStream", tiny.MadeClips)
    tokens, computed = Classifier.tokens, []

    def stopping(model, patches, visible):
        computed.append(1)
        if len(computed) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return tokens(model, patches, visible)

    monkeypatch.setattr(Classifier, "tokens", stopping)
    config = tiny.config(recipe, data, tmp_path / "run")
    with pytest.raises(Stopped):
        train(config)
    train(config)
    assert len(computed) == 3 and (tmp_path / "run/result.json").exists()


def test_every_protocol_on_one_encoder_and_data_set_finds_the_same_features(data, tmp_path, caplog):
    runs = tmp_path / "runs"
    train(tiny.config("probe", data, runs / "first"))
    files = kept(runs / "features")
    assert len(files) == 2  # plain views of train, 2 x 3 views of val
    with caplog.at_level("INFO"):
        train(
            tiny.config("probe_published", data, runs / "published")
        )  # trains on clips, and is tested on the features
    assert kept(runs / "features") == files and caplog.text.count("read from") == 1
    train(tiny.config("finetune", data, runs / "tuned"))
    assert kept(runs / "features") == files  # weights of one run only
    assert len(kept(runs / "tuned/features")) == 1


def test_other_weights_views_clips_or_precision_are_other_features(config, manifest, data):
    model, loader = model_of(config), config.loader
    base = address(model, manifest, loader, PLAIN_VIEWS, FP32)
    headless = Classifier(config.vit, {"other": 9}, seed=0)  # the head has random numbers of its own
    faster = replace(loader, workers=4, prefetch_batches=5)
    copied = catalog.find(data).manifest("made", "val")  # the same list of the same clips
    for same in ((model_of(config), manifest, faster), (headless, manifest, loader), (model, copied, loader)):
        assert address(*same, PLAIN_VIEWS, FP32) == base
    heads = Classifier(replace(config.vit, heads=6), {"made": 4}, seed=0)  # the same weights, another attention
    others = [
        address(model_of(config, seed=1), manifest, loader, PLAIN_VIEWS, FP32),
        address(heads, manifest, loader, PLAIN_VIEWS, FP32),
        address(model, manifest, replace(loader, window_seconds=1.0), PLAIN_VIEWS, FP32),
        address(model, manifest, loader, EvaluationConfig(windows=2, crops=1), FP32),
        address(model, manifest, loader, PLAIN_VIEWS, FP64),
    ]
    assert len({base, *others}) == 6


def test_a_blurred_copy_under_the_same_names_is_not_taken_for_its_original(config, manifest, tmp_path, write_clip):
    before = address(model_of(config), manifest, config.loader, PLAIN_VIEWS, FP32)
    shutil.copytree(manifest.root, tmp_path / "copy")
    moved = type(manifest).read(manifest.path, root=tmp_path / "copy", name="made")
    assert address(model_of(config), moved, config.loader, PLAIN_VIEWS, FP32) == before  # moving changes nothing
    write_clip(moved.file(5), frames=30, direction=(0, -1), color=(9, 9, 9))
    assert address(model_of(config), moved, config.loader, PLAIN_VIEWS, FP32) != before


def test_cached_features_are_the_computed_ones_and_damage_is_reported(config, manifest):
    fresh = compute_features(model_of(config), manifest, config.loader, PLAIN_VIEWS, ranks=tiny.ALONE, compute=FP32)
    for _ in range(2):
        found = cached(model_of(config), manifest, config)
        assert torch.equal(found.features_VWD, fresh.features_VWD) and found.decoded_V.all()
    (name,) = kept(folder_of(config))
    path = folder_of(config) / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=name):
        cached(model_of(config), manifest, config)


def test_the_folder_of_features_is_a_flag_or_a_variable(config, tmp_path, monkeypatch):
    assert folder_of(config) == tmp_path / "runs/features"
    monkeypatch.setenv("PPMA_FEATURES", str(tmp_path / "all"))
    assert folder_of(config) == tmp_path / "all"
    assert folder_of(replace(config, features=tmp_path / "own")) == tmp_path / "own"
    tuned = replace(config, classifier=replace(config.classifier, freeze_encoder=False))
    assert folder_of(tuned) == folder_of(replace(config, privacy="strict")) == config.run_dir / "features"


def count_computed(ranks, data, run_dir):
    """Return how often this process computed the features of a run, and their sum."""
    computed, compute = [], compute_features
    features.compute_features = lambda *a, **k: computed.append(1) or compute(*a, **k)
    config = tiny.config("probe", data, run_dir)
    found = cached(model_of(config), catalog.find(data).manifest("made", "train"), config)
    return len(computed), found.features_VWD.double().sum().item()


def test_of_processes_that_need_the_same_features_one_computes_them(config, data, tmp_path):
    results = on_ranks(2, count_computed, tmp_path, data, config.run_dir)
    assert sorted(count for count, _ in results) == [0, 1]
    assert results[0][1] == results[1][1]
    assert not list(folder_of(config).glob(".*.tmp*"))


def test_a_killed_process_leaves_neither_half_a_file_nor_a_lock(config, manifest):
    cached(model_of(config), manifest, config)
    (name,) = kept(folder_of(config))
    stored = load_file(folder_of(config) / name)
    (folder_of(config) / name).unlink()
    (folder_of(config) / f".{name}.abc.tmp").write_bytes(b"half")  # as left by a kill during a write
    again = cached(model_of(config), manifest, config)
    assert torch.equal(again.features_VWD, stored["features_VWD"])
