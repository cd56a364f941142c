"""DaliViews against the reference and the plain reader, for every kind of input, in any mixture."""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import reference_views as reference
import torch

from ppma.config.errors import InputError
from ppma.config.loader import LoaderConfig
from ppma.loaders.decode import dali
from ppma.loaders.decode.augment import make_views
from ppma.loaders.decode.dali import DaliViews, UndecodableError, available
from ppma.loaders.decode.dali_input import DALI_CPU_CODECS, DALI_GPU_CODECS, DaliInput
from ppma.loaders.samples import Sample, ViewParams, view_params

T = 4
CONFIG = LoaderConfig(frames=T, size=56, short_side=64, views=2, flip_probability=0.5)
AUGMENTED = dataclasses.replace(CONFIG, views=1, randaugment_ops=4, randaugment_probability=1.0)
FRAME_IDX = (0, 5, 5, 11)


def sampled(clips: list[DaliInput], config: LoaderConfig) -> list[Sample]:
    """Return a random sample of each clip."""
    views = [
        [view_params(3, 0, i, v, c.height, c.width, config) for v in range(config.views)] for i, c in enumerate(clips)
    ]
    where = {"epoch": 0, "source": 0, "clip": 0, "start_seconds": 0.0, "end_seconds": 1.0}
    return [Sample(index=i, views=tuple(made), **where) for i, made in enumerate(views)]


def pictures(*sizes: tuple[int, int], noise: float = 6) -> list[DaliInput]:
    """Return decoded clips of the given (height, width)s."""
    return [frames_input(reference.picture_frames(T, *size, seed=i, noise=noise)) for i, size in enumerate(sizes)]


def center(side: int) -> LoaderConfig:
    """Return a config that shows square frames of that side unchanged."""
    return LoaderConfig(frames=T, size=side, short_side=side, views=1, crop="center")


def fixed(*crops: tuple[int, int, int, int], ops: tuple[tuple[str, float], ...] = ()) -> Sample:
    views = tuple(ViewParams(key=0, crop=crop, flip=False, ops=ops, erase=(0, 0, 0, 0)) for crop in crops)
    return Sample(epoch=0, index=0, source=0, clip=0, start_seconds=0.0, end_seconds=1.0, views=views)


def frames_input(frames_THWC: np.ndarray) -> DaliInput:
    t, h, w, _ = frames_THWC.shape
    return DaliInput(kind="frames", payloads=(frames_THWC,), frame_idx=tuple(range(t)), height=h, width=w)


def jpeg_input(frames_THWC: np.ndarray) -> DaliInput:
    coded = tuple(cv2.imencode(".jpg", f[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].ravel() for f in frames_THWC)
    h, w = frames_THWC.shape[1:3]
    return DaliInput(kind="jpeg", payloads=coded, frame_idx=(0, 1, 1, 2), height=h, width=w)


def video_input(path: Path) -> DaliInput:
    import av  # late: other tests here run without it

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        height, width = stream.height, stream.width
    payload = (np.frombuffer(path.read_bytes(), np.uint8),)
    return DaliInput(kind="video", payloads=payload, frame_idx=FRAME_IDX, height=height, width=width)


def decoded(clip: DaliInput) -> np.ndarray:
    """Return the clip's frames, decoded by PyAV and OpenCV."""
    import av

    if clip.kind == "frames":
        return clip.payloads[0]
    if clip.kind == "jpeg":
        return np.stack([cv2.imdecode(clip.payloads[i], cv2.IMREAD_COLOR)[..., ::-1] for i in clip.frame_idx])
    with av.open(io.BytesIO(clip.payloads[0].tobytes())) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack([frames[i] for i in clip.frame_idx])


def errors(made: np.ndarray, clip: DaliInput, sample: Sample, config: LoaderConfig) -> np.ndarray:
    expected = np.stack([reference.view(decoded(clip), view, config) for view in sample.views])
    return np.abs(made.astype(int) - expected)


def test_views_match_the_reference_at_odd_sizes_and_in_smaller_batches() -> None:
    clips = pictures((64, 85), (85, 64), (161, 91), (20, 24), (7, 9), (240, 320), noise=40)
    samples = sampled(clips, CONFIG)
    views = DaliViews(CONFIG, len(clips), device="cpu", threads=2)
    made = views(clips, samples)
    assert made.shape == (12, T, 56, 56, 3) and made.dtype == torch.uint8 and made.is_contiguous()
    for i, (clip, sample) in enumerate(zip(clips, samples)):
        # both resizes round to the nearest integer; a step of 1 in the first moves the second by at most 1
        assert errors(made[2 * i : 2 * i + 2].numpy(), clip, sample, CONFIG).max() <= 1
    assert torch.equal(views(clips[2:4], samples[2:4]), made[4:8])
    assert torch.equal(views(clips, samples), made)


def test_a_view_as_large_as_its_crop_is_a_copy() -> None:
    frames = reference.picture_frames(T, 64, 80, noise=60)
    config = LoaderConfig(frames=T, size=56, short_side=64, views=2)
    made = DaliViews(config, 1, device="cpu", threads=1)(
        [frames_input(frames)], [fixed((8, 11, 56, 56), (0, 24, 56, 56))]
    )
    assert np.array_equal(made[0], frames[:, 8:64, 11:67])
    assert np.array_equal(made[1], frames[:, :56, 24:80])


def test_randaugment_matches_the_reference_and_the_plain_reader() -> None:
    clips = pictures(*[(90, 120)] * 16)
    samples = sampled(clips, AUGMENTED)
    made = DaliViews(AUGMENTED, 16, device="cpu", threads=2)(clips, samples).numpy()
    against_reference, against_plain = [], []
    for view, clip, sample in zip(made, clips, samples):
        if any(name == "equalize" for name, _ in sample.views[0].ops):
            continue  # its two formulas agree only on full-size views
        against_reference.append(errors(view[None], clip, sample, AUGMENTED))
        against_plain.append(np.abs(view.astype(int) - make_views(clip.payloads[0], sample.views, AUGMENTED)[0]))
    assert len(against_reference) > 8
    # solarize and posterize are steps: a difference of 1 before them is a large one after, but for few pixels
    for found in (against_reference, against_plain):
        assert all(np.median(e) <= 1 for e in found)
        assert np.mean([e.mean() for e in found]) < 1.0


def test_a_static_clip_stays_static() -> None:
    clips = [frames_input(np.repeat(reference.picture_frames(1, 72, 96), T, axis=0))] * 8
    made = DaliViews(AUGMENTED, 8, device="cpu", threads=1)(clips, sampled(clips, AUGMENTED))
    assert (made == made[:, :1]).all()
    assert len({view.numpy().tobytes() for view in made}) == 8


ON_CPU = [("cpu", "libvpx-vp9", ".webm"), ("cpu", "libvpx", ".webm"), ("cpu", "mjpeg", ".avi")]
ON_GPU = [
    pytest.param("gpu", codec, suffix, marks=pytest.mark.cuda)
    for codec, suffix in (("libx264", ".mp4"), ("libx265", ".mp4"), ("libvpx-vp9", ".webm"), ("mpeg4", ".mp4"))
]


@pytest.mark.parametrize(("device", "codec", "suffix"), ON_CPU + ON_GPU)
def test_the_chosen_video_frames_are_decoded(device, codec, suffix, write_clip, read_barcode, tmp_path) -> None:
    side = 64 if device == "cpu" else 256
    path = write_clip(tmp_path / f"clip{suffix}", frames=20, width=side, height=side, codec=codec, key_frame_spacing=6)
    clips, config = [video_input(path)] * 2, center(side)
    for made in DaliViews(config, 2, device=device, threads=2)(clips, sampled(clips, config)).cpu().numpy():
        assert tuple(read_barcode(frame) for frame in made) == FRAME_IDX
        # DALI and PyAV interpolate chroma differently: close on average, not at the edge of a color
        assert np.abs(made.astype(int) - decoded(clips[0])).mean() < 3


@pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.cuda)])
def test_kinds_mix_and_keep_their_order(device, write_clip: Callable, tmp_path: Path) -> None:
    codec, suffix, width, height = ("libvpx-vp9", ".webm", 96, 72) if device == "cpu" else ("libx264", ".mp4", 320, 240)
    path = write_clip(tmp_path / f"clip{suffix}", frames=20, width=width, height=height, codec=codec)
    portrait = jpeg_input(reference.picture_frames(3, 120, 64, seed=3))
    photo = jpeg_input(reference.picture_frames(3, 70, 90, seed=1))
    clips = [photo, *pictures((64, 85)), video_input(path), portrait, *pictures((100, 64))]
    samples = sampled(clips, CONFIG)
    views = DaliViews(CONFIG, len(clips), device=device, threads=1)
    made = views(clips, samples).cpu()
    for i, (clip, sample) in enumerate(zip(clips, samples)):
        found = errors(made[2 * i : 2 * i + 2].numpy(), clip, sample, CONFIG)
        # decoders differ by a level or two, in chroma more; another clip's or frame's picture differs by dozens
        assert found.mean() < 3, clip.kind
    assert torch.equal(views([clips[3]], [samples[3]]).cpu(), made[6:8])


@pytest.mark.parametrize("views", [1, 2])
def test_views_are_augmented_alike_alone_and_in_a_mixed_batch(views: int) -> None:
    config = dataclasses.replace(AUGMENTED, views=views)
    photos = [jpeg_input(reference.picture_frames(3, *size)) for size in ((70, 90), (64, 85))]
    clips = [photos[0], *pictures((64, 85)), photos[1]]
    samples = sampled(clips, config)
    made_by = DaliViews(config, len(clips), device="cpu", threads=1)
    together = made_by(clips, samples).unflatten(0, (len(clips), views))
    for clip, sample, made in zip(clips, samples, together):
        assert torch.equal(made_by([clip], [sample]), made)


def test_jpeg_frames_are_what_opencv_decodes() -> None:
    clips, config = [jpeg_input(reference.picture_frames(3, 64, 64, seed=5))], center(64)
    made = DaliViews(config, 1, device="cpu", threads=1)(clips, sampled(clips, config)).numpy()[0]
    # libjpeg-turbo in both; DALI may take another, equally valid inverse transform
    assert np.abs(made.astype(int) - decoded(clips[0])).max() <= 4


def test_a_clip_of_another_size_is_refused() -> None:
    (clip,) = pictures((64, 80))
    views = DaliViews(CONFIG, 2, device="cpu", threads=1)
    with pytest.raises(RuntimeError, match="64, 85"):
        views([dataclasses.replace(clip, width=85)], sampled([clip], CONFIG))
    with pytest.raises(ValueError, match="leaves the scaled frame"):
        views([clip], [fixed((10, 0, 56, 56), (0, 0, 60, 60))])


def test_too_few_frames_are_refused() -> None:
    """Decoders that stop early give a shorter clip, which would be read as another clip's frames."""
    clip = DaliInput(kind="video", payloads=(np.zeros(1, np.uint8),), frame_idx=(0, 1, 2, 3), height=48, width=64)
    dali._check_shapes(np.array([[4, 48, 64, 3]]), [clip], 4, 1)
    with pytest.raises(RuntimeError, match="frames"):
        dali._check_shapes(np.array([[3, 48, 64, 3]]), [clip], 4, 1)


def test_availability_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    ready, reason = available("cpu")
    assert ready and reason.startswith("nvidia-dali-cuda1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert available("gpu") == (False, "PyTorch sees no NVIDIA GPU")
    monkeypatch.setattr(dali, "DISTRIBUTIONS", ("no-such-distribution",))
    assert available("cpu") == (False, f"DALI is not installed: {dali.INSTALL}")
    with pytest.raises(InputError, match="pip install nvidia-dali-cuda130"):
        DaliViews(CONFIG, 1, device="cpu", threads=1)


def test_undecodable_clips_are_named_and_the_next_batch_works(write_clip: Callable, tmp_path: Path) -> None:
    good = video_input(write_clip(tmp_path / "good.webm", frames=20, width=96, height=72, codec="libvpx-vp9"))
    bad = dataclasses.replace(good, payloads=(good.payloads[0][:300],))
    beyond = dataclasses.replace(good, frame_idx=(0, 1, 2, 99))
    other_size = dataclasses.replace(good, height=60)
    photo = jpeg_input(reference.picture_frames(3, 72, 96))
    torn = dataclasses.replace(photo, payloads=(photo.payloads[0], photo.payloads[1][:40], photo.payloads[2]))
    (sample,) = sampled([good], CONFIG)
    views = DaliViews(CONFIG, 6, device="cpu", threads=1)
    for clips, indices in (
        ([good, photo, bad, beyond], (2, 3)),
        ([photo, photo, torn], (2,)),
        ([good, other_size], (1,)),
    ):
        with pytest.raises(UndecodableError) as error:
            views(clips, [sample] * len(clips))
        assert error.value.indices == indices
    assert views([good, photo], [sample, sample]).shape[0] == 4


def test_codecs_are_what_dali_decodes(write_clip: Callable, tmp_path: Path) -> None:
    """If this fails, DALI decodes more on the CPU than DALI_CPU_CODECS lists. What it decodes is tested above."""
    assert "h264" not in DALI_CPU_CODECS and "h264" in DALI_GPU_CODECS
    clip = video_input(write_clip(tmp_path / "clip.mp4", frames=20, width=64, height=64))
    with pytest.raises(UndecodableError):
        DaliViews(CONFIG, 1, device="cpu", threads=1)([clip], sampled([clip], CONFIG))


@pytest.mark.cuda
def test_the_gpu_graph_gives_the_cpu_graphs_views() -> None:
    config = LoaderConfig(frames=T, size=224, views=1, flip_probability=0.5, randaugment_ops=4)
    clips = pictures(*[(240, 320)] * 16)
    samples = sampled(clips, config)
    on_gpu = DaliViews(config, 16, device="gpu", threads=2)(clips, samples)
    assert on_gpu.is_cuda
    on_cpu = DaliViews(config, 16, device="cpu", threads=2)(clips, samples)
    difference = (on_gpu.cpu().int() - on_cpu.int()).abs().double()
    # the same float arithmetic in another order: some roundings, which equalize and solarize enlarge in few pixels
    assert difference.flatten(1).median(dim=1).values.max() <= 1
    assert difference.mean() < 0.5


@pytest.mark.cuda
def test_frames_never_pass_through_the_host(write_clip: Callable, tmp_path: Path) -> None:
    """Less than the decoded frames is copied between host and GPU: the encoded bytes and the arguments."""
    path = write_clip(tmp_path / "clip.mp4", frames=20, width=256, height=256, key_frame_spacing=6)
    clips, config = [video_input(path)] * 4, center(256)
    views, samples = DaliViews(config, 4, device="gpu", threads=2), sampled(clips, config)
    views(clips, samples)  # builds the graph
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        made = views(clips, samples)
        torch.cuda.synchronize()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    copies = [event for event in events if event.get("cat") == "gpu_memcpy"]
    across = [event["args"]["bytes"] for event in copies if "HtoD" in event["name"] or "DtoH" in event["name"]]
    assert across and sum(across) < made.numel() / 4, across
