"""Which frames are inspected, what files contain, who is a witness and who is blind, and what counts for a bound."""

import io

import numpy as np
import pytest
from PIL import Image

from ppma.privacy.audit.clip import Check, Findings, Scores, check_file, inspected_frames, picture_metadata, psnr
from ppma.privacy.audit.judge import judge, summarize
from ppma.privacy.removal.writing import part_writer, target
from ppma.privacy.verdict import CANNOT_TELL, FAILED, PASSED


@pytest.mark.parametrize(
    ("frames", "count", "expected"),
    [(100, 5, [0, 25, 50, 74, 99]), (3, 12, [0, 1, 2]), (4, 0, [0, 1, 2, 3]), (1, 1, [0])],
)
def test_inspected_frames_are_evenly_spaced_with_both_ends(frames, count, expected):
    assert inspected_frames(frames, count) == expected


def test_psnr_follows_its_definition():
    noise = np.full((10, 10), 2.55)
    assert psnr(float((noise**2).sum()), noise.size) == pytest.approx(40.0)
    assert psnr(0.0, 100) == 100.0


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("layout", ["videos", "frames"])
def test_files_of_the_remover_contain_only_pictures(tmp_path, layout):
    path = target(tmp_path, "inp", "c/clip", layout)
    with part_writer(path, "inp", layout, 10.0) as add:
        for _ in range(3):
            add(np.zeros((48, 64, 3), np.uint8))
    assert all(check.held for check in check_file(path).values()), check_file(path)


def jpeg(**options):
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "jpeg", **options)
    return out.getvalue()


def test_metadata_of_pictures_is_found(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    assert picture_metadata(jpeg()) == [] and picture_metadata(jpeg(exif=exif)) == ["APP1 (Exif or XMP)"]
    assert picture_metadata(jpeg(comment=b"by me")) == ["a comment"]
    (tmp_path / "000001.jpg").write_bytes(jpeg(exif=exif))
    found = check_file(tmp_path)
    assert found["no metadata"].held is False and "000001.jpg" in found["no metadata"].says and found["no sound"].held


# ------------------------------------------------------------------------------------------------------------- verdicts

SEEN, BLIND, LEFT = ([0.9] * 10, [0.0] * 10), ([0.9] + [0.0] * 9, [0.3] * 10), ([0.9] * 10, [0.0] * 9 + [0.95])


def findings(nanodet=SEEN, centernet=SEEN, blazeface=SEEN, *, name="c/v", original=True, **checks):
    scores = {"nanodet": nanodet, "centernet": centernet, "blazeface": blazeface}
    return Findings(
        name=name, path=f"inp/{name}.mp4", class_name=name.split("/")[0], sha256="0" * 64, frames=10, looked_at=list(range(10)),
        original=original, makers=["m"], outside_db=45.0, inside_change=30.0, worst_frame=0, picture="",
        detectors={n: Scores(before=before if original else [], after=after) for n, (before, after) in scores.items()},
        checks={"every frame": Check(held=True, says="all"), **checks},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "verdict", "says"),
    [
        (findings(), PASSED, "witnesses: nanodet, centernet"),
        (findings(nanodet=BLIND), PASSED, "witnesses: centernet"),
        (findings(nanodet=BLIND, centernet=BLIND), CANNOT_TELL, "blind"),
        (findings(nanodet=BLIND, centernet=BLIND, blazeface=LEFT), FAILED, "blazeface"),
        (findings(centernet=LEFT), FAILED, "1 of 10 frames"),
        (findings(original=False), CANNOT_TELL, "at the operating points in 10 frames, but there is no original"),
        (findings(original=False, nanodet=LEFT), FAILED, "nanodet"),
        (findings(sound=Check(held=False, says="contains sound")), FAILED, "sound"),
        (
            findings(outside=Check(held=None, says="not checked")),
            PASSED,
            "detected at the operating points in 10 frames",
        ),
    ],
)
def test_the_verdict_on_a_clip(found, verdict, says):
    judged = judge(found)
    assert judged.verdict == verdict and says in judged.says


def test_scores_below_the_operating_point_are_no_detections():
    assert judge(findings(nanodet=([0.9] * 10, [0.69] * 10))).verdict == PASSED
    assert judge(findings(nanodet=([0.9] * 10, [0.7] + [0.0] * 9))).verdict == FAILED


def rates(clips):
    return summarize([(clip, judge(clip)) for clip in clips])


def test_blind_clips_do_not_count_for_a_bound():
    blind = [findings(BLIND, BLIND, BLIND, name=f"d/{i}") for i in range(30)]
    found = rates([findings(name=f"c/{i}") for i in range(20)] + blind)
    assert (found["nanodet"].clips, found["nanodet"].sighted) == (50, 20)
    assert found["any"].upper == found["nanodet"].upper == pytest.approx(1 - 0.05 ** (1 / 20))
    says = "no person detected at operating point 0.7 in 20 clips, so in at most 13.9 % of clips (95 %); cannot tell for 30 more"
    assert found["nanodet"].says == says
    assert rates(blind)["any"].says.startswith("cannot tell") and rates(blind)["any"].upper == 1


def test_together_detectors_count_a_frame_that_any_of_them_counts():
    rate = rates([findings(([0.9] * 10, [0.9] + [0.0] * 9), LEFT)])["any"]
    assert rate.after == pytest.approx(0.2) and rate.hits == rate.sighted == 1
    assert rate.says.startswith("person or face detected by any of them")
