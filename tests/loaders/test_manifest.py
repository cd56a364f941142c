"""A manifest round-trips, its columns agree with its rows, a wrong row is named by its line, a large one is mapped."""

import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from ppma.config.errors import InputError
from ppma.loaders.sources import manifest as manifest_module
from ppma.loaders.sources import store
from ppma.loaders.sources.manifest import HEADER, Clip, Manifest

PROBED = {"frames": 60, "fps": 25.0, "width": 320, "height": 240, "codec": "h264"}
PLAIN = Clip(path="a/1.mp4", key_frame_spacing=12, duration_seconds=2.4, **PROBED)
FULL = replace(
    PLAIN,
    path='tai chi, (outdoors) [1]/véhicule «q"» 1',
    label=31,
    class_name="tai chi, (outdoors) [1]",
    source="demo",
    start_seconds=0.5,
    end_seconds=1.25,
    fps=30000 / 1001,
    domain="human-removed",
    licence="CC BY 4.0",
    audit="clean",
)
GOOD_LINE = "a/1.mp4,0,walk,demo,,,60,25.0,320,240,h264,12,2.4,real,,"


def test_header_is_the_contract():
    assert ",".join(HEADER) == (
        "path,label,class_name,source,start_seconds,end_seconds,frames,fps,width,height,codec,key_frame_spacing,"
        "duration_seconds,domain,licence,audit"
    )


def test_what_is_written_comes_back(tmp_path):
    file = tmp_path / "m.csv"
    Manifest.write(file, [PLAIN, FULL])
    manifest = Manifest.read(file)
    assert [manifest.clip(0), manifest.clip(1)] == [PLAIN, FULL]
    assert manifest.root == tmp_path and manifest.name == "m" and manifest.path == file
    assert manifest.file(0) == tmp_path / "a/1.mp4"
    assert manifest.sha256 == Manifest.from_clips([PLAIN, FULL], root=tmp_path, name="m").sha256
    with pytest.raises(IndexError):
        manifest.clip(2)


def test_columns_agree_with_the_rows():
    manifest = Manifest.from_clips([PLAIN, FULL], root="/data", name="m")
    assert manifest.labels.tolist() == [-1, 31] and manifest.labels.dtype == np.int64
    assert manifest.starts.tolist() == [0.0, 0.5] and manifest.ends.tolist() == [2.4, 1.25]
    assert manifest.widths.tolist() == [320, 320] and manifest.frames.tolist() == [60, 60]
    assert manifest.class_names == {31: "tai chi, (outdoors) [1]"}
    assert manifest.n_classes == 32, "labels may have gaps"
    again = pickle.loads(pickle.dumps(manifest))
    assert again.clip(1) == manifest.clip(1) and again.n_classes == 32


def line(**changes: str) -> str:
    return ",".join(changes.get(name, value) for name, value in zip(HEADER, GOOD_LINE.split(","), strict=True))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"path": "../b.mp4"}, "path is '../b.mp4'; it leaves the root"),
        ({"path": "a/../../b.mp4"}, "leaves the root"),
        ({"path": "/b.mp4"}, "leaves the root"),
        ({"path": ""}, "path is ''"),
        ({"label": "zero"}, "label.*'zero'"),
        ({"label": "-1"}, "label is -1; it must be 0 or more"),
        ({"frames": "0"}, "frames is 0; it must be at least 1"),
        ({"frames": ""}, "frames is empty"),
        ({"fps": "nan"}, "fps is nan"),
        ({"width": "wide"}, "width.*'wide'"),
        ({"duration_seconds": "0"}, "duration_seconds is 0.0; it must be above 0"),
        ({"start_seconds": "2", "end_seconds": "1"}, "end_seconds is 1.0; it must be after start_seconds"),
        ({"start_seconds": "nan"}, "start_seconds is nan"),
        ({"end_seconds": "nan"}, "end_seconds is nan"),
        ({"end_seconds": "inf"}, "end_seconds is inf"),
        ({"start_seconds": "2.4"}, "start_seconds is 2.4; it must be before the file's end"),
        ({"start_seconds": "100", "end_seconds": "110"}, "start_seconds is 100.0"),
        ({"label": "99999999999"}, "label is 99999999999; it must be below"),
        ({"domain": "people"}, "domain is 'people'; it must be one of real, "),
        ({"class_name": "tai chi, outdoors"}, "Expected 16 columns, got 17"),
        ({"class_name": "run"}, "label 0 is called 'run' here and 'walk' elsewhere"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(tmp_path, changes, says):
    file = tmp_path / "m.csv"
    file.write_text("\n".join([",".join(HEADER), GOOD_LINE, line(**{"path": "b.mp4", **changes})]))
    with pytest.raises(InputError, match=f"m.csv, line 3: .*{says}"):
        Manifest.read(file)


def test_wrong_files(tmp_path):
    with pytest.raises(InputError, match="ppma index SOURCE"):
        Manifest.read(tmp_path / "none.csv")
    file = tmp_path / "m.csv"
    file.write_text("path,label\na.mp4,0\n")
    with pytest.raises(InputError, match="first line is 'path,label'"):
        Manifest.read(file)
    file.write_text(",".join(HEADER) + "\n")
    with pytest.raises(InputError, match="holds no clip"):
        Manifest.read(file)
    file.write_bytes(f"{','.join(HEADER)}\n{GOOD_LINE}\n{GOOD_LINE}".replace("a/1", "é/1").encode("latin-1"))
    with pytest.raises(InputError, match=r"line 2: path: .*UTF8"):
        Manifest.read(file)


@pytest.mark.parametrize("newline", ["\r\n", "\n"])
def test_a_file_from_a_spreadsheet(tmp_path, newline):
    """Windows writes a byte order mark and CR LF; the last line may lack its end."""
    file = tmp_path / "m.csv"
    file.write_bytes(b"\xef\xbb\xbf" + newline.join([",".join(HEADER), GOOD_LINE]).encode())
    assert Manifest.read(file).clip(0).class_name == "walk"


def test_nothing_is_half_written(tmp_path):
    file = tmp_path / "m.csv"
    Manifest.write(file, [PLAIN])
    before = file.read_bytes()

    def clips():
        yield FULL
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Manifest.write(file, clips())
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.csv"]
    with pytest.raises(InputError, match="cannot be written"):
        Manifest.write(file / "m.csv", [])


# -------------------------------------------------------------------------------------------------- parsed once, mapped

PRIVATE_MEMORY = """
import sys
from pathlib import Path
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.store import Store
from ppma.training import lineage
path = Path(sys.argv[1])
manifest = Manifest.read(path)
manifest = manifest.packed_in(Store(path.with_suffix(".store")))
manifest.clip(len(manifest) - 1), manifest.labels[::1000].sum(), manifest.file(0), manifest.widths[::1000].sum()
lineage.seen(manifest)
memory = dict(line.split(":") for line in open("/proc/self/smaps_rollup") if line.startswith("Anonymous"))
print(len(manifest), int(memory["Anonymous"].split()[0]) // 1024)
"""


def write_rows(path, rows):
    block = min(rows, 1000)
    lines = (
        f"class {i % 7}/{i}.mp4,{i % 7},class {i % 7},big,,{'5.0' * (i % 2)},300,30.0,340,256,h264,12,10.0,real,,\n"
        for i in range(block)
    )
    path.write_text(",".join(HEADER) + "\n" + "".join(lines) * (rows // block))


def write_store(folder, rows):
    """Write a store of one shard that holds all rows but the last, without the shard itself."""
    folder.mkdir()
    places = np.zeros(rows, store.PLACE)
    places["place"], places["height"], places["width"], places["shard"][-1:] = np.arange(rows), 256, 340, -1
    np.save(folder / store.ROWS, places)
    shard = store.Shard(file="shard-00000.beton", first_row=0, rows=rows, clips=rows - 1, frames=1, bytes=1, sha256="")
    parameters = store.PackParameters(short_side=256, fps=None, quality=90)
    index = store.StoreIndex(manifest_sha256="", rows=rows, parameters=parameters, shards=(shard,), complete=True)
    (folder / store.INDEX).write_text(index.dump())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, in which every manifest counts as large."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(manifest_module, "LARGE_BYTES", 1)
    manifest_module._table.cache_clear()
    write_rows(tmp_path / "m.csv", 1000)
    return tmp_path / "cache"


def test_a_mapped_manifest_is_the_parsed_one(cache, tmp_path, monkeypatch):
    first = Manifest.read(tmp_path / "m.csv")
    manifest_module._table.cache_clear()
    mapped = Manifest.read(tmp_path / "m.csv")
    monkeypatch.setattr(manifest_module, "LARGE_BYTES", 1 << 40)
    manifest_module._table.cache_clear()
    parsed = Manifest.read(tmp_path / "m.csv")
    for one in (first, mapped):
        assert [one.clip(i) for i in (0, 1, 999)] == [parsed.clip(i) for i in (0, 1, 999)]
        assert (one.sha256, one.class_names, len(one), one.n_classes) == (parsed.sha256, parsed.class_names, 1000, 7)
        for name in ("labels", "frames", "fps", "widths", "heights", "durations", "starts", "ends"):
            mine, theirs = getattr(one, name), getattr(parsed, name)
            assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs), name


@pytest.mark.parametrize("large", [True, False])
def test_a_file_is_parsed_once_and_again_when_it_changes(cache, tmp_path, monkeypatch, large):
    monkeypatch.setattr(manifest_module, "LARGE_BYTES", 1 if large else 1 << 40)
    parsed, read = [], manifest_module._read
    monkeypatch.setattr(manifest_module, "_read", lambda path: (parsed.append(path), read(path))[1])
    for name in ("one", "other"):
        assert Manifest.read(tmp_path / "m.csv", name=name).name == name
    if large:
        manifest_module._table.cache_clear()  # another process
        Manifest.read(tmp_path / "m.csv")
    assert len(parsed) == 1
    write_rows(tmp_path / "m.csv", 2000)
    os.utime(tmp_path / "m.csv", ns=(time.time_ns(), time.time_ns() + 1))
    assert len(Manifest.read(tmp_path / "m.csv")) == 2000 and len(parsed) == 2


def test_a_wrong_manifest_leaves_nothing_in_the_cache(cache, tmp_path):
    (tmp_path / "m.csv").write_text("path\n")
    for _ in range(2):
        with pytest.raises(InputError, match="the first line is"):
            Manifest.read(tmp_path / "m.csv")
    assert not list(cache.rglob("*.arrow"))


def private_mib(path):
    """Return the rows that another process maps, and the memory that it alone uses; this one parses them."""
    Manifest.read(path)
    manifest_module._table.cache_clear()
    command = [sys.executable, "-c", PRIVATE_MEMORY, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return map(int, done.stdout.split())


@pytest.mark.parametrize(
    "large", [800_000, pytest.param(10_000_000, marks=pytest.mark.slow)]
)  # parsing 10 M takes 5 GB
@pytest.mark.promise("R30")
def test_memory_of_a_process_does_not_grow_with_the_rows(tmp_path, monkeypatch, large, figure):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, rows in (("small", 300_000), ("large", large)):
        write_rows(tmp_path / f"{name}.csv", rows)
        write_store(tmp_path / f"{name}.store", rows)
    _, small_mib = private_mib(tmp_path / "small.csv")
    began = time.monotonic()
    rows, large_mib = private_mib(tmp_path / "large.csv")
    assert rows == large and large_mib - small_mib < 5, (small_mib, large_mib)
    seconds = time.monotonic() - began
    figure(
        "R30",
        f"{rows} rows parsed once and mapped in {seconds:.0f} s, {max(0, large_mib - small_mib)} MiB more for a process",
    )
