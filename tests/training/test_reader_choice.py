"""loader.implementation auto: what is measured, when, and what all ranks make of it."""

import os
import threading
from dataclasses import replace

import pytest
import torch

from ppma.config.loader import LoaderConfig
from ppma.loaders import readers
from ppma.loaders.decode import dali as pipeline
from ppma.loaders.decode.dali import decode_threads
from ppma.loaders.sampler import TrainingSampler
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.store import SUFFIX, is_packed
from ppma.loaders.stream import ClipStream
from ppma.training import distributed
from ppma.training.distributed import Ranks
from ppma.training.tasks import WORTH_STEPS, choose_reader
from tests.loaders.test_stream import CONFIG, row

AUTO = replace(CONFIG, implementation="auto", randaugment_ops=0)
CPU = torch.device("cpu")
ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=CPU)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, write_clip):
    """Eight clips that both DALI and PyAV decode."""
    root = tmp_path_factory.mktemp("choice")
    for number in range(8):
        write_clip(root / f"{number}.webm", frames=24, codec="libvpx")
    return Manifest.from_clips([row(f"{n}.webm", 0) for n in range(8)], root=root, name="made")


@pytest.fixture
def sampler(manifest):
    return TrainingSampler([manifest], AUTO, seed=5, batch_clips=4)


@pytest.fixture
def measured(monkeypatch):
    """Names of the readers that were measured, as on a machine with all of them; `rates` may be changed."""
    rates, seen = {"dali": 100.0, "ffcv": 300.0, "plain": 200.0}, []
    monkeypatch.setattr(readers, "servable", lambda *_: list(rates))

    def measure(name, *_, first_step, **__):
        seen.append((name, first_step))
        return rates[name]

    monkeypatch.setattr(readers, "clips_per_second", measure)
    return rates, seen


def choose(config=AUTO, ranks=ALONE, step=10, total_steps=1000):
    return choose_reader(None, [], config, ranks, step=step, total_steps=total_steps)


def test_the_fastest_reader_is_taken_and_said(measured, caplog):
    caplog.set_level("INFO")
    assert choose() == replace(AUTO, implementation="ffcv")
    assert all(figure in caplog.text for figure in ("dali 100", "ffcv 300", "plain 200"))
    _, seen = measured
    assert [name for name, _ in seen] == ["dali", "ffcv", "plain"]
    assert len({step for _, step in seen}) == 3 and seen[0][1] == 10


def test_nothing_is_measured_where_nothing_is_to_be_chosen(measured):
    rates, seen = measured
    named = replace(AUTO, implementation="plain")
    assert choose(named) == named
    assert choose(step=0, total_steps=WORTH_STEPS - 1) == AUTO
    del rates["dali"], rates["ffcv"]
    assert choose() == AUTO
    assert not seen


def test_ranks_agree_on_the_reader_whose_slowest_rank_is_fastest(measured, monkeypatch):
    """The other rank has no FFCV, and its DALI is slow."""
    _, seen = measured
    others = iter([["dali", "plain"], {"dali": 50.0, "plain": 90.0}])
    monkeypatch.setattr(distributed, "gather_objects", lambda mine, ranks: [mine, next(others)])
    monkeypatch.setattr(distributed, "barrier", lambda ranks: seen.append("meet"))
    two = Ranks(rank=0, world_size=2, local_rank=0, device=CPU)
    assert choose(ranks=two).implementation == "plain"
    assert [entry if entry == "meet" else entry[0] for entry in seen] == ["meet", "dali", "meet", "plain"]


def test_real_readers_are_measured_and_the_run_gets_its_samples(manifest, sampler, monkeypatch, caplog):
    """On a CPU with the check of the device lifted."""
    caplog.set_level("INFO")
    monkeypatch.setattr(readers, "servable", lambda *_: ["dali", "plain"])
    monkeypatch.setattr(readers, "MEASURED_SECONDS", 0.5)
    monkeypatch.setattr(readers, "START_SECONDS", 300.0)
    chosen = choose_reader(sampler, [manifest], AUTO, ALONE, step=0, total_steps=1000)
    assert chosen.implementation in ("dali", "plain") and "clips/s" in caplog.text and "leaves out" not in caplog.text
    assert not [thread for thread in threading.enumerate() if thread.name == "ppma-batches"]
    for config in (chosen, replace(AUTO, implementation="plain")):
        with ClipStream(sampler, [manifest], config) as stream:
            batches = list(stream)
        assert [batch.step for batch in batches] == [0, 1] and batches[-1].counters.samples == 8
        for batch in batches:
            assert batch.sample_id_B[::2].tolist() == [sample.clip for sample in sampler.samples(0, batch.step)]


def test_a_reader_that_fails_or_stalls_counts_as_slow(manifest, sampler, tmp_path, monkeypatch, caplog):
    assert readers.clips_per_second("ffcv", sampler, [manifest], AUTO, device=CPU) == 0
    assert "skips ffcv" in caplog.text

    def broken(*_, **__):
        raise RuntimeError("no NVDEC")

    monkeypatch.setattr(pipeline.DaliViews, "__call__", broken)
    assert readers.clips_per_second("dali", sampler, [manifest], AUTO, device=CPU) == 0
    assert "no NVDEC" in caplog.text
    (tmp_path / "stalled").mkdir()
    os.mkfifo(tmp_path / "stalled" / "000001.jpg")
    stalled = Manifest.from_clips([row("stalled", 0, codec="jpeg")] * 4, root=tmp_path, name="stalled")
    batches = TrainingSampler([stalled], AUTO, seed=0, batch_clips=4)
    monkeypatch.setattr(readers, "START_SECONDS", 0.3)
    assert readers.clips_per_second("plain", batches, [stalled], AUTO, device=CPU) == 0
    assert "no batch within 0.3 s" in caplog.text


def test_readers_that_could_serve(manifest, monkeypatch):
    gpu, packed = torch.device("cuda"), replace_paths(manifest)
    assert readers.servable(AUTO, [manifest], CPU) == ["plain"]
    monkeypatch.setattr(pipeline, "available", lambda device: (True, ""))
    monkeypatch.setattr(readers.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(readers, "is_packed_as_jpeg", is_packed)  # there are no such shards
    fitting = replace(AUTO, short_side=48)
    assert readers.servable(fitting, [packed], gpu) == ["dali", "ffcv", "plain"]
    for config, sources in (
        (fitting, [packed, manifest]),  # one is not a packed store
        (AUTO, [packed]),  # it would have to be scaled
        (replace(fitting, randaugment_ops=2), [packed]),
    ):
        assert readers.servable(config, sources, gpu) == ["dali", "plain"]
    monkeypatch.setattr(pipeline, "available", lambda device: (False, "no driver"))
    assert readers.servable(AUTO, [manifest], gpu) == ["plain"]


def replace_paths(manifest):
    rows = [replace(manifest.clip(n), path=f"shard-00000{SUFFIX}#{n}") for n in range(len(manifest))]
    return Manifest.from_clips(rows, root=manifest.root, name="packed")


def test_dali_gets_a_thread_for_each_decode_engine(monkeypatch):
    config, gpu = LoaderConfig(workers=3), torch.device("cuda")
    assert decode_threads(config, CPU) == 3
    for name, engines in (
        ("NVIDIA H200", 7),
        ("NVIDIA H100 80GB HBM3", 7),
        ("NVIDIA A100-SXM4-80GB", 5),
        ("NVIDIA GeForce", 2),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert decode_threads(config, gpu) == engines


@pytest.mark.cuda
def test_a_gpu_measures_dali_against_plain(manifest, sampler, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(readers, "MEASURED_SECONDS", 0.5)
    ranks = replace(ALONE, device=torch.device("cuda", 0))
    choose_reader(sampler, [manifest], AUTO, ranks, step=0, total_steps=1000)
    assert "clips/s" in caplog.text and "leaves out" not in caplog.text
