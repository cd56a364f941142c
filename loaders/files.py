"""What a clip's files hold, as one hash: the same for the same bytes under the same names, wherever they lie.

file -> SHA-256 of its bytes        folder of frames -> SHA-256 over name and hash of each file        several clips -> one hash of theirs
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path


def content_sha256(path: Path) -> str:
    """Hash of a file, or of the names and contents of a folder of frames. OSError where there is neither."""
    if path.is_file():
        return file_sha256(path)
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    lines = "".join(f"{file_sha256(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def joined_sha256(contents: Iterable[str]) -> str:
    """One hash for several clips' in their order."""
    return hashlib.sha256("\n".join(contents).encode()).hexdigest()
