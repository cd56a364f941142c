"""`ppma synthesize`: identical files for any number of workers, resumable, and a manifest that matches the files."""

import errno
import os
import signal

import av
import numpy as np
import pytest
from processes import run_script, start_script
from waiting import wait_until

from ppma.cli import main as ppma
from ppma.common import shares
from ppma.common.shares import Share
from ppma.config.command import DONE, INTERRUPTED, RUN_AGAIN, WRONG_INPUT
from ppma.config.errors import DiskFullError, InputError
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.probe import probe
from ppma.synthetic import production
from ppma.synthetic.clip import SCENE_KINDS
from ppma.synthetic.production import SynthesisConfig, encode, generate

SMALL = {"classes": ("wave", "walk"), "clips": 2, "size": 32, "seconds": 1.0, "fps": 8.0, "workers": 1}
FLAGS = ["--classes", "wave", "bow", "--clips", "1", "--size", "32", "--seconds", "1", "--fps", "8", "--workers", "1"]


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def synthesize(*flags):
    return ppma(["synthesize", *map(str, flags)])


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """One run with masks and empty twins, for reading only."""
    folder = tmp_path_factory.mktemp("once")
    generate(SynthesisConfig(out=folder, masks=True, empty=True, **SMALL))
    return folder


def test_the_files_do_not_depend_on_the_number_of_workers(once, tmp_path):
    generate(SynthesisConfig(out=tmp_path, masks=True, empty=True, **SMALL | {"workers": 2}))
    assert contents(tmp_path) == contents(once)


def test_the_requested_files_are_written(once):
    clips = {f"{name}/train_{n:05d}" for name in ("wave", "walk") for n in range(2)}
    expected = {name for clip in clips for name in (f"{clip}.mp4", f"empty/{clip}.mp4", f"masks/{clip}.npz")}
    assert set(contents(once)) == expected | {"train.csv", "train_empty.csv", "train.settings.json"}


def test_the_manifest_agrees_with_the_probe(once):
    manifest = Manifest.read(once / "train.csv")
    assert manifest.class_names == {0: "wave", 1: "walk"} and manifest.labels.tolist() == [0, 0, 1, 1]
    for i in range(len(manifest)):
        clip, found = manifest.clip(i), probe(manifest.file(i))
        for name in ("frames", "fps", "width", "height", "key_frame_spacing", "duration_seconds"):
            assert getattr(clip, name) == pytest.approx(getattr(found, name))
        assert clip.codec == found.codec and clip.domain == "synthetic" and "CC0" in clip.licence


def test_empty_scenes_are_labeled_by_kind_and_are_synthetic(once):
    manifest = Manifest.read(once / "train_empty.csv")
    assert len(manifest) == 4 and all(SCENE_KINDS[k] == name for k, name in manifest.class_names.items())
    assert (manifest.labels >= 0).all() and "wave" not in manifest.class_names.values()
    assert {manifest.clip(i).domain for i in range(4)} == {"synthetic"}


def test_empty_scenes_with_own_backgrounds_have_no_label(clip_tree, tmp_path):
    one = SMALL | {"classes": ("wave",), "clips": 1}
    generate(SynthesisConfig(out=tmp_path, empty=True, backgrounds=clip_tree, **one))
    assert Manifest.read(tmp_path / "train_empty.csv").labels.tolist() == [-1]


def test_masks_are_where_clip_and_empty_twin_differ(once):
    """After encoding, too."""
    videos = (av.open(str(once / part / "wave/train_00000.mp4")).decode(video=0) for part in ("", "empty"))
    clip, empty = (np.stack([frame.to_ndarray(format="rgb24") for frame in video]) for video in videos)
    mask_THW = np.load(once / "masks/wave/train_00000.npz")["mask_THW"]
    assert mask_THW.shape == clip.shape[:3] and mask_THW.dtype == bool and mask_THW.any((1, 2)).all()
    difference_THW = np.abs(clip.astype(int) - empty).mean(-1)
    assert difference_THW[mask_THW].mean() > 5 * difference_THW[~mask_THW].mean()


def test_a_rerun_keeps_finished_clips_and_can_add_more(once, tmp_path):
    """The clip is the same whatever other classes there are."""
    generate(SynthesisConfig(out=tmp_path, **SMALL | {"clips": 1, "classes": ("walk",)}))
    made = tmp_path / "walk/train_00000.mp4"
    before, seen = made.stat().st_mtime_ns, []
    manifest = generate(SynthesisConfig(out=tmp_path, **SMALL), on_progress=lambda *counts: seen.append(counts))
    assert made.stat().st_mtime_ns == before and seen == [(done, 4) for done in range(1, 5)]
    clips = {name: data for name, data in contents(once).items() if name.startswith("w")}
    assert clips.items() <= contents(tmp_path).items() and len(clips) == len(Manifest.read(manifest)) == 4


@pytest.mark.usefixtures("owners_live")
def test_parts_write_the_files_of_one_run(once, tmp_path):
    """The clip that another part has begun is left to it; all others are done by the only part that runs."""
    shape = {"out": tmp_path, "masks": True, "empty": True, **SMALL}
    other = Share(tmp_path / shares.FOLDER, (0, 2))
    begun = next(next(other.rounds(["wave/train_00001.mp4"])))
    generate(SynthesisConfig(part="0/3", **shape))
    assert len(list(tmp_path.glob("w*/*.mp4"))) == 3 and not (tmp_path / "train.csv").exists()
    with pytest.raises(InputError, match=begun):
        generate(SynthesisConfig(merge=3, **shape))
    other.finish(begun)  # its task ends without it
    generate(SynthesisConfig(part="1/3", **shape))
    for _ in range(2):  # a merge that is queued again finds its result
        generate(SynthesisConfig(merge=3, **shape))
    assert contents(tmp_path) == contents(once)


def test_the_result_is_entered_into_data_toml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [*FLAGS, "--out", "made", "--empty", "--name", "virtual"]
    assert synthesize(*flags, "--part", "0/2") == DONE and not (tmp_path / "data.toml").exists()
    assert synthesize(*flags, "--merge", 2) == DONE
    found = catalog.find()
    manifest = found.manifest("virtual", "train")
    clips = [manifest.clip(i) for i in range(2)]
    assert [(clip.label, clip.class_name) for clip in clips] == [(0, "wave"), (1, "bow")]
    assert all(clip.licence and clip.domain == "synthetic" and manifest.file(0).is_file() for clip in clips)
    assert len(found.manifest("virtual-empty", "train")) == 2


def test_a_folder_of_other_settings_is_refused(once):
    with pytest.raises(InputError, match="size 32, not 48"):
        generate(SynthesisConfig(out=once, **SMALL | {"size": 48}))


def test_both_splits_fit_in_one_folder(tmp_path):
    shape = SMALL | {"clips": 1, "classes": ("wave",)}
    paths = [generate(SynthesisConfig(out=tmp_path, split=split, **shape)) for split in ("train", "test")]
    assert [path.name for path in paths] == ["train.csv", "test.csv"]
    assert (tmp_path / "wave/train_00000.mp4").read_bytes() != (tmp_path / "wave/test_00000.mp4").read_bytes()


def test_a_full_disk_keeps_finished_clips(once, tmp_path, monkeypatch, capsys):
    complete, written = production.encode, []

    def runs_full(path, *rest):
        if len(written) == 2:
            raise DiskFullError(f"{path}: No space left on device")
        written.append(path)
        complete(path, *rest)

    monkeypatch.setattr(production, "encode", runs_full)
    flags = ["--out", tmp_path, *FLAGS, "--classes", "wave", "walk", "--clips", 2]
    assert synthesize(*flags) == RUN_AGAIN and capsys.readouterr().err.count("\n") == 1
    monkeypatch.undo()
    assert sorted(tmp_path.rglob("*.mp4")) == sorted(written) and not (tmp_path / "train.csv").exists()
    assert synthesize(*flags) == DONE
    assert (tmp_path / "walk/train_00001.mp4").read_bytes() == (once / "walk/train_00001.mp4").read_bytes()


def test_an_incomplete_file_never_has_the_clips_name(tmp_path):
    def pictures():
        yield np.zeros((32, 32, 3), np.uint8)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFullError):
        encode(tmp_path / "a" / "clip.mp4", pictures(), 8.0)
    assert not list((tmp_path / "a").iterdir())


COMMAND = """
import ctypes, sys
from ppma.cli import main
assert ctypes.CDLL(None).mallopt(-6, int(sys.argv[1]))  # M_PERTURB: glibc fills fresh memory with this byte, if not 0
sys.exit(main(["synthesize", *sys.argv[2:]]))
"""


def test_ctrl_c_leaves_complete_clips(tmp_path):
    out = tmp_path / "clips"
    process = start_script(COMMAND, ["0", "--out", str(out), *FLAGS, "--clips", "20", "--workers", "2"], tmp_path)
    wait_until(lambda: list(out.rglob("train*.mp4")))
    os.kill(process.pid, signal.SIGINT)
    process.join(300)
    message = (tmp_path / "script.err").read_text().splitlines()[-1]
    made = [path for path in out.rglob("*") if path.suffix == ".mp4"]
    assert process.exitcode == INTERRUPTED and message.endswith("interrupted") and 0 < len(made) < 40
    assert not (out / "train.csv").exists() and {probe(path).frames for path in made} == {8}


def test_clips_do_not_depend_on_uninitialized_memory(tmp_path):
    """glibc fills fresh memory with a byte of our choice, which must not reach a file. 48 pixels are the odd case."""
    found = []
    for byte in ("85", "170"):
        flags = f"--classes run backflip --clips 1 --size 48 --fps 4 --workers 1 --out {tmp_path / byte}"
        code, error = run_script(COMMAND, [byte, *flags.split()], tmp_path)
        assert code == 0, error
        found.append(contents(tmp_path / byte))
    assert len(found[0]) == 4 and found[0] == found[1]


def test_encoding_is_reproducible_with_a_key_frame_every_second(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 255, (20, 32, 32, 3), dtype=np.uint8)
    paths = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for path in paths:
        encode(path, pictures, 8.0)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with av.open(str(paths[0])) as container:
        keys = [bool(packet.is_keyframe) for packet in container.demux(video=0) if packet.size]
    assert [i for i, key in enumerate(keys) if key] == [0, 8, 16]


def test_the_command_reports_what_it_wrote(tmp_path, capsys):
    assert synthesize(*FLAGS, "--out", tmp_path / "clips", "--dry-run") == DONE
    assert "2 clips of 2 classes, 8 frames" in capsys.readouterr().out and not (tmp_path / "clips").exists()
    assert synthesize(*FLAGS, "--out", tmp_path, "--people", 2) == DONE
    assert "2 clips" in capsys.readouterr().out and len(Manifest.read(tmp_path / "train.csv")) == 2


WRONG = (
    "--classes wave fly, --classes wave wave, --size 33, --size 30, --size 2000, --clips 0, --clips many, --people 0, --people 7, "
    "--seconds 0, --fps 1000, --seed -1, --split validation, --workers 0, --backgrounds nowhere, --bvh nowhere, "
    "--name a/b, --data data.toml"
)


@pytest.mark.parametrize("flags", WRONG.split(", "))
def test_wrong_input_is_one_line(tmp_path, capsys, flags):
    assert synthesize("--out", tmp_path / "clips", *flags.split()) == WRONG_INPUT
    error = capsys.readouterr().err
    assert flags.split()[0] in error and error.count("\n") == 1
    assert not (tmp_path / "clips").exists(), "nothing is written before everything is checked"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert synthesize(*FLAGS, "--out", tmp_path / "file" / "clips") == WRONG_INPUT
    assert "file" in capsys.readouterr().err
