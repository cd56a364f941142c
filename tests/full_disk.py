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
from functools import partial
from pathlib import Path

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


def commands(world: Path, out: Path) -> dict[str, list[str]]:
    """Return the arguments of each command; `out` is a new path on the small disk."""
    import privacy_stand_ins
    import tiny

    clips, run, data = world / "clips", world / "runs/finetune", ["--data", world / "data.toml"]
    written: dict[str, list[object]] = {
        "index": ["index", clips, "--out", f"{out}.csv", "--workers", "1"],
        "resize": [
            *("index", "--dataset", "ucf101", "--root", out.parent / "clips", "--resize", "32", "--workers", "1"),
            *("--out", out.parent, "--data", f"{out}.toml"),
        ],
        "pack": ["pack", "made", "--name", "packed", *data, "--out", f"{out}.beton", "--workers", "1"],
        "synthesize": [
            *("synthesize", "--classes", "walk", "wave", "--clips", "2", "--size", "64", "--seconds", "1", "--masks"),
            *("--out", out, "--workers", "1"),
        ],
        "remove-humans": ["remove-humans", world / "people", "--out", out, *privacy_stand_ins.FLAGS],
        "audit": ["audit", world / "removed", "--out", out, "--frames", "0", "--workers", "1"],
        "plant": ["plant", "--clips", "2", "--size", "128", "--frames", "3", "--long-frames", "3", "--out", out, "--workers", "1"],
        "predict": ["predict", world / "clip.mp4", "--checkpoint", run, "--device", "cpu", "--out", f"{out}.json"],
        "features": ["features", "--checkpoint", run, *data, "--device", "cpu", "--dataset", "made", "--out", f"{out}.npz"],
        "export": ["export", run, out, "--no-onnx"],
        "train": [
            *("train", "finetune", "--dataset", "made", *tiny.FLAGS, *data, "--batch", "4", "--optim.epochs", "3"),
            *("--checkpoint-every", "2", "--run-dir", out, "--resume"),
        ],
        "study": ["study", world / "spec.toml", "--out", out, "--device", "cpu", "--workers", "1"],
    }  # fmt: skip
    return {name: [str(word) for word in argv] for name, argv in written.items()}


def stand_in() -> None:
    """Put detectors of what is red in the place of those with weights."""
    import privacy_stand_ins

    from ppma.data import pack
    from ppma.privacy.detectors.auditors import AUDITORS, AuditorKind
    from ppma.privacy.plant import command as plant_command
    from ppma.privacy.plant import trial as plant_trial
    from ppma.privacy.removal.clip import Settings
    from ppma.privacy.removal.plugins import PLUGINS, Plugin

    PLUGINS["red"] = Plugin(kind="detector", make=privacy_stand_ins.RedFinder, license="none", finds="person")
    PLUGINS["red-face"] = Plugin(kind="detector", make=privacy_stand_ins.RedFinder, license="none", finds="face")
    PLUGINS["nothing"] = Plugin(kind="segmenter", make=privacy_stand_ins.Nothing, license="none")
    for name, kind in list(AUDITORS.items()):
        AUDITORS[name] = AuditorKind(
            make=lambda *_: privacy_stand_ins.RedFinder(), finds=kind.finds, license="none", threshold=0.5
        )
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

    argv = commands(world, mount / "out")[name]
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


def main(world: Path, shares: list[float], names: list[str]) -> None:
    """Try every command with every share; write WORLD/results.jsonl."""
    from ppma.cli import main as ppma

    logging.disable()
    stand_in()
    mount = world / "disk"
    mount.mkdir()
    if "audit" in names:
        assert ppma([*commands(world, world / "removed")["remove-humans"]]) == 0
    with (world / "results.jsonl").open("w") as results:
        for name in names:
            codes, expected, need = attempt(name, world, mount, None)
            assert codes == [0], (name, codes)
            for share in shares:
                codes, found, _ = attempt(name, world, mount, share, need)
                different = sorted(
                    f"{key}" for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)
                )
                row = {"command": name, "share": share, "need": need, "codes": codes, "different": different}
                results.write(json.dumps(row) + "\n")
                results.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), [float(share) for share in sys.argv[2].split(",")], sys.argv[3:])
