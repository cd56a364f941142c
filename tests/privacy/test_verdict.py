"""The seal: valid while manifest, audit.json and seal are those that were written together."""

import json

import pytest
from privacy_stand_ins import audit_content, row

from ppma.common.files import content_sha256, file_sha256
from ppma.config.errors import InputError
from ppma.loaders.sources.manifest import Manifest
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
    audit.write_text(json.dumps(audit_content({path: (said, "0" * 64) for path, said in SAID.items()})))
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


def write_reviews(audit, *reviews):
    """Write a review.json of (frames, answers but "no one", bound, whether it is of this audit)."""
    none = {"part of a person": 0, "person": 0, "unsure": 0}
    rows = [
        {
            "audit_sha256": file_sha256(audit) if own else "0" * 64,
            "counts": none | said | {"no one": frames - sum(said.values())},
            "upper": upper,
        }
        for frames, said, upper, own in reviews
    ]
    (audit.parent / "review.json").write_text(json.dumps({"reviews": rows}))


@pytest.mark.parametrize(
    ("reviews", "bound"),
    [
        ([], 1.0),
        ([(300, {}, 0.01, True), (50, {"unsure": 1}, 0.09, True)], 0.01),
        ([(300, {"person": 1}, 0.02, False)], 1.0),  # of another audit
    ],
)
def test_a_review_bounds_what_is_left(audited, reviews, bound):
    manifest, audit = audited
    write_reviews(audit, *reviews)
    assert {one.reviewed for one in read_verdicts(manifest).values()} == {bound}


@pytest.mark.parametrize("answer", ["part of a person", "person"])
def test_clips_in_which_a_reviewer_saw_people_are_refused(audited, answer):
    manifest, audit = audited
    write_reviews(audit, (300, {}, 0.01, True), (10, {answer: 1}, 0.4, True))
    with pytest.raises(InputError, match="saw people"):
        read_verdicts(manifest)
