"""Stores on the node's disk: copied once, atomically, reused, and read instead of the shared ones."""

import os
import shutil
import subprocess
import sys
import textwrap
import threading
from types import SimpleNamespace

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
    (folder / "data.toml").touch()
    for name, store in (("made", folder / "made.beton"), ("videos", None)):
        entry = {"name": name, "split": "train", "manifest": folder / "made.csv", "root": folder, "store": store}
        catalog.add(folder / "data.toml", **entry)
    return folder


def test_the_catalog_points_to_the_copy(shared, tmp_path):
    data = stage(shared / "data.toml", ("made", "videos"), ("train", "val"), tmp_path / "node")
    entries = catalog.read(data).entries
    made, videos = entries["made", "train"], entries["videos", "train"]
    assert made.store.is_relative_to(tmp_path / "node") and made.manifest.is_relative_to(tmp_path / "node")
    assert (made.store / "shards" / "0").read_bytes() == b"x" * 1000 and made.manifest.read_text() == "rows"
    assert made.root == shared and videos.manifest == shared / "made.csv" and videos.store is None


def test_a_store_is_copied_once_for_all_processes_and_again_when_it_changes(shared, tmp_path, monkeypatch):
    copied, real = [], shutil.copyfile
    monkeypatch.setattr(staging.shutil, "copyfile", lambda a, b: (copied.append(a.name), real(a, b)))
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


def test_a_killed_process_leaves_no_lock_and_no_half_copy(shared, tmp_path):
    arguments = (shared / "data.toml", ("made",), ("train",), tmp_path / "node")
    code = f"""
        import os, shutil
        from pathlib import Path
        from ppma.slurm import staging
        real = shutil.copyfile
        staging.shutil.copyfile = lambda a, b: os._exit(9) if a.name == "0" else real(a, b)
        staging.stage(Path({str(arguments[0])!r}), ("made",), ("train",), Path({str(arguments[3])!r}))
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False).returncode == 9
    made = catalog.read(stage(*arguments)).entries["made", "train"]
    assert (made.store / "shards" / "0").stat().st_size == 1000


@pytest.mark.parametrize(("most_gb", "copied"), [(1, 0), (2, 1), (3, 2), (9, 3)])
def test_as_many_shards_are_copied_as_fit(most_gb, copied, shared, tmp_path, monkeypatch):
    """The index always, with 4 bytes of manifest and 2 of index; links lead to the other shards."""
    monkeypatch.setattr(staging, "GB", 1000)
    for number in range(3):
        (shared / "made.beton" / f"shard-0000{number}.beton").write_bytes(b"%d" % number * 1000)
    (shared / "made.beton" / "shards" / "0").unlink()
    data = stage(shared / "data.toml", ("made", "videos"), ("train",), tmp_path / "node", most_gb=most_gb)
    store = catalog.read(data).entries["made", "train"].store
    assert (store / "index.json").read_text() == "{}" and not (store / "index.json").is_symlink()
    shards = sorted(store.glob("shard-*"))
    assert [shard.read_bytes()[:1] for shard in shards] == [b"0", b"1", b"2"]
    assert [shard.is_symlink() for shard in shards] == [number >= copied for number in range(3)]
    assert stage(shared / "data.toml", ("made", "videos"), ("train",), tmp_path / "node", most_gb=most_gb) == data


def test_a_disk_that_is_too_small_is_refused(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(InputError, match=r"--stage-to.*--stage-gb"):
        stage(shared / "data.toml", ("made",), ("train",), tmp_path / "node")


def test_data_is_read_into_memory_as_far_as_it_fits(shared, monkeypatch, caplog):
    done, manifests = [], []
    monkeypatch.setattr(staging, "MB", 1)
    monkeypatch.setattr(staging.Progress, "__call__", lambda _, size, total: done.append((size, total)))
    monkeypatch.setattr(staging.catalog.Catalog, "manifest", lambda _, *key: manifests.append(key))
    for memory, size in ((10_000, 1002), (1000, 500)):
        monkeypatch.setattr(staging, "_free_memory", lambda memory=memory: memory)
        with caplog.at_level("INFO"):
            warm(shared / "data.toml", ("made", "videos"), ("train", "val"))
        assert done[-1] == (size, size) and manifests[-2:] == [("made", "train"), ("videos", "train")]
        assert ("does not fit" in caplog.text) == (size == 500)


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
