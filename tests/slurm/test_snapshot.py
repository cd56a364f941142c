"""The copy of the code: its files and links, atomicity, and that a process runs it."""

import subprocess
import sys

import pytest

from ppma.config.errors import InputError
from ppma.slurm import snapshot


def git(root, *words):
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
    subprocess.run(command, cwd=root, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    """A small project like this one: a package with a link, committed files and an ignored folder."""
    root = tmp_path / "project"
    for folder in ("ppma", "slurm"):
        (root / folder).mkdir(parents=True)
    (root / "ppma" / "slurm").symlink_to("../slurm")
    (root / "ppma" / "__init__.py").write_text("")
    (root / "slurm" / "job.py").write_text("VERSION = 1\n")
    (root / "gone.py").write_text("")
    (root / ".gitignore").write_text("runs/\n")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    return root


def test_a_snapshot_is_the_working_tree(checkout, tmp_path):
    (checkout / "slurm" / "job.py").write_text("VERSION = 2\n")
    (checkout / "slurm" / "new.py").write_text("")
    (checkout / "gone.py").unlink()
    (checkout / "holiday.mp4").write_text("no code")
    (checkout / "runs").mkdir()
    (checkout / "runs" / "x").write_text("")
    taken = snapshot.take(tmp_path / "run", checkout)
    names = {p.relative_to(taken.folder).as_posix() for p in taken.folder.rglob("*") if p.is_file() or p.is_symlink()}
    assert names == {".gitignore", "ppma/__init__.py", "ppma/slurm", "slurm/job.py", "slurm/new.py"}
    assert (taken.folder / "ppma" / "slurm").readlink().as_posix() == "../slurm"
    assert (taken.folder / "ppma" / "slurm" / "job.py").read_text() == "VERSION = 2\n"
    assert set(taken.changed) == {"slurm/job.py", "slurm/new.py", "gone.py"}
    assert len(taken.commit) == 40


def test_a_renamed_file_counts_under_both_names(checkout, tmp_path):
    git(checkout, "mv", "gone.py", "kept.py")
    assert set(snapshot.take(tmp_path / "run", checkout).changed) == {"gone.py", "kept.py"}


def test_the_hash_follows_the_content(checkout, tmp_path):
    first, again = (snapshot.take(tmp_path / name, checkout).sha256 for name in ("a", "b"))
    (checkout / "slurm" / "job.py").write_text("VERSION = 3\n")
    assert first == again != snapshot.take(tmp_path / "c", checkout).sha256


def test_a_full_disk_leaves_no_half_copy(checkout, tmp_path, monkeypatch):
    snapshot.take(tmp_path / "run", checkout)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot.shutil, "copy2", full)
    with pytest.raises(OSError, match="No space left"):
        snapshot.take(tmp_path / "run", checkout)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["code"]
    assert (tmp_path / "run" / "code" / "slurm" / "job.py").exists()


def test_require_clean(checkout):
    snapshot.require_clean(checkout)
    (checkout / "slurm" / "job.py").write_text("VERSION = 2\n")
    with pytest.raises(InputError, match=r"slurm/job\.py"):
        snapshot.require_clean(checkout)
    subprocess.run(["rm", "-rf", str(checkout / ".git")], check=True)
    with pytest.raises(InputError, match="git"):
        snapshot.require_clean(checkout)


def test_an_installed_package_is_copied_too(checkout, tmp_path):
    subprocess.run(["rm", "-rf", str(checkout / ".git")], check=True)
    taken = snapshot.take(tmp_path / "run", checkout)
    assert (taken.folder / "ppma" / "slurm" / "job.py").read_text() == "VERSION = 1\n" and taken.commit is None


def test_a_process_runs_the_copy_from_any_folder(tmp_path):
    """As the job script sets it; the folder it starts in holds another `ppma`, as the live checkout does."""
    taken = snapshot.take(tmp_path / "run")
    environment = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(taken.folder)}
    code = "import runpy, ppma, ppma.slurm.job; print(ppma.__file__, ppma.slurm.job.__file__)"
    how = {"env": environment, "cwd": snapshot.source_root(), "capture_output": True, "text": True, "check": True}
    done = subprocess.run([sys.executable, "-c", code], **how)
    assert all(path.startswith(str(taken.folder)) for path in done.stdout.split())
