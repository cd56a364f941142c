"""`ppma audit`: detect residual people in cleaned clips, with confidence bounds.

flags  ->  AuditConfig  ->  pairs  ->  findings of each clip  ->  verdicts
    ->  audit.json, clips.csv, report.html, datasheet.md, croissant.json
    ->  the manifest's `audit` column, and its seal
    ->  a manifest of the clips that passed, sealed too
"""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from ppma.common import engines
from ppma.common.files import write_csv, write_json, write_text
from ppma.common.progress import Progress
from ppma.common.shares import FOLDER, Share, SharedWork
from ppma.config.command import DONE, FAILED_AUDIT, OutFolder, as_flags, check_out, check_ranges, parse
from ppma.config.errors import InputError, counted, require
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.privacy import signature, verdict
from ppma.privacy.audit import jobs, report, review, spikes
from ppma.privacy.audit.clip import Findings, InspectorConfig, Pair
from ppma.privacy.audit.jobs import AuditJob
from ppma.privacy.audit.judge import Judged, judge
from ppma.privacy.detectors import auditors
from ppma.privacy.detectors.auditors import AUDITORS, BUNDLED
from ppma.privacy.detectors.tools import find_files
from ppma.privacy.detectors.weights import default_folder

REPORT, TABLE, DATASHEET, CROISSANT = "report.html", "clips.csv", "datasheet.md", "croissant.json"


@dataclass(frozen=True, kw_only=True)
class AuditConfig(SharedWork):
    """Detect residual people in cleaned clips, check every pixel, and report with confidence bounds.

    The detectors are none of those that made the masks. Each person whom they find in the original must be masked and
    must not come back; no person may be found in the result; and known people, spiked into every clip, must be found
    there. The audit reports bounds; it never proves that a clip contains no person. Exit code 3: clips failed. A rerun
    after an interruption keeps finished clips. Then let a person read a sample: `ppma audit review --help`.

    For example:
      ppma audit removed --originals videos/real --out report
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Folder of `ppma remove-humans`, another folder <class>/<video>, or a manifest FILE.csv."""
    out: OutFolder
    """Folder for report.html, audit.json, clips.csv, datasheet.md, croissant.json and the findings of each clip."""
    originals: Path | None = None
    """Folder of the clips before cleaning (the files themselves, not `ori`, which is encoded again).
    Without it no clip can pass: whether a person came back is unknown."""
    root: Path | None = None
    """Folder that the paths of a manifest FILE.csv are relative to (default: its own)."""
    frames: int = 12
    """Frames of each clip that detectors inspect, evenly spaced; 0 for all. Pixels are checked in all frames."""
    detectors: tuple[str, ...] = BUNDLED
    """Detectors: at least two that find people and one that finds faces; `yolox` needs --models."""
    models: tuple[str, ...] = ()
    """Files of detectors that are not fetched: yolox=FILE.onnx or yolox=FILE.onnx#SHA256."""
    people: Path | None = None
    """Folder of PNG cut-outs of people to spike in, outlined by their transparency (default: drawn people)."""
    makers: tuple[str, ...] = ()
    """Tools that made the masks of clips without a record; none of them may judge."""
    sign: Path | None = None
    """Private Ed25519 key of OpenSSH, which signs verdicts and manifest for `ppma train --privacy strict --trust KEY.pub`."""
    weights: Path = field(default_factory=default_folder)
    """Folder of the models (`ppma privacy fetch` fills it)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, frames=(0, 100_000))
        if self.originals is not None and not self.originals.is_dir():
            remedy = "give the one that the clips were made from"
            raise InputError(f"--originals {self.originals}: no such folder; {remedy}")
        auditors.check(self.detectors, set(self.makers))
        require(len(set(self.detectors)) == len(self.detectors), "--detectors names one twice; name each of them once")
        if self.people is not None:
            spikes.read_people(self.people)


def audit(source: Path | str, out: Path | str = "report", **flags: object) -> dict[str, Any]:
    """Detect residual people in cleaned clips as `ppma audit` does, and return the content of audit.json.

    Args:
        source: Folder of `ppma.remove_humans`, another folder <class>/<video>, or a manifest FILE.csv.
        out: Folder for report.html, audit.json, datasheet.md and croissant.json.
        flags: Other flags of `ppma audit`, with _ for -: originals="videos", frames=0.

    Raises:
        InputError: There is no such source, flag or model, or a clip cannot be read.
    """
    config = parse(AuditConfig, [str(source), *as_flags({"out": out, **flags})], prog="ppma audit")
    require(not config.dry_run and config.part is None, "dry_run and part write no report: use `ppma audit`")
    run(config, Console(quiet=True))
    return dict(json.loads((Path(out) / verdict.AUDIT_FILE).read_text(encoding="utf-8")))


def main(argv: list[str]) -> int:
    """Run `ppma audit ARGV`, or `ppma audit review ARGV`."""
    if argv[:1] == ["review"]:
        return review.main(argv[1:])
    config = parse(AuditConfig, argv, prog="ppma audit")
    return run(config, Console(highlight=False, soft_wrap=True, markup=False))


def run(config: AuditConfig, console: Console) -> int:
    """Audit the clips of a config, report on the console, and return the exit code."""
    inspector = InspectorConfig(
        detectors=config.detectors, weights=config.weights, frames=config.frames, people=config.people,
        models=find_files([AUDITORS[name] for name in config.detectors], config.weights, config.models),
    )  # fmt: skip  # one field after the other
    engine = engines.find(config.engine)
    manifest, root, clips = jobs.read(config.source, config.root, config.workers, engine)
    paths = {clip.path: clip for clip in clips}  # two rows may give a file two labels
    pairs = [jobs.pair_of(root, clip, config.originals) for clip in paths.values()]
    _check_names(pairs)
    makers = _makers(config, pairs)
    if config.dry_run:
        frames = sum(min(config.frames or pair.frames, pair.frames) for pair in pairs)
        console.print(
            f"{counted(len(pairs), 'clip')}, {counted(frames, 'frame')} for each of {len(config.detectors)} detectors"
        )
        console.print(f"would write {config.out}")
        return DONE
    sign = signature.signer(config.sign) if config.sign and config.part is None else None  # asks before the work
    _make_folder(config, manifest, root)
    todo = [AuditJob(pair=pair, out=config.out, inspector=inspector) for pair in pairs]
    share = config.share(config.out / FOLDER)
    if config.merge is not None and (share.shared or not (config.out / verdict.AUDIT_FILE).exists()):
        share.require_all(job.pair.path for job in todo)
    if config.part is not None:
        share.claim({"frames": config.frames, "detectors": config.detectors, "originals": str(config.originals)})
    with Progress("clips") as progress:
        results = jobs.run(todo, config.workers, progress, share, engine)
        rest = [job for job in todo if job.pair.path not in results] if config.part is None else []
        # Clips of other tasks are read, or inspected here if such a task was killed.
        results |= jobs.run(rest, config.workers, lambda *_: None, Share(None), engine)
    refused = [result for result in results.values() if isinstance(result, str)]
    if config.part is not None:
        console.print(f"part {config.part} is done, it inspected {len(results)} of {counted(len(todo), 'clip')}")
        for reason in refused:
            console.print(f"  {reason}")
        return DONE
    if config.merge is None:
        share.clear()
    if refused:
        remedy = "the others are finished: repair or remove it, and rerun"
        raise InputError(f"{refused[0]} ({counted(len(refused), 'such clip')}); {remedy}")
    findings = [one for one in (results[job.pair.path] for job in todo) if isinstance(one, Findings)]
    judged = [(one, judge(one)) for one in findings]
    manifest = manifest or config.out / "manifest.csv"
    facts = report.Facts(manifest=manifest, root=root, makers=makers, inspector=inspector)
    _write(config.out, facts, clips, judged, sign)
    if config.merge is not None:
        share.clear()

    counts = Counter(one.verdict for _, one in judged)
    summary = ", ".join(f"{counts[name]} {name}" for name in verdict.VERDICTS)
    console.print(f"{counted(len(judged), 'clip')}: {summary}")
    if counts[verdict.PASSED]:
        console.print(f"{verdict.passed_path(manifest)}: the clips that passed, for --privacy strict")
    console.print(f"{config.out / REPORT}: contains the frames to review and sign")
    return FAILED_AUDIT if counts[verdict.FAILED] else DONE


def _check_names(pairs: list[Pair]) -> None:
    """Raise an InputError if two clips have one name, and so one mask, one original and one place for their findings."""
    by_name: dict[str, Path] = {}
    for pair in pairs:
        if (other := by_name.setdefault(pair.name, pair.cleaned)) != pair.cleaned:
            raise InputError(
                f"{other} and {pair.cleaned} are both called {pair.name}; rename one with all of its files"
            )


def _makers(config: AuditConfig, pairs: list[Pair]) -> list[str]:
    """Return every tool that made a mask; InputError if one of them is to judge, or the tools of a clip are unknown."""
    unknown = [pair.cleaned for pair in pairs if not pair.makers]
    if unknown and not config.makers:
        clips = f"{unknown[0]} has no record of what made its masks ({counted(len(unknown), 'such clip')})"
        raise InputError(f"{clips}; name the tools with --makers")
    makers = set(config.makers).union(*(pair.makers for pair in pairs))
    auditors.check(config.detectors, makers)
    return sorted(makers)


def _make_folder(config: AuditConfig, manifest: Path | None, root: Path) -> None:
    """Create the folder of the report; InputError if it, or the manifest, cannot be written."""
    verdict.check_passed(manifest or config.out / "manifest.csv")
    if manifest is None and config.out.resolve().is_relative_to(root.resolve()):
        raise InputError(f"--out {config.out} is inside the clips' folder {root}; give a folder outside of it")
    if config.originals is not None and config.out.resolve().is_relative_to(config.originals.resolve()):
        raise InputError(f"--out {config.out} is inside --originals {config.originals}; give a folder outside of it")
    if manifest is not None:
        check_out("the folder of the manifest, which gets the verdicts:", manifest.parent, "folder")
    config.out.mkdir(parents=True, exist_ok=True)


def _write(out: Path, facts: report.Facts, clips: list[Clip], judged: Judged, sign: signature.Signer | None) -> None:
    """Write the report first, then the manifest, then the seal that ties them."""
    content, audit = report.content(judged, facts), out / verdict.AUDIT_FILE
    write_json(audit, content)
    verdicts = {findings.path: one.verdict for findings, one in judged}
    rows = [replace(clip, audit=verdicts[clip.path]) for clip in clips]
    Manifest.write(facts.manifest, rows)
    verdict.seal(facts.manifest, audit, sign)
    verdict.write_passed(facts.manifest, audit, sign)
    write_text(out / REPORT, report.html(judged, content))
    write_csv(out / TABLE, report.table(content))
    write_text(out / DATASHEET, report.datasheet(rows, content))
    write_json(out / CROISSANT, report.croissant(rows, content, facts))
