"""Files: the same bytes whatever the number of workers, resumed where it stopped, a manifest that tells the truth."""

import errno
import io
import os
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest

from ppma.config.errors import DiskFullError, InputError
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.probe import probe
from ppma.synthetic import production
from ppma.synthetic.clip import SCENE_KINDS
from ppma.synthetic.production import SynthesisConfig, encode, generate

SMALL = {"classes": ("wave", "walk"), "clips": 2, "size": 32, "seconds": 1.0, "fps": 8.0, "workers": 1}


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """One run with everything asked for, for reading only."""
    folder = tmp_path_factory.mktemp("once")
    generate(SynthesisConfig(out=folder, masks=True, empty=True, **SMALL))
    return folder


def test_another_worker_count_gives_the_same_files(once, tmp_path):
    generate(SynthesisConfig(out=tmp_path, masks=True, empty=True, **SMALL | {"workers": 3}))
    assert contents(tmp_path) == contents(once)


def test_what_is_written(once):
    names = set(contents(once))
    clips = {f"{name}/train_{n:05d}" for name in ("wave", "walk") for n in range(2)}
    expected = (
        {f"{clip}.mp4" for clip in clips}
        | {f"empty/{clip}.mp4" for clip in clips}
        | {f"masks/{clip}.npz" for clip in clips}
    )
    assert names == expected | {"train.csv", "train_empty.csv", "train.settings.json"}


def test_the_manifest_says_what_the_probe_finds(once):
    manifest = Manifest.read(once / "train.csv")
    assert manifest.class_names == {0: "wave", 1: "walk"} and manifest.labels.tolist() == [0, 0, 1, 1]
    for i in range(len(manifest)):
        clip, facts = manifest.clip(i), probe(manifest.file(i))
        for name in ("frames", "fps", "width", "height", "codec", "key_frame_spacing", "duration_seconds"):
            assert (
                getattr(clip, name) == pytest.approx(getattr(facts, name))
                if name != "codec"
                else clip.codec == facts.codec
            )
        assert clip.domain == "synthetic" and "CC0" in clip.licence


def test_empty_scenes_are_labelled_by_kind_and_never_called_human_removed(once):
    manifest = Manifest.read(once / "train_empty.csv")
    assert len(manifest) == 4 and all(SCENE_KINDS[k] == name for k, name in manifest.class_names.items())
    assert (manifest.labels >= 0).all() and "wave" not in manifest.class_names.values()
    assert {manifest.clip(i).domain for i in range(4)} == {"synthetic"}
    assert "human-removed" not in (once / "train_empty.csv").read_text()


def test_scenes_before_own_footage_have_no_label(clip_tree, tmp_path):
    config = SynthesisConfig(
        out=tmp_path, empty=True, backgrounds=clip_tree, **SMALL | {"classes": ("wave",), "clips": 1}
    )
    generate(config)
    assert Manifest.read(tmp_path / "train_empty.csv").labels.tolist() == [-1]


def test_masks_lie_where_clip_and_empty_twin_differ(once):
    """After encoding too: large differences are the people's and their shadows'."""
    clip, empty = (
        np.stack(
            [f.to_ndarray(format="rgb24") for f in av.open(str(once / part / "wave/train_00000.mp4")).decode(video=0)]
        )
        for part in ("", "empty")
    )
    mask_THW = np.load(once / "masks/wave/train_00000.npz")["mask_THW"]
    assert mask_THW.shape == clip.shape[:3] and mask_THW.dtype == bool and mask_THW.any((1, 2)).all()
    difference_THW = np.abs(clip.astype(int) - empty).mean(-1)
    assert difference_THW[mask_THW].mean() > 5 * difference_THW[~mask_THW].mean()


def test_a_rerun_keeps_what_is_there_and_more_can_be_asked(once, tmp_path):
    generate(SynthesisConfig(out=tmp_path, **SMALL | {"clips": 1}))
    made = tmp_path / "wave/train_00000.mp4"
    before, seen = made.stat().st_mtime_ns, []
    manifest = generate(
        SynthesisConfig(out=tmp_path, **SMALL), on_progress=lambda done, total: seen.append((done, total))
    )
    assert made.stat().st_mtime_ns == before and seen == [(2, 4), (3, 4), (4, 4)]
    assert (tmp_path / "walk/train_00001.mp4").read_bytes() == (once / "walk/train_00001.mp4").read_bytes()
    assert len(Manifest.read(manifest)) == 4


def test_a_clip_does_not_depend_on_the_other_classes(once, tmp_path):
    generate(SynthesisConfig(out=tmp_path, **SMALL | {"classes": ("walk",), "clips": 1}))
    assert (tmp_path / "walk/train_00000.mp4").read_bytes() == (once / "walk/train_00000.mp4").read_bytes()


def test_parts_make_the_files_that_one_run_makes(once, tmp_path):
    shape = {"out": tmp_path, "masks": True, "empty": True, **SMALL}
    for part in ("0/3", "2/3"):
        generate(SynthesisConfig(part=part, **shape))
    assert not (tmp_path / "train.csv").exists()
    with pytest.raises(InputError, match=r"wave/train_00001.mp4 and 0 more are missing; run --part 1/3 first"):
        generate(SynthesisConfig(merge=3, **shape))
    generate(SynthesisConfig(part="1/3", **shape))
    generate(SynthesisConfig(merge=3, **shape))
    assert contents(tmp_path) == contents(once)


def test_other_settings_are_not_mixed_in(once):
    with pytest.raises(InputError, match="size 32, not 48; give another folder"):
        generate(SynthesisConfig(out=once, **SMALL | {"size": 48}))


def test_both_splits_fit_in_one_folder(tmp_path):
    shape = SMALL | {"clips": 1, "classes": ("wave",)}
    train, test = (generate(SynthesisConfig(out=tmp_path, split=split, **shape)) for split in ("train", "test"))
    assert [path.name for path in (train, test)] == ["train.csv", "test.csv"]
    assert (tmp_path / "wave/train_00000.mp4").read_bytes() != (tmp_path / "wave/test_00000.mp4").read_bytes()


def test_a_full_disk_keeps_finished_clips(once, tmp_path, monkeypatch):
    complete, written = production.write_bytes, []

    def runs_full(path, content):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        complete(path, content)

    monkeypatch.setattr(production, "write_bytes", runs_full)
    with pytest.raises(DiskFullError, match="No space left"):
        generate(SynthesisConfig(out=tmp_path, **SMALL))
    monkeypatch.undo()
    assert sorted(tmp_path.rglob("*.mp4")) == sorted(written) and not list(tmp_path.rglob("*.tmp"))
    generate(SynthesisConfig(out=tmp_path, **SMALL))
    assert (tmp_path / "walk/train_00001.mp4").read_bytes() == (once / "walk/train_00001.mp4").read_bytes()


def test_a_half_written_file_never_has_the_clips_name(tmp_path, monkeypatch):
    def breaks_off(self, content):
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", breaks_off)
    with pytest.raises(DiskFullError):
        production.write_bytes(tmp_path / "a" / "clip.mp4", b"x" * 100)
    assert not list((tmp_path / "a").iterdir())


def test_ctrl_c_leaves_whole_clips_and_the_same_command_goes_on(tmp_path):
    arguments = [
        "--out",
        str(tmp_path),
        "--classes",
        "wave",
        "--clips",
        "40",
        "--size",
        "32",
        "--seconds",
        "1",
        "--fps",
        "8",
        "--workers",
        "2",
    ]
    code = (
        "import sys; from ppma.config.command import run; from ppma.synthetic.command import main; "
        "sys.exit(run(main, sys.argv[1:], prog='ppma'))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.mp4")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    made = list(tmp_path.rglob("*.mp4"))
    assert process.returncode == 130 and told.strip() == "ppma: interrupted" and 0 < len(made) < 40
    assert not list(tmp_path.rglob("*.tmp")) and not (tmp_path / "train.csv").exists()
    assert {probe(path).frames for path in made} == {8}


def test_clips_do_not_depend_on_what_the_memory_held(tmp_path):
    """glibc fills fresh memory with a byte of our choice, of which nothing may reach a file. 48 pixels are x264's odd case."""
    found = []
    for byte in ("0", "85", "170"):
        folder = tmp_path / byte
        flags = [
            "--classes",
            "run",
            "backflip",
            "--clips",
            "3",
            "--size",
            "48",
            "--fps",
            "4",
            "--workers",
            "1",
            "--out",
        ]
        environment = {**os.environ, "MALLOC_PERTURB_": byte}
        subprocess.run([sys.executable, "-m", "ppma", "synthesize", *flags, str(folder)], check=True, env=environment)
        found.append(contents(folder))
    assert len(found[0]) >= 6 and found[0] == found[1] == found[2]


def test_encoding_is_repeatable_and_marks_key_frames():
    rng = np.random.default_rng(0)
    pictures = list(rng.integers(0, 255, (20, 32, 32, 3), dtype=np.uint8))
    first = encode(pictures, 8.0)
    assert first == encode(pictures, 8.0)
    with av.open(io.BytesIO(first)) as container:
        keys = [bool(packet.is_keyframe) for packet in container.demux(video=0) if packet.size]
    assert [i for i, key in enumerate(keys) if key] == [0, 8, 16]
