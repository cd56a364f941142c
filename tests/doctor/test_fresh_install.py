"""Installation: the pins, the container recipes, and a wheel installed by their steps into a new environment without the sources."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from ppma.common import engines
from ppma.config.errors import InputError
from ppma.config.loader import LoaderConfig
from ppma.inference.export import write_onnx
from ppma.loaders.sources import remote
from ppma.loaders.stream import choose_implementation
from ppma.privacy.detectors.runtime import Network

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]

FIVE_LINES = """
import ppma
model = ppma.load_model({checkpoint!r}, device="cpu")
features = model.features({video!r})
print(features.values.shape)
assert features.values.isfinite().all()
"""


def name_of(requirement: str) -> str:
    return re.sub("[-_.]+", "-", Requirement(requirement).name).lower()


def docker_steps() -> list[str]:
    """The commands of the Dockerfile's RUN lines."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    runs = re.findall(r"^RUN (.*)$", text, flags=re.MULTILINE)
    return [" ".join(command.split()) for run in runs for command in run.split("&&")]


def apptainer_sections() -> dict[str, list[str]]:
    """The lines of each section of apptainer.def; "" is its header."""
    sections: dict[str, list[str]] = {"": []}
    name = ""
    for line in (ROOT / "apptainer.def").read_text().splitlines():
        if line.startswith("%"):
            name = line.removeprefix("%").strip()
            assert name not in sections, f"two sections %{name}"
            sections[name] = []
        elif line.strip() and not line.startswith("#"):
            sections[name].append(line.strip())
    return sections


def test_uv_and_pip_get_the_same_releases():
    """`uv sync` reads pins from pyproject.toml only, pip from constraints.txt."""
    assert PROJECT["tool"]["uv"]["constraint-dependencies"] == PINS
    assert PROJECT["tool"]["uv"]["python-downloads"] == "never"
    assert all(re.fullmatch(r"==[^*]+", str(Requirement(pin).specifier)) for pin in PINS)


def test_each_dependency_has_a_pin_in_its_range_and_a_reason():
    reasons = (ROOT / "CONTRIBUTING.md").read_text().partition("## Dependencies")[2]
    pins = {name_of(pin): Requirement(pin) for pin in PINS}
    extras = PROJECT["project"]["optional-dependencies"]
    for wanted in [*PROJECT["project"]["dependencies"], *(one for extra in extras.values() for one in extra)]:
        (version,) = pins[name_of(wanted)].specifier
        assert Requirement(wanted).specifier.contains(version.version), (wanted, version)
        assert re.search(rf"[| ]{re.escape(Requirement(wanted).name)}[,. |]", reasons), wanted
    assert all(f"\n| {extra} |" in reasons for extra in extras)


def test_the_dockerfile_is_clean():
    lint = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert lint.returncode == 0, lint.stdout + lint.stderr


def test_apptainer_takes_the_steps_of_the_dockerfile():
    sections = apptainer_sections()
    assert set(sections) == {"", "files", "post", "environment", "runscript", "test"}
    base = re.search(r"^FROM (.*)$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert base and sections[""] == ["Bootstrap: docker", f"From: {base[1]}"]
    assert sections["post"] == [step for step in docker_steps() if not step.startswith("useradd")]


@pytest.mark.parametrize(
    ("extra", "package", "use"),
    [
        ("ffcv", "ffcv", lambda: choose_implementation(LoaderConfig(implementation="ffcv"), torch.device("cpu"))),
        ("ray", "ray", lambda: engines.check("ray")),
        ("export", "onnxruntime", lambda: write_onnx(torch.nn.Identity(), None, Path("model.onnx"))),
        ("privacy", "onnxruntime", lambda: Network(b"")),
        ("remote", "aiohttp", lambda: remote._filesystem.__wrapped__("http")),
    ],
)
def test_a_missing_extra_is_named_in_one_line(monkeypatch, extra, package, use):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError) as refused:
        use()
    wanted = re.search(r"pip install (.*)", str(refused.value))
    assert wanted and package in wanted[1] and "ppma" not in wanted[1], "on PyPI, ppma is another project"
    assert package in " ".join(PROJECT["project"]["optional-dependencies"][extra]) and "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.promise("R17")
def test_a_fresh_install_passes_doctor(tmp_path, figure, tiny_runs, clip_tree):
    """By the steps of the containers, except apt. Dependencies are those of this environment: nothing is downloaded."""
    clone, opt = tmp_path / "clone", tmp_path / "opt"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(opt / "ppma"), str(clone)]
    subprocess.run(build, check=True, capture_output=True)
    (opt / "ppma" / "constraints.txt").write_bytes((ROOT / "constraints.txt").read_bytes())
    steps = [step for step in apptainer_sections()["post"] if not step.startswith(("apt-get", "rm"))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = "\n".join([f'python3() {{ {sys.executable} "$@"; }}', *steps]).replace("/opt/", f"{opt}/")
    without_registry = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1"}
    subprocess.run(["bash", "-euc", script], check=True, env=environment | without_registry)
    site = next((opt / "venv" / "lib").glob("python*/site-packages"))
    # a plain line: the path, and not what its own .pth files add, such as an editable ppma
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def call(*command: str) -> subprocess.CompletedProcess[str]:
        program = [str(opt / "venv" / "bin" / command[0]), *command[1:]]
        return subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    for needed in map(Requirement, metadata.requires("ppma") or ()):
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            assert needed.specifier.contains(metadata.version(needed.name), prereleases=True), needed
    where = call("python", "-c", "import ppma; print(ppma.__file__)").stdout.strip()
    assert Path(where).is_relative_to(opt)
    doctor = call("ppma", "doctor", "--json")
    assert doctor.returncode == 0, doctor.stdout[-2000:] + doctor.stderr
    assert not json.loads(doctor.stdout)["problems"]
    for command in ("demo", "train", "index", "audit"):  # with the data files that each reads
        assert call("ppma", command, "--help").returncode == 0
    assert call("ppma", "demo", "--dry-run").returncode == 0
    video = next(path for path in sorted(clip_tree.rglob("*")) if path.is_file())
    names = {"checkpoint": str(tiny_runs / "runs/finetune"), "video": str(video)}
    features = call("python", "-c", FIVE_LINES.format(**names))
    assert features.returncode == 0, features.stderr
    figure(
        "R17", "doctor finds no problem in a new environment with the wheel, and five lines give features of a video"
    )
