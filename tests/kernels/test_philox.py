"""Philox4x32-10 against its authors' known-answer vectors (Random123), and properties that runs rely on."""

import pytest
import torch

from ppma.kernels.philox import DevicePurpose, bits, normal, philox4x32, uniform

KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter, key, answer):
    words = philox4x32(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(int(w) for w in words) == answer


def test_a_row_depends_only_on_its_key():
    keys = torch.tensor([5, 1 << 62, 77])
    together = bits(keys, DevicePurpose.MASK, 13)
    for row, key in enumerate(keys):
        assert torch.equal(together[row], bits(key[None], DevicePurpose.MASK, 13)[0])
    assert not torch.equal(together, bits(keys, DevicePurpose.MIX, 13))
    assert not torch.equal(together, bits(keys, DevicePurpose.MASK, 13, stream=1))


def test_moments():
    u = uniform(torch.arange(64), DevicePurpose.MASK, 4096, dtype=torch.float64)
    assert 0 < u.min() and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.003 and abs(u.var() - 1 / 12) < 0.001
    z = normal(torch.arange(64), DevicePurpose.ERASE_NOISE, 4096, dtype=torch.float64)
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01


def test_key_high_bits_matter():
    first, second = bits(torch.tensor([3, 3 + (1 << 40)]), DevicePurpose.DROP_PATH, 8)
    assert not torch.equal(first, second)


def test_compiled_words_are_those_of_eager():
    keys = torch.tensor([3, 3 + (1 << 40)])
    eager = bits(keys, DevicePurpose.DROP_PATH, 8)
    compiled = torch.compile(lambda k: bits(k, DevicePurpose.DROP_PATH, 8), fullgraph=True)(keys)
    assert torch.equal(eager, compiled)
