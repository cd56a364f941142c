"""`ppma audit` from end to end with stand-in detectors of red blocks: verdicts, reports and refusals."""

import csv
import hashlib
import json
import re
import shutil
import subprocess
import time
from dataclasses import replace
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
import torch

from ppma.cli import main as ppma
from ppma.common import shares
from ppma.common.files import content_sha256
from ppma.common.plots import svg
from ppma.common.shares import Share
from ppma.loaders.decode.fetch import all_frames
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.privacy.audit import jobs as audit_jobs
from ppma.privacy.audit import report, spikes
from ppma.privacy.audit.clip import Inspector
from ppma.privacy.detectors.auditors import AUDITORS, BUNDLED, AuditorKind
from ppma.privacy.detectors.boxes import NONE_05
from ppma.privacy.policy import Policy
from ppma.privacy.removal import jobs as removal
from ppma.privacy.removal.writing import part_writer
from ppma.privacy.verdict import CANNOT_TELL, FAILED, PASSED, passed_path, read_verdicts, seal_path

RED = (250, 20, 20)
RECORD = {"tools": {"red-finder": "none"}, "settings": {"method": "remove"}, "outcome": {}}
CLIPS = {
    "jump/clean": PASSED,
    "jump/left": FAILED,
    "run/blind": CANNOT_TELL,
    "run/empty": PASSED,
    "run/touched": FAILED,
    "run/short": FAILED,
}


class RedFinder:
    """Detect red blocks, with a score of 0.9; blind in the dark."""

    def __init__(self, *_):
        pass

    def __call__(self, frame_HWC):
        red = (frame_HWC[..., 0] > 180) & (frame_HWC[..., 1] < 90)
        if np.median(frame_HWC) < 30:
            return NONE_05
        blocks = cv2.connectedComponentsWithStats(red.astype(np.uint8))[2][1:]
        x, y, w, h = blocks[blocks[:, 4] >= 20, :4].T
        return np.stack([x, y, x + w, y + h, np.full(len(x), 0.9)], 1).astype(np.float32)


@pytest.fixture
def red_auditors(monkeypatch):
    """Auditors that detect red blocks, and red people to spike in."""
    for name, kind in list(AUDITORS.items()):
        stand_in = AuditorKind(make=RedFinder, finds=kind.finds, license="none", threshold=0.5)
        monkeypatch.setitem(AUDITORS, name, stand_in)
    monkeypatch.setattr(report, "svg", lambda figure: "<svg>")  # half of the time of a small audit
    person = np.dstack([np.full((60, 12, 3), RED, np.uint8), np.full((60, 12, 1), 255, np.uint8)])
    monkeypatch.setattr(spikes, "drawn_people", lambda: (person,))


def place(seed):
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(40, 160, (24, 32, 1)), np.ones((4, 4, 3))).astype(np.uint8)


def write(path, pictures, part="inp"):
    with part_writer(path, part, "videos", 10.0) as add:
        for picture in pictures:
            add(picture)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Originals and cleaned clips: clean, a person left, too dark, an empty street, other pixels changed, cut short."""
    folder = tmp_path_factory.mktemp("audit")
    rows = []
    for name in CLIPS:
        before, after = ([place(len(name)) for _ in range(8)] for _ in range(2))
        for frame in before if name != "run/empty" else ():
            frame[30:80, 40:72] = RED
        if name == "run/blind":
            before, after = ([frame // 8 for frame in frames] for frames in (before, after))
        if name == "jump/left":
            after[5][30:80, 40:72] = RED
        for frame in after if name == "run/touched" else ():
            frame[:20, :20] = 255 - frame[:20, :20]
        masks = np.zeros((8, 96, 128), bool)
        masks[:, 26:84, 36:76] = True
        cut = 6 if name == "run/short" else 8
        write(folder / "videos" / f"{name}.mp4", before)
        write(folder / "removed" / "inp" / f"{name}.mp4", after[:cut])
        write(folder / "removed" / "seg" / f"{name}.mkv", masks[:cut], "seg")
        record = folder / "removed" / "records" / f"{name}.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        outside = outside_sha256(folder, name) if name == "run/empty" else ""
        record.write_text(
            json.dumps({**RECORD, "row": {"path": f"{name}.mp4"}, "outcome": {"outside_sha256": outside}})
        )
        rows.append(
            Clip(
                path=f"inp/{name}.mp4", class_name=name.split("/")[0], label=int(name.startswith("run")), source="own",
                frames=cut, fps=10.0, width=128, height=96, codec="h264", key_frame_spacing=cut, duration_seconds=cut / 10,
                domain="human-removed", licence="own footage",
            )
        )  # fmt: skip
    Manifest.write(folder / "removed" / removal.MANIFEST, rows)
    return folder


def outside_sha256(folder, name):
    """Hash the original's pixels outside the mask, as `ppma remove-humans` does."""
    pair = zip(*(all_frames(folder / file, 0.0, 9.0) for file in (f"videos/{name}.mp4", f"removed/seg/{name}.mkv")))
    return hashlib.sha256(b"".join(frame[mask[..., 0] < 128].tobytes() for (_, frame), (_, mask) in pair)).hexdigest()


@pytest.fixture
def copy(world, tmp_path):
    """A copy for a test that changes it."""
    return shutil.copytree(world, tmp_path / "world")


@pytest.fixture
def pair(copy):
    """The same with two of the clips: one that passes, and one that fails."""
    manifest = copy / "removed" / removal.MANIFEST
    rows = Manifest.read(manifest)
    Manifest.write(manifest, [rows.clip(0), rows.clip(1)])
    return copy


def audit(folder, *flags, out="report", originals=True):
    given = ["--originals", folder / "videos"] if originals else []
    argv = ["audit", folder / "removed", *given, "--out", folder / out, "--frames", "0", "--workers", "1", *flags]
    return ppma([str(word) for word in argv])


def read_audit(folder):
    return json.loads((folder / "report" / "audit.json").read_text())


def clip_of(folder, name="jump/clean"):
    return next(clip for clip in read_audit(folder)["clips"] if clip["name"] == name)


def test_verdicts_bounds_and_the_seal(copy, red_auditors, capsys):
    threads = torch.get_num_threads()
    assert audit(copy) == 3 and torch.get_num_threads() == threads
    report = read_audit(copy)
    assert {clip["name"]: clip["verdict"] for clip in report["clips"]} == CLIPS
    rate = report["rates"]["nanodet"]
    assert (rate["clips"], rate["hits"]) == (6, 1) and rate["before"] == pytest.approx(30 / 46)
    assert rate["after"] == pytest.approx(1 / 46) and 0.5 < rate["sensitivity"] < 1
    clean, empty = clip_of(copy), clip_of(copy, "run/empty")
    assert (clean["people"], clean["people_missed"], clean["people_painted_back"]) == (8, 0, 0) and empty["people"] == 0
    assert empty["spiked"] == empty["spiked_found"] > 0, "an empty street passes where known people are found"
    assert clip_of(copy, "run/blind")["spiked_found"] == 0
    assert clip_of(copy, "run/touched")["checks"]["same outside"]["held"] is False
    assert clip_of(copy, "run/short")["checks"]["every frame"]["held"] is False
    assert clean["outside_db"] > 40 and clean["inside_change"] > 20 and clean["method"] == "remove"
    assert [one["height"] for one in report["residual"]] == [24, 48, 96] and len(report["models"]) == 0
    verdicts = read_verdicts(copy / "removed" / removal.MANIFEST)
    assert {path: one.verdict for path, one in verdicts.items()} == {f"inp/{n}.mp4": v for n, v in CLIPS.items()}
    assert not Policy().objection_to(verdicts["inp/jump/clean.mp4"])
    assert "sensitivity" in Policy().objection_to(verdicts["inp/run/blind.mp4"])
    printed = capsys.readouterr().out
    assert "2 passed, 3 failed, 1 cannot tell" in printed and "manifest-passed.csv" in printed
    with (copy / "report" / "clips.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and [row["verdict"] for row in rows[:3]] == [FAILED] * 3


def test_a_person_who_was_missed_or_painted_back_fails_a_clip_that_no_detector_fails(pair, red_auditors, monkeypatch):
    """The auditors see nobody in the result here: what was there before decides."""
    before = np.stack([frame for _, frame in all_frames(pair / "videos" / "jump" / "clean.mp4", 0.0, 9.0)])
    whole, empty = RedFinder.__call__, np.stack([place(10)] * 8)
    before[:, :8, :8] = empty[:, :8, :8] = 255  # a mark at which the stand-in is blind, as if people were never there

    def blind(self, frame_HWC):
        return NONE_05 if frame_HWC[:8, :8].mean() > 240 else whole(self, frame_HWC)

    monkeypatch.setattr(RedFinder, "__call__", blind)
    for cleaned, masked, count in (
        (before, slice(26, 84), "people_painted_back"),
        (empty, slice(26, 40), "people_missed"),
    ):
        masks = np.zeros((8, 96, 128), bool)
        masks[:, masked, 36:76] = True
        write(pair / "removed/inp/jump/clean.mp4", cleaned)
        write(pair / "removed/seg/jump/clean.mkv", masks, "seg")
        assert audit(pair) == 3
        assert clip_of(pair)[count] == 8 and clip_of(pair)["verdict"] == FAILED


def test_a_person_who_is_lost_in_most_frames_is_followed_and_missed_there(pair, red_auditors, monkeypatch):
    """The auditors are sure in the first frame of the original, where the mask holds, and nearly sure in the others."""
    whole = RedFinder.__call__

    def unsure(self, frame_HWC):
        boxes_N5 = whole(self, frame_HWC)
        boxes_N5[:, 4] = 0.9 if frame_HWC[:8, :8].mean() > 240 else 0.4
        return boxes_N5

    monkeypatch.setattr(RedFinder, "__call__", unsure)
    before = [place(10) for _ in range(8)]
    for frame in before:
        frame[30:80, 40:72] = RED
        frame[30:80, 40:72, 2] = place(3)[30:80, 40:72, 2]  # folds of cloth
    before[0][:8, :8] = 255
    write(pair / "videos/jump/clean.mp4", before)
    masks = np.zeros((8, 96, 128), bool)
    masks[0, 26:84, 36:76] = True
    write(pair / "removed/seg/jump/clean.mkv", masks, "seg")
    assert audit(pair) == 3
    clip = clip_of(pair)
    assert (clip["people"], clip["people_missed"], clip["verdict"]) == (8, 7, FAILED)


@pytest.mark.parametrize("masked", [False, True])
def test_a_clip_that_is_cleaned_only_where_detectors_look_fails(pair, red_auditors, masked):
    """With two inspected frames of eight, people are followed through the others, masked but not painted over."""
    people = [place(10) for _ in range(8)]
    for one in people:
        one[30:80, 40:72] = RED
        one[30:80, 40:72, 2] = place(3)[30:80, 40:72, 2]  # folds of cloth
    masks = np.zeros((8, 96, 128), bool)
    masks[:, 26:84, 36:76] = masked
    masks[[0, 7], 26:84, 36:76] = True
    write(pair / "videos/jump/clean.mp4", people)
    write(pair / "removed/inp/jump/clean.mp4", [place(10), *people[1:7], place(10)])
    write(pair / "removed/seg/jump/clean.mkv", masks, "seg")
    assert audit(pair, "--frames", 2) == 3
    assert (clip_of(pair)["people_missed"], clip_of(pair)["verdict"]) == (6, FAILED)


@pytest.mark.parametrize(
    ("record", "says"),
    [({"settings": {"method": "blur-bodies"}}, "blur-bodies"), ({"outcome": {"clean": False}}, "found people")],
)
def test_a_record_that_says_that_people_are_left_fails_a_clip(pair, red_auditors, record, says):
    change_records(pair, **record)
    assert audit(pair) == 3
    assert clip_of(pair)["verdict"] == FAILED and says in clip_of(pair)["says"]


def test_clips_that_passed_have_their_own_manifest(copy, red_auditors, monkeypatch):
    pytest.importorskip("bcrypt", reason="the extra [privacy] is not installed")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(copy / "key")], check=True)
    assert audit(copy, "--sign", copy / "key") == 3
    passed = passed_path(copy / "removed" / removal.MANIFEST)
    assert read_verdicts(passed, copy / "key.pub")
    rows = Manifest.read(passed)
    assert [rows.clip(i).path for i in range(len(rows))] == ["inp/jump/clean.mp4", "inp/run/empty.mp4"]
    assert set(read_verdicts(passed)) == {f"inp/{name}.mp4" for name in CLIPS}, "sealed to the report of all"
    seal_path(passed).rename(copy / "aside")
    assert audit(copy) == 2 and len(Manifest.read(passed)) == 2, "a file without a seal may be the user's"
    (copy / "aside").rename(seal_path(passed))
    monkeypatch.setattr(RedFinder, "__call__", lambda self, frame: NONE_05)
    shutil.rmtree(copy / "report")
    assert audit(copy) == 3 and not passed.exists() and not seal_path(passed).exists(), "blind detectors pass no clip"


def test_the_page_is_self_contained_and_promises_nothing(copy, red_auditors, monkeypatch):
    monkeypatch.setattr(report, "svg", svg)
    assert audit(copy) == 3
    review = ["audit", "review", str(copy / "report"), "--out", str(copy / "review.html"), "--workers", "1"]
    assert ppma(review) == 0 and (copy / "review.html").read_text().count('alt="original"') == 3 * 8
    page, sheet = ((copy / "report" / name).read_text() for name in ("report.html", "datasheet.md"))
    assert "in at most" in page and "% of clips (95 %)" in page and page.count("<svg") == 1
    assert page.count("data:image/jpeg;base64,") == len(CLIPS)
    assert not re.search(r"(src|href)=.?(https?:)?//", page) and "anonym" not in (page + sheet).lower()
    headings = "Motivation, Composition, Collection process, Preprocessing, Uses, Distribution, Maintenance"
    assert all(f"## {heading}" in sheet for heading in headings.split(", "))
    croissant = json.loads((copy / "report" / "croissant.json").read_text())
    assert croissant["conformsTo"].endswith("croissant/1.0") and croissant["license"] == ["own footage"]
    assert {field["name"] for field in croissant["recordSet"][0]["field"]} >= {"path", "audit", "licence"}


def test_a_detector_of_the_users_joins_the_others(pair, red_auditors):
    assert audit(pair, "--detectors", *AUDITORS) == 3
    assert set(read_audit(pair)["auditors"]) == set(AUDITORS) > set(BUNDLED)


def test_names_are_escaped_in_the_page(pair, red_auditors):
    manifest = pair / "removed" / removal.MANIFEST
    manifest.write_text(manifest.read_text().replace(",jump,", ",<b>jump</b>,"))
    assert audit(pair) == 3
    page = (pair / "report" / "report.html").read_text()
    assert "&lt;b&gt;jump" in page and "<b>jump" not in page


def test_without_originals_no_clip_passes(copy, red_auditors):
    assert audit(copy, originals=False) == 3
    verdicts = {clip["name"]: clip["verdict"] for clip in read_audit(copy)["clips"]}
    assert verdicts == {name: FAILED if name == "jump/left" else CANNOT_TELL for name in CLIPS}
    assert "no clip can pass" in (copy / "report" / "report.html").read_text()


def test_finished_clips_are_kept_until_they_change(pair, red_auditors, monkeypatch):
    assert audit(pair) == 3
    calls = []
    monkeypatch.setattr(RedFinder, "__call__", lambda self, frame: calls.append(1) or NONE_05)
    assert audit(pair) == 3 and not calls
    clip, manifest = "jump/clean", pair / "removed" / removal.MANIFEST
    record = pair / "removed" / "records" / f"{clip}.json"
    changes = [
        lambda: write(pair / "removed/inp" / f"{clip}.mp4", [place(2)] * 8),
        lambda: write(pair / "videos" / f"{clip}.mp4", [place(4)] * 8),
        lambda: write(pair / "removed/seg" / f"{clip}.mkv", np.ones((8, 96, 128), bool), "seg"),
        lambda: record.write_text(record.read_text().replace('"outside_sha256": ""', '"outside_sha256": "0"')),
    ]
    for change in changes:
        calls.clear()
        change()
        assert audit(pair) == 3 and len(calls) == 20 * len(BUNDLED), "before, after, and four with people spiked in"
    manifest.write_text(manifest.read_text().replace(",jump,", ",leap,"))
    assert audit(pair) == 3 and read_audit(pair)["classes"].keys() == {"leap"}


def test_two_audits_at_once_share_the_clips(pair, red_auditors, monkeypatch):
    """The clip that another audit has begun is left to it, and its findings are read."""
    assert audit(pair) == 3
    calls, record, aside = [], pair / "report/clips/jump/clean.json", pair / "aside"
    monkeypatch.setattr(RedFinder, "__call__", lambda self, frame: calls.append(1) or NONE_05)
    record.rename(aside)
    other = Share(pair / "report" / shares.FOLDER, (0, 2))
    begun = next(next(other.rounds(["inp/jump/clean.mp4"])))

    def finish(_):
        aside.rename(record)
        other.finish(begun, "")

    monkeypatch.setattr(shares, "time", SimpleNamespace(monotonic=time.monotonic, time=time.time, sleep=finish))
    assert audit(pair) == 3 and not calls and not (pair / "report" / shares.FOLDER).exists()


@pytest.mark.usefixtures("owners_live")
def test_parts_and_their_merge_make_the_report_of_one_run(copy, red_auditors, monkeypatch, capsys):
    """The clip that another part has begun is left to it; all others are inspected by the only part that runs."""
    assert audit(copy, "--dry-run") == 0 and not (copy / "report").exists()
    other = Share(copy / "report" / shares.FOLDER, (0, 2))
    begun = next(next(other.rounds(["inp/run/blind.mp4"])))
    assert audit(copy, "--part", "1/2") == 0 and "5 of 6 clips" in capsys.readouterr().out
    assert begun in refusal(capsys, audit(copy, "--merge", 2)) and not (copy / "report" / "audit.json").exists()
    assert "frames" in refusal(capsys, audit(copy, "--part", "1/2", "--frames", 3))
    other.finish(begun)  # its task ends without it
    assert audit(copy, "--part", "0/2") == 0
    calls = []
    monkeypatch.setattr(RedFinder, "__call__", lambda self, frame: calls.append(1) or NONE_05)
    monkeypatch.setattr(audit_jobs, "content_sha256", calls.append)  # nor reads a merge the clips to hash them
    for _ in range(2):  # a merge that is queued again finds its result
        assert audit(copy, "--merge", 2) == 3 and not calls
    assert {clip["name"]: clip["verdict"] for clip in read_audit(copy)["clips"]} == CLIPS
    assert not (copy / "report" / shares.FOLDER).exists()


def test_a_part_leaves_an_unreadable_clip_to_the_merge(pair, red_auditors, capsys):
    broken = pair / "removed" / "inp" / "jump" / "clean.mp4"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:900])
    assert audit(pair, "--part", "0/1") == 0 and "clean.mp4" in capsys.readouterr().out
    assert "clean.mp4" in refusal(capsys, audit(pair, "--merge", 1)) and not (pair / "report" / "audit.json").exists()
    broken.write_bytes(whole)
    assert audit(pair, "--merge", 1) == 3 and clip_of(pair)["verdict"] == PASSED


def test_a_clip_that_changes_while_others_are_inspected_stays_in_the_report(pair, red_auditors, monkeypatch):
    """Its findings are those of the content that was inspected, whose hash is in the report."""
    inspected = audit_jobs.inspect

    def inspect(job):
        result = inspected(job)
        if job.pair.name == "jump/clean":
            write(job.pair.cleaned, [place(3)] * 8)
        return result

    monkeypatch.setattr(audit_jobs, "inspect", inspect)
    before = content_sha256(pair / "removed/inp/jump/clean.mp4")
    assert audit(pair) == 3 and clip_of(pair)["sha256"] == before


def test_a_clip_that_is_swapped_while_it_is_inspected_is_refused(pair, red_auditors, monkeypatch, capsys):
    """Its hash would be that of other pictures than those that were seen."""
    people = pair / "removed/inp/jump/left.mp4"
    inspected = Inspector.inspect

    def inspect(self, one, sha256):
        write(people, [place(9)] * 8)
        return inspected(self, one, sha256)

    monkeypatch.setattr(Inspector, "inspect", inspect)
    assert "left.mp4" in refusal(capsys, audit(pair)) and not (pair / "report" / "audit.json").exists()


def test_a_record_cannot_name_an_original_that_is_elsewhere(pair, red_auditors, capsys):
    """The folder that was delivered must not choose what it is compared with."""
    for path in ("../removed/inp/jump/left.mp4", str(pair / "removed/inp/jump/left.mp4")):
        change_records(pair, row={"path": path})
        assert "--originals" in refusal(capsys, audit(pair))


def test_a_record_of_another_form_is_named(pair, red_auditors, capsys):
    for fields in ({"row": [1]}, {"outcome": 3}, {"settings": []}, {"tools": 1}):
        change_records(pair, **fields)
        assert "records/jump/clean.json" in refusal(capsys, audit(pair))


def test_the_cleaned_clip_encoded_again_is_no_original(pair, red_auditors):
    """Without a hash of the original, nothing tells it from the clip that was cleaned."""
    write(
        pair / "videos/jump/clean.mp4",
        [frame for _, frame in all_frames(pair / "removed/inp/jump/clean.mp4", 0.0, 9.0)],
    )
    assert audit(pair) == 3
    assert clip_of(pair)["verdict"] == CANNOT_TELL


@pytest.mark.parametrize("masks", [None, np.ones((8, 96, 128), bool)])
def test_no_clip_passes_where_nothing_outside_a_mask_is_compared(pair, red_auditors, masks):
    write(pair / "videos/jump/clean.mp4", [place(20 + t) for t in range(8)])  # another place, without people
    (pair / "removed/seg/jump/clean.mkv").unlink()
    if masks is not None:
        write(pair / "removed/seg/jump/clean.mkv", masks, "seg")
    assert audit(pair) == 3
    assert clip_of(pair)["verdict"] == CANNOT_TELL


def test_windows_of_a_file_are_refused(pair, red_auditors, capsys):
    manifest = pair / "removed" / removal.MANIFEST
    rows = Manifest.read(manifest)
    for window in ({"start_seconds": 0.4}, {"end_seconds": 0.4}):
        Manifest.write(manifest, [replace(rows.clip(0), **window), rows.clip(1)])
        assert "jump/clean.mp4" in refusal(capsys, audit(pair))


def test_two_clips_of_one_name_are_refused(pair, red_auditors, capsys):
    """They would share a mask, an original and a place for their findings."""
    manifest = pair / "removed" / removal.MANIFEST
    rows = Manifest.read(manifest)
    shutil.copy(pair / "removed/inp/jump/clean.mp4", pair / "removed/inp/jump/clean.mov")
    Manifest.write(manifest, [rows.clip(0), replace(rows.clip(0), path="inp/jump/clean.mov")])
    assert "clean.mov" in refusal(capsys, audit(pair))


def test_copies_of_a_clip_count_once_in_a_bound(pair, red_auditors):
    manifest, name = pair / "removed" / removal.MANIFEST, "jump/copy"
    rows = Manifest.read(manifest)
    for folder, suffix in (
        ("videos", "mp4"),
        ("removed/inp", "mp4"),
        ("removed/seg", "mkv"),
        ("removed/records", "json"),
    ):
        shutil.copy(pair / folder / f"jump/clean.{suffix}", pair / folder / f"{name}.{suffix}")
    copied = replace(rows.clip(0), path=f"inp/{name}.mp4")
    Manifest.write(manifest, [rows.clip(0), replace(rows.clip(0), label=None), copied, rows.clip(1)])
    assert audit(pair) == 3
    content = read_audit(pair)
    assert [clip["name"] for clip in content["clips"]] == ["jump/clean", name, "jump/left"]
    assert content["rates"]["any"]["clips"] == content["classes"]["jump"]["rates"]["any"]["clips"] == 2
    assert Manifest.read(manifest).texts("audit") == [PASSED, PASSED, PASSED, FAILED]


def change_records(folder, **fields):
    for path in (folder / "removed" / "records").rglob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refusal(capsys, code):
    """Assert exit code 2 and return the one line of the message."""
    message = capsys.readouterr().err
    assert code == 2 and message.count("\n") == 1, message
    return message


def test_clips_that_cannot_be_audited_are_refused(copy, red_auditors, capsys):
    change_records(copy, tools={"nanodet": "Apache-2.0"})
    assert "nanodet" in refusal(capsys, audit(copy))
    change_records(copy, tools={})
    assert "--makers" in refusal(capsys, audit(copy))
    assert "nanodet" in refusal(capsys, audit(copy, "--makers", "nanodet"))
    assert audit(copy, "--makers", "by-hand") == 3
    capsys.readouterr()
    (copy / "videos" / "run" / "touched.mp4").unlink()
    assert "run/touched.mp4" in refusal(capsys, audit(copy, "--makers", "by-hand", out="other"))
    assert "--detectors" in refusal(capsys, audit(copy, "--detectors", "nanodet", "blazeface", out="other"))
    twice = ("--detectors", "nanodet", "nanodet", "blazeface")
    assert "twice" in refusal(capsys, audit(copy, *twice, out="other"))
    assert "--frames" in refusal(capsys, audit(copy, "--frames", "-1", out="other"))
    assert "nowhere" in refusal(capsys, ppma(["audit", str(copy / "nowhere"), "--out", str(copy / "other")]))
    (copy / "removed" / removal.MANIFEST).unlink()
    assert removal.MANIFEST in refusal(capsys, audit(copy, out="other"))
    assert not (copy / "other").exists(), "nothing is written before everything is checked"


def test_a_folder_of_another_tool_gets_a_manifest_in_the_report(copy, red_auditors):
    theirs = copy / "removed" / "inp"
    flags = ["--originals", copy / "videos", "--makers", "theirs", "--workers", 1, "--frames", 4]
    assert ppma(["audit", *map(str, [theirs, *flags, "--out", copy / "report"])]) == 3
    report = read_audit(copy)
    assert report["makers"] == ["theirs"] and report["clips"][0]["checks"]["same outside"]["held"] is None
    verdicts = read_verdicts(copy / "report" / "manifest.csv").values()
    assert {one.verdict for one in verdicts} == {FAILED, CANNOT_TELL}, "without masks no clip passes"
    assert ppma(["audit", *map(str, [theirs, *flags, "--out", theirs / "report"])]) == 2


def test_an_unreadable_clip_is_named_and_the_others_are_kept(pair, red_auditors, capsys):
    broken = pair / "removed" / "inp" / "jump" / "clean.mp4"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:900])
    assert "clean.mp4" in refusal(capsys, audit(pair)) and not (pair / "report" / "audit.json").exists()
    assert len(list((pair / "report" / "clips").rglob("*.json"))) == 1
    broken.write_bytes(whole)
    assert audit(pair) == 3


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda f: write(f / "videos/jump/clean.mp4", [np.zeros((48, 64, 3), np.uint8)] * 8), "original 64 x 48"),
        (lambda f: (f / "videos/jump/clean.mp4").write_bytes(b"no film"), "videos/jump/clean.mp4"),
        (lambda f: (f / "removed/seg/jump/clean.mkv").write_bytes(b"no film"), "clean.mkv"),
        (lambda f: (f / "removed/records/jump/clean.json").write_text("{"), "clean.json"),
    ],
)
def test_an_unusable_original_mask_or_record_is_named(pair, red_auditors, capsys, damage, named):
    damage(pair)
    assert named in refusal(capsys, audit(pair)) and not (pair / "report" / "audit.json").exists()


def test_originals_are_neither_written_to_nor_the_cleaned_clips_themselves(pair, red_auditors):
    assert audit(pair, out="videos/report") == 2 and not (pair / "videos" / "report").exists()
    assert audit(pair, "--originals", pair / "removed" / "inp", originals=False) == 2
    assert not (pair / "report").exists()


def test_a_frame_count_other_than_the_manifests_fails_a_clip(pair, red_auditors):
    manifest = pair / "removed" / removal.MANIFEST
    manifest.write_text(manifest.read_text().replace("own,,,8,10.0", "own,,,4,10.0"))
    assert audit(pair, originals=False) == 3
    assert clip_of(pair)["verdict"] == FAILED and clip_of(pair)["checks"]["every frame"]["held"] is False


def test_sound_and_metadata_are_found(pair, red_auditors):
    path = pair / "removed" / "inp" / "jump" / "clean.mp4"
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
    assert audit(pair) == 3
    checks = clip_of(pair)["checks"]
    assert [checks[name]["held"] for name in ("no sound", "no metadata", "no location")] == [False, False, False]
    assert "location" in checks["no location"]["says"]
