"""A full disk stops every command that writes data with exit code 75; the same command completes once there is room."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from full_disk import SPEC
from privacy_stand_ins import write_walk

SMALL = ("resize", "pack", "synthesize", "remove-humans", "export")
ALL = (*SMALL, "index", "audit", "plant", "predict", "features", "train", "study")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def world(tiny_runs, clip_tree, tmp_path):
    """What the commands read: clips, a catalog, finished runs, a clip to predict, clips with people, and a study's spec."""
    for path in (tiny_runs / "runs", *tiny_runs.glob("*.csv")):
        (tmp_path / path.name).symlink_to(path)
    shutil.copy(tiny_runs / "data.toml", tmp_path)  # `ppma pack` enters its store
    (tmp_path / "clips").symlink_to(clip_tree)
    shutil.copy(next(clip_tree.glob("*/*.mp4")), tmp_path / "clip.mp4")
    for name in ("to/one", "fro/two"):
        write_walk(tmp_path / "people" / f"{name}.mp4", length=12)
    (tmp_path / "spec.toml").write_text(SPEC)
    return tmp_path


def tries(world: Path, shares: str, names: tuple[str, ...]) -> list[dict]:
    """Run the commands in a mount namespace of their own; return the results."""
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", world / "clips" / ".."], check=False).returncode:
        pytest.skip("this system allows no private mounts")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [*unshare, sys.executable, ROOT / "tests/full_disk.py", world, shares, *names]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (world / "results.jsonl").read_text().splitlines()]


def check(rows: list[dict]) -> str:
    """Every try stops with 75 or has room enough, and ends with what a run with room writes; return the figure."""
    wrong = [row for row in rows if row["codes"][1] != 0 or row["codes"][0] not in (0, 75) or row["different"]]
    assert not wrong, "\n".join(map(str, wrong))
    stopped = [row for row in rows if row["codes"][0] == 75]
    assert {row["command"] for row in stopped} == {row["command"] for row in rows}
    return f"{len(stopped)} stops of {len(rows)} tries of {len({row['command'] for row in rows})} commands: 75, nothing lost"


@pytest.mark.promise("R4")
def test_a_full_disk_stops_a_command_that_then_completes(world, figure):
    figure("R4", check(tries(world, "0.5", SMALL)))


@pytest.mark.slow
@pytest.mark.promise("R4")
def test_every_command_stops_wherever_the_disk_is_full(world, figure):
    figure("R4", check(tries(world, "0,0.1,0.25,0.4,0.6,0.75,0.9,0.97", ALL)))
