"""A run opened for looking is the run; the clips that are looked at are spread over the classes."""

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from ppma.config.errors import InputError
from ppma.config.run import EvaluationConfig
from ppma.inference.open_run import open_run, plain_views, spread_rows, subset
from ppma.loaders.sources import catalog


@pytest.mark.parametrize("run", ["mae", "finetune"])
def test_the_encoder_is_the_run_s(tiny_runs, run):
    look = open_run(tiny_runs / "runs" / run, device="cpu")
    saved = load_file(look.weights)
    for name in ("patch_embed.proj.weight", "blocks.1.attn.qkv.weight"):
        assert torch.equal(look.model.state_dict()[name], saved[name])
    assert look.has_heads == (run == "finetune") and not look.model.training


def test_embeddings_are_those_of_the_plain_views(tiny_runs):
    look = open_run(tiny_runs / "runs" / "finetune", device="cpu", workers=1)
    source = subset(catalog.read(tiny_runs / "data.toml").manifest("made"), [0, 4, 8])
    frames = torch.from_numpy(plain_views(source, look.loader))
    with torch.no_grad():
        expected = look.model.tokens(look.model.patches(frames), None).mean(dim=1)
    found = look.embed(source, EvaluationConfig(windows=1, crops=1, batch_clips=2))
    assert torch.allclose(found.features_VWD[:, 0], expected, atol=1e-6) and bool(found.decoded_V.all())


def test_rows_are_spread_over_classes():
    source = tiny.source("made", clips=40, classes=4)
    rows = spread_rows(source, 8)
    assert np.bincount(source.labels[rows]).tolist() == [2, 2, 2, 2] and rows == sorted(rows)
    assert min(rows) < 8 and max(rows) >= 32
    assert spread_rows(source, 100) == list(range(40))
    assert len(spread_rows(source, 3)) == 3


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(InputError, match="neither a run folder"):
        open_run(tmp_path)
