"""Copy the code that a job will run into its run folder: later edits change no job that is queued or requeued.

    working tree (tracked files, uncommitted changes)  ->  <run>/code, written atomically  ->  PYTHONPATH of the job

Links are kept, so that ppma/loaders stays a link to ../loaders. Untracked files are copied only from the package's
folders, where a new module may be imported. Not submitit's RsyncSnapshot: it needs rsync and git, leaves out new
files, and may leave half a copy.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import ppma
from ppma.config.errors import first_few, require

PARTS = ("ppma", "loaders", "kernels", "slurm")
CODE = "code"
"""Name of the copy in the run folder."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A copy of the code."""

    folder: Path
    sha256: str
    """Hash of all names, links and bytes."""
    commit: str | None
    """HEAD; None without git."""
    changed: tuple[str, ...]
    """Files that differ from the commit."""


def source_root() -> Path:
    """Return the folder that holds the package `ppma` of this process."""
    return Path(ppma.__file__).resolve().parents[1]


def take(run_dir: Path, root: Path | None = None) -> Snapshot:
    """Copy the code to <run_dir>/code atomically, in place of an older copy.

    Args:
        run_dir: Run folder.
        root: Folder that holds the package `ppma` (default: the one of this process).
    """
    root = root or source_root()
    run_dir.mkdir(parents=True, exist_ok=True)
    temp_path, target = Path(tempfile.mkdtemp(prefix=f".{CODE}.", dir=run_dir)), run_dir / CODE
    try:
        sha256 = _copy(root, _files(root), temp_path)
        temp_path.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        temp_path.rename(target)
    except BaseException:
        shutil.rmtree(temp_path, ignore_errors=True)
        raise
    commit = (_git(root, "rev-parse", "HEAD") or "").strip() or None
    return Snapshot(folder=target, sha256=sha256, commit=commit, changed=_changes(root))


def describe(root: Path) -> str:
    """Return the folder of the code, its commit and how many files differ from it, for people."""
    commit, changed = (_git(root, "rev-parse", "--short", "HEAD") or "").strip(), len(_changes(root))
    edits = f", {changed} files changed" if changed else ""
    return f"{root} (commit {commit}{edits})" if commit else str(root)


def require_clean(root: Path) -> None:
    """Raise InputError if the working tree differs from its last commit or is not a git checkout."""
    is_checkout, changed = _git(root, "rev-parse", "HEAD") is not None, _changes(root)
    require(is_checkout, f"--require-clean: {root} is not a git checkout; clone the repository, or leave the flag out")
    files = f"{first_few(changed, 5)} in {root}"
    require(not changed, f"--require-clean: {files} not committed; commit, or leave the flag out")


def _git(root: Path, *words: str) -> str | None:
    """Return the output of a git command; None if `root` is not a checkout."""
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def _files(root: Path) -> list[str]:
    """Return the files of the code relative to `root`, sorted; for an installed package the files of `ppma`."""
    if not (root / ".git").exists() or _git(root, "rev-parse", "--is-inside-work-tree") is None:
        walk = os.walk(root / "ppma", followlinks=True)
        paths = (Path(folder, name) for folder, _, names in walk for name in names if not name.endswith(".pyc"))
        return sorted(path.relative_to(root).as_posix() for path in paths)
    tracked = (_git(root, "ls-files", "-z") or "").split("\0")
    new = (_git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *PARTS) or "").split("\0")
    return sorted({name for name in (*tracked, *new) if name and os.path.lexists(root / name)})


def _changes(root: Path) -> tuple[str, ...]:
    """Return the files that differ from the last commit, new files of the code included."""
    lines = (_git(root, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all") or "").split("\0")
    return tuple(line[3:] for line in lines if line and (not line.startswith("??") or line[3:].split("/")[0] in PARTS))


def _copy(root: Path, names: list[str], target: Path) -> str:
    """Copy the files and return their hash."""
    digest = hashlib.sha256()
    for name in names:
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, copy, follow_symlinks=False)
        data = str(copy.readlink()).encode() if copy.is_symlink() else copy.read_bytes()
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()
