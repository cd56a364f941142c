"""The loader from end to end: frames, labels and order are the sampler's, whatever workers, ranks and files do."""

import csv
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import reference_views
import torch
from waiting import wait_until

from ppma.config.errors import InputError
from ppma.config.loader import MOST_WORKERS, LoaderConfig
from ppma.loaders.decode import dali
from ppma.loaders.decode.augment import make_views
from ppma.loaders.decode.dali_input import Limits
from ppma.loaders.sampler import EvaluationSampler, TrainingSampler
from ppma.loaders.samples import choose_frames
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.loaders.stream import ClipStream, choose_implementation

CONFIG = LoaderConfig(
    frames=4, size=32, short_side=36, views=2, workers=1, window_seconds=1.0, randaugment_ops=2, flip_probability=0.5,
    erase_probability=0.5, implementation="plain", max_bad_fraction=0.5,
)  # fmt: skip
"""One worker: each takes half a second of CPU to start."""


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, write_clip):
    """Twelve clips; a clip's number is the color of its square, its label the number modulo 3."""
    root = tmp_path_factory.mktemp("stream")
    rows = []
    for number in range(12):
        write_clip(root / f"{number}.mp4", frames=24, color=(20 * number, 128, 128))
        rows.append(row(f"{number}.mp4", number % 3))
    return Manifest.from_clips(rows, root=root, name="made")


def row(path, label, **more):
    """Return the manifest row of a made clip; `more` are other fields."""
    found = {"frames": 24, "fps": 10.0, "width": 64, "height": 48, "codec": "h264"}
    texts = {"class_name": f"class {label}", "source": "made", "domain": "synthetic"}
    return Clip(
        **{"path": path, "label": label, "key_frame_spacing": 12, "duration_seconds": 2.4, **found, **texts, **more}
    )


def collect(manifest, *, config=CONFIG, epochs=2, batch_clips=4, **more):
    """Return the batches of a training stream; `more` are arguments of ClipStream."""
    sampler = TrainingSampler([manifest], config, seed=5, batch_clips=batch_clips)
    with ClipStream(sampler, [manifest], config, epochs=epochs, **more) as stream:
        return list(stream)


def evaluate(manifest, *, windows=1, crops=1, batch_clips=3, on_bad="mark", **changes):
    """Return the batches of an evaluation stream, and {path: reason} of its bad files."""
    config = LoaderConfig(
        **{"frames": 4, "size": 32, "short_side": 32, "crop": "center", "views": 1, "workers": 1, **changes}
    )
    sampler = EvaluationSampler(manifest, config, batch_clips=batch_clips, windows=windows, crops=crops)
    with ClipStream(sampler, [manifest], config, on_bad=on_bad) as stream:
        return list(stream), stream.bad_files


def same(a, b):
    names = ("frames_BTHWC", "label_B", "source_B", "sample_id_B", "view_B", "key_B", "erase_B4")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


@pytest.fixture(scope="module")
def whole(manifest):
    """The batches of two epochs."""
    return collect(manifest)


def test_a_batch_is_what_the_sampler_chose(manifest, whole):
    from ppma.loaders.decode.fetch import read_window

    sampler = TrainingSampler([manifest], CONFIG, seed=5, batch_clips=4)
    assert [(b.epoch, b.step) for b in whole] == [(e, s) for e in range(2) for s in range(3)]
    for batch in whole:
        samples = sampler.samples(batch.epoch, batch.step)
        for place, sample in enumerate(samples):
            frames = read_window(manifest.file(sample.clip), sample.start_seconds, sample.end_seconds, CONFIG.frames)
            views = make_views(frames, sample.views, CONFIG)
            assert np.array_equal(batch.frames_BTHWC[2 * place : 2 * place + 2].numpy(), views)
        assert batch.label_B.tolist() == [manifest.labels[s.clip] for s in samples for _ in range(2)]
        assert batch.sample_id_B.tolist() == [s.clip for s in samples for _ in range(2)]
        assert batch.view_B.tolist() == [0, 1] * 4
        assert batch.key_B.tolist() == [view.key for s in samples for view in s.views]
        assert batch.erase_B4.tolist() == [list(view.erase) for s in samples for view in s.views]
        assert batch.decoded_B.all() and batch.frames_BTHWC.is_contiguous()


@pytest.mark.parametrize(("implementation", "tolerance"), [("plain", 3), ("dali", 2)])
def test_a_batch_equals_a_plain_reference(manifest, implementation, tolerance):
    """PyAV decodes the whole file, torch crops (tests/reference_views.py): only the rounding of two resizes differs.

    OpenCV places pixels to 1/32 and weighs in 1/2048: one level more. test_augment.py tests each operation.
    """
    import av

    config = replace(CONFIG, implementation=implementation, randaugment_ops=0)
    sampler = TrainingSampler([manifest], config, seed=5, batch_clips=4)
    batches = collect(manifest, config=config, epochs=1)
    assert len(batches) == 3
    for batch in batches:
        rows = iter(batch.frames_BTHWC.numpy())
        for sample in sampler.samples(batch.epoch, batch.step):
            with av.open(str(manifest.file(sample.clip))) as container:
                frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
            inside = [i for i in range(24) if sample.start_seconds <= i / 10 < sample.end_seconds]
            chosen = np.stack([frames[inside[int(k)]] for k in np.linspace(0, len(inside) - 1, config.frames)])
            for view in sample.views:
                expected = reference_views.view(chosen, view, config)
                assert np.abs(next(rows).astype(int) - expected).max() <= tolerance


def test_workers_follow_the_cores_unless_they_are_asked_for(manifest, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 9})
    for asked, workers in ((0, 2), (1, 1)):
        config = replace(CONFIG, workers=asked)
        with ClipStream(TrainingSampler([manifest], config, seed=5, batch_clips=4), [manifest], config) as stream:
            assert len(stream._pool.pids) == workers
        assert config.workers == asked
    assert replace(CONFIG, workers=0).for_cores(1000).workers == MOST_WORKERS
    with pytest.raises(InputError, match="workers"):
        replace(CONFIG, workers=-1)


@pytest.mark.promise("R2")
@pytest.mark.promise("R14")
def test_workers_ranks_prefetching_and_resume_change_nothing(manifest, whole):
    assert len(whole) == 6
    for config in (replace(CONFIG, workers=2, prefetch_batches=1), replace(CONFIG, read_ahead_batches=2)):
        assert all(same(a, b) for a, b in zip(whole, collect(manifest, config=config), strict=True))
    assert all(same(a, b) for a, b in zip(whole[4:], collect(manifest, start=(1, 1)), strict=True))
    for rank in range(2):
        mine = collect(manifest, rank=rank, world_size=2)
        for batch, full in zip(mine, whole, strict=True):
            assert torch.equal(batch.frames_BTHWC, full.frames_BTHWC[4 * rank : 4 * rank + 4])


def test_bad_files_are_named_counted_and_replaced_reproducibly(manifest, tmp_path):
    (manifest.root / "bad.mp4").write_text("<html>404</html>")
    rows = [manifest.clip(i) for i in range(8)] + [row("bad.mp4", 1)]
    broken = Manifest.from_clips(rows, root=manifest.root, name="broken")
    batches = collect(broken, quarantine=tmp_path / "quarantine.csv", batch_clips=3)
    assert 8 not in torch.cat([b.sample_id_B for b in batches])
    assert batches[-1].counters.bad_files == 1
    with (tmp_path / "quarantine.csv").open() as file:
        entries = list(csv.DictReader(file))
    assert [e["path"] for e in entries] == [str(manifest.root / "bad.mp4")] and "web page" in entries[0]["reason"]
    again = collect(broken, config=replace(CONFIG, workers=2), batch_clips=3)
    assert all(same(a, b) for a, b in zip(batches, again, strict=True))


def test_too_many_bad_files_stop_the_run_with_the_list(manifest):
    rows = [manifest.clip(0), row("gone.mp4", 0)]
    broken = Manifest.from_clips(rows, root=manifest.root, name="broken")
    with pytest.raises(InputError, match=r"1 of 2 files.*max_bad_fraction.*gone\.mp4"):
        collect(broken, config=replace(CONFIG, max_bad_fraction=0.01), batch_clips=2)


def test_an_evaluation_replaces_nothing(manifest):
    rows = [manifest.clip(0), row("gone.mp4", 0), manifest.clip(1)]
    broken = Manifest.from_clips(rows, root=manifest.root, name="broken")
    (batch,), _ = evaluate(broken, windows=2, crops=3)
    assert batch.decoded_B.tolist() == [True] * 6 + [False] * 6 + [True] * 6
    assert not batch.frames_BTHWC[6:12].any()
    with pytest.raises(InputError, match=r"gone\.mp4.*--on-bad mark"):
        evaluate(broken, on_bad="fail")


@pytest.mark.promise("R24")
def test_a_killed_worker_loses_nothing(manifest):
    whole = collect(manifest, epochs=5)
    sampler = TrainingSampler([manifest], CONFIG, seed=5, batch_clips=4)
    got = []
    with ClipStream(sampler, [manifest], replace(CONFIG, workers=2), epochs=5) as stream:
        for batch in stream:
            got.append(batch)
            if batch.step == 0:
                os.kill(stream._pool.pids[batch.epoch % 2], signal.SIGKILL)
    assert got[-1].counters.worker_restarts >= 3
    assert all(same(a, b) for a, b in zip(whole, got, strict=True))


def test_a_stream_that_is_refused_leaves_no_worker(manifest, monkeypatch):
    answers, before = iter([(True, "here"), (False, "gone")]), psutil.Process().children()
    monkeypatch.setattr(dali, "available", lambda device: next(answers))
    with pytest.raises(InputError, match="gone"):
        collect(manifest, config=replace(CONFIG, implementation="dali"))
    assert psutil.Process().children() == before


def test_a_stalled_file_is_named(tmp_path, caplog):
    (tmp_path / "stalled").mkdir()
    os.mkfifo(tmp_path / "stalled" / "000001.jpg")  # opening it blocks, as on a file system that is down
    stalled = Manifest.from_clips([row("stalled", 0, codec="jpeg")], root=tmp_path, name="stalled")
    config = replace(CONFIG, stall_seconds=0.5, workers=1)
    with ClipStream(TrainingSampler([stalled], config, seed=0, batch_clips=1), [stalled], config) as stream:
        with pytest.raises(TimeoutError):
            stream.take(timeout=0.1)
        wait_until(lambda: f"waiting for {tmp_path / 'stalled'}" in caplog.text)
        (pid,) = stream._pool.pids
    assert not Path(f"/proc/{pid}").exists()


def test_implementation_is_chosen_once_and_says_why():
    name, why = choose_implementation(replace(CONFIG, implementation="auto"), torch.device("cpu"))
    assert name == "plain" and "CPU" in why
    assert choose_implementation(replace(CONFIG, implementation="plain"), torch.device("cpu")) == ("plain", "requested")


def mixed_clips(root, write_clip, codecs):
    """Return a manifest of clips in the given (codec, suffix)es."""
    rows = []
    for number, (codec, suffix) in enumerate(codecs):
        write_clip(root / f"{number}.{suffix}", frames=24, codec=codec, color=(60 * number, 128, 128))
        rows.append(row(f"{number}.{suffix}", number))
    return Manifest.from_clips(rows, root=root, name="mixed")


def test_dali_and_plain_give_the_same_batches(tmp_path, write_clip, caplog):
    """PyAV decodes H.264 in both: a rounding of a resize apart. DALI decodes VP9 itself, and its color conversion
    spreads chroma differently from swscale at the edges of the square: close on average only. One batch holds both."""
    mixed = mixed_clips(tmp_path, write_clip, [("libvpx-vp9", "webm"), ("libx264", "mp4")] * 2)
    quiet = replace(CONFIG, randaugment_ops=0)
    plain = collect(mixed, config=quiet, epochs=1)
    dali = collect(mixed, config=replace(quiet, implementation="dali"), epochs=1)
    for a, b in zip(plain, dali, strict=True):
        assert a.label_B.tolist() == b.label_B.tolist() and a.key_B.tolist() == b.key_B.tolist()
        apart = (a.frames_BTHWC.int() - b.frames_BTHWC.int()).abs()
        by_pyav = a.sample_id_B % 2 == 1
        assert apart[by_pyav].max() <= 3  # two resizes, each rounded; OpenCV counts in 1/2048
        assert apart[~by_pyav].float().mean() < 1
    assert dali[-1].counters.fallbacks == 2 and "codec h264" in caplog.text


def test_a_clip_that_dali_refuses_is_decoded_by_pyav_from_then_on(tmp_path, write_clip, monkeypatch, caplog):
    """Its first batch is decoded again; from then on it goes to PyAV at once, and a batch is one run of DALI."""
    runs = []

    class Counting(dali.DaliViews):
        def __call__(self, inputs, samples):
            runs.append([clip.kind for clip in inputs])
            return super().__call__(inputs, samples)

    monkeypatch.setattr(dali, "DaliViews", Counting)
    # DALI 2.4 takes no H.264 on a CPU
    monkeypatch.setattr("ppma.loaders.stream.DALI_CPU_CODECS", dict.fromkeys(("vp9", "h264"), Limits()))
    mixed = mixed_clips(tmp_path, write_clip, [("libx264", "mp4"), ("libvpx-vp9", "webm")] * 2)
    config = replace(CONFIG, implementation="dali", randaugment_ops=0, prefetch_batches=1)
    batches = collect(mixed, config=config, epochs=3)
    assert [sorted(kinds) for kinds in runs] == [["video"] * 4, *[["frames", "frames", "video", "video"]] * 3]
    assert [batch.counters.fallbacks for batch in batches] == [2, 4, 6]
    refusals = [record.getMessage() for record in caplog.records if "DALI cannot decode" in record.getMessage()]
    assert len(refusals) == 2 and all(name in " ".join(refusals) for name in ("0.mp4", "2.mp4"))
    plain = collect(mixed, config=replace(config, implementation="plain"), epochs=1)
    by_pyav = plain[0].sample_id_B % 2 == 0
    assert (batches[0].frames_BTHWC.int() - plain[0].frames_BTHWC.int()).abs()[by_pyav].max() <= 3


@pytest.mark.parametrize("implementation", ["plain", "dali"])
def test_a_file_that_changed_its_size_is_bad(tmp_path, write_clip, implementation):
    write_clip(tmp_path / "0.mp4", frames=24)
    wrong = Manifest.from_clips([row("0.mp4", 0, width=640, height=64)], root=tmp_path, name="wrong")
    config = replace(CONFIG, implementation=implementation, max_bad_fraction=0.0)
    with pytest.raises(InputError, match="leaves the scaled frame"):
        collect(wrong, config=config, epochs=20, batch_clips=1)


CODE_BITS, CODE_CELL, CODE_SIDE = 24, 12, 72
"""A barcoded picture of 72 x 72: 24 cells of 12 x 12 pixels, six per row: 14 bits for the clip, 10 for the frame."""


def barcoded(clip: int, frame: int) -> np.ndarray:
    value = clip << 10 | frame
    bits = np.array([value >> bit & 1 for bit in range(CODE_BITS)]).reshape(4, 6)
    cells = np.kron(bits, np.ones((CODE_CELL, CODE_CELL))) * 200 + 28
    return np.repeat(np.pad(cells, ((0, 24), (0, 0)), constant_values=128)[..., None], 3, axis=2).astype(np.uint8)


def read_codes(frames_NHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (clip_N, frame_N) that the pictures show."""
    cells = frames_NHWC[:, :48, :, 1].reshape(-1, 4, CODE_CELL, 6, CODE_CELL)[:, :, 3:-3, :, 3:-3].mean(axis=(2, 4))
    value = ((cells > 128).reshape(-1, CODE_BITS) << np.arange(CODE_BITS)).sum(axis=1)
    return value >> 10, value & 1023


def write_coded_clip(path, clip: int, frames: int, codec: str) -> None:
    import av  # late: other tests import this file's helpers on machines without it

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"threads": "1"})
        stream.width = stream.height = CODE_SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 9 + clip % 17
        stream.bit_rate = 300_000
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(barcoded(clip, number), format="rgb24")))
        container.mux(stream.encode(None))


def check_barcodes(root, *, clips: int, frames_wanted: int, kill_every: int) -> tuple[int, int, int]:
    """Read that many frames, killing workers in between; return (frames, mismatches, workers restarted)."""
    rows = []
    for clip in range(clips):
        codec, container = [("libx264", "mp4"), ("mpeg4", "avi"), ("libvpx-vp9", "webm")][clip % 3]
        write_coded_clip(root / f"{clip}.{container}", clip, 40, codec)
        size = {"width": CODE_SIDE, "height": CODE_SIDE}
        rows.append(row(f"{clip}.{container}", clip % 7, frames=40, duration_seconds=4.0, codec=codec, **size))
    manifest = Manifest.from_clips(rows, root=root, name="codes")
    config = LoaderConfig(frames=16, size=CODE_SIDE, short_side=CODE_SIDE, crop="center", views=1, workers=2)
    sampler = TrainingSampler([manifest], config, seed=1, batch_clips=10)
    seen = mismatches = 0
    with ClipStream(sampler, [manifest], config, epochs=10**6) as stream:
        for number, batch in enumerate(stream):
            clip, frame = (codes.reshape(-1, 16) for codes in read_codes(batch.frames_BTHWC.flatten(0, 1).numpy()))
            samples, times = sampler.samples(batch.epoch, batch.step), [i / 10 for i in range(40)]
            expected = np.stack([choose_frames(times, s.start_seconds, s.end_seconds, 16) for s in samples])
            mismatches += int((clip != batch.sample_id_B[:, None].numpy()).sum() + (frame != expected).sum())
            mismatches += int((batch.label_B != batch.sample_id_B % 7).sum())
            seen += frame.size
            if seen >= frames_wanted:
                return seen, mismatches, batch.counters.worker_restarts
            if number % kill_every == 0:
                os.kill(stream._pool.pids[number // kill_every % 2], signal.SIGKILL)
    raise AssertionError("the stream ended")


def test_no_frame_of_another_clip_and_no_wrong_label(tmp_path):
    """5,000 frames in three codecs, workers killed in between: each frame says which clip and which frame it is."""
    seen, mismatches, restarts = check_barcodes(tmp_path, clips=24, frames_wanted=5_000, kill_every=8)
    assert seen >= 5_000 and mismatches == 0 and restarts >= 3


@pytest.mark.slow
def test_no_frame_of_another_clip_in_a_hundred_thousand(tmp_path):
    seen, mismatches, restarts = check_barcodes(tmp_path, clips=300, frames_wanted=100_000, kill_every=25)
    assert seen >= 100_000 and mismatches == 0 and restarts >= 20


FINE = (
    *("one_frame.mp4", "odd_size_161x91.mp4", "rotated_90.mp4", "variable_frame_rate.mp4", "ten_bit_hevc.mp4"),
    *("yuv444.mp4", "interlaced.mp4", "wrong_extension.mp4", "missing_pts.avi", "starts_without_key_frame.ts"),
)
ODD: dict[str, str | None] = dict.fromkeys(FINE) | {
    "truncated.mp4": "cut before its index",
    "zero_bytes.mp4": "empty file",
    "html_error_page.mp4": "web page",
    "audio_only.mp4": "no video stream",
    "huge_dimensions.mp4": "8192 x 8192",
    "concealed_corruption.mp4": "corrupt",
    "mid_stream_corruption.mp4": "corrupt|decoded|Invalid",
    "truncated_after_index.mp4": "corrupt",
    "missing_pts.h264": "time stamps",
    "timestamps_jump_back.ts": "time stamps jump back",
    "size_changes.ts": "time stamps jump back|differ in size",
}
"""Each file of `damaged_clips`: None if it gives frames, or a pattern of the reason why it is bad."""


@pytest.mark.parametrize("implementation", ["plain", "dali"])
def test_odd_files_give_frames_and_damaged_ones_are_named(damaged, implementation):
    assert {path.name for path in damaged.iterdir()} == set(ODD)
    sizes = {"odd_size_161x91.mp4": (161, 91), "rotated_90.mp4": (240, 320)}
    rows = []
    for name in ODD:
        width, height = sizes.get(name, (320, 240))
        rows.append(row(name, 0, width=width, height=height, frames=60, fps=25.0, duration_seconds=2.4))
    odd = Manifest.from_clips(rows, root=damaged, name="odd")
    batches, bad_files = evaluate(odd, batch_clips=5, size=64, short_side=64, implementation=implementation)
    decoded = {int(i): bool(fine) for batch in batches for i, fine in zip(batch.sample_id_B, batch.decoded_B)}
    reasons = {path.rpartition("/")[2]: reason for path, reason in bad_files.items()}
    for number, (name, pattern) in enumerate(ODD.items()):
        assert decoded[number] == (pattern is None), (name, reasons.get(name))
        if pattern is not None:
            assert re.search(pattern, reasons[name]), (name, reasons[name])
