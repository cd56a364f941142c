"""A loss that is not finite on one rank: all ranks skip that step, go back once when it happens again and again, then stop."""

import json
import shutil
from dataclasses import replace

import pytest
import tiny
import torch
from processes import on_ranks
from safetensors.torch import load_file

from ppma import phases
from ppma.models.classify import Classifier
from ppma.training import parallel, tasks
from ppma.training.run_folder import NAN_STOP, read_metrics, step_seconds
from ppma.training.trainer import MAX_SKIPPED, Trainer

BAD = (0, 5, 6)


def train_around_bad_steps(ranks, folder, poisoned, **how):
    """Return the weights of a run whose loss is bad on the last rank in three steps, or that leaves these out."""
    name = "mae_nohuman" if how["accumulate"] > 1 else "align_nohuman_synthetic"
    optim = replace(tiny.shrink(name).optim, epochs=2)
    made = tiny.trainer(name, folder, ranks, optim=optim, **how)
    step, module = made.train_step, made._module

    def skip(batch):
        if made.step not in BAD:
            return step(batch)
        made.step += 1
        return torch.zeros(())

    def spoil(*inputs):
        bad = ranks.rank == ranks.world_size - 1 and made.step in BAD
        return module(*inputs) * (float("nan" if made.step % 2 else "inf") if bad else 1.0)

    if poisoned:
        made._module = spoil
    else:
        made.train_step = skip
    tiny.loop(made)
    return {name: parallel.full_tensor(value) for name, value in made.model.state_dict().items()}


def count_differing(ranks, folder):
    differing = 0
    for name, accumulate, shard in (("copied", 1, False), ("sharded", 1, True), ("accumulated", 2, False)):
        bad, skipped = (
            train_around_bad_steps(ranks, folder / f"{name}{poisoned}", poisoned, accumulate=accumulate, shard=shard)
            for poisoned in (True, False)
        )
        differing += sum(not torch.equal(bad[key], skipped[key]) for key in bad)
    return differing, len(bad)


@pytest.mark.promise("R12")
def test_all_ranks_skip_a_step_that_is_bad_on_one(tmp_path, figure):
    """The weights are those of a run that never saw these batches, to the bit, under DDP and FSDP2."""
    for differing, tensors in on_ranks(2, count_differing, tmp_path, tmp_path):
        assert differing == 0 and tensors > 10
    rows = read_metrics(tmp_path / "copiedTrue")
    assert [row["train/skipped_steps"] for row in rows] == [1, 2, 0, 0]
    assert all(row["train/loss"] == row["train/loss"] for row in rows)
    figure("R12", "NaN or infinity on 1 of 2 ranks at 3 steps: 0 bits differ from a run that skips them")


@pytest.fixture
def poison(monkeypatch):
    """A function that makes the loss of the first `times` steps from `step` on not finite."""

    def start(step: int, times: int) -> None:
        taken, forward, left = Trainer.train_step, Classifier.forward, [times]
        now: list[int] = []

        def train_step(self, batch):
            now[:] = [self.step]
            return taken(self, batch)

        def poisoned(self, *inputs):
            loss = forward(self, *inputs)
            if not now or now[0] < step or not left[0]:
                return loss
            left[0] -= 1
            return loss * float("nan")

        monkeypatch.setattr(Trainer, "train_step", train_step)
        monkeypatch.setattr(Classifier, "forward", poisoned)

    return start


@pytest.fixture(autouse=True)
def made_clips(monkeypatch):
    monkeypatch.setattr(tasks, "ClipStream", tiny.MadeClips)


@pytest.fixture(scope="module")
def data(tmp_path_factory, clip_tree):
    return tiny.make_data(tmp_path_factory.mktemp("data"), clip_tree, "train")


def run(data, run_dir, *more):
    flags = ("--optim.epochs", 6, "--checkpoint-every", 2, "--evaluation.no-at-end", *more)
    return phases.train(tiny.config("finetune", data, run_dir, *flags))


@pytest.mark.promise("R12")
def test_a_resume_logs_the_steps_that_were_skipped_before_it(data, tmp_path, poison):
    poison(step=0, times=1)
    flags = ("--log-every", 4, "--keep-checkpoints", 99)
    folder = run(data, tmp_path / "run", *flags)
    whole = read_metrics(folder)
    for checkpoint in list((folder / "checkpoints").glob("step_*")):
        if checkpoint.name != "step_00000002":
            shutil.rmtree(checkpoint)
    run(data, folder, *flags, "--resume")
    for tag in ("train/skipped_steps", "train/loss"):
        assert [row[tag] for row in read_metrics(folder)] == [row[tag] for row in whole]
    assert whole[0]["train/skipped_steps"] == 1
    first, second = json.loads((folder / "environment.json").read_text())
    assert (first["step"], first["lost_seconds"]) == (0, 0) and first["began"] < second["began"]
    assert second["step"] == 2 and second["last_step"] == whole[-1]["time"]
    assert second["lost_seconds"] == step_seconds(whole, 4, after=2) > 0


@pytest.mark.promise("R12")
def test_more_than_ten_bad_steps_go_back_once_and_are_left_out_by_every_resume(
    data, tmp_path, poison, monkeypatch, caplog
):
    """The loss is bad only at the first try: without these steps the run, also resumed, equals one that never saw them."""
    bad = range(5, 5 + MAX_SKIPPED + 1)
    flags = ("--optim.epochs", 7, "--checkpoint-every", 9, "--keep-checkpoints", 99)
    with monkeypatch.context() as patch:
        taken = Trainer.train_step

        def skip(self, batch):
            if self.step not in bad:
                return taken(self, batch)
            self.step += 1
            return torch.zeros(())

        patch.setattr(Trainer, "train_step", skip)
        whole = run(data, tmp_path / "whole", *flags)
    poison(step=bad.start, times=len(bad))
    folder = run(data, tmp_path / "run", *flags)
    assert caplog.text.count("Going back to the checkpoint of step 9") == 1
    rows = read_metrics(folder)
    assert [row["step"] for row in rows] == list(range(1, 22))
    assert [row["step"] - 1 for row in rows if row["train/skipped_steps"]] == list(bad)
    for resumed in (False, True):
        if resumed:
            for step in (18, 21):
                shutil.rmtree(folder / "checkpoints" / f"step_{step:08d}")
            run(data, folder, *flags, "--resume")
        assert tiny.equal(tiny.weights(whole), tiny.weights(folder))


@pytest.mark.promise("R12")
def test_weights_that_are_not_finite_go_back_to_the_checkpoint_and_are_never_saved(data, tmp_path, monkeypatch, caplog):
    whole = run(data, tmp_path / "whole")
    taken, bad = Trainer.train_step, [5]

    def train_step(self, batch):
        norm = taken(self, batch)
        if self.step in bad:
            bad.clear()
            with torch.no_grad():
                next(self.model.parameters()).view(-1)[0] = float("nan")
        return norm

    monkeypatch.setattr(Trainer, "train_step", train_step)
    folder = run(data, tmp_path / "run", "--keep-checkpoints", 99)
    assert caplog.text.count("Going back to the checkpoint of step 4, once") == 1
    saved = [load_file(path) for path in folder.glob("checkpoints/step_*/model.safetensors")]
    assert len(saved) == 9 and all(torch.isfinite(value).all() for weights in saved for value in weights.values())
    assert tiny.equal(tiny.weights(whole), tiny.weights(folder))


@pytest.mark.promise("R12")
def test_a_loss_that_stays_bad_stops_the_run_with_the_clips_named(
    data, tmp_path, poison, clip_tree, figure, monkeypatch
):
    poison(step=4, times=10**6)
    with pytest.raises(FloatingPointError) as stopped:
        run(data, tmp_path / "run", "--optim.epochs", 9)
    marker = tmp_path / "run" / NAN_STOP
    assert str(marker) in str(stopped.value) and marker.exists()  # the launcher does not requeue the run
    names = [path.relative_to(clip_tree).as_posix() for path in clip_tree.rglob("*.*")]
    assert sum(name in str(stopped.value) for name in names) == 4  # the batch
    assert all(value.isfinite().all() for value in tiny.weights(tmp_path / "run").values())
    monkeypatch.undo()
    run(data, tmp_path / "run", "--optim.epochs", 9, "--resume")
    assert not marker.exists()
    figure(
        "R12",
        f"more than {MAX_SKIPPED} in a row: back to the checkpoint once, without these steps, then a stop that names the clips",
    )
