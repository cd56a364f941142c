"""Videos are written atomically, reproducibly, and in a form that every decoder reads."""

from fractions import Fraction

import av
import numpy as np
import pytest

from ppma.common.video import video_writer

X264 = {"preset": "veryfast", "crf": "10", "sc_threshold": "0"}


def frames(height, width, count=12):
    rng = np.random.default_rng(0)
    ramp_HW1 = np.linspace(0, 200, height * width).reshape(height, width, 1)
    return [(ramp_HW1 + 2 * t + rng.integers(0, 3, 3)).astype(np.uint8) for t in range(count)]


def write(path, pictures, *, pts=None, fps=10, options=X264, **settings):
    with video_writer(path, fps=fps, options=options, **settings) as add:
        for number, picture in enumerate(pictures):
            add(picture, pts[number] if pts else None)
    return path


def read(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream, list(container.decode(stream))


@pytest.mark.parametrize("size", [(48, 64), (33, 64), (48, 63)])
def test_frames_come_back_in_their_size_with_a_key_frame_a_second(tmp_path, size):
    pictures, pixel_format = frames(*size), "yuv420p" if size == (48, 64) else "yuv444p"
    stream, found = read(write(tmp_path / "a.mp4", pictures))
    assert stream.average_rate == 10 and stream.pix_fmt == pixel_format
    assert [f.key_frame for f in found] == [t % 10 == 0 for t in range(12)]
    for picture, frame in zip(pictures, found, strict=True):
        assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - picture).mean() < 4


def test_masks_come_back_exactly(tmp_path):
    masks = [picture[..., 0] > 90 for picture in frames(33, 47)]
    _, found = read(write(tmp_path / "a.mkv", masks, codec="ffv1", options={"level": "3"}))
    assert all((f.to_ndarray(format="gray") == m * 255).all() for f, m in zip(found, masks, strict=True))


def test_frames_keep_their_own_times(tmp_path):
    base, pts = Fraction(1, 1000), [0, 40, 200, 240]
    _, found = read(write(tmp_path / "a.mp4", frames(48, 64, 4), pts=pts, time_base=base))
    assert [f.pts * f.time_base / base for f in found] == pts


def test_the_same_frames_give_the_same_bytes(tmp_path):
    rng = np.random.default_rng(0)
    noisy = [np.clip(p + rng.normal(0, 4, p.shape), 0, 255).astype(np.uint8) for p in frames(256, 448, 20)]
    for pictures in (frames(48, 64), noisy):
        made = [write(tmp_path / "a.mp4", pictures).read_bytes() for _ in range(5)]
        assert len(set(made)) == 1


def test_an_error_leaves_the_former_file(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"before")

    def broken():
        yield from frames(48, 64, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, broken())
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
