"""Which frames are inspected, what files contain, what became of people, and what counts for a verdict and a bound."""

import io
import uuid
from contextlib import nullcontext
from dataclasses import replace

import av
import numpy as np
import pytest
from PIL import Image

from ppma.config.errors import InputError
from ppma.loaders.decode.fetch import all_frames
from ppma.privacy.audit.clip import Check, Findings, Scores, check_file, inspected_frames, picture_metadata, psnr
from ppma.privacy.audit.judge import judge, residual, summarize
from ppma.privacy.audit.people import Person, people_of
from ppma.privacy.audit.spikes import Spike, read_people, spike
from ppma.privacy.detectors.auditors import AUDITORS
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
    assert all(check.held for check in check_file(path, 3).values()), check_file(path, 3)


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
    found = check_file(tmp_path, 1)
    assert found["no metadata"].held is False and "000001.jpg" in found["no metadata"].says and found["no sound"].held


def segment(marker, data):
    return bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2, "big") + data


def png(*chunks):
    """A PNG with chunks after its first one, of a picture that has the name of a chunk in its pixels."""
    pixels = np.frombuffer(b"tEXt" * 48, np.uint8).reshape(8, 8, 3)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png", compress_level=0)
    whole = out.getvalue()
    extra = b"".join(len(data).to_bytes(4, "big") + kind + data + bytes(4) for kind, data in chunks)
    return whole[:33] + extra + whole[33:]


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (jpeg(progressive=True), 0),
        (jpeg()[:2] + segment(0xE0, b"JFXX\0\x10" + jpeg()) + jpeg()[2:], 1),  # a thumbnail of the original
        (jpeg()[:2] + segment(0xEC, b"Ducky") + jpeg()[2:], 1),
        (jpeg()[:2] + b"\xff" + segment(0xFE, b"by me") + jpeg()[2:], 1),  # behind a fill byte
        (jpeg() + jpeg(), 1),
        (b"no picture", 1),
        (jpeg()[:2] + b"\xff", 1),  # cut off in a marker
        (png(), 0),
        (png((b"tEXt", b"by me"), (b"prVt", b"")), 2),
        (png() + jpeg(), 1),
    ],
)
def test_only_what_a_picture_needs_is_in_its_file(data, count):
    assert len(picture_metadata(data)) == count


def test_other_files_in_a_folder_of_frames_are_found(tmp_path):
    (tmp_path / "000001.jpg").write_bytes(jpeg())
    (tmp_path / "originals").mkdir()
    (tmp_path / "names.txt").write_text("Ada")
    says = check_file(tmp_path, 1)["no metadata"].says
    assert "originals" in says and "names.txt" in says


def write_video(path, options=None, shift=0, **tags):
    """Write ten frames, of which players skip those that `shift` moves to before the start."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        stream.metadata.update(tags)
        for frame in [np.zeros((64, 64, 3), np.uint8)] * 10:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                container.mux(packet)
        for packet in stream.encode(None):
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            container.mux(packet)


def test_what_a_video_hides_is_found(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path)
    assert check_file(path, 10)["no metadata"].held
    xmp = uuid.UUID("be7acfcb-97a9-42e8-9c71-999491e3afac").bytes + b"<exif:GPSLatitude>52</exif:GPSLatitude>"
    path.write_bytes(path.read_bytes() + (len(xmp) + 8).to_bytes(4, "big") + b"uuid" + xmp)
    assert check_file(path, 10)["no metadata"].held is False
    write_video(path, {"use_editlist": "1", "avoid_negative_ts": "0"}, shift=5)
    shown = sum(1 for _ in all_frames(path, 0.0, 9.0))
    assert shown < 10 and check_file(path, shown)["no metadata"].held is False
    write_video(path, handler_name="Ada's camera, 2026-11-28")
    assert check_file(path, 10)["no metadata"].held is False


@pytest.mark.parametrize(("opacity", "mode", "fits"), [(255, "RGBA", True), (100, "RGBA", False), (255, "RGB", False)])
def test_cut_outs_of_the_users_are_trimmed_to_their_outline(opacity, mode, fits, tmp_path):
    person = np.zeros((20, 12, 4), np.uint8)
    person[5:15, 3:9] = 250, 20, 10, opacity
    Image.fromarray(person).convert(mode).save(tmp_path / "person.png")
    with nullcontext() if fits else pytest.raises(InputError, match=r"person\.png"):
        (cut,) = read_people(tmp_path)
        assert cut.shape == (10, 6, 4) and (cut == (250, 20, 10, 255)).all()


# ------------------------------------------------------------------------------------------------------------- verdicts

SEEN, BLIND, LEFT = ([0.9] * 10, [0.0] * 10), ([0.0] * 10, [0.0] * 10), ([0.9] * 10, [0.0] * 9 + [0.95])
HASHED = "same outside, before encoding"
HIDDEN = Person(frame=3, box=[0, 0, 20, 60], found_by=["nanodet"], masked=0.9, kept=0.1)


def spiked(found, height=48, count=10):
    """Ten known people, of whom nanodet finds some and centernet none."""
    hits = [{"nanodet": i < found, "centernet": False, "blazeface": False} for i in range(count)]
    return [Spike(frame=i, height=height, found=hit) for i, hit in enumerate(hits)]


def findings(
    nanodet=SEEN, centernet=SEEN, blazeface=SEEN, *, name="c/v", original=True, people=(HIDDEN,), spikes=None, **checks
):
    scores = {"nanodet": nanodet, "centernet": centernet, "blazeface": blazeface}
    boxes = {
        n: [[[0.0, 0.0, 20.0, 60.0, s]] if s >= AUDITORS[n].threshold else [] for s in after]
        for n, (_, after) in scores.items()
    }
    return Findings(
        name=name, path=f"inp/{name}.mp4", class_name=name.split("/")[0], sha256=name, frames=10, looked_at=list(range(10)),
        original=original, makers=["m"], method="remove", outside_db=45.0, inside_change=30.0, worst_frame=0, picture="",
        detectors={
            n: Scores(before=before if original else [], after=after, boxes_after=boxes[n]) for n, (before, after) in scores.items()
        },
        people=list(people), spikes=spiked(8) if spikes is None else spikes,
        checks={"every frame": Check(held=True, says="all"), HASHED: Check(held=None, says="no hash"), **checks},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "verdict", "says"),
    [
        (findings(), PASSED, "8 of 10 known people"),
        (findings(BLIND, BLIND, BLIND, people=()), PASSED, "8 of 10"),  # an empty street
        (findings(spikes=spiked(4)), CANNOT_TELL, "4 of 10"),
        (findings(spikes=spiked(10, height=24)), CANNOT_TELL, "too small"),
        (findings(nanodet=BLIND, centernet=BLIND, blazeface=LEFT), FAILED, "blazeface"),
        (findings(centernet=LEFT, spikes=spiked(0)), FAILED, "1 of 10 frames"),
        (findings(people=[replace(HIDDEN, masked=0.3)]), FAILED, "such as frame 4"),
        (findings(people=[replace(HIDDEN, kept=0.8)]), FAILED, "painted back"),
        (findings(original=False), CANNOT_TELL, "no original"),
        (findings(original=False, nanodet=LEFT), FAILED, "nanodet"),
        (findings(sound=Check(held=False, says="contains sound")), FAILED, "sound"),
        (replace(findings(), outside_db=None), CANNOT_TELL, "no mask"),
        (replace(findings(**{HASHED: Check(held=True, says="the original's")}), outside_db=None), PASSED, "8 of 10"),
        (replace(findings(), inside_change=1.0), CANNOT_TELL, "under the mask"),
        (replace(findings(**{HASHED: Check(held=True, says="the original's")}), inside_change=1.0), PASSED, "8 of 10"),
        (replace(findings(), inside_change=None), PASSED, "8 of 10"),  # nothing is masked
    ],
)
def test_the_verdict_on_a_clip(found, verdict, says):
    judged = judge(found)
    assert judged.verdict == verdict and says in judged.says


def test_scores_below_the_operating_point_are_no_detections():
    point = AUDITORS["nanodet"].threshold
    assert judge(findings(nanodet=([0.9] * 10, [point - 0.01] * 10))).verdict == PASSED
    assert judge(findings(nanodet=([0.9] * 10, [point] + [0.0] * 9))).verdict == FAILED


def judged(clips):
    return [(clip, judge(clip)) for clip in clips]


def test_rates_count_clips_and_frames():
    found = summarize(
        judged([findings(name=f"c/{i}") for i in range(19)] + [findings(([0.9] * 10, [0.9] + [0.0] * 9), LEFT)])
    )
    assert (found["nanodet"].clips, found["nanodet"].hits, found["any"].hits) == (20, 1, 1)
    assert found["any"].after == pytest.approx(2 / 200) and found["nanodet"].after == pytest.approx(1 / 200)
    assert found["nanodet"].sensitivity == pytest.approx(0.8) and found["centernet"].sensitivity == 0
    empty = judged([findings(name=f"c/{i}") for i in range(20)])
    assert summarize(empty * 2)["any"].upper == pytest.approx(1 - 0.05 ** (1 / 20)), "copies are no further trials"


def test_the_bound_on_residual_people_includes_what_the_auditors_miss():
    """Against scipy: with no detection in n clips and f of s found, at most u (1 - l) / l of the clips."""
    stats = pytest.importorskip("scipy.stats")
    clips = [findings(name=f"c/{i}", spikes=[*spiked(9), *spiked(0, height=24)]) for i in range(300)]
    small, middle, tall = residual(judged(clips))
    low = stats.beta.ppf(0.025, 2700, 301)
    upper = stats.beta.ppf(0.975, 1, 300)
    assert middle.per_1000 == pytest.approx(1000 * upper * (1 - low) / low, rel=1e-6)
    assert small.per_1000 is None and (tall.spiked, tall.per_1000) == (0, None)
    hit = residual(judged([*clips[1:], findings(nanodet=LEFT)]))[1]
    assert hit.per_1000 > middle.per_1000, "a person of 60 px was detected in one clip"


# --------------------------------------------------------------------------------------------------- people, in pixels


@pytest.mark.parametrize(
    ("masked", "after", "missed", "back"),
    [(True, "place", False, False), (True, "person", False, True), (False, "person", True, False)],
)
def test_a_person_of_the_original_is_followed_into_the_result(masked, after, missed, back):
    rng = np.random.default_rng(0)
    place = np.kron(rng.integers(40, 160, (24, 32, 1)), np.ones((4, 4, 3))).astype(np.uint8)
    before = place.copy()
    before[30:80, 40:60] = rng.integers(0, 255, (50, 20, 3))
    mask = np.zeros((96, 128), bool)
    mask[26:84, 36:64] = masked
    boxes = {"one": np.array([[40, 30, 60, 80, 0.9]], np.float32), "two": np.array([[41, 31, 61, 79, 0.6]], np.float32)}
    noisy = np.clip({"place": place, "person": before}[after].astype(int) + rng.integers(-4, 5, place.shape), 0, 255)
    (person,) = people_of(boxes, before, noisy.astype(np.uint8), mask, 7)
    assert (person.missed, person.painted_back) == (missed, back)
    assert person.found_by == ["one", "two"] and person.frame == 7


def test_spiked_people_have_their_height_and_nothing_else_changes():
    frame = np.full((200, 300, 3), 90, np.uint8)
    person = np.dstack([np.full((60, 20, 3), 200, np.uint8), np.full((60, 20, 1), 255, np.uint8)])
    spiked_HWC, placed = spike(frame, [person], seed=3, t=5)
    assert sorted(one.height for one in placed) == [24, 48, 96] and (frame == 90).all()
    changed = (spiked_HWC != frame).any(-1)
    for one in placed:
        x0, y0, x1, y1 = one.box
        assert y1 - y0 == one.height and changed[y0:y1, x0:x1].all()
        changed[y0:y1, x0:x1] = False
    assert not changed.any()
    assert spike(frame, [person], seed=3, t=5)[1] == placed != spike(frame, [person], seed=4, t=5)[1]
    assert spike(frame[:40], [person], seed=3, t=5)[1][0].height == 24, "taller ones do not fit"
