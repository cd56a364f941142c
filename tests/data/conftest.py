"""Tests of data sets run in an empty folder."""

import pytest


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PPMA_DATA", raising=False)
