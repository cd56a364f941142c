"""Predict how a run scales and where it breaks first, from what one process measures here and stated rates of the cluster.

    measured: a training step, an all-reduce of its gradients between two processes, the stop flag
    stated:   rates of a GPU, its links, its network card and the file system, failures of nodes (flags with defaults)
    model:    step = slowest of compute, loader and file system + the part of the all-reduce that the backward pass does not hide
    demands:  reads, bytes, open files, start-up, failures  ->  the share of what there is  ->  the first that is used up
    simulate: a week with drawn failures  ->  checkpoints, restarts, steps lost, ETTR (productive over wall time)

    python benchmarks/scaling.py
    python benchmarks/scaling.py --phase align --batch-per-gpu 16

Assumptions:
(1) Weak scaling: the batch per GPU is constant.
(2) Gradients are float32 and travel over a two-level ring: within a node, then between nodes, each GPU with its own network card.
(3) They overlap with the backward pass (two thirds of a step), except the last bucket of 25 MB.
(4) A step waits for the slowest of N processes, whose times scatter normally by `scatter`.
(5) Every process reads packed clips at the loader's rate, and all share the file system's bandwidth and operations.
(6) A GPU computes at `gpu_tflops` x `mfu`; on a machine with a GPU its measured step is used instead.
(7) A failed node ends the run, which goes on from its last checkpoint; checkpoints are as far apart as Young's formula says.
"""

import math
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import rows
from benchmarks.train_step import Case, Worker
from ppma.common.ports import free_port
from ppma.config.command import DONE, parse, run
from ppma.config.model import MAEConfig, preset
from ppma.loaders.sampler import SHUFFLED_SHARDS
from ppma.loaders.sources.store import OPEN_SHARDS

BUCKET_BYTES = 25 * 2**20
"""DistributedDataParallel's last bucket, which has no computation to hide behind."""
BACKWARD_SHARE = 2 / 3


@dataclass(frozen=True, kw_only=True)
class ScalingConfig(rows.ReportConfig):
    """Measure a step and an all-reduce on this machine, and predict the efficiency of many GPUs."""

    phase: Literal["mae", "align"] = "mae"
    model: str = "base"
    gpus: tuple[int, ...] = (8, 64, 512)
    """Numbers of GPUs to predict."""
    gpus_per_node: int = 8
    """GPUs per node."""
    batch_per_gpu: int = 64
    """Views (mae) or clips (align) per GPU and step."""
    gpu_tflops: float = 790.0
    """bf16 matrix products of one GPU in TFLOP/s (measured on an H200)."""
    mfu: float = 0.4
    """Share of `gpu_tflops` that a step reaches."""
    link_gb_per_s: float = 450.0
    """Bandwidth between GPUs of a node, per direction and GPU (NVLink 4: 450)."""
    card_gb_per_s: float = 50.0
    """Bandwidth of a GPU's network card (400 Gbit/s: 50)."""
    hop_us: float = 5.0
    """Latency of one ring step in microseconds."""
    scatter: float = 0.01
    """Standard deviation of a process's step time over its mean."""
    loader_clips_per_s: float = 3000.0
    """Decoded clips per second of one GPU's loader (16 cores at 190 packed JPEG clips each)."""
    clips: int = 10_000_000
    """Clips of the packed store."""
    clip_kb: float = 1670.0
    """Kilobytes read per clip (76 JPEG frames at quality 90: a window of 2.7 s at 30/s, of which 16 are decoded)."""
    clip_reads: float = 2.0
    """Reads per clip (the table and the frames)."""
    shard_clips: int = 150
    """Clips per shard (1 GB of clips of 10 s)."""
    shuffle: Literal["clips", "shards"] = "clips"
    """clips: a clip's shard is open by chance; shards: the 64 shards in turn stay open."""
    file_system_gb_per_s: float = 100.0
    """Bandwidth of the file system for all nodes together."""
    file_system_operations_per_s: float = 1e6
    """Reads and opens that the file system answers per second for all nodes together."""
    metadata_operations_per_s: float = 1e5
    """Look-ups of paths that the metadata server answers per second."""
    start_calls: int = 18_300
    """Look-ups of paths by a rank until its first step (measured with strace: 18,312, nearly all of Python's imports)."""
    worker_start_calls: int = 2_700
    """File calls of a loader worker that starts (measured with strace: 2,698)."""
    workers: int = 16
    """Loader workers per GPU."""
    open_files: int = 1024
    """Limit of open files of a process, where it cannot be raised."""
    failures_per_node_day: float = 6.5e-3
    """Failures of a node per day (Kokolis et al., HPCA 2025: 6.5 in a thousand node-days of Meta's RSC-1)."""
    save_seconds: float = 0.3
    """Seconds that a step waits for a checkpoint."""
    restart_seconds: float = 120.0
    """Seconds from a failure to the next step (measured on two nodes: 33 to the requeue, 26 to the first step; compiling)."""
    hours: int = 168
    """Hours to simulate."""
    measure_batch: int = 0
    """Rows of the measured step; 0 for 4 on a CPU and batch_per_gpu on a GPU."""
    size: int = 224
    frames: int = 16
    repeats: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(
            1, "gpus", "gpus_per_node", "batch_per_gpu", "repeats", "clips", "shard_clips", "open_files", "hours"
        )
        self.at_least(0, "measure_batch")
        preset(self.model, size=self.size, frames=self.frames)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Seconds of a step on N GPUs by cause."""

    compute: float
    loader: float
    file_system: float
    exposed: float
    """The part of the all-reduce that is not hidden."""
    straggling: float

    @property
    def step(self) -> float:
        """Seconds of the whole step."""
        return max(self.compute, self.loader, self.file_system) + self.exposed + self.straggling

    @property
    def limit(self) -> str:
        """The part whose speedup would help most."""
        if max(self.loader, self.file_system) > self.compute:
            return "loader" if self.loader >= self.file_system else "file system"
        return "network" if self.exposed > max(self.straggling, 0.02 * self.compute) else "GPU"


def ring_seconds(size: float, members: int, bytes_per_s: float, hop_seconds: float) -> float:
    """Return the seconds of an all-reduce of `size` bytes over a ring."""
    return 2 * (members - 1) / members * size / bytes_per_s + 2 * (members - 1) * hop_seconds


def all_reduce_seconds(config: ScalingConfig, gpus: int, size: float) -> float:
    """Return the seconds of a two-level all-reduce: within nodes, then between them, each GPU carrying its share over
    its own card."""
    inside, nodes = min(gpus, config.gpus_per_node), math.ceil(gpus / config.gpus_per_node)
    hop = config.hop_us * 1e-6
    seconds = ring_seconds(size, inside, config.link_gb_per_s * 1e9, hop)
    return seconds + (ring_seconds(size / inside, nodes, config.card_gb_per_s * 1e9, hop) if nodes > 1 else 0.0)


def operations_per_clip(config: ScalingConfig) -> float:
    """Return the operations of a clip: its reads, and for a shard that is not open an open, a read and a close."""
    shards = max(1.0, config.clips / config.shard_clips)
    open_shards = SHUFFLED_SHARDS if config.shuffle == "shards" else shards
    return config.clip_reads + 3 * max(0.0, 1 - OPEN_SHARDS / open_shards)


def file_system_seconds(config: ScalingConfig) -> tuple[float, float]:
    """Return the seconds that the file system needs for the bytes of a clip, and for its operations."""
    bandwidth = config.clip_kb * 1e3 / (config.file_system_gb_per_s * 1e9)
    return bandwidth, operations_per_clip(config) / config.file_system_operations_per_s


def predict(config: ScalingConfig, gpus: int, compute: float, gradient_bytes: float) -> Parts:
    """Return the parts of a step on `gpus` GPUs by the model above."""
    views = 4 if config.phase == "mae" else 1
    clips = config.batch_per_gpu / views
    bandwidth, operations = file_system_seconds(config)
    whole, last = (all_reduce_seconds(config, gpus, size) for size in (gradient_bytes, BUCKET_BYTES))
    return Parts(
        compute=compute,
        loader=clips / config.loader_clips_per_s,
        file_system=gpus * clips * max(bandwidth, operations),
        exposed=max(whole - BACKWARD_SHARE * compute, min(last, whole)),
        straggling=compute * config.scatter * math.sqrt(2 * math.log(gpus)),
    )


def demands(config: ScalingConfig, gpus: int, parts: Parts) -> dict[str, float]:
    """Return the share of each resource that a run on `gpus` GPUs at full speed needs; above 1 it breaks.

    Start-up may take 10 minutes, the exposed part of an all-reduce a tenth of a step, and failures a tenth of the time.
    """
    clips_per_s = gpus * config.batch_per_gpu / (4 if config.phase == "mae" else 1) / parts.compute
    bandwidth, operations = file_system_seconds(config)
    start_calls = gpus * (config.start_calls + config.workers * config.worker_start_calls)
    return {
        "loader": parts.loader / parts.compute,
        "file system bandwidth": clips_per_s * bandwidth,
        "file system operations": clips_per_s * operations,
        "start-up": start_calls / config.metadata_operations_per_s / 600,
        "network": parts.exposed / parts.compute / 0.1,
        "open files of rank 0": (40 + 5 * math.log2(gpus) + gpus) / config.open_files,
        "failures": lost_share(config, gpus) / 0.1,
    }  # fmt: skip


def failure_seconds(config: ScalingConfig, gpus: int) -> float:
    """Return the mean seconds between failures of a run."""
    return 86_400 / (config.failures_per_node_day * math.ceil(gpus / config.gpus_per_node))


def checkpoint_seconds(config: ScalingConfig, gpus: int) -> float:
    """Return the seconds between checkpoints by Young's formula."""
    return math.sqrt(2 * config.save_seconds * failure_seconds(config, gpus))


def lost_share(config: ScalingConfig, gpus: int) -> float:
    """Return the expected share of the time that saves, restarts and repeated steps take."""
    between = checkpoint_seconds(config, gpus)
    failed = (config.restart_seconds + between / 2) / failure_seconds(config, gpus)
    return config.save_seconds / between + failed


@dataclass(frozen=True, kw_only=True)
class Week:
    """Counts of a simulated run."""

    steps: int
    """Steps that count: those after the last checkpoint before a failure are repeated."""
    lost_steps: int
    checkpoints: int
    failures: int
    operations: float
    """Operations on the file system for clips."""
    ettr: float
    """Productive time over wall time."""


def simulate(config: ScalingConfig, gpus: int, step_seconds: float, seed: int = 0) -> Week:
    """Simulate `config.hours` of a run whose nodes fail at random times.

    Args:
        config: Rates.
        gpus: GPUs of the run.
        step_seconds: Seconds of a step.
        seed: Seed of the failures.
    """
    rng, mean, end = np.random.default_rng(seed), failure_seconds(config, gpus), config.hours * 3600.0
    save_steps = max(1, round(checkpoint_seconds(config, gpus) / step_seconds))
    cycle = save_steps * step_seconds + config.save_seconds
    now, steps, lost, checkpoints, failures = 0.0, 0, 0, 0, 0
    while now < end:
        alive = min(rng.exponential(mean), end - now)
        saves, rest = divmod(alive, cycle)
        begun = min(save_steps, int(rest / step_seconds))
        checkpoints += int(saves)
        steps += int(saves) * save_steps
        now += alive
        if now < end:
            failures, lost = failures + 1, lost + begun
            now += config.restart_seconds
        else:
            steps += begun
    clips = (steps + lost) * gpus * config.batch_per_gpu / (4 if config.phase == "mae" else 1)
    return Week(
        steps=steps, lost_steps=lost, checkpoints=checkpoints, failures=failures,
        operations=clips * operations_per_clip(config), ettr=steps * step_seconds / max(now, end),
    )  # fmt: skip


def _exchange(
    rank: int, port: int, size: int, repeats: int, answers: "SimpleQueue[tuple[list[float], list[float]]]"
) -> None:
    """Run one of two gloo processes: time all-reduces of `size` bytes, and the stop flag between steps of a little
    work."""
    import torch
    import torch.distributed as dist

    from ppma.training.distributed import StopFlag, session

    place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    with session("cpu") as ranks:
        gradient, times = torch.ones(size // 4), []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            dist.all_reduce(gradient)
            times.append(time.perf_counter() - began)
        flag, exposed, work = StopFlag(ranks), [], torch.randn(512, 512)
        for _ in range(50):
            work = torch.tanh(work @ work)
            began = time.perf_counter()
            flag.agreed()
            exposed.append(time.perf_counter() - began)
        flag.close()
        if rank == 0:
            answers.put((times[1:], exposed[1:]))


def measure_exchange(size: int, repeats: int) -> tuple[list[float], list[float]]:
    """Return seconds of all-reduces between two processes on this machine, and of the stop flag."""
    import torch.multiprocessing as mp

    answers = mp.get_context("forkserver").SimpleQueue()
    mp.start_processes(_exchange, args=(free_port(), size, repeats, answers), nprocs=2, start_method="forkserver")
    return answers.get()


def measure_step(config: ScalingConfig, device: str) -> tuple[list[float], dict]:
    """Return seconds of training steps on this machine, and the metadata of the process that ran them."""
    batch = config.measure_batch or (config.batch_per_gpu if device == "cuda" else 4)
    shape = {"size": config.size, "frames": config.frames}
    case = Case(phase=config.phase, implementation="ours", model=config.model, batch=batch, device=device, **shape)
    worker = Worker(case)
    for _ in range(config.repeats):
        worker.step()
    worker.close()
    if worker.failure:
        raise RuntimeError(worker.failure)
    return [step["ms"] / 1e3 for step in worker.steps], {**worker.facts, "batch": batch}


def gradient_bytes(config: ScalingConfig) -> int:
    """Return the bytes of the whole model's float32 gradients."""
    vit, mae = preset(config.model, size=config.size, frames=config.frames), MAEConfig()
    encoder = 12 * vit.depth * vit.width**2 + vit.patch_values * vit.width
    decoder = 12 * mae.decoder_depth * mae.decoder_width**2 + (vit.width + vit.patch_values) * mae.decoder_width
    return 4 * (encoder + (decoder if config.phase == "mae" else 0))


def made_rows(config: ScalingConfig, device: str) -> list[rows.Row]:
    """Return one row per number of GPUs."""
    size = gradient_bytes(config)
    steps, facts = measure_step(config, device)
    reduced, exposed = measure_exchange(size, config.repeats)
    step, reduce, flag = (statistics.median(values) for values in (steps, reduced, exposed))
    stated = facts["step_flops"] / facts["batch"] * config.batch_per_gpu / (config.gpu_tflops * 1e12 * config.mfu)
    compute = step if device == "cuda" else stated
    found = []
    for gpus in config.gpus:
        parts = predict(config, gpus, compute, size)
        needed, week = demands(config, gpus, parts), simulate(config, gpus, parts.step)
        found.append({
            "phase": config.phase, "model": config.model, "gpus": gpus, "batch_per_gpu": config.batch_per_gpu,
            "step_measured_ms": step * 1e3, "measured_batch": facts["batch"], "all_reduce_measured_ms": reduce * 1e3,
            "all_reduce_measured_gb_per_s": size / reduce / 1e9, "stop_flag_us": flag * 1e6, "stop_flag_percent": 100 * flag / step,
            "compute_ms": parts.compute * 1e3, "loader_ms": parts.loader * 1e3, "file_system_ms": parts.file_system * 1e3,
            "exposed_network_ms": parts.exposed * 1e3, "straggling_ms": parts.straggling * 1e3,
            "efficiency": parts.compute / parts.step, "clips_per_s": gpus * config.batch_per_gpu / parts.step, "limit": parts.limit,
            "breaks_first": max(needed, key=lambda name: needed[name]),
            **{f"needed_{name.replace(' ', '_')}": share for name, share in needed.items()},
            **{f"week_{name}": value for name, value in asdict(week).items()},
            "spread": rows.spread(steps),
        })  # fmt: skip
    return found


def turning_points(config: ScalingConfig, compute: float, size: float) -> list[str]:
    """Return a line for each limit other than the GPUs: the number of GPUs from which it limits the step."""
    lines = []
    for limit in ("loader", "file system", "network"):
        counts = [2**n for n in range(1, 17)]
        first = next((gpus for gpus in counts if predict(config, gpus, compute, size).limit == limit), None)
        lines.append(f"{limit}: {'never up to 65536' if first is None else f'the limit at {first}'} GPUs")
    return lines


def needs_in_words(row: rows.Row) -> str:
    """Return in words which resource is used up first, and the two next to it."""
    needed = {name.removeprefix("needed_"): share for name, share in row.items() if name.startswith("needed_")}
    ordered = sorted(needed.items(), key=lambda item: -item[1])
    shares = [f"{name.replace('_', ' ')} {100 * share:.0f} %" for name, share in ordered[:3]]
    return f"{'breaks' if ordered[0][1] > 1 else 'holds; nearest'}: {', '.join(shares)}"


def week_in_words(row: rows.Row) -> str:
    """Return the counts of a simulated run in words."""
    lost = row["week_lost_steps"] / max(1, row["week_steps"] + row["week_lost_steps"])
    counts = f"{row['week_failures']} failures, {row['week_checkpoints']} checkpoints"
    return f"{counts}, {row['week_operations']:.2g} reads and opens, {100 * lost:.2f} % of the steps repeated, ETTR {row['week_ettr']:.3f}"


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    import torch

    config = parse(ScalingConfig, argv, prog="scaling")
    made = made_rows(config, "cuda" if torch.cuda.is_available() else "cpu")
    keys = ("phase", "model", "gpus", "efficiency", "limit", "compute_ms", "loader_ms", "file_system_ms")
    keys += ("exposed_network_ms",)
    print(rows.table([{key: row[key] for key in keys} for row in made]), end="\n\n")
    for row in made:
        print(f"{row['gpus']} GPUs: {needs_in_words(row)}; {config.hours} h: {week_in_words(row)}")
    print()
    print("\n".join(turning_points(config, made[0]["compute_ms"] / 1e3, gradient_bytes(config))), end="\n\n")
    rows.report(made, config, benchmark="scaling", measure="efficiency")
    return DONE


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="scaling"))
