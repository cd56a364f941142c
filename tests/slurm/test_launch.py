"""The launcher: what it shows, what it refuses, and jobs that run on this machine."""

import dataclasses
import importlib
import inspect
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import types
from pathlib import Path

import psutil
import pytest
import submitit
import tiny
from submitit.core.utils import temporary_save_path
from waiting import wait_until

from ppma import cli
from ppma.config.command import RUN_AGAIN, WRONG_INPUT
from ppma.config.errors import InputError
from ppma.loaders.sources.manifest import Manifest
from ppma.slurm import launch
from ppma.slurm.cluster import FREE_PORT, Allocation, ClusterConfig, Script, allocate, minutes, sbatch_script
from ppma.slurm.foreground import follow, verdict
from ppma.slurm.job import Job, leave, train
from ppma.slurm.plan import plan as make_plan
from ppma.slurm.status import describe

ROOT = Path(__file__).resolve().parents[2]

WORK = """
import os, pathlib, signal, time

def meet(folder):
    import torch
    from ppma.training.distributed import mean_over_ranks, session
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    with session("cpu") as me:
        mean = mean_over_ranks(torch.tensor(float(me.rank)), me).item()
    pathlib.Path(folder, str(me.rank)).write_text(" ".join([*(os.environ[name] for name in names), str(mean)]))
    print("hello from rank", me.rank, flush=True)
    return 0

def rank_1_is_killed(folder):
    if os.environ["RANK"] == "1":
        print("no luck", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)

def until_stopped(folder):
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    pathlib.Path(folder, "started").touch()
    while not stopped:
        time.sleep(0.05)
    time.sleep(2)  # longer than the second that submitit's controller gives after Ctrl-C
    pathlib.Path(folder, "saved").touch()
    return 75

def wrong_input(folder):
    from ppma.config.errors import InputError
    raise InputError("no such film")
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Make the functions above importable in jobs; returns the folder they write to."""
    (tmp_path / "job_work.py").write_text(textwrap.dedent(WORK))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "job_work", raising=False)
    return tmp_path


def run_here(function: str, folder: Path, processes: int) -> int:
    job = Job(work=getattr(importlib.import_module("job_work"), function), config=str(folder), ranks=processes)
    return follow(job, Allocation(nodes=1, gpus=0, tasks=processes), folder / "jobs")


# ------------------------------------------------------------------------------------------------------------ local jobs


def test_local_ranks_get_their_variables_and_meet(work, capsys):
    assert run_here("meet", work, 2) == 0
    for rank in range(2):
        assert (work / str(rank)).read_text() == f"{rank} 2 {rank} 2 127.0.0.1 0.5"
    assert "hello from rank 0" in capsys.readouterr().out


def test_a_killed_rank_ends_the_others(work, monkeypatch, caplog):
    monkeypatch.setattr("ppma.slurm.foreground.GRACE_SECONDS", 0.5)
    begin = time.monotonic()
    assert run_here("rank_1_is_killed", work, 2) == 1
    assert time.monotonic() - begin < 300 and "rank 1 failed" in caplog.text
    assert any("no luck" in log.read_text() for log in work.glob("jobs/*_1_log.out"))


def test_a_wrong_input_exits_with_2_and_a_second_run_has_its_own_log(work, capsys):
    for _ in range(2):
        assert run_here("wrong_input", work, 1) == WRONG_INPUT
        assert capsys.readouterr().out == "wrong_input: no such film\n"


def test_one_exit_code_for_all_ranks():
    cases = {
        ((0, 0), 0): 0,
        ((0, 0), 1): 75,
        ((75, 75), 0): 75,
        ((0, -9), 0): 1,
        ((1, 0), 0): 1,
        ((2, -9), 0): 2,
        ((-9,), 2): 130,
    }
    assert {case: verdict(*case) for case in cases} == cases


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_lets_the_job_finish_its_checkpoint(work, number):
    """Sent to all processes of the job, as a terminal does with Ctrl-C."""
    others = {child.pid for child in psutil.Process().children()}

    def stop():
        wait_until((work / "started").exists)
        for pid in {child.pid for child in psutil.Process().children()} - others | {os.getpid()}:
            os.kill(pid, number)

    threading.Thread(target=stop, daemon=True).start()
    assert run_here("until_stopped", work, 1) == RUN_AGAIN
    assert (work / "saved").exists()


# ---------------------------------------------------------------------------------------------------------------- cluster


@pytest.fixture
def task(tmp_path, monkeypatch):
    """What submitit reports inside the third task of a 2 x 2 SLURM job; its variables are those of the job script."""
    place = types.SimpleNamespace(
        hostnames=("node7", "node9"), num_nodes=2, num_tasks=4, global_rank=2, local_rank=0, job_id="4711",
        paths=submitit.core.utils.JobPaths(tmp_path, job_id="4711", task_id=2)
    )  # fmt: skip
    for module in ("submitit", "submitit.helpers"):
        monkeypatch.setattr(f"{module}.JobEnvironment", lambda: place)
    monkeypatch.setattr(os, "environ", {"CUDA_VISIBLE_DEVICES": "2,3", "MASTER_PORT": "20001"})
    return place


def test_slurm_tasks_meet_on_the_first_node_and_record_their_exit_code(task, tmp_path):
    seen = []
    job = Job(work=lambda _: seen.append(dict(os.environ)) or 75, config=None, ranks=4)
    with pytest.raises(SystemExit, match="75"):
        job()
    (variables,), (code,) = seen, tmp_path.glob("*.exit")
    assert code.read_text() == "75" and variables.items() >= {
        "CUDA_VISIBLE_DEVICES": "2,3", "RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node7",
        "MASTER_PORT": "20001",
    }.items()  # fmt: skip


def test_what_a_full_disk_left_of_a_result_does_not_fail_the_next_start(task):
    result = task.paths.result_pickle
    with temporary_save_path(result) as begun:
        begun.touch()
    begun.touch()
    Job(work=lambda _: 0, config=None, ranks=4)()
    with temporary_save_path(result) as again:
        again.touch()


def test_a_task_ends_with_its_code_where_the_disk_is_full(task, tmp_path):
    (tmp_path / "4711_2_result.exit").symlink_to("/dev/full")
    with pytest.raises(SystemExit, match="75"):
        leave(75)


def test_a_busy_port_is_another_port():
    """The job script picks it, once for all tasks; with the same seed, bash draws the same ports."""
    command = ["bash", "-c", f"RANDOM=1\n{FREE_PORT}\nenv"]

    def port() -> int:
        variables = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return int(re.search(r"^MASTER_PORT=(\d+)$", variables, re.MULTILINE)[1])

    first = port()
    with socket.create_server(("", first)):
        assert port() != first
    assert 20_000 <= port() == first < 32_768  # where Linux gives no ports to outgoing connections


def test_a_container_that_hides_the_variables_of_slurm_is_reported(task):
    with pytest.raises(ConnectionError, match="SLURM_"):
        Job(work=train, config=None, ranks=16)()


def test_the_settings_reach_the_script(tmp_path):
    config = ClusterConfig(
        nodes=8, gpus_per_node=4, cpus_per_task=6, time="1:30:00", partition="long", mem_gib=100, account="lab", qos="high",
        slurm=("reservation=ppma", "contiguous"), setup=("module load cuda",), nodelist="n[1-8]",
    )  # fmt: skip
    given = Script(name="mae", logs=tmp_path / "jobs", after=("17",), code=tmp_path / "code")
    script = sbatch_script(config, given)
    lines = """nodes=8 ntasks-per-node=4 gpus-per-node=4 cpus-per-task=6 time=90 partition=long mem=100GB account=lab qos=high
        job-name=mae dependency=afterok:17 signal=USR2@120 kill-on-invalid-dep=yes reservation=ppma nodelist='n[1-8]' contiguous
        requeue"""
    assert all(f"#SBATCH --{line}\n" in script for line in lines.split())
    assert "--kill-on-bad-exit=1" in script and "export SRUN_CPUS_PER_TASK=6" in script
    assert "\nmodule load cuda\n" in script and f"PYTHONSAFEPATH=1 PYTHONPATH={tmp_path}/code" in script
    assert "\ncode=$?\nexec " in script and "-m ppma.slurm.restart" in script.splitlines()[-1]
    bare = sbatch_script(ClusterConfig(gpus_per_node=0), Script(name="x", logs=tmp_path))
    assert "constraint" not in script and "#SBATCH --gpus" not in bare and FREE_PORT in bare


ANOTHER_WAY = {
    "command": "the launcher's", "folder": "the run's", "map_count": "the number of jobs", "num_gpus": "an old name of gpus_per_node",
    "mem": "mem_gib, mem_per_cpu, mem_per_gpu", "ntasks_per_node": "tasks_per_node", "additional_parameters": "slurm",
    "stderr_to_stdout": "one log for each task", "use_srun": "ranks come from srun",
}  # fmt: skip


def test_each_parameter_of_submitit_has_a_flag():
    theirs = set(inspect.signature(submitit.slurm.slurm._make_sbatch_string).parameters) - ANOTHER_WAY.keys()
    assert theirs <= {field.name for field in dataclasses.fields(ClusterConfig)}


def test_rare_settings_reach_the_script(tmp_path):
    flags = {"job_name": "mine", "constraint": "a100", "exclude": "n3", "gres": "nvme:1", "exclusive": True, "mem_per_cpu": "2G",
             "comment": "a try", "mail_type": "END", "mail_user": "me", "wckey": "key", "dependency": "afterany:3", "signal_delay_s": 77,
             "srun_args": ("--container-image=x",), "teardown": ("rm -r scratch",), "gpus_per_task": 1, "tasks_per_node": 4,
             "cpus_per_gpu": 6}  # fmt: skip
    config = ClusterConfig(nodes=2, **flags)
    assert allocate(config).ranks == 8 and allocate(config).gpus == 4
    script = sbatch_script(config, Script(name="mae", logs=tmp_path), array_tasks=3)
    for line in ("job-name=mine", "constraint=a100", "exclude=n3", "gres=nvme:1", "exclusive", "mem-per-cpu=2G", "comment='a try'",
                 "mail-type=END", "mail-user=me", "wckey=key", "dependency=afterany:3", "signal=USR2@77", "gpus-per-task=1",
                 "ntasks-per-node=4", "cpus-per-gpu=6", "array=0-2%3"):  # fmt: skip
        assert f"#SBATCH --{line}\n" in script, line
    assert "--container-image=x" in script and "\ncode=$?\nrm -r scratch\n" in script
    assert "SRUN_CPUS_PER_TASK=6\n" in script and "--cpus-per-task" not in script and "--gpus-per-node" not in script


def test_number_of_ranks():
    for ranks, fields in (
        (8, {"nodes": 8}),  # as in the paper
        (8, {"nodes": 2, "gpus_per_node": 4}),
        (3, {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 3}),
        (2, {"nodes": 2, "gpus_per_task": 2}),
    ):
        assert allocate(ClusterConfig(**fields)).ranks == ranks


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"nodes": 0}, "--nodes is 0"),
        ({"mem_gib": 0}, "--mem-gib is 0"),
        ({"time": "0"}, "--time"),
        ({"time": "soon"}, "--time"),
        ({"slurm": ("a b=c",)}, "--slurm"),
        ({"cluster": "debug", "tasks_per_node": 2}, "--cluster debug"),
        ({"cluster": "local", "nodes": 2}, "--cluster local"),
        ({"gpus_per_node": 2, "tasks_per_node": 3}, "the 2 GPUs"),
        ({"gpus_per_node": 2, "gpus_per_task": 1}, "--gpus-per-task"),
        ({"cpus_per_gpu": 4}, "--cpus-per-gpu"),
        ({"cluster": "local", "gpus_per_node": 99}, "--gpus-per-node is 99"),
    ],
)
def test_impossible_settings_are_refused(fields, word):
    with pytest.raises(InputError, match=word):
        allocate(ClusterConfig(**fields))


@pytest.mark.parametrize(
    ("time", "expected"),
    [("90", 90), ("1:30", 2), ("1:30:00", 90), ("1-2", 1560), ("1-00:00:01", 1441), ("7-0", 10080)],
)
def test_times_are_read_as_slurm_does(time, expected):
    assert minutes(time) == expected


# ----------------------------------------------------------------------------------------------------------- command line


def start(folder, words, *more):
    """Exit code of the launcher for a tiny model whose run folders are in `folder`."""
    return launch.main([*words.split(), "--runs", str(folder / "runs"), "--model", "tiny", *map(str, more)])


def refusal(capsys, code):
    """The one line with which the launcher refused a command."""
    error = capsys.readouterr().err
    assert code == WRONG_INPUT and error.count("\n") == 1
    return error


def test_without_slurm_the_error_names_the_alternatives(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    error = refusal(capsys, launch.main(["pretrain", "--nodes", "8"]))
    assert "--cluster local" in error and "--dry-run" in error


def test_dry_run_of_both_stages(tmp_path, capsys):
    assert start(tmp_path, "pretrain --nodes 8 --dry-run") == WRONG_INPUT
    text = capsys.readouterr().out
    assert text.count("#!/bin/bash") == 2 and text.count("#SBATCH --nodes=8") == 2
    assert "dependency=afterok:STAGE-1\n" in text.split("#!/bin/bash")[2]
    assert "0.0008" in text and "0.002" in text and not list(tmp_path.iterdir())


def test_a_dry_run_names_all_that_would_be_refused(fake_slurm, capsys):
    assert start(fake_slurm, "align --dry-run") == 0
    shown, error = capsys.readouterr()
    assert error == "" and re.search(r"GPUs +1 x 8\s+processes +8, each with 16 cores", shown)
    assert "100 (50 epochs of 2)" in shown and "synapt: 130 clips" in shown and f"a copy of {ROOT}" in shown
    assert start(fake_slurm, "align --dry-run --init gone --batch 544 --nodes 17 --gpus-per-node 8") == WRONG_INPUT
    lines = capsys.readouterr().err.splitlines()
    words = ("260 clips in all", "--optim.peak-lr", "gone", "--nodes is 17")
    assert [word in line for word, line in zip(words, lines, strict=True)] == [True] * 4


def test_the_help_names_arrays(capsys):
    assert launch.main(["--help"]) == 0
    assert any("--parts" in line for line in capsys.readouterr().out.splitlines() if line.startswith("  pack "))


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
    """Commands of a cluster with one large partition. sbatch keeps the scripts it gets and counts jobs up from 41; a file `refuse`
    holds the number of the script that it refuses. scancel records its arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    sbatch = f"""
        n=$(ls {tmp_path}/script* 2>/dev/null | wc -l)
        if [ "$n" = "$(cat {tmp_path}/refuse 2>/dev/null)" ]; then echo "sbatch: error: too much" >&2; exit 1; fi
        cp "$1" {tmp_path}/script$n; echo "Submitted batch job $((41 + n))"
    """
    commands = {
        "srun": "", "squeue": "", "sbatch": sbatch, "scancel": f'echo "$@" >{tmp_path}/canceled',
        "sinfo": "for n in $(seq 16); do echo 'main*|n'$n'|idle|gpu:8|128|infinite|(null)'; done",
    }  # fmt: skip
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{textwrap.dedent(text)}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "clip.mp4").touch()
    made = tiny.source("made", clips=130)
    Manifest.write(tmp_path / "made.csv", (dataclasses.replace(made.clip(i), path="clip.mp4") for i in range(130)))
    sources = ("no-human-kinetics", "synapt")
    text = "".join(f'[{name}.train]\nmanifest = "made.csv"\nroot = "."\n' for name in sources)
    (tmp_path / "data.toml").write_text(text)
    monkeypatch.setenv("PPMA_DATA", str(tmp_path / "data.toml"))
    return tmp_path


def test_stages_are_submitted_one_after_the_other(fake_slurm, capsys):
    """On 64 GPUs, with the published batch and rate: 2 of its 128 rows on each."""
    assert start(fake_slurm, "pretrain --nodes 8") == 0
    first, second = ((fake_slurm / f"script{n}").read_text() for n in range(2))
    assert "--dependency" not in first and "#SBATCH --dependency=afterok:41\n" in second
    whole = ("nodes=8", "gpus-per-node=8", "ntasks-per-node=8", "cpus-per-task=16")
    assert all(f"#SBATCH --{size}\n" in script for size in whole for script in (first, second))
    assert "job-name=mae_nohuman" in first and "job-name=align_nohuman_synthetic" in second
    printed, run = capsys.readouterr().out, fake_slurm / "runs" / "mae_nohuman"
    assert printed.count("(2 per process") == 2 and all(rate in printed for rate in ("0.0008", "0.002"))
    assert "as job 41" in printed and f"tail -F {run}/jobs/41_0_log.out" in printed and "scancel 41 42" in printed
    assert list((run / "jobs").glob("*.pkl")) and (run / "code" / "ppma" / "slurm").is_symlink()
    (record,) = json.loads((run / "launch.json").read_text())
    assert record["jobs"] == ["41"] and len(record["code"]["sha256"]) == 64
    config = json.loads((run / "config.json").read_text())
    assert config["resume"] and config["data"] == str(fake_slurm / "data.toml")


def test_a_refused_stage_2_cancels_stage_1_and_leaves_nothing(fake_slurm, capsys):
    (fake_slurm / "refuse").write_text("1")
    error = refusal(capsys, start(fake_slurm, "pretrain"))
    assert error == "launch.py pretrain: sbatch refuses: too much\n"
    assert (fake_slurm / "canceled").read_text() == "41\n" and not list((fake_slurm / "runs").iterdir())


def test_no_job_runs_without_a_record(fake_slurm, capsys):
    """Written before sbatch is called, and kept when it refuses; the state is that of the newest submission with jobs."""
    run, sbatch = fake_slurm / "runs" / "align_nohuman_synthetic", fake_slurm / "bin" / "sbatch"
    before = sbatch.read_text()
    sbatch.write_text(before.replace("n=$(ls", f"cp {run}/launch.json {fake_slurm}/seen.json\nn=$(ls"))
    assert start(fake_slurm, "align") == 0
    (seen,), (record,) = (json.loads(file.read_text()) for file in (fake_slurm / "seen.json", run / "launch.json"))
    assert seen == record | {"jobs": []} and record["jobs"] == ["41"]
    (fake_slurm / "refuse").write_text("1")
    refusal(capsys, start(fake_slurm, "align --resume"))
    assert [record["jobs"] for record in json.loads((run / "launch.json").read_text())] == [["41"], []]
    assert "41" in describe(run)["state"]


def test_a_run_in_the_queue_is_not_submitted_again(fake_slurm, capsys):
    assert start(fake_slurm, "align") == 0
    (fake_slurm / "bin" / "squeue").write_text("#!/bin/sh\necho '41|PENDING'\n")
    assert "job 41" in refusal(capsys, start(fake_slurm, "align --resume"))


UCF101 = '[ucf101.train]\nmanifest = "made.csv"\nroot = "."\n'


@pytest.mark.parametrize(
    ("argv", "entry", "words"),
    [
        ("pretrain", 'store = "gone.beton"\n', "gone.beton"),
        ("finetune --dataset ucf101", UCF101, "ucf101.val"),  # of the test at its end
        ("pretrain --mae-flags=--batch=256 --align-flags=--batch=64", "", "no-human-kinetics: 130 clips in all"),
        ("pretrain --nodes 7 --gpus-per-node 1 --mae-flags=--batch=112", "", "align.*7 ranks"),
        ("align --nodes 12", "", r"96 ranks.*64 or 128 ranks"),
        ("align --batch 256", "", "--optim.reference-batch 256 --optim.peak-lr"),
        ("align --batch 256 --optim.peak-lr 1e-3", "", "--optim.reference-batch 256 --optim.peak-lr"),
        ("align --partition gpu", "", "--partition is gpu"),
    ],
)
def test_what_would_fail_after_the_queue_is_refused_before_it(argv, entry, words, fake_slurm, capsys):
    with (fake_slurm / "data.toml").open("a") as file:
        file.write(entry)
    assert re.search(words, refusal(capsys, start(fake_slurm, argv)))
    assert not (fake_slurm / "runs").exists() and not list(fake_slurm.glob("script*"))


def test_a_rate_given_for_the_batch_is_not_scaled(fake_slurm):
    assert start(fake_slurm, "align --batch 256 --optim.reference-batch 256 --optim.peak-lr 1e-3") == 0


def test_a_run_keeps_the_rate_that_it_was_started_with(fake_slurm):
    """Also one that `ppma train` started, which scales it without asking."""
    flags = ["--batch", "256", "--run-dir", str(fake_slurm / "run")]
    (config,) = plan("align", "--model", "tiny", *flags)
    (fake_slurm / "run").mkdir()
    (fake_slurm / "run" / "config.json").write_text(config.to_json())
    assert start(fake_slurm, "align --resume", *flags) == 0


def test_a_wrong_root_is_noticed_before_the_queue(fake_slurm, capsys):
    (fake_slurm / "clip.mp4").unlink()
    assert "clip.mp4 does not exist" in refusal(capsys, start(fake_slurm, "align"))


def test_the_launcher_of_another_checkout_is_refused(fake_slurm, tmp_path, monkeypatch, capsys):
    """Its own package is not the one that this Python finds, so edits there would run nowhere."""
    (tmp_path / "edited" / "slurm").mkdir(parents=True)
    other = tmp_path / "edited" / "slurm" / "launch.py"
    for script, code in ((other, WRONG_INPUT), (ROOT / "slurm" / "launch.py", 0)):
        monkeypatch.setattr(sys, "argv", [str(script)])
        assert start(fake_slurm, "align") == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"PYTHONPATH={tmp_path}/edited" in error


def test_a_site_decides_no_gpus_for_commands_without(fake_slurm, monkeypatch):
    (fake_slurm / "site.toml").write_text("gpus_per_node = 8\n")
    monkeypatch.setitem(sys.modules, "quick", types.SimpleNamespace(main=lambda argv: 0))
    monkeypatch.setitem(cli.COMMANDS, "pack", cli.Command("quick", "", shards=True))
    cluster, _ = make_plan("pack", ["made", "--site", str(fake_slurm / "site.toml")])
    assert (cluster.gpus_per_node, cluster.cpus_per_task) == (0, 12)


def test_cluster_debug_runs_in_this_process(tmp_path, monkeypatch):
    calls = []
    module = types.ModuleType("quick")
    module.main = lambda argv: calls.append((os.getpid(), argv)) or 0
    monkeypatch.setitem(sys.modules, "quick", module)
    monkeypatch.setitem(cli.COMMANDS, "pack", cli.Command("quick", "", shards=True))
    assert launch.main(["pack", "made", "--cluster", "debug", "--runs", str(tmp_path)]) == 0
    assert calls == [(os.getpid(), ["made", "--dry-run"]), (os.getpid(), ["made"])]


def plan(verb, *argv):
    return [stage.config for stage in make_plan(verb, [str(word) for word in argv])[1]]


def test_stage_2_starts_from_stage_1(tmp_path):
    mae, align = plan("pretrain", "--runs", tmp_path, "--mae", "mae_joint", "--model", "tiny")
    assert mae.recipe == "mae_joint" and align.init == tmp_path / "mae_joint" / "checkpoints" / "latest"
    assert mae.vit.width == align.vit.width and mae.run_dir != align.run_dir
    (alone,) = plan("pretrain", "--runs", tmp_path, "--stage", "align")
    assert alone.init == tmp_path / "mae_nohuman" / "checkpoints" / "latest"
    _, align = plan("pretrain", "--runs", tmp_path, "--init", "some/run")
    assert align.init == tmp_path / "mae_nohuman" / "checkpoints" / "latest"
    (given,) = plan("align", "--init", "some/run")
    assert given.init == Path("some/run").absolute()


def test_flags_go_to_both_recipes_or_to_one():
    flags = ["--seed", "3", "--mae-flags=--optim.epochs 2", "--align-flags=--optim.epochs 1"]
    mae, align = plan("pretrain", *flags)
    assert (mae.seed, mae.optim.epochs, align.seed, align.optim.epochs) == (3, 2, 3, 1)


def test_recipe_flags_and_run_folders(tmp_path):
    (run,) = plan("finetune", "--dataset", "hmdb51", "--runs", tmp_path)
    assert run.sources == ("hmdb51",) and run.run_dir == tmp_path / "finetune-hmdb51"
    (run,) = plan("probe", "--recipe", "probe_published", "--run-dir", tmp_path / "mine")
    assert run.recipe == "probe_published" and run.run_dir == tmp_path / "mine"


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        ("pretrain --ndoes 8", "--ndoes"),
        ("pretrain --gpus-per-node all", "'all' is neither a whole number nor auto"),
        ("pretrain --run-dir x", "--runs"),
        ("align --recipe mae_nohmuan", "mae_nohmuan"),
        ("pretrain --nodes 7", "7 ranks"),
        ("pretend", "pretend"),
        ("align --dry-run --run-dir runs/lr:0.1", "':'"),
        ("align --dry-run --run-dir runs/half%j", "'%'"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(argv, word, capsys):
    assert word in refusal(capsys, launch.main([*argv.split(), "--dry-run"]))


def test_a_dry_run_imports_no_torch():
    """A login node plans and shows a training without it; the script runs by its path."""
    code = """
        import sys, runpy
        sys.argv = ["launch.py", "pretrain", "--nodes", "8", "--dry-run"]
        try:
            runpy.run_path("slurm/launch.py", run_name="__main__")
        except SystemExit as stop:
            assert stop.code == 2 and "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, check=True, capture_output=True)


def test_a_training_without_progress_is_not_requeued_for_ever(tmp_path):
    """A time limit before the first step: submitit would requeue the job each time."""
    (config,) = plan("align", "--runs", tmp_path, "--gpus-per-node", "0")
    job = Job(work=train, config=config, max_restarts=2)
    assert [job.checkpoint() is not None for _ in range(3)] == [True, True, False]
    (config.run_dir / "checkpoints" / "step_00000010").mkdir(parents=True)
    assert [job.checkpoint() is not None for _ in range(4)] == [True, True, True, False]  # the first has made progress
    assert Job(work=train, config="no training").checkpoint() is not None


def test_a_job_survives_pickling_and_resubmission():
    job = Job(work=train, config="x", ranks=5)
    assert pickle.loads(pickle.dumps(job)) == job
    delayed = job.checkpoint()
    assert isinstance(delayed, submitit.helpers.DelayedSubmission) and delayed.function == job
