"""Checkpoints are complete or absent, old ones are deleted last, and an encoder loads nothing but the encoder."""

import errno
import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import save_file
from waiting import wait_until

from ppma.config import command
from ppma.config.errors import InputError
from ppma.config.model import MAEConfig, ViTConfig
from ppma.models.classify import Classifier
from ppma.models.mae import MaskedAutoencoder
from ppma.training import checkpoint, lineage

VIT = ViTConfig(width=16, depth=2, heads=2, patch=(2, 8, 8), frames=4, size=16)
MAE = MAEConfig(decoder_width=8, decoder_depth=1, decoder_heads=2)


def save(folder, step, **more):
    return checkpoint.save(
        folder, step=step, model={"a": torch.full((2,), float(step))}, training={"x": step}, state={"n": 1}, **more
    )


def test_the_newest_is_found_old_ones_go_and_latest_points_to_it(tmp_path):
    for step in (1, 2, 30):
        save(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step_00000002", "step_00000030"]
    newest = checkpoint.newest(tmp_path)
    assert newest.step == 30 and newest.state == {"step": 30, "n": 1}
    assert checkpoint.read_pickle(newest.folder / "training.pt") == {"x": 30}
    assert (tmp_path / "latest").resolve() == newest.folder
    for path in (tmp_path, newest.folder, newest.folder / "model.safetensors"):
        assert checkpoint.read_weights(path)["a"].tolist() == [30.0, 30.0]


def test_an_old_checkpoint_whose_deletion_was_killed_goes_with_the_next_save(tmp_path):
    (save(tmp_path, 1) / "state.json").unlink()
    save(tmp_path, 2)
    save(tmp_path, 3)
    assert sorted(p.name for p in tmp_path.glob("step_*")) == ["step_00000002", "step_00000003"]


def test_what_was_never_completed_is_not_taken_up(tmp_path):
    save(tmp_path, 1)
    (tmp_path / ".step_00000002.abc").mkdir()  # a kill in the middle of writing
    (tmp_path / "step_00000003").mkdir()  # not ours: no state.json
    assert checkpoint.newest(tmp_path).step == 1
    assert checkpoint.newest(tmp_path / "none") is None


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip_one_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


FILES = ("model.safetensors", "training.pt", "state.json", "lineage.json")
DAMAGE = {"cut": cut, "one bit flipped": flip_one_bit, "missing": lambda path: path.unlink()}


@pytest.mark.promise("R23")
def test_a_damaged_newest_checkpoint_is_set_aside(tmp_path, figure, caplog):
    """Every file, damaged in every way; only a missing lineage.json leaves the checkpoint as usable as one of an older version."""
    known = lineage.unknown("a test")
    ways = [(name, how) for name in FILES for how in DAMAGE if (name, how) != ("lineage.json", "missing")]
    for number, (name, how) in enumerate(ways):
        folder = tmp_path / str(number)
        save(folder, 1, lineage=known)
        DAMAGE[how](save(folder, 2, lineage=known) / name)
        (folder / ".step_00000003.abc").mkdir()  # of a killed save
        checkpoint.recover(folder)
        assert checkpoint.newest(folder).step == 1, (name, how)
        assert sorted(path.name for path in folder.iterdir()) == ["latest", "step_00000001", "step_00000002.damaged"]
        assert (folder / "latest").resolve() == folder / "step_00000001"
        assert checkpoint.newest(save(folder, 2, lineage=known).parent).step == 2  # the step is written again
    assert caplog.text.count("is damaged") == len(ways)
    figure("R23", f"{len(ways)} of {len(ways)} damaged files (cut, one bit, missing): the checkpoint before is used")


def test_a_run_without_an_intact_checkpoint_is_refused_and_left_alone(tmp_path):
    cut(save(tmp_path, 1, lineage=lineage.unknown("a test")) / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        checkpoint.recover(tmp_path)
    assert checkpoint.newest(tmp_path).step == 1
    checkpoint.recover(tmp_path / "none")


KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from ppma.training import checkpoint, lineage

folder, kills, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(0)
known, weights = lineage.unknown("a test"), torch.arange(300_000.0)

def save_for_ever(step):
    while True:
        step += 1
        checkpoint.save(folder, step=step, model={"a": weights + step}, training={"x": weights * step}, state={}, lineage=known)

def loadable():
    checkpoint.recover(folder)  # raises for damage
    saved = checkpoint.newest(folder)
    whole = torch.equal(checkpoint.read_weights(saved.folder)["a"], weights + saved.step)
    assert whole and torch.equal(checkpoint.read_pickle(saved.folder / "training.pt")["x"], weights * saved.step)
    return saved.step

began = time.monotonic()
checkpoint.save(folder, step=1, model={"a": weights + 1}, training={"x": weights}, state={}, lineage=known)
took, steps, during = time.monotonic() - began, [1], 0
while len(steps) <= kills or during <= kills / 4 or steps[-1] == 1:  # until kills came during saves, and some saves were completed
    child = os.fork() or save_for_ever(steps[-1])
    time.sleep(rng.uniform(0.2, 4) * took)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    during += any(path.name.startswith(".step_") for path in folder.iterdir())
    steps.append(loadable())
print(json.dumps([steps, during, [path.name for path in folder.iterdir() if path.name.endswith(".damaged")]]))
"""


@pytest.mark.promise("R3")
@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_save_that_is_killed_leaves_a_loadable_checkpoint(kills, tmp_path, figure):
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(kills)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    steps, during, damaged = json.loads(done.stdout)
    assert len(steps) > kills and steps == sorted(steps) and not damaged
    kills = len(steps) - 1
    figure("R3", f"{kills} of {kills} SIGKILLs ({during} in the middle of a save): loadable, to the bit")


@pytest.mark.parametrize("step", [1, 2])
def test_a_step_is_neither_written_over_nor_skipped_silently(tmp_path, step):
    """A run that did not see the newest checkpoint at its start ends at its first save; its resume sees it."""
    folder = save(tmp_path, 2)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(OSError, match="step_00000002") as stop:
        save(tmp_path, step)
    assert command.explain(stop.value)[0] == command.FAILED  # no wrong input: a launcher starts it again
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_00000002"]


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_never_written(tmp_path, bad):
    save(tmp_path, 1)
    weights = {"good": torch.ones(2), "bad": torch.tensor([0.0, bad])}
    with pytest.raises(FloatingPointError, match=r"step 2 .*bad"):
        checkpoint.save(tmp_path, step=2, model=weights, training={}, state={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_00000001"]
    with pytest.raises(InputError, match="bad"):
        checkpoint.save_weights(tmp_path / "converted", weights, {})
    assert not (tmp_path / "converted").exists()


def test_a_writer_writes_meanwhile_and_raises_the_error_when_it_is_waited_for():
    writer, go = checkpoint.Writer(), threading.Event()
    writer.wait()
    writer.start(go.wait)
    assert writer.busy and not writer.failed
    go.set()
    writer.wait()

    def full():
        raise OSError(errno.ENOSPC, "no space")

    writer.start(full)
    wait_until(lambda: not writer.busy)
    assert writer.failed
    with pytest.raises(OSError, match="no space"):
        writer.wait()
    assert not writer.failed
    writer.start(full)
    writer.settle()
    assert not writer.busy and not writer.failed


def test_more_nodes_and_cheaper_saves_mean_more_checkpoints():
    """Young's formula at 6.5 failures per 1,000 node-days: 16,384 GPUs in 2,048 nodes fail every 1.8 hours."""
    one = checkpoint.young_seconds(0.3, 1)
    assert one == pytest.approx((2 * 0.3 * 1000 / 6.5 * 86_400) ** 0.5) and 45 < one / 60 < 50
    assert checkpoint.young_seconds(0.3, 64) == pytest.approx(one / 8)
    assert checkpoint.young_seconds(1.2, 1) == pytest.approx(2 * one)


def test_an_encoder_starts_from_stage_1_without_its_tail(tmp_path):
    mae = MaskedAutoencoder(VIT, MAE, seed=3)
    torch.nn.init.normal_(mae.norm.weight)
    checkpoint.save(tmp_path, step=1, model=mae.state_dict(), training={}, state={})
    fresh = Classifier(VIT, {"a": 5}, seed=9)
    kept = {name: value.clone() for name, value in fresh.state_dict().items()}
    left = checkpoint.load_encoder(fresh, tmp_path)
    assert all(name.startswith(("decoder.", "norm.")) for name in left) and "norm.weight" in left
    for name, value in fresh.state_dict().items():
        expected = mae.state_dict()[name] if name.startswith(("patch_embed", "blocks")) else kept[name]
        assert torch.equal(value, expected), name


def test_a_classifier_passes_its_encoder_on_and_a_misfit_changes_nothing(tmp_path):
    first = Classifier(VIT, {"a": 5}, seed=3)
    torch.nn.init.normal_(first.fc_norm.weight)
    checkpoint.save(tmp_path / "a", step=1, model=first.state_dict(), training={}, state={})
    second = Classifier(VIT, {"b": 7}, seed=4)
    anew = Classifier(VIT, {"b": 7}, seed=4)
    assert "fc_norm.weight" in checkpoint.load_encoder(anew, tmp_path / "a", keep_norm=False)
    assert checkpoint.load_encoder(second, tmp_path / "a") == ["head.bias", "head.weight"]
    assert torch.equal(second.fc_norm.weight, first.fc_norm.weight) and (anew.fc_norm.weight == 1).all()
    assert torch.equal(second.blocks[0].attn.qkv.weight, first.blocks[0].attn.qkv.weight)
    state = Classifier(VIT, {"a": 5}, seed=9).state_dict()
    del state["patch_embed.proj.bias"]
    checkpoint.save(tmp_path / "b", step=1, model=state, training={}, state={})
    before = {name: value.clone() for name, value in second.state_dict().items()}
    with pytest.raises(InputError, match=r"patch_embed\.proj\.bias is missing"):
        checkpoint.load_encoder(second, tmp_path / "b")
    assert all(torch.equal(value, before[name]) for name, value in second.state_dict().items())


def test_misfits_are_named(tmp_path):
    wide = MaskedAutoencoder(ViTConfig(width=32, depth=1, heads=2, patch=(2, 8, 8), frames=4, size=16), MAE)
    checkpoint.save(tmp_path, step=1, model=wide.state_dict(), training={}, state={})
    with pytest.raises(InputError) as caught:
        checkpoint.load_encoder(Classifier(VIT, {"a": 5}), tmp_path)
    text = str(caught.value)
    assert "blocks.0.attn.proj.bias has shape (32,), the model's has (16,)" in text and " more" in text
    with pytest.raises(InputError, match=r"decoder\.blocks\.0\.attn\.proj\.bias is not part of this model"):
        checkpoint.load_model(Classifier(VIT, {"a": 5}), _stage_1(tmp_path))


def _stage_1(folder):
    """A checkpoint of the same encoder, with stage 1's tail."""
    return checkpoint.save(
        folder / "mae", step=1, model=MaskedAutoencoder(VIT, MAE).state_dict(), training={}, state={}
    )


@pytest.mark.parametrize("content", [b"", b"\x80\x04\x95 a pickle", b"\xff" * 100])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="not a readable safetensors file"):
        checkpoint.read_weights(tmp_path)
    with pytest.raises(InputError, match="no checkpoint here"):
        checkpoint.read_weights(tmp_path / "nowhere")


def test_weights_alone_can_be_read(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "foreign.safetensors")
    assert checkpoint.read_weights(tmp_path / "foreign.safetensors")["a"].sum() == 3
    assert json.loads((save(tmp_path, 5) / "state.json").read_text())["step"] == 5
