"""A store of video gives the windows of one of JPEG, and a decoder decodes little that no window shows."""

import io
from dataclasses import replace

import av
import numpy as np
import pytest

from ppma.config.errors import BadClip, InputError
from ppma.config.loader import LoaderConfig
from ppma.data.encoders import check_encoder
from ppma.data.frame_rates import decoded_per_frame, kept_rates, losses
from ppma.data.shard_writer import encode_clip
from ppma.loaders.decode import fetch
from ppma.loaders.decode.dali_input import DALI_GPU_CODECS, Limits
from ppma.loaders.decode.remux import NotForDali, encoded_window
from ppma.loaders.sampler import TrainingSampler
from ppma.loaders.samples import choose_frames, thin_to_fps
from ppma.loaders.sources import store
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.loaders.sources.store import PackParameters
from ppma.loaders.stream import ClipStream
from tests.loaders.test_store import make_store, row

ANY_SIZE = dict.fromkeys(DALI_GPU_CODECS, Limits())
FPS, SECONDS, WINDOW = 30.0, 4.0, (16, 1.35)
"""Windows of 40 or 41 frames: two of five are kept."""
LOADER = LoaderConfig(views=1, size=32, short_side=48, window_seconds=WINDOW[1], workers=1, implementation="plain")


def parameters(codec, gop=8):
    return PackParameters(short_side=48, fps=None, quality=14, codec=codec, gop=gop, window=WINDOW)


@pytest.fixture(scope="module")
def source(tmp_path_factory, write_clip):
    """A manifest of two clips of numbered frames."""
    root = tmp_path_factory.mktemp("source")
    frames = int(FPS * SECONDS)
    for i in range(2):
        write_clip(root / f"{i}.mp4", frames=frames, fps=FPS, width=66, height=48, direction=(1 - 2 * i, 0))
    facts = {"frames": frames, "fps": FPS, "codec": "h264", "key_frame_spacing": 12, "duration_seconds": SECONDS}
    return Manifest.from_clips(
        [Clip(path=f"{i}.mp4", label=i, width=66, height=48, **facts) for i in range(2)], root=root, name="x"
    )


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory):
    """{codec: the manifest, read from a store}."""
    made, folder = {}, tmp_path_factory.mktemp("stores")
    for codec in ("jpeg", "hevc", "h264"):
        own = (
            parameters(codec) if codec != "jpeg" else PackParameters(short_side=48, fps=None, quality=90, window=WINDOW)
        )
        fps = kept_rates(source, own).tolist()
        rows = [row(source.file(i), i, label=i, fps=fps[i]) for i in range(2)]
        made[codec] = source.packed_in(make_store(folder / f"{codec}.beton", rows, own))
    return made


def windows(manifest, count=24):
    sampler = TrainingSampler([manifest], LOADER, seed=1, batch_clips=count, epoch_clips=count)
    return [(manifest.file(s.clip), s.start_seconds, s.end_seconds) for s in sampler.samples(0, 0)]


def decoded(clip):
    """Decode a container for DALI as its `decoders.video` does; return all its pictures, and how many packets it has."""
    with av.open(io.BytesIO(clip.payloads[0].tobytes())) as container:
        packets = list(container.demux(video=0))
        assert packets[0].is_keyframe
        return [f.to_ndarray(format="rgb24") for p in packets for f in p.decode()], sum(p.size > 0 for p in packets)


@pytest.mark.parametrize("codec", ["hevc", "h264"])
def test_windows_of_video_are_those_of_jpeg(packed, codec, read_barcode):
    """On a CPU, and in what NVDEC gets: the same pictures, at most 1.3 decoded for each that is wanted."""
    pictures = wanted = 0
    for (path, start, end), (jpeg, *_) in zip(windows(packed[codec]), windows(packed["jpeg"]), strict=True):
        frames, expected = (fetch.read_window(p, start, end, 16) for p in (path, jpeg))
        numbers = [read_barcode(f) for f in expected]
        assert [read_barcode(f) for f in frames] == numbers and len(set(numbers)) == 16
        assert frames.shape[1:3] == (48, 64) and expected.shape[1:3] == (48, 66)
        assert np.abs(frames.mean((0, 1, 2)) - expected.mean((0, 1, 2))).max() < 3
        clip = encoded_window(path, start, end, 16, ANY_SIZE)
        shown, packets = decoded(clip)
        assert clip.kind == "video" and len(shown) == packets
        assert np.array_equal(np.stack([shown[i] for i in clip.frame_idx]), frames)
        pictures, wanted = pictures + packets, wanted + 16
    assert pictures / wanted <= 1.3


def test_only_what_the_frames_need_is_read_and_decoded(packed):
    """Of a window of every fifth picture the ends of groups are left out, and of key frames all others."""
    assert store.pictures_needed([3, 8, 13, 13, 18], 8) == [0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 16, 17, 18]
    assert store.pictures_needed([3, 8], 1) == [3, 8]
    address = packed["hevc"].file(0)
    clip = store.read_packed(address, lambda _: [3, 8, 13])
    assert clip.keys == (True, False, False, False, True, *[False] * 5) and clip.order == (3, 4, 9)
    whole = store.read_packed(address, lambda times: list(range(len(times))))
    assert [p.tobytes() for p in clip.pictures] == [whole.pictures[i].tobytes() for i in (*range(4), *range(8, 14))]


def test_nvdec_is_asked_for_what_it_decodes_alone(packed):
    path = packed["hevc"].file(0)
    with pytest.raises(NotForDali, match="smaller than 144"):
        encoded_window(path, 0.0, 1.0, 4, DALI_GPU_CODECS)
    with pytest.raises(NotForDali, match="codec hevc"):
        encoded_window(path, 0.0, 1.0, 4, {})


def test_a_stream_reads_a_store_of_video_and_ffcv_refuses_it(packed, monkeypatch):
    with ClipStream(
        TrainingSampler([packed["hevc"]], LOADER, seed=0, batch_clips=2), [packed["hevc"]], LOADER
    ) as stream:
        [batch] = list(stream)
    assert sorted(batch.label_B.tolist()) == [0, 1] and not stream.bad_files
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(InputError, match="JPEG"):
        config = replace(LOADER, implementation="ffcv")
        ClipStream(TrainingSampler([packed["hevc"]], config, seed=0, batch_clips=2), [packed["hevc"]], config)


@pytest.mark.parametrize("codec", ["hevc", "h264"])
def test_the_same_clip_gives_the_same_bytes(source, codec):
    one, again = (encode_clip(row(source.file(0), end=2.0), parameters(codec, gop)) for gop in (4, 4))
    assert one.blob == again.blob and (one.height, one.width) == (48, 64)
    other = encode_clip(row(source.file(0), end=2.0), parameters(codec, 1))
    assert len(other.blob) > len(one.blob)


def test_frames_that_are_no_blocks_are_refused(tmp_path, write_clip):
    clip = write_clip(tmp_path / "a.mp4", frames=2, width=64, height=24)
    with pytest.raises(BadClip, match="64 x 24"):
        encode_clip(row(clip), parameters("h264"))


def test_a_damaged_or_unknown_shard_is_named(source, tmp_path, packed):
    folder = tmp_path / "s.beton"
    made = make_store(folder, [row(source.file(0))], parameters("h264"))
    address, path = made.address(0), folder / "shard-00000.beton"
    good = path.read_bytes()
    shard, place = store.locate_packed(address)
    first = int(shard.table(place)[0][0])
    for changed, reason in (
        (good[:first] + bytes(200) + good[first + 200 :], "pictures of h264"),
        (good[: first + 100], "ends before byte"),
        (good.replace(b"h264 8", b"av9 8\0"), "'av9'"),
        (good.replace(b"h264 8", b"h264 0"), "'h264'"),
    ):
        path.write_bytes(changed)
        store.open_shard.cache_clear()
        with pytest.raises(BadClip, match=reason):
            fetch.read_window(address, 0.0, 1.0, 4)


def test_an_encoder_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("av.codec.codecs_available", {"libx264"})
    check_encoder("h264")
    with pytest.raises(InputError, match=r"libx265.*h264"):
        check_encoder("hevc")


# ---------------------------------------------------------------------------------------------------------- frame rates


def manifest_of(fps, seconds, name="x"):
    facts = {"label": 0, "width": 64, "height": 48, "codec": "h264", "key_frame_spacing": 9}
    rows = [
        Clip(path=f"{i}.mp4", frames=round(f * s), fps=f, duration_seconds=round(f * s) / f, **facts)
        for i, (f, s) in enumerate(zip(fps, seconds, strict=True))
    ]
    return Manifest.from_clips(rows, root="/", name=name)


def test_auto_leaves_every_window_its_frames():
    """At any rate of the source and in short clips, where as few as possible are kept."""
    fps = [30.0, 30000 / 1001, 25.0, 24000 / 1001, 15.0, 59.94, 8.0, 30.0, 6.0]
    seconds = [10.0] * 7 + [1.5, 10.0]
    manifest = manifest_of(fps, seconds)
    rates = kept_rates(manifest, PackParameters(short_side=8, fps=None, quality=90, window=(16, 2.7)))
    for i, own in enumerate(fps):
        times = np.arange(manifest.frames[i]) / own
        kept = times[thin_to_fps(times, 0, len(times), None if np.isinf(rates[i]) else rates[i])]
        window = min(2.7, manifest.durations[i])
        for start in np.linspace(0, manifest.durations[i] - window, 50):
            most = np.count_nonzero((times >= start - 1e-9) & (times < start + window - 1e-9))
            different = len(set(choose_frames(kept, start, start + window, 16)))
            assert different == min(16, most), (own, start)
            assert np.count_nonzero((kept >= start - 1e-9) & (kept < start + window - 1e-9)) <= 18
    assert np.isinf(rates[-1]) and rates[0] == pytest.approx(16 / 2.7) and rates[7] == pytest.approx(16 / 1.5)


def test_what_other_recipes_lose_is_said():
    manifest = manifest_of([30.0], [10.0], name="uav-human")
    rates = kept_rates(manifest, PackParameters(short_side=8, fps=None, quality=90, window=(16, 2.7)))
    said = losses(manifest, rates, 16)
    assert (
        "16 of 16 for mae_nohuman" in said and "16 of 32 for --frames 32" in said and "13 of 16 for --published" in said
    )
    assert "8 of 8 for demo" in said


def test_a_decoder_decodes_few_pictures_that_no_window_shows():
    manifest = manifest_of([30.0], [10.0])
    for gop, window, most in ((8, (16, 2.7), 1.3), (1, (16, 2.7), 1.0), (8, None, 4.3)):
        own = PackParameters(short_side=8, fps=None, quality=14, codec="hevc", gop=gop, window=window)
        decoded = decoded_per_frame(manifest, kept_rates(manifest, own), own)
        assert 0.8 * most < decoded <= most
