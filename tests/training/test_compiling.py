"""Compiled code is cached for the next run, and the log reports the time that torch.compile took."""

import os
import shutil

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from ppma.config.model import MAEConfig, ViTConfig
from ppma.models.mae import MaskedAutoencoder
from ppma.training import compute


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Cache folder of this test, with a new clock and nothing compiled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(compute.CACHE_VARIABLE, default_cache_dir())  # as inductor does when it is imported
    monkeypatch.setenv("TRITON_CACHE_DIR", "set here so that it is put back")
    monkeypatch.delenv("TRITON_CACHE_DIR")
    compute.compile_clock.cache_clear()
    torch.compiler.reset()
    yield tmp_path / "cache" / "ppma" / "compiled"
    torch.compiler.reset()


def test_results_go_where_they_stay(home, monkeypatch):
    compute.set_cache_folder()
    assert home.is_dir() and os.environ[compute.CACHE_VARIABLE] == str(home)
    assert os.environ["TRITON_CACHE_DIR"] == str(home / "triton")
    monkeypatch.setenv(compute.CACHE_VARIABLE, "/elsewhere")
    compute.set_cache_folder()
    assert os.environ[compute.CACHE_VARIABLE] == "/elsewhere", "the user's own choice is left as it is"


def test_a_folder_that_cannot_be_made_is_no_error(home, caplog):
    home.parent.parent.write_text("a file where the folder should be")
    compute.set_cache_folder()
    assert os.environ[compute.CACHE_VARIABLE] == default_cache_dir() and "not kept" in caplog.text


def compile_twice(module, step, caplog):
    """What the log says of the first and of a second compilation, as of two runs."""
    said = []
    for _ in range(2):
        counters.clear()
        step(compute.compiled(module))
        with caplog.at_level("INFO", logger="ppma.training.compute"):
            compute.compile_clock().report()
            compute.compile_clock().report()  # nothing new
        said.append([message for message in caplog.messages if "torch.compile took" in message])
        caplog.clear()
        torch.compiler.reset()  # forgets the clock too
        compute.compile_clock.cache_clear()
    return said


def test_the_next_run_finds_what_was_compiled(home, caplog):
    """One matrix product, for which no C++ is written."""
    module = nn.Linear(4, 4, bias=False).requires_grad_(False)
    first, second = compile_twice(module, lambda compiled: compiled(torch.randn(3, 4)), caplog)
    assert len(first) == len(second) == 1
    assert f"0 of 1 graphs from {home}" in first[0] and f"1 of 1 graphs from {home}" in second[0]


def test_a_graph_break_is_a_warning_once(home, caplog):
    """Matrix products alone, for which no C++ is written."""
    module = nn.Linear(4, 4, bias=False).requires_grad_(False)

    def broken(x):
        y = x @ module.weight
        torch._dynamo.graph_break()
        return y @ module.weight

    module.forward = broken
    counters.clear()
    compiled = compute.compiled(module)
    with caplog.at_level("INFO", logger="ppma.training.compute"):
        compiled(torch.randn(3, 4))
        compute.compile_clock().report()
        compute.compile_clock().report()
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and "graph_break" in warnings[0].getMessage()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
def test_the_next_run_finds_a_training_step(home, caplog):
    """Forward and backward of stage 1; the second time takes less than a third, of which most is tracing."""
    vit = ViTConfig(width=48, depth=2, heads=3, size=48, frames=4)
    model = MaskedAutoencoder(vit, MAEConfig(mask_ratio=0.75, decoder_width=24, decoder_depth=2, decoder_heads=2))
    clip, keys, took = torch.zeros(2, 4, 48, 48, 3, dtype=torch.uint8), torch.arange(2), []

    def step(compiled):
        before = compute.compile_clock().seconds
        compiled(clip, keys).backward()
        took.append(compute.compile_clock().seconds - before)

    first, second = compile_twice(model, step, caplog)
    assert "0 of 2 graphs" in first[0] and "2 of 2 graphs" in second[0]
    assert took[1] < took[0] / 3, took
