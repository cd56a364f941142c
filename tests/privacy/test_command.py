"""`ppma remove-humans` as a user meets it: what it writes, what it refuses, and what is left after a kill."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction

import av
import numpy as np
import pytest
from privacy_stand_ins import FLAGS, write_walk

from ppma.cli import main as ppma
from ppma.config.errors import DiskFullError, InputError
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.privacy.removal import jobs as removal
from ppma.privacy.removal.command import main


@pytest.fixture(autouse=True)
def fresh_pipeline():
    removal._pipeline.cache_clear()


@pytest.fixture
def videos(tmp_path):
    """Two clips of two classes, and a file that is none."""
    folder = tmp_path / "videos"
    for name in ("to/one", "fro/two"):
        write_walk(folder / f"{name}.mp4", length=12)
    (folder / "to" / "broken.mp4").write_bytes(b"no video")
    return folder


def hashes(folder):
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob("*") if path.is_file()}


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


MADE = [
    "inp/fro/two.mp4", "inp/to/one.mp4", "manifest.csv", "records/fro/two.json", "records/to/one.json",
    "rejected.csv", "seg/fro/two.mkv", "seg/to/one.mkv", "settings.json",
]  # fmt: skip


def test_a_folder_goes_through_and_what_cannot_be_read_is_named(videos, tmp_path, stand_ins, capsys):
    before, out = hashes(videos), tmp_path / "out"
    assert main([str(videos), "--out", str(out), *FLAGS, "--licence", "ours"]) == 2
    told = capsys.readouterr()
    assert "to/broken.mp4" in told.out and "1 clips cannot be read" in told.err and told.err.count("\n") == 1
    assert files(out) == MADE and hashes(videos) == before
    manifest = Manifest.read(out / "manifest.csv")
    assert {manifest.clip(i).class_name for i in range(2)} == {"to", "fro"} and manifest.clip(0).licence == "ours"
    times = {path: path.stat().st_mtime_ns for path in (out / "inp").rglob("*.mp4")}
    assert main([str(videos), "--out", str(out), *FLAGS, "--licence", "ours"]) == 2
    assert times == {path: path.stat().st_mtime_ns for path in (out / "inp").rglob("*.mp4")}


def test_the_result_is_entered_into_the_data_catalog_by_name(videos, tmp_path, stand_ins, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main([str(videos), "--out", "out", *FLAGS, "--name", "removed", "--data", str(tmp_path / "data.toml")])
    found = catalog.read(tmp_path / "data.toml").manifest("removed")
    assert len(found) == 2 and all(found.file(i).is_file() for i in range(2))


def test_parts_and_their_merge_make_what_one_run_makes(videos, tmp_path, stand_ins, capsys):
    """A part is done though it refused a clip: SLURM starts the merge after parts that are done, and the merge tells."""
    out = tmp_path / "out"
    for part in ("0/2", "1/2"):
        assert main([str(videos), "--out", str(out), *FLAGS, "--part", part]) == 0
        assert not (out / "manifest.csv").exists()
    capsys.readouterr()
    assert main([str(videos), "--out", str(out), *FLAGS, "--merge", "2"]) == 2
    assert "to/broken.mp4: " in capsys.readouterr().out
    assert files(out) == sorted([*MADE, "parts/0-of-2.json", "parts/1-of-2.json"])
    assert len(Manifest.read(out / "manifest.csv")) == 2


def test_what_breaks_while_it_is_read_is_told_by_the_merge_with_its_reason(videos, tmp_path, stand_ins, capsys):
    (videos / "to" / "broken.mp4").unlink()
    out = str(tmp_path / "out")
    main([str(videos), "--out", str(tmp_path / "first"), *FLAGS])
    manifest = videos / "clips.csv"
    lines = (tmp_path / "first" / "manifest.csv").read_text().replace("inp/", "")
    manifest.write_text(lines)
    whole = (videos / "to" / "one.mp4").read_bytes()
    (videos / "to" / "one.mp4").write_bytes(whole[:700])
    assert main([str(manifest), "--out", out, *FLAGS, "--part", "0/1"]) == 0
    capsys.readouterr()
    assert main([str(manifest), "--out", out, *FLAGS, "--merge", "1"]) == 2
    told = capsys.readouterr().out
    assert "to/one.mp4: " in told and "did not finish" not in told


def test_a_part_that_is_not_finished_is_told_by_the_merge(videos, tmp_path, stand_ins, capsys):
    (videos / "to" / "broken.mp4").unlink()
    assert main([str(videos), "--out", str(tmp_path / "out"), *FLAGS, "--part", "1/2"]) == 0
    assert main([str(videos), "--out", str(tmp_path / "out"), *FLAGS, "--merge", "2"]) == 2
    assert "its part did not finish" in capsys.readouterr().out


def test_a_dry_run_writes_nothing_and_names_the_licences(videos, tmp_path, stand_ins, capsys):
    assert main([str(videos), "--out", str(tmp_path / "out"), *FLAGS, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "2 clips, 0 of them done; 24 frames left at" in told and "about 0:0" in told
    assert "inpainter median: Apache-2.0 (ppma)" in told and not (tmp_path / "out").exists()


def test_frames_as_published_and_originals_when_asked_for(videos, tmp_path, stand_ins):
    (videos / "to" / "broken.mp4").unlink()
    out = tmp_path / "out"
    assert main([str(videos), "--out", str(out), *FLAGS, "--layout", "frames", "--keep-original"]) == 0
    for part, suffix in (("inp", "jpg"), ("seg", "png"), ("ori", "jpg")):
        made = sorted(path.name for path in (out / part / "to" / "one").iterdir())
        assert made == [f"{n:06d}.{suffix}" for n in range(1, 13)]


def test_sound_and_metadata_stay_behind(tmp_path, stand_ins):
    path = tmp_path / "videos" / "a" / "told.mp4"
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
    assert main([str(path.parents[1]), "--out", str(tmp_path / "out"), *FLAGS, "--keep-original"]) == 0
    for part in ("inp", "ori"):
        made = tmp_path / "out" / part / "a" / "told.mp4"
        with av.open(str(made)) as container:
            assert [stream.type for stream in container.streams] == ["video"]
            assert set(container.metadata) <= {"major_brand", "minor_version", "compatible_brands"}
        assert not any(word in made.read_bytes() for word in (b"a name", b"48.85", b"at home", b"camera"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--detectors", "yolo"], "there is no detector 'yolo'; detectors are movenet, centerface"),
        (["--segmenter", "sam"], "segmenters are selfie"),
        (["--inpainter", "none"], "inpainters are median, lama, e2fgvi, propainter"),
        (["--detectors", "movenet", "--method", "blur-faces"], "needs one that finds faces"),
        (["--detectors"], "needs a detector"),
        (
            ["--inpainter", "e2fgvi"],
            "is licensed under CC BY-NC 4.0: non-commercial use only; give --accept-non-commercial",
        ),
        (["--set", "paper"], "give --accept-non-commercial if your use is, or choose another with --inpainter"),
        (["--set", "paper", "--accept-non-commercial"], "e2fgvi needs E2FGVI as TorchScript"),
        (["--set", "paper", "--inpainter", "median"], "semask needs a segmenter as TorchScript"),
        (
            ["--set", "quality"],
            r"lama needs LaMa as TorchScript.*which ppma does not fetch: .*big-lama.pt is missing",
        ),
        (["--models", "lama=x.pt"], "no chosen tool uses it"),
        ([], r"is not in .*ppma privacy fetch --weights"),
        (["--part", "2/2"], "write I/N with I from 0 to N - 1"),
        (["--part", "0/2", "--merge", "2"], "give one of the two"),
        (["--short-side", "8"], "goes with --method downsample"),
        (["--workers", "0"], "--workers"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(flags, message, videos, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=message):
        main([str(videos), "--out", str(out), "--weights", str(tmp_path / "none"), *flags])
    assert not out.exists()


def test_the_source_is_not_written_over(videos, tmp_path, stand_ins):
    with pytest.raises(InputError, match="inside the source"):
        main([str(videos), "--out", str(videos / "out"), *FLAGS])
    main([str(videos), "--out", str(tmp_path / "out"), *FLAGS])
    made = hashes(tmp_path / "out")
    with pytest.raises(InputError, match=r"holds inp/fro/two.mp4 of the source; give another folder"):
        main([str(tmp_path / "out" / "manifest.csv"), "--out", str(tmp_path / "out"), *FLAGS])
    assert hashes(tmp_path / "out") == made


@pytest.mark.parametrize("source", ["nowhere", "videos/to/one.mp4", "empty"])
def test_a_source_that_is_none_is_told(source, videos, tmp_path, stand_ins):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        main([str(tmp_path / source), "--out", str(tmp_path / "out"), *FLAGS])
    assert not (tmp_path / "out").exists()


def test_a_full_disk_exits_with_75(videos, tmp_path, stand_ins, monkeypatch):
    def full(job):
        raise DiskFullError("out: No space left on device")

    monkeypatch.setattr(removal, "work", full)
    assert ppma(["remove-humans", str(videos), "--out", str(tmp_path / "out"), *FLAGS]) == 75


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_a_model_that_the_user_brings_goes_into_the_record(videos, tmp_path, stand_ins):
    torch = pytest.importorskip("torch")

    class Grey(torch.nn.Module):
        def forward(self, frames: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            return frames * (1 - hidden) + 0.4 * hidden

    torch.jit.script(Grey()).save(str(tmp_path / "grey.pt"))
    out, own = tmp_path / "out", f"propainter={tmp_path / 'grey.pt'}"
    flags = ["--inpainter", "propainter", "--models", own, "--accept-non-commercial"]
    main([str(videos), "--out", str(out), *FLAGS, *flags])
    record = json.loads((out / "records" / "to" / "one.json").read_text())
    assert record["models"]["propainter"]["sha256"] == hashlib.sha256((tmp_path / "grey.pt").read_bytes()).hexdigest()
    assert record["tools"]["propainter"] == "S-Lab License 1.0: non-commercial"


def start(folder, out):
    command = [sys.executable, "-m", "ppma", "remove-humans", str(folder), "--out", str(out)]
    return subprocess.Popen([*command, "--method", "downsample", "--workers", "1"], stderr=subprocess.PIPE, text=True)


def stop_after(process, out, count, how):
    """Send the signal when so many clips are done; returns (exit code, what was said)."""
    end = time.monotonic() + 60
    while len(list(out.glob("records/*/*.json"))) < count and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(process.pid, how)
    said = process.communicate(timeout=60)[1]
    return process.returncode, said


def test_after_a_kill_and_ctrl_c_the_same_command_goes_on(tmp_path):
    for i in range(12):
        write_walk(tmp_path / "in" / "a" / f"{i}.mp4", length=40, height=240, width=320)
    out, before = tmp_path / "out", hashes(tmp_path / "in")
    assert stop_after(start(tmp_path / "in", out), out, 2, signal.SIGKILL)[0] == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in out.glob("records/*/*.json")}
    assert 2 <= len(kept) < 12
    code, said = stop_after(start(tmp_path / "in", out), out, len(kept) + 2, signal.SIGINT)
    assert code == 130 and said.splitlines()[-1] == "ppma remove-humans: interrupted"
    assert not (out / "manifest.csv").exists()
    last = start(tmp_path / "in", out)
    assert last.wait(timeout=60) == 0 and len(Manifest.read(out / "manifest.csv")) == 12
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in kept.items())
    assert not [path for path in out.rglob("*") if ".partial" in path.name] and hashes(tmp_path / "in") == before
