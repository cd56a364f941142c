"""What weights have seen, and how the word travels with them.

    sources of a run, what it starts from  ->  Lineage  ->  lineage.json beside every model.safetensors, and in the run folder
    the model.safetensors of --init        ->  read     ->  its Lineage, parents and all, or one of origin "unknown" that says why

lineage.json names the SHA-256 of the files beside it, so it belongs to these weights and no others, and it ends with a checksum of itself,
so that a line changed by hand shows. Neither is a signature: whoever may write the folder and takes the trouble can write what he likes.
Imports no torch.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ppma import __version__
from ppma.common.files import file_sha256
from ppma.config.run import Privacy
from ppma.loaders.sources.manifest import Manifest

FILE = "lineage.json"
Origin = Literal["trained", "averaged", "unknown"]
"""trained: by a run of ours on `sources`, from its parents or from scratch; averaged: of its parents; unknown: see `note`."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One source of a run: what its manifest says of the rows, and hashes of what was there."""

    name: str
    split: str
    clips: int
    manifest_sha256: str
    domains: dict[str, int]
    """Rows of each domain; "" where nobody said."""
    licences: dict[str, int]
    """Rows under each licence."""
    audits: dict[str, int]
    """Rows of each audit verdict, as the manifest says."""
    audit_sha256: str = ""
    """Of audit.json, where it was checked."""
    content_sha256: str = ""
    """Over the content of every clip in the order of the rows, where it was checked."""


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Where weights come from, back to random numbers or to where nobody knows."""

    origin: Origin
    note: str = ""
    """Why it is unknown."""
    recipe: str = ""
    privacy: Privacy = "off"
    """strict: the sources were checked before the first step, see `ppma.privacy.strict`."""
    sources: tuple[Seen, ...] = ()
    parents: tuple["Lineage", ...] = ()
    weights_sha256: str = ""
    """Of the model.safetensors that a child started from; empty for the weights at hand, whose file lineage.json names."""
    ppma: str = __version__

    @classmethod
    def load(cls, values: dict[str, Any]) -> "Lineage":
        """The inverse of dataclasses.asdict, also after JSON. Raises TypeError, ValueError or KeyError for anything else."""
        if values["origin"] not in get_args(Origin) or values["privacy"] not in get_args(Privacy):
            raise ValueError(f"{values['origin']!r}, {values['privacy']!r}")
        parents = tuple(cls.load(parent) for parent in values["parents"])
        return cls(**values | {"sources": tuple(Seen(**seen) for seen in values["sources"]), "parents": parents})


def unknown(note: str) -> Lineage:
    """Of weights of which nobody says what they saw, and why not."""
    return Lineage(origin="unknown", note=note)


def history(lineage: Lineage) -> Iterator[Lineage]:
    """It and everything it comes from."""
    yield lineage
    for parent in lineage.parents:
        yield from history(parent)


def seen(source: Manifest, split: str = "train", *, audit_sha256: str = "", content_sha256: str = "") -> Seen:
    """What there is to say of a source."""
    counts = {name: dict(Counter(source.texts(name))) for name in ("domain", "licence", "audit")}
    return Seen(
        name=source.name, split=split, clips=len(source), manifest_sha256=source.sha256, domains=counts["domain"],
        licences=counts["licence"], audits=counts["audit"], audit_sha256=audit_sha256, content_sha256=content_sha256,
    )  # fmt: skip


def of_run(
    recipe: str,
    privacy: Privacy,
    sources: Sequence[Seen],
    *,
    starts: Sequence[Path] = (),
    resumed: Path | None = None,
) -> Lineage:
    """The lineage of what a run will make. `starts` and `resumed` are the model.safetensors that it starts and goes on from.

    A run that goes on with other sources than it had comes from what it was as well.
    """
    parents = tuple(read(path) for path in starts)
    now = Lineage(origin="trained", recipe=recipe, privacy=privacy, sources=tuple(sources), parents=parents)
    if resumed is None:
        return now
    before = read(resumed)
    again = replace(before, weights_sha256="", ppma=now.ppma)
    same = replace(again, parents=again.parents[: len(parents)]) == now
    return again if same else replace(now, parents=(*parents, before))


def of_average(weights: Sequence[Path]) -> Lineage:
    """The lineage of a mean of several weight files: all that any of them saw."""
    return Lineage(origin="averaged", parents=tuple(read(path) for path in weights))


def write(folder: Path, lineage: Lineage, *, of_files: bool = True) -> None:
    """Write lineage.json into a folder: of weights, for the files that are in it now (a card may be edited), or for reading only."""
    there = (path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix != ".md" and path.name != FILE)
    files = {path.name: file_sha256(path) for path in there} if of_files else {}
    content: dict[str, Any] = {"files": files, "lineage": asdict(lineage)}
    (folder / FILE).write_text(json.dumps(content | {"checksum": _checksum(content)}, indent=2) + "\n")


def read(weights: Path) -> Lineage:
    """The lineage of a weight file. Where none belongs to exactly these weights, it is unknown, and its note says why."""
    note = weights.resolve().parent / FILE
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        files, found, checksum = content["files"], Lineage.load(content["lineage"]), content.pop("checksum")
    except FileNotFoundError:
        return unknown(f"there is no {FILE} beside {weights}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return unknown(f"{note} cannot be read ({error})")
    if checksum != _checksum(content):
        return unknown(f"{note} was changed after it was written")
    name = weights.resolve().name
    if name not in files:
        return unknown(f"{note} does not speak of {name}")
    for other, sha256 in files.items():
        path = note.with_name(other)
        if path.is_file() and file_sha256(path) != sha256:
            return unknown(f"{path} is not the file that {FILE} beside it was written for")
    return replace(found, weights_sha256=files[name])


def describe(lineage: Lineage) -> str:
    """Markdown for a model card: every source that entered the weights, with hashes, and what nobody knows."""
    lines = []
    for one in history(lineage):
        who = one.recipe or one.origin
        if one.origin == "unknown":
            lines.append(f"- **Unknown**: {one.note}.")
        elif one.origin == "averaged":
            lines.append(f"- Averaged from {len(one.parents)} encoders, which follow.")
        checked = "checked by `--privacy strict`" if one.privacy == "strict" else "as its manifest says, not checked"
        for source in one.sources:
            lines.append(
                f"- `{who}` saw {source.clips} clips of {source.name} {source.split} ({checked}): {_shares(source.domains)};"
                f" licence {_shares(source.licences)}; audit {_shares(source.audits)}; {_hashes(source)}"
            )
    return "\n".join(lines)


def _shares(counts: dict[str, int], most: int = 4) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown = [f"{text or 'not given'} ({count})" for text, count in ordered[:most]]
    return ", ".join(shown) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")


def _hashes(source: Seen) -> str:
    named = {"manifest": source.manifest_sha256, "audit": source.audit_sha256, "content": source.content_sha256}
    return ", ".join(f"{name} `{value[:16]}`" for name, value in named.items() if value)


def _checksum(content: dict[str, Any]) -> str:
    text = json.dumps({"files": content["files"], "lineage": content["lineage"]}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
