"""`ppma predict` gives what an evaluation of the same windows gives, names classes, and covers the video to its end."""

import json
import shutil

import numpy as np
import pytest
from conftest import write_barcoded_clip

import ppma
from ppma.cli import main as command
from ppma.config.errors import InputError
from ppma.inference.predict import scores_over_time
from ppma.inference.videos import spans_of
from ppma.loaders.sources import catalog


def predict(folder, video, *flags, run="finetune"):
    argv = ["--checkpoint", str(folder / "runs" / run), "--device", "cpu"]
    return command(["predict", str(video), *argv, *map(str, flags)])


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Seven seconds, upright and not square."""
    return write_barcoded_clip(tmp_path_factory.mktemp("video") / "seven.mp4", frames=70, width=96, height=72)


def test_windows_cover_the_video():
    starts, ends = np.array(spans_of("seven.mp4", 7.0, window=2.7, stride=1.35)).T
    assert starts[0] == 0 and ends[-1] == pytest.approx(7.0)
    assert np.all(np.diff(starts) > 0) and np.all(np.diff(starts) <= 1.35 + 1e-9)
    assert np.allclose(ends - starts, 2.7)
    assert len(spans_of("short.mp4", 0.5, window=2.7, stride=1.35)) == 1
    with pytest.raises(InputError, match="stride"):
        spans_of("seven.mp4", 7.0, window=2.7, stride=1e-4)


def test_the_command_names_classes_and_writes_scores_over_time(tiny_runs, video, tmp_path, capsys):
    assert predict(tiny_runs, video, "--out", tmp_path / "p.json", "--top", "2") == 0
    shown = capsys.readouterr().out
    content = json.loads((tmp_path / "p.json").read_text())
    found = {**content, **content["videos"][0]}
    names = catalog.read(tiny_runs / "data.toml").manifest("made").class_names
    assert found["classes"] == [names[label] for label in range(4)]
    best = found["classes"][int(np.argmax(found["mean"]))]
    assert shown.splitlines()[1].startswith(best)
    assert [w["start_seconds"] for w in found["windows"]][:2] == [0.0, 1.35]
    assert np.allclose(np.mean([w["scores"] for w in found["windows"]], axis=0), found["mean"], atol=1e-5)
    drawing = (tmp_path / "p.svg").read_text()
    assert drawing.startswith("<svg") and best.split(",")[0] in drawing


def test_a_head_without_names_predicts_numbers(tiny_runs, tmp_path):
    """A converted checkpoint may have the number of its classes only."""
    shutil.copytree(tiny_runs / "runs/finetune", tmp_path / "bare")
    state = tmp_path / "bare/checkpoints/latest/state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"label_spaces": {"made": 4}}))
    found = ppma.load_model(tmp_path / "bare", device="cpu").predict(np.zeros((4, 32, 32, 3), np.uint8))
    assert {name for name, _ in found.top} == {f"class {label}" for label in range(4)}
    assert found.top[0][1] == found.scores.max()


@pytest.mark.parametrize(
    ("flags", "run", "message"),
    [
        ([], "mae", "is a stage 1 run"),
        (["--space", "gone"], "finetune", "label spaces made"),
        (["--stride", "0"], "finetune", "must be above 0"),
        (["--out", "nowhere/p.json"], "finetune", "there is no folder"),
        (["--out", "p.txt"], "finetune", "FILE.json"),
    ],
)
def test_wrong_input(tiny_runs, video, capfd, flags, run, message):
    assert predict(tiny_runs, video, *flags, run=run) == 2
    assert message in capfd.readouterr().err


def test_the_plot_names_its_curves_and_is_reproducible():
    curves = [("archery", np.array([0.2, 0.8])), ("sign & walk", np.array([0.8, 0.2]))]
    plot = scores_over_time(np.array([1.0, 2.0]), curves)
    assert "archery" in plot and "sign &amp; walk" in plot and plot.startswith("<svg")
    assert plot == scores_over_time(np.array([1.0, 2.0]), curves)
