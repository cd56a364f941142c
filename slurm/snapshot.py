"""The code that a job will run, copied into its run folder when it is submitted: what is edited later changes no job that waits or returns.

    working tree (tracked files, uncommitted changes)  ->  <run>/code, complete or not there  ->  PYTHONPATH of the job

Links are kept, so that ppma/loaders stays a link to ../loaders. Files that git does not know are copied only from the package's folders,
where a new module may be imported; data that lies about is not.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import ppma
from ppma.config.errors import InputError

PARTS = ("ppma", "loaders", "kernels", "slurm")
CODE = "code"
"""Name of the copy in the run folder."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A copy of the code."""

    folder: Path
    sha256: str
    """Of all names, links and bytes."""
    commit: str | None
    """HEAD; None where there is no git."""
    changed: tuple[str, ...]
    """Files that differ from the commit."""


def source_root() -> Path:
    """The folder that holds the package `ppma` of this process."""
    return Path(ppma.__file__).resolve().parents[1]


def _git(root: Path, *words: str) -> str | None:
    """Output of a git command; None where `root` is no checkout."""
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def _files(root: Path) -> list[str]:
    """What belongs to the code, relative to `root`, sorted. Of an installed package: its own files."""
    inside = _git(root, "rev-parse", "--is-inside-work-tree") and (root / ".git").exists()
    if not inside:
        package = (
            Path(folder, name) for folder, _, names in os.walk(root / "ppma", followlinks=True) for name in names
        )
        return sorted(path.relative_to(root).as_posix() for path in package if path.suffix != ".pyc")
    tracked = (_git(root, "ls-files", "-z") or "").split("\0")
    new = (_git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *PARTS) or "").split("\0")
    return sorted({name for name in (*tracked, *new) if name and os.path.lexists(root / name)})


def changes(root: Path) -> tuple[str, ...]:
    """Files of the working tree that differ from the last commit, new ones among the code included."""
    words = ("status", "--porcelain", "-z", "--untracked-files=all")
    lines = (_git(root, *words) or "").split("\0")
    return tuple(line[3:] for line in lines if line and (not line.startswith("??") or line[3:].split("/")[0] in PARTS))


def require_clean(root: Path) -> None:
    """InputError when the working tree differs from its last commit, or is no checkout that could tell."""
    if _git(root, "rev-parse", "HEAD") is None:
        raise InputError(
            f"--require-clean: {root} is no git checkout with a commit; clone the repository, or leave the flag out"
        )
    if changed := changes(root):
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise InputError(
            f"--require-clean: {', '.join(changed[:5])}{more} in {root} not committed; commit, or leave the flag out"
        )


def _copy(root: Path, names: list[str], target: Path) -> str:
    """Copy and return the hash."""
    digest = hashlib.sha256()
    for name in names:
        source, copy = root / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, copy, follow_symlinks=False)
        data = str(copy.readlink()).encode() if copy.is_symlink() else copy.read_bytes()
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def take(run_dir: Path, root: Path | None = None) -> Snapshot:
    """Copy the code to <run_dir>/code, in place of an older copy there. It appears when it is complete."""
    root = root or source_root()
    run_dir.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{CODE}.", dir=run_dir))
    try:
        sha256 = _copy(root, _files(root), beside)
        beside.chmod(0o755)
        target = run_dir / CODE
        if target.exists():
            shutil.rmtree(target)
        beside.rename(target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    commit = (_git(root, "rev-parse", "HEAD") or "").strip() or None
    return Snapshot(folder=target, sha256=sha256, commit=commit, changed=changes(root))
