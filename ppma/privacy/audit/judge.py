"""From findings to verdicts and bounds: per clip and detector, per clip, per class, over all.

    Findings of each clip  ->  judge(): Judgement  ->  summarize(): counts of clips with exact bounds, of frames with a bootstrap

A detector that saw nobody in the original proves nothing by seeing nobody afterwards: its verdict is "cannot tell", and the clip does not
count for its bound. Detectors do not outvote each other: one hit fails a clip, be it a person or a false alarm that somebody must look at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ppma.common import statistics
from ppma.privacy.audit.clip import Findings, Scores
from ppma.privacy.detectors.auditors import AUDITORS
from ppma.privacy.verdict import CANNOT_TELL, FAILED, PASSED, Verdict

SIGHTED = 0.2
"""Share of the original's frames that were looked at in which a detector must have seen somebody, to be a witness for the clip."""


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """What one detector says of one clip."""

    verdict: Verdict
    says: str
    frames: int
    hits_before: int
    """0 without an original."""
    hits_after: int


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the audit says of one clip."""

    verdict: Verdict
    says: str
    opinions: dict[str, Opinion]


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Clips and frames in which one detector, or any of them, still finds somebody."""

    clips: int
    """All of them."""
    sighted: int
    """Those that it can tell of."""
    hits: int
    """Of the sighted, those with a hit."""
    upper: float
    """At most this share of clips, one-sided 95 %, exact."""
    frames: int
    """Looked at, in the sighted clips."""
    before: float
    """Share of frames with a hit, before."""
    after: float
    low: float
    high: float
    """95 % bootstrap over clips, of `after`."""
    says: str


def hits(scores: Sequence[float], name: str) -> int:
    """Frames with a hit."""
    return sum(score >= AUDITORS[name].threshold for score in scores)


def _opinion(name: str, scores: Scores, original: bool) -> Opinion:
    kind, frames = AUDITORS[name], len(scores.after)
    before, after = hits(scores.before, name), hits(scores.after, name)
    what = f"no {kind.finds} detected at operating point {kind.threshold:g} in {frames} frames"
    if after:
        verdict, says = FAILED, f"{after} of {frames} frames with a hit: a {kind.finds}, or a false alarm; look at them"
    elif not original:
        verdict, says = CANNOT_TELL, f"{what}; without the original nobody knows whether it would have seen one"
    elif before < SIGHTED * frames:
        verdict, says = CANNOT_TELL, f"{what}, but it is blind here: {before} of {frames} in the original"
    else:
        verdict, says = PASSED, f"{what}; {before} of them had one in the original"
    return Opinion(verdict=verdict, says=says, frames=frames, hits_before=before, hits_after=after)


def judge(findings: Findings) -> Judgement:
    """The verdict on a clip: failed by one hit or one check, passed by a detector of people that could see, else nobody can tell."""
    opinions = {name: _opinion(name, scores, findings.original) for name, scores in findings.detectors.items()}
    broken = [f"{name}: {check.says}" for name, check in findings.checks.items() if check.held is False]
    hit = [name for name, opinion in opinions.items() if opinion.verdict == FAILED]
    witnesses = [n for n, o in opinions.items() if o.verdict == PASSED and AUDITORS[n].finds == "person"]
    if hit or broken:
        says = "; ".join([*(f"{name}: {opinions[name].says}" for name in hit), *broken])
        return Judgement(verdict=FAILED, says=says, opinions=opinions)
    if not witnesses:
        why = "no original" if not findings.original else "every detector of people is blind here"
        return Judgement(verdict=CANNOT_TELL, says=f"nobody detected, but {why}", opinions=opinions)
    return Judgement(verdict=PASSED, says=f"no person detected; witnesses: {', '.join(witnesses)}", opinions=opinions)


def _rate(told: Sequence[tuple[Verdict, int, int, int]], subject: str) -> Rate:
    """Of (verdict, frames, hits before, hits after) of each clip."""
    sighted = [row for row in told if row[0] != CANNOT_TELL]
    found = sum(row[3] > 0 for row in sighted)
    frames = sum(row[1] for row in sighted)
    upper = statistics.upper_bound(found, len(sighted))
    after, low, high = statistics.frame_rate([row[3] for row in sighted], [row[1] for row in sighted])
    blind = len(told) - len(sighted)
    count = f"in {found} of {len(sighted)} clips" if found else f"in {len(sighted)} clips"
    says = f"{'' if found else 'no '}{subject} {count}, so in at most {100 * upper:.1f} % of clips (95 %)"
    if not sighted:
        says = f"cannot tell: blind on all {blind} clips"
    elif blind:
        says += f"; cannot tell of {blind} more"
    before = sum(row[2] for row in sighted) / frames if frames else 0.0
    return Rate(
        clips=len(told), sighted=len(sighted), hits=found, upper=upper, frames=frames, before=before, after=after, low=low,
        high=high, says=says,
    )  # fmt: skip


def summarize(judged: Sequence[tuple[Findings, Judgement]]) -> dict[str, Rate]:
    """name of each detector, and "any" for all of them together -> its rate."""
    names = list(judged[0][1].opinions)
    rates = {}
    for name in names:
        rows = [judgement.opinions[name] for _, judgement in judged]
        told = [(o.verdict, o.frames, o.hits_before, o.hits_after) for o in rows]
        kind = AUDITORS[name]
        rates[name] = _rate(told, f"{kind.finds} detected at operating point {kind.threshold:g}")
    together = [_together(findings, judgement) for findings, judgement in judged]
    rates["any"] = _rate(together, "person or face detected by any of them, each at its operating point,")
    return rates


def _together(findings: Findings, judgement: Judgement) -> tuple[Verdict, int, int, int]:
    """All detectors as one: a frame is hit when one of them hits it."""

    def frames_hit(which: str) -> int:
        rows = [
            [s >= AUDITORS[n].threshold for s in getattr(scores, which)] for n, scores in findings.detectors.items()
        ]
        return sum(any(row) for row in zip(*rows))

    after = frames_hit("after")
    seen = any(o.verdict == PASSED and AUDITORS[n].finds == "person" for n, o in judgement.opinions.items())
    verdict: Verdict = FAILED if after else PASSED if seen else CANNOT_TELL
    return verdict, len(findings.looked_at), frames_hit("before"), after


def by_class(judged: Sequence[tuple[Findings, Judgement]]) -> dict[str, list[tuple[Findings, Judgement]]]:
    """Clips of each class, classes in order."""
    classes: dict[str, list[Any]] = {}
    for one in sorted(judged, key=lambda pair: (pair[0].class_name, pair[0].name)):
        classes.setdefault(one[0].class_name, []).append(one)
    return classes
