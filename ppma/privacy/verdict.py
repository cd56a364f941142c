"""What the audit says of a clip, and how the word travels: the one contract between `ppma audit` and `ppma train
--privacy strict`.

    audit  ->  <report>/audit.json       per clip: path, SHA-256 of its content, verdict, and why
           ->  <manifest>-passed.csv     the rows that passed, with a seal of their own
           ->  the manifest's `audit`    the verdict of each row, one of VERDICTS and nothing else
           ->  <manifest>.audit          the seal: where audit.json lies, its SHA-256 and that of the manifest
    strict <-  read_verdicts(manifest)        verdicts by path, or InputError that says what does not fit

The seal ties three files together, so that none of them can be edited, swapped or left behind unnoticed; it is no
signature, and whoever may write all three may write what they like. A manifest that was written anew (`ppma
remove-humans`, `ppma index`) has no valid seal.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ppma.common.files import content_sha256 as content_sha256
from ppma.common.files import file_sha256, write_json
from ppma.config.errors import InputError
from ppma.loaders.sources.manifest import Manifest

Verdict = Literal["passed", "failed", "cannot tell"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
PASSED, FAILED, CANNOT_TELL = VERDICTS
"""passed: nobody detected, by detectors that did see people in the original. failed: a detection, or a check of the
pixels or of the file that did not hold. cannot tell: nobody detected, but the detectors are blind here, or there is no
original to try them on."""
FORMAT = "ppma-audit-1"
AUDIT_FILE = "audit.json"
AGAIN = "run `ppma audit` on it again"


@dataclass(frozen=True, kw_only=True)
class Seal:
    """What stands beside an audited manifest."""

    audit: str
    """audit.json, relative to the folder of the manifest."""
    audit_sha256: str
    manifest_sha256: str


@dataclass(frozen=True, kw_only=True)
class Audited:
    """What audit.json says of one clip."""

    verdict: Verdict
    sha256: str
    """Of the clip's content, see `content_sha256`: a file that was replaced after the audit has another."""


def seal_path(manifest: Path) -> Path:
    """Where the seal of a manifest lies."""
    return manifest.with_name(manifest.name + ".audit")


def passed_path(manifest: Path) -> Path:
    """Where the rows of a manifest lie that passed."""
    return manifest.with_name(f"{manifest.stem}-passed.csv")


def seal(manifest: Path, audit: Path) -> None:
    """Write the seal, after the manifest and audit.json."""
    note = Seal(
        audit=Path(os.path.relpath(audit.resolve(), manifest.resolve().parent)).as_posix(),
        audit_sha256=file_sha256(audit),
        manifest_sha256=file_sha256(manifest),
    )
    write_json(seal_path(manifest), asdict(note))


def check_passed(manifest: Path) -> None:
    """InputError where a file that no audit wrote lies in the place of the rows that pass."""
    passed = passed_path(manifest)
    if passed.exists() and not seal_path(passed).exists():
        raise InputError(
            f"{passed} was not written by an audit (it has no seal); name it otherwise, the rows that pass go there"
        )


def write_passed(manifest: Path, audit: Path) -> None:
    """Write the rows of a sealed manifest that passed, sealed too: what strict takes. What an earlier audit left goes;
    none, no file."""
    check_passed(manifest)
    found, passed = Manifest.read(manifest), passed_path(manifest)
    for path in (passed, seal_path(passed)):
        path.unlink(missing_ok=True)
    if rows := [row for row in map(found.clip, range(len(found))) if row.audit == PASSED]:
        seal_path(
            passed
        ).touch()  # whoever is killed here leaves a file that the next audit knows as its own, and strict refuses
        Manifest.write(passed, rows)
        seal(passed, audit)


def copy_seal(manifest: Path, copy: Path) -> None:
    """Seal a copy of a manifest as the manifest is, where it is; its audit.json stays where it lies."""
    if not seal_path(manifest).is_file():
        return
    note = asdict(_read_seal(manifest))
    note["audit"] = (manifest.resolve().parent / note["audit"]).as_posix()
    write_json(seal_path(copy), note)


def read_verdicts(manifest: Path) -> dict[str, Audited]:
    """path of each row -> what the audit found, once seal, manifest and audit.json fit together; InputError that says
    what does not.

    The content of the clips is not read: compare `Audited.sha256` with `content_sha256` where that is wanted.
    """
    note = _read_seal(manifest)
    if file_sha256(manifest) != note.manifest_sha256:
        raise InputError(f"{manifest} was changed after its audit; {AGAIN}")
    audit = manifest.parent / note.audit
    if not audit.is_file():
        raise InputError(f"{audit}, the audit of {manifest}, is not there; put it back, or {AGAIN}")
    if file_sha256(audit) != note.audit_sha256:
        raise InputError(f"{audit} was changed after the audit of {manifest}; {AGAIN}")
    found = _verdicts(audit)
    rows = Manifest.read(manifest)
    for i in range(len(rows)):
        row = rows.clip(i)
        said = found[row.path].verdict if row.path in found else "nothing"
        if row.audit != said:
            raise InputError(f"{manifest}, line {i + 2}: audit is {row.audit!r}, and {audit} says {said}; {AGAIN}")
    return found


def audit_sha256(manifest: Path) -> str:
    """Hash of the audit.json that a manifest is sealed to; InputError where it has no seal."""
    return _read_seal(manifest).audit_sha256


def _read_seal(manifest: Path) -> Seal:
    path = seal_path(manifest)
    try:
        return Seal(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"{manifest} has no audit ({path.name} is not beside it); {AGAIN}") from None
    except (OSError, ValueError, TypeError):
        raise InputError(f"{path} is no seal of `ppma audit`; {AGAIN}") from None


def _verdicts(audit: Path) -> dict[str, Audited]:
    """Of audit.json, by path. A report in which a detector judges its own masks counts for nothing."""
    try:
        content: dict[str, Any] = json.loads(audit.read_text(encoding="utf-8"))
        shared = set(content["makers"]) & set(content["auditors"])
        clips = {c["path"]: Audited(verdict=c["verdict"], sha256=c["sha256"]) for c in content["clips"]}
        known = content["format"] == FORMAT and len(content["auditors"]) > 0
    except (OSError, ValueError, TypeError, KeyError):
        raise InputError(f"{audit} is no report of `ppma audit`") from None
    if not known or any(clip.verdict not in VERDICTS for clip in clips.values()):
        raise InputError(f"{audit} is no report of this `ppma audit` ({FORMAT}); {AGAIN}")
    if shared:
        raise InputError(f"{audit}: {', '.join(sorted(shared))} made the masks and judged them; {AGAIN}")
    return clips
