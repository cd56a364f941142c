"""Stores on the node's own disk: copied once, complete or not there, found again, and read instead of the shared ones."""

import threading

import pytest

from ppma.loaders import catalogue
from ppma.loaders.errors import InputError
from ppma.slurm import staging
from ppma.slurm.staging import stage


@pytest.fixture
def shared(tmp_path):
    """A catalogue of a packed source, with a quote in its folder's name, and one without a store."""
    folder = tmp_path / 'the "shared" disk'
    (folder / "made.beton" / "shards").mkdir(parents=True)
    (folder / "made.csv").write_text("rows")
    (folder / "made.beton" / "index.json").write_text("{}")
    (folder / "made.beton" / "shards" / "0").write_bytes(b"x" * 1000)
    for name, store in (("made", folder / "made.beton"), ("videos", None)):
        (folder / "data.toml").touch()
        catalogue.add(
            folder / "data.toml", name=name, split="train", manifest=folder / "made.csv", root=folder, store=store
        )
    return folder


def test_the_run_reads_the_copy(shared, tmp_path):
    data = stage(shared / "data.toml", ("made", "videos"), ("train", "val"), tmp_path / "node")
    entries = catalogue.read(data).entries
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
    made = catalogue.read(stage(*arguments)).entries["made", "train"]
    assert (made.store / "shards" / "0").stat().st_size == 1000


def test_a_disk_that_is_too_small_is_told(shared, tmp_path, monkeypatch):
    class Full:
        free = 10

    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: Full)
    with pytest.raises(InputError, match=r"made.train takes 0.0 GB, 0.0 GB are free there"):
        stage(shared / "data.toml", ("made",), ("train",), tmp_path / "node")
