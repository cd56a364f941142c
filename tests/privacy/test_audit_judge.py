"""Who is a witness, who is blind, and what is counted for a bound."""

import pytest

from ppma.privacy.audit.clip import Findings, Scores
from ppma.privacy.audit.files import Check
from ppma.privacy.audit.judge import judge, summarize
from ppma.privacy.verdict import CANNOT_TELL, FAILED, PASSED

SEEN, BLIND, LEFT = ([0.9] * 10, [0.0] * 10), ([0.9] + [0.0] * 9, [0.3] * 10), ([0.9] * 10, [0.0] * 9 + [0.95])


def findings(nanodet=SEEN, centernet=SEEN, blazeface=SEEN, *, name="c/v", original=True, **checks):
    told = {"nanodet": nanodet, "centernet": centernet, "blazeface": blazeface}
    return Findings(
        name=name, path=f"inp/{name}.mp4", class_name=name.split("/")[0], sha256="0" * 64, frames=10, looked_at=list(range(10)),
        original=original, makers=["m"], outside_db=45.0, inside_change=30.0, worst_frame=0, picture="",
        detectors={
            n: Scores(before=before if original else [], after=after, boxes_before=[], boxes_after=[])
            for n, (before, after) in told.items()
        },
        checks={"every frame": Check(held=True, says="all"), **checks},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "verdict", "says"),
    [
        (findings(), PASSED, "witnesses: nanodet, centernet"),
        (findings(nanodet=BLIND), PASSED, "witnesses: centernet"),
        (findings(nanodet=BLIND, centernet=BLIND), CANNOT_TELL, "every detector of people is blind here"),
        (findings(nanodet=BLIND, centernet=BLIND, blazeface=LEFT), FAILED, "blazeface: 1 of 10 frames with a hit"),
        (findings(centernet=LEFT), FAILED, "a person, or a false alarm; look at them"),
        (findings(original=False), CANNOT_TELL, "no original"),
        (findings(original=False, nanodet=LEFT), FAILED, "nanodet"),
        (findings(sound=Check(held=False, says="carries sound")), FAILED, "sound: carries sound"),
        (findings(outside=Check(held=None, says="not checked")), PASSED, "no person detected"),
    ],
)
def test_the_verdict_on_a_clip(found, verdict, says):
    judgement = judge(found)
    assert judgement.verdict == verdict and says in judgement.says


def test_scores_below_the_operating_point_are_no_hits():
    assert judge(findings(nanodet=([0.9] * 10, [0.69] * 10))).verdict == PASSED
    assert judge(findings(nanodet=([0.9] * 10, [0.7] + [0.0] * 9))).verdict == FAILED


def test_blind_clips_count_for_no_bound():
    clips = [findings(name=f"c/{i}") for i in range(20)] + [
        findings(BLIND, BLIND, BLIND, name=f"d/{i}") for i in range(30)
    ]
    rates = summarize([(clip, judge(clip)) for clip in clips])
    assert (rates["nanodet"].clips, rates["nanodet"].sighted) == (50, 20)
    assert rates["any"].upper == rates["nanodet"].upper == pytest.approx(1 - 0.05 ** (1 / 20))
    says = "no person detected at operating point 0.7 in 20 clips, so in at most 13.9 % of clips (95 %); cannot tell of 30 more"
    assert rates["nanodet"].says == says
    assert summarize([(clip, judge(clip)) for clip in clips[20:]])["any"].says == "cannot tell: blind on all 30 clips"


def test_detectors_together_hit_a_frame_that_one_of_them_hits():
    first = ([0.9] * 10, [0.9] + [0.0] * 9)
    rate = summarize([(one := findings(first, LEFT), judge(one))])["any"]
    assert rate.after == pytest.approx(0.2) and rate.hits == rate.sighted == 1
    assert rate.says.startswith("person or face detected by any of them, each at its operating point, in 1 of 1 clips")
