"""FFCV's loader gives the views of the plain reader, except for what its fast DCT changes."""

import shutil
from dataclasses import replace
from importlib.util import find_spec

import cv2
import numpy as np
import pytest

from ppma.config.errors import InputError
from ppma.config.loader import LoaderConfig
from ppma.loaders.decode.augment import make_views
from ppma.loaders.decode.fetch import read_frames
from ppma.loaders.sampler import EvaluationSampler, TrainingSampler
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.store import PackParameters, Store, locate_packed
from ppma.loaders.stream import ClipStream
from tests.loaders.test_store import make_store
from tests.loaders.test_store import row as pack_row
from tests.loaders.test_stream import row

pytestmark = pytest.mark.skipif(find_spec("ffcv") is None, reason="FFCV is not installed")  # its import takes long
CONFIG = LoaderConfig(frames=4, size=32, short_side=48, views=3, flip_probability=0.5, window_seconds=1.0)


@pytest.fixture(scope="module")
def packed(tmp_path_factory, write_clip):
    """Six clips in two shards, of two sizes."""
    folder = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(0)
    clips, rows = [], []
    for i in range(6):
        width, height = ((64, 48), (48, 80))[i % 2]
        path = folder / f"{i}"
        path.mkdir()
        picture = cv2.resize(
            rng.integers(0, 255, (6, 6, 3), np.uint8), (width + 60, height), interpolation=cv2.INTER_CUBIC
        )
        for t in range(30):
            cv2.imwrite(str(path / f"{t:03d}.png"), picture[:, 2 * t : 2 * t + width])
        size = {"width": width, "height": height}
        clips.append(row(str(i), i, frames=30, fps=25.0, codec="png", duration_seconds=1.2, **size))
        rows.append(pack_row(path, i, end=9.0, label=i))
    made = make_store(folder / "s.beton", rows, PackParameters(short_side=48, fps=None, quality=95), shards=2)
    return Manifest.from_clips(clips, root=folder, name="x").packed_in(made)


def make_views_object(packed, config, samples):
    """Return an FfcvViews over the store, and the addresses of the samples."""
    from ppma.loaders.decode.ffcv import FfcvViews

    views = FfcvViews(
        packed.store.path / "shard-00000.beton", config, batch_clips=4, views=config.views, pixels=48 * 80
    )
    return views, [packed.file(sample.clip) for sample in samples]


def test_views_are_those_of_the_plain_reader(packed):
    import torch

    threads = torch.get_num_threads()
    sampler = TrainingSampler([packed], CONFIG, seed=3, batch_clips=5)
    samples = [sample for epoch in range(2) for sample in sampler.samples(epoch, 0)]
    assert any(view.flip for sample in samples for view in sample.views)
    views, addresses = make_views_object(packed, CONFIG, samples)
    for _ in range(2):  # a second plan through the same compiled loader
        got = [(made.copy(), bad) for made, bad in views.run(addresses, samples)]
        assert [len(made) for made, _ in got] == [4, 4, 2] and not np.concatenate([bad for _, bad in got]).any()
        for made_VTHWC, sample, address in zip(np.concatenate([made for made, _ in got]), samples, addresses):
            frames = read_frames(address, sample.start_seconds, sample.end_seconds, CONFIG.frames)
            apart = np.abs(made_VTHWC.astype(int) - make_views(frames, sample.views, CONFIG))
            assert apart.max() <= 12 and apart.mean() < 1.5  # libjpeg-turbo's fast DCT and OpenCV's color tables
    assert torch.get_num_threads() == threads


def test_a_store_of_another_size_is_refused(packed):
    config = replace(CONFIG, short_side=40)
    samples = TrainingSampler([packed], config, seed=0, batch_clips=4).samples(0, 0)
    views, addresses = make_views_object(packed, config, samples)
    with pytest.raises(InputError, match="pack with --short-side 40"):
        next(views.run(addresses, samples))


def collect(source, implementation, *, start=(0, 0), sampler=TrainingSampler, on_bad="replace"):
    config = replace(CONFIG, implementation=implementation, max_bad_fraction=0.5, workers=1)
    batches = (
        sampler([source], config, seed=3, batch_clips=3)
        if sampler is TrainingSampler
        else sampler(source, config, batch_clips=4)
    )
    with ClipStream(
        batches, [source], config, epochs=2 if sampler is TrainingSampler else 1, start=start, on_bad=on_bad
    ) as stream:
        return list(stream), stream


def assert_alike(made, plain):
    """The same samples in the same order, their pixels within what FFCV's fast DCT changes."""
    assert len(made) == len(plain)
    for ours, theirs in zip(made, plain):
        for name in ("label_B", "sample_id_B", "view_B", "key_B", "decoded_B"):
            assert getattr(ours, name).tolist() == getattr(theirs, name).tolist(), name
        apart = (ours.frames_BTHWC.int() - theirs.frames_BTHWC.int()).abs()
        assert apart.max() <= 12 and apart.float().mean() < 1.5


@pytest.fixture
def damaged(packed, tmp_path):
    """The store with a clip whose JPEGs are zeros."""
    shutil.copytree(packed.store.path, tmp_path / "store")
    shard, place = locate_packed(packed.file(1))
    offsets, _ = shard.table(place)
    with (tmp_path / "store" / shard.path.name).open("r+b") as file:
        file.seek(int(offsets[0]))
        file.write(bytes(int(offsets[-1] - offsets[0])))
    clips = [packed.clip(row) for row in range(len(packed))]
    return Manifest.from_clips(clips, root=tmp_path / "store", name="x").packed_in(Store(tmp_path / "store"))


def test_a_stream_gives_the_plain_readers_batches_and_names_and_replaces_the_damaged_clip(damaged):
    plain, plain_stream = collect(damaged, "plain")
    made, stream = collect(damaged, "ffcv")
    assert len(made) == 4 and stream.counters.samples >= 12
    assert stream.bad_files == plain_stream.bad_files and len(stream.bad_files) == 1
    assert_alike(made, plain)
    assert not any(1 in batch.sample_id_B for batch in made)
    assert_alike(collect(damaged, "ffcv", start=(1, 1))[0], plain[3:])


def test_an_evaluation_ends_with_a_short_batch_and_marks_the_damaged_clip(damaged):
    (made, _), (plain, _) = (
        collect(damaged, name, sampler=EvaluationSampler, on_bad="mark") for name in ("ffcv", "plain")
    )
    assert [len(batch.sample_id_B) for batch in made] == [4 * 6, 2 * 6]
    assert_alike(made, plain)
    assert made[0].decoded_B.tolist() == [True] * 6 + [False] * 6 + [True] * 12
    assert not made[0].frames_BTHWC[6:12].any()


def test_what_ffcv_cannot_do_is_refused(packed):
    with pytest.raises(InputError, match="RandAugment"):
        replace(CONFIG, implementation="ffcv", randaugment_ops=2)
    clips = Manifest.from_clips([packed.clip(row) for row in range(6)], root=packed.root, name="clips")
    with pytest.raises(InputError, match="clips is not one: ppma pack clips --short-side 48"):
        collect(clips, "ffcv")
