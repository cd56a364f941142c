"""The doctor's report on fake machines and on this one, and its exit codes."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib import metadata

import pytest

from ppma.compile_check.check import CompileError, Kernel, StepReport
from ppma.doctor import command as doctor
from ppma.doctor.codecs import dali_codecs
from ppma.doctor.command import PAIRS, Machine, fast_paths, overview, problems

VERSIONS = """torch=2.13.0+cpu torchvision=0.28.0 triton=3.7.1 nvidia-dali-cuda130=2.4.0 opencv-python=4.11.0.86 numpy=2.4.6
setuptools=81.0.0 ffcv=1.0.2"""
CPU = Machine(
    versions=dict(pair.split("=") for pair in VERSIONS.split()), python="3.12.1", dali_cpu=("vp8", "vp9", "mjpeg", "jpeg"),
    torchvision="by itself", compiler=True, kernels=(("attention, stage 2", "PyTorch's own choice", "on a cpu device"),),
)  # fmt: skip
H200 = replace(
    CPU, versions=CPU.versions | {"torch": "2.11.0+cu130", "torchvision": "0.26.0+cu130", "triton": "3.6.0"}, cuda_build="13.0",
    gpus=("NVIDIA H200, 140 GiB",), capabilities=(90,), built_for=(75, 80, 90, 100), gpu_used_gib=(1.0,), gpu_gib=(140.0,),
    driver="580.95.05", dali_gpu=("h264", "hevc", "av1", "vp9", "jpeg"),
    kernels=(("attention, stage 2", "cuDNN", "the fastest of four"),),
)  # fmt: skip


def with_versions(machine, **versions):
    named = {name.replace("_", "-"): version for name, version in versions.items()}
    return replace(machine, versions=machine.versions | named)


@pytest.mark.parametrize("machine", [CPU, H200])
def test_machines_that_fit(machine):
    assert problems(machine) == []


@pytest.mark.parametrize("torch", PAIRS)
def test_each_tested_pair_fits(torch):
    torchvision, triton = PAIRS[torch]
    assert problems(with_versions(CPU, torch=f"{torch}.0", torchvision=f"{torchvision}.0", triton=triton)) == []


@pytest.mark.parametrize(
    ("machine", "what", "fix"),
    [
        (
            with_versions(H200, torchvision="0.28.0"),
            "torchvision 0.28.0 does not fit torch 2.11.0",
            "torchvision==0.26",
        ),
        (with_versions(H200, triton="3.7.1"), "triton 3.7.1 does not fit torch 2.11.0", "triton==3.6.0"),
        (replace(H200, driver="550.54.15"), "needs driver 580 or newer; this machine has 550", "dali-cuda120==2.4.0"),
        (replace(H200, driver="470.1"), "needs driver 580 or newer; this machine has 470.1", "update the driver"),
        (replace(H200, gpus=()), "cannot use the driver 580.95.05", "CUDA_VISIBLE_DEVICES"),
        (replace(H200, capabilities=(60,)), "sm_60) is too old for torch 2.11.0+cu130", "newer GPU"),
        (replace(H200, capabilities=(75,)), "sm_75) has no bfloat16", "--precision fp16"),
        (replace(H200, gpu_used_gib=(70.0,)), "70 of 140 GiB of GPU 0 are in use", "nvidia-smi"),
        (replace(CPU, driver="580.95.05"), "is a CPU build", "torch==2.13.0"),
        (with_versions(CPU, nvidia_dali="1.0"), "placeholder", "pip uninstall nvidia-dali"),
        (with_versions(CPU, nvidia_dali_cuda120="2.4.0"), "overwrite each other", "pip uninstall nvidia-dali-cuda120"),
        (with_versions(CPU, opencv_python_headless="4.12.0.88"), "overwrite each other", "headless==4.11.0.86"),
        (with_versions(CPU, setuptools="84.0.0"), "distutils", "setuptools<82"),
        (with_versions(CPU, numpy="1.26.4"), "numpy 1.26.4 is too old", "numpy>=2"),
        (replace(with_versions(CPU, torch="2.12.0+cpu"), driver="580.95.05"), "is a CPU build", "torch==2.12.0"),
        (replace(with_versions(H200, torch="2.12.0"), gpus=()), "cannot use the driver", "CUDA_VISIBLE_DEVICES"),
        (replace(CPU, broken={"torchvision": "no libfoo"}), "torchvision does not import: no libfoo", "make venv"),
    ],
)
def test_problems_are_named_with_their_fix(machine, what, fix):
    assert any(what in problem.what and fix in problem.fix for problem in problems(machine)), problems(machine)


def test_two_equal_builds_of_opencv_are_no_problem():
    """FFCV brings the other one, with the same files."""
    assert problems(with_versions(CPU, opencv_python_headless="4.11.0.86")) == []


def test_setuptools_matters_on_312_with_ffcv_only():
    assert problems(replace(with_versions(CPU, setuptools="84.0.0"), python="3.11.7")) == []


def test_fast_paths_follow_the_machine():
    there = {path.task: path for path in fast_paths(H200)}
    assert there["video decoding"].backend == "NVDEC through DALI" and "h264" in there["video decoding"].reason
    assert there["JPEG frames"].backend == "nvJPEG through DALI"
    assert (there["attention, stage 2"].backend, there["attention, stage 2"].reason) == ("cuDNN", "the fastest of four")
    here = {path.task: path for path in fast_paths(CPU)}
    assert here["attention, stage 2"].backend == "PyTorch's own choice" and "cpu" in here["attention, stage 2"].reason
    assert here["video decoding"].backend.startswith("PyAV") and "no GPU" in here["video decoding"].reason
    broken = {path.task: path for path in fast_paths(replace(H200, dali_gpu=()))}
    assert broken["video decoding"].backend.startswith("PyAV") and "on this GPU" in broken["video decoding"].reason


def test_the_overview_names_every_part():
    text = str(overview(H200))
    assert "torch 2.11.0+cu130, built for CUDA 13.0" in text and "H200" in text and "ffcv 1.0.2" in text


def test_dali_on_the_cpu_decodes_the_codecs_of_the_tests():
    """The codecs that the CPU tests of the DALI graph rely on."""
    assert {"vp8", "vp9", "mjpeg", "jpeg"} <= set(dali_codecs("cpu"))


@pytest.mark.cuda
def test_dali_on_the_gpu_decodes_h264_and_jpeg():
    assert {"h264", "jpeg"} <= set(dali_codecs("gpu"))


def test_this_machine_as_json(capsys):
    code = doctor.main(["--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == (1 if report["problems"] else 0)
    assert "torch" in report["machine"]["versions"] and "jpeg" in report["machine"]["dali_cpu"]


def test_a_torch_that_does_not_import_is_a_problem(monkeypatch, capsys):
    """For example because a CUDA library is missing; the rest of the machine is reported."""
    monkeypatch.setattr(doctor, "_dali", lambda device: ("jpeg",))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert doctor.main(["--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert any("torch does not import" in problem["what"] for problem in report["problems"])
    assert report["machine"]["dali_cpu"] == ["jpeg"] and report["machine"]["av_codecs"]
    assert "does not import" in dict(overview(Machine(**report["machine"])))["torch"]


def test_a_machine_without_dali_is_reported(monkeypatch, capsys):
    """On some of them no package of NVIDIA is installed."""
    installed = metadata.version

    def version(name):
        if name.startswith("nvidia-dali"):
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setitem(sys.modules, "nvidia", None)
    monkeypatch.delitem(sys.modules, "nvidia.dali", raising=False)
    assert doctor.main(["--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert "DALI is not installed" in [problem["what"] for problem in report["problems"]]
    assert report["machine"]["dali_cpu"] == []


def test_a_driver_that_does_not_answer_is_not_waited_for(monkeypatch):
    def run(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(doctor.subprocess, "run", run)
    monkeypatch.setattr(doctor, "_torch", dict)
    machine = doctor.probe()
    assert machine.driver is None and machine.dali_cpu == ()


@pytest.mark.parametrize(
    ("machine", "code", "word"), [(CPU, 0, "No problems"), (with_versions(CPU, numpy="1.26"), 1, "Problems and fixes")]
)
def test_exit_code_and_tables(machine, code, word, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "probe", lambda: machine)
    assert doctor.main([]) == code
    assert word in capsys.readouterr().out


KERNEL = Kernel(name="k", registers=40, spill_bytes=0, shared_bytes=0, bytes_moved=8, launches=3, backward=False)
STEP = StepReport(
    phase="mae", arch=90, batch=128, depth=12, torch="2.11", triton="3.6", kernels=(KERNEL,), calls=(), graphs=2,
    saved_bytes=0, compiled=1, found=0, seconds=1.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("outcome", "code", "word"),
    [
        (STEP, 0, "compile"),
        (replace(STEP, kernels=(replace(KERNEL, name="greedy", spill_bytes=64),)), 1, "greedy spills 64"),
        (replace(STEP, graphs=4), 1, "4 graphs"),
        (CompileError("mae: no lowering for aten::odd"), 1, "no lowering for aten::odd"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_compile_gpu_says_what_does_not_compile(outcome, code, word, as_json, monkeypatch, capsys):
    def check_steps(phases, settings, on_kernel):
        on_kernel(phases[1], 0)
        on_kernel(phases[1], 7)
        return [outcome] * len(phases)

    monkeypatch.setattr("ppma.doctor.compile.check_steps", check_steps)
    assert doctor.main(["--compile-gpu", *(["--json"] if as_json else [])]) == code
    said, progress = capsys.readouterr()
    assert progress.count("stage 2") == 1 and "2 of 3" in progress
    assert word in said or (as_json and not code)
    assert "--compile off" in said or as_json or not code
    if as_json:
        assert bool(json.loads(said)["problems"]) == bool(code)
