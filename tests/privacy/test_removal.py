"""Many clips: each has one name, is done once, and costs no more memory when it is long."""

import errno
import json
import tracemalloc
from pathlib import Path

import pytest
from privacy_stand_ins import write_walk

from ppma.common.files import atomic_path
from ppma.config.errors import DiskFullError, InputError
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.privacy.detectors.user_models import Model
from ppma.privacy.removal import clip as clip_module
from ppma.privacy.removal import jobs as removal
from ppma.privacy.removal.clip import Pipeline, Settings


def row(path, **values):
    known = {
        "frames": 24,
        "fps": 10.0,
        "width": 128,
        "height": 96,
        "codec": "h264",
        "key_frame_spacing": 10,
        "duration_seconds": 2.4,
    }
    return Clip(path=path, **{**known, **values})


def jobs_in(folder, rows, out, stand_ins, layout="videos"):
    return removal.jobs_of(rows, folder, out, Settings(layout=layout, **stand_ins), folder)


@pytest.fixture(autouse=True)
def fresh_pipeline():
    """The plug-ins of a process are kept; a test's stand-ins must not outlive it."""
    removal._pipeline.cache_clear()


def test_every_clip_has_a_name_of_its_own():
    rows = [
        row("a/one.mp4", class_name="a"),
        row("b/one.avi", class_name="a"),
        row("a/two.mp4", class_name="a", start_seconds=2.0, end_seconds=4.5),
        row("a/v1.5", class_name="c/d", codec="jpeg"),
        row("deep/e/three.mp4"),
    ]
    assert removal.names(rows) == ["a/one", "a/one-2", "a/two_2_4.5", "c_d/v1.5", "e/three"]


def test_a_name_that_a_clip_has_is_not_given_to_another():
    rows = [row("x/one.mp4", class_name="a"), row("y/one.mp4", class_name="a"), row("z/one-2.mp4", class_name="a")]
    assert len(set(removal.names(rows))) == 3


def test_what_is_done_is_not_done_again(tmp_path, stand_ins, monkeypatch):
    write_walk(tmp_path / "in" / "a.mp4")
    write_walk(tmp_path / "in" / "b.mp4")
    jobs = jobs_in(tmp_path / "in", [row("a.mp4"), row("b.mp4")], tmp_path / "out", stand_ins)
    told = []
    (tmp_path / "out").mkdir()
    assert removal.run(jobs, 1, lambda done, total: told.append((done, total))) == []
    assert told == [(0, 48), (24, 48), (48, 48)] and all(job.done() for job in jobs)
    record = json.loads(jobs[0].record.read_text())
    assert record["tools"] == {"red": "none", "red-face": "none", "nothing": "none", "median": "Apache-2.0 (ppma)"}
    assert record["outcome"]["frames"] == 24 and record["row"]["path"] == "a.mp4"
    jobs[1].record.unlink()
    worked = []
    monkeypatch.setattr(removal, "work", lambda job: (job, worked.append(job.name) or ""))
    removal.run(jobs, 1)
    assert worked == [jobs[1].name]


def test_a_clip_whose_files_are_gone_is_not_done(tmp_path, stand_ins):
    write_walk(tmp_path / "in" / "a.mp4")
    (job,) = jobs_in(tmp_path / "in", [row("a.mp4")], tmp_path, stand_ins)
    assert not job.done() and removal.work(job) == (job, "") and job.done()
    (tmp_path / "seg" / f"{job.name}.mkv").unlink()
    assert not job.done()


def test_the_manifest_says_what_was_made_and_why_some_is_missing(tmp_path, stand_ins):
    write_walk(tmp_path / "in" / "a.mp4")
    (tmp_path / "in" / "b.mp4").write_bytes(b"no video")
    rows = [row("a.mp4", label=3, class_name="walks", licence="CC0"), row("b.mp4", label=4, class_name="walks")]
    jobs = jobs_in(tmp_path / "in", rows, tmp_path / "out", stand_ins)
    (tmp_path / "out").mkdir()
    refused = removal.run(jobs, 1)
    assert [path for path, _ in refused] == ["b.mp4"]
    manifest = Manifest.read(removal.write_manifest(jobs, tmp_path / "out", refused, "ours"))
    assert len(manifest) == 1
    clip = manifest.clip(0)
    assert (clip.path, clip.label, clip.domain, clip.licence) == ("inp/walks/a.mp4", 3, "human-removed", "CC0")
    assert (clip.frames, clip.width, clip.height, clip.fps, clip.codec) == (24, 128, 96, 10.0, "h264")
    assert "b.mp4" in (tmp_path / "out" / "rejected.csv").read_text()
    with pytest.raises(InputError, match=r"rejected.csv"):
        removal.write_manifest(jobs[1:], tmp_path / "out", refused, "")


def test_frames_in_folders_are_what_the_loader_reads(tmp_path, stand_ins):
    write_walk(tmp_path / "in" / "a.mp4", length=5)
    jobs = jobs_in(tmp_path / "in", [row("a.mp4", class_name="walks")], tmp_path, stand_ins, layout="frames")
    assert removal.work(jobs[0])[1] == ""
    clip = Manifest.read(removal.write_manifest(jobs, tmp_path, [], "")).clip(0)
    assert (clip.path, clip.codec, clip.frames) == ("inp/walks/a", "jpeg", 5)
    assert sorted(p.name for p in (tmp_path / "seg" / "walks" / "a").iterdir()) == [f"{n:06d}.png" for n in range(1, 6)]


def test_a_full_disk_is_told_as_one(tmp_path, stand_ins, monkeypatch):
    write_walk(tmp_path / "in" / "a.mp4")
    (job,) = jobs_in(tmp_path / "in", [row("a.mp4")], tmp_path / "out", stand_ins)
    (tmp_path / "out").mkdir()

    def full(path, *_):
        with atomic_path(path):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(clip_module, "part_writer", full)
    with pytest.raises(DiskFullError, match="No space left"):
        removal.work(job)
    assert not job.done() and not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_folder_holds_clips_of_one_kind(tmp_path):
    lama = Model(name="lama", path=Path("/a/big-lama.pt"), sha256="1")
    removal.claim(tmp_path, Settings(models=(lama,)))
    moved = Model(name="lama", path=Path("/b/big-lama.pt"), sha256="1")
    removal.claim(tmp_path, Settings(models=(moved,)))
    with pytest.raises(InputError, match="layout videos, not frames"):
        removal.claim(tmp_path, Settings(models=(lama,), layout="frames"))
    with pytest.raises(InputError, match="models"):
        removal.claim(tmp_path, Settings(models=(Model(name="lama", path=lama.path, sha256="2"),)))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="out"):
        removal.claim(tmp_path / "file" / "out", Settings())


def test_memory_does_not_grow_with_the_clip(tmp_path, stand_ins):
    """A frame takes 36 kB here: 160 more of them held would be 6 MB. The first one compiles; in both others something is made up."""
    peaks = []
    (tmp_path / "out").mkdir()
    for length in (160, 160, 320):
        write_walk(tmp_path / "in" / f"{length}.mp4", length=length)
        (job,) = jobs_in(tmp_path / "in", [row(f"{length}.mp4", frames=length)], tmp_path / "out", stand_ins)
        pipeline = Pipeline(job.settings, tmp_path)
        tracemalloc.start()
        pipeline.clean(job.source, job.out, job.name)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 1e6, peaks


def test_the_estimate_comes_from_some_frames(tmp_path, stand_ins):
    write_walk(tmp_path / "in" / "a.mp4", length=5)
    jobs = jobs_in(tmp_path / "in", [row("a.mp4")] * 4, tmp_path / "out", stand_ins)
    assert 0 < removal.seconds_per_frame(jobs) < 1
    assert not (tmp_path / "out").exists()
