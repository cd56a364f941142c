"""Store the verdicts of `ppma audit` with a seal, which `ppma train --privacy strict` reads.

    audit  ->  <report>/audit.json            per clip: path, SHA-256 of its content, verdict and reasons
           ->  <manifest>-passed.csv          the rows that passed, with their own seal
           ->  the manifest's `audit` column  the verdict of each row, one of VERDICTS
           ->  <manifest>.audit               the seal: path of audit.json, its SHA-256 and that of the manifest
    strict <-  read_verdicts(manifest)        verdicts by path, or InputError if something does not fit

The seal binds the three files, so that none can be edited, swapped or left behind unnoticed. Whoever can write all three
can write anything, unless the seal is signed (`ppma audit --sign KEY`). A manifest that `ppma remove-humans` or `ppma index`
rewrites has no valid seal.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal, get_args

from ppma.common.files import file_sha256, write_json
from ppma.config.errors import InputError, reading, require
from ppma.config.run import RunConfig
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.privacy import answers, signature
from ppma.privacy.signature import Signer

Verdict = Literal["passed", "failed", "cannot tell"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
PASSED, FAILED, CANNOT_TELL = VERDICTS
"""passed: no detection at the operating points, by detectors that do find known people in this clip, and no person of the
original missed or painted back; failed: one of these, or a failed check of pixels or file; cannot tell: no detection,
but the detectors find too few known people, or too little can be compared with the original."""
FORMAT = "ppma-audit-2"
AUDIT_FILE, POLICY_FILE = "audit.json", "privacy.toml"
REVIEW_FILE = "review.json"
"""The record of `ppma audit review`, next to audit.json."""
FLOOR = 0.5
"""Least sensitivity: the share of tall spiked people that at least one auditor finds in a clip."""
AGAIN = "run `ppma audit` on it again"


@dataclass(frozen=True, kw_only=True)
class Seal:
    """Content of the seal of an audited manifest."""

    audit: str
    """Path of audit.json, relative to the folder of the manifest."""
    audit_sha256: str
    manifest_sha256: str
    key: str = ""
    """Public key of its signature, if it is signed."""
    signature: str = ""

    @property
    def text(self) -> str:
        """What is signed."""
        return f"{self.audit_sha256}\n{self.manifest_sha256}\n"


@dataclass(frozen=True, kw_only=True)
class Audited:
    """Entry of one clip in audit.json."""

    verdict: Verdict
    sha256: str
    """Content hash of the audited clip (`content_sha256`)."""
    auditors: dict[str, float]
    """Auditors of the whole audit, and their operating points."""
    points_date: date
    """When these points were measured."""
    method: str
    """What the record says was done to the people; empty without a record."""
    frames: int
    looked_at: int
    """Frames that the auditors inspected."""
    sensitivity: float
    """Share of the tall spiked people that the auditors found; 0 if none fitted into a frame."""
    reviewed: float = 1.0
    """Upper bound on the share of frames with a person of the clips that passed, after a review; 1 without one."""


def policy_path(config: RunConfig) -> Path | None:
    """Return the file with the least strength of an audit for a run: --policy, else the one in the folder of data.toml."""
    default = catalog.locate(config.data).with_name(POLICY_FILE)
    there = config.privacy == "strict" and os.path.lexists(default)  # a broken link is refused where it is read
    return default if config.policy is None and there else config.policy


def seal_path(manifest: Path) -> Path:
    """Return the path of a manifest's seal."""
    return manifest.with_name(manifest.name + ".audit")


def passed_path(manifest: Path) -> Path:
    """Return the path of the manifest of the rows that passed."""
    return manifest.with_name(f"{manifest.stem}-passed.csv")


def seal(manifest: Path, audit: Path, sign: Signer | None = None) -> None:
    """Seal a manifest to its audit.json, after both are written, and sign the seal."""
    note = Seal(
        audit=Path(os.path.relpath(audit.resolve(), manifest.resolve().parent)).as_posix(),
        audit_sha256=file_sha256(audit),
        manifest_sha256=file_sha256(manifest),
    )
    if sign is not None:
        key, signature = sign(note.text)
        note = replace(note, key=key, signature=signature)
    write_json(seal_path(manifest), asdict(note))


def check_passed(manifest: Path) -> None:
    """Raise an InputError if the path of the rows that passed is taken by a file that no audit wrote."""
    passed = passed_path(manifest)
    if passed.exists() and not seal_path(passed).exists():
        raise InputError(
            f"{passed} was not written by an audit (it has no seal); rename it, the rows that pass are written there"
        )


def write_passed(manifest: Path, audit: Path, sign: Signer | None = None) -> None:
    """Write, seal and sign a manifest of the rows that passed, if any, in place of that of an earlier audit."""
    check_passed(manifest)
    found, passed = Manifest.read(manifest), passed_path(manifest)
    for path in (passed, seal_path(passed)):
        path.unlink(missing_ok=True)
    if rows := [row for row in map(found.clip, range(len(found))) if row.audit == PASSED]:
        # Killed after this line, it leaves a file that the next audit recognizes as its own and strict refuses.
        seal_path(passed).touch()
        Manifest.write(passed, rows)
        seal(passed, audit, sign)


def copy_seal(manifest: Path, copy: Path) -> None:
    """Give a copy of a manifest the same seal, if there is one; audit.json is not copied."""
    if not seal_path(manifest).is_file():
        return
    note = asdict(_read_seal(manifest))
    note["audit"] = (manifest.resolve().parent / note["audit"]).as_posix()
    write_json(seal_path(copy), note)


def read_verdicts(manifest: Path, trusted: Path | None = None) -> dict[str, Audited]:
    """Return the audit of each row by path, after checking that seal, manifest and audit.json fit together.

    The clips are not read: compare `Audited.sha256` with their `content_sha256` for that.

    Args:
        manifest: The audited manifest.
        trusted: Public keys, with one of which the seal must be signed.

    Raises:
        InputError: There is not a seal, it lacks the signature, or a file was changed after the audit.
    """
    note = _read_seal(manifest)
    if trusted is not None:
        signature.check(seal_path(manifest), note.text, note.key, note.signature, trusted)
    if file_sha256(manifest) != note.manifest_sha256:
        raise InputError(f"{manifest} was changed after its audit; {AGAIN}")
    audit = manifest.parent / note.audit
    if not audit.is_file():
        raise InputError(f"{audit}, the audit of {manifest}, is missing; restore it, or {AGAIN}")
    if file_sha256(audit) != note.audit_sha256:
        raise InputError(f"{audit} was changed after the audit of {manifest}; {AGAIN}")
    found = _verdicts(audit, note.audit_sha256)
    rows = Manifest.read(manifest)
    for i in range(len(rows)):
        row = rows.clip(i)
        said = found[row.path].verdict if row.path in found else "nothing"
        if row.audit != said:
            raise InputError(f"{manifest}, line {i + 2}: audit is {row.audit!r}, and {audit} says {said}; {AGAIN}")
    return found


def audit_sha256(manifest: Path) -> str:
    """Return the hash of the audit.json that a manifest is sealed to; InputError if it has no seal."""
    return _read_seal(manifest).audit_sha256


def _read_seal(manifest: Path) -> Seal:
    path = seal_path(manifest)
    if not path.exists():
        raise InputError(f"{manifest} has no audit ({path.name} is missing); {AGAIN}")
    with reading(path, f"a seal of `ppma audit`; {AGAIN}"):
        content = json.loads(path.read_text(encoding="utf-8"))
        require(all(isinstance(text, str) for text in content.values()), "its fields are not text")
        return Seal(**content)


def _reviewed(file: Path, audit_sha256: str, clips: list[dict[str, Any]]) -> float:
    """Return the lowest bound of the reviews of an audit, 1 without any; InputError if a reviewer saw people.

    Args:
        file: The record, whose counts and bounds are not believed.
        audit_sha256: Hash of audit.json.
        clips: Its entries.
    """
    if not file.exists():
        return 1.0
    kept, passed = [c for c in clips if c["verdict"] != FAILED], {c["path"] for c in clips if c["verdict"] == PASSED}
    with reading(file, "a record of `ppma audit review`; move it away"):
        reviews = json.loads(file.read_text(encoding="utf-8"))["reviews"]
        said = [one["answers"] for one in reviews if one["audit_sha256"] == audit_sha256]
        for one in said:
            answers.check(one, answers.sample(kept, audit_sha256, len(one)))
        seen = any(answer["says"] in answers.SEEN for one in said for answer in one)
        require(not seen, f"{file}: a reviewer saw people in these clips; clean or remove them, and {AGAIN}")
        return min((answers.bound([a for a in one if a["path"] in passed]) for one in said), default=1.0)


def _verdicts(audit: Path, sha256: str) -> dict[str, Audited]:
    """Return the entries of audit.json by path; InputError if it is malformed or a detector judged its own masks."""
    with reading(audit, "a report of `ppma audit`"):
        content: dict[str, Any] = json.loads(audit.read_text(encoding="utf-8"))
        shared = set(content["makers"]) & set(content["auditors"])
        points = {str(name): float(content["operating_points"][name]) for name in content["auditors"]}
        measured = date.fromisoformat(content["points_date"])
        clips = {
            clip["path"]: Audited(
                verdict=clip["verdict"],
                sha256=clip["sha256"],
                auditors=points,
                points_date=measured,
                method=str(clip["method"]),
                frames=int(clip["frames"]),
                looked_at=len(set(clip["looked_at"])),
                sensitivity=clip["spiked_found"] / clip["spiked"] if clip["spiked"] else 0.0,
            )
            for clip in content["clips"]
        }
        known = content["format"] == FORMAT and len(points) > 0
    if not known or any(clip.verdict not in VERDICTS for clip in clips.values()):
        raise InputError(f"{audit} is not a report of this `ppma audit` ({FORMAT}); {AGAIN}")
    if shared:
        raise InputError(f"{audit}: {', '.join(sorted(shared))} made the masks and judged them; {AGAIN}")
    reviewed = _reviewed(audit.with_name(REVIEW_FILE), sha256, content["clips"])
    return {path: replace(clip, reviewed=reviewed) for path, clip in clips.items()}
