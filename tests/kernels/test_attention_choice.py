"""The choice of the attention backend, tested without a GPU on fake measurements."""

import json
import logging

import pytest
import torch
from torch.nn.attention import SDPBackend
from triton.runtime.errors import OutOfResources

from ppma.kernels import attention_choice, choice, timing
from ppma.kernels.attention import attention
from ppma.kernels.attention_choice import FIRST_PLAN, Shape, attend, fastest_backend

SHAPE = Shape(4, 157, 12, 64, torch.bfloat16, torch.device("cuda:0"))
DECODER = SHAPE._replace(tokens=1568, heads=16, head_width=24)
TIMES = {"cudnn": 2.0, "flash": 1.5, "efficient": 3.0, "triton": None}
KEPT = {"a card, torch 9": {SHAPE.name: {"backend": "flash"}}}


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A fake GPU, with the cache in a temporary folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(attention_choice, "_chosen", {})
    monkeypatch.setattr(attention_choice, "machine_name", lambda device: "a card, torch 9")
    monkeypatch.setattr(attention_choice, "can_measure", lambda: True)
    monkeypatch.setattr(attention_choice.choice, "LOADED", True)


@pytest.fixture
def measured(card, monkeypatch):
    """The measurements requested so far."""
    asked = []

    def milliseconds(shape, backend, plan):
        asked.append(backend)
        return TIMES[backend]

    monkeypatch.setattr(attention_choice, "milliseconds", milliseconds)
    monkeypatch.setattr(attention_choice, "fastest_plan", lambda shape: FIRST_PLAN)
    return asked


def test_the_fastest_is_chosen_logged_and_cached(measured, caplog, tmp_path):
    with caplog.at_level(logging.INFO):
        assert fastest_backend(*SHAPE)[0] == "flash"
    assert "flash for B4 N157 H12 D64 bfloat16" in caplog.text and "cudnn 2.000 ms" in caplog.text
    assert measured == ["cudnn", "flash", "efficient", "triton"]
    assert json.loads((tmp_path / "ppma" / "attention.json").read_text()) == KEPT
    fastest_backend(*SHAPE)
    assert len(measured) == 4, "measured again in the same process"
    attention_choice._chosen.clear()
    assert fastest_backend(*SHAPE)[0] == "flash" and len(measured) == 4, "measured again in the next process"


def test_another_shape_or_card_measures_again(measured, monkeypatch):
    fastest_backend(*SHAPE)
    fastest_backend(*SHAPE._replace(tokens=1568))
    assert len(measured) == 8
    attention_choice._chosen.clear()
    monkeypatch.setattr(attention_choice, "machine_name", lambda device: "another card")
    fastest_backend(*SHAPE)
    assert len(measured) == 12


def test_float32_does_not_try_our_kernel(measured):
    fastest_backend(*SHAPE._replace(dtype=torch.float32))
    assert measured == ["cudnn", "flash", "efficient"]


def test_float32_on_a_gpu_never_runs_our_kernel(monkeypatch):
    """It would spill thousands of registers: PyTorch's runs even if Triton is forced, and our backend raises."""
    ran = []
    meta = torch.empty(1, 8, 96, device="meta")
    monkeypatch.setattr(attention_choice.choice, "_forced", "triton")
    monkeypatch.setattr(attention_choice.choice, "LOADED", True)
    monkeypatch.setattr("ppma.kernels.attention.Shape", lambda *a: Shape(*a[:5], torch.device("cuda:0")))
    monkeypatch.setattr("ppma.kernels.attention.attend", lambda qkv, heads, backend, plan: ran.append(backend))
    attention(meta, 2)
    attention(meta.bfloat16(), 2)
    assert ran == ["pytorch", "triton"]
    monkeypatch.setattr(attention_choice, "Shape", lambda *a: Shape(*a[:5], torch.device("cuda:0")))
    with pytest.raises(RuntimeError, match="float32"):
        attend(meta, 2, "triton")


def test_the_configs_of_our_kernel_are_measured_part_by_part(card, monkeypatch, tmp_path):
    """The fastest config of each part is chosen, one that does not fit is skipped, and the plan is cached."""
    fastest = {"forward": 2, "query_gradient": 1, "key_value_gradient": 0, "fused_gradient": 1}

    def median_ms(what, shape, work, sets):
        if " " not in what:
            return {"triton": 1.0}.get(what, 2.0)
        part, config = what.split(" ", 1)
        index = [str(tuple(c)) for c in attention_choice.attention_triton.configs(part, 24, torch.bfloat16)].index(
            config
        )
        return None if index == 3 else 1.0 + abs(index - fastest[part])

    monkeypatch.setattr(attention_choice, "median_ms", median_ms)
    monkeypatch.setattr(attention_choice, "input_sets", lambda shape: [(torch.empty(0), torch.empty(0))])
    monkeypatch.setattr(
        attention_choice.attention_triton, "attention_triton", lambda qkv, bias, heads, plan: (qkv, qkv)
    )
    monkeypatch.setattr(
        attention_choice.attention_triton, "attention_backward_triton", lambda gradient, *_: (gradient,)
    )
    assert fastest_backend(*DECODER) == ("triton", (2, 1, 0, 1))
    attention_choice._chosen.clear()
    monkeypatch.setattr(attention_choice, "measure", None)
    assert fastest_backend(*DECODER) == ("triton", (2, 1, 0, 1))
    file = tmp_path / "ppma" / "attention.json"
    file.write_text(file.read_text().replace("64", "63"))  # what another version offered
    assert attention_choice.read_cache(file, "a card, torch 9", DECODER) is None


def test_backends_are_measured_inside_inference_mode_too(monkeypatch):
    """Evaluation and embedding may ask first, inside a mode that records no gradients."""
    monkeypatch.setattr(attention_choice, "REPEATS", 1)
    monkeypatch.setattr(attention_choice, "candidates", lambda shape: ["efficient"])
    monkeypatch.setitem(attention_choice.BACKENDS, "efficient", SDPBackend.MATH)
    with torch.inference_mode():
        chosen = attention_choice.measure(Shape(1, 20, 2, 8, torch.float32, torch.device("cpu")))
    assert chosen == ("efficient", FIRST_PLAN)


@pytest.mark.parametrize("error", [OutOfResources(300000, 232448, "shared memory"), RuntimeError("no kernel")])
def test_a_backend_that_does_not_fit_the_gpu_is_skipped(card, monkeypatch, error):
    def seconds_per_call(work, sets, device, repeats):
        raise error

    monkeypatch.setattr(timing, "seconds_per_call", seconds_per_call)
    monkeypatch.setattr(attention_choice, "input_sets", lambda shape: [])
    assert attention_choice.milliseconds(SHAPE, "flash", FIRST_PLAN) is None
    assert fastest_backend(*SHAPE) == ("pytorch", FIRST_PLAN)


def test_times_are_of_graph_replays_over_inputs_that_exceed_the_cache(card, monkeypatch):
    asked = []

    def seconds_per_call(work, sets, device, repeats):
        asked.append(len(sets))
        return [0.003, 0.001, 0.002]

    cpu = SHAPE._replace(device=torch.device("cpu"))
    monkeypatch.setattr(timing, "seconds_per_call", seconds_per_call)
    monkeypatch.setattr(timing, "sets_needed", lambda set_bytes, device: 5 if set_bytes == 8 * 4 * 157 * 768 else 0)
    assert attention_choice.milliseconds(cpu, "pytorch", FIRST_PLAN) == 2.0 and asked == [5]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1]",
        '{"a card, torch 9": 3}',
        '{"a card, torch 9": {"B4 N157 H12 D64 bfloat16": "flash"}}',
        '{"a card, torch 9": {"B4 N157 H12 D64 bfloat16": {"backend": "magic"}}}',
        '{"a card, torch 9": {"B4 N157 H12 D64 bfloat16": {"backend": "triton"}}}',
        '{"a card, torch 9": {"B4 N157 H12 D64 bfloat16": {"backend": "triton", "configs": [[1], 2]}}}',
    ],
)
def test_a_broken_cache_is_measured_again(measured, tmp_path, content):
    (tmp_path / "ppma").mkdir()
    (tmp_path / "ppma" / "attention.json").write_text(content)
    assert fastest_backend(*SHAPE)[0] == "flash" and measured


def test_a_cache_that_cannot_be_written_is_no_error(measured, tmp_path, caplog):
    (tmp_path / "ppma").write_text("a file where the folder should be")
    assert fastest_backend(*SHAPE)[0] == "flash"
    assert str(tmp_path) in caplog.text


def test_pytorch_decides_if_no_backend_runs(measured, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(attention_choice, "milliseconds", lambda shape, backend, plan: None)
    assert fastest_backend(*SHAPE)[0] == "pytorch" and "no fused kernel" in caplog.text
    assert not (tmp_path / "ppma").exists()


def test_without_a_gpu_nothing_is_measured(measured, monkeypatch):
    """A step compiled ahead of time runs our kernel with its first configs."""
    monkeypatch.setattr(attention_choice, "can_measure", lambda: False)
    assert fastest_backend(*SHAPE) == ("triton", FIRST_PLAN)
    assert fastest_backend(*SHAPE._replace(dtype=torch.float32)) == ("pytorch", FIRST_PLAN)
    assert not measured


def test_a_compiled_step_chooses_while_it_is_traced(measured):
    """The choice is a constant of the graph."""

    def step(x):
        backend, plan = fastest_backend(*SHAPE)
        return x + 1 + plan[2] if backend == "flash" else x - 1

    assert torch.compile(step, fullgraph=True, backend="eager")(torch.zeros(1)) == 1
    assert len(measured) == 4


def test_the_mark_is_that_of_torch():
    """Set by hand to save an import; a torch release that uses another mark must be noticed."""

    def ours():
        pass

    assert vars(torch.compiler.assume_constant_result(ours)).items() <= vars(fastest_backend).items()
    assert vars(ours)


def test_the_choice_is_explained(measured):
    backend, why = attention_choice.explain(SHAPE)
    assert backend == "flash" and "fastest of cudnn, flash, efficient, triton for B4 N157" in why
    backend, why = attention_choice.explain(SHAPE._replace(device=torch.device("cpu")))
    assert backend == "pytorch" and "on a cpu device" in why and len(measured) == 4


def test_a_fused_backward_with_other_gradients_is_not_chosen(card, monkeypatch, caplog):
    """It is faster, but its gradient is off by a tenth or NaN."""
    monkeypatch.setattr(attention_choice, "median_ms", lambda name, *_: 1.0 if "(0, 0, 0," in name else 0.5)
    last = len(attention_choice.attention_triton.CONFIGS["fused_gradient"][32]) - 1
    narrow = Shape(1, 20, 1, 24, torch.bfloat16, torch.device("cpu"))
    for factor, chosen in ((1.0, 0), (1.1, last), (float("nan"), last)):

        def backward(gradient, qkv, out, lse, heads, plan, factor=factor):
            return (qkv if plan[3] in (-1, last) else qkv * factor,)

        monkeypatch.setattr(attention_choice.attention_triton, "attention_backward_triton", backward)
        caplog.clear()
        with choice.use("triton"):
            plan = attention_choice.fastest_plan(narrow)
        assert plan[3] == chosen and bool(caplog.records) == (chosen == last)
