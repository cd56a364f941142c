"""The audit from end to end with detectors that see red: what it finds, what it cannot tell, what it refuses."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from ppma.cli import main as ppma
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.privacy.detectors import auditors as audit_detectors
from ppma.privacy.detectors.auditors import AUDITORS, AuditorKind
from ppma.privacy.detectors.boxes import NONE_05
from ppma.privacy.removal import jobs as removal
from ppma.privacy.removal.writing import part_writer
from ppma.privacy.verdict import CANNOT_TELL, FAILED, PASSED, passed_path, read_verdicts, seal_path

RED = (250, 20, 20)
CLIPS = {
    "jump/clean": PASSED,
    "jump/left": FAILED,
    "run/blind": CANNOT_TELL,
    "run/touched": FAILED,
    "run/short": FAILED,
}


class RedFinder:
    """Finds what is red with a score of its redness."""

    def __init__(self, *_):
        pass

    def __call__(self, frame_HWC):
        red = (frame_HWC[..., 0] > 180) & (frame_HWC[..., 1] < 90)
        if red.sum() < 20:
            return NONE_05
        rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
        return np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1, 0.9]], np.float32)


@pytest.fixture
def red_auditors(monkeypatch):
    monkeypatch.setattr(audit_detectors, "AUDITORS", AUDITORS)
    for name, kind in list(AUDITORS.items()):
        stand_in = AuditorKind(make=RedFinder, finds=kind.finds, license="none", threshold=0.5)
        monkeypatch.setitem(AUDITORS, name, stand_in)


def place(seed):
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(40, 160, (24, 32, 1)), np.ones((4, 4, 3))).astype(np.uint8)


def write(path, pictures, part="inp"):
    with part_writer(path, part, "videos", 10.0) as add:
        for picture in pictures:
            add(picture)


def hidden(frames=8):
    masks = np.zeros((frames, 96, 128), bool)
    masks[:, 26:84, 36:76] = True
    return masks


def scene(name, people):
    """(original, cleaned, masks) of a clip; a red block stands in it when there are people."""
    ground = place(len(name))
    before = [ground.copy() for _ in range(8)]
    for frame in before if people else ():
        frame[30:80, 40:72] = RED
    return before, [ground.copy() for _ in range(8)], hidden()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Originals, and what a remover has left of them: well done, somebody left, nobody ever there, other pixels touched, cut short."""
    folder = tmp_path_factory.mktemp("audit")
    rows = []
    for name in CLIPS:
        before, after, masks = scene(name, people=name != "run/blind")
        if name == "jump/left":
            after[5][30:80, 40:72] = RED
        if name == "run/touched":
            for frame in after:
                frame[:20, :20] = 255 - frame[:20, :20]
        cut = 6 if name == "run/short" else 8
        write(folder / "videos" / f"{name}.mp4", before)
        write(folder / "removed" / "inp" / f"{name}.mp4", after[:cut])
        write(folder / "removed" / "seg" / f"{name}.mkv", list(masks[:cut]), "seg")
        record = folder / "removed" / "records" / f"{name}.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps({"row": {"path": f"{name}.mp4"}, "tools": {"red-finder": "none"}, "outcome": {}}))
        rows.append(
            Clip(
                path=f"inp/{name}.mp4", class_name=name.split("/")[0], label=int(name.startswith("run")), source="own",
                frames=cut, fps=10.0, width=128, height=96, codec="h264", key_frame_spacing=cut, duration_seconds=cut / 10,
                domain="human-removed", licence="own footage",
            )
        )  # fmt: skip
    Manifest.write(folder / "removed" / removal.MANIFEST, rows)
    return folder


@pytest.fixture
def copy(world, tmp_path):
    """The same, for a test that changes it."""
    return shutil.copytree(world, tmp_path / "world")


def audit(folder, *flags, out="report", originals=True):
    given = ["--originals", folder / "videos"] if originals else []
    argv = ["audit", folder / "removed", *given, "--out", folder / out, "--frames", "0", "--workers", "1", *flags]
    return ppma([str(word) for word in argv])


def said(folder, out="report"):
    return json.loads((folder / out / "audit.json").read_text())


def test_verdicts_bounds_and_the_seal(copy, red_auditors, capsys):
    threads = torch.get_num_threads()
    assert audit(copy) == 0 and torch.get_num_threads() == threads
    report = said(copy)
    assert {clip["name"]: clip["verdict"] for clip in report["clips"]} == CLIPS
    rate = report["rates"]["nanodet"]
    assert (rate["clips"], rate["sighted"], rate["hits"]) == (5, 4, 1) and rate["before"] == 1.0
    assert rate["after"] == pytest.approx(1 / 30) and rate["upper"] == pytest.approx(0.7514, abs=1e-4)
    assert report["classes"]["run"]["rates"]["any"]["sighted"] == 2
    clips = {clip["name"]: clip for clip in report["clips"]}
    assert "blind here: 0 of 8" in clips["run/blind"]["detectors"]["hog"]["says"]
    assert clips["run/touched"]["checks"]["same outside"]["held"] is False
    assert clips["run/short"]["checks"]["every frame"] == {"held": False, "says": "6 frames of 8 in the original"}
    assert clips["jump/clean"]["outside_db"] > 40 and clips["jump/clean"]["inside_change"] > 20
    manifest = copy / "removed" / removal.MANIFEST
    assert {path: found.verdict for path, found in read_verdicts(manifest).items()} == {
        f"inp/{n}.mp4": v for n, v in CLIPS.items()
    }
    told = capsys.readouterr().out
    assert "1 passed, 3 failed, 1 cannot tell" in told and "manifest-passed.csv: those that passed" in told


def test_those_that_passed_have_a_manifest_of_their_own(copy, red_auditors, monkeypatch):
    assert audit(copy) == 0
    passed = passed_path(copy / "removed" / removal.MANIFEST)
    rows = Manifest.read(passed)
    assert [rows.clip(i).path for i in range(len(rows))] == ["inp/jump/clean.mp4"]
    assert set(read_verdicts(passed)) == {f"inp/{name}.mp4" for name in CLIPS}, "sealed to the report of all"
    seal_path(passed).rename(copy / "aside")
    assert audit(copy) == 2 and len(Manifest.read(passed)) == 1, "a file without a seal is somebody's own"
    (copy / "aside").rename(seal_path(passed))
    monkeypatch.setattr(RedFinder, "__call__", lambda self, frame: NONE_05)
    shutil.rmtree(copy / "report")
    assert audit(copy) == 0 and not passed.exists() and not seal_path(passed).exists(), (
        "detectors are blind: none passes"
    )


def test_the_page_stands_by_itself_and_promises_nothing(copy, red_auditors):
    assert audit(copy) == 0
    page = (copy / "report" / "report.html").read_text()
    assert "in at most" in page and "% of clips (95 %)" in page and page.count("<svg") == 2
    assert page.count("data:image/jpeg;base64,") == len(CLIPS)
    assert not re.search(r"(src|href)=.?(https?:)?//", page) and "anonym" not in page.lower()
    sheet = (copy / "report" / "datasheet.md").read_text()
    headings = (
        "Motivation",
        "Composition",
        "Collection process",
        "Preprocessing",
        "Uses",
        "Distribution",
        "Maintenance",
    )
    assert all(f"## {heading}" in sheet for heading in headings) and "anonym" not in sheet.lower()
    croissant = json.loads((copy / "report" / "croissant.json").read_text())
    assert croissant["conformsTo"].endswith("croissant/1.0") and croissant["license"] == ["own footage"]
    assert {field["name"] for field in croissant["recordSet"][0]["field"]} >= {"path", "audit", "licence"}


def test_without_originals_no_clip_passes(copy, red_auditors):
    assert audit(copy, originals=False) == 0
    verdicts = {clip["name"]: clip["verdict"] for clip in said(copy)["clips"]}
    assert verdicts == {name: FAILED if name == "jump/left" else CANNOT_TELL for name in CLIPS}
    assert "no clip can pass" in (copy / "report" / "report.html").read_text()


def test_finished_clips_are_kept_until_they_change(copy, red_auditors, monkeypatch):
    assert audit(copy) == 0
    looked = []
    monkeypatch.setattr(RedFinder, "__call__", lambda self, frame: looked.append(1) or NONE_05)
    assert audit(copy) == 0 and not looked
    write(copy / "removed" / "inp" / "jump" / "clean.mp4", [place(1)] * 8)
    assert audit(copy) == 0 and len(looked) == 2 * 8 * len(AUDITORS)
    write(copy / "videos" / "jump" / "clean.mp4", [place(2)] * 8)
    assert audit(copy) == 0 and len(looked) == 4 * 8 * len(AUDITORS), "another original, changed in place"


def change_record(folder, **fields):
    for path in (folder / "removed" / "records").rglob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_what_cannot_be_audited_is_one_line_and_exit_code_2(copy, red_auditors, capsys):
    change_record(copy, tools={"hog": "Apache-2.0"})
    assert audit(copy) == 2
    assert "hog made the masks and cannot judge them" in capsys.readouterr().err
    change_record(copy, tools={})
    assert audit(copy) == 2
    assert "no record of what made its masks (5 such clips); name the tools with --makers" in capsys.readouterr().err
    assert audit(copy, "--makers", "hog") == 2
    assert audit(copy, "--makers", "by-hand") == 0
    capsys.readouterr()
    assert not (copy / "other").exists()
    (copy / "videos" / "run" / "touched.mp4").unlink()
    assert audit(copy, "--makers", "by-hand", out="other") == 2
    assert "has no run/touched.mp4 for inp/run/touched.mp4" in capsys.readouterr().err and not (copy / "other").exists()
    assert audit(copy, "--detectors", "nanodet", "blazeface", out="other") == 2
    assert audit(copy, "--frames", "-1", out="other") == 2
    assert ppma(["audit", str(copy / "nowhere"), "--out", str(copy / "other")]) == 2
    capsys.readouterr()
    (copy / "removed" / removal.MANIFEST).unlink()
    assert audit(copy, out="other") == 2
    assert (
        "has no manifest.csv: let `ppma remove-humans` finish" in capsys.readouterr().err
        and not (copy / "other").exists()
    )


def test_another_tools_folder_is_audited_and_gets_a_manifest(copy, red_auditors):
    """Clips without masks and records: verdicts go into a manifest of the report's own."""
    theirs = copy / "removed" / "inp"
    flags = [
        "--originals",
        copy / "videos",
        "--out",
        copy / "report",
        "--makers",
        "theirs",
        "--workers",
        1,
        "--frames",
        4,
    ]
    assert ppma(["audit", str(theirs), *map(str, flags)]) == 0
    report = said(copy)
    assert report["makers"] == ["theirs"] and report["clips"][0]["checks"]["same outside"]["held"] is None
    assert {found.verdict for found in read_verdicts(copy / "report" / "manifest.csv").values()} == {
        PASSED,
        FAILED,
        CANNOT_TELL,
    }
    assert (
        ppma(["audit", str(theirs), *map(str, flags[:2]), "--out", str(theirs / "report"), "--makers", "theirs"]) == 2
    )


def test_a_clip_that_cannot_be_read_is_named_and_the_others_are_kept(copy, red_auditors, capsys):
    broken = copy / "removed" / "inp" / "jump" / "clean.mp4"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:900])
    assert audit(copy) == 2
    assert "clean.mp4" in capsys.readouterr().err and not (copy / "report" / "audit.json").exists()
    assert len(list((copy / "report" / "clips").rglob("*.json"))) == len(CLIPS) - 1
    broken.write_bytes(whole)
    assert audit(copy) == 0


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda f: write(f / "videos/jump/clean.mp4", [np.zeros((48, 64, 3), np.uint8)] * 8),
            "its original 64 x 48; give",
        ),
        (lambda f: (f / "videos/jump/clean.mp4").write_bytes(b"no film"), "has an original, .*clean.mp4, that"),
        (lambda f: (f / "removed/seg/jump/clean.mkv").write_bytes(b"no film"), "has a mask, .*clean.mkv, that"),
        (lambda f: (f / "removed/records/jump/clean.json").write_text("{"), "is no record of `ppma remove-humans`"),
    ],
)
def test_what_belongs_to_a_clip_and_does_not_fit_is_named(copy, red_auditors, capsys, damage, reason):
    damage(copy)
    assert audit(copy) == 2
    message = capsys.readouterr().err
    assert re.search(reason, message) and message.strip().count("\n") == 0
    assert not (copy / "report" / "audit.json").exists()


def test_frames_that_the_manifest_does_not_know_fail_a_clip(copy, red_auditors):
    manifest = copy / "removed" / removal.MANIFEST
    manifest.write_text(manifest.read_text().replace("own,,,8,10.0", "own,,,4,10.0"))
    assert audit(copy, originals=False) == 0
    clean = next(clip for clip in said(copy)["clips"] if clip["name"] == "jump/clean")
    assert clean["verdict"] == FAILED and clean["checks"]["every frame"]["says"] == "8 frames, and the manifest says 4"


def test_sound_and_metadata_are_found(copy, red_auditors):
    import av

    path = copy / "removed" / "inp" / "jump" / "clean.mp4"
    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata["location"] = "+52.5+013.4/"
        video, sound = container.add_stream("libx264", rate=10), container.add_stream("aac", rate=44100)
        video.height, video.width, video.pix_fmt = 96, 128, "yuv420p"
        for picture in [place(1)] * 8:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        silence.sample_rate = 44100
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    assert audit(copy) == 0
    checks = next(clip for clip in said(copy)["clips"] if clip["name"] == "jump/clean")["checks"]
    assert [checks[name]["held"] for name in ("no sound", "no metadata", "no location")] == [False, False, False]
    assert "location" in checks["no location"]["says"]
