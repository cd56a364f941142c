"""The attentive probe: what the query gathers against a loop, and a checkpoint that is tested as it was trained."""

import pytest
import tiny
import torch

from ppma.config.errors import InputError
from ppma.config.model import ClassifierConfig
from ppma.config.protocols import AttentiveConfig
from ppma.models.attentive import AttentiveClassifier, AttentivePool, AttentiveProbe, normed_cells
from ppma.models.vit import weight_generator

VIT = tiny.shrink("attentive_probe").vit
SPACES = {"made": 4}


def shaken(module):
    generator = torch.Generator().manual_seed(2)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.double()


def test_the_pool_equals_a_loop_over_heads():
    pool = shaken(AttentivePool(48, 3, weight_generator(0, "tail")))
    tokens = torch.randn(2, 7, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for clip, found in zip(tokens, pool(tokens)):
        query = pool.to_query(pool.query)
        keys, values = pool.to_key_value(pool.norm1(clip)).split(48, dim=1)
        heads = []
        for head in range(3):
            part = slice(16 * head, 16 * head + 16)
            share = torch.softmax(keys[:, part] @ query[part] / 4, dim=0)
            heads.append(share @ values[:, part])
        x = pool.query + pool.proj(torch.cat(heads))
        assert (x + pool.mlp(pool.norm2(x)) - found).abs().max() < 1e-12


def test_it_trains_on_kept_tokens_as_it_is_tested_on_clips():
    config = AttentiveConfig(heads=3, cells=(1, 2, 2))
    probe = shaken(AttentiveProbe(VIT, SPACES, ClassifierConfig(freeze_encoder=True), config)).eval()
    frames = torch.stack([torch.from_numpy(tiny.pixels(0, clip, 0)) for clip in range(4)])
    labels = torch.arange(4)
    kept = normed_cells(probe.tokens(probe.patches(frames), None), VIT, config.cells)
    assert kept.shape == (4, VIT.tokens // 4, 48)
    tested = torch.nn.functional.cross_entropy(probe.logits(frames), labels)
    assert (probe(kept, labels) - tested).abs().item() < 1e-10
    learns = {name.split(".")[0] for name, parameter in probe.named_parameters() if parameter.requires_grad}
    assert learns == {"pooling", "fc_norm", "head"}


def test_wrong_input():
    with pytest.raises(InputError, match="heads 5 does not divide"):
        AttentiveClassifier(VIT, SPACES, ClassifierConfig(), AttentiveConfig(heads=5))
    with pytest.raises(InputError, match=r"cells \(1, 3, 1\) do not divide the encoder's grid of 2 x 4 x 4"):
        AttentiveClassifier(VIT, SPACES, ClassifierConfig(), AttentiveConfig(heads=3, cells=(1, 3, 1)))
