"""`status RUN` from a run folder, where there is no cluster."""

import json

from ppma.config.model import OptimConfig
from ppma.config.run import RunConfig
from ppma.slurm import launch
from ppma.slurm.status import describe

CONFIG = RunConfig(recipe="mae_nohuman", phase="mae", sources=("made",), batch=8, optim=OptimConfig(epochs=10))


def folder_of_a_run(tmp_path):
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    rows = [{"step": step, "perf/clips_per_s": 4.0} for step in (10, 20)] + [{"step": 20, "eval/top1": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "environment.json").write_text("[{}, {}, {}]")
    saved = tmp_path / "checkpoints" / "step_00000020"
    saved.mkdir(parents=True)
    (saved / "state.json").write_text('{"step": 20, "steps_per_epoch": 5}')
    return tmp_path


def test_it_counts_steps_time_left_and_restarts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    found = describe(folder_of_a_run(tmp_path))
    assert found == {
        "state": "not submitted by the launcher", "step": "20 of 50", "newest checkpoint": "20", "clips/s": "4.0",
        "time left": "0:01:00", "restarts": "2",
    }  # fmt: skip
    assert launch.main(["status", str(tmp_path)]) == 0
    assert "20 of 50" in capsys.readouterr().out


def test_a_run_that_has_not_begun(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    (tmp_path / "launch.json").write_text('[{"jobs": ["5"]}]')
    found = describe(tmp_path)
    assert (
        found["state"] == "not in the queue (job 5)" and found["time left"] == "not known" and found["restarts"] == "0"
    )


def test_a_line_that_is_being_written_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with (folder_of_a_run(tmp_path) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "perf/cl')
    assert describe(tmp_path)["step"] == "20 of 50"


def test_an_array_has_a_state_and_no_steps(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    (tmp_path / "launch.json").write_text('[{"jobs": ["5_0", "5_1"]}]')
    assert describe(tmp_path) == {"state": "not in the queue (job 5_0), not in the queue (job 5_1)"}


def test_no_run_is_one_line_and_exit_2(tmp_path, capsys):
    assert launch.main(["status", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("no run folder (it has no config.json)\n")
