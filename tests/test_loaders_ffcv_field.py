"""FFCV's loader gives the views of the plain path, drawn by the sampler, less what its fast DCT changes."""

from dataclasses import replace
from itertools import islice

import cv2
import numpy as np
import pytest

from ppma.loaders.augment import make_views
from ppma.loaders.config import LoaderConfig
from ppma.loaders.errors import InputError
from ppma.loaders.fetch import read_frames
from ppma.loaders.manifest import Clip, Manifest
from ppma.loaders.packing import PackRow, pack_shard, write_rows
from ppma.loaders.sampler import TrainingSampler
from ppma.loaders.store import INDEX, PackParameters, Store, StoreIndex

pytest.importorskip("ffcv")
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
        facts = {"frames": 30, "fps": 25.0, "codec": "png", "key_frame_spacing": 1, "duration_seconds": 1.2}
        clips.append(Clip(path=str(i), width=width, height=height, label=i, **facts))
        rows.append(PackRow(row=i, path=str(path), label=i, start_seconds=0.0, end_seconds=9.0))
    parameters = PackParameters(short_side=48, fps=None, quality=95)
    shards = tuple(
        pack_shard(folder, n, rows[3 * n : 3 * n + 3], parameters, refused={}, started=lambda _: None) for n in (0, 1)
    )
    write_rows(folder, shards, 6)
    index = StoreIndex(manifest_sha256="", rows=6, parameters=parameters, shards=shards, complete=True)
    (folder / INDEX).write_text(index.dump())
    return Manifest.from_clips(clips, root=folder, name="x").packed_in(Store(folder))


def run(packed, config, draws, batch=4):
    from ppma.loaders.ffcv_field import FfcvViews

    shard = packed.root / "shard-00000.beton"
    views = FfcvViews(shard, config, batch_clips=batch, views=config.views, pixels=48 * 80)
    return views, [packed.file(draw.clip) for draw in draws], draws


def test_views_are_those_of_the_plain_path(packed):
    import torch

    threads = torch.get_num_threads()
    sampler = TrainingSampler([packed], CONFIG, seed=3, batch_clips=5)
    draws = [draw for epoch in range(2) for draw in sampler.draws(epoch, 0)]
    assert any(view.flip for draw in draws for view in draw.views)
    views, addresses, _ = run(packed, CONFIG, draws)
    for _ in range(2):  # a second plan through the same compiled loader
        got = [(made.copy(), bad) for made, bad in views.run(addresses, draws)]
        assert [len(made) for made, _ in got] == [4, 4, 2] and not np.concatenate([bad for _, bad in got]).any()
        for made_VTHWC, draw, address in zip(np.concatenate([made for made, _ in got]), draws, addresses):
            frames = read_frames(address, draw.start_seconds, draw.end_seconds, CONFIG.frames)
            apart = np.abs(made_VTHWC.astype(int) - make_views(frames, draw.views, CONFIG))
            assert apart.max() <= 12 and apart.mean() < 1.5  # libjpeg-turbo's fast DCT and OpenCV's colour tables
    assert torch.get_num_threads() == threads


def test_damaged_frames_are_told_of(packed):
    draws = TrainingSampler([packed], CONFIG, seed=0, batch_clips=4).draws(0, 0)
    views, addresses, _ = run(packed, CONFIG, draws)
    views._fill, fill = None, views._fill

    def damaged(row, address, draw):
        fill(row, address, draw)
        if draw is draws[2]:
            row["size"][1] = 30

    views._fill = damaged
    ((_, bad),) = list(islice(views.run(addresses, draws), 1))
    assert bad.tolist() == [False, False, True, False]


def test_a_store_of_another_size_is_refused(packed):
    config = replace(CONFIG, short_side=40)
    draws = TrainingSampler([packed], config, seed=0, batch_clips=4).draws(0, 0)
    views, addresses, _ = run(packed, config, draws)
    with pytest.raises(InputError, match="pack with --short-side 40"):
        next(views.run(addresses, draws))
