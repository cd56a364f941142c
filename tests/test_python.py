"""`import ppma`: each function is its command, and every example of docs/python.md runs."""

import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from conftest import write_barcoded_clip
from privacy_stand_ins import RED

import ppma
from ppma import phases
from ppma.cli import main as command
from ppma.privacy.audit import command as auditing
from ppma.privacy.removal import command as removal
from ppma.study import work
from ppma.transfer import evaluate

ROOT = Path(__file__).resolve().parents[1]


class Asked(Exception):
    """Carries the config of a command, instead of its work."""


def stop(config, *_: object):
    raise Asked(config)


def asked(call):
    with pytest.raises(Asked) as found:
        call()
    return found.value.args[0]


FUNCTIONS = {
    "train": (
        (phases, "train"),
        lambda: ppma.train(
            "finetune", dataset="made", init="runs/mae", resume=True, set={"optim.epochs": 2, "optim.betas": (0.9, 0.95)}
        ),
        "finetune --dataset made --init runs/mae --resume --optim.epochs 2 --optim.betas 0.9 0.95",
    ),
    "evaluate": (
        (evaluate, "run_options"),
        lambda: ppma.evaluate("runs/x", "made", evaluation={"windows": 1, "crops": 1}, device="cpu"),
        "--checkpoint runs/x --dataset made --evaluation.windows 1 --evaluation.crops 1 --device cpu",
    ),
    "remove-humans": (
        (removal, "run"),
        lambda: ppma.remove_humans("videos", "out", method="downsample", short_side=12, keep_original=True),
        "videos --out out --method downsample --short-side 12 --keep-original",
    ),
    "audit": (
        (auditing, "run"),
        lambda: ppma.audit("removed", "out", frames=0, makers=("x", "y")),
        "removed --out out --frames 0 --makers x y",
    ),
    "study": ((work, "run_all"), lambda: ppma.run_study("spec.toml", "out", workers=2), "spec.toml --out out --workers 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_and_its_command_do_the_same(name, monkeypatch, tmp_path):
    place, call, flags = FUNCTIONS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(*place, stop)
    assert asked(call) == asked(lambda: command([name, *flags.split()]))


def test_an_evaluation_returns_its_result(tiny_runs, tmp_path):
    views = {"windows": 1, "crops": 1}
    flags = {"data": tiny_runs / "data.toml", "out": tmp_path / "tested", "device": "cpu", "workers": 1}
    found = ppma.evaluate(tiny_runs / "runs/finetune", "made", evaluation=views, **flags)
    assert found == json.loads((tmp_path / "tested/result.json").read_text()) and found["n_videos"] == 12


def test_one_video_is_a_source(tmp_path):
    write_barcoded_clip(tmp_path / "videos/a clip.mp4", frames=4)
    out = ppma.remove_humans(tmp_path / "videos/a clip.mp4", tmp_path / "out", method="downsample", workers=1)
    assert out == tmp_path / "out" and list((out / "inp").rglob("a clip.mp4"))


def test_people_are_removed_from_frames_in_memory(stand_ins, caplog, monkeypatch):
    """Only where the masks are, and as a batch; a person who is left is said."""
    frames = np.full((2, 8, 64, 96, 3), 120, np.uint8)
    frames[0, :, 20:50, 40:52] = RED
    cleaned = ppma.remove_humans(torch.from_numpy(frames), fps=10, method="blur-bodies", **stand_ins)
    changed = (cleaned[0] != frames[0]).any(axis=-1)
    assert cleaned.shape == frames.shape and np.array_equal(cleaned[1], frames[1])
    assert changed[:, 20:50, 40:52].mean() > 0.9 and not changed[:, :, :20].any() and not caplog.records
    for call in (
        lambda: ppma.remove_humans(frames),
        lambda: ppma.remove_humans(frames, "out", fps=10),
        lambda: ppma.remove_humans(frames, fps=10, name="x"),
        lambda: ppma.remove_humans(frames / 255, fps=10),
        lambda: ppma.remove_humans("clip.mp4", fps=10),
    ):
        with pytest.raises(ppma.InputError):
            call()
    clean = removal.Pipeline.clean

    def unclean(*of):
        outcome, paths = clean(*of)
        return replace(outcome, clean=False), paths

    monkeypatch.setattr(removal.Pipeline, "clean", unclean)
    assert ppma.remove_humans(frames[0], fps=10, method="blur-bodies", **stand_ins).shape == frames[0].shape
    assert "still detected" in caplog.text


def test_a_script_needs_no_guard(tmp_path):
    """Processes that are started from a script of five lines do not run it again."""
    script = tmp_path / "script.py"
    script.write_text(
        "from os.path import basename\nfrom ppma.common.workers import parallel_map\nprint('once')\n"
        "print(sorted(parallel_map(basename, ['a/b', 'c/d'], 2)))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines() == ["once", "['b', 'd']"]


def test_wrong_arguments_are_one_line(tmp_path):
    for call in (
        lambda: ppma.train("finetun"),
        lambda: ppma.train("finetune", datset="x"),
        lambda: ppma.train("finetune", dataset="x", set={"optim.epochs": "many"}),
        lambda: ppma.evaluate(tmp_path, "made"),
        lambda: ppma.remove_humans(tmp_path / "gone"),
        lambda: ppma.audit(tmp_path / "gone", tmp_path / "out", makers="x"),
        lambda: ppma.run_study(tmp_path / "gone.toml"),
        lambda: ppma.run_study(tmp_path / "gone.toml", dry_run=True),
        lambda: ppma.audit(tmp_path, tmp_path / "out", makers="x", dry_run=True),
    ):
        with pytest.raises(ppma.InputError) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.fixture
def world(tiny_runs, clip_tree, tmp_path, monkeypatch):
    """The runs, videos and data that the page names; what takes models or hours only reads its arguments."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PPMA_DATA", raising=False)
    tiny.named_world(tmp_path, tiny_runs, clip_tree)
    (tmp_path / "videos").symlink_to(clip_tree)
    monkeypatch.setattr(phases, "train", lambda config: config.run_dir)
    monkeypatch.setattr(removal, "run", lambda config, report: None)
    monkeypatch.setattr(removal, "Pipeline", lambda *_: None)
    monkeypatch.setattr(removal, "_clean", lambda pipeline, source, *_: source.frames_THWC)
    (tmp_path / "report").mkdir()
    monkeypatch.setattr(
        auditing, "run", lambda config, report: Path("report/audit.json").write_text('{"verdicts": {}}')
    )
    monkeypatch.setattr(work, "run_all", lambda options: options.out / "study.json")


def test_every_example_of_the_page_runs(world):
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/python.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    for block in blocks:
        exec(block, names)
    assert len(blocks) >= 6


def test_the_notebook_runs(tiny_runs, clip_tree, tmp_path, monkeypatch):
    """Its cells in order in one process, without the installation."""
    cells = json.loads((ROOT / "docs/quickstart.ipynb").read_text())["cells"]
    assert len(cells) == 9 and not any(cell.get("outputs") for cell in cells)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").symlink_to(clip_tree)
    (tmp_path / "runs/demo/runs").mkdir(parents=True)
    (tmp_path / "runs/demo/runs/full-s0-00").symlink_to(tiny_runs / "runs/finetune")
    monkeypatch.setattr(
        "matplotlib.pyplot.show", lambda: shown.append(plt.gcf().axes[0].get_legend_handles_labels()[1])
    )
    plt, shown, names = importlib.import_module("matplotlib.pyplot"), [], {}
    plt.switch_backend("agg")
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert shown[0] == sorted(path.name for path in clip_tree.iterdir()) and len(shown) == 2
    assert 0 <= names["accuracy"] <= 1 and len(names["features"]) == 12
    plt.close("all")
