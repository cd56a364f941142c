"""The seal: valid while manifest, audit.json and seal are those that were written together."""

import json

import pytest
from privacy_stand_ins import audit_content, row

from ppma.common.files import content_sha256, file_sha256
from ppma.config.errors import InputError
from ppma.loaders.sources.manifest import Manifest
from ppma.privacy import answers
from ppma.privacy.detectors.auditors import AUDITORS
from ppma.privacy.verdict import AUDIT_FILE, CANNOT_TELL, FAILED, PASSED, copy_seal, read_verdicts, seal, seal_path

SAID = {"a.mp4": PASSED, "b.mp4": FAILED, "c.mp4": CANNOT_TELL}


@pytest.fixture
def audited(tmp_path):
    """(manifest, audit.json) with a valid seal."""
    manifest, audit = tmp_path / "data" / "manifest.csv", tmp_path / "report" / AUDIT_FILE
    for file in (manifest, audit):
        file.parent.mkdir()
    Manifest.write(manifest, [row(path, said) for path, said in SAID.items()])
    audit.write_text(json.dumps(audit_content({path: (said, path[0] * 64) for path, said in SAID.items()})))
    seal(manifest, audit)
    return manifest, audit


def test_sealed_verdicts_are_read_also_after_moving_all_files(audited, tmp_path):
    manifest, audit = audited
    assert {path: found.verdict for path, found in read_verdicts(manifest).items()} == SAID
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for folder in (manifest.parent, audit.parent):
        folder.rename(moved / folder.name)
    assert read_verdicts(moved / "data" / "manifest.csv")["a.mp4"].verdict == PASSED


def test_a_copy_of_a_manifest_gets_its_seal(audited, tmp_path):
    manifest, _ = audited
    copy = tmp_path / "node" / "rows.csv"
    copy.parent.mkdir()
    copy.write_bytes(manifest.read_bytes())
    copy_seal(manifest, copy)
    assert read_verdicts(copy) == read_verdicts(manifest)
    copy.write_text(copy.read_text().replace(FAILED, PASSED))
    with pytest.raises(InputError, match="was changed after its audit"):
        read_verdicts(copy)
    seal_path(manifest).unlink()
    copy_seal(manifest, tmp_path / "unsealed.csv")
    assert not seal_path(tmp_path / "unsealed.csv").exists()


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def reseal_with(manifest, audit, old, new):
    edit(audit, old, new)
    seal(manifest, audit)


WAYS_ROUND = {
    "no seal": (lambda m, a: seal_path(m).unlink(), "has no audit"),
    "an empty seal": (lambda m, a: seal_path(m).write_text("{}"), "is not a seal"),
    "a seal of numbers": (lambda m, a: edit(seal_path(m), '"key": ""', '"key": 1'), "not text"),
    "a verdict changed in the manifest": (lambda m, a: edit(m, FAILED, PASSED), "was changed after its audit"),
    "a verdict changed in the report": (lambda m, a: edit(a, FAILED, PASSED), "was changed after the audit"),
    "the report removed": (lambda m, a: a.unlink(), "audit.json"),
    "a manifest sealed with verdicts of its own": (
        lambda m, a: (edit(m, FAILED, PASSED), seal(m, a)),
        "line 3: audit is 'passed', and .* says failed",
    ),
    "a row that was never audited": (
        lambda m, a: (Manifest.write(m, [row("new.mp4", PASSED)]), seal(m, a)),
        "says nothing",
    ),
    "a detector that judged its own masks": (
        lambda m, a: reseal_with(m, a, '"makers": ["maker"]', '"makers": ["nanodet"]'),
        "nanodet made the masks and judged them",
    ),
    "a report without a detector": (
        lambda m, a: reseal_with(m, a, json.dumps(list(AUDITORS)), "[]"),
        "is not a report of this",
    ),
    "another verdict than the three": (lambda m, a: reseal_with(m, a, '"passed"', '"fine"'), "is not a report of this"),
    "another file as report": (lambda m, a: (a.write_text("[]"), seal(m, a)), "is not a report of"),
}


@pytest.mark.parametrize("name", WAYS_ROUND)
def test_nothing_gets_round_the_seal(audited, name):
    change, reason = WAYS_ROUND[name]
    change(*audited)
    with pytest.raises(InputError, match=reason):
        read_verdicts(audited[0])


def test_the_content_of_files_and_folders_is_hashed(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "000001.jpg").write_bytes(b"one")
    before = content_sha256(folder)
    (folder / ".000001.jpg.tmp").write_bytes(b"left over")
    assert content_sha256(folder) == before
    (folder / "000001.jpg").rename(folder / "000002.jpg")
    assert content_sha256(folder) != before
    assert content_sha256(folder / "000002.jpg") != content_sha256(folder)


def write_reviews(audit, *reviews, change=lambda said: None):
    """Write a review.json of (frames, what is not "no one" by clip, whether it is of this audit)."""
    content, rows = json.loads(audit.read_text()), []
    for frames, seen, own in reviews:
        sha256 = file_sha256(audit) if own else "0" * 64
        drawn = answers.sample([clip for clip in content["clips"] if clip["verdict"] != FAILED], sha256, frames)
        said = [{"path": clip["path"], "frame": t, "says": seen.get(clip["path"], "no one")} for clip, t in drawn]
        change(said)
        rows.append({"audit_sha256": sha256, "answers": said, "upper": 0.0, "counts": {"person": 0}})
    (audit.parent / "review.json").write_text(json.dumps({"reviews": rows}))


@pytest.mark.parametrize(
    ("reviews", "bound"),
    [
        ([], 1.0),
        ([(20, {}, True)], 1 - 0.05 ** (1 / 10)),  # of a.mp4, the only clip that passed, ten frames
        ([(20, {"c.mp4": "unsure"}, True)], 1 - 0.05 ** (1 / 10)),  # c.mp4 did not pass
        ([(20, {"a.mp4": "unsure"}, True), (8, {}, True)], 1 - 0.05 ** (1 / 4)),
        ([(20, {"a.mp4": "person"}, False)], 1.0),  # of another audit
    ],
)
def test_a_review_bounds_what_is_left_in_the_clips_that_passed(audited, reviews, bound):
    """Whatever bound the record states."""
    manifest, audit = audited
    write_reviews(audit, *reviews)
    assert [one.reviewed for one in read_verdicts(manifest).values()] == pytest.approx([bound] * 3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda said: said.__setitem__(1, said[0]), "not the sample"),  # one picture twice
        (lambda said: said.insert(0, said[0]), "not the sample"),
        (lambda said: said[0].update(says="nothing"), "not an answer"),
        (lambda said: said[0].pop("frame"), "a record of"),
        *((lambda said, answer=answer: said[0].update(says=answer), "saw people") for answer in answers.SEEN),
    ],
)
def test_an_edited_review_and_one_that_saw_people_are_refused(audited, change, says):
    manifest, audit = audited
    write_reviews(audit, (8, {}, True), change=change)
    with pytest.raises(InputError, match=says):
        read_verdicts(manifest)
