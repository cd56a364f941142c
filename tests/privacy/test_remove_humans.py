"""`ppma remove-humans`: every clip done once, in shards or in one run, resumed after a kill; refusals before any work."""

import errno
import hashlib
import json
import os
import signal
import tempfile
import time
import tracemalloc
import zipfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from weakref import WeakSet

import av
import numpy as np
import pytest
from privacy_stand_ins import FLAGS, RedFinder, write_stand, write_walk
from processes import start_script
from waiting import wait_until

from ppma.cli import main as ppma
from ppma.common import shares
from ppma.common.files import atomic_path, file_sha256
from ppma.common.shares import Share
from ppma.config.errors import DiskFullError, InputError
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.privacy.detectors.tools import Model
from ppma.privacy.removal import clip as clip_module
from ppma.privacy.removal import jobs as removal
from ppma.privacy.removal import plugins
from ppma.privacy.removal.clip import Pipeline, Settings
from ppma.privacy.removal.command import main
from ppma.privacy.removal.masks import Spool

pytestmark = pytest.mark.usefixtures("probe_here")


@pytest.fixture(autouse=True)
def fresh_pipeline():
    """Drop the plug-ins that the process keeps: the stand-ins of a test must not outlive it."""
    removal.load_pipeline.cache_clear()


@pytest.fixture
def videos(tmp_path):
    """A folder with two clips of two classes, and a file that is not a video."""
    folder = tmp_path / "videos"
    for name in ("to/one", "fro/two"):
        write_walk(folder / f"{name}.mp4", length=12)
    (folder / "to" / "broken.mp4").write_bytes(b"no video")
    return folder


def remove(source, out, *flags):
    return ppma(["remove-humans", str(source), "--out", str(out), *FLAGS, *map(str, flags)])


def hashes(folder):
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob("*") if path.is_file()}


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def row(path, **values):
    known = {"frames": 24, "fps": 10.0, "width": 128, "height": 96, "codec": "h264", "key_frame_spacing": 10}
    return Clip(path=path, **{**known, "duration_seconds": 2.4, **values})


def jobs_in(folder, rows, out, stand_ins, layout="videos"):
    out.mkdir(exist_ok=True)
    return removal.jobs_of(rows, folder, out, Settings(layout=layout, **stand_ins), folder)


# ---------------------------------------------------------------------------------------------------------------- commands

MADE = [
    "inp/fro/two.mp4", "inp/to/one.mp4", "manifest.csv", "records/fro/two.json", "records/to/one.json",
    "rejected.csv", "seg/fro/two.mkv", "seg/to/one.mkv", "settings.json",
]  # fmt: skip


def test_a_folder_is_cleaned_once_and_a_file_that_is_no_video_is_named(
    videos, tmp_path, stand_ins, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before, out, flags = (
        hashes(videos),
        tmp_path / "out",
        ("--licence", "ours", "--name", "removed", "--data", "data.toml"),
    )
    assert remove(videos, "out", *flags) == 2
    printed = capsys.readouterr()
    assert "to/broken.mp4" in printed.out and "1 clip" in printed.err and printed.err.count("\n") == 1
    assert files(out) == MADE and hashes(videos) == before
    manifest = catalog.read(tmp_path / "data.toml").manifest("removed")
    clips = [manifest.clip(i) for i in range(2)]
    assert {clip.class_name for clip in clips} == {"to", "fro"} and clips[0].licence == "ours"
    assert all(manifest.file(i).is_file() for i in range(2))
    times = {path: path.stat().st_mtime_ns for path in (out / "inp").rglob("*.mp4")}
    assert remove(videos, "out", *flags) == 2
    assert times == {path: path.stat().st_mtime_ns for path in (out / "inp").rglob("*.mp4")}


def test_clips_that_are_not_clean_are_named_and_exit_with_3(videos, tmp_path, stand_ins, monkeypatch, capsys):
    (videos / "to" / "broken.mp4").unlink()
    assert remove(videos, tmp_path / "out") == 0
    monkeypatch.setattr(clip_module, "ROUNDS", 1)
    monkeypatch.setattr(Pipeline, "detect", lambda *_, **__: {"red": np.ones((1, 5), np.float32)})
    capsys.readouterr()
    assert remove(videos, tmp_path / "unclean") == 3
    printed = capsys.readouterr().out
    assert "to/one: " in printed and "fro/two: " in printed and "2 clips" in printed


def test_parts_and_their_merge_make_what_one_run_makes(videos, tmp_path, stand_ins, capsys, owners_live):
    """Part and merge exit with 0 though a clip is refused: that is a report, and stops no later job."""
    out, whole, other = tmp_path / "out", tmp_path / "whole", Share(tmp_path / "out" / shares.FOLDER, (0, 2))
    remove(videos, whole)
    begun = next(next(other.rounds(["to/one", "fro/two"])))
    assert remove(videos, out, "--part", "1/2") == 0
    with pytest.raises(InputError, match=begun):
        main([str(videos), "--out", str(out), *FLAGS, "--merge", "2"])
    assert not (out / "manifest.csv").exists()
    other.finish(begun)  # its task ends without it
    assert remove(videos, out, "--part", "0/2") == 0 and not (out / "manifest.csv").exists()
    capsys.readouterr()
    for _ in range(2):  # a merge that is queued again finds its result
        assert remove(videos, out, "--merge", 2) == 0
        assert "to/broken.mp4: " in capsys.readouterr().out
    assert files(out) == MADE and len(Manifest.read(out / "manifest.csv")) == 2
    same = [name for name in MADE if (out / name).read_bytes() == (whole / name).read_bytes()]
    assert same == [name for name in MADE if "records" not in name], "a record has the seconds it took"


def test_a_part_does_the_clips_of_parts_that_never_start(videos, tmp_path, stand_ins):
    out = tmp_path / "out"
    assert remove(videos, out, "--part", "2/3") == 0 and remove(videos, out, "--merge", 3) == 0
    assert files(out) == MADE


def test_the_merge_has_the_reason_for_a_clip_that_breaks_while_it_is_read(videos, tmp_path, stand_ins, capsys):
    out = tmp_path / "out"
    remove(videos, tmp_path / "first")
    manifest = videos / "clips.csv"
    manifest.write_text((tmp_path / "first" / "manifest.csv").read_text().replace("inp/", ""))
    clip = videos / "to" / "one.mp4"
    clip.write_bytes(clip.read_bytes()[:700])
    assert remove(manifest, out, "--part", "0/2") == remove(manifest, out, "--part", "1/2") == 0
    assert capsys.readouterr().out.count("to/one.mp4: ") == 1, "the other part does not try it again"
    assert remove(manifest, out, "--merge", 2) == 0
    printed = capsys.readouterr().out
    assert "to/one.mp4: " in printed and "did not finish" not in printed


def test_a_dry_run_writes_nothing_and_names_the_licenses(videos, tmp_path, stand_ins, capsys):
    assert remove(videos, tmp_path / "out", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "2 clips, 0 of them done; 24 frames" in printed and "about 0:0" in printed
    assert "inpainter median: Apache-2.0 (ppma)" in printed and not (tmp_path / "out").exists()


def test_a_dry_run_names_the_temporary_folder_that_is_full(videos, tmp_path, stand_ins, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Spool, "append", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(DiskFullError, match=str(tmp_path / "ppma-")):
        main([str(videos), "--out", str(tmp_path / "out"), *FLAGS, "--dry-run"])


def test_a_dry_run_refuses_what_the_run_would_refuse(videos, tmp_path, stand_ins):
    (videos / "to" / "broken.mp4").unlink()
    out = tmp_path / "out"
    assert remove(videos, out) == 0
    assert remove(videos, out, "--dry-run") == 0 and remove(videos, out, "--dry-run", "--keep-original") == 2


class Slow(RedFinder):
    """Takes 50 ms of CPU time a frame."""

    def __call__(self, frame_HWC):
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        return super().__call__(frame_HWC)


def test_the_estimate_counts_the_frames_that_are_searched_and_the_rounds(tmp_path, stand_ins, monkeypatch):
    monkeypatch.setitem(
        plugins.PLUGINS, "slow", plugins.Plugin(kind="detector", make=Slow, license="none", finds="person")
    )
    write_walk(tmp_path / "walk.mp4")
    write_stand(tmp_path / "stand.mp4", length=24)
    rows = [row("walk.mp4"), row("stand.mp4")]
    moving, still = jobs_in(tmp_path, rows, tmp_path / "out", {**stand_ins, "detectors": ("slow",)})
    searched, skipped = (removal.seconds_per_frame([job]) for job in (moving, still))
    assert skipped[0] < 0.7 * searched[0] and skipped[1] > 1.3 * skipped[0]
    outcome, _ = removal.load_pipeline(still.settings, still.weights).clean(still.source, still.out, still.name)
    assert outcome.cpu_seconds / outcome.frames < 1.3 * skipped[0]
    blur = replace(still, settings=replace(still.settings, method="blur-bodies"))
    assert len(set(removal.seconds_per_frame([blur]))) == 1, "blurring has one round"


def test_frames_as_published_and_originals_on_demand(videos, tmp_path, stand_ins):
    (videos / "to" / "broken.mp4").unlink()
    assert remove(videos, tmp_path / "out", "--layout", "frames", "--keep-original") == 0
    for part, suffix in (("inp", "jpg"), ("seg", "png"), ("ori", "jpg")):
        made = sorted(path.name for path in (tmp_path / "out" / part / "to" / "one").iterdir())
        assert made == [f"{n:06d}.{suffix}" for n in range(1, 13)]
    clip = Manifest.read(tmp_path / "out" / "manifest.csv").clip(0)
    assert (clip.path, clip.codec, clip.frames, clip.fps) == ("inp/fro/two", "jpeg", 12, 25.0)


def test_sound_and_metadata_are_removed(tmp_path, stand_ins):
    path = tmp_path / "videos" / "a" / "clip.mp4"
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as container:
        container.metadata.update(title="a name", location="+48.85+002.35/", comment="at home")
        picture, sound = container.add_stream("libx264", rate=Fraction(10)), container.add_stream("aac", rate=16000)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        picture.metadata["handler_name"] = "a camera's number"
        for _ in range(6):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
            container.mux(picture.encode(frame))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 16000
        container.mux(sound.encode(samples))
        container.mux([*picture.encode(None), *sound.encode(None)])
    with av.open(str(path)) as container:
        assert container.streams.audio and "title" in container.metadata
    assert remove(path.parents[1], tmp_path / "out", "--keep-original") == 0
    for part in ("inp", "ori"):
        made = tmp_path / "out" / part / "a" / "clip.mp4"
        with av.open(str(made)) as container:
            assert [stream.type for stream in container.streams] == ["video"]
            assert set(container.metadata) <= {"major_brand", "minor_version", "compatible_brands"}
        assert not any(word in made.read_bytes() for word in (b"a name", b"48.85", b"at home", b"camera"))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--detectors yolo", "detectors are movenet, centerface"),
        ("--segmenter sam", "segmenters are selfie"),
        ("--inpainter none", "inpainters are median, lama, e2fgvi, propainter"),
        ("--detectors movenet --method blur-faces", "centerface"),
        ("--detectors", "needs a detector"),
        ("--inpainter e2fgvi", "--accept-non-commercial"),
        ("--set paper", "--inpainter"),
        ("--set paper --accept-non-commercial", "e2fgvi.pt"),
        ("--set paper --inpainter median", "semask.pt"),
        ("--set quality", "big-lama.pt"),
        ("--models lama=x.pt", "--models lama"),
        ("", "ppma privacy fetch"),
        ("--part 2/2", "--part"),
        ("--part 0/2 --merge 2", "--merge"),
        ("--short-side 8", "--method downsample"),
        ("--method blur-faces --segmenter sam2", "--segmenter sam2"),
        ("--method blur-bodies --inpainter median", "--inpainter median"),
        ("--method blur-faces --detectors centerface movenet", "--detectors movenet"),
        ("--method downsample --detectors centerface", "--detectors centerface"),
        ("--method downsample --set quality", "--set quality"),
        ("--method blur-faces --set quality --layout frames", "--set quality"),
        ("--method downsample --set paper --layout videos", "--set paper"),
        ("--method blur-bodies --set paper --detectors centerface", "--detectors centerface"),
        ("--workers 0", "--workers"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_written(flags, named, videos, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=named):
        main([str(videos), "--out", str(out), "--weights", str(tmp_path / "none"), *flags.split()])
    assert not out.exists()


def test_a_model_that_does_not_load_leaves_the_folder_for_the_right_one(videos, tmp_path, stand_ins):
    wrong, out = tmp_path / "wrong.pt", tmp_path / "out"
    with zipfile.ZipFile(wrong, "w") as file:
        file.writestr("no/model", b"")
    assert remove(videos, out, "--inpainter", "lama", "--models", f"lama={wrong}#{file_sha256(wrong)}") == 2
    assert not out.exists()


def test_the_model_that_is_tried_first_is_freed_before_clips_are_cleaned(videos, tmp_path, stand_ins, monkeypatch):
    tried, alive, model = WeakSet(), [], tmp_path / "yolox.onnx"
    model.write_bytes(b"a model")

    class Loaded(RedFinder):
        def __init__(self, path):
            super().__init__()
            tried.add(self)

    red = replace(plugins.PLUGINS["red"], make=Loaded, user_models=("yolox",))
    monkeypatch.setitem(plugins.PLUGINS, "red", red)
    monkeypatch.setattr(removal, "run", lambda *_: alive.append(len(tried)) or [])
    remove(videos, tmp_path / "out", "--models", f"yolox={model}")
    assert alive == [0]


@pytest.mark.parametrize("source", ["nowhere", "videos/to/broken.mp4", "empty"])
def test_a_source_without_clips_is_refused(source, videos, tmp_path, stand_ins):
    (tmp_path / "empty").mkdir()
    assert remove(tmp_path / source, tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


def test_the_source_is_not_overwritten(videos, tmp_path, stand_ins):
    assert remove(videos, videos / "out") == 2
    remove(videos, tmp_path / "out")
    made = hashes(tmp_path / "out")
    assert remove(tmp_path / "out" / "manifest.csv", tmp_path / "out") == 2
    assert hashes(tmp_path / "out") == made


def test_a_full_disk_exits_with_75(videos, tmp_path, stand_ins, monkeypatch):
    def full(job):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(removal, "work", full)
    assert ppma(["remove-humans", str(videos), "--out", str(tmp_path / "out"), *FLAGS]) == 75


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_a_user_model_is_in_the_record(videos, tmp_path, stand_ins):
    torch = pytest.importorskip("torch")

    class Gray(torch.nn.Module):
        def forward(self, frames: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            return frames * (1 - hidden) + 0.4 * hidden

    model = tmp_path / "gray.pt"
    torch.jit.script(Gray()).save(str(model))
    flags = ["--inpainter", "propainter", "--models", f"propainter={model}", "--accept-non-commercial"]
    remove(videos, tmp_path / "out", *flags)
    record = json.loads((tmp_path / "out" / "records" / "to" / "one.json").read_text())
    assert record["models"]["propainter"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert record["tools"]["propainter"] == "S-Lab License 1.0: non-commercial"


COMMAND = "import sys; from ppma.cli import main; sys.exit(main(sys.argv[1:]))"


def start(folder, out):
    argv = ["remove-humans", str(folder), "--out", str(out), "--method", "downsample", "--workers", "1"]
    return start_script(COMMAND, argv, out.parent)


def stop_after(process, out, count, how):
    """Send the signal when `count` clips are done; return the exit code."""
    wait_until(lambda: len(list(out.glob("records/*/[!.]*.json"))) >= count or process.exitcode is not None)
    os.kill(process.pid, how)
    process.join(300)
    return process.exitcode


@pytest.mark.promise("R29")
def test_after_a_kill_and_ctrl_c_the_same_command_continues(tmp_path):
    for i in range(12):
        write_walk(tmp_path / "in" / "a" / f"{i}.mp4", length=40, height=240, width=320)
    out, before = tmp_path / "out", hashes(tmp_path / "in")
    assert stop_after(start(tmp_path / "in", out), out, 2, signal.SIGKILL) == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in out.glob("records/*/[!.]*.json")}
    assert 2 <= len(kept) < 12
    assert stop_after(start(tmp_path / "in", out), out, len(kept) + 2, signal.SIGINT) == 130
    assert (tmp_path / "script.err").read_text().splitlines()[-1] == "ppma remove-humans: interrupted"
    assert not (out / "manifest.csv").exists()
    last = start(tmp_path / "in", out)
    last.join(300)
    assert last.exitcode == 0 and len(Manifest.read(out / "manifest.csv")) == 12
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in kept.items())
    assert not [path for part in ("inp", "seg") for path in (out / part).rglob(".*")], "no half-written clip is left"
    assert hashes(tmp_path / "in") == before


# -------------------------------------------------------------------------------------------------------------------- jobs


def test_every_clip_has_a_unique_name():
    rows = [
        row("a/one.mp4", class_name="a"),
        row("b/one.avi", class_name="a"),
        row("a/two.mp4", class_name="a", start_seconds=2.0, end_seconds=4.5),
        row("a/v1.5", class_name="c/d", codec="jpeg"),
        row("deep/e/three.mp4"),
        row("z/one-2.mp4", class_name="a"),
    ]
    assert removal.names(rows) == ["a/one", "a/one-2", "a/two_2_4.5", "c_d/v1.5", "e/three", "a/one-2-2"]


def test_a_clip_is_done_while_its_record_and_files_exist(tmp_path, stand_ins, monkeypatch):
    for name in "ab":
        write_walk(tmp_path / "in" / f"{name}.mp4")
    jobs = jobs_in(tmp_path / "in", [row("a.mp4"), row("b.mp4")], tmp_path / "out", stand_ins)
    progress, worked = [], []
    assert removal.run(jobs, 1, lambda done, total: progress.append((done, total))) == []
    assert progress == [(0, 48), (24, 48), (48, 48)] and all(job.done() for job in jobs)
    record = json.loads(jobs[0].record.read_text())
    assert record["tools"] == {"red": "none", "red-face": "none", "nothing": "none", "median": "Apache-2.0 (ppma)"}
    assert record["outcome"]["frames"] == 24 and record["row"]["path"] == "a.mp4"
    monkeypatch.setattr(removal, "work", lambda job: (job, worked.append(job.name) or ""))
    for lost in (jobs[1].record, tmp_path / "out" / "seg" / f"{jobs[0].name}.mkv"):
        lost.unlink()
        removal.run(jobs, 1)
    assert worked == [jobs[1].name, jobs[0].name, jobs[1].name]


def test_the_manifest_has_what_was_made_and_the_reasons_for_the_rest(tmp_path, stand_ins):
    write_walk(tmp_path / "in" / "a.mp4")
    (tmp_path / "in" / "b.mp4").write_bytes(b"no video")
    rows = [row("a.mp4", label=3, class_name="walks", licence="CC0"), row("b.mp4", label=4, class_name="walks")]
    jobs = jobs_in(tmp_path / "in", rows, tmp_path / "out", stand_ins)
    refused = removal.run(jobs, 1)
    assert [path for path, _ in refused] == ["b.mp4"]
    manifest = Manifest.read(removal.write_manifest(jobs, tmp_path / "out", refused, "ours"))
    assert len(manifest) == 1
    clip = manifest.clip(0)
    assert (clip.path, clip.label, clip.domain, clip.licence) == ("inp/walks/a.mp4", 3, "human-removed", "CC0")
    assert (clip.frames, clip.width, clip.height, clip.fps, clip.codec) == (24, 128, 96, 10.0, "h264")
    assert "b.mp4" in (tmp_path / "out" / "rejected.csv").read_text()
    with pytest.raises(InputError, match=r"rejected\.csv"):
        removal.write_manifest(jobs[1:], tmp_path / "out", refused, "")


def test_a_full_disk_leaves_no_part_of_a_clip(tmp_path, stand_ins, monkeypatch):
    def full(path, *_):
        with atomic_path(path):
            raise OSError(errno.ENOSPC, "No space left on device")

    write_walk(tmp_path / "in" / "a.mp4")
    (job,) = jobs_in(tmp_path / "in", [row("a.mp4")], tmp_path / "out", stand_ins)
    monkeypatch.setattr(clip_module, "part_writer", full)
    with pytest.raises(DiskFullError):
        removal.work(job)
    assert not job.done() and not files(tmp_path / "out")


def test_a_folder_holds_clips_of_one_kind(tmp_path):
    def settings(path="/a/big-lama.pt", sha256="1", **changes):
        return Settings(models=(Model(name="lama", path=Path(path), sha256=sha256),), **changes)

    removal.claim(tmp_path, settings())
    removal.claim(tmp_path, settings("/b/big-lama.pt"))
    for other, named in ((settings(layout="frames"), "layout videos, not frames"), (settings(sha256="2"), "models")):
        with pytest.raises(InputError, match=named):
            removal.claim(tmp_path, other)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="out"):
        removal.claim(tmp_path / "file" / "out", settings())


def test_a_folder_begun_before_an_option_existed_goes_on_without_it(tmp_path):
    removal.claim(tmp_path, Settings())
    note = tmp_path / "settings.json"
    known = json.loads(note.read_text())
    del known["effects"]
    note.write_text(json.dumps(known))
    removal.claim(tmp_path, Settings())
    with pytest.raises(InputError, match="effects"):
        removal.claim(tmp_path, Settings(effects=True))


def test_memory_does_not_grow_with_the_clip(tmp_path, stand_ins):
    """A frame takes 36 kB here: 80 more of them held would be 3 MB. The first clip compiles; in both others pixels are synthesized."""
    peaks = []
    for traced, length in enumerate((50, 50, 130)):
        write_walk(tmp_path / "in" / f"{length}.mp4", length=length)
        (job,) = jobs_in(tmp_path / "in", [row(f"{length}.mp4", frames=length)], tmp_path / "out", stand_ins)
        pipeline = Pipeline(job.settings, tmp_path)
        if traced:
            tracemalloc.start()
        pipeline.clean(job.source, job.out, job.name)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert 0 < peaks[1] and peaks[2] - peaks[1] < 1e6, peaks
