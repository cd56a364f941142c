"""Files from strangers: none runs code, leads out of its folder, or takes more memory than it has bytes."""

import io
import json
import os
import pickle
import socket
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_trees import TREES

from ppma.config.errors import BadClip, InputError
from ppma.data.dataset import Download, find, read_splits
from ppma.inference.foreign import read_models
from ppma.loaders.sources import store
from ppma.loaders.sources.formats import read_source
from ppma.loaders.sources.manifest import HEADER, Manifest
from ppma.loaders.sources.probe import Unusable, probe
from ppma.loaders.sources.store import PackParameters, Shard, Store, StoreError, StoreIndex
from ppma.privacy.detectors import maskrcnn, tools, weights
from ppma.privacy.removal import jobs
from ppma.training import checkpoint

REFUSED = (InputError, StoreError, Unusable, BadClip)
GOOD = "a/1.mp4,0,walk,s,,,60,25.0,320,240,h264,12,2.4,real,,"
HUGE = (1 << 62).to_bytes(8, "little")


class Evil:
    """A pickle that creates a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def write_store(folder: Path, *, file: str = "shard-00000.beton", rows: bytes | None = None) -> Path:
    """Write a store of one row whose shard is called `file`."""
    folder.mkdir()
    shard = Shard(file=file, first_row=0, rows=1, clips=1, frames=1, bytes=1, sha256="")
    parameters = PackParameters(short_side=8, fps=None, quality=90)
    index = StoreIndex(manifest_sha256="", rows=1, parameters=parameters, shards=(shard,), complete=True)
    (folder / store.INDEX).write_text(index.dump())
    if rows is None:
        np.save(folder / store.ROWS, np.zeros(1, store.PLACE))
    else:
        (folder / store.ROWS).write_bytes(rows)
    return folder


def npy(content: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, content, allow_pickle=True)
    return file.getvalue()


def shard_of_many(path: Path) -> Path:
    """Write the header of a shard that promises 2^62 clips."""
    header = np.zeros(1, store.HEADER)
    header["version"], header["num_fields"], header["num_samples"] = store.FFCV_VERSION, len(store.FIELDS), 1 << 62
    fields = np.zeros(len(store.FIELDS), store.FIELD)
    for field, (name, kind) in zip(fields, store.FIELDS):
        field["type_id"], field["name"][: len(name)] = kind, np.frombuffer(name.encode(), np.uint8)
    path.write_bytes(header.tobytes() + fields.tobytes())
    return path


def fetched_archive(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetch weights from a registry that answers with an archive of its own, whose member leads out of the folder."""

    def answer(command, place):
        with tarfile.open(place / "evil.tgz", "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("../../escaped"), io.BytesIO())
        return []

    monkeypatch.setattr(weights, "_errors_of", answer)
    weights.fetch("movenet", folder / "weights")


def trusted_by_hash(folder: Path, name: str, path: Path) -> None:
    """Give a model by its right hash, which binds the file and does not make it safe."""
    tools.choose([name], [f"{name}={path}#{weights.model_sha256(path)}"], folder)


def with_row(folder: Path, **columns: str) -> Path:
    """Write a manifest of one row with these columns."""
    row = dict(zip(HEADER, GOOD.split(","))) | columns
    (folder / "m.csv").write_text(",".join(HEADER) + "\n" + ",".join(row.values()) + "\n")
    return folder / "m.csv"


def deep_list(folder: Path) -> None:
    (folder / "clip").touch()
    TREES["ssv2"](folder / "ssv2", folder / "clip")
    (folder / "ssv2/labels/something-something-v2-train.json").write_text("[" * 100_000)
    read_splits(Download(folder / "ssv2", find("ssv2")))


def torch_file(path: Path, content: object, **options: bool) -> Path:
    torch.save(content, path, **options)
    return path


def raw(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


ARTIFACTS: dict[str, Callable[[Path, Evil, pytest.MonkeyPatch], object]] = {
    "a checkpoint of torch.save": lambda p, evil, _: read_models(torch_file(p / "x.pth", {"model": {"a": evil}})),
    "one of before torch 1.6": lambda p, evil, _: read_models(
        torch_file(p / "x.pth", {"a": evil}, _use_new_zipfile_serialization=False)
    ),
    "a bare pickle": lambda p, evil, _: read_models(raw(p / "x.bin", pickle.dumps(evil))),
    "a pickle called safetensors": lambda p, evil, _: read_models(raw(p / "x.safetensors", pickle.dumps(evil))),
    "safetensors with a header of 2^62 bytes": lambda p, evil, _: read_models(raw(p / "x.safetensors", HUGE + b"{}")),
    "the state of a run": lambda p, evil, _: checkpoint.read_pickle(torch_file(p / "training.pt", {"optimizer": evil})),
    "weights of a detector": lambda p, evil, _: maskrcnn._network(torch_file(p / "m.pth", {"a": evil})),
    "a script that is a pickle": lambda p, evil, _: trusted_by_hash(p, "lama", raw(p / "l.pt", pickle.dumps(evil))),
    "fetched weights that were exchanged": lambda p, evil, _: (
        [raw(p / file, pickle.dumps(evil)) for file in weights.WEIGHTS["movenet"].members]
        and weights.find("movenet", p)
    ),
    "an archive that was exchanged": lambda p, evil, patch: fetched_archive(p, patch),
    "rows of a store": lambda p, evil, _: Store(write_store(p / "s", rows=npy(np.array([evil], dtype=object)))),
    "rows of a store, 2^40 of them": lambda p, evil, _: Store(
        write_store(
            p / "s", rows=npy(np.zeros(1, store.PLACE)).replace(b"(1,), }" + b" " * 14, b"(1099511627776,), }  ")
        )
    ),
    "a store without its keys": lambda p, evil, _: Store(
        raw(p / "s/index.json", json.dumps({"format": store.FORMAT, "shards": [{"rejected": []}]}).encode()).parent
    ),
    "a shard of 2^62 clips": lambda p, evil, _: store.open_shard(shard_of_many(p / "shard-00000.beton")),
    "a manifest with a label of 10^11": lambda p, evil, _: Manifest.read(with_row(p, label="99999999999")),
    "a list of a data set, nested 100,000 times": lambda p, evil, _: deep_list(p),
}  # fmt: skip - an artifact a line


@pytest.mark.promise("R13")
def test_no_artifact_of_a_stranger_runs(tmp_path, monkeypatch, figure):
    refused = []
    for number, (name, read) in enumerate(ARTIFACTS.items()):
        folder, marker = tmp_path / f"{number}", tmp_path / f"ran-{number}"
        folder.mkdir()
        with pytest.raises(REFUSED):
            read(folder, Evil(marker), monkeypatch)
        assert not marker.exists() and not list(tmp_path.rglob("escaped")), name
        refused.append(name)
    figure("R13", f"{len(refused)} of {len(ARTIFACTS)} malicious artifacts")


PLAYLISTS = {
    "hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n",
    "hls-url.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://localhost:1/x.ts\n#EXT-X-ENDLIST\n",
    "concat.mp4": "ffconcat version 1.0\nfile {secret}\n",
    "sdp.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "mpd.mp4": '<?xml version="1.0"?><MPD><BaseURL>file://{secret}</BaseURL></MPD>\n',
}
LINES = (
    *("../secret.mp4", "a/../../secret.mp4", "./../secret.mp4", "a/./.././../secret.mp4", "..", "{secret}"),
    *("/{secret}", "~/secret.mp4", "$HOME/secret.mp4", "..\\secret.mp4", "%2e%2e/secret.mp4", "file://{secret}"),
    *("concat:{secret}", "http://localhost:1/x.mp4", "a/out.mp4", "a/outlink.mp4", "linked/secret.mp4"),
    *("a/nothing.mp4", "a/loop.mp4", "a/fifo.mp4", "a/socket.mp4", "a/zero.mp4", "pipe:0", "-"),
    *("a/\0/../../secret.mp4", "a\0.mp4", "x" * 300, "a/" + "y" * 300 + "/z.mp4", "a/shard-00000.beton#3", "a/clip*"),
)
"""Paths in a list; {secret} is the absolute path of a video outside the root."""


def hostile_root(folder: Path, secret: Path) -> Path:
    """Make a root whose files lead elsewhere."""
    root = folder / "root"
    for name in ("clip*", "shard-00000.beton#3"):
        raw(root / "a" / name / "1.jpg", b"")
    links = {"out": secret, "outlink": "out.mp4", "nothing": "none.mp4", "loop": "loop.mp4", "zero": "/dev/zero"}
    for name, target in links.items():
        (root / "a" / f"{name}.mp4").symlink_to(target)
    (root / "linked").symlink_to(secret.parent)
    os.mkfifo(root / "a/fifo.mp4")
    here = Path.cwd()
    os.chdir(root / "a")  # the path of a socket has at most 107 bytes
    socket.socket(socket.AF_UNIX).bind("socket.mp4")
    os.chdir(here)
    for name in ("two\nlines.mp4", "esc\x1b[2J.mp4", "bytes\udcff.mp4"):
        (root / "a" / name).touch()
    return root


@pytest.mark.promise("R13")
def test_no_path_leads_out_of_its_folder(tmp_path, write_clip, figure):
    secret = write_clip(tmp_path / "outside/secret.mp4")
    write_clip(tmp_path / "secret.mp4")
    root, refused = hostile_root(tmp_path, secret), []

    # 1. lines of a list, each alone
    for line in LINES:
        raw(tmp_path / "list.txt", f"{line.format(secret=secret)};0\n".encode())
        try:
            [row] = read_source(tmp_path / "list.txt", root=root)
            assert row.reason, line
        except InputError:
            pass
        refused.append(line)
    # 2. a tree
    rows = read_source(root, root=root)
    assert len(rows) == 13 and all(row.reason for row in rows)
    refused += [row.path for row in rows if not row.path.isprintable()]
    # 3. manifests, stores, names of classes, lists of a data set
    for path in ("../secret.mp4", f"{secret}", "a/../../secret.mp4", "a\x01b.mp4", ".."):
        with pytest.raises(InputError):
            Manifest.read(with_row(tmp_path, path=path))
        refused.append(f"manifest: {path}")
    for number, file in enumerate(("../shard-00000.beton", f"{secret}", "shard-00000.beton/../../x")):
        with pytest.raises(InputError):
            Store(write_store(tmp_path / f"store{number}", file=file))
        refused.append(f"store: {file}")
    clip = Manifest.read(with_row(tmp_path)).clip(0)
    for name in ("..", "../..", "/etc", "."):
        [place] = jobs.names([replace(clip, class_name=name)])
        assert (tmp_path / "inp" / place).resolve().parent.parent == tmp_path / "inp"
        refused.append(f"class: {name}")
    TREES["ssv2"](tmp_path / "ssv2", secret)
    for number in ("../../outside/secret", f"../..{secret.with_suffix('')}"):
        rows = [{"id": number, "label": "", "template": "Holding [something] next to [something]"}]
        raw(tmp_path / "ssv2/labels/something-something-v2-train.json", json.dumps(rows).encode())
        download = Download(tmp_path / "ssv2", find("ssv2"), follow_links=True)
        [(path, _)] = read_splits(download).clips["train"]
        assert "leaves the root" in download.tree.find(path)[1]
        refused.append(f"data set: {number}")
    # 4. videos whose content names other files
    for name, text in PLAYLISTS.items():
        with pytest.raises(Unusable):
            probe(raw(tmp_path / "playlists" / name, text.format(secret=secret).encode()))
        refused.append(name)
    assert len(refused) >= 30
    figure("R13", f"{len(refused)} of {len(refused)} path attacks refused")
