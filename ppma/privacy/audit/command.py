"""`ppma audit`: what is left of the people in cleaned clips, and how sure one can be.

flags  ->  AuditConfig  ->  pairs  ->  findings of each clip  ->  verdicts  ->  audit.json, report.html, datasheet.md, croissant.json
                                                                            ->  the manifest's `audit` column, and its seal
                                                                            ->  a manifest of those that passed, sealed too
"""

import json
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from ppma.common.files import write_json, write_text
from ppma.common.progress import Progress
from ppma.config.command import DONE, parse
from ppma.config.errors import InputError
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.privacy import verdict
from ppma.privacy.audit import datasheet as audit_datasheet
from ppma.privacy.audit import jobs as audit_work
from ppma.privacy.audit import pairs as audit_pairs
from ppma.privacy.audit import report as audit_report
from ppma.privacy.audit.clip import Findings, Pair
from ppma.privacy.audit.jobs import AuditJob
from ppma.privacy.audit.judge import Judgement, judge
from ppma.privacy.detectors import auditors as audit_detectors
from ppma.privacy.detectors.auditors import AUDITORS
from ppma.privacy.detectors.weights import default_folder, find

REPORT, DATASHEET, CROISSANT = "report.html", "datasheet.md", "croissant.json"


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """Look for people in cleaned clips with detectors that did not make the masks, check every pixel, and report with bounds.

    ppma audit removed --originals videos --out report

    Run it again after an interruption: finished clips are kept. It says who was not detected, never that nobody is there.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """What `ppma remove-humans` wrote, another folder <class>/<video>, or a manifest FILE.csv."""
    out: Path
    """Folder for report.html, audit.json, datasheet.md, croissant.json and the findings of each clip."""
    originals: Path | None = None
    """Folder of the clips as they were (themselves, not `ori`, which is encoded anew). Without it nobody knows whether the detectors can
    see anything here, and no clip can pass."""
    root: Path | None = None
    """Folder that the paths of a manifest FILE.csv are relative to (default: its own)."""
    frames: int = 12
    """Frames of each clip that detectors look at, before and after, evenly spread; 0 for all. Pixels are checked in all of them."""
    detectors: tuple[str, ...] = tuple(AUDITORS)
    """Who looks: at least two that find people and one that finds faces."""
    makers: tuple[str, ...] = ()
    """Tools that made the masks of clips that have no record of it: none of them may judge."""
    weights: Path = field(default_factory=default_folder)
    """Folder of the models (`ppma privacy fetch` fills it)."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes (default: one a core)."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InputError(f"--workers is {self.workers}; it must be at least 1")
        if self.frames < 0:
            raise InputError(f"--frames is {self.frames}; it must be 0 (all of them) or more")
        if self.originals is not None and not self.originals.is_dir():
            raise InputError(
                f"--originals {self.originals}: no such folder; give the one that the clips were made from"
            )
        audit_detectors.check(self.detectors, set(self.makers))


def main(argv: list[str]) -> int:
    """Run `ppma audit ARGV`."""
    config = parse(AuditConfig, argv, prog="ppma audit")
    for key in {AUDITORS[name].weights for name in config.detectors} - {""}:
        find(key, config.weights)
    manifest, root, clips = audit_pairs.read(config.source, config.root, config.workers)
    pairs = audit_pairs.pairs(root, clips, config.originals)
    makers = _makers(config, pairs)
    _claim(config, manifest, root)
    jobs = [
        AuditJob(pair=pair, out=config.out, detectors=config.detectors, frames=config.frames, weights=config.weights)
        for pair in pairs
    ]
    with Progress("clips") as progress:
        findings = audit_work.run(jobs, config.workers, progress)
    judged = [(one, judge(one)) for one in findings]
    sealed = _write(config, manifest, root, clips, judged, makers)
    _tell(config, sealed, judged)
    return DONE


def _makers(config: AuditConfig, pairs: list[Pair]) -> list[str]:
    """Every tool that made a mask; InputError when one of them is to judge, or nobody knows them."""
    unknown = [pair for pair in pairs if not pair.makers]
    if unknown and not config.makers:
        raise InputError(
            f"{unknown[0].cleaned} has no record of what made its masks ({len(unknown)} such clips); name the tools with --makers"
        )
    makers = set(config.makers).union(*(pair.makers for pair in pairs))
    audit_detectors.check(config.detectors, makers)
    return sorted(makers)


def _claim(config: AuditConfig, manifest: Path | None, root: Path) -> None:
    """Make the folder of the report."""
    verdict.check_passed(manifest or config.out / "manifest.csv")
    if manifest is None and config.out.resolve().is_relative_to(root.resolve()):
        raise InputError(f"--out {config.out} lies among the clips of {root}; give a folder outside of it")
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        for folder in (config.out, *((manifest.parent,) if manifest else ())):
            if not os.access(folder, os.W_OK):
                raise InputError(f"{folder}: cannot be written; the verdicts go into its manifest and report")
    except OSError as error:
        raise InputError(f"--out {config.out}: cannot be made ({error.strerror}); give a folder of your own") from None


def _write(
    config: AuditConfig, manifest: Path | None, root: Path, clips: list[Clip],
    judged: list[tuple[Findings, Judgement]], makers: list[str],
) -> Path:  # fmt: skip
    """Report first, then the manifest, then the seal that ties them; returns the manifest."""
    content = audit_report.content(judged, makers, config.detectors, config.frames, datetime.now(UTC))
    audit = config.out / verdict.AUDIT_FILE
    write_json(audit, content)
    said = {findings.path: judgement.verdict for findings, judgement in judged}
    rows = [replace(clip, audit=said[clip.path]) for clip in clips]
    sealed = manifest or config.out / "manifest.csv"
    Manifest.write(sealed, rows)
    verdict.seal(sealed, audit)
    verdict.write_passed(sealed, audit)
    page = audit_report.html(judged, content)
    sheet = audit_datasheet.markdown(rows, content)
    croissant = audit_datasheet.croissant(rows, content, sealed, root)
    for name, text in {REPORT: page, DATASHEET: sheet, CROISSANT: json.dumps(croissant, indent=1)}.items():
        write_text(config.out / name, text)
    return sealed


def _tell(config: AuditConfig, sealed: Path, judged: list[tuple[Findings, Judgement]]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    counts = Counter(judgement.verdict for _, judgement in judged)
    told = ", ".join(f"{counts[name]} {name}" for name in verdict.VERDICTS)
    console.print(f"{len(judged)} clips: {told}", markup=False)
    if counts[verdict.PASSED]:
        console.print(f"{verdict.passed_path(sealed)}: those that passed, for --privacy strict", markup=False)
    console.print(f"{config.out / REPORT}; frames for your eyes and signature are in it", markup=False)
