"""Checkpoints are written while the training continues: exact, by steps and by time, agreed by all ranks, errors included."""

import errno
import time
from dataclasses import replace
from functools import partial

import pytest
import tiny
from processes import on_ranks
from safetensors.torch import load_file
from waiting import wait_until

from ppma.config.model import MAEConfig, ViTConfig
from ppma.training import checkpoint, parallel
from ppma.training.distributed import choose_device

trainer_of = partial(tiny.trainer, "mae_nohuman", keep_checkpoints=99)


def run(trainer, weights=None):
    """Train to the end; return the weights after each step."""
    taken, weights = trainer.train_step, {} if weights is None else weights

    def train_step(batch):
        norm = taken(batch)
        state = trainer.model.state_dict()
        weights[trainer.step] = {name: parallel.full_tensor(value).clone() for name, value in state.items()}
        return norm

    trainer.train_step = train_step
    tiny.loop(trainer)
    return weights


def saved(trainer):
    """Return the weights of all checkpoints by step."""
    folders = trainer.checkpoints.glob("step_*")
    return {int(folder.name[5:]): load_file(folder / "model.safetensors") for folder in sorted(folders)}


def test_the_training_continues_while_a_checkpoint_of_an_earlier_step_is_written(tmp_path, monkeypatch):
    """The write of step 4 waits until step 6 was taken, and holds the weights of step 4."""
    trainer, write = trainer_of(tmp_path, checkpoint_every=4), checkpoint.save

    def slow(folder, *, step, **more):
        wait_until(lambda: trainer.step >= min(step + 2, trainer.total_steps))
        return write(folder, step=step, **more)

    monkeypatch.setattr(checkpoint, "save", slow)
    weights = run(trainer)
    checkpoints = saved(trainer)
    assert list(checkpoints) == [4, 8, 12, 16, 20]
    assert all(tiny.equal(weights[step], found) for step, found in checkpoints.items())


def test_checkpoints_fall_due_by_time_and_change_no_weight(tmp_path, monkeypatch):
    """One second per step, and one checkpoint per 5 s next to those of every 12th step."""
    weights = {}
    for minutes in (5 / 60, 1e9):
        clock = [0.0]
        monkeypatch.setattr("ppma.training.trainer.time.monotonic", lambda: clock[0])  # noqa: B023
        trainer = trainer_of(tmp_path / str(minutes), checkpoint_every=12, checkpoint_minutes=minutes)
        monkeypatch.setattr(trainer._writer, "start", lambda write: write())
        taken = trainer.train_step

        def train_step(batch, taken=taken, clock=clock):
            clock[0] += 1.0
            return taken(batch)

        trainer.train_step = train_step
        weights[minutes] = run(trainer)
        assert list(saved(trainer)) == ([12, 20] if minutes == 1e9 else [6, 12, 18, 20])
    assert all(tiny.equal(weights[1e9][step], found) for step, found in weights[5 / 60].items())


def full(*_, **__):
    raise OSError(errno.ENOSPC, "no space")


def test_a_full_disk_ends_the_run_before_the_next_checkpoint_is_due(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, checkpoint_every=4)
    monkeypatch.setattr(checkpoint, "save", full)
    taken = trainer.train_step

    def train_step(batch):
        wait_until(lambda: not trainer._writer.busy)
        return taken(batch)

    trainer.train_step = train_step
    with pytest.raises(OSError, match="no space"):
        run(trainer)
    assert trainer.step == 5


def save_by_the_time_of_rank_0(ranks, folder):
    """Train twice, under DDP, and under FSDP2 where the disk is full after step 10."""
    report, minutes = [], 1e-9 if ranks.is_main else 1e9
    for name in ("copied", "sharded"):
        more = {"shard": name == "sharded", "checkpoint_every": 100, "checkpoint_minutes": minutes}
        trainer, weights, error = trainer_of(folder / name, ranks, **more), {}, None
        taken = trainer.train_step

        def train_step(batch, trainer=trainer, taken=taken):
            if trainer.config.shard and trainer.step >= 10:
                checkpoint.save = full
                wait_until(lambda: not trainer._writer.busy)
            return taken(batch)

        trainer.train_step = train_step
        try:
            run(trainer, weights)
        except OSError as caught:
            error = caught.errno
        found = saved(trainer)
        report.append([list(found), all(tiny.equal(found[n], weights[n]) for n in found), trainer.step, error])
    return [report, ranks.nodes]


def test_all_ranks_save_when_rank_0_finds_that_it_is_time_and_all_end_when_it_cannot(tmp_path):
    """Only rank 0 has a short interval. Checkpoints hold the weights of their step, under DDP and under FSDP2."""
    mine, others = on_ranks(2, save_by_the_time_of_rank_0, tmp_path, tmp_path)
    assert mine == others and mine[1] == 1
    steps, equal, ended, error = mine[0][0]
    assert len(steps) > 1 and steps[-1] == ended == 20 and equal and error is None  # at least one by time
    steps, equal, ended, error = mine[0][1]
    assert steps and steps[-1] <= 10 < ended < 20 and equal and error == errno.ENOSPC


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_the_training_waits_for_the_copy_alone(tmp_path, device, figure):
    """ViT-B with its decoder and AdamW, in fp32. A synchronous save would wait for copy and write."""
    vit = ViTConfig(frames=tiny.FRAMES)
    loader = replace(tiny.shrink("mae_nohuman").loader, frames=tiny.FRAMES, size=vit.size)
    trainer = trainer_of(
        tmp_path, replace(tiny.ALONE, device=choose_device(device)), device=device, vit=vit, mae=MAEConfig(),
        loader=loader, precision="fp32",
    )  # fmt: skip
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
