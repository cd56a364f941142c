"""A datasheet to hand on with the clips, and the same for machines.

rows of the manifest, audit.json  ->  Markdown under the headings of Datasheets for Datasets (Gebru et al., 2021)
                                  ->  Croissant 1.0 metadata (MLCommons), as JSON-LD

What the audit knows is filled in; what only the owner knows is asked, in words that cannot be taken for an answer.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppma.common.files import file_sha256
from ppma.loaders.sources.manifest import HEADER, Clip

ASK = "**For the owner to answer:** "
NUMBERS = {"label": "sc:Integer", "frames": "sc:Integer", "width": "sc:Integer", "height": "sc:Integer", "key_frame_spacing": "sc:Integer",
           "fps": "sc:Float", "start_seconds": "sc:Float", "end_seconds": "sc:Float", "duration_seconds": "sc:Float"}  # fmt: skip


_OWN = (
    "citeAs column conformsTo data dataType equivalentProperty examples extract field fileProperty fileObject fileSet format includes"
    " isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated replace samplingRate separator source subField"
    " transform"
)
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    **{name: f"cr:{name}" for name in _OWN.split()},
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
}
"""The context of Croissant 1.0: what its readers expect, word for word."""


def _counted(values: Sequence[str]) -> str:
    return ", ".join(f"{name or 'not stated'} ({count})" for name, count in sorted(Counter(values).items()))


def _sentences(rates: dict[str, dict[str, Any]]) -> str:
    return "\n".join(f"- {name}: {rate['says']}." for name, rate in rates.items())


def markdown(rows: Sequence[Clip], audit: dict[str, Any]) -> str:
    """The datasheet."""
    verdicts = ", ".join(f"{count} {name}" for name, count in audit["verdicts"].items())
    minutes = sum(row.duration_seconds for row in rows) / 60
    sizes = _counted([f"{row.width} x {row.height}" for row in rows])
    return f"""# Datasheet

Made by `ppma audit` ({audit["version"]}) on {audit["date"]}. The headings are those of Datasheets for Datasets (Gebru et al., 2021).

## Motivation

{ASK}for what purpose, by whom and on whose behalf were the videos recorded, and who paid for it?

## Composition

- {len(rows)} clips, {sum(row.frames for row in rows)} frames, {minutes:.1f} minutes; sizes: {sizes}.
- Sources: {_counted([row.source for row in rows])}. Domain: {_counted([row.domain for row in rows])}.
- Classes: {_counted([row.class_name for row in rows])}.
- Does it hold people? The clips were made by painting over people. Some may still be in them: shadows, reflections, parts that stick out of
  a mask, people whom no detector finds. Verdicts of the audit: {verdicts}.

{_sentences(audit["rates"])}

These sentences are about what detectors detect, at their operating points and on the frames that they looked at. They are not about whether
somebody can be recognised. Number plates, voices elsewhere, places and possessions are not covered.

## Collection process

{ASK}how were the videos recorded or acquired, over which time, with whose consent, and was an ethical review done?

## Preprocessing, cleaning, labelling

- Masks were made and painted over by: {", ".join(audit["makers"]) or "not stated"}.
- They were judged by others: {", ".join(audit["auditors"])}, on {audit["frames"] or "all"} frames of each clip.
- Sound and metadata are dropped; the checks of every file are in `audit.json`.
- Are the originals kept? {ASK}where, how protected, and for how long?

## Uses

Meant for training video models that are not to learn from real people. It must not be used to identify anybody, nor to restore who was
removed. {ASK}has it been used already, and for what should it not be used?

## Distribution

- Terms under which the footage is used: {_counted([row.licence for row in rows])}.
- {ASK}to whom is it given, how, and do other parties hold rights in it?

## Maintenance

{ASK}who keeps it, how can they be reached, and how does somebody have a clip taken out?
"""


def croissant(rows: Sequence[Clip], audit: dict[str, Any], manifest: Path, root: Path) -> dict[str, Any]:
    """Croissant 1.0: the manifest as a table with typed columns, and the clips that it names."""
    licences = sorted({row.licence for row in rows if row.licence})
    suffixes = sorted({Path(row.path).suffix for row in rows} - {""}) or [".jpg"]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": rows[0].source or root.resolve().name,
        "description": f"{len(rows)} clips from which people were removed. " + " ".join(r["says"] + "." for r in audit["rates"].values()),
        "license": licences or "not stated",
        "dateCreated": audit["date"],
        "distribution": [_table(manifest), _clips(suffixes)],
        "recordSet": [{"@type": "cr:RecordSet", "@id": "rows", "name": "rows", "field": [_field(name) for name in HEADER]}],
    }  # fmt: skip


def _table(manifest: Path) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject", "@id": "manifest", "name": manifest.name, "contentUrl": manifest.name,
        "encodingFormat": "text/csv", "sha256": file_sha256(manifest),
    }  # fmt: skip


def _clips(suffixes: Sequence[str]) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet", "@id": "clips", "name": "clips", "includes": [f"**/*{suffix}" for suffix in suffixes],
        "encodingFormat": "video/mp4" if ".mp4" in suffixes else "image/jpeg",
    }  # fmt: skip


def _field(name: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field", "@id": f"rows/{name}", "name": name, "dataType": NUMBERS.get(name, "sc:Text"),
        "source": {"fileObject": {"@id": "manifest"}, "extract": {"column": name}},
    }  # fmt: skip
