"""Written clips: frames above 40 dB, exact masks, no sound, no metadata, all or nothing."""

import av
import cv2
import numpy as np
import pytest

from ppma.common.files import remove_leftovers
from ppma.privacy.removal.writing import part_writer, target


def noise(height, width, count=4):
    """Return frames with as much detail as decoded video: fine grain, and color at half size where the sides are even."""
    rng = np.random.default_rng(0)
    small = rng.integers(30, 220, (count, 6, 8, 3), dtype=np.uint8)
    smooth = np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC) for frame in small])
    grainy = np.clip(smooth + rng.normal(0, 2, smooth.shape[:3])[..., None], 0, 255).astype(np.uint8)
    if height % 2 or width % 2:
        return grainy
    halved = [av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p") for frame in grainy]
    return np.stack([frame.to_ndarray(format="rgb24") for frame in halved])


def psnr(first, second):
    return 10 * np.log10(255**2 / np.mean((first.astype(float) - second) ** 2))


def write(folder, part, layout, frames):
    path = target(folder, part, "a class, [x]/v1.5", layout)
    before = path.exists()
    with part_writer(path, part, layout, 10.0) as add:
        for frame in frames:
            add(frame)
        assert path.exists() == before
    return path


def read(path):
    if path.is_dir():
        return np.stack([cv2.imread(str(file), cv2.IMREAD_COLOR_RGB) for file in sorted(path.iterdir())])
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("size", [(48, 64), (91, 161)])
@pytest.mark.parametrize("layout", ["videos", "frames"])
def test_frames_are_kept_above_40_db_and_masks_exactly(tmp_path, layout, size):
    frames = noise(*size)
    masks = frames[..., 0] > 100
    inp, seg = write(tmp_path, "inp", layout, frames), write(tmp_path, "seg", layout, masks)
    assert [path.name for path in (inp, seg)] == {"videos": ["v1.5.mp4", "v1.5.mkv"], "frames": ["v1.5", "v1.5"]}[
        layout
    ]
    assert psnr(frames, read(inp)) > 40
    assert ((read(seg)[..., 0] > 127) == masks).all()
    if layout == "frames":
        assert sorted(file.name for file in inp.iterdir()) == [f"{n:06d}.jpg" for n in (1, 2, 3, 4)]
        assert sorted(file.name for file in seg.iterdir()) == [f"{n:06d}.png" for n in (1, 2, 3, 4)]


def test_a_video_has_one_stream_and_no_metadata(tmp_path):
    with av.open(str(write(tmp_path, "inp", "videos", noise(48, 64)))) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        assert container.streams.video[0].average_rate == 10
        assert set(container.metadata) <= {"major_brand", "minor_version", "compatible_brands"}


@pytest.mark.parametrize("layout", ["videos", "frames"])
def test_an_error_leaves_nothing_and_a_rerun_replaces_what_is_there(tmp_path, layout):
    frames = noise(48, 64)
    path = target(tmp_path, "inp", "a class, [x]/v1.5", layout)
    with pytest.raises(KeyError), part_writer(path, "inp", layout, 10.0) as add:
        add(frames[0])
        raise KeyError
    assert not list(path.parent.iterdir())
    leftover = path.parent / (".v1.5.abcd_123.tmp.mp4" if layout == "videos" else ".v1.5.tmp/000009.jpg")
    leftover.parent.mkdir(exist_ok=True)
    leftover.write_bytes(b"of a run that was killed")
    remove_leftovers([path])
    for count in (3, 2):
        assert len(read(write(tmp_path, "inp", layout, frames[:count]))) == count
        assert [left.name for left in path.parent.iterdir()] == [path.name]
