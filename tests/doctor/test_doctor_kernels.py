"""The doctor reports the backends that the kernels choose."""

import torch

from ppma.doctor import kernels as doctor_kernels
from ppma.kernels import choice
from ppma.kernels.attention_choice import Shape

ATTENTION = ("attention, stage 1 encoder", "attention, stage 1 decoder", "attention, stage 2")


def test_on_a_cpu():
    rows = {work: (chosen, why) for work, chosen, why in doctor_kernels.chosen_kernels(torch.device("cpu"))}
    assert rows["patches and pixel loss"] == ("PyTorch", choice.explain(torch.device("cpu"))[1])
    for work in ATTENTION:
        chosen, why = rows[work]
        assert chosen == "PyTorch's own choice" and "scaled_dot_product_attention" in why and "cpu" in why


def test_attention_is_reported_for_the_papers_shapes(monkeypatch):
    asked = []

    def explain(shape):
        asked.append(shape)
        return ("triton" if shape.head_width == 24 else "cudnn"), "measured"

    monkeypatch.setattr(doctor_kernels, "explain", explain)
    monkeypatch.setattr(choice, "LOADED", True)
    gpu = torch.device("cuda", 0)
    rows = {work: chosen for work, chosen, _ in doctor_kernels.chosen_kernels(gpu)}
    assert rows["patches and pixel loss"] == "our Triton kernels"
    assert [rows[work] for work in ATTENTION] == ["cuDNN", "our Triton kernel", "cuDNN"]
    shapes = [(128, 157, 12, 64), (128, 1568, 16, 24), (128, 1568, 12, 64)]
    assert asked == [Shape(*shape, torch.bfloat16, gpu) for shape in shapes]
