"""`ppma pack` resumes after a kill, packs damaged shards again, and estimates size and time before it starts."""

import multiprocessing
import shutil
import signal
import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest
from full_disk import content
from waiting import wait_until

from ppma.cli import main
from ppma.common import shares
from ppma.common.progress import Progress
from ppma.common.shares import Share
from ppma.common.workers import ALONE_KILLS
from ppma.config.errors import InputError
from ppma.data import shard_writer as packing
from ppma.loaders.decode import fetch
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.store import Store, read_index


@pytest.fixture(scope="module")
def indexed(tmp_path_factory, clip_tree):
    """A folder with data.toml, in which the tree of clips is `tree`."""
    folder = tmp_path_factory.mktemp("indexed")
    flags = f"--out {folder}/tree.csv --name tree --data {folder}/data.toml --workers 1"
    assert main(["index", str(clip_tree), *flags.split()]) == 0
    return folder


@pytest.fixture
def data(indexed, tmp_path):
    """A data.toml of this test alone."""
    return shutil.copytree(indexed, tmp_path / "data") / "data.toml"


def pack(data, *flags):
    return main(["pack", "tree", "--data", str(data), "--out", str(data.with_name("tree.beton")), *flags])


def test_a_source_is_packed_and_read_from_its_store(data, capsys, clip_tree):
    assert pack(data, "--dry-run") == 0
    output = capsys.readouterr().out
    assert "12 clips, 360 frames to pack: about" in output and "GB are free" in output
    assert not data.with_name("tree.beton").exists()
    assert pack(data, "--quality", "80", "--short-side", "32", "--workers", "2") == 0
    assert "12 clips, 360 frames of" in capsys.readouterr().out
    entry = catalog.find(data).entry("tree")
    assert entry.store == data.with_name("tree.beton") and entry.root == clip_tree
    packed, plain = catalog.find(data).manifest("tree"), Manifest.read(entry.manifest, root=entry.root)
    for i in range(12):
        frames, expected = fetch.read_window(packed.file(i), 0.5, 2.5, 4), fetch.read_window(plain.file(i), 0.5, 2.5, 4)
        assert frames.shape[1:3] == (packed.heights[i], packed.widths[i]) and min(frames.shape[1:3]) == 32
        assert abs(frames.mean() - expected.mean()) < 3
    names = ["index.json", "manifest.csv", "rejected.csv", "rows.npy", "shard-00000.beton"]
    assert sorted(p.name for p in entry.store.iterdir()) == names


def test_wrong_input_is_one_line(data, tmp_path, capsys):
    assert pack(data) == 0
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").touch()
    capsys.readouterr()
    for flags, noun in (
        (["--quality", "80"], "packed with"),
        (["--out", str(tmp_path / "full")], "not a packed store"),
        (["--quality", "101"], "between 1 and 100"),
        (["--codec", "h264", "--quality", "90"], "between 1 and 51"),
        (["--codec", "av9"], "hevc"),
        (["--gop", "0"], "--gop is 0"),
        (["--codec", "jpeg", "--gop", "8"], "--codec hevc"),
        (["--codec", "hevc", "--short-side", "250"], "give 256"),
        (["--fps", "some"], "auto"),
        (["--fps", "0"], "auto"),
        (["--out", str(tmp_path / "no" / "x.beton")], "no folder"),
        (["--split", "val"], "has no source tree.val"),
    ):
        assert pack(data, *flags) == 2
        error = capsys.readouterr().err
        assert noun in error and error.count("\n") == 1
    other = data.with_name("tree.csv")
    other.write_text(other.read_text().replace("moving left", "moving nowhere"))
    assert pack(data) == 2 and "another manifest" in capsys.readouterr().err


def test_a_disk_that_is_too_small_is_refused(data, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    assert pack(data) == 75
    assert "are needed" in capsys.readouterr().err and not data.with_name("tree.beton").exists()


def test_damaged_shards_are_packed_again(data, capsys):
    assert pack(data) == 0
    folder = data.with_name("tree.beton")
    shard = folder / "shard-00000.beton"
    good = shard.read_bytes()
    for damaged, said in ((good[:-1] + bytes([good[-1] ^ 1]), "differs from its checksum"), (good[:-1], "bytes, not")):
        shard.write_bytes(damaged)
        capsys.readouterr()
        assert pack(data, "--verify") == 0
        assert said in capsys.readouterr().out and shard.read_bytes() == good
    written = shard.stat().st_mtime_ns
    assert pack(data, "--verify") == 0 and shard.stat().st_mtime_ns == written


KILLED = """
import sys
from ppma.cli import main
from ppma.data import shard_writer as packing
packing.SHARD_FRAMES = 60
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.promise("R29")
def test_a_killed_run_resumes_with_the_same_bytes(data, monkeypatch):
    """With video, whose encoder must not depend on what it encoded before; the parts below pack JPEG."""
    monkeypatch.setattr(packing, "SHARD_FRAMES", 60)
    assert pack(data, "--gop", "4", "--workers", "2") == 0
    whole = data.with_name("tree.beton").rename(data.with_name("whole.beton"))
    folder = data.with_name("tree.beton")
    command = ["pack", "tree", "--data", str(data), "--out", str(folder), "--gop", "4", "--workers", "1"]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *command], stdout=subprocess.DEVNULL)
    wait_until(lambda: list(folder.glob("shard-*")))
    process.kill()
    process.wait()
    found = len(list(folder.glob("shard-*")))
    assert 1 <= found < 6 and not read_index(folder).complete
    assert pack(data, "--gop", "4", "--workers", "1") == 0
    assert [s.sha256 for s in Store(folder).index.shards] == [s.sha256 for s in Store(whole).index.shards]
    assert np.array_equal(Store(folder).places, Store(whole).places) and not list(folder.glob(".*"))


@pytest.fixture
def whole(data, monkeypatch):
    """A store of six shards, packed in one run."""
    monkeypatch.setattr(packing, "SHARD_FRAMES", 60)
    assert pack(data, "--workers", "1") == 0
    return data.with_name("tree.beton").rename(data.with_name("whole.beton"))


def check_same(folder, whole):
    assert content(folder) == content(whole) and Store(folder).index == Store(whole).index


@pytest.mark.usefixtures("owners_live")
def test_parts_give_the_same_store_as_one_run(data, whole, capsys):
    """A shard that another task has begun is left to it; all others are done by the only part that runs."""
    folder = data.with_name("tree.beton")
    other = Share(folder / shares.FOLDER, (0, 2))
    assert pack(data, "--part", "0/2", "--dry-run") == 0
    folder.mkdir()
    (folder / "index.json").write_text((whole / "index.json").read_text())  # whose shards are all gone
    begun = next(next(other.rounds([packing.shard_name(3)])))
    assert pack(data, "--workers", "1", "--part", "0/2") == 0
    assert "wrote 5 of 6" in capsys.readouterr().out
    (folder / ".shard-00003.k1_llled.tmp.beton").touch()  # of a killed task
    assert pack(data, "--merge", "2") == 2
    assert begun in capsys.readouterr().err
    with pytest.raises(InputError):
        Store(folder)
    other.finish(begun)  # its task ends without it
    assert pack(data, "--workers", "1", "--part", "1/2") == 0
    for _ in range(2):  # a merge that is queued again finds its result
        assert pack(data, "--merge", "2") == 0
    check_same(folder, whole)
    assert catalog.find(data).entry("tree").store == folder


def test_of_tasks_with_other_settings_that_start_at_the_same_moment_one_is_refused(data, capsys):
    assert pack(data, "--workers", "1", "--part", "0/2") == 0
    for file in data.with_name("tree.beton").glob("[!.]*"):  # so that the other finds as little as the first did
        file.unlink()
    assert pack(data, "--workers", "1", "--part", "1/2", "--quality", "80") == 2
    assert "quality" in capsys.readouterr().err


@pytest.mark.promise("R24")
def test_a_part_takes_over_the_shards_of_a_killed_one(data, whole, figure):
    """Two tasks at once; one is killed as soon as it has begun a shard, the other does the rest."""
    folder = data.with_name("tree.beton")

    def start(part):
        command = ["pack", "tree", "--data", str(data), "--out", str(folder), "--workers", "1", "--part", part]
        return subprocess.Popen([sys.executable, "-c", KILLED, *command], stdout=subprocess.DEVNULL)

    killed = start("1/2")
    wait_until(lambda: list(folder.glob(f"{shares.FOLDER}/*.lease")))
    killed.send_signal(signal.SIGSTOP)  # so that it is not done before the other has started
    other = start("0/2")
    killed.kill()
    assert killed.wait() == -signal.SIGKILL and other.wait(timeout=300) == 0
    assert pack(data, "--merge", "2") == 0
    check_same(folder, whole)
    figure("R24", "pack: 1 of 2 parts killed, 0 of 6 shards lost")


class KillTheThird(Progress):
    """Kill the worker when it starts the third row, as a crash of the decoder or a lack of memory would."""

    kills: ClassVar[list[int]] = []
    most: ClassVar[int]

    def __call__(self, done: int, total: int) -> None:
        if done >= 3 and len(self.kills) < self.most:
            [worker] = multiprocessing.active_children()
            self.kills.append(worker.pid)
            worker.kill()


@pytest.mark.promise("R24")
@pytest.mark.parametrize(("kills", "rejected"), [(1, []), (1 + ALONE_KILLS, [2])])
def test_a_row_that_kills_its_worker_again_alone_is_refused(
    probe_here, tmp_path, write_clip, monkeypatch, kills, rejected
):
    for i, frames in enumerate((10, 10, 250)):
        write_clip(tmp_path / f"tree/a/{i}.mp4", frames=frames, width=320, height=240)
    files = ["--data", str(tmp_path / "data.toml"), "--out"]
    assert main(["index", str(tmp_path / "tree"), *files, str(tmp_path / "tree.csv"), "--name", "tree"]) == 0
    monkeypatch.setattr("ppma.data.pack.Progress", KillTheThird)
    monkeypatch.setattr(KillTheThird, "kills", [])
    monkeypatch.setattr(KillTheThird, "most", kills, raising=False)
    assert main(["pack", "tree", *files, str(tmp_path / "tree.beton"), "--workers", "1"]) == 0
    [shard] = Store(tmp_path / "tree.beton").index.shards
    assert len(set(KillTheThird.kills)) == kills and shard.clips == 3 - len(rejected)
    assert [(row, "SIGKILL" in reason) for row, _, reason in shard.rejected] == [(row, True) for row in rejected]
