"""gpu_day: items with time limits, a total time, a second call, and a rehearsal of every item without a GPU."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import day_stand_ins
import pytest
import torch
from waiting import has_ended, wait_until

from benchmarks import day, gpu_clips, gpu_day, gpu_steps
from benchmarks.day import Book, Day, Figure, Item
from ppma.config.command import run

ROOT = Path(__file__).parents[2]


def item(name, seconds=30.0):
    return Item(name=name, seconds=seconds, what=name, parts=f"day_stand_ins:{name}")


def today(out, **changes):
    return Day(**{"out": out, "device": "cpu", "clips": out / "clips", "commit": "abc", "tiny": True} | changes)


def rows_of(out, name):
    return [(row["what"], row["verdict"], row["note"]) for row in Book(folder=out).read() if row["item"] == name]


def test_each_item_keeps_its_rows_whatever_happens_to_it(tmp_path, capsys):
    names = ("good", "partly", "unprepared", "crashing", "gpu_alone")
    assert day.run([item(name) for name in names], today(tmp_path), seconds=100, preload=("torch",))
    assert rows_of(tmp_path, "good") == [("figure", "reached", ""), ("finished", "", "")]
    failed = [("before", "", ""), ("wrong", "failed", "RuntimeError: No kernel image"), ("figure", "", "")]
    assert rows_of(tmp_path, "partly") == failed
    assert rows_of(tmp_path, "unprepared") == [("setup", "failed", "ValueError: no such clip")]
    assert rows_of(tmp_path, "crashing") == [("figure", "", ""), ("stopped", "failed", "ended by SIGSEGV")]
    assert rows_of(tmp_path, "gpu_alone")[0][1] == "left out"
    traces = (tmp_path / day.FAILURES).read_text()
    assert traces.count("Traceback") == 2 and "in unprepared" in traces
    row = Book(folder=tmp_path).read()[0]
    assert (
        row["commit"] == "abc" and "CPUs" in row["machine"] and "torch" in row["versions"] and row["must"] == ">= 1400"
    )
    table = (tmp_path / day.TABLE).read_text()
    assert table in capsys.readouterr().out and "ended by SIGSEGV" in table
    assert [i.name for i in day.choose([item(n) for n in names], Book(folder=tmp_path).read(), ())] == list(names[1:4])


def test_a_time_limit_ends_an_item_and_its_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(day, "GRACE_SECONDS", 0.3)
    began = time.monotonic()
    assert day.run([item("deaf", 8.0), item("good")], today(tmp_path), seconds=100, preload=("torch",))
    assert time.monotonic() - began < 300
    assert rows_of(tmp_path, "deaf") == [("kept", "", ""), ("stopped", "failed", "stopped after its 8 s")]
    wait_until(lambda: has_ended(int((tmp_path / day_stand_ins.CHILD).read_text())))
    assert rows_of(tmp_path, "good")[-1][0] == "finished"


def test_a_second_call_continues_where_time_ran_out(tmp_path, monkeypatch, capsys):
    """A time limit shrinks to the time left, and grows by what earlier items did not use."""
    boxes, clock = {}, [0.0]
    monkeypatch.setattr(day.time, "monotonic", lambda: clock[0])

    def run_box(box, _, seconds, __):
        boxes[box.name] = seconds
        clock[0] += min(seconds, {"a": 4.0, "b": 30.0}.get(box.name, 8.0))
        Book(folder=tmp_path).add(
            box.name, Figure(what="figure" if box.name == "b" else "finished", value=1.0, unit="")
        )
        return "stopped" if box.name == "b" else ""

    monkeypatch.setattr(day, "run_box", run_box)
    items = [item(name, 10.0) for name in "abcde"]
    day.run(items, today(tmp_path), seconds=28 + day.RESERVE_SECONDS)
    assert boxes == {"a": 10.0, "b": 16.0, "c": 8.0} and "no time left for d, e" in capsys.readouterr().out
    found = Book(folder=tmp_path).read()
    assert [i.name for i in day.choose(items, found, ())] == ["d", "e", "b"], "what never ran comes first"
    assert [i.name for i in day.choose(items, found, ("c", "a"))] == ["a", "c"]


def test_a_terminated_day_leaves_its_table(tmp_path):
    """SIGTERM is turned into what Ctrl-C raises."""
    code = (
        "import sys; from pathlib import Path; from benchmarks import day; from benchmarks.day import Day, Item\n"
        "day.GRACE_SECONDS, out = 0.3, Path(sys.argv[1]); today = Day(out=out, device='cpu', clips=out, commit='', tiny=True)\n"
        "item = Item(name='deaf', seconds=300, what='', parts='day_stand_ins:deaf')\n"
        "sys.exit(0 if day.run([item], today, 300) else 130)"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    wait_until((tmp_path / day.ROWS).exists)
    os.kill(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 130 and "interrupted" in out and "kept" in out
    wait_until(lambda: has_ended(int((tmp_path / day_stand_ins.CHILD).read_text())))


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [
        ({"value": 1500.0, "least": 1400, "goal": 2170}, "reached"),
        ({"value": 2200.0, "least": 1400, "goal": 2170}, "goal"),
        ({"value": 1300.0, "least": 1400, "goal": 2170}, "missed"),
        ({"value": float("nan"), "most": 0.01}, "missed"),
        ({"value": float("nan"), "least": 0.01}, "missed"),
        ({"value": 0.0, "most": 0}, "reached"),
        ({"value": 0.7, "goal": 0.8}, "short"),
        ({"value": 1.0}, ""),
        ({"value": None, "least": 1.0}, ""),
    ],
)
def test_a_verdict(figure, verdict):
    assert Figure(what="", unit="", **figure).verdict == verdict


def test_a_row_that_was_cut_off_is_left_out(tmp_path):
    (tmp_path / day.ROWS).write_text('{"item": "a", "what": "finished"}\n{"item": "b", "wh')
    assert [row["item"] for row in Book(folder=tmp_path).read()] == ["a"]


@pytest.mark.parametrize("flags", [["--only", "magic"], ["--seconds", "0"]])
def test_wrong_flags_are_one_line(flags, capfd):
    assert run(gpu_day.main, flags, prog="gpu_day") == 2
    assert len(capfd.readouterr().err.strip().splitlines()) == 1


def test_without_a_gpu_it_says_so_and_lists_the_items(monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(gpu_day, "has_gpu", lambda: False)
    assert run(gpu_day.main, ["--out", str(tmp_path)], prog="gpu_day") == 2
    assert "--rehearse" in capfd.readouterr().err
    assert run(gpu_day.main, ["--list"], prog="gpu_day") == 0
    listed = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(gpu_day.NAMES)
    assert (
        sum(item.seconds for item in gpu_day.ITEMS[: gpu_day.NAMES.index("stage2") + 1]) <= gpu_day.DayConfig().seconds
    )


def test_the_forked_process_has_not_touched_the_gpu():
    """A process forked from one that has initialized CUDA cannot use it."""
    code = (
        "import torch, threading\n"
        "def touched(*_): raise SystemExit('CUDA was used')\n"
        "torch.cuda._lazy_init = torch.cuda.is_available = torch.cuda.device_count = touched\n"
        f"import {gpu_day.STEPS}, sys\n"
        "assert threading.active_count() == 1 and not any(name.startswith('nvidia.dali') for name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """Run the real code of every item with tiny shapes in this process, and return its rows."""
    here = today(tmp_path_factory.mktemp("day"))
    gpu_clips.make(here.clips, tiny=True)
    book = Book(folder=here.out)
    for one in gpu_day.ITEMS:
        day.run_parts(one, here, book)
    failures = here.out / day.FAILURES
    assert not failures.exists(), failures.read_text()
    return here, book.read()


def test_every_item_is_rehearsed(rehearsal):
    """Only the description of the card needs a GPU."""
    _, found = rehearsal
    assert {row["item"] for row in found if row["what"] == day.FINISHED} == set(gpu_day.NAMES)
    assert [row["item"] for row in found if row["verdict"] == "left out"] == ["environment"]
    assert not [row for row in found if row["verdict"] == "missed" and row["item"] != "attention"], found


def test_the_profile_names_every_operator(rehearsal):
    here, found = rehearsal
    listed = json.loads((here.out / "profile.json").read_text())
    total = next(row["figure"] for row in found if row["item"] == "profile" and row["what"] == "all kernels")
    assert sum(kernel["ms"] for kernel in listed) == pytest.approx(total)
    names = {"nvjet_tst_256x128": "matrix products", "triton_per_fused_add": "inductor", "Memcpy HtoD": "copies"}
    names |= {"forward_kernel": "own attention", "pixel_loss_kernel": "own, bound by memory", "magic": "other"}
    names |= {"fmha_cutlassF_bf16_sm80(PyTorchMemEffAttention::AttentionKernel": "library attention"}
    assert {name: gpu_steps.class_of(name) for name in names} == names


def test_the_budget_has_the_classes_of_the_profile(monkeypatch):
    time_budget = pytest.importorskip("benchmarks.time_budget")
    monkeypatch.setattr(time_budget, "attention_parts", lambda *_: [time_budget.part("attention, all", 1e-3, 2e-3, "")])
    parts = time_budget.budget(128)
    figures = {figure.what: figure.value for figure in gpu_steps.budgeted(parts)}
    assert figures["budget: own attention"] == 2
    assert figures.pop("budget: all") == pytest.approx(sum(part.estimate_ms for part in parts))
    classes = {kind for kind, _ in gpu_steps.CLASSES} | {"between launches"}
    assert {name.removeprefix("budget: ") for name in figures} <= classes


def test_the_card_is_described(monkeypatch):
    card = types.SimpleNamespace(total_memory=2**37, name="NVIDIA H200", major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(gpu_steps.subprocess, "run", lambda *a, **k: types.SimpleNamespace(stdout="580.1, 700 W\n"))
    figures = {figure.what: (figure.value, figure.note) for figure in gpu_steps.card()}
    assert figures == {"memory": (128.0, "NVIDIA H200; 580.1, 700 W"), "compute capability": (9.0, "132 SMs")}


def test_bounds_are_those_of_an_h200(monkeypatch):
    assert gpu_steps.on_h200(least=1400, goal=2170) == {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    parts = {part.what: part.measure.keywords for part in gpu_steps.stage1(today(Path()))}
    assert parts["B128"] == {"least": 1400, "goal": 2170} and parts["B128 decoder_share 0.5"] == {"goal": 2650}


def test_waits_of_the_stepping_thread_are_distinguished(monkeypatch):
    import threading
    import warnings

    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    wait = lambda: warnings.warn("called a synchronizing CUDA operation", stacklevel=1)  # noqa: E731
    with gpu_clips.waits(torch.device("cuda")) as found:
        wait()
        wait()
        warnings.warn("something else", stacklevel=1)
        other = threading.Thread(target=wait)
        other.start()
        other.join()
    assert found == [True, True, False] and modes == ["warn", "default"]


def test_a_wrong_frame_is_counted(tmp_path, monkeypatch):
    """The numbers survive the codec, and the figure counts frames with a wrong number."""
    frames = gpu_clips.numbered(20, 336)
    assert [gpu_clips.read_number(frame[:, 40:296]) for frame in frames] == list(range(20))
    path = gpu_clips.write_encoded(tmp_path / "0.avi", gpu_clips.ENCODINGS["mjpeg"], frames)
    real = gpu_clips.read_window
    late = lambda path, start, end, count: real(path, start + 0.04, end + 0.04, count)  # noqa: E731  # one frame
    monkeypatch.setattr(gpu_clips, "read_window", late)
    manifest = gpu_clips.numbered_manifest("mjpeg", path, 20)
    figures = list(gpu_clips.check_frames(today(tmp_path), "mjpeg", manifest))
    assert figures[0].value > 0 and figures[0].verdict == "missed"


def test_clips_that_cannot_be_generated_are_reported(tmp_path):
    here = today(tmp_path)
    here.clips.mkdir()
    (here.clips / gpu_clips.FAILED).write_text("Traceback\nOSError: disk full")
    with pytest.raises(RuntimeError, match="disk full"):
        gpu_clips.clips_of(here)


@pytest.mark.parametrize(("whole", "code"), [(True, 0), (False, 130)])
def test_the_flags_reach_the_run_and_clips_are_generated_meanwhile(tmp_path, monkeypatch, whole, code):
    out, seen, started = tmp_path / "day", {}, []

    class Process(subprocess.Popen):
        def __init__(self, *given, **settings):
            super().__init__(*given, **settings)
            started.append(self)

    def run_items(items, today, seconds, preload):
        seen.update(names=[i.name for i in items], today=today, seconds=seconds, makers=len(started))
        return whole

    monkeypatch.setattr(gpu_day.subprocess, "Popen", Process)
    monkeypatch.setattr(day, "run", run_items)
    flags = ["--rehearse", "--only", "nvjpeg", "attention", "--seconds", "7", "--out", str(out), "--commit", "abc"]
    assert gpu_day.main(flags) == code
    assert seen["names"] == ["attention", "nvjpeg"] and seen["seconds"] == 7
    assert seen["today"] == Day(out=out, device="cpu", tiny=True, clips=out / "clips", commit="abc")
    assert seen["makers"] == 1 and started[0].args[-3:] == [gpu_day.CLIPS, str(out / "clips"), "tiny"]
    assert started[0].returncode is not None, "it has ended"


@pytest.mark.slow
def test_the_whole_command(tmp_path, capfd):
    """Clips are generated while the first items run, and compiled kernels are kept in --warm."""
    flags = ["--rehearse", "--only", "nvjpeg", "--out", tmp_path / "day", "--warm", tmp_path / "w"]
    command = [sys.executable, "benchmarks/gpu_day.py", *flags]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    assert "nvjpeg" in capfd.readouterr().out and rows_of(tmp_path / "day", "nvjpeg")[-1][0] == "finished"
    assert (tmp_path / "w" / "triton").is_dir()


def test_without_a_gpu_the_cache_is_filled(tmp_path, monkeypatch, capfd):
    """Only with machine code, for the batches that are measured; other files in the folder stay."""
    filled = []

    def check(phase, settings, *, folder):
        assert settings.all_configs, "a GPU chooses among them"
        filled.append((phase, settings.batch))
        made = folder / "triton" / "KEY"
        made.mkdir(parents=True, exist_ok=True)
        for name in ("k.cubin", "k.json", "k.ptx"):
            (made / name).write_text("")
        (folder / "graph").write_text("")
        return types.SimpleNamespace(compiled=9, found=0)

    monkeypatch.setattr(gpu_day, "has_gpu", lambda: False)
    monkeypatch.setattr(gpu_day.compile_check, "check", check)
    monkeypatch.setattr(gpu_day, "FILL_ATTENTION", "import os; assert 'TRITON_INTERPRET' not in os.environ")
    (tmp_path / "mine").write_text("")
    assert run(gpu_day.main, ["--warm", str(tmp_path)], prog="gpu_day") == 0
    assert {batch for phase, batch in filled if phase == "mae"} == {64, 128, 256}
    kept = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert kept == {"mine", "triton/KEY/k.cubin", "triton/KEY/k.json"}
    assert "9 kernels compiled" in capfd.readouterr().out
