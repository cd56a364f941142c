"""Where this project keeps what it would have to download, compile or generate again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the user's folder for this project, ~/.cache/ppma (XDG_CACHE_HOME moves it). It may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppma"
