"""Checkpoints are written while the training continues: exact, by steps and by time, agreed by all ranks, errors included."""

import contextlib
import errno
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from processes import on_ranks
from safetensors.torch import load_file

from ppma.config.model import MAEConfig, ViTConfig
from ppma.training import checkpoint
from ppma.training.compute import choose
from ppma.training.distributed import StopFlag, choose_device
from ppma.training.monitor import Monitor
from ppma.training.tasks import MaeTask
from ppma.training.trainer import Trainer
from ppma.training.watchdog import Watchdog


def made_trainer(folder, **changes):
    """A tiny trainer of 20 steps on made clips."""
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny.shrink("mae_nohuman", log_every=4, pictures_every=0, keep_checkpoints=99, run_dir=folder)
    config = replace(config, **changes)
    task, ranks = MaeTask(config, [tiny.source("made")]), replace(tiny.ALONE, device=choose_device(config.device))
    task.stream = lambda ranks, start: tiny.MadeStream(task, ranks, start)
    return Trainer(config, task, ranks, choose(config.precision, ranks.device))


def run(trainer):
    """Train to the end; return the weights after each step."""
    taken, weights = trainer.train_step, {}

    def train_step(batch):
        norm = taken(batch)
        weights[trainer.step] = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        return norm

    trainer.train_step = train_step
    folder = trainer.config.run_dir
    with contextlib.closing(StopFlag(trainer.ranks)) as stop, Monitor(folder, writes=True, total_steps=20) as monitor:
        trainer.run(monitor, stop, Watchdog(600, lambda code: None))
    return weights


def saved(trainer):
    """Return the weights of all checkpoints by step."""
    folders = trainer.checkpoints.glob("step_*")
    return {int(folder.name[5:]): load_file(folder / "model.safetensors") for folder in sorted(folders)}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_training_continues_while_a_checkpoint_of_an_earlier_step_is_written(tmp_path, monkeypatch):
    """The write of step 4 waits until step 6 was taken, and holds the weights of step 4."""
    trainer, write = made_trainer(tmp_path, checkpoint_every=4), checkpoint.save

    def slow(folder, *, step, **more):
        end = time.monotonic() + 60
        while trainer.step < min(step + 2, trainer.total_steps):
            assert time.monotonic() < end, "the training waits for the write"
            time.sleep(0.001)
        return write(folder, step=step, **more)

    monkeypatch.setattr(checkpoint, "save", slow)
    weights = run(trainer)
    checkpoints = saved(trainer)
    assert list(checkpoints) == [4, 8, 12, 16, 20]
    assert all(same(weights[step], found) for step, found in checkpoints.items())


def test_checkpoints_fall_due_by_time_and_change_no_weight(tmp_path, monkeypatch):
    """One second per step, and one checkpoint per 5 s next to those of every 12th step."""
    weights = {}
    for minutes in (5 / 60, 1e9):
        clock = [0.0]
        monkeypatch.setattr("ppma.training.trainer.time.monotonic", lambda: clock[0])  # noqa: B023
        trainer = made_trainer(tmp_path / str(minutes), checkpoint_every=12, checkpoint_minutes=minutes)
        monkeypatch.setattr(trainer._writer, "start", lambda write: write())
        taken = trainer.train_step

        def train_step(batch, taken=taken, clock=clock):
            clock[0] += 1.0
            return taken(batch)

        trainer.train_step = train_step
        weights[minutes] = run(trainer)
        assert list(saved(trainer)) == ([12, 20] if minutes == 1e9 else [6, 12, 18, 20])
    assert all(same(weights[1e9][step], found) for step, found in weights[5 / 60].items())


def test_a_full_disk_ends_the_run_before_the_next_checkpoint_is_due(tmp_path, monkeypatch):
    trainer = made_trainer(tmp_path, checkpoint_every=4)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(checkpoint, "save", full)
    taken = trainer.train_step

    def train_step(batch):
        while trainer._writer.busy:
            time.sleep(0.001)
        return taken(batch)

    trainer.train_step = train_step
    with pytest.raises(OSError, match="no space"):
        run(trainer)
    assert trainer.step == 5


RANKS = """
    import errno, json, sys, time
    from dataclasses import replace
    from pathlib import Path
    import torch
    from safetensors.torch import load_file
    sys.path.insert(0, {tests!r})
    import tiny
    from ppma.training import checkpoint, parallel
    from ppma.training.compute import choose
    from ppma.training.distributed import StopFlag, session
    from ppma.training.monitor import Monitor
    from ppma.training.tasks import MaeTask
    from ppma.training.trainer import Trainer
    from ppma.training.watchdog import Watchdog

    def run(ranks, name, *, fails, **changes):
        config = tiny.shrink("mae_nohuman", log_every=20, pictures_every=0, keep_checkpoints=99, run_dir=Path({folder!r}) / name)
        config = replace(config, checkpoint_every=100, checkpoint_minutes=1e-9 if ranks.is_main else 1e9, **changes)
        config.run_dir.mkdir(parents=True, exist_ok=True)
        task = MaeTask(config, [tiny.source(s) for s in config.sources])
        task.stream = lambda ranks, start: tiny.MadeStream(task, ranks, start)
        made = Trainer(config, task, ranks, choose(config.precision, ranks.device))
        taken, weights = made.train_step, {{}}

        def train_step(batch):
            if fails and made.step == 10:
                def full(*_, **__):
                    raise OSError(errno.ENOSPC, "no space")
                checkpoint.save = full
            norm = taken(batch)
            weights[made.step] = {{n: parallel.full_tensor(t).clone() for n, t in made.model.state_dict().items()}}
            return norm

        made.train_step, stop, error = train_step, StopFlag(ranks), None
        with Monitor(config.run_dir, writes=ranks.is_main, total_steps=made.total_steps) as monitor:
            try:
                made.run(monitor, stop, Watchdog(600, lambda code: None))
            except OSError as caught:
                error = caught.errno
        stop.close()
        found = {{int(f.name[5:]): load_file(f / "model.safetensors") for f in made.checkpoints.glob("step_*")}}
        differ = sum(not torch.equal(found[step][n], weights[step][n]) for step in found for n in weights[step])
        return [sorted(found), differ, made.step, error]

    with session("cpu") as ranks:
        report = [run(ranks, name, fails=name == "sharded", shard=name == "sharded") for name in ("copied", "sharded")]
        print(json.dumps([report, ranks.nodes]))
"""


def test_all_ranks_save_when_rank_0_finds_that_it_is_time_and_all_end_when_it_cannot(tmp_path):
    """Only rank 0 has a short interval. Checkpoints hold the weights of their step, under DDP and under FSDP2, whose run is
    full after step 10."""
    code = RANKS.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path))
    mine, others = (json.loads(text) for text in on_ranks(2, code, tmp_path, seconds=300))
    assert mine == others and mine[1] == 1
    steps, differ, ended, error = mine[0][0]
    assert len(steps) > 1 and steps[-1] == ended == 20 and not differ and error is None  # at least one by time
    steps, differ, ended, error = mine[0][1]
    assert steps and steps[-1] <= 10 < ended < 20 and not differ and error == errno.ENOSPC


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_the_training_waits_for_the_copy_alone(tmp_path, device, figure):
    """ViT-B with its decoder and AdamW, in fp32. A synchronous save would wait for copy and write."""
    vit = ViTConfig(frames=tiny.FRAMES)
    loader = replace(tiny.shrink("mae_nohuman").loader, frames=tiny.FRAMES, size=vit.size)
    trainer = made_trainer(tmp_path, device=device, vit=vit, mae=MAEConfig(), loader=loader, precision="fp32")
    trainer.save()  # makes the optimizer's state, and allocates the memory of the copy
    waits, wholes = [], []
    for _ in range(3):
        trainer._writer.wait()
        trainer.step += 1
        began = time.perf_counter()
        trainer.save()
        waits.append(time.perf_counter() - began)
        trainer._writer.wait()
        wholes.append(time.perf_counter() - began)
    size = sum(file.stat().st_size for file in trainer.checkpoints.glob("latest/*"))
    wait, whole = min(waits), min(wholes)
    figure("R3", f"{device}, {size / 1e9:.2f} GB: training waits {wait:.2f} s of the {whole:.2f} s of a save")
    assert wait < (whole / 4 if device == "cpu" else 0.3)
