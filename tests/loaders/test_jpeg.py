"""Workers parse a JPEG's header before DALI gets it: DALI 2.4 crashes if one of 48 or more does not parse."""

import io
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pytest
import reference_views
from PIL import Image

from ppma.loaders.decode.dali_input import DALI_CPU_CODECS, read_header, why_not_dali
from ppma.loaders.decode.fetch import BadClip, read_window
from ppma.loaders.decode.remux import NotForDali, encoded_window

PICTURE = reference_views.picture_frames(1, 72, 96, noise=20)[0]


def jpeg(**options) -> bytes:
    file = io.BytesIO()
    options.pop("image", Image.fromarray(PICTURE)).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 100}]
)
def test_common_files_are_accepted(options):
    data = jpeg(**options)
    header = read_header(data)
    assert (header.height, header.width, header.bits, len(header.sampling)) == (72, 96, 8, 3)
    assert why_not_dali(data, (72, 96)) == "" and "96 x 72 instead of 64 x 48" in why_not_dali(data, (48, 64))


def test_files_that_decoders_read_differently_are_refused():
    image = Image.fromarray(PICTURE)
    turned = Image.Exif()
    turned[0x0112] = 6
    assert why_not_dali(jpeg(image=image.convert("L"))) == ""
    assert "4 components" in why_not_dali(jpeg(image=image.convert("CMYK")))
    assert "RGB" in why_not_dali(jpeg(keep_rgb=True))
    assert "rotated" in why_not_dali(jpeg(exif=turned.tobytes()))
    for kind, reason in ((0xC3, "type 0xC3"), (0xC9, "type 0xC9")):  # lossless, arithmetic coding
        assert reason in why_not_dali(jpeg().replace(b"\xff\xc0", bytes([0xFF, kind]), 1))
    at = jpeg().index(b"\xff\xc0") + 4
    assert "12 bits" in why_not_dali(jpeg()[:at] + b"\x0c" + jpeg()[at + 1 :])


def test_cut_and_random_files_are_refused():
    data = jpeg(progressive=True)
    assert all(why_not_dali(data[:size]) for size in range(len(data) - 1))
    rng = np.random.default_rng(0)
    for size in (0, 1, 2, 100, 5000):
        assert why_not_dali(bytes(size)) and why_not_dali(b"\xff\xd8" + rng.bytes(size))


def folder(path: Path, *, spoil: bytes | None = None) -> Path:
    path.mkdir()
    for number in range(8):
        (path / f"{number:06d}.jpg").write_bytes(jpeg())
    if spoil is not None:
        (path / "000003.jpg").write_bytes(spoil)
    return path


def test_opencv_decodes_what_dali_refuses_or_names_the_bad_frame(tmp_path):
    small = cv2.imencode(".jpg", PICTURE[:48, :64])[1].tobytes()
    for name, spoil, reads in (
        ("text", b"no picture at all", False),
        ("cut", jpeg()[:100], False),
        ("torn", jpeg()[:2000], False),
        ("other size", small, False),
        ("cmyk", jpeg(image=Image.fromarray(PICTURE).convert("CMYK")), True),
    ):
        path = folder(tmp_path / name, spoil=spoil)
        with pytest.raises(NotForDali):
            encoded_window(path, 0.0, 0.3, 8, DALI_CPU_CODECS)
        if reads:
            assert read_window(path, 0.0, 0.3, 8).shape == (8, 72, 96, 3)
        else:
            with pytest.raises(BadClip, match=r"000003\.jpg|differ in size"):
                read_window(path, 0.0, 0.3, 8)


def test_one_bad_image_among_many_does_not_end_the_process(tmp_path):
    """In its own process: DALI's crash is a segmentation fault, which with two threads occurs by chance."""
    for number in range(16):
        folder(tmp_path / str(number), spoil=b"no picture at all" if number in (5, 11) else None)
    program = f"""
        from ppma.config.loader import LoaderConfig
        from ppma.loaders.sources.manifest import Clip, Manifest
        from ppma.loaders.sampler import EvaluationSampler
        from ppma.loaders.stream import ClipStream
        rows = [
            Clip(path=str(number), label=0, class_name="", source="", frames=8, fps=25.0, width=96, height=72,
                 codec="jpeg", key_frame_spacing=1, duration_seconds=0.32)
            for number in range(16)
        ]
        clips = Manifest.from_clips(rows, root={str(tmp_path)!r}, name="clips")
        size = dict(frames=8, size=64, short_side=64, crop="center", views=1)
        config = LoaderConfig(**size, workers=2, implementation="dali")
        sampler = EvaluationSampler(clips, config, batch_clips=16, windows=1, crops=1)
        with ClipStream(sampler, [clips], config, on_bad="mark", epochs=5) as stream:
            *_, batch = stream
            print([i for i, fine in enumerate(batch.decoded_B.tolist()) if not fine], *stream.bad_files.values())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    assert done.stdout.startswith("[5, 11]") and "000003.jpg" in done.stdout
