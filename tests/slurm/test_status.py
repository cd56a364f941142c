"""`status RUN` from a run folder, where there is no cluster."""

import json
from dataclasses import asdict, replace

import pytest

from ppma.config.model import OptimConfig
from ppma.config.run import RunConfig
from ppma.slurm import foreground, launch
from ppma.slurm.cluster import Allocation
from ppma.slurm.job import Job, train
from ppma.slurm.restart import End
from ppma.slurm.status import account, describe
from ppma.training.run_folder import owned

CONFIG = RunConfig(recipe="mae_nohuman", phase="mae", sources=("made",), batch=8, optim=OptimConfig(epochs=10))


STARTS = (
    {"began": 1000.0, "step": 0, "lost_seconds": 0.0, "last_step": None},
    {"began": 1130.0, "step": 10, "lost_seconds": 20.0, "last_step": 1065.0},
)
"""Step 20 at 1065 s, then nothing until a hang was noticed at 1100 s; back in the queue, and on from step 10 at 1130 s."""
ROWS = [{"step": step, "time": 1000.0 + time, "perf/clips_per_s": 8 / seconds}
        for step, time, seconds in ((5, 35, 3), (10, 45, 2), (15, 155, 2), (20, 165, 2))]  # fmt: skip
"""Two seconds for a step, one more where the first wait for compilation."""
HUNG = End(job="5", code=75, step=10, time=1100.0, error="no step for 30 s (hang_seconds): the run hangs")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of such a run, on a machine without SLURM's commands."""
    monkeypatch.setenv("PATH", "")
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    rows = [*ROWS, {"step": 20, "time": 1165.0, "eval/top1": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "environment.json").write_text(json.dumps(STARTS))
    saved = tmp_path / "checkpoints" / "step_00000020"
    saved.mkdir(parents=True)
    (saved / "state.json").write_text('{"step": 20, "steps_per_epoch": 5}')
    return tmp_path


def test_a_run_without_a_record_of_the_launcher(folder, capsys):
    found = describe(folder)
    assert found.pop("age of the last step").count(" days, ") == 1 and found.pop("ETTR").startswith("24.2%")
    assert found == {
        "state": "not submitted by the launcher", "step": "20 of 50", "newest checkpoint": "20", "clips/s": "4.0",
        "time left": "0:01:00", "last error": "none", "log": "none in this folder", "restarts": "1",
    }  # fmt: skip
    assert launch.main(["status", str(folder)]) == 0
    assert "20 of 50" in capsys.readouterr().out


def test_a_run_that_has_not_begun(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    (tmp_path / "launch.json").write_text('[{"jobs": ["5"]}]')
    found = describe(tmp_path)
    assert found["state"] == "not in the queue (job 5)" and found["restarts"] == "0"
    assert found["time left"] == found["age of the last step"] == found["ETTR"] == "not known"


def test_a_line_that_is_being_written_is_not_read(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "perf/cl')
    assert describe(folder)["step"] == "20 of 50"


def test_each_second_since_the_first_start_is_accounted_for():
    used = account(STARTS, ROWS, [HUNG], 8, 1165.0)
    assert (used.wall, used.productive, used.queue, used.startup, used.lost) == (165, 40, 30, 25 + 15, 20)
    assert "24.2% of 0:02:45; queue 18.2%, start-up 24.2%, lost steps 12.1%, stalls and other 21.2%" == str(used)
    ended = account(STARTS, ROWS, [HUNG], 8, None)
    assert ended == used  # it ends with its last step
    lost_node = account(STARTS, ROWS, [], 8, 1165.0)  # nothing recorded the end: all from the last step on is the queue
    assert lost_node.queue == 1130 - 1065
    again = End(job="5", code=1, step=20, time=1200.0)
    assert account(STARTS, ROWS, [HUNG, again], 8, 1300.0).queue == 30 + 100  # it waits for nodes now


def test_the_last_error_and_the_log_are_named(folder):
    (folder / "restarts.json").write_text(json.dumps([asdict(HUNG)]))
    (folder / "jobs").mkdir()
    (folder / "jobs" / "5_0_log.out").touch()
    found = describe(folder)
    assert found["last error"].startswith(f"{HUNG.error} (exit code 75 at step 10, ")
    assert found["log"].endswith("/jobs/5_0_log.out") and found["ETTR"].startswith("24.2%")
    with owned(folder):
        assert describe(folder)["state"].startswith("running (process ")


def test_a_failure_in_the_foreground_is_the_last_error(folder, monkeypatch):
    job = Job(work=train, config=replace(CONFIG, run_dir=folder))

    class Failed:
        exitcode = 1

    def fail(job, allocation, files):
        files[0].write_text("Traceback (most recent call last):\nRuntimeError: no luck\n")
        return [Failed()]

    monkeypatch.setattr(foreground, "_start", fail)
    assert foreground.follow(job, Allocation(nodes=1, gpus=0, tasks=1), folder / "jobs") == 1
    assert describe(folder)["last error"].startswith("RuntimeError: no luck (exit code 1 at step 20, ")


def test_an_array_is_counted(tmp_path, monkeypatch, capsys):
    """From the queue where there is one, otherwise from the exit codes of the tasks; works without sacct."""
    jobs = [f"5_{i}" for i in range(5)]
    (tmp_path / "launch.json").write_text(json.dumps([{"jobs": jobs}]))
    (tmp_path / "merge").mkdir()
    (tmp_path / "merge" / "launch.json").write_text('[{"jobs": ["6"]}]')
    (tmp_path / "jobs").mkdir()
    for job, code in (("5_0", 0), ("5_1", 1)):
        (tmp_path / "jobs" / f"{job}_0_result.exit").write_text(str(code))
    lines = "100 of 400 clips, 3.1/s, 97 s left\n200 of 400 clips, 3.1/s, 65 s left\n"
    (tmp_path / "jobs" / "5_2_0_log.out").write_text(lines)
    (tmp_path / "jobs" / "5_3_0_log.out").write_text("step 40 of 80  loss 0.1234  3.0 clips/s\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\necho '5_2|RUNNING'; echo '5_3|PENDING'; echo '6|PENDING'\n")
    (tmp_path / "bin" / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert describe(tmp_path) == {
        tmp_path.name: "1 done, 2 failed, 1 running, 1 waiting of 5",
        f"{tmp_path.name}, progress": "40%",  # 1 + 0 + 1/2 + 1/2 + 0
        f"{tmp_path.name}, failed": f"{tmp_path}/jobs/5_1_0_log.out\n{tmp_path}/jobs/5_4_0_log.out",
        "merge": "1 waiting of 1", "merge, progress": "0%",
    }  # fmt: skip
    assert launch.main(["status", str(tmp_path)]) == 0 and "2 failed" in capsys.readouterr().out
    monkeypatch.setenv("PATH", "")
    assert describe(tmp_path)[tmp_path.name] == "1 done, 1 failed, 3 not known of 5"


def test_no_run_is_one_line_and_exit_2(tmp_path, capsys):
    assert launch.main(["status", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("no run folder (it has no config.json)\n")
