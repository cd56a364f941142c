"""Every command of the README and of docs/ is run, on small clips, in the order of its page; the site is built and has no dead link."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from conftest import CLASSES, write_barcoded_clip
from privacy_stand_ins import write_audit

import ppma as package
from ppma.cli import main as ppma
from ppma.config.run import read_config
from ppma.loaders.sources import catalog

ROOT = Path(__file__).resolve().parents[1]
RUN_HERE = ("README.md", "docs/index.md", "docs/commands.md", "docs/privacy.md", "docs/reproduce.md")
ELSEWHERE = {
    r"ppma demo\b": "study/test_demo.py",
    r"ppma synthesize\b": "synthetic/test_production.py",  # minutes
    r"ppma (study|report)\b": "study/test_report.py",
    r"ppma index --dataset\b": "data/test_index_dataset.py",
    r"ppma convert (--from videomae|videomae_vitb.pth)": "inference/test_convert.py",  # needs the foreign file, as does the next
    r"ppma train align_nohuman_synthetic --init converted\b": "inference/test_convert.py",
    r"ppma privacy fetch\b": "privacy/test_models.py",  # the next three need what it fetches
    r"ppma remove-humans\b": "privacy/test_remove_humans.py",
    r"ppma audit\b": "privacy/test_audit.py",
    r"ppma plant\b": "privacy/test_plant.py",
    r"launch\b": "slurm/test_launch.py",
}
"""Commands whose flags test_house.py checks, and which another test runs, as they take data or weights that no test may fetch."""
BEFORE = {
    "docs/reproduce.md": (
        "ppma train align_nohuman",
        "ppma train align_synthetic",
        "ppma train align_nohuman_synthetic",
    )
}
"""Commands from a page's tables that must run before its code blocks."""
TINY = [*tiny.FLAGS, "--batch", "4", "--optim.epochs", "1", "--pictures-every", "0", "--evaluation.windows", "1"]


def commands(page):
    """The `ppma` and `launch` lines of the blocks of a page."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for kind, block in blocks if kind in ("", "sh") for line in block.replace("\\\n", " ").splitlines()]
    plain = [re.sub(r"^python slurm/launch\.py", "launch", line.split(" #")[0].strip()) for line in lines]
    return [line for line in plain if line.startswith(("ppma ", "launch "))]


def small(line):
    """The words of a command, on small data."""
    words = shlex.split(line)[1:]
    if words[0] == "train" and len(words) > 1:
        words += [*TINY, *(tiny.MAE_FLAGS if words[1].startswith("mae") else [])]
    return words


def make_way(line):
    """A page may give a run twice, with one flag and with another."""
    words = line.split()
    if words[1] == "train" and len(words) > 2 and not {"--resume", "--dry-run"} & set(words):
        for folder in (words[2], f"{words[2]}-ucf101"):
            shutil.rmtree(Path("runs") / folder, ignore_errors=True)


def fill(folder, shade):
    """Two clips of each of two actions, in a color of the folder's own: a copy under another domain would be refused."""
    for number, name in enumerate(("walking", "waving")):
        for i in range(2):
            write_barcoded_clip(folder / name / f"{i}.mp4", direction=(number, i), color=(shade, 40 * number, 90 + i))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """The folders that the pages mention."""
    folder = tmp_path_factory.mktemp("docs")
    for shade, name in ((120, "no-human"), (170, "virtual"), (220, "real")):
        fill(folder / "videos" / name, shade)
    lists = {"trainlist.txt": [], "testlist.txt": []}
    for label, name in enumerate(("walking", "waving")):
        for i in range(3):
            clip = f"v_{name}_0{i}.avi"
            write_barcoded_clip(folder / "ucf101" / clip, codec="mpeg4", direction=(label, 1), color=(90, 90 + i, 200))
            lists["testlist.txt" if i == 1 else "trainlist.txt"].append(f"{clip};{label}")
    for name, lines in lists.items():
        (folder / "ucf101" / name).write_text("\n".join(lines) + "\n")
    (folder / "ucf101/classes.txt").write_text("walking\nwaving\n")
    return folder


@pytest.fixture
def world(videos, tmp_path, monkeypatch):
    """A copy to work in, and no data catalog from elsewhere."""
    shutil.copytree(videos, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    monkeypatch.delenv("PPMA_DATA", raising=False)
    return tmp_path / "world"


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_HERE)
def test_every_command_of_a_page_does_what_it_says(page, world):
    indexes = [line for line in commands("docs/index.md") if line.startswith("ppma index")]
    if page != "docs/index.md":
        assert all(ppma(small(line)) == 0 for line in indexes)
        write_audit(world / "no_human.csv", world / "videos" / "no-human", world / "audit.json")
    done = 0
    for line in [*BEFORE.get(page, ()), *commands(page)]:
        if line.startswith("ppma audit"):  # stands in for models that no test may fetch
            manifest, root = world / "no_human.csv", world / "videos" / "no-human"
            write_audit(manifest, root, manifest.with_name("audit.json"))
            catalog.add(world / "data.toml", name="no-human-kinetics", split="train", manifest=manifest, root=root)
        if not any(re.match(pattern, line) for pattern in ELSEWHERE):
            make_way(line)
            assert ppma(small(line)) == 0, f"{page}: {line}"
            done += 1
    assert done >= 2, page


def test_the_readme_s_python_runs(tiny_runs, clip_tree):
    """On a tiny fine-tuning run."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    clip = next(clip_tree.rglob("*.mp4"))
    names: dict[str, object] = {}
    exec(code.replace("runs/finetune-ucf101", str(tiny_runs / "runs/finetune")).replace("clip.mp4", str(clip)), names)
    assert names["features"].values.shape == (1, read_config(tiny_runs / "runs/finetune").vit.width)
    assert names["action"] in CLASSES and 0 < names["score"] <= 1


@pytest.mark.parametrize("page", sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").glob("*.md")))
def test_a_page_s_commands_are_run_here_or_by_a_test_that_is_named(page):
    for line in commands(page):
        known = [test for pattern, test in ELSEWHERE.items() if re.match(pattern, line)]
        assert page in RUN_HERE or known or re.match(r"ppma (train|index|evaluate|datasets|pack)\b", line), line
        assert all((ROOT / "tests" / test).is_file() for test in known), line


def test_the_site_builds_without_a_dead_link_and_its_reference_has_every_public_name(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in (ROOT / "docs").glob("*.md"):
        name = "index.html" if page.stem == "index" else f"{page.stem}/index.html"
        assert (tmp_path / "site" / name).is_file()
    reference = (tmp_path / "site/reference/index.html").read_text()
    assert all(f'id="ppma.{name}"' in reference for name in package.__all__ if name != "__version__")
    assert "Sliding" in (tmp_path / "site/search/search_index.json").read_text().title()
