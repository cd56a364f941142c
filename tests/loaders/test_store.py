"""The store's format is FFCV's to the byte, and its frames are those of the video, except for JPEG's loss."""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from waiting import wait_until

from ppma.config.errors import InputError
from ppma.config.loader import LoaderConfig
from ppma.data.shard_writer import PackRow, ShardJob, encode_clip, write_rows, write_shard
from ppma.loaders.decode import fetch, remux
from ppma.loaders.sampler import TrainingSampler
from ppma.loaders.samples import thin_to_fps
from ppma.loaders.sources import store
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.loaders.sources.store import PackParameters, Store, StoreIndex
from ppma.loaders.stream import ClipStream

PARAMETERS = PackParameters(short_side=48, fps=None, quality=95)


def row(path, number=0, start=0.0, end=100.0, label=3, fps=None):
    return PackRow(row=number, path=str(path), label=label, start_seconds=start, end_seconds=end, fps=fps)


def make_store(folder: Path, rows, parameters=PARAMETERS, *, shards=1, manifest_sha256="m") -> Store:
    """Write a store of so many shards with as many rows each."""
    folder.mkdir()
    each = len(rows) // shards
    parts = [rows[first : first + each] for first in range(0, len(rows), each)]
    jobs = [ShardJob(folder=folder, number=n, rows=part, parameters=parameters) for n, part in enumerate(parts)]
    made = tuple(list(write_shard(job))[-1] for job in jobs)
    write_rows(folder, made, len(rows))
    index = StoreIndex(
        manifest_sha256=manifest_sha256, rows=len(rows), parameters=parameters, shards=made, complete=True
    )
    (folder / store.INDEX).write_text(index.dump())
    return Store(folder, manifest_sha256=manifest_sha256)


@pytest.fixture
def clips(tmp_path, write_clip):
    return [
        write_clip(tmp_path / f"{i}.mp4", frames=40, width=64, height=48, direction=(1 - 2 * i, 0)) for i in range(2)
    ]


def test_windows_of_a_store_are_those_of_the_video(tmp_path, clips, read_barcode):
    packed = make_store(tmp_path / "s.beton", [row(path, i) for i, path in enumerate(clips)])
    for number, path in enumerate(clips):
        address = packed.address(number)
        assert fetch.is_packed(address)
        for start in (0.0, 0.35, 1.9, 3.9):
            frames = fetch.read_window(address, start, start + 1.6, 8)
            expected = fetch.read_window(path, start, start + 1.6, 8)
            assert [read_barcode(f) for f in frames] == [read_barcode(f) for f in expected]
            assert (
                np.abs(frames.astype(int) - expected).mean() < 4
            )  # JPEG at quality 95 on flat colors with sharp edges


@pytest.fixture
def reads(monkeypatch):
    """The (offset, size) of every read since the fixture was made; a patched os.pread records them."""
    found, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: found.append((at, size)) or pread(fd, size, at))
    return found


def test_a_packed_clip_takes_two_reads_and_opening_its_shard_one(tmp_path, clips, reads):
    packed = make_store(tmp_path / "s.beton", [row(path, i) for i, path in enumerate(clips)])
    store.open_shard.cache_clear()
    reads.clear()
    fetch.read_window(packed.address(0), 0.0, 4.0, 16)
    assert len(reads) == 3
    reads.clear()
    clip = remux.encoded_window(packed.address(1), 1.0, 2.0, 3, ())
    assert clip.kind == "jpeg" and clip.frame_idx == (0, 1, 2) and (clip.height, clip.width) == (48, 64)
    assert all(cv2.imdecode(p, cv2.IMREAD_COLOR_RGB).shape == (48, 64, 3) for p in clip.payloads)
    assert [size for _, size in reads[:1]] == [4 * 41 + 8 * 40] and len(reads) == 2


def test_frames_far_apart_are_read_one_by_one_with_the_same_bytes(tmp_path, clips, reads, monkeypatch):
    address = make_store(tmp_path / "s.beton", [row(clips[0])]).address(0)
    joined = remux.encoded_window(address, 1.0, 4.0, 4, ()).payloads
    monkeypatch.setattr(store, "GAP_BYTES", 100)
    reads.clear()
    single = remux.encoded_window(address, 1.0, 4.0, 4, ()).payloads
    assert [p.tobytes() for p in single] == [p.tobytes() for p in joined]
    assert [size for _, size in reads[1:]] == [p.nbytes for p in single]


def test_reading_ahead_asks_for_the_bytes_that_are_read_next(tmp_path, clips, reads, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, at, size, advice: asked.append((at, size)))
    address = make_store(tmp_path / "s.beton", [row(clips[0])]).address(0)
    fetch.read_ahead(address, 1.0, 2.0, 4)
    wait_until(lambda: asked)
    reads.clear()
    fetch.read_window(address, 1.0, 2.0, 4)
    assert asked == reads[1:]


def test_frames_are_scaled_down_as_the_loader_does_and_never_up(clips):
    small = encode_clip(row(clips[0]), PackParameters(short_side=24, fps=None, quality=95))
    assert (small.height, small.width, small.frames) == (24, 32, 40)
    same = encode_clip(row(clips[0]), PackParameters(short_side=100, fps=None, quality=95))
    assert (same.height, same.width) == (48, 64)


def test_fps_and_the_rows_window_choose_frames(clips):
    half = encode_clip(row(clips[0], fps=5.0), PARAMETERS)
    assert half.frames == 20
    part = encode_clip(row(clips[0], start=1.0, end=2.0), PARAMETERS)
    times = np.frombuffer(part.blob, "<f8", count=part.frames, offset=4 * (part.frames + 1))
    assert times.tolist() == pytest.approx([1.0 + i / 10 for i in range(10)])
    assert thin_to_fps([0.0, 0.1, 0.5, 0.9, 1.0, 1.1], 0, 6, 2.0) == [0, 2, 4]
    assert thin_to_fps([0.0, 1.7, 1.8, 2.1], 0, 4, 1.0) == [0, 1, 3]  # after a gap the grid goes on


def test_a_folder_of_frames_is_packed_too(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(10):
        cv2.imwrite(str(folder / f"{i:06d}.jpg"), np.full((48, 64, 3), 20 * i, np.uint8))
    address = make_store(tmp_path / "s.beton", [row(folder)]).address(0)
    assert fetch.read_window(address, 0.0, 0.4, 10)[:, 0, 0, 0].tolist() == pytest.approx(range(0, 200, 20), abs=2)


def test_a_manifest_reads_from_its_store(tmp_path, clips):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    facts = {"frames": 40, "fps": 10.0, "codec": "h264", "key_frame_spacing": 12, "duration_seconds": 4.0}
    listed = [Clip(path=p.name, label=1, width=640, height=480, **facts) for p in (clips[0], broken, clips[1])]
    manifest = Manifest.from_clips(listed, root=tmp_path, name="x")
    packed = make_store(tmp_path / "s.beton", [row(manifest.file(i), i) for i in range(3)])
    assert packed.index.shards[0].rejected[0][0] == 1
    read = manifest.packed_in(packed)
    assert [read.file(i).name for i in range(3)] == ["shard-00000.beton#0", "broken.mp4", "shard-00000.beton#1"]
    assert read.widths.tolist() == [64, 640, 64] and read.heights.tolist() == [48, 480, 48]
    assert manifest.file(0) == clips[0] and manifest.widths[0] == 640  # the manifest itself is as it was


def test_a_wrong_store_is_named(tmp_path, clips):
    folder = tmp_path / "s.beton"
    address = make_store(folder, [row(clips[0])]).address(0)
    with pytest.raises(InputError, match="another manifest"):
        Store(folder, manifest_sha256="other")
    with pytest.raises(InputError, match="packed store"):
        Store(tmp_path)
    found = json.loads((folder / store.INDEX).read_text())
    (folder / store.INDEX).write_text(json.dumps(found | {"complete": False}))
    with pytest.raises(InputError, match="run ppma pack again"):
        Store(folder)
    (folder / store.INDEX).write_text(json.dumps(found | {"format": "other"}))
    with pytest.raises(InputError, match="format"):
        Store(folder)
    for change, named in (
        ({"layout": 2}, "layout"),
        ({"shards": [found["shards"][0] | {"codec": "avif"}]}, r"shards\.codec"),
    ):
        (folder / store.INDEX).write_text(json.dumps(found | change))  # of a newer version
        with pytest.raises(InputError, match=rf"index\.json.*{named}"):
            Store(folder)
    with pytest.raises(fetch.BadClip, match="no clip 5"):
        fetch.read_window(address.with_name("shard-00000.beton#5"), 0.0, 1.0, 2)
    shard = folder / "shard-00000.beton"
    shard.write_bytes(shard.read_bytes()[:-3000])
    with pytest.raises(fetch.BadClip, match="ends before byte"):
        fetch.read_window(address, 0.0, 4.0, 16)
    (folder / "shard-00001.beton").write_bytes(bytes(5000))
    with pytest.raises(fetch.BadClip, match="not a shard"):
        fetch.read_window(folder / "shard-00001.beton#0", 0.0, 4.0, 16)


def test_a_shard_closes_its_file_when_python_exits(tmp_path, clips, monkeypatch):
    shard = store.ShardFile(make_store(tmp_path / "s.beton", [row(clips[0])]).path / "shard-00000.beton")
    descriptor, errors = shard._fd, []
    monkeypatch.setattr(store, "os", None)  # Python may clear a module's globals before its last objects
    monkeypatch.setattr(sys, "unraisablehook", errors.append)
    del shard
    assert not errors
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_many_shards_keep_few_files_open(tmp_path, clips):
    folder = tmp_path / "s.beton"
    make_store(folder, [row(clips[0])])
    for i in range(1, 2 * store.OPEN_SHARDS):
        (folder / f"shard-{i:05d}.beton").hardlink_to(folder / "shard-00000.beton")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for i in range(2 * store.OPEN_SHARDS):
        fetch.read_window(folder / f"shard-{i:05d}.beton#0", 0.0, 1.0, 1)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + store.OPEN_SHARDS


@pytest.mark.parametrize(("packed", "ahead"), [(True, 2 * 2), (False, 0)])
def test_packed_clips_are_read_ahead_and_videos_are_not(packed, ahead, tmp_path, write_clip, monkeypatch):
    """Of four batches of two clips the third is read ahead when the first begins, and the fourth with the second."""
    clip = write_clip(tmp_path / "clip.mp4", frames=8, fps=8, width=64, height=48)
    facts = {"frames": 8, "fps": 8.0, "codec": "h264", "key_frame_spacing": 8, "duration_seconds": 1.0}
    rows = [Clip(path="clip.mp4", label=1, width=64, height=48, **facts)] * 8
    manifest = Manifest.from_clips(rows, root=tmp_path, name="x")
    if packed:
        manifest = manifest.packed_in(make_store(tmp_path / "s.beton", [row(clip, i) for i in range(8)], PARAMETERS))
    config = LoaderConfig(views=1, workers=1, implementation="plain", size=32, short_side=32, frames=4)
    sampler, products = TrainingSampler([manifest], config, seed=0, batch_clips=2), []
    submit = ClipStream._submit_task
    monkeypatch.setattr(ClipStream, "_submit_task", lambda *call: products.append(call[2]) or submit(*call))
    with ClipStream(sampler, [manifest], config) as stream:
        assert len(list(stream)) == 4
    assert products.count("read_ahead") == ahead and products.count("views") == 8


@pytest.mark.slow
@pytest.mark.alone
def test_with_read_ahead_a_slow_file_system_costs_a_store_less_than_a_fifth(tmp_path, write_clip, monkeypatch):
    """At 2 ms for each operation, reading with one worker. Rates are measured in turns; the best of each counts."""
    clip = write_clip(tmp_path / "clip.mp4", frames=81, fps=30, width=340, height=256)
    packed = make_store(tmp_path / "s.beton", [row(clip, i) for i in range(192)], replace(PARAMETERS, short_side=256))
    facts = {"frames": 81, "fps": 30.0, "codec": "h264", "key_frame_spacing": 12, "duration_seconds": 2.7}
    rows = [Clip(path="clip.mp4", label=1, width=340, height=256, **facts)] * 192
    manifest = Manifest.from_clips(rows, root=tmp_path, name="x").packed_in(packed)
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text("import slow_reads\nslow_reads.install()\n")

    def clips_per_second(read_ahead: int | None) -> float:
        config = LoaderConfig(views=1, workers=1, implementation="plain", read_ahead_batches=read_ahead)
        sampler = TrainingSampler([manifest], config, seed=0, batch_clips=16)
        with ClipStream(sampler, [manifest], config) as stream:
            for _ in range(3):  # the workers start, and nothing was read ahead for the first two
                stream.take()
            began = time.monotonic()
            return 16 * sum(1 for _ in stream) / (time.monotonic() - began)

    rates: dict[str, list[float]] = {"local": [], "slow": [], "slow, read ahead": []}
    for _ in range(3):
        rates["local"].append(clips_per_second(0))
        with monkeypatch.context() as patch:
            patch.setattr(sys, "path", [str(slow), *sys.path])
            rates["slow"].append(clips_per_second(0))
            rates["slow, read ahead"].append(clips_per_second(None))
    best = {name: max(found) for name, found in rates.items()}
    assert best["slow, read ahead"] >= 0.8 * best["local"], best
