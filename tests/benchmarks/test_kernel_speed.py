"""kernel_speed: its rows are consistent, and only device work is timed."""

import types

import pytest
import torch

from benchmarks import kernel_speed
from benchmarks.kernel_speed import BenchmarkConfig, Measurement, measure, row_of
from ppma.kernels import timing

FIELDS = {"kernel", "implementation", "shape", "dtype", "pass", "microseconds", "gb_per_s", "tflop_per_s", "of_ceiling"}
CPU = torch.device("cpu")


def test_rates_follow_from_the_time():
    common = {
        "kernel": "attention", "implementation": "seam", "shape": "1", "dtype": torch.float32, "run": len, "sets": [()],
    }  # fmt: skip
    moved = row_of(Measurement(direction="forward", bytes_moved=2e9, **common), [0.5, 1.0, 4.0], ceiling=8e9)
    assert (moved["gb_per_s"], moved["of_ceiling"], moved["microseconds"]) == (2.0, 0.25, 1e6)
    counted = row_of(Measurement(direction="forward", flops=3e12, **common), [1.0], ceiling=4e12)
    assert (counted["tflop_per_s"], counted["of_ceiling"], counted["gb_per_s"]) == (3.0, 0.75, None)
    assert set(counted) > FIELDS


def test_patchify_is_measured_here(monkeypatch, capsys):
    monkeypatch.setattr(kernel_speed, "copy_bandwidth", lambda device: 1e10)
    made = measure(BenchmarkConfig(kernel=("patchify",), repeats=1), CPU)
    assert {row["implementation"] for row in made} == {"reference", "torch"} and len(made) == 8
    assert all(row["gb_per_s"] > 0 for row in made)


def test_bytes_are_the_least_that_must_move(monkeypatch):
    """Reads the pixels and indices of the patches and the prediction; writes the gradient."""
    monkeypatch.setattr(kernel_speed, "rotating", lambda make, device: [make()])
    for case in kernel_speed.pixel_loss_cases(1, CPU):
        _, _, masked, prediction = case.sets[0]
        assert case.bytes_moved == prediction.numel() + masked.nbytes + 2 * prediction.nbytes
        (gradient,) = case.run(case.sets[0])
        assert gradient.dtype == prediction.dtype == case.dtype
    for case in kernel_speed.patchify_cases(1, CPU):
        out, indices = case.run(case.sets[0]), case.sets[0][1]
        read = indices.nbytes if out.shape[1] == indices.shape[1] else 0
        assert case.bytes_moved == out.numel() + read + out.nbytes


def test_a_case_that_cannot_run_is_reported_and_skipped(monkeypatch, capsys):
    def cannot(_):
        raise RuntimeError("No available kernel.\nmore")

    case = Measurement(
        kernel="attention", implementation="cudnn", shape="1", dtype=torch.float32, direction="forward", run=cannot,
        sets=[()], bytes_moved=1.0,
    )  # fmt: skip
    monkeypatch.setattr(kernel_speed, "copy_bandwidth", lambda device: 1e10)
    monkeypatch.setitem(kernel_speed.CASES, "attention", lambda batch, device: [case])
    assert measure(BenchmarkConfig(kernel=("attention",), repeats=1), CPU) == []
    assert "attention cudnn 1: No available kernel.\n" in capsys.readouterr().err


@pytest.mark.skipif(not kernel_speed.choice.INSTALLED, reason="Triton is not installed")
def test_a_kernel_that_does_not_fit_the_gpu_is_skipped(capsys):
    from triton.runtime.errors import OutOfResources

    def too_large(_):
        raise OutOfResources(300_000, 232_448, "shared memory")

    case = Measurement(
        kernel="attention", implementation="triton", shape="1", dtype=torch.float32, direction="forward", run=too_large,
        sets=[()], flops=1.0,
    )  # fmt: skip
    assert kernel_speed.seconds(case, CPU, 1) is None
    assert "shared memory" in capsys.readouterr().err


class FakeGraph:
    """Replaces CUDA's: counts launches during a capture, and a replay advances a clock."""

    def __init__(self):
        self.log = log = []
        self.now = 0.0

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(event):
                event.at = self.now

            def elapsed_time(event, other):
                return 1000 * (other.at - event.at)

        class Graph:
            def replay(_):
                log.append("replay")
                self.now += 0.4 if log.count("replay") > 1 else 9.0  # the first one uploads the graph

        class Block:
            def __init__(block, what):
                block.what = what

            def __enter__(block):
                log.append(block.what)

            def __exit__(block, *_):
                log.append("end")

        stream = types.SimpleNamespace(wait_stream=lambda other: None)
        self.cuda = types.SimpleNamespace(
            Event=Event, CUDAGraph=Graph, graph=lambda graph, capture_error_mode: Block("capture"), stream=lambda side: Block("side"),
            Stream=lambda: stream, current_stream=lambda: stream, synchronize=lambda: log.append("synchronize"),
            get_device_properties=lambda device: types.SimpleNamespace(L2_cache_size=50 * 2**20),
        )  # fmt: skip


def test_on_a_gpu_replays_over_all_sets_are_timed(monkeypatch):
    fake = FakeGraph()
    monkeypatch.setattr(timing.torch, "cuda", fake.cuda)
    took = timing.seconds_per_call(fake.log.append, ["a", "b", "c"], torch.device("cuda"), repeats=5)
    assert took == pytest.approx([0.4 / 9] * 5)  # three rounds of three sets: eight calls at least
    captured = fake.log[fake.log.index("capture") + 1 :]
    assert captured[: captured.index("end")] == ["a", "b", "c"] * 3
    assert captured[captured.index("end") + 1 :] == ["replay"] * 6 + ["synchronize"], "the host waits once"


def test_sets_exceed_the_cache(monkeypatch):
    monkeypatch.setattr(timing.torch, "cuda", FakeGraph().cuda)
    for size in (1e6, 3e7, 1e9):
        count = timing.sets_needed(size, torch.device("cuda"))
        assert count >= 2 and count * size >= 2 * 50 * 2**20
    assert timing.sets_needed(1e6, CPU) == 1


@pytest.mark.cuda
def test_a_graph_computes_what_its_calls_compute():
    device = torch.device("cuda", torch.cuda.current_device())
    sets = [torch.full((1 << 20,), float(i), device=device, requires_grad=True) for i in range(3)]
    work = lambda x: torch.autograd.grad((x * x).sum(), x)[0]  # noqa: E731
    graph, outputs = timing.capture([lambda x=x: work(x) for x in sets])
    for out in outputs:
        out.fill_(float("nan"))
    assert min(timing.replays(graph, 3)) > 0
    for out, x in zip(outputs, sets):
        assert torch.equal(out, 2 * x)
