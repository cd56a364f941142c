"""Lineage: what weights were trained on, recorded next to them.

    sources, initial weights  ->  Lineage  ->  lineage.json next to every model.safetensors, and in the run folder
    model.safetensors         ->  read     ->  its Lineage with all ancestors, or origin "unknown" with the reason

lineage.json holds the SHA-256 of the files next to it, so it belongs to these weights only, and a checksum of itself,
so that an edit is detected. Neither is a signature: whoever can write the folder can forge both. Imports no torch.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from ppma import __version__
from ppma.common.files import file_sha256, write_text
from ppma.config.errors import first_few
from ppma.config.records import restore
from ppma.config.run import Privacy
from ppma.loaders.sources import labels
from ppma.loaders.sources.labels import SHOWN
from ppma.loaders.sources.manifest import Manifest

FILE = "lineage.json"
Origin = Literal["trained", "averaged", "unknown"]
"""trained: by a run on `sources`; averaged: the mean of its parents; unknown: see `note`."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One source of a run: counts from its manifest, and hashes."""

    name: str
    split: str
    clips: int
    manifest_sha256: str
    domains: dict[str, int]
    """Rows per domain; "" where it is not given."""
    licences: dict[str, int]
    """Rows per license."""
    audits: dict[str, int]
    """Rows per audit verdict in the manifest."""
    audit_sha256: str = ""
    """SHA-256 of audit.json, if it was checked."""
    content_sha256: str = ""
    """SHA-256 over the contents of all clips in manifest order, if they were checked."""


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Provenance of weights, back to random initialization or to weights of unknown origin."""

    origin: Origin
    note: str = ""
    """Why the origin is unknown."""
    recipe: str = ""
    privacy: Privacy = "off"
    """strict: `ppma.privacy.strict` checked the sources before the first step."""
    policy: str = ""
    """With strict: the least strength of the audits, as JSON."""
    sources: tuple[Seen, ...] = ()
    parents: tuple["Lineage", ...] = ()
    weights_sha256: str = ""
    """SHA-256 of the model.safetensors that a child started from; empty for the weights next to the lineage.json."""
    ppma: str = __version__

    @classmethod
    def load(cls, values: dict[str, Any]) -> "Lineage":
        """Return the inverse of dataclasses.asdict; RecordError names what does not fit."""
        return cast(Lineage, restore(cls, values))


def unknown(note: str) -> Lineage:
    """Return the lineage of weights whose training data are unknown; `note` says why."""
    return Lineage(origin="unknown", note=note)


def history(lineage: Lineage) -> Iterator[Lineage]:
    """Yield a lineage and all its ancestors."""
    yield lineage
    for parent in lineage.parents:
        yield from history(parent)


def seen(source: Manifest, *, audit_sha256: str = "", content_sha256: str = "") -> Seen:
    """Return the record of a source's train split, with the hashes of its audit and its clips if they were checked."""
    return Seen(
        name=source.name, split="train", clips=len(source), manifest_sha256=source.sha256,
        domains=source.counts("domain"), licences=source.counts("licence"), audits=source.counts("audit"),
        audit_sha256=audit_sha256, content_sha256=content_sha256,
    )  # fmt: skip


def of_run(
    recipe: str,
    privacy: Privacy,
    sources: Sequence[Seen],
    *,
    policy: str = "",
    starts: Sequence[Path] = (),
    resumed: Path | None = None,
) -> Lineage:
    """Return the lineage of the weights that a run trains.

    Args:
        recipe: Name of the recipe.
        privacy: Whether the sources were checked.
        sources: What the run trains on.
        policy: See `Lineage`.
        starts: The model.safetensors of its initial weights.
        resumed: The model.safetensors of its checkpoint. If it was trained on other sources, it becomes a parent.
    """
    parents = tuple(read(path) for path in starts)
    now = Lineage(
        origin="trained", recipe=recipe, privacy=privacy, policy=policy, sources=tuple(sources), parents=parents
    )
    if resumed is None:
        return now
    before = read(resumed)
    again = replace(before, weights_sha256="", ppma=now.ppma)
    same = replace(again, parents=again.parents[: len(parents)]) == now
    return again if same else replace(now, parents=(*parents, before))


def write(folder: Path, lineage: Lineage, *, of_files: bool = True) -> None:
    """Write lineage.json into a folder.

    Args:
        folder: Folder of weights, or a run folder.
        lineage: The lineage.
        of_files: Record the hashes of the files in the folder, except Markdown, which may be edited.
    """
    there = (path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix != ".md" and path.name != FILE)
    files = {path.name: file_sha256(path) for path in there} if of_files else {}
    content: dict[str, Any] = {"files": files, "lineage": asdict(lineage)}
    write_text(folder / FILE, json.dumps(content | {"checksum": _checksum(content)}, indent=2) + "\n")


def changes(source: Manifest, before: Lineage, classes: Sequence[str] | None) -> list[str]:
    """Return in words how a manifest differs from the one that weights were trained on; empty if it is the same.

    Args:
        source: The manifest of the train split.
        before: Lineage of the weights.
        classes: Class names of the weights' head for this source, if it has one.
    """
    was, now = next((one for one in before.sources if one.name == source.name), None), seen(source)
    if was is None:
        return [f"which manifest of {source.name} is unknown" + (f" ({before.note})" if before.note else "")]
    if was.manifest_sha256 == now.manifest_sha256:
        return []
    found = [f"manifest {was.manifest_sha256[:8]} -> {now.manifest_sha256[:8]}"]
    if was.clips != now.clips:
        found.append(f"{was.clips} -> {now.clips} clips")
    for name in ("domains", "licences", "audits"):
        old, new = getattr(was, name), getattr(now, name)
        if old.keys() != new.keys() or (old != new and was.clips == now.clips):
            found.append(f"{name} {old} -> {new}")
    if classes and (others := labels.renumbered(source, classes)):
        found += [*others[:SHOWN], *([f"{len(others) - SHOWN} more classes"] if len(others) > SHOWN else [])]
    return [f"{source.name} ({', '.join(found)})"]


def read(weights: Path, *, check_files: bool = True) -> Lineage:
    """Return the lineage of a weight file, of origin "unknown" with a note if no lineage.json fits the file.

    Args:
        weights: The file.
        check_files: Hash the weights and the files next to them, to see whether the lineage is theirs.
    """
    note = weights.resolve().parent / FILE
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        files, found, checksum = content["files"], Lineage.load(content["lineage"]), content.pop("checksum")
    except FileNotFoundError:
        return unknown(f"there is no {FILE} next to {weights}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return unknown(f"{note} cannot be read ({error})")
    if checksum != _checksum(content):
        return unknown(f"{note} was changed after it was written")
    name = weights.resolve().name
    if name not in files:
        return unknown(f"{note} does not list {name}")
    for other, sha256 in files.items() if check_files else ():
        path = note.with_name(other)
        if path.is_file() and file_sha256(path) != sha256:
            return unknown(f"{path} is not the file that {FILE} was written for")
    for other in note.parent.iterdir():
        if other.suffix in (".pt", ".safetensors") and other.name not in files:
            return unknown(f"{note} does not list {other.name}, which is next to the weights")
    return replace(found, weights_sha256=files[name])


def damage(folder: Path) -> str:
    """Return which file of a folder is not the one that its lineage.json was written for; empty if all are, or without one."""
    note = folder / FILE
    if not note.is_file():
        return ""
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        if content.pop("checksum") != _checksum(content):
            return f"{FILE} was changed"
        changed = (name for name, sha256 in content["files"].items() if file_sha256(folder / name) != sha256)
        return next((f"{name} has other bytes than were written" for name in changed), "")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"it cannot be read: {error}"


def describe(lineage: Lineage) -> str:
    """Return Markdown for a model card: every source of the weights with its hashes, and every unknown origin."""
    lines = []
    for one in history(lineage):
        who = one.recipe or one.origin
        if one.origin == "unknown":
            lines.append(f"- **Unknown**: {one.note}.")
        elif one.origin == "averaged":
            lines.append(f"- Averaged from {len(one.parents)} encoders, listed below.")
        checked = "checked by `--privacy strict`" if one.privacy == "strict" else "from its manifest, not checked"
        for source in one.sources:
            lines.append(
                f"- `{who}` trained on {source.clips} clips of {source.name} {source.split} ({checked}): {_shares(source.domains)};"
                f" license {_shares(source.licences)}; audit {_shares(source.audits)}; {_hashes(source)}"
            )
    return "\n".join(lines)


def _shares(counts: dict[str, int], most: int = 4) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return first_few([f"{text or 'not given'} ({count})" for text, count in ordered], most)


def _hashes(source: Seen) -> str:
    named = {"manifest": source.manifest_sha256, "audit": source.audit_sha256, "content": source.content_sha256}
    return ", ".join(f"{name} `{value[:16]}`" for name, value in named.items() if value)


def _checksum(content: dict[str, Any]) -> str:
    text = json.dumps({"files": content["files"], "lineage": content["lineage"]}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
