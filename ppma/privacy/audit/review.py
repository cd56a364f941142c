"""`ppma audit review`: show people a random sample of full-size frames, and record what they see.

    report               ->  answers.sample(): frames of the clips that did not fail  ->  one page, before | after  ->  answers
    report, answers.json ->  review.json: who saw what and when, and the exact bound

The seed is the hash of audit.json, so that the sample cannot be chosen. Each clip gives one frame before any gives a
second. The bound therefore holds for the frames of these clips, each clip counted alike, and needs no independence of the
frames of a clip: a sample spread evenly misses people no more often than one drawn from all frames at once.
"""

import json
import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from ppma.common import pages, statistics
from ppma.common.files import content_sha256, file_sha256, write_json, write_text
from ppma.common.plots import STYLE
from ppma.common.progress import Progress
from ppma.common.workers import parallel_map
from ppma.config.command import DONE, FAILED_AUDIT, OutFile, check_ranges, parse
from ppma.config.errors import BadClip, InputError, counted, first_few, reading, require
from ppma.privacy import answers
from ppma.privacy.answers import ANSWERS, NO_ONE, SEEN, Sample
from ppma.privacy.audit.clip import jpeg_base64, original_frames
from ppma.privacy.removal.clip import ClipSource, video_frames
from ppma.privacy.verdict import AUDIT_FILE, FAILED, FORMAT, REVIEW_FILE

PAGE, REVIEW_FORMAT = "review.html", "ppma-review-1"
QUALITY = 90
"""JPEG quality of the pictures."""


@dataclass(frozen=True, kw_only=True)
class ReviewConfig:
    """Let a person read a random sample of frames at full size, original next to cleaned, and record what they saw.

    For example:
      ppma audit review report --out review.html
      ppma audit review report --answers answers.json

    Open the page in a browser, answer every frame and save the answers; then the second command adds them to
    REPORT/review.json and prints the exact bound on frames with a person: at most 1 % after none in 300. The page
    contains pictures of the originals: keep it as safe as those, and delete it afterwards. Exit code 3: people were seen.
    """

    report: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="REPORT")]
    """Folder of the report of `ppma audit`."""
    out: OutFile | None = None
    """Page to write. Nothing else gets pictures of the originals."""
    answers: Path | None = None
    """Answers that the page saved, to record instead of writing a page."""
    frames: int = 300
    """Frames to show, drawn from the clips that did not fail, one of each clip first."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes (default: one per core)."""

    def __post_init__(self) -> None:
        check_ranges(self, workers=(1, 1024), frames=(1, 100_000))
        require((self.out is None) != (self.answers is None), "give --out PAGE.html to write a page, or --answers FILE")


def main(argv: list[str]) -> int:
    """Run `ppma audit review ARGV`."""
    config = parse(ReviewConfig, argv, prog="ppma audit review")
    console = Console(highlight=False, soft_wrap=True, markup=False)
    audit = config.report / AUDIT_FILE
    with reading(audit, "the audit.json of a report of `ppma audit`"):
        content = json.loads(audit.read_text(encoding="utf-8"))
        require(content["format"] == FORMAT, f"its format is not {FORMAT}; run `ppma audit` again")
        clips = [clip for clip in content["clips"] if clip["verdict"] != FAILED]
        require(bool(clips), "all of its clips failed, so none is left to review")
    sha256 = file_sha256(audit)
    if config.answers is not None:
        return _record(config.report, config.answers, clips, sha256, console)
    assert config.out is not None
    _write_page(config, config.out, answers.sample(clips, sha256, config.frames), sha256, console)
    return DONE


# ------------------------------------------------------------------------------------------------------------ the page


_Job = tuple[Path, dict[str, Any], set[int]]
"""What the audit found in a clip, its entry in audit.json, and the frames to show."""
Pictures = dict[tuple[str, int], tuple[str, str]]
"""(path in the manifest, index of the frame) -> JPEG before (empty without an original) and after, in base64."""


def _pictures(job: _Job) -> Pictures:
    """Read frames of a clip and its original, which must be the audited files."""
    record, clip, wanted = job
    with reading(record, "what `ppma audit` found in a clip; run it again"):
        content = json.loads(record.read_text(encoding="utf-8"))
        pair, hashes = content["settings"]["pair"], {sha256 for _, sha256 in content["files"].values()}
        cleaned, source = Path(pair["cleaned"]), pair["original"]
        original = ClipSource(**{**source, "path": Path(source["path"])}) if source else None
    for path, audited in [(cleaned, {clip["sha256"]}), *([(original.path, hashes)] if original else [])]:
        if content_sha256(path) not in audited:
            raise InputError(f"{path} is not the file that was audited; restore that one, or run `ppma audit` again")
    found: Pictures = {}
    try:
        for t, frames in enumerate(zip_longest(original_frames(original), video_frames(cleaned))):
            if t in wanted:
                before, after = ("" if frame is None else jpeg_base64(frame, QUALITY) for frame in frames)
                found[clip["path"], t] = before, after
            if len(found) == len(wanted):
                break
    except BadClip as error:
        raise InputError(f"{cleaned} {error}; run `ppma audit` again") from None
    return found


def _write_page(config: ReviewConfig, page: Path, drawn: Sample, sha256: str, console: Console) -> None:
    clips, frames = {clip["path"]: clip for clip, _ in drawn}, defaultdict[str, set[int]](set)
    for clip, frame in drawn:
        frames[clip["path"]].add(frame)
    records = config.report / "clips"
    jobs = [(records / f"{clip['name']}.json", clip, frames[path]) for path, clip in clips.items()]
    pictures: Pictures = {}
    with Progress("clips") as progress:
        for done, found in enumerate(parallel_map(_pictures, jobs, config.workers)):
            pictures |= found
            progress(done + 1, len(jobs))
    upper = statistics.upper_bound(0, len(drawn))
    text = pages.render(
        __package__, PAGE, answers=ANSWERS, drawn=drawn, format=REVIEW_FORMAT, pictures=pictures, quality=QUALITY,
        sha256=sha256, style=STYLE, upper=upper,
    )  # fmt: skip  # one value after the other
    write_text(page, text)
    if len(drawn) < config.frames:
        console.print(f"the clips that did not fail have only {len(drawn)} frames; all of them are on the page")
    console.print(
        f"{page}: {counted(len(drawn), 'frame')} of {counted(len(jobs), 'clip')}; "
        f"if none shows a person, at most {100 * upper:.1f} % do (95 %)"
    )
    console.print("it contains pictures of the originals: keep it as safe as those, and delete it after the review")


# ---------------------------------------------------------------------------------------------------------- the answers


def _record(report: Path, file: Path, clips: list[dict[str, Any]], sha256: str, console: Console) -> int:
    """Add the answers of a reviewer to review.json, print the bound, and return the exit code."""
    review = _read_answers(file, clips, sha256)
    target = report / REVIEW_FILE
    reviews = []
    if target.exists():
        with reading(target, f"a record of `ppma audit review` ({REVIEW_FORMAT}); move it away"):
            reviews = list(json.loads(target.read_text(encoding="utf-8"))["reviews"])
    if any({**one, "recorded": ""} == {**review, "recorded": ""} for one in reviews):
        raise InputError(f"--answers {file} is recorded in {target} already")
    write_json(target, {"format": REVIEW_FORMAT, "reviews": [*reviews, review]})
    counts, frames, upper = review["counts"], review["frames"], review["upper"]
    said = ", ".join(f"{answer} in {counts[answer]}" for answer in ANSWERS)
    console.print(f"{review['reviewer']}, {frames} frames: {said}")
    console.print(
        f"so at most {100 * upper:.1f} % of the frames of these clips show a person (95 %); every answer but '{NO_ONE}' counts"
    )
    if seen := [f"{one['path']} frame {one['frame'] + 1}" for one in review["answers"] if one["says"] in SEEN]:
        console.print(
            f"people are left in {first_few(seen, 10)}: remove these clips or clean them again, and audit again"
        )
    console.print(f"recorded in {target}")
    return FAILED_AUDIT if seen else DONE


def _read_answers(file: Path, clips: list[dict[str, Any]], sha256: str) -> dict[str, Any]:
    """Return a review from the answers that a page saved; InputError if they are not of this audit, or not complete."""
    with reading(file, "the answers that a page of `ppma audit review` saves"):
        given = json.loads(file.read_text(encoding="utf-8-sig"))
        require(given["format"] == REVIEW_FORMAT, f"its format is not {REVIEW_FORMAT}; save it from the page again")
        require(given["audit_sha256"] == sha256, "it is of another audit; make a page of this one and answer that")
        reviewer, count = str(given["reviewer"]).strip(), int(given["frames"])
        require(bool(reviewer), "it names no reviewer; fill in the name on the page and save again")
        require(count > 0, "it has no frames; save it from the page again")
        said = [
            {"path": str(one["path"]), "frame": int(one["frame"]), "says": str(one["says"]), "at": str(one["at"])}
            for one in given["answers"]
        ]
        times = sorted(datetime.fromisoformat(str(one["at"])) for one in said)
        answers.check(said, answers.sample(clips, sha256, count))
    counts = Counter(str(one["says"]) for one in said)
    return {
        "audit_sha256": sha256,
        "reviewer": reviewer,
        "began": times[0].isoformat(),
        "ended": times[-1].isoformat(),
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
        "frames": len(said),
        "counts": {answer: counts[answer] for answer in ANSWERS},
        "upper": answers.bound(said),
        "confidence": statistics.CONFIDENCE,
        "answers": said,
    }
