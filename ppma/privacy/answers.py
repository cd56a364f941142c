"""The frames that a person reviews, and the bound that the answers prove.

    entries of audit.json  ->  sample(): frames of the clips that did not fail  ->  answers  ->  check(), bound()

`ppma audit review` asks and records; `--privacy strict` samples, checks and counts again, so that an edited record shows.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from typing import Any

from ppma.common import statistics
from ppma.common.philox import Purpose, generator
from ppma.config.errors import first_few, require

NO_ONE, UNSURE, SEEN = "no one", "unsure", ("part of a person", "person")
ANSWERS = (NO_ONE, *SEEN, UNSURE)
"""What a reviewer says of a frame; all but the first count as a person in the bound."""
Sample = list[tuple[dict[str, Any], int]]
"""A clip's entry in audit.json, and the index of one of its frames."""
Answer = Mapping[str, Any]
"""path, frame and says."""


def sample(clips: Sequence[dict[str, Any]], audit_sha256: str, count: int) -> Sample:
    """Draw frames at random: one of each clip, then a second of each, and so on.

    Args:
        clips: Entries of audit.json, of which copies of a clip count once.
        audit_sha256: Hash of that file, which seeds the sample.
        count: Number of frames, or all if there are fewer.
    """
    seed, clips = int(audit_sha256[:15], 16), list({clip["sha256"]: clip for clip in clips}.values())
    chosen = [clips[i] for i in generator(seed, Purpose.REVIEW).permutation(len(clips))[:count]]
    orders = [
        generator(seed, Purpose.REVIEW, sample=n + 1).permutation(clip["frames"]) for n, clip in enumerate(chosen)
    ]

    def rounds() -> Iterator[tuple[dict[str, Any], int]]:
        for drawn in zip_longest(*orders):
            yield from ((clip, int(frame)) for clip, frame in zip(chosen, drawn) if frame is not None)

    return list(islice(rounds(), count))


def check(answers: Sequence[Answer], drawn: Sample) -> None:
    """Raise an InputError unless each frame of a sample, in its order, has one of ANSWERS."""
    wrong = sorted({str(one["says"]) for one in answers} - set(ANSWERS))
    require(not wrong, f"{first_few(wrong, 3)} is not an answer; answers are {', '.join(ANSWERS)}")
    answered = f"it answers {len(answers)} of {len(drawn)} frames; answer all of them on the page and save again"
    require(len(answers) == len(drawn), answered)
    same = [(one["path"], one["frame"]) for one in answers] == [(clip["path"], frame) for clip, frame in drawn]
    require(same, "its frames are not the sample of this audit; make the page again and answer that")


def bound(answers: Sequence[Answer]) -> float:
    """Return the exact upper bound on the share of frames with a person."""
    return statistics.upper_bound(sum(one["says"] != NO_ONE for one in answers), len(answers))
