"""`ClipLoader` takes any source, resumes to the batch, reads the same clips at any number of ranks, and names bad files."""

import hashlib
import shutil
import threading

import numpy as np
import pytest
import torch

import ppma
from ppma.cli import main as command
from ppma.config.model import PIXEL_MEAN, PIXEL_STD
from ppma.loaders.clip_loader import open_source

pytestmark = pytest.mark.usefixtures("probe_here")
SMALL = {"frames": 4, "size": 32, "short_side": 40, "window_seconds": 1.0, "workers": 1}


def rows(batch):
    """(clip, view, hash of its pixels) of each row."""
    hashes = [hashlib.sha256(frames.numpy().tobytes()).hexdigest() for frames in batch.frames_BTHWC]
    return list(zip(batch.sample_id_B.tolist(), batch.view_B.tolist(), hashes))


@pytest.fixture(scope="module")
def made(clip_tree, tmp_path_factory):
    """data.toml with the source `made`."""
    folder = tmp_path_factory.mktemp("made")
    flags = f"--root {clip_tree} --out {folder}/made.csv --name made --data {folder}/data.toml"
    assert command(["index", str(clip_tree), *flags.split()]) == 0
    return folder


def test_every_kind_of_source_gives_the_same_clips(made, clip_tree):
    manifest = open_source(made / "made.csv", root=clip_tree)
    videos = [(clip_tree / path, int(label)) for path, label in zip(manifest.texts("path"), manifest.labels)]
    (made / "list.txt").write_text(
        "".join(f"{path};{label}\n" for path, label in zip(manifest.texts("path"), manifest.labels))
    )
    for source, flags in (
        (clip_tree, {}),
        (videos, {}),
        (made / "list.txt", {"root": clip_tree}),
        ("made", {"data": made / "data.toml"}),
        (manifest, {}),
    ):
        found = open_source(source, **flags)
        assert found.labels.tolist() == manifest.labels.tolist()
        assert [found.file(i).resolve() for i in range(12)] == [video.resolve() for video, _ in videos]
    assert open_source([path for path, _ in videos]).labels.tolist() == [-1] * 12


def test_a_packed_store_is_a_source(made, tmp_path):
    toml, store = shutil.copy(made / "data.toml", tmp_path), tmp_path / "made.beton"
    shutil.copy(made / "made.csv", tmp_path)
    assert command(f"pack made --data {toml} --out {store} --short-side 40 --workers 1".split()) == 0
    moved = store.rename(tmp_path / "moved.beton")  # it brings its manifest
    with ppma.ClipLoader(moved, batch_size=4, **SMALL) as loader:
        assert len(loader) == 3 and "#" in loader.manifest.file(0).name
        assert sum(len(batch.frames_BTHWC) for batch in loader) == 12
    (moved / "manifest.csv").unlink()
    with pytest.raises(ppma.InputError, match="pack it again"):
        ppma.ClipLoader(moved, batch_size=4, **SMALL)


def test_a_resume_goes_on_with_the_next_batch_and_any_ranks_read_the_same(made):
    source = open_source("made", data=made / "data.toml")
    with ppma.ClipLoader(source, views=2, batch_size=4, **SMALL) as loader:
        whole, state = [], None
        for _ in range(2):
            for batch in loader:
                whole.append(rows(batch))
                if len(whole) == 2:
                    state = loader.state_dict()
    assert len(whole) == 6 and sorted({clip for step in whole[:3] for clip, *_ in step}) == list(range(12))
    assert whole[:3] != whole[3:]
    shares = []
    for rank in range(2):
        with ppma.ClipLoader(source, views=2, batch_size=4, rank=rank, world_size=2, **SMALL) as loader:
            loader.load_state_dict(state)
            assert loader.state_dict() == state
            shares.append([rows(batch) for _ in range(2) for batch in loader])
    assert [first + second for first, second in zip(*shares)] == whole[2:]
    with pytest.raises(ppma.InputError, match="seed"):
        ppma.ClipLoader(source, views=2, batch_size=4, seed=1, **SMALL).load_state_dict(state)


def test_a_loop_that_is_left_is_followed_by_the_next_epoch(made):
    with ppma.ClipLoader("made", data=made / "data.toml", batch_size=4, **SMALL) as loader:
        next(iter(loader))
        assert [batch.epoch for batch in loader] == [1, 1, 1] and loader.state_dict()["epoch"] == 2


def test_without_training_each_clip_comes_once_in_order(made):
    source = open_source("made", data=made / "data.toml")
    seen = []
    for rank in range(2):
        flags = SMALL | {"short_side": 32}
        with ppma.ClipLoader(source, views=3, batch_size=10, train=False, rank=rank, world_size=2, **flags) as loader:
            assert len(loader) == 2
            seen += [batch.sample_id_B[::3].tolist() for batch in loader]
            assert [len(batch.frames_BTHWC) for batch in loader] == [15, 6 if rank == 0 else 0]
    assert seen == [[0, 1, 2, 3, 4], [10, 11], [5, 6, 7, 8, 9], []]


def test_frames_become_normalized_floats(made):
    with ppma.ClipLoader("made", data=made / "data.toml", batch_size=2, **SMALL) as loader:
        batch = next(iter(loader))
    pixels = batch.frames_BTHWC.numpy().astype(np.float64) / 255
    expected = torch.from_numpy((pixels - PIXEL_MEAN) / PIXEL_STD).float()
    assert torch.allclose(batch.as_float("BTCHW"), expected.permute(0, 1, 4, 2, 3), atol=1e-6)
    assert torch.nn.Conv3d(3, 5, 4)(batch.as_float()).shape[:2] == (2, 5)


def test_bad_files_are_named_and_wrong_input_is_one_line(made, clip_tree, tmp_path):
    shutil.copytree(clip_tree, tmp_path / "clips")
    broken = sorted((tmp_path / "clips").rglob("*.mp4"))[0]
    manifest = tmp_path / "clips.csv"
    shutil.copy(made / "made.csv", manifest)
    broken.write_bytes(b"no video")
    with ppma.ClipLoader(manifest, root=tmp_path / "clips", batch_size=12, max_bad_fraction=0.5, **SMALL) as loader:
        (batch,) = loader
        assert list(loader.counters.bad) == [str(broken)] and len(batch.frames_BTHWC) == 12 and batch.decoded_B.all()
    assert len(open_source(tmp_path / "clips")) == 11
    for call in (
        lambda: ppma.ClipLoader(tmp_path / "gone"),
        lambda: ppma.ClipLoader("gone", data=made / "data.toml"),
        lambda: ppma.ClipLoader([]),
        lambda: ppma.ClipLoader([broken]),
        lambda: ppma.ClipLoader(manifest, batch_size=5, world_size=2),
        lambda: ppma.ClipLoader(manifest, batch_size=99),
        lambda: ppma.ClipLoader(manifest, batch_size=4, worker=1),
        lambda: ppma.ClipLoader(manifest, batch_size=4, windows=2),
        lambda: ppma.ClipLoader(manifest, batch_size=4, train=False, views=2),
    ):
        with pytest.raises(ppma.InputError) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_loader_that_is_dropped_keeps_no_thread(clip_tree):
    def mine():
        return [thread for thread in threading.enumerate() if thread.name == "ppma-batches"]

    loader = ppma.ClipLoader(clip_tree, batch_size=4, **SMALL)
    next(iter(loader))
    assert mine()
    del loader
    assert not mine()
