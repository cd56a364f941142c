"""Turn findings into verdicts and bounds: per clip, per class, over all.

    Findings of each clip  ->  judge(): ClipVerdict  ->  summarize(): rates, sensitivity, residual people

A clip fails on any detection, on any person of the original whose place is not masked or shows them again, and on any
failed check; whether a detection is a person or a false positive, a look at the frame decides. Silence proves something only
where the auditors find known people: below the stated sensitivity the verdict is "cannot tell".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from ppma.common import statistics
from ppma.common.statistics import CONFIDENCE
from ppma.config.errors import counted
from ppma.privacy.audit.clip import LEAST_DB, Findings
from ppma.privacy.audit.spikes import HEIGHTS
from ppma.privacy.detectors.auditors import AUDITORS
from ppma.privacy.verdict import CANNOT_TELL, FAILED, FLOOR, PASSED, Verdict

TALL = 48
"""Height in pixels from which on people must be found: those spiked in, of this height and more, decide."""
ENCODED_LEVELS = 255 * 10 ** (-LEAST_DB / 20)
"""Mean change of a picture, of 255 levels, that encoding alone may cause."""


@dataclass(frozen=True, kw_only=True)
class DetectorCount:
    """What one detector, or all together, detect in one clip."""

    frames: int
    """Inspected frames."""
    hits_before: int
    """Frames with a detection in the original; 0 without one."""
    hits_after: int
    """Frames with a detection in the cleaned clip."""
    spiked: int
    """Tall people spiked in."""
    found: int
    """Those that were found."""


@dataclass(frozen=True, kw_only=True)
class ClipVerdict:
    """The verdict on one clip."""

    verdict: Verdict
    says: str
    detectors: dict[str, DetectorCount]
    together: DetectorCount
    """All detectors as one: a frame counts if any of them has a detection in it."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How often one detector, or any of them, still has a detection."""

    clips: int
    hits: int
    """Clips with a detection."""
    upper: float
    """Upper bound on the share of clips with a detection, one-sided 95 %, exact."""
    frames: int
    before: float
    """Share of inspected frames with a detection, before."""
    after: float
    """The same, after."""
    sensitivity: float | None
    """Share of the tall spiked people that it finds; None if none fits into a frame."""
    says: str


@dataclass(frozen=True, kw_only=True)
class Residual:
    """People of one height whom the audit may have missed."""

    height: int
    """Pixels, as spiked in; people are counted from this height to the next."""
    spiked: int
    found: int
    sensitivity_low: float
    """Lower bound of the auditors' sensitivity."""
    per_1000: float | None
    """Upper bound on the frames, of 1,000 of clips without a detection, that show such a person; None: no bound."""


Judged = Sequence[tuple[Findings, ClipVerdict]]


def detected(scores: Sequence[float], name: str) -> list[bool]:
    """Return for each frame whether its best score reaches the detector's operating point."""
    return [score >= AUDITORS[name].threshold for score in scores]


def judge(findings: Findings) -> ClipVerdict:
    """Return the verdict on a clip."""
    counts = {name: _count(findings, (name,)) for name in findings.detectors}
    together = _count(findings, tuple(findings.detectors))
    failed = [f"{name}: {_hits(name, one)}" for name, one in counts.items() if one.hits_after]
    failed += _people_left(findings)
    failed += [f"{name}: {check.says}" for name, check in findings.checks.items() if check.held is False]
    doubts = _doubts(findings, together)
    verdict: Verdict = FAILED if failed else CANNOT_TELL if doubts else PASSED
    nothing = f"no person or face detected at the operating points in {together.frames} frames"
    found = f"the auditors find {together.found} of {together.spiked} known people of {TALL} px and more here"
    says = {
        FAILED: "; ".join(failed),
        CANNOT_TELL: f"{nothing}, but {', and '.join(doubts)}",
        PASSED: f"{nothing}; {found}",
    }[verdict]
    return ClipVerdict(verdict=verdict, says=says, detectors=counts, together=together)


def _count(findings: Findings, names: tuple[str, ...]) -> DetectorCount:
    hits = [
        sum(map(any, zip(*(detected(getattr(findings.detectors[name], when), name) for name in names))))
        for when in ("before", "after")
    ]
    tall = [spike for spike in findings.spikes if spike.height >= TALL]
    return DetectorCount(
        frames=len(findings.looked_at), hits_before=hits[0], hits_after=hits[1], spiked=len(tall),
        found=sum(any(spike.found[name] for name in names) for spike in tall),
    )  # fmt: skip  # one field after the other


def _hits(name: str, count: DetectorCount) -> str:
    finds = AUDITORS[name].finds
    return f"detections in {count.hits_after} of {count.frames} frames: a {finds}, or a false positive; look at them"


def _people_left(findings: Findings) -> list[str]:
    """Say how many people of the original are left, and in which frame to look."""
    says = []
    for what, left in (
        ("not hidden", [person for person in findings.people if person.missed]),
        ("painted back", [person for person in findings.people if person.painted_back]),
    ):
        if left:
            frames = sorted({person.frame for person in left})
            says.append(
                f"people of the original, {what} in {counted(len(frames), 'frame')}, such as frame {frames[0] + 1}"
            )
    return says


def _doubts(findings: Findings, together: DetectorCount) -> list[str]:
    """Return why silence proves nothing here; empty if it does."""
    doubts, vouched = [], findings.checks["same outside, before encoding"].held
    if not findings.original:
        doubts.append("there is no original to compare with")
    elif findings.outside_db is None and not vouched:
        doubts.append(
            "there is no mask to compare with, or it hides every pixel and the record has no hash of the original"
        )
    elif findings.inside_change is not None and findings.inside_change <= ENCODED_LEVELS and not vouched:
        doubts.append("it shows under the mask what the original shows, and the record has no hash of that one")
    if together.spiked == 0:
        doubts.append(f"its frames are too small for a person of {TALL} px")
    elif together.found < FLOOR * together.spiked:
        found = f"{together.found} of {together.spiked} known people of {TALL} px and more"
        doubts.append(f"the auditors find only {found} here")
    return doubts


# --------------------------------------------------------------------------------------------------------- over clips


def _distinct(judged: Judged) -> Judged:
    """Return one clip of each content: a copy is no further trial."""
    return list({findings.sha256: (findings, verdict) for findings, verdict in judged}.values())


def summarize(judged: Judged) -> dict[str, Rate]:
    """Return the rate of each detector by name, and of all of them together as "any"."""
    rates, judged = dict[str, Rate](), _distinct(judged)
    for name in judged[0][1].detectors:
        subject = f"{AUDITORS[name].finds} detected at operating point {AUDITORS[name].threshold:g}"
        rates[name] = _rate([verdict.detectors[name] for _, verdict in judged], subject)
    subject = "person or face detected by any of them, each at its operating point,"
    return rates | {"any": _rate([verdict.together for _, verdict in judged], subject)}


def _rate(counts: Sequence[DetectorCount], subject: str) -> Rate:
    """Return the rate over clips; `subject` starts its sentence, such as "person detected at operating point 0.5"."""
    clips, hits, frames = len(counts), sum(one.hits_after > 0 for one in counts), sum(one.frames for one in counts)
    upper, spiked = statistics.upper_bound(hits, clips), sum(one.spiked for one in counts)
    where = f"in {hits} of {counted(clips, 'clip')}" if hits else f"in {counted(clips, 'clip')}"
    return Rate(
        clips=clips, hits=hits, upper=upper, frames=frames,
        before=sum(one.hits_before for one in counts) / max(frames, 1),
        after=sum(one.hits_after for one in counts) / max(frames, 1),
        sensitivity=sum(one.found for one in counts) / spiked if spiked else None,
        says=f"{'' if hits else 'no '}{subject} {where}, so in at most {100 * upper:.1f} % of clips (95 %)",
    )  # fmt: skip  # one field after the other


def residual(judged: Judged) -> list[Residual]:
    """Return how many people of each height the clips without a detection may still show.

    If a share r of all clips shows a person and the auditors find a share s of such people, they detect r s of the clips
    and miss r (1 - s). So r (1 - s) is at most u (1 - s) / s, where u is the upper bound on the clips with a detection of
    that height and s the lower bound of the sensitivity; both are exact, at half of 5 % each. It counts a clip as showing
    the person in every frame, since frames of one clip are not independent, and as having one chance to be found.
    """
    confidence, rows, judged = 1 - (1 - CONFIDENCE) / 2, list[Residual](), _distinct(judged)
    left = sum(verdict.together.hits_after == 0 for _, verdict in judged)
    for height, end in zip(HEIGHTS, (*HEIGHTS[1:], float("inf"))):
        spikes = [spike for findings, _ in judged for spike in findings.spikes if spike.height == height]
        found = sum(any(spike.found.values()) for spike in spikes)
        low = 1 - statistics.upper_bound(len(spikes) - found, len(spikes), confidence)
        hits = sum(any(height <= tall < end for tall in _heights_after(findings)) for findings, _ in judged)
        upper = statistics.upper_bound(hits, len(judged), confidence)
        share = upper * (1 - low) / low * len(judged) / left if low > 0 and left else 1.0
        per_1000 = 1000 * share if share < 1 else None
        rows.append(Residual(height=height, spiked=len(spikes), found=found, sensitivity_low=low, per_1000=per_1000))
    return rows


def _heights_after(findings: Findings) -> list[float]:
    """Return the heights in pixels of the people that are detected in a cleaned clip."""
    return [
        box[3] - box[1]
        for name, scores in findings.detectors.items()
        if AUDITORS[name].finds == "person"
        for boxes in scores.boxes_after
        for box in boxes
    ]


def by_class(judged: Judged) -> dict[str, Judged]:
    """Group clips by class, in order of class and name."""
    ordered = sorted(judged, key=lambda one: (one[0].class_name, one[0].name))
    return {name: list(clips) for name, clips in groupby(ordered, lambda one: one[0].class_name)}
