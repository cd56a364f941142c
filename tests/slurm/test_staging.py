"""Stores on the node's own disk: copied once, complete or not there, found again, and read instead of the shared ones."""

import os
import threading
from pathlib import Path

import pytest

from ppma.config.errors import InputError
from ppma.loaders.sources import catalog
from ppma.slurm import staging
from ppma.slurm.job import PREPARE_SECONDS, Job
from ppma.slurm.plan import plan
from ppma.slurm.staging import stage, warm


@pytest.fixture
def shared(tmp_path):
    """A catalog of a packed source, with a quote in its folder's name, and one without a store."""
    folder = tmp_path / 'the "shared" disk'
    (folder / "made.beton" / "shards").mkdir(parents=True)
    (folder / "made.csv").write_text("rows")
    (folder / "made.beton" / "index.json").write_text("{}")
    (folder / "made.beton" / "shards" / "0").write_bytes(b"x" * 1000)
    for name, store in (("made", folder / "made.beton"), ("videos", None)):
        (folder / "data.toml").touch()
        catalog.add(
            folder / "data.toml", name=name, split="train", manifest=folder / "made.csv", root=folder, store=store
        )
    return folder


def test_the_run_reads_the_copy(shared, tmp_path):
    data = stage(shared / "data.toml", ("made", "videos"), ("train", "val"), tmp_path / "node")
    entries = catalog.read(data).entries
    made, videos = entries["made", "train"], entries["videos", "train"]
    assert made.store.is_relative_to(tmp_path / "node") and made.manifest.is_relative_to(tmp_path / "node")
    assert (made.store / "shards" / "0").read_bytes() == b"x" * 1000 and made.manifest.read_text() == "rows"
    assert made.root == shared and videos.manifest == shared / "made.csv" and videos.store is None


def test_it_is_copied_once_for_all_processes_and_again_when_it_changes(shared, tmp_path, monkeypatch):
    copied, real = [], staging._copy_file
    monkeypatch.setattr(staging, "_copy_file", lambda *a: (copied.append(a[0].name), real(*a)))
    arguments = (shared / "data.toml", ("made",), ("train",), tmp_path / "node")
    found = []
    processes = [threading.Thread(target=lambda: found.append(stage(*arguments))) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(set(found)) == 1 and sorted(copied) == ["0", "index.json", "made.csv"]
    (shared / "made.beton" / "index.json").write_text("{ }")
    assert stage(*arguments) != found[0] and len(copied) == 6


def test_an_interrupted_copy_is_no_copy(shared, tmp_path, monkeypatch):
    arguments = (shared / "data.toml", ("made",), ("train",), tmp_path / "node")
    with monkeypatch.context() as broken, pytest.raises(OSError, match="gone"):
        real = staging._copy_file

        def fails(source, *rest):
            if source.name == "0":
                raise OSError("the disk is gone")
            real(source, *rest)

        broken.setattr(staging, "_copy_file", fails)
        stage(*arguments)
    made = catalog.read(stage(*arguments)).entries["made", "train"]
    assert (made.store / "shards" / "0").stat().st_size == 1000


def test_a_disk_that_is_too_small_is_told(shared, tmp_path, monkeypatch):
    class Full:
        free = 10

    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: Full)
    with pytest.raises(InputError, match=r"made.train takes 0.0 GB, 0.0 GB are free there"):
        stage(shared / "data.toml", ("made",), ("train",), tmp_path / "node")


def test_data_is_read_into_memory_as_far_as_it_fits(shared, monkeypatch, caplog):
    read, real = [], Path.open

    class Counted:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def read(self, size):
            read.append(len(data := self.file.read(size)))
            return data

    def counted(path, mode="r", **names):
        file = real(path, mode, **names)
        return Counted(file) if mode == "rb" else file

    monkeypatch.setattr(Path, "open", counted)
    manifests = []
    monkeypatch.setattr(staging.catalog.Catalog, "manifest", lambda _, *key: manifests.append(key))
    with caplog.at_level("INFO"):
        warm(shared / "data.toml", ("made", "videos"), ("train", "val"))
    assert sum(read) == 1002 and manifests == [("made", "train"), ("videos", "train")]
    assert "warmed 2 sources" in caplog.text and "does not fit" not in caplog.text
    read.clear()
    monkeypatch.setattr(staging, "_free_memory", lambda: 1000)
    with caplog.at_level("INFO"):
        warm(shared / "data.toml", ("made",), ("train",))
    assert sum(read) == 500 and "does not fit" in caplog.text


@pytest.mark.parametrize("local_rank", [0, 1])
def test_one_process_of_a_node_warms_and_the_others_wait_longer_for_it(local_rank, shared, monkeypatch):
    warmed = []
    monkeypatch.setattr("ppma.slurm.job.warm", lambda *call: warmed.append(call))
    monkeypatch.setattr(os, "environ", {**os.environ, "LOCAL_RANK": str(local_rank)})
    flags = ["--warm", "--sources", "made", "--data", str(shared / "data.toml"), "--gpus-per-node", "0"]
    (job,) = plan("align", flags)[1][0].jobs
    config = job._staged()
    assert config.data == shared / "data.toml"
    assert warmed == ([(shared / "data.toml", ("made",), ("train", "val"))] if local_rank == 0 else [])
    assert os.environ["PPMA_JOIN_SECONDS"] == str(PREPARE_SECONDS)
    assert Job(work=print, config=["pack"], warm=True)._staged() == ["pack"]
