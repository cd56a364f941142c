"""The DALI graph: DALI's own checks of the GPU graph, its number of operators, and its cost on the host."""

import time

import numpy as np
import nvidia.dali.pipeline
import pytest

from ppma.config.loader import LoaderConfig
from ppma.loaders.decode import dali, dali_graph
from ppma.loaders.decode.dali import DaliViews
from ppma.loaders.decode.dali_input import DaliInput
from ppma.loaders.samples import Sample, view_params


@pytest.fixture
def without_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip DALI's check for a driver, so that it makes a GPU pipeline and checks every operator."""
    monkeypatch.setattr(nvidia.dali.pipeline.b, "check_cuda_runtime", lambda: None)


def gpu_graph(kind: str, views: int) -> nvidia.dali.pipeline.Pipeline:
    return dali_graph.build(kind, views=views, samples=64, device="gpu", device_id=None, threads=4)


@pytest.mark.parametrize("views", [1, 3, 4])  # Align and fine-tuning, the three crops of an evaluation, stage 1
@pytest.mark.parametrize("kind", ["frames", "video", "jpeg"])
def test_the_graph_for_a_gpu_passes_the_checks_of_dali(kind: str, views: int, without_driver: None) -> None:
    """Names, arguments and the device of every input, in Python and then by the operators' schemas in C++."""
    pipe = gpu_graph(kind, views)
    assert pipe.serialize()
    assert [device for _, device in pipe._names_and_devices] == ["gpu"] * views + ["cpu"]


@pytest.mark.parametrize("kind", ["frames", "video", "jpeg"])
def test_frames_on_the_wrong_device_are_an_error(
    kind: str, without_driver: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = dali_graph.decode
    monkeypatch.setattr(dali_graph, "decode", lambda kind, device: decode(kind, "cpu"))
    with pytest.raises(RuntimeError, match="incompatible device"):
        gpu_graph(kind, 1).serialize()


def test_a_graph_has_few_operators(without_driver: None) -> None:
    graphs = [gpu_graph("video", views) for views in (1, 4)]
    assert all(pipe.serialize() for pipe in graphs)
    one, four = (len(pipe._ops) for pipe in graphs)
    assert one <= 15 and four - one == 3 * 5  # of a view: its three arguments, crop, resize


def milliseconds(views: DaliViews, clips: list[DaliInput], samples: list[Sample]) -> float:
    began = time.process_time()
    for _ in range(3):
        views(clips, samples)
    return (time.process_time() - began) / 3 * 1e3


def test_randaugment_costs_the_host_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU time of a batch of 64 tiny clips, whose arithmetic is negligible, with four operations per view and none.

    RandAugment itself runs on the device and is left out. As graph operators it cost the host eight times the rest.
    """
    monkeypatch.setattr(dali, "randaugment", lambda frames, program: frames.clone())
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 20, 3), dtype=np.uint8)
    clips = [DaliInput(kind="frames", payloads=(frames,), frame_idx=(0, 1), height=16, width=20)] * 64
    given = []
    for slots in (0, 4):
        config = LoaderConfig(frames=2, size=16, short_side=16, views=1, randaugment_ops=slots)
        samples = [
            Sample(epoch=0, index=i, source=0, clip=i, start_seconds=0.0, end_seconds=1.0, views=(view,))
            for i, view in enumerate(view_params(0, 0, i, 0, 16, 20, config) for i in range(64))
        ]
        given.append((DaliViews(config, 64, device="cpu", threads=1), clips, samples))
    times = np.array([[milliseconds(*one) for one in given] for _ in range(12)])
    without, with_operations = times.min(axis=0)
    assert with_operations < 2 * without
