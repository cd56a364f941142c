"""Tests of data sets run in an empty folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ppma.loaders.sources.pictures import MAX_PIXELS
from ppma.loaders.sources.probe import Check, Unusable, VideoMetadata, probe


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PPMA_DATA", raising=False)


@pytest.fixture
def probe_here(monkeypatch):
    """`ppma index` probes in this process: starting another one takes longer than the few clips of a test."""

    def probe_each(
        files: Iterator[tuple[object, Path]], *, max_pixels: int = MAX_PIXELS, check: Check = "quick", **_: object
    ) -> Iterator[tuple[object, VideoMetadata | str]]:
        for key, path in files:
            try:
                yield key, probe(path, max_pixels=max_pixels, check=check)
            except Unusable as reason:
                yield key, str(reason)

    monkeypatch.setattr("ppma.data.index.probe_each", probe_each)
