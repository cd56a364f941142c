"""Run commands on a disk that is full at some point of their work: `test_full_disk` starts this in a mount namespace of its own.

    python full_disk.py WORLD SHARES COMMAND ...     WORLD has what `test_full_disk.world` puts there

A command runs once with room enough, which shows how much it needs. Then it runs with each share of that room, and again with
all of it. WORLD/results.jsonl gets a line for each share.
"""

import hashlib
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import privacy_stand_ins
import tiny

ROOM_BYTES = 256 << 20
SAME_BYTES = (".mp4", ".mkv", ".csv", ".beton", ".npy", ".npz", ".safetensors", ".jpg")
"""Suffixes of files without times and paths."""
SPEC = """
name = "tiny"
title = "Tiny"
seeds = [0]
datasets = ["transfer"]
compare = "random"
flags = "--batch 8 --optim.epochs 1 --loader.workers 1 --pictures-every 0"
draw = {learned = ["wave", "squat"], new = ["clap", "bow"], learned_clips = 4, probe_clips = 4, test_clips = 3}
[pretrain.random]
title = "Random weights"
[protocol.probe]
title = "Linear probe"
recipe = "demo --stage probe"
"""
COMMANDS = {
    "index": "index {world}/clips --out {out}.csv --workers 1",
    "resize": "index --dataset ucf101 --root {folder}/clips --resize 32 --workers 1 --out {folder} --data {out}.toml",
    "pack": "pack made --name packed --data {world}/data.toml --out {out}.beton --workers 1",
    "synthesize": "synthesize --classes walk wave --clips 2 --size 64 --seconds 1 --masks --out {out} --workers 1",
    "remove-humans": f"remove-humans {{world}}/people --out {{out}} {' '.join(privacy_stand_ins.FLAGS)}",
    "audit": "audit {world}/removed --out {out} --frames 0 --workers 1",
    "plant": "plant --clips 2 --size 128 --frames 3 --long-frames 3 --out {out} --workers 1",
    "predict": "predict {world}/clip.mp4 --checkpoint {run} --device cpu --out {out}.json",
    "features": "features --checkpoint {run} --data {world}/data.toml --device cpu --dataset made --out {out}.npz",
    "export": "export {run} {out} --no-onnx",
    "train": f"train finetune --dataset made {' '.join(tiny.FLAGS)} --data {{world}}/data.toml --batch 4 --optim.epochs 3 "
    "--checkpoint-every 2 --run-dir {out} --resume",
    "study": "study {world}/spec.toml --out {out} --device cpu --workers 1",
}


def arguments(name: str, world: Path, out: Path) -> list[str]:
    """Return the arguments of a command; `out` is a new path on the small disk."""
    return COMMANDS[name].format(world=world, run=world / "runs/finetune", out=out, folder=out.parent).split()


def stand_in() -> None:
    """Put detectors of what is red in the place of those with weights."""
    from ppma.data import pack
    from ppma.privacy.detectors.auditors import AUDITORS
    from ppma.privacy.plant import command as plant_command
    from ppma.privacy.plant import trial as plant_trial
    from ppma.privacy.removal.clip import Settings
    from ppma.privacy.removal.plugins import PLUGINS

    PLUGINS.update(privacy_stand_ins.PLUGINS)
    for name, kind in AUDITORS.items():
        red_finder = {"make": lambda *_: privacy_stand_ins.RedFinder(), "threshold": 0.5}
        AUDITORS[name] = replace(kind, weights="", user_models=(), **red_finder)
    pack._estimate = lambda *_: None  # it stops at once where too little is free; here the disk fills up meanwhile
    red = partial(Settings, detectors=("red", "red-face"), segmenter="nothing")
    for module in (plant_command, plant_trial):
        module.Settings = red  # type: ignore[attr-defined]


@contextmanager
def small_disk(mount: Path) -> Iterator[None]:
    """Mount an empty disk."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "tmpfs", mount], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


def fill(mount: Path, free_bytes: int) -> Path:
    """Write a file that leaves so much room on the disk; return it."""
    path = mount / ".fill"
    with path.open("wb") as file:
        size = shutil.disk_usage(mount).free - free_bytes
        for begin in range(0, size, 1 << 20):
            file.write(b"\0" * min(1 << 20, size - begin))
    return path


def content(folder: Path) -> dict[str, str]:
    """Return the hash of every file, "" for one that has times and paths in it."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".tfevents." not in path.name]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.suffix in SAME_BYTES
        else ""
        for path in files
    }


def attempt(
    name: str, world: Path, mount: Path, share: float | None, need: int = 0
) -> tuple[list[int], dict[str, str], int]:
    """Run a command on a new disk; return its exit codes, what it wrote and the bytes of that.

    Args:
        name: The command.
        world: Folder of its inputs.
        mount: Folder for the disk.
        share: Share of `need` that is free for the first run; None for one run with room enough.
        need: Bytes.
    """
    from dataset_trees import TREES

    from ppma.cli import main as ppma  # late: workers import this module too

    argv = arguments(name, world, mount / "out")
    with small_disk(mount):
        if name == "resize":
            TREES["ucf101"](mount / "clips", shutil.copy(world / "clip.mp4", mount))
        before = shutil.disk_usage(mount).used
        codes = []
        if share is not None:
            filled = fill(mount, int(share * need))
            codes.append(ppma(argv))
            filled.unlink()
        codes.append(ppma(argv))
        return codes, content(mount), shutil.disk_usage(mount).used - before


def main(world: Path, shares: list[float], commands: list[str]) -> None:
    """Try every command with every share; write WORLD/results.jsonl."""
    from ppma.cli import main as ppma

    logging.disable()
    stand_in()
    mount = world / "disk"
    mount.mkdir()
    if "audit" in commands:
        assert ppma(arguments("remove-humans", world, world / "removed")) == 0
    with (world / "results.jsonl").open("w") as results:
        for name in commands:
            codes, expected, need = attempt(name, world, mount, None)
            assert codes == [0], (name, codes)
            for share in shares:
                codes, found, _ = attempt(name, world, mount, share, need)
                names = expected.keys() | found.keys()
                different = sorted(key for key in names if expected.get(key) != found.get(key))
                row = {"command": name, "share": share, "need": need, "codes": codes, "different": different}
                results.write(json.dumps(row) + "\n")
                results.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), [float(share) for share in sys.argv[2].split(",")], sys.argv[3:])
