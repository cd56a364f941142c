"""Predict how a run scales, from what one process measures on this machine and stated rates of the cluster.

    measured: a training step, an all-reduce of its gradients between two processes, the stop flag
    stated:   rates of a GPU, its links, its network card and the file system (flags with defaults)
    model:    step = slowest of compute, loader and file system + the part of the all-reduce that the backward pass does not hide

    python benchmarks/scaling.py
    python benchmarks/scaling.py --phase align --batch-per-gpu 16

Assumptions:
(1) Weak scaling: the batch per GPU is constant.
(2) Gradients are float32 and travel over a two-level ring: within a node, then between nodes, each GPU with its own network card.
(3) They overlap with the backward pass (two thirds of a step), except the last bucket of 25 MB.
(4) A step waits for the slowest of N processes, whose times scatter normally by `scatter`.
(5) Every process reads packed clips at the loader's rate, and all share the file system's bandwidth.
(6) A GPU computes at `gpu_tflops` x `mfu`; on a machine with a GPU its measured step is used instead.
"""

import math
import os
import socket
import statistics
import sys
import time
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import rows
from benchmarks.train_step import Case, Worker
from ppma.config.command import DONE, parse, run
from ppma.config.model import MAEConfig, preset

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
    clip_kb: float = 350.0
    """Kilobytes read per clip (16 JPEG frames at quality 90)."""
    file_system_gb_per_s: float = 100.0
    """Bandwidth of the file system for all nodes together."""
    measure_batch: int = 0
    """Rows of the measured step; 0 for 4 on a CPU and batch_per_gpu on a GPU."""
    size: int = 224
    frames: int = 16
    repeats: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "gpus", "gpus_per_node", "batch_per_gpu", "repeats")
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


def predict(config: ScalingConfig, gpus: int, compute: float, gradient_bytes: float) -> Parts:
    """Return the parts of a step on `gpus` GPUs by the model above."""
    views = 4 if config.phase == "mae" else 1
    clips = config.batch_per_gpu / views
    whole, last = (all_reduce_seconds(config, gpus, size) for size in (gradient_bytes, BUCKET_BYTES))
    return Parts(
        compute=compute,
        loader=clips / config.loader_clips_per_s,
        file_system=gpus * clips * config.clip_kb * 1e3 / (config.file_system_gb_per_s * 1e9),
        exposed=max(whole - BACKWARD_SHARE * compute, min(last, whole)),
        straggling=compute * config.scatter * math.sqrt(2 * math.log(gpus)),
    )


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

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_exchange, args=(port, size, repeats, answers), nprocs=2)
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
        found.append({
            "phase": config.phase, "model": config.model, "gpus": gpus, "batch_per_gpu": config.batch_per_gpu,
            "step_measured_ms": step * 1e3, "measured_batch": facts["batch"], "all_reduce_measured_ms": reduce * 1e3,
            "all_reduce_measured_gb_per_s": size / reduce / 1e9, "stop_flag_us": flag * 1e6, "stop_flag_percent": 100 * flag / step,
            "compute_ms": parts.compute * 1e3, "loader_ms": parts.loader * 1e3, "file_system_ms": parts.file_system * 1e3,
            "exposed_network_ms": parts.exposed * 1e3, "straggling_ms": parts.straggling * 1e3,
            "efficiency": parts.compute / parts.step, "clips_per_s": gpus * config.batch_per_gpu / parts.step, "limit": parts.limit,
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


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    import torch

    config = parse(ScalingConfig, argv, prog="scaling")
    made = made_rows(config, "cuda" if torch.cuda.is_available() else "cpu")
    keys = ("phase", "model", "gpus", "efficiency", "limit", "compute_ms", "loader_ms", "file_system_ms")
    keys += ("exposed_network_ms",)
    print(rows.table([{key: row[key] for key in keys} for row in made]), end="\n\n")
    print("\n".join(turning_points(config, made[0]["compute_ms"] / 1e3, gradient_bytes(config))), end="\n\n")
    rows.report(made, config, benchmark="scaling", measure="efficiency")
    return DONE


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="scaling"))
