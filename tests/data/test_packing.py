"""A shard is written atomically, in the format that FFCV's own code writes and reads."""

import sys

import numpy as np
import pytest

from ppma.config.errors import InputError
from ppma.data import shard_writer as packing
from ppma.data.shard_writer import PackedClip, PackRow, ShardJob, shard_bounds, shard_file, write_shard
from ppma.loaders.samples import choose_frames
from ppma.loaders.sources import store
from ppma.loaders.sources.store import PackParameters, ShardFile

PARAMETERS = PackParameters(short_side=48, fps=None, quality=90)


def rows(paths):
    return [PackRow(row=i, path=str(p), label=i, start_seconds=0.0, end_seconds=9.0) for i, p in enumerate(paths)]


def write(folder, paths, *, number=0, refused=None):
    job = ShardJob(folder=folder, number=number, rows=rows(paths), parameters=PARAMETERS, refused=refused or {})
    *started, shard = write_shard(job)
    assert started == rows(paths)
    return shard


def test_shards_hold_whole_rows_up_to_a_number_of_frames(monkeypatch):
    monkeypatch.setattr(packing, "SHARD_FRAMES", 100)
    assert shard_bounds([40, 40, 40, 300, 1, 1], PARAMETERS) == [(0, 2), (2, 3), (3, 4), (4, 6)]
    assert shard_bounds([500], PARAMETERS) == [(0, 1)]


def test_no_shard_is_larger_than_what_one_sets(tmp_path):
    parameters = PackParameters(short_side=100, fps=None, quality=90, shard_gb=1e-4)
    assert shard_bounds([5, 5, 5, 20], parameters) == [(0, 2), (2, 3), (3, 4)]  # 11 frames of 8.9 kB at most
    clip = PackedClip(blob=bytes(30_000), frames=1, height=8, width=8)
    with (
        pytest.raises(InputError, match="--shard-gb"),
        shard_file(tmp_path / "shard-00000.beton", 4, parameters) as writer,
    ):
        for row in range(4):
            writer.add(clip, label=0, row=row)
    assert not list(tmp_path.iterdir())


def test_bad_and_refused_rows_are_named_and_leave_no_gap(tmp_path, write_clip):
    good = [write_clip(tmp_path / f"{i}.mp4", frames=10) for i in range(3)]
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    shard = write(tmp_path, [good[0], bad, good[1], good[2]], number=7, refused={2: "crashed"})
    assert (shard.clips, shard.frames, [r[0] for r in shard.rejected]) == (2, 20, [1, 2])
    assert shard.rejected[1][2] == "crashed" and "cannot be opened" in shard.rejected[0][2]
    samples = ShardFile(tmp_path / shard.file).samples
    assert samples["f1"].tolist() == samples["f2"].tolist() == [0, 3]


def test_a_clip_that_reads_back_differently_is_noticed(tmp_path):
    offsets = np.array([16, 20], "<u4").tobytes()
    clip = PackedClip(blob=offsets + bytes(8) + b"none", frames=1, height=8, width=8)
    with (
        pytest.raises(store.StoreError, match="clip 0"),
        shard_file(tmp_path / "shard-00000.beton", 1, PARAMETERS) as writer,
    ):
        writer.add(clip, label=0, row=0)
    assert not list(tmp_path.iterdir())


def test_a_shard_stays_below_ffcvs_largest_page(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MAX_SHARD_BYTES", packing.PAGE_BYTES + 5000)
    clip = PackedClip(blob=bytes(6000), frames=1, height=8, width=8)
    with pytest.raises(InputError, match="2 GiB"), shard_file(tmp_path / "shard-00000.beton", 1, PARAMETERS) as writer:
        writer.add(clip, label=0, row=0)


def test_ffcv_writes_and_reads_the_same_format(tmp_path, write_clip):
    """`import ffcv` takes ten seconds, so only this test of packing does it."""
    pytest.importorskip("ffcv")
    from ffcv.fields import IntField
    from ffcv.reader import Reader
    from ffcv.writer import DatasetWriter

    from ppma.loaders.decode.ffcv import ClipField  # restores torch's threads

    paths = [write_clip(tmp_path / f"{i}.mp4", frames=10 + i) for i in range(3)]
    shard = write(tmp_path, paths)
    reader = Reader(str(tmp_path / shard.file), {"clip": ClipField})
    own = ShardFile(tmp_path / shard.file)
    assert np.array_equal(reader.metadata, own.samples) and reader.field_names == ["clip", "label", "row"]
    assert reader.alloc_table["ptr"].tolist() == own.samples["f0"]["data_ptr"].tolist()
    assert reader.page_size >= shard.bytes

    theirs = tmp_path / "shard-00000.beton"
    samples = [(packing.encode_clip(r, PARAMETERS), r.label, r.row) for r in rows(paths)]
    writer = DatasetWriter(str(theirs), {"clip": ClipField(), "label": IntField(), "row": IntField()}, num_workers=1)
    writer.from_indexed_dataset(samples)
    for place in range(3):
        for got, expected in zip(
            store.read_packed(
                tmp_path / f"shard-00000.beton#{place}", lambda times: choose_frames(times, 0.0, 1.0, 5)
            ).pictures,
            store.read_packed(
                tmp_path / f"{shard.file}#{place}", lambda times: choose_frames(times, 0.0, 1.0, 5)
            ).pictures,
        ):
            assert np.array_equal(got, expected)
    assert sys.modules["torch"].get_num_threads() > 0
