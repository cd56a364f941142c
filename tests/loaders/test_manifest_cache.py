"""Large manifests: parsed once on a node, mapped by every process, never stale, memory that does not grow with the rows."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from ppma.config.errors import InputError
from ppma.loaders.sources import manifest_cache
from ppma.loaders.sources.manifest import HEADER, Manifest

PRIVATE = """
import sys
from ppma.loaders.sources.manifest import Manifest
manifest = Manifest.read(sys.argv[1])
manifest.clip(len(manifest) - 1), manifest.labels[::1000].sum()
facts = dict(line.split(":") for line in open("/proc/self/smaps_rollup") if line.startswith("Anonymous"))
print(len(manifest), int(facts["Anonymous"].split()[0]) // 1024)
"""


def write(path, rows):
    body = "".join(
        f"class {i % 7}/clip {i}.mp4,{i % 7},class {i % 7},big,,{'5.0' if i % 2 else ''},300,30.0,340,256,h264,12,10.0,real,,\n"
        for i in range(min(rows, 1000))
    )
    path.write_text(",".join(HEADER) + "\n" + body * (rows // min(rows, 1000)))


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A node with an empty disk, on which every manifest counts as large."""
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(manifest_cache.tempfile, "tempdir", str(tmp_path / "disk"))
    monkeypatch.setattr(manifest_cache, "FROM_BYTES", 1)
    write(tmp_path / "m.csv", 1000)
    return tmp_path


def test_a_mapped_manifest_is_the_parsed_one(node, monkeypatch):
    mapped = [Manifest.read(node / "m.csv") for _ in range(2)]
    monkeypatch.setattr(manifest_cache, "FROM_BYTES", 1 << 40)
    parsed = Manifest.read(node / "m.csv")
    for one in mapped:
        assert [one.clip(i) for i in (0, 1, 999)] == [parsed.clip(i) for i in (0, 1, 999)]
        assert (one.sha256, one.class_names, len(one), one.n_classes) == (parsed.sha256, parsed.class_names, 1000, 7)
        for name in ("labels", "frames", "fps", "widths", "heights", "durations", "starts", "ends"):
            mine, theirs = getattr(one, name), getattr(parsed, name)
            assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs), name


def test_it_is_parsed_once_and_again_when_the_file_changes(node, monkeypatch):
    from ppma.loaders.sources import manifest

    parsed, real = [], manifest._read
    monkeypatch.setattr(manifest, "_read", lambda path: (parsed.append(path), real(path))[1])
    for _ in range(3):
        Manifest.read(node / "m.csv")
    assert len(parsed) == 1
    write(node / "m.csv", 2000)
    os.utime(node / "m.csv", ns=(time.time_ns(), time.time_ns() + 1))
    assert len(Manifest.read(node / "m.csv")) == 2000 and len(parsed) == 2


def test_a_wrong_manifest_leaves_nothing_behind(node):
    (node / "m.csv").write_text("path\n")
    for _ in range(2):
        with pytest.raises(InputError, match="the first line is"):
            Manifest.read(node / "m.csv")
    assert not list((node / "disk").rglob("*.arrow"))


def test_a_folder_of_somebody_else_is_not_used(node):
    ours = node / "disk" / f"ppma-manifests-{os.getuid()}"
    ours.mkdir()
    ours.chmod(0o777)
    Manifest.read(node / "m.csv")
    assert not list(ours.iterdir())


def private_mib(path, disk):
    command = [sys.executable, "-c", PRIVATE, str(path)]
    for _ in range(2):  # the first process parses, the second one maps
        done = subprocess.run(
            command, env={**os.environ, "TMPDIR": str(disk)}, capture_output=True, text=True, check=True
        )
    rows, mib = map(int, done.stdout.split())
    return rows, mib


def compare_memory(tmp_path, large):
    (tmp_path / "disk").mkdir()
    write(tmp_path / "small.csv", 200_000)
    write(tmp_path / "large.csv", large)
    _, small_mib = private_mib(tmp_path / "small.csv", tmp_path / "disk")
    rows, large_mib = private_mib(tmp_path / "large.csv", tmp_path / "disk")
    assert rows == large and large_mib - small_mib < 5, (small_mib, large_mib)


def test_memory_of_a_process_does_not_grow_with_the_rows(tmp_path):
    compare_memory(tmp_path, 800_000)


@pytest.mark.slow
def test_memory_with_ten_million_rows(tmp_path):
    """Parsing takes 5 GB once on the node."""
    compare_memory(tmp_path, 10_000_000)
