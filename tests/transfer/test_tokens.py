"""Kept tokens: those of the encoder to what float16 holds, computed once, refused where the disk has no room."""

import shutil
from collections import namedtuple

import numpy as np
import pytest
import tiny
import torch

from ppma.config.errors import InputError
from ppma.loaders.sources import catalog
from ppma.models.attentive import cells_of, normed_cells
from ppma.models.classify import Classifier
from ppma.training.compute import choose
from ppma.transfer.features import PLAIN_VIEWS, cached_tokens, encoded

FP32 = choose("fp32", tiny.ALONE.device)


@pytest.fixture(scope="module")
def made(tmp_path_factory, clip_tree):
    folder = tmp_path_factory.mktemp("tokens")
    data = tiny.make_data(folder, clip_tree, "train")
    config = tiny.config("attentive_probe", data, folder / "runs/run", "--attentive.heads", 3)
    return config, catalog.find(config.data).manifest("made")


def test_cells_are_means_of_neighboring_tokens():
    vit = tiny.shrink("attentive_probe").vit  # 2 x 4 x 4 tokens
    tokens = torch.arange(32.0).view(1, 32, 1)
    assert torch.equal(cells_of(tokens, vit, (1, 1, 1)), tokens)
    found = cells_of(tokens, vit, (2, 2, 4))
    by_hand = tokens.view(2, 4, 4)
    assert found.flatten().tolist() == [by_hand[:, :2].mean().item(), by_hand[:, 2:].mean().item()]


def test_kept_tokens_are_the_encoder_s_and_are_read_the_next_time(made, caplog):
    config, manifest = made
    model = Classifier(config.vit, {"made": 4}, config.classifier)
    rows = cached_tokens(model, manifest, config, ranks=tiny.ALONE, compute=FP32)
    assert len(rows) == len(manifest) == 12
    for part in encoded(model.eval(), manifest, config.loader, PLAIN_VIEWS, ranks=tiny.ALONE, compute=FP32):
        expected = normed_cells(part.tokens_BND, config.vit, (1, 1, 1)).detach()
        assert (rows[part.ids_C] - expected).abs().max() < 7 * 2**-11  # sqrt(48) at most, to 1 part in 2048
    with caplog.at_level("INFO"):
        again = cached_tokens(model, manifest, config, ranks=tiny.ALONE, compute=FP32)
    assert "tokens of made: read from" in caplog.text
    assert torch.equal(again[torch.tensor([3, 0])], rows[torch.tensor([3, 0])])
    files = list((config.run_dir.parent / "features").glob("*.npy"))
    assert len(files) == 1 and np.load(files[0], mmap_mode="r").dtype == np.float16


def test_a_disk_without_room_is_told_before_the_encoder_runs(made, monkeypatch, tmp_path):
    config, manifest = made
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("usage", "total used free")(10, 10, 1000))
    model = Classifier(config.vit, {"made": 4}, config.classifier, seed=5)
    with pytest.raises(InputError, match=r"--attentive\.cells"):
        cached_tokens(model, manifest, config, ranks=tiny.ALONE, compute=FP32)
    assert len(list((config.run_dir.parent / "features").glob("*.npy"))) <= 1
