"""What is read by URL is what is read locally, over HTTP and S3, also from servers that fail; a refusal is one line."""

import os
import pickle
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import ppma
from benchmarks.range_server import serving
from ppma.config.command import RUN_AGAIN, WRONG_INPUT, explain
from ppma.config.errors import InputError, RefusedError, UnreachableError
from ppma.loaders.clip_loader import open_source
from ppma.loaders.decode import fetch, remux
from ppma.loaders.decode.dali_input import DALI_CPU_CODECS
from ppma.loaders.sources import catalog, remote, store
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.loaders.sources.remote import BLOCK, BlockCache, RemoteFile, Url, as_path
from ppma.loaders.sources.store import PackParameters
from ppma.loaders.stream import ClipStream
from ppma.privacy import strict
from ppma.slurm.staging import stage
from tests.loaders.test_store import make_store, row

SMALL = {"frames": 4, "size": 32, "short_side": 48, "workers": 1}
PARAMETERS = PackParameters(short_side=48, fps=None, quality=90)


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_clip):
    """A folder with clips in a folder with a space, their manifest clips.csv and clips.beton, a store of two shards."""
    folder = tmp_path_factory.mktemp("data")
    facts = {"frames": 30, "fps": 10.0, "codec": "h264", "key_frame_spacing": 12, "duration_seconds": 3.0}
    rows = []
    for number in range(4):
        clip = write_clip(folder / "some clips" / f"{number} #.mp4", color=(60 * number, 200, 90))
        rows.append(Clip(path=f"some clips/{clip.name}", label=number % 2, width=64, height=48, **facts))
    Manifest.write(folder / "clips.csv", rows)
    manifest, out = Manifest.read(folder / "clips.csv"), folder / "clips.beton"
    packed = [row(manifest.file(number), number, label=number % 2, end=3) for number in range(4)]
    make_store(out, packed, PARAMETERS, shards=2, manifest_sha256=manifest.sha256)
    (out / store.MANIFEST).write_bytes((folder / "clips.csv").read_bytes())
    (folder / "long.bin").write_bytes(bytes(2 * BLOCK))
    return folder


@pytest.fixture
def server(data, tmp_path, monkeypatch):
    """Serve the folder; waits between tries are short, and the cache is new."""
    monkeypatch.setenv(remote.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv(remote.SIZE_VARIABLE, "0.05")
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.01, 0.01))
    remote._block_cache.cache_clear()
    store.open_shard.cache_clear()
    with serving(data) as running:
        yield running
    remote._block_cache.cache_clear()


@pytest.fixture(scope="module")
def bucket(data):
    """The store in a bucket of an S3 server on loopback."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AWS_ACCESS_KEY_ID", "made"), ("AWS_SECRET_ACCESS_KEY", "up"), ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port())),
        ):  # fmt: skip
            patch.setenv(name, value)
        files = remote._filesystem("s3")
        files.mkdir("bucket")
        for path in (data / "clips.beton").iterdir():
            files.pipe_file(f"bucket/data/clips.beton/{path.name}", path.read_bytes())
        yield "s3://bucket/data"
    server.stop()


def epoch(source):
    """The sample IDs, keys and frames of an epoch."""
    with ppma.ClipLoader(source, batch_size=2, **SMALL) as loader:
        found = [(b.sample_id_B.tolist(), b.key_B.tolist(), b.frames_BTHWC.numpy().tobytes()) for b in loader]
        assert not loader.counters.bad
        return found


@pytest.mark.promise("R32")
def test_an_epoch_is_the_same_from_disk_http_and_s3(data, server, bucket, read_barcode, monkeypatch, figure):
    local = epoch(data / "clips.beton")
    server.faults += ["", "503", "", "cut", "500", "", "cut"]
    assert epoch(f"{server.url}/clips.beton") == local
    assert not server.faults
    monkeypatch.setenv(remote.SIZE_VARIABLE, "0.003")  # a cache of 32 blocks
    assert epoch(f"{bucket}/clips.beton") == local
    figure("R32", "4 clips from HTTP with 4 faults and from S3: 0 bits differ")
    address = open_source(f"{bucket}/clips.beton").file(3)
    assert [read_barcode(frame) for frame in fetch.read_window(address, 1.0, 2.0, 10)] == list(range(10, 20))


def test_videos_are_read_by_url_with_the_same_frames(data, server):
    by_url, local = Manifest.read(f"{server.url}/clips.csv"), Manifest.read(data / "clips.csv")
    assert by_url.sha256 == local.sha256
    for clip in (0, 3):
        windows = [fetch.read_window(manifest.file(clip), 0.5, 2.0, 5) for manifest in (by_url, local)]
        assert np.array_equal(*windows)
    asked = len(server.log)
    fetch.read_window(by_url.file(3), 0.5, 2.0, 5)
    assert all(line.startswith("HEAD") for line in server.log[asked:])
    with pytest.raises(fetch.BadClip, match="no such file"):
        fetch.read_window(by_url.root / "gone.mp4", 0.5, 2.0, 5)
    with pytest.raises(remux.NotForDali, match="h264"):
        remux.encoded_window(by_url.file(0), 0.5, 2.0, 5, DALI_CPU_CODECS)


def test_a_store_of_video_is_read_by_url(data, server):
    clip = Manifest.read(data / "clips.csv").file(0)
    make_store(data / "video.beton", [row(clip, end=3)], replace(PARAMETERS, quality=14, codec="hevc", gop=4))
    places = (data, as_path(server.url))
    windows = [fetch.read_window(place / "video.beton/shard-00000.beton#0", 0.5, 2.0, 5) for place in places]
    assert np.array_equal(*windows) and len(windows[0]) == 5


@pytest.mark.promise("R32")
def test_faults_are_tried_again_and_a_dead_server_ends_the_run_to_be_started_again(data, server, monkeypatch):
    remote._filesystem.cache_clear()
    monkeypatch.setattr(remote, "READ_SECONDS", 1.0)
    url, content = as_path(f"{server.url}/clips.csv"), (data / "clips.csv").read_bytes()
    server.faults += ["silence", "503"]
    file = RemoteFile(url)
    server.faults += ["silence", "429", "cut"]
    assert file.read(10, 200) == content[10:210] and not server.faults
    server.faults += ["500"] * 8
    with pytest.raises(UnreachableError, match="500") as failure:
        RemoteFile(url)
    assert explain(failure.value)[0] == RUN_AGAIN and str(url) in str(failure.value)
    remote._filesystem.cache_clear()


def test_s3_tells_refusals_from_faults(data, server, bucket, monkeypatch):
    def new_client():
        remote._filesystem.cache_clear()
        type(remote._filesystem("s3")).clear_instance_cache()
        remote._filesystem.cache_clear()

    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)  # the folder clips.beton is a bucket
    new_client()
    file = RemoteFile(as_path("s3://clips.beton/shard-00000.beton"))
    server.faults += ["503", "cut"]
    assert file.read(5, 3000) == (data / "clips.beton" / "shard-00000.beton").read_bytes()[5:3005]
    server.faults += ["403"]
    with pytest.raises(RefusedError, match=r"s3://clips.beton/shard.*AWS_PROFILE"):
        RemoteFile(file.url)
    new_client()


SECRET = "k3y"


@pytest.mark.parametrize(
    ("faults", "noun"),
    [
        (["403"] * 2, "permission"),
        (["404"] * 2, "no such file"),
        (["redirect file:///etc/passwd"] * 2, "Redirect"),
        (["418"] * 2, "418"),
        (["", "no ranges"], "ranges"),
        (["", "403"], "permission"),
    ],
)
def test_a_refusal_is_one_line_without_the_credentials(server, faults, noun):
    server.faults += faults
    host = server.url.removeprefix("http://")
    url = as_path(f"http://me:{SECRET}@{host}/long.bin?signature={SECRET}")
    with pytest.raises((RefusedError, FileNotFoundError), match=noun) as failure:
        RemoteFile(url).read(0, 10)
    code, line = explain(failure.value)
    assert code == WRONG_INPUT and f"{server.url}/long.bin" in line and SECRET not in line and "\n" not in line
    assert failure.value.__cause__ is None and failure.value.__suppress_context__
    assert all(f"signature={SECRET}" in line and line.endswith("bWU6azN5") for line in server.log)  # they were sent


def test_what_is_missing_is_named(server, bucket, data, tmp_path, monkeypatch):
    for given, noun in (
        (f"{server.url}/none.csv", "check the URL"),
        (f"{server.url}/none.beton", "index.json"),
        (f"{bucket}/none.csv", "check the URL"),
        (f"{server.url}/clips.mp4", "manifest FILE.csv"),
        ("nosuch://server/x.csv", "no scheme"),
        ("http://", "names no server"),
        ("file://server/x.csv", "file:///x.csv"),
    ):
        with pytest.raises(InputError, match=noun):
            open_source(given)
    assert open_source(f"file://{data}/clips.csv").sha256 == open_source(data / "clips.csv").sha256
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    remote._filesystem.cache_clear()
    with pytest.raises(InputError, match="pip install s3fs aiohttp"):
        open_source(f"{server.url}/clips.csv")
    remote._filesystem.cache_clear()


@pytest.mark.promise("R32")
def test_a_refusal_in_a_worker_ends_the_run_and_replaces_no_clip(data, server):
    source = open_source(f"{server.url}/clips.beton")
    server.faults += ["403"] * 50
    with ppma.ClipLoader(source, batch_size=2, **SMALL) as loader, pytest.raises(RefusedError, match="permission"):
        next(iter(loader))
    assert not loader.counters.bad


def test_a_store_that_is_cut_short_is_named(data, server, tmp_path):
    shard = data / "clips.beton" / "shard-00001.beton"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-3000])
    try:
        with pytest.raises(InputError, match=r"http://.*shard-00001.*copy the store to the server again"):
            open_source(f"{server.url}/clips.beton")
        address = as_path(f"{server.url}/clips.beton") / "shard-00001.beton#1"  # cut while a run was reading it
        with pytest.raises(fetch.BadClip, match="ends before byte"):
            fetch.read_window(address, 2.0, 3.0, 4)
    finally:
        shard.write_bytes(whole)


def test_a_catalog_has_urls_and_keeps_their_credentials_out_of_sight(tmp_path, server):
    toml, url = tmp_path / "data.toml", f"{server.url.replace('//', f'//me:{SECRET}@')}"
    toml.write_text(f'[far.train]\nmanifest = "{url}/clips.csv"\nroot = "{url}"\nstore = "{url}/clips.beton"\n')
    entry, manifest = catalog.find(toml).entry("far"), catalog.find(toml).manifest("far")
    assert manifest.file(0) == entry.store / "shard-00000.beton#0" and SECRET not in f"{entry} {manifest.file(0)!r}"
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(f'[far.train]\nstroe = "{url}/clips.beton"\n')
    with pytest.raises(InputError, match="stroe") as failure:
        catalog.read(wrong)
    assert SECRET not in str(failure.value)
    # on a node: read by URL too, with the cache on its disk
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(remote.CACHE_VARIABLE, "")
        patch.setenv(remote.SIZE_VARIABLE, "")
        staged = stage(toml, ("far",), ("train",), tmp_path / "node", most_gb=1)
        assert (os.environ[remote.CACHE_VARIABLE], float(os.environ[remote.SIZE_VARIABLE])) == (
            str(tmp_path / "node"),
            1,
        )
    assert catalog.find(staged).entry("far").store.full == f"{url}/clips.beton"
    # what needs local files says so
    with pytest.raises(InputError, match="--privacy strict"):
        strict.precheck(SimpleNamespace(), [manifest], None)
    with pytest.raises(InputError, match="ffcv"):
        ClipStream._make_ffcv(SimpleNamespace(sources=[manifest]))


def test_a_url_is_a_path_that_only_reads():
    url = as_path(f"https://me:{SECRET}@host:8080/a%20b/c.csv?sig={SECRET}/1")
    assert isinstance(url, Url) and str(url) == "https://host:8080/a b/c.csv" and SECRET not in f"{url!r}{url}"
    again = pickle.loads(pickle.dumps(url))
    assert again.full == url.full == f"https://me:{SECRET}@host:8080/a%20b/c.csv?sig={SECRET}%2F1"
    assert (url.parent / "d#1.mp4").full == f"https://me:{SECRET}@host:8080/a%20b/d%231.mp4?sig={SECRET}%2F1"
    assert "/a%20b/%252e%252e/x?" in (url.parent / "%2e%2e/x").full  # no way out of the root
    assert as_path("s3://bucket/a b/c?d").full == "s3://bucket/a b/c?d"
    for use in (
        os.listdir,
        np.load,
        lambda path: path.open("wb"),
        lambda path: path.mkdir(),
        lambda path: path.unlink(),
    ):
        with pytest.raises(InputError, match="https://host:8080/a b"):
            use(url)


def test_the_cache_is_bounded_shared_and_loses_nothing_that_is_torn(server, tmp_path, monkeypatch):
    cache, key = BlockCache(tmp_path / "c", 3_000_000), b"k" * 32
    blocks = {number: bytes([number % 251]) * BLOCK for number in range(80)}
    for number, block in blocks.items():
        cache.put(key, number, block)
    other = BlockCache(tmp_path / "c", 3_000_000)  # of another process
    kept = [number for number, block in blocks.items() if other.get(key, number, 7, 99, BLOCK) == block[7:99]]
    assert len(kept) == cache.sets * remote.WAYS == 32 and 79 in kept and kept[:31] == list(range(31))
    (file,) = (tmp_path / "c").iterdir()
    assert file.stat().st_size <= 3_000_000 and not file.stat().st_mode & 0o077
    with file.open("r+b") as torn:
        torn.seek(other._data_at + 5 * BLOCK + 100)
        torn.write(b"torn")
    assert BlockCache(tmp_path / "c", 3_000_000).get(key, 5, 0, 9, BLOCK) is None
    # another size replaces the file; a full disk and no cache at all read on
    assert BlockCache(tmp_path / "c", 6_000_000).sets == 2 and len(list((tmp_path / "c").iterdir())) == 1

    def full(*_):
        raise OSError(28, "No space left on device")

    url = as_path(f"{server.url}/clips.beton/shard-00000.beton")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        first = RemoteFile(url).read(100, 3000)
    monkeypatch.setenv(remote.SIZE_VARIABLE, "0")
    remote._block_cache.cache_clear()
    assert first == RemoteFile(url).read(100, 3000)
