"""Turn findings into verdicts and confidence bounds: per clip and detector, per clip, per class, over all.

    Findings of each clip  ->  judge(): ClipVerdict  ->  summarize(): bounds on clips, bootstrap intervals on frames

A detector without detections in the original is blind: its silence afterwards proves nothing. Its verdict is "cannot
tell", and the clip does not count for its bound. Verdicts are not averaged: one detection fails a clip, whether it is a
person or a false positive.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ppma.common import statistics
from ppma.privacy.audit.clip import Findings
from ppma.privacy.detectors.auditors import AUDITORS
from ppma.privacy.verdict import CANNOT_TELL, FAILED, PASSED, Verdict

SIGHTED = 0.2
"""Share of the original's inspected frames that must have a detection; below it, the detector is blind on the clip."""


@dataclass(frozen=True, kw_only=True)
class DetectorVerdict:
    """The verdict of one detector, or of all together, on one clip."""

    verdict: Verdict
    says: str
    frames: int
    """Inspected frames."""
    hits_before: int
    """Frames with a detection in the original; 0 without one."""
    hits_after: int
    """Frames with a detection in the cleaned clip."""


@dataclass(frozen=True, kw_only=True)
class ClipVerdict:
    """The verdict on one clip."""

    verdict: Verdict
    says: str
    detectors: dict[str, DetectorVerdict]
    together: DetectorVerdict
    """All detectors as one: a frame counts if any of them has a detection in it."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How often one detector, or any of them, still has a detection."""

    clips: int
    """All clips."""
    sighted: int
    """Clips on which the detector is not blind."""
    hits: int
    """Sighted clips with a detection."""
    upper: float
    """Upper bound on the share of clips with a detection, one-sided 95 %, exact."""
    frames: int
    """Inspected frames of the sighted clips."""
    before: float
    """Share of frames with a detection, before."""
    after: float
    """The same, after."""
    low: float
    high: float
    """95 % bootstrap interval of `after`, resampling clips."""
    says: str


Judged = Sequence[tuple[Findings, ClipVerdict]]


def detected(scores: Sequence[float], name: str) -> list[bool]:
    """Return for each frame whether its best score reaches the detector's operating point."""
    return [score >= AUDITORS[name].threshold for score in scores]


def _judge_detector(name: str, findings: Findings) -> DetectorVerdict:
    kind, scores = AUDITORS[name], findings.detectors[name]
    before, after, frames = sum(detected(scores.before, name)), sum(detected(scores.after, name)), len(scores.after)
    nothing = f"no {kind.finds} detected at operating point {kind.threshold:g} in {frames} frames"
    verdict: Verdict
    if after:
        verdict, says = (
            FAILED,
            f"detections in {after} of {frames} frames: a {kind.finds}, or a false positive; look at them",
        )
    elif not findings.original:
        verdict, says = CANNOT_TELL, f"{nothing}; without the original nothing shows that it would detect one"
    elif before < SIGHTED * frames:
        verdict, says = (
            CANNOT_TELL,
            f"{nothing}, but it is blind here: detections in {before} of {frames} frames of the original",
        )
    else:
        verdict, says = PASSED, f"{nothing}; {before} of them had one in the original"
    return DetectorVerdict(verdict=verdict, says=says, frames=frames, hits_before=before, hits_after=after)


def judge(findings: Findings) -> ClipVerdict:
    """Return the verdict on a clip.

    A clip fails on any detection or failed check. Otherwise it passes if a person detector did detect people in the original.
    """
    detectors = {name: _judge_detector(name, findings) for name in findings.detectors}
    failed = [f"{name}: {one.says}" for name, one in detectors.items() if one.verdict == FAILED]
    failed += [f"{name}: {check.says}" for name, check in findings.checks.items() if check.held is False]
    witnesses = [n for n, one in detectors.items() if one.verdict == PASSED and AUDITORS[n].finds == "person"]
    verdict: Verdict = FAILED if failed else PASSED if witnesses else CANNOT_TELL
    blind = "every person detector is blind here" if findings.original else "there is no original"
    nothing = f"no person or face detected at the operating points in {len(findings.looked_at)} frames"
    says = {
        FAILED: "; ".join(failed),
        PASSED: f"{nothing}; witnesses: {', '.join(witnesses)}",
        CANNOT_TELL: f"{nothing}, but {blind}",
    }[verdict]
    hits = [
        sum(map(any, zip(*(detected(getattr(scores, when), name) for name, scores in findings.detectors.items()))))
        for when in ("before", "after")
    ]
    together = DetectorVerdict(
        verdict=FAILED if hits[1] else PASSED if witnesses else CANNOT_TELL,
        says=says,
        frames=len(findings.looked_at),
        hits_before=hits[0],
        hits_after=hits[1],
    )
    return ClipVerdict(verdict=verdict, says=says, detectors=detectors, together=together)


def _rate(verdicts: Sequence[DetectorVerdict], subject: str) -> Rate:
    """Return the rate over clips; `subject` starts its sentence, such as "person detected at operating point 0.7"."""
    sighted = [one for one in verdicts if one.verdict != CANNOT_TELL]
    blind, clips_hit = len(verdicts) - len(sighted), sum(one.hits_after > 0 for one in sighted)
    frames = sum(one.frames for one in sighted)
    upper = statistics.upper_bound(clips_hit, len(sighted))
    after, low, high = statistics.pooled_share([one.hits_after for one in sighted], [one.frames for one in sighted])
    count = f"in {clips_hit} of {len(sighted)} clips" if clips_hit else f"in {len(sighted)} clips"
    says = f"{'' if clips_hit else 'no '}{subject} {count}, so in at most {100 * upper:.1f} % of clips (95 %)"
    if not sighted:
        says = f"cannot tell: blind on all {blind} clips"
    elif blind:
        says += f"; cannot tell for {blind} more"
    before = sum(one.hits_before for one in sighted) / frames if frames else 0.0
    return Rate(
        clips=len(verdicts), sighted=len(sighted), hits=clips_hit, upper=upper, frames=frames, before=before, after=after,
        low=low, high=high, says=says,
    )  # fmt: skip  # one field after the other


def summarize(judged: Judged) -> dict[str, Rate]:
    """Return the rate of each detector by name, and of all of them together as "any"."""
    rates = {}
    for name in judged[0][1].detectors:
        subject = f"{AUDITORS[name].finds} detected at operating point {AUDITORS[name].threshold:g}"
        rates[name] = _rate([verdict.detectors[name] for _, verdict in judged], subject)
    subject = "person or face detected by any of them, each at its operating point,"
    return rates | {"any": _rate([verdict.together for _, verdict in judged], subject)}


def by_class(judged: Judged) -> dict[str, Judged]:
    """Group clips by class, in order of class and name."""
    classes: dict[str, list[tuple[Findings, ClipVerdict]]] = {}
    for one in sorted(judged, key=lambda pair: (pair[0].class_name, pair[0].name)):
        classes.setdefault(one[0].class_name, []).append(one)
    return dict(classes)
