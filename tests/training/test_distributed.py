"""Ranks: joining or saying why not, the flag that stops all at one step, the exchange that does not depend on buckets, torchrun."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from processes import on_ranks
from tiny import ALONE

from ppma.common.ports import free_port
from ppma.config.command import STOP_SIGNALS, run
from ppma.config.errors import InputError
from ppma.training import distributed
from ppma.training.distributed import Stop, StopFlag, session


def set_environment(monkeypatch, rank, world_size):
    place = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": 0}
    for name, value in {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, str(value))


def test_a_task_of_a_slurm_step_does_not_train_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    with pytest.raises(InputError, match="one of 8 tasks of a SLURM step, and WORLD_SIZE is not set"), session("cpu"):
        pass


def test_a_rank_that_cannot_join_says_so_and_does_not_go_on(monkeypatch):
    monkeypatch.setenv("PPMA_JOIN_SECONDS", "2")
    set_environment(monkeypatch, 1, 2)
    where = r"rank 1 of 2 on \S+ could not meet the others at 127.0.0.1:\d+ within 2 s"
    with pytest.raises(ConnectionError, match=where), session("cpu"):
        pytest.fail("it went on alone")


# ----------------------------------------------------------------------------------------------------------- open files


@pytest.fixture
def open_files():
    """Set the soft limit of open files for the test; skip it where the hard limit is below."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def limit(most):
        if most > hard:
            pytest.skip(f"this system allows only {hard} open files")
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))

    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_command_raises_its_limit_of_open_files(open_files):
    open_files(256)
    assert run(lambda _: 0 if resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 256 else 1, [], prog="ppma") == 0


def test_rank_0_says_at_once_that_it_may_open_too_few_files(open_files, monkeypatch):
    open_files(512)
    set_environment(monkeypatch, 0, 512)
    with pytest.raises(InputError, match="512"), session("cpu"):
        pass


STAND_INS = """
import os, resource, socket, struct, sys, time
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
while True:  # until the store listens
    try:
        socket.create_connection(("127.0.0.1", int(sys.argv[1]))).close()
        break
    except ConnectionRefusedError:
        time.sleep(0.05)
peers = []
for _ in range(int(sys.argv[2])):  # what a TCPStore's client sends when it joins
    peers.append(socket.create_connection(("127.0.0.1", int(sys.argv[1]))))
    peers[-1].sendall(struct.pack("=BI", 0, 0x3C85F7CE) + struct.pack("=BQ5sq", 4, 5, b"init/", 1))
for peer in peers:
    peer.recv(8, socket.MSG_WAITALL)
print("joined", flush=True)
sys.stdin.read()
"""
"""Clients of rank 0's store without torch: VALIDATE, then ADD 1 to the number of workers, and stay."""


@pytest.mark.parametrize("world_size", [32, pytest.param(512, marks=pytest.mark.slow)])
def test_ranks_meet_at_rank_0_within_1024_open_files(world_size, open_files, monkeypatch):
    open_files(1024)
    monkeypatch.setenv("RES_OPTIONS", "timeout:1 attempts:1")  # the store asks the name server for each client's name
    set_environment(monkeypatch, 0, world_size)
    before, port = len(list(Path("/proc/self/fd").iterdir())), int(os.environ["MASTER_PORT"])
    with subprocess.Popen(
        [sys.executable, "-c", STAND_INS, str(port), str(world_size - 1)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as peers:
        store, _, _ = next(dist.rendezvous("env://", 0, world_size, timeout=timedelta(seconds=60)))
        assert peers.stdout.readline() == b"joined\n"
        files = len(list(Path("/proc/self/fd").iterdir())) - before
        del store
        peers.stdin.close()
    assert world_size - 1 <= files < world_size + 32


OPEN_FILES_OF_RANK_0 = """
import multiprocessing, os, sys
import torch.distributed as dist
from ppma.common.ports import free_port
from ppma.training import distributed

def rank(number, world_size, port, answers):
    place = {"RANK": number, "WORLD_SIZE": world_size, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    with distributed.session("cpu") as ranks:
        flag = distributed.StopFlag(ranks)
        for _ in range(2):
            flag.agreed()
        distributed.gather_objects(number, ranks)
        distributed.barrier(ranks)
        if number == 0:
            answers.put(len(os.listdir("/proc/self/fd")))
        distributed.barrier(ranks)
        flag.close()
    os._exit(0)

fork = multiprocessing.get_context("fork")
for world_size in map(int, sys.argv[1:]):
    answers, port = fork.SimpleQueue(), free_port()
    ranks = [fork.Process(target=rank, args=(number, world_size, port, answers)) for number in range(world_size)]
    for one in ranks:
        one.start()
    print(answers.get(), flush=True)
    for one in ranks:
        one.join()
        assert one.exitcode == 0
"""


@pytest.mark.parametrize("sizes", [(4, 12), pytest.param((32, 64), marks=pytest.mark.slow)])
def test_another_rank_costs_rank_0_one_open_file(sizes):
    """And a few more as the logarithm grows; two gloo groups that connect all to all would cost two more for each rank."""
    command = [sys.executable, "-c", OPEN_FILES_OF_RANK_0, *map(str, sizes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    few, many = map(int, done.stdout.split())
    assert many - few < 2 * (sizes[1] - sizes[0]) and many < sizes[1] + distributed.OPEN_FILES, (few, many)


# ---------------------------------------------------------------------------------------------------------- stop signals


@pytest.mark.parametrize(
    ("number", "stop"),
    [*((number, Stop.SAVE) for number in STOP_SIGNALS if number != signal.SIGUSR2), (signal.SIGUSR2, Stop.HAND_OVER)],
)
def test_signals_mean_to_save_or_to_hand_over(number, stop):
    given = signal.getsignal(number)
    if given is signal.SIG_IGN:  # under nohup SIGHUP is ignored, and stays so
        signal.signal(number, signal.SIG_DFL)
    before = signal.getsignal(number)
    flag = StopFlag(ALONE)
    try:
        assert flag.agreed() is Stop.NO
        os.kill(os.getpid(), number)
        assert flag.agreed() is stop
    finally:
        flag.close()
    assert signal.getsignal(number) is before


def test_under_nohup_a_run_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        flag = StopFlag(ALONE)
        os.kill(os.getpid(), signal.SIGHUP)
        assert flag.agreed() is Stop.NO
        flag.close()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def stop_again_and_again(ranks, signals):
    """Return [step of a signal to one or two ranks, step at which this rank stopped] of each round."""
    stops, rng = [], random.Random(1)
    for _ in range(signals):
        flag, at = StopFlag(ranks), rng.randrange(1, 30)
        victims = {rng.randrange(ranks.world_size): rng.choice(STOP_SIGNALS) for _ in range(2)}
        for step in range(1, 31):
            if step == at and ranks.rank in victims:
                os.kill(os.getpid(), victims[ranks.rank])
            if flag.agreed():
                break
        flag.close()
        stops.append([at, step])
    return stops


@pytest.mark.promise("R5")
@pytest.mark.parametrize(
    ("world_size", "signals"), [(3, 10), *(pytest.param(n, 50, marks=pytest.mark.slow) for n in (2, 3, 4))]
)
def test_ranks_stop_at_the_same_step_whichever_is_asked(world_size, signals, tmp_path, figure):
    """Any signal, to any one or two ranks, at any step, also at the last two; a rank that waits for the others would hang."""
    told = on_ranks(world_size, stop_again_and_again, tmp_path, signals)
    assert all(stops == told[0] for stops in told) and len(told[0]) == signals
    assert all(step == at + 1 for at, step in told[0])
    figure("R5", f"{signals} signals to {world_size} ranks: all stop at the same step, 0 deadlocks")


def agree(ranks):
    """Return what every rank gets from rank 0: a result, a refusal, a stop; and if gradients add up alike in any bucket."""
    caught = [distributed.on_main(ranks, lambda: ranks.rank), len(distributed.on_all_ranks(ranks, lambda: None))]
    for error in (InputError("no"), OSError(errno.ENOSPC, "full")):

        def fail(error=error):
            raise error

        try:
            distributed.on_main(ranks, fail)
        except type(error) as found:
            caught.append(str(found))
    flag = StopFlag(ranks)
    for step in range(1, 50):
        if (ranks.rank, step) == (2, 20):
            os.kill(os.getpid(), signal.SIGUSR2)
        if stop := flag.agreed():
            break
    flag.close()
    values = torch.randn(1000, generator=torch.Generator().manual_seed(ranks.rank))
    values *= 10.0 ** torch.arange(-8, 2).repeat(100)
    whole, turned = (
        distributed.mean_in_rank_order(None, SimpleNamespace(buffer=bucket.clone)).wait()
        for bucket in (values, values.flip(0))
    )
    return [*caught, step, stop.name, torch.equal(whole, turned.flip(0)), ranks.cores]


def test_what_one_rank_meets_all_know(tmp_path):
    """Rank 2 gets a signal in its step 20, so at step 21 every rank knows."""
    cores = max(1, len(os.sched_getaffinity(0)) // 3)
    expected = [0, 3, "no", "[Errno 28] full", 21, "HAND_OVER", True, cores]
    assert on_ranks(3, agree, tmp_path) == [expected] * 3


@pytest.mark.parametrize(
    ("others", "cores"),
    [
        ([], 8),
        ([("here", {0, 1, 2, 3, 4, 5, 6, 7}, None)] * 3, 2),  # torchrun: every rank may run anywhere
        ([("here", {8, 9, 10, 11}, None)], 8),  # SLURM with bound tasks
        ([("there", {0, 1, 2, 3}, None)] * 4, 8),
        ([("here", {0}, None)] * 30, 1),
    ],
)
def test_ranks_share_the_cores_that_they_have_in_common(monkeypatch, others, cores):
    mine = ("here", set(range(8)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: mine[1])
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    monkeypatch.setattr(distributed, "gather_objects", lambda found, ranks: [found, *others])
    located = distributed._located(ALONE)
    assert located.cores == cores and located.nodes == len({"here", *(host for host, *_ in others)})


@pytest.mark.parametrize(("procid", "cores"), [("1", 6), ("0", 3)])
def test_ranks_share_the_cores_of_their_slurm_task(monkeypatch, procid, cores):
    """Also where SLURM binds no task to cores: a second task of this node, or a second rank of torchrun in this one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    monkeypatch.setattr(distributed, "gather_objects", lambda found, ranks: [found, ("here", set(range(64)), procid)])
    assert distributed._located(ALONE).cores == cores


def test_torchrun_starts_ranks_that_meet(tmp_path):
    """As docs/clusters.md says."""
    script = tmp_path / "meet.py"
    code = "from ppma.training.distributed import session\nwith session('cpu') as me: open(f'{me.rank} {me.world_size}', 'w')\n"
    script.write_text(code)
    port = str(free_port())
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port, script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0 and sorted(path.name for path in tmp_path.glob("? ?")) == ["0 2", "1 2"], done.stderr
    assert "FutureWarning" not in done.stderr
