"""The choice between Triton and plain PyTorch."""

import pytest
import torch

from ppma.kernels import choice

CPU = torch.device("cpu")


def test_a_cpu_runs_plain_pytorch_and_says_why():
    implementation, why = choice.explain(CPU)
    assert implementation == "torch" and "GPU" in why and not choice.runs_triton(CPU)


def test_a_gpu_runs_triton_where_it_is_installed(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(choice, "LOADED", True)
    assert choice.explain(gpu)[0] == "triton" and choice.runs_triton(gpu)
    monkeypatch.setattr(choice, "LOADED", False)
    assert choice.explain(gpu) == ("torch", "Triton is not installed; it comes with the CUDA build of torch")
    assert not choice.runs_triton(gpu)


def test_use_forces_and_restores(monkeypatch):
    monkeypatch.setattr(choice, "LOADED", True)
    with choice.use("triton"):
        assert choice.forced() == "triton" and choice.runs_triton(CPU)
        with choice.use("torch"):
            assert choice.explain(torch.device("cuda")) == ("torch", "forced by `use`")
        assert choice.forced() == "triton"
    assert choice.forced() is None


def test_an_implementation_that_cannot_run_is_named(monkeypatch):
    with pytest.raises(ValueError, match="cuda"), choice.use("cuda"):
        pass
    monkeypatch.setattr(choice, "LOADED", False)
    monkeypatch.setattr(choice, "INSTALLED", False)
    with pytest.raises(ValueError, match="install triton"), choice.use("triton"):
        pass
