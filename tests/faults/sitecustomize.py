"""Faults inside the ranks of a run: on PYTHONPATH, Python imports this file at the start of every process.

    $PPMA_FAULTS/{nan.json, stale-RANK}  ->  patches when a process imports the trainer, which only ranks do

nan.json       {step: rank} whose loss is NaN in that step, each time the step is taken
stale-RANK     name of a checkpoint that the next start of that rank does not see in listings, as a file system's cache may
$PPMA_FAULTS_SKIP=1 skips the steps of nan.json instead: the run to compare with.
"""

import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
from pathlib import Path

STALE_SECONDS = 60.0
"""How long an NFS client may show an old listing (acdirmax)."""


class Patch(importlib.abc.MetaPathFinder):
    """Patch the trainer as soon as it is imported."""

    def find_spec(self, name, path=None, target=None):
        if name != "ppma.training.trainer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            patch_steps(module.Trainer)
            hide_checkpoint(module.distributed._environment()[0])

        spec.loader.exec_module = exec_module
        return spec


def patch_steps(trainer):
    import torch

    bad = {int(step): rank for step, rank in json.loads((FOLDER / "nan.json").read_text()).items()}
    train_step = trainer.train_step

    def patched(self, batch):
        time.sleep(float(os.environ["PPMA_FAULTS_PACE"]))
        if self.step not in bad:
            return train_step(self, batch)
        if "PPMA_FAULTS_SKIP" in os.environ:
            self.step += 1
            return torch.zeros(())
        module = self._module
        poison = float("nan") if bad[self.step] == self.ranks.rank else 1.0
        self._module = lambda *inputs: module(*inputs) * poison
        try:
            return train_step(self, batch)
        finally:
            self._module = module

    trainer.train_step = patched


def hide_checkpoint(rank):
    file = FOLDER / f"stale-{rank}"
    if not file.exists():
        return
    hidden, end = file.read_text(), time.monotonic() + STALE_SECONDS
    file.unlink()
    sys.stderr.write(f"rank {rank} does not see {hidden} in listings\n")
    listdir, scandir = os.listdir, os.scandir

    class Entries(list):
        def __enter__(self):
            return iter(self)

        def __exit__(self, *_):
            pass

        close = __exit__

    def visible(name):
        return name != hidden or time.monotonic() > end

    def stale_scandir(path="."):
        return scandir(path) if isinstance(path, int) else Entries(e for e in scandir(path) if visible(e.name))

    os.listdir = lambda path=".": [name for name in listdir(path) if visible(name)]
    os.scandir = stale_scandir


if "PPMA_FAULTS" in os.environ:
    FOLDER = Path(os.environ["PPMA_FAULTS"])
    sys.meta_path.insert(0, Patch())
