"""Broken and odd files for all tests of the loaders, made once."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def damaged(built_once) -> Path:
    """The files of `damaged_clips`, for reading only."""
    from damaged_clips import make_all  # late: other tests run on machines without PyAV

    return built_once("damaged", make_all)
