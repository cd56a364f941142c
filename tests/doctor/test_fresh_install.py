"""A fresh install passes `ppma doctor`: a wheel of a clone, installed by pip into a new environment without the sources."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.promise("R17")
def test_a_fresh_install_passes_doctor(tmp_path, figure):
    """Its dependencies are those of this environment, which are the ones that it asks for; nothing is downloaded."""
    clone, new = tmp_path / "clone", tmp_path / "venv"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(clone)]
    subprocess.run(build, check=True, capture_output=True)
    venv.create(new, with_pip=True)
    site = next((new / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(
        sysconfig.get_path("purelib") + "\n"
    )  # a plain line: no editable install of ppma
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def call(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(new / "bin" / command[0]), *command[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    (wheel,) = tmp_path.glob("*.whl")
    installed = call("pip", "install", "--no-index", "--ignore-installed", "--no-deps", str(wheel))
    assert installed.returncode == 0, installed.stderr
    for needed in map(Requirement, metadata.requires("ppma") or ()):
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            assert needed.specifier.contains(metadata.version(needed.name), prereleases=True), needed
    where = call("python", "-c", "import ppma; print(ppma.__file__)").stdout.strip()
    assert Path(where).is_relative_to(new)
    doctor = call("ppma", "doctor", "--json")
    assert doctor.returncode == 0, doctor.stdout[-2000:] + doctor.stderr
    assert not json.loads(doctor.stdout)["problems"]
    for command in ("demo", "train", "index", "audit"):  # with the data files that each reads
        assert call("ppma", command, "--help").returncode == 0
    assert call("ppma", "demo", "--dry-run").returncode == 0
    figure("R17", "doctor finds no problem in a new environment with the wheel")
