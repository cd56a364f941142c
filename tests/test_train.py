"""`ppma train`: resume to the bit, any number of ranks, clean stops, wrong input refused before anything is written, and the
whole path from clips to a transfer score."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from processes import ppma_on_ranks, run_script
from safetensors import SafetensorError
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import equal, weights

from ppma import phases
from ppma.cli import main as ppma
from ppma.config.command import STOP_SIGNALS
from ppma.config.errors import InputError, Stopped
from ppma.config.flags import resolve
from ppma.loaders.sampler import TrainingSampler
from ppma.loaders.sources import catalog
from ppma.training import lineage, run_folder, seal, tasks
from ppma.training.distributed import Stop
from ppma.training.run_folder import OWNER, Owner, read_metrics
from ppma.training.trainer import Trainer

REAL_CLASSES = ("archery", "basketball", "cleaning_pool", "exercise", "sign_walk", "walking")


@pytest.fixture(scope="module")
def data(tmp_path_factory, clip_tree):
    """A data catalog with the sources `made` (train and val) and `other`, from generated clips, in a folder of their own."""
    return tiny.make_data(tmp_path_factory.mktemp("data"), clip_tree, "train", "val", "other.train")


def tiny_flags(name, data, *flags):
    """Flags that make a recipe tiny, on the source `made`."""
    source = "--dataset made" if name in ("finetune", "probe", "probe_published") else "--sources made"
    more = tiny.MAE_FLAGS if name.startswith("mae") else []
    return [*source.split(), *tiny.FLAGS, *more, "--batch", "4", "--data", str(data), *map(str, flags)]


def run(name, data, run_dir, *flags):
    """Train a tiny recipe in this process and return its run folder."""
    return phases.train(resolve(name, tiny_flags(name, data, "--run-dir", run_dir, *flags)))


def losses(run_dir):
    return [(row["step"], row["train/loss"]) for row in read_metrics(Path(run_dir)) if "train/loss" in row]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A finished run of one epoch, which no test changes."""
    return run("align_nohuman", data, tmp_path_factory.mktemp("finished") / "run", "--optim.epochs", 1)


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run", symlinks=True)


@pytest.fixture
def made_clips(monkeypatch):
    """Made pixels in place of decoded ones, where the loader is not what is tested."""
    monkeypatch.setattr(tasks, "ClipStream", tiny.MadeClips)


class Preempted(Exception):
    pass


@pytest.mark.promise("R1")
@pytest.mark.parametrize("name", ["mae_nohuman", "align_nohuman", "probe"])
def test_resume_from_any_step_equals_never_stopping(name, data, tmp_path, monkeypatch):
    whole = run(name, data, tmp_path / "whole", "--optim.epochs", 3, "--checkpoint-every", 2)
    steps = losses(whole)[-1][0]
    taken, stops = Trainer.train_step, [1, 4, 5]

    def interrupted(self, batch):
        if stops and self.step == stops[0]:
            stops.pop(0)
            raise Preempted
        return taken(self, batch)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    assert steps > stops[-1]
    for _ in range(3):  # killed: steps after the last checkpoint are repeated
        with pytest.raises(Preempted):
            run(name, data, tmp_path / "cut", "--optim.epochs", 3, "--checkpoint-every", 2, "--resume")
    cut = run(name, data, tmp_path / "cut", "--optim.epochs", 3, "--checkpoint-every", 2, "--resume")
    assert equal(weights(whole), weights(cut))
    assert losses(whole) == losses(cut)


SIGNALED = """
import os, random, sys, threading
from ppma.cli import main
from ppma.training.trainer import Trainer

number, at, *argv = sys.argv[1:]
taken = Trainer.train_step

def train_step(self, batch):
    if self.step == int(at):
        seconds = random.Random(int(at)).uniform(0, 0.02)
        threading.Timer(seconds, os.kill, (os.getpid(), int(number))).start()
    return taken(self, batch)

Trainer.train_step = train_step
sys.exit(main(argv))
"""


@pytest.mark.promise("R1")
@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGKILL, signal.SIGINT),
        pytest.param((signal.SIGKILL,) * 10 + STOP_SIGNALS, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
    ids=len,
)
def test_a_run_that_is_killed_and_stopped_ends_as_one_that_was_not(signals, data, tmp_path, figure):
    """Each signal comes at a random moment of the steps after the 5th, the 10th and so on."""
    epochs = 2 * len(signals) + 12  # of three steps: the last signal comes long before the end
    flags = tiny_flags("mae_nohuman", data, "--optim.epochs", epochs, "--checkpoint-every", 4, "--resume")

    def start(folder, number=0, at=-1):  # each in a new process, because sums depend on the number of threads
        argv = [str(int(number)), str(at), "train", "mae_nohuman", *flags, "--run-dir", str(tmp_path / folder)]
        return run_script(SIGNALED, argv, tmp_path)

    assert start("whole")[0] == 0
    for at, sent in enumerate(signals, 1):
        code, output = start("cut", sent, 5 * at)
        assert code == (-signal.SIGKILL if sent == signal.SIGKILL else 75), output
        assert "Traceback" not in output and (sent == signal.SIGKILL or "--resume" in output)
        assert 5 * at <= losses(tmp_path / "cut")[-1][0] < 3 * epochs
    assert start("cut")[0] == 0
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    kills = signals.count(signal.SIGKILL)
    figure("R1", f"killed {kills} x and stopped {len(signals) - kills} x, each resumed: 0 differing bits")


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_during_the_final_test_leads_to_a_resume_that_only_tests(number, data, tmp_path, monkeypatch):
    """The time limit comes while a trained run is tested: the next start repeats the test alone."""
    flags = ("--optim.epochs", 1, "--evaluation.windows", 1, "--evaluation.crops", 1, "--resume")
    tested = phases.evaluate

    def interrupted(*arguments, **names):
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # a repeated request changes nothing
        return tested(*arguments, **names)

    monkeypatch.setattr(phases, "evaluate", interrupted)
    with pytest.raises(Stopped) as stopped:
        run("finetune", data, tmp_path / "run", *flags)
    assert stopped.value.why is (Stop.HAND_OVER if number == signal.SIGUSR2 else Stop.SAVE)
    before = weights(tmp_path / "run")
    monkeypatch.setattr(phases, "evaluate", tested)
    run("finetune", data, tmp_path / "run", *flags)
    assert (tmp_path / "run" / "result.json").is_file() and equal(before, weights(tmp_path / "run"))


LISTINGS = """
import os, sys

def note(event, arguments):
    if event in ("os.listdir", "os.scandir") and isinstance(arguments[0], (str, os.PathLike)):
        with open(os.environ["LISTINGS"], "a") as file:
            file.write(os.path.abspath(arguments[0]) + chr(10))

sys.addaudithook(note)
"""
TRAIN = """
from ppma.cli import main
sys.exit(main(["train", *sys.argv[1:]]))
"""


def test_no_process_lists_a_data_folder(data, clip_tree, tmp_path, monkeypatch):
    """Listing large folders overloads a cluster's file system. Watches all processes of runs on videos and a packed store."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(LISTINGS)
    shutil.copytree(data.parent, tmp_path / "data")
    catalog = tmp_path / "data" / "data.toml"
    store = f"pack other --data {catalog} --out {tmp_path}/data/other.beton --workers 1"
    assert ppma(store.split()) == 0
    flags = [*tiny.FLAGS, "--batch", "4", "--data", str(catalog), "--optim.epochs", "1", "--loader.workers", "2"]
    path = os.pathsep.join([str(tmp_path / "watch"), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("LISTINGS", str(tmp_path / "listings"))
    runs = (["finetune", "--dataset", "made"], ["align_nohuman_synthetic", "--sources", "made", "other"])
    for run_of in runs:
        code, said = run_script(
            LISTINGS + TRAIN, [*run_of, *flags, "--run-dir", f"{tmp_path}/runs/{run_of[0]}"], tmp_path
        )
        assert code == 0, said
    listed = [Path(line) for line in (tmp_path / "listings").read_text().splitlines()]
    assert tmp_path / "runs" / "finetune" / "checkpoints" in listed  # the audit hook works
    assert not [path for path in listed if path.is_relative_to(clip_tree) or path.is_relative_to(tmp_path / "data")]


@pytest.mark.parametrize("name", ["mae_nohuman", "align_nohuman_synthetic"])
def test_two_ranks_one_and_a_change_between_give_the_same_in_float64(name, data, tmp_path):
    """Three steps of the same global batch: random numbers belong to the sample, so results differ by rounding."""
    more = "--sources made other --vit.drop-path 0.5 --optim.warmup-fraction 0 --optim.epochs 1"
    more = "--optim.epochs 3" if name == "mae_nohuman" else more
    flags = f"--batch 8 --precision fp64 --optim.peak-lr 0.01 --checkpoint-every 2 --resume {more}"
    argv = tiny_flags(name, data, *flags.split())
    two, one, changed = (tmp_path / folder for folder in ("two", "one", "changed"))
    codes, output = ppma_on_ranks(2, ["train", name, *argv, "--run-dir", str(two)], tmp_path / "logs")
    assert codes == [0, 0], output
    shutil.copytree(two, changed, symlinks=True)
    shutil.rmtree(changed / "checkpoints" / "step_00000003")  # step 3 is done again, by one rank
    for folder in (one, changed):
        phases.train(resolve(name, [*argv, "--run-dir", str(folder)]))
        assert losses(folder)[-1][0] == 3
        for tensor, value in weights(folder).items():
            assert value.dtype == torch.float64
            assert (value - weights(two)[tensor]).abs().max() < 1e-10, tensor
        assert dict(losses(folder)) == pytest.approx(dict(losses(two)), abs=1e-10)
    starts = json.loads((changed / "environment.json").read_text())
    assert [start["world_size"] for start in starts] == [2, 1]


@pytest.mark.usefixtures("made_clips")
def test_accumulation_equals_one_large_batch(data, tmp_path):
    a = run("mae_nohuman", data, tmp_path / "a", "--precision", "fp64", "--optim.epochs", 2)
    b = run("mae_nohuman", data, tmp_path / "b", "--precision", "fp64", "--optim.epochs", 2, "--accumulate", 2)
    for tensor, value in weights(a).items():
        assert (value - weights(b)[tensor]).abs().max() < 1e-10, tensor


def test_a_run_folder_holds_what_design_says(data, tmp_path):
    flags = ("--sources", "made", "other", "--optim.epochs", 1, "--pictures-every", 3, "--checkpoint-every", 1)
    folder = run("mae_nohuman", data, tmp_path / "run", *flags, "--optim.clip-grad", 1e-3)
    names = {path.name.split(".")[0] for path in folder.iterdir()}
    assert {"config", "environment", "metrics", "events", "checkpoints"} <= names
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["latest", "step_00000005", "step_00000006"]
    config = json.loads((folder / "config.json").read_text())
    assert config["recipe"] == "mae_nohuman" and config["vit"]["width"] == 48
    environment = json.loads((folder / "environment.json").read_text())[0]
    assert environment["versions"]["torch"] and environment["implementations"].keys() == {"loader", "kernels"}
    rows = read_metrics(folder)
    tags = "train/loss train/lr train/grad_norm train/skipped_steps perf/clips_per_s perf/stall_percent perf/mfu"
    assert {*tags.split(), "perf/memory_gib", "data/bad_files", "step", "time", "epoch"} == set(rows[-1])
    assert 0 < rows[-1]["perf/mfu"] < 1 and 0 <= rows[-1]["perf/stall_percent"] <= 100
    assert all(row["train/grad_norm"] > 1e-3 for row in rows)  # the logged norm is from before clipping
    events = EventAccumulator(str(folder)).Reload()
    assert {"train/loss", "perf/clips_per_s", "data/bad_files"} <= set(events.Tags()["scalars"])
    pictures = set(events.Tags()["images"])
    assert {"clips/made", "clips/other", "reconstruction/original, visible, reconstructed"} <= pictures


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(data, tmp_path, caplog):
    argv = ["mae_nohuman", *tiny_flags("mae_nohuman", data)]
    with caplog.at_level("INFO"):
        assert ppma(["train", *argv, "--optim.epochs", "2", "--dry-run", "--run-dir", str(tmp_path / "run")]) == 0
    assert (
        "made: 12 clips" in caplog.text
        and "6 of 4 rows (2 clips), 2 epochs" in caplog.text
        and "plain (on a CPU" in caplog.text
    )
    assert not (tmp_path / "run").exists()


def test_the_command_imports_no_slow_library_in_advance():
    """torch._dynamo takes 1.3 s to import, timm 0.6 s: help and refusals do not import them."""
    code = "import sys, ppma.phases; print([m for m in ('torch._dynamo', 'timm', 'torchvision') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


REFUSED = {
    "a source the catalog lacks": (["--sources", "nowhere"], "has no source nowhere.train"),
    "a checkpoint that is not there": (["--init", "gone"], "gone: no checkpoint here"),
    "a batch larger than the data": (["--batch", "64"], "12 clips in all, fewer than a batch of 64"),
    "a batch that does not divide": (["--accumulate", "3", "--batch", "4"], "does not divide into"),
    "a mixing group that does not fit": (["--classifier.mix.group", "6"], "of mix.group 6"),
    "half precision on a cpu": (["--precision", "fp16"], "precision fp16 needs a GPU"),
    "no time between checkpoints": (["--checkpoint-minutes", "0"], "checkpoint_minutes is 0.0"),
    "a catalog that is not there": (["--data", "gone.toml"], "gone.toml: no such file"),
}


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [("align_nohuman", "--sources made --init bad"), ("adaptive_average", "--dataset made --average good bad")],
)
def test_initial_weights_that_are_not_finite_are_refused_before_the_first_step(recipe, flags, data, tmp_path, capfd):
    for name, value in (("good", 1.0), ("bad", float("nan"))):
        save_file({"blocks.0.mlp.fc1.bias": torch.full((3,), value)}, tmp_path / name)
    words = [str(tmp_path / word) if word in ("good", "bad") else word for word in flags.split()]
    argv = [*words, *tiny.FLAGS, "--batch", "4", "--data", str(data), "--run-dir", str(tmp_path / "run")]
    assert ppma(["train", recipe, *argv]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"{tmp_path / 'bad'}: " in error and "blocks.0.mlp.fc1.bias" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("flags", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_input_is_one_line_exit_2_and_nothing_written(flags, message, data, tmp_path, capfd):
    argv = ["align_nohuman", *tiny_flags("align_nohuman", data, "--run-dir", tmp_path / "run")]
    assert ppma(["train", *argv, *flags]) == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert message in error[-1] and not any("Traceback" in line for line in error)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_shape_names_the_tensor(data, finished, tmp_path):
    with pytest.raises(InputError, match=r"blocks\.0.*has shape \(48,\), the model's has \(96,\)"):
        run("align_nohuman", data, tmp_path / "b", "--vit.width", 96, "--init", finished)
    assert not (tmp_path / "b").exists()


def test_a_run_is_not_written_over_nor_resumed_with_other_settings(data, copied):
    with pytest.raises(InputError, match="--resume"):
        run("align_nohuman", data, copied, "--optim.epochs", 1)
    with pytest.raises(InputError, match=r"other settings \(optim.peak_lr: 0.002 -> 0.1"):
        run("align_nohuman", data, copied, "--optim.epochs", 1, "--optim.peak-lr", 0.1, "--resume")
    run("align_nohuman", data, copied, "--optim.epochs", 1, "--resume", "--loader.workers", 2)
    saved = copied / "config.json"
    old = json.loads(saved.read_text())
    del old["privacy"], old["loader"]["flip_probability"]
    saved.write_text(json.dumps(old))  # written by a version without these fields
    run("align_nohuman", data, copied, "--optim.epochs", 1, "--resume")
    saved.write_text(json.dumps(old))
    with pytest.raises(InputError, match=r"other settings \(loader.flip_probability: 0.0 -> 0.5"):
        run("align_nohuman", data, copied, "--optim.epochs", 1, "--resume", "--loader.flip-probability", 0.5)


def test_a_run_folder_in_use_is_refused_and_not_touched(data, copied, capfd):
    folder = copied
    owner = json.dumps(asdict(replace(Owner.here(), pid=os.getppid(), started=run_folder._start_time(os.getppid()))))
    (folder / OWNER).write_text(owner)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    argv = ["align_nohuman", *tiny_flags("align_nohuman", data, "--optim.epochs", 1, "--run-dir", folder)]
    for more in ([], ["--resume"], ["--seed", "1"]):
        assert ppma(["train", *argv, *more]) == 2
        assert "in use by process" in capfd.readouterr().err.splitlines()[-1]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.usefixtures("made_clips")
def test_a_resume_repairs_a_damaged_checkpoint_and_a_cut_line(data, tmp_path, caplog):
    flags = ("--optim.epochs", 3, "--checkpoint-every", 2, "--keep-checkpoints", 9)
    folder = run("align_nohuman", data, tmp_path / "run", *flags)
    whole = {name: value.clone() for name, value in weights(folder).items()}  # they are mapped from the file
    steps = losses(folder)
    newest = (folder / "checkpoints/latest").resolve()
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    os.truncate(folder / "metrics.jsonl", (folder / "metrics.jsonl").stat().st_size - 17)
    with pytest.raises(InputError, match="edited after"):
        seal.read(folder)
    run("align_nohuman", data, folder, *flags, "--resume")
    assert f"{newest.name}.damaged" in caplog.text and "cut" in caplog.text
    assert equal(whole, weights(folder)) and losses(folder) == steps
    seal.check_weights(folder, seal.read(folder))


def test_a_run_folder_that_cannot_be_made_is_refused(data, tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match=re.escape(str(folder))):
            run("align_nohuman", data, folder, "--optim.epochs", 1)


def test_a_full_disk_keeps_the_old_checkpoint(copied, monkeypatch):
    from ppma.training import checkpoint

    before = {p.name for p in (copied / "checkpoints").iterdir()}

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left") as stop:
        checkpoint.save(copied / "checkpoints", step=99, model={"a": torch.ones(1)}, training={}, state={})
    assert stop.value.errno == errno.ENOSPC
    assert {p.name for p in (copied / "checkpoints").iterdir()} == before
    with pytest.raises(OSError, match="No space left"):  # and not torch's RuntimeError
        checkpoint.save_pickle(Path("/dev/full"), {"a": torch.zeros(10**6)})


def test_foreign_pickles_are_not_run(data, copied, tmp_path):
    """A training.pt with code in it is refused, and the code does not run; so is one of another program."""

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/pwned",))

    latest = (copied / "checkpoints/latest").resolve()
    history = lineage.read(latest / "model.safetensors")
    torch.save({"optimizer": Evil()}, latest / "training.pt")
    lineage.write(latest, history)  # whoever can write the folder can forge the hashes
    with pytest.raises(InputError, match=r"refused: .* holds more than tensors"):
        run("align_nohuman", data, copied, "--optim.epochs", 1, "--resume")
    assert not (tmp_path / "pwned").exists()
    torch.save({"optimizer": {"state": {0: {}}, "param_groups": []}}, latest / "training.pt")
    lineage.write(latest, history)
    with pytest.raises(InputError, match=r"training\.pt"):
        run("align_nohuman", data, copied, "--optim.epochs", 1, "--resume")
    seal.read(copied)  # neither refusal changed a file of the finished run


@pytest.fixture(scope="module")
def real(tmp_path_factory, real_videos, clip_tree):
    """Real clips, or generated ones where there are none, as source `made` in train and val."""
    folder = tmp_path_factory.mktemp("real")
    root = clip_tree
    if real_videos is not None:
        root = folder / "videos"
        for name in REAL_CLASSES:
            shutil.copytree(real_videos / name, root / name)
    return tiny.make_data(folder, root, "train", "val")


def test_from_clips_to_a_transfer_score(real, tmp_path):
    """Both stages, a probe, and a fine-tuning run that fits its clips to 100 %."""
    mae = run("mae_nohuman", real, tmp_path / "mae", "--optim.epochs", 2, "--batch", 8)
    align = run("align_nohuman", real, tmp_path / "align", "--optim.epochs", 2, "--init", mae)
    probe = run("probe", real, tmp_path / "probe", "--optim.epochs", 20, "--init", align)
    result = json.loads((probe / "result.json").read_text())
    assert result["n_videos"] >= 12 and result["ci95"]["top1"][0] <= result["top1"] <= result["ci95"]["top1"][1]
    plain = "--loader.randaugment-ops 0 --loader.erase-probability 0 --classifier.mix.probability 0 --vit.drop-path 0"
    crops = "--loader.crop center --loader.short-side 32 --evaluation.windows 1 --evaluation.crops 1 --classifier.mix.smoothing 0"
    fit = f"{plain} {crops} --optim.layer-decay None --loader.window-seconds 3 --optim.epochs 40 --optim.reference-batch 4".split()
    fine = run("finetune", real, tmp_path / "fine", "--init", align, *fit)
    assert json.loads((fine / "result.json").read_text())["top1"] == 1.0


@pytest.mark.usefixtures("made_clips")
def test_a_frozen_encoder_keeps_its_parameters(data, finished, tmp_path):
    probed = run("probe_published", data, tmp_path / "lp", "--optim.epochs", 1, "--init", finished)
    before, after = weights(finished), weights(probed)
    for name in before:
        if name.startswith(("patch_embed.", "blocks.")):
            assert torch.equal(before[name], after[name])
    assert not torch.equal(after["head.weight"], torch.zeros_like(after["head.weight"]))
    assert replace(resolve("probe_published"), seed=1).classifier.freeze_encoder


@pytest.mark.slow
@pytest.mark.promise("R7")
@pytest.mark.parametrize("reader", ["plain", "dali"])
def test_each_of_two_ranks_meets_one_bad_file_and_both_stop(reader, clip_tree, tmp_path):
    """1.5 bad files of 12 are allowed to all ranks together, so neither rank alone has too many."""
    data = tiny.make_data(tmp_path, shutil.copytree(clip_tree, tmp_path / "clips"), "train")
    manifest = catalog.read(data).manifest("made", "train")
    config = resolve("finetune", tiny_flags("finetune", data, "--batch", 8))
    batches = TrainingSampler([manifest], config.loader, seed=config.seed, batch_clips=8)
    bad = [manifest.file(batches.samples(0, step, rank, 2)[0].clip) for step, rank in ((0, 0), (0, 1))]
    for file in bad:
        file.write_text("<html>404</html>")
    allowed = ("--batch", 8, "--optim.epochs", 1, "--evaluation.no-at-end", "--loader.max-bad-fraction", 1.5 / 12)
    flags = (*allowed, "--run-dir", tmp_path / "run", "--loader.implementation", reader)
    codes, output = ppma_on_ranks(2, ["train", "finetune", *tiny_flags("finetune", data, *flags)], tmp_path / "logs")
    assert codes == [2, 2], output
    assert all(str(file) in text.splitlines()[-1] for file in bad for text in output), output
    assert read_metrics(tmp_path / "run")[-1]["data/bad_files"] == 2


@pytest.mark.promise("R8")
@pytest.mark.parametrize("ranks", [2, *(pytest.param(ranks, marks=pytest.mark.slow) for ranks in (3, 5))])
def test_an_evaluation_on_ranks_sees_every_video_once(ranks, data, tmp_path, figure):
    batches = ("--evaluation.batch-clips", "2")
    folder = run("finetune", data, tmp_path / "fine", "--optim.epochs", 1, *batches)
    argv = ["--checkpoint", str(folder), "--dataset", "made", "--data", str(data), "--out", str(tmp_path / "two")]
    codes, output = ppma_on_ranks(ranks, ["evaluate", *argv, "--device", "cpu", *batches], tmp_path / "logs")
    assert codes == [0] * ranks, output
    one, two = (np.load(where / "scores.npz") for where in (folder, tmp_path / "two"))
    apart = np.abs(one["scores"] - two["scores"]).max()
    assert list(one["video"]) == list(two["video"]) and len(set(two["video"])) == 12 and apart == 0
    figure("R8", f"12 of 12 videos on {ranks} ranks, scores within {apart:.0e} of one")
