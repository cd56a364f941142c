"""Which codecs DALI decodes here, found by decoding a few frames of each: `python -m ppma.doctor.codecs cpu|gpu` writes a JSON list.

A process of its own, because DALI reports an unsupported codec on the C++ side's stderr and a broken driver may end the process.
"""

import io
import json
import sys
from fractions import Fraction

import av
import numpy as np

ENCODERS = {
    "h264": "libx264",
    "hevc": "libx265",
    "av1": "libsvtav1",
    "vp8": "libvpx",
    "vp9": "libvpx-vp9",
    "mpeg4": "mpeg4",
    "mjpeg": "mjpeg",
}
"""codec: the encoder of PyAV's own FFmpeg that makes the sample."""
SIDE = 256
"""Pixels; NVDEC refuses pictures that are smaller than about 145 on a side."""


def _sample(codec: str) -> np.ndarray:
    """Four grey frames in a Matroska file, as bytes; for "jpeg" one picture."""
    frames = [av.VideoFrame.from_ndarray(np.full((SIDE, SIDE, 3), 40 * i, np.uint8), format="rgb24") for i in range(4)]
    buffer = io.BytesIO()
    if codec == "jpeg":
        frames[3].to_image().save(buffer, "JPEG")
        return np.frombuffer(buffer.getvalue(), np.uint8)
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream(ENCODERS[codec], rate=Fraction(10))
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for frame in frames:
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return np.frombuffer(buffer.getvalue(), np.uint8)


def _decodes(codec: str, device: str) -> bool:
    from nvidia.dali import Pipeline, fn
    from nvidia.dali.types import DALIDataType

    data = _sample(codec)
    decoder = fn.decoders.image if codec == "jpeg" else fn.decoders.video
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=0 if device == "gpu" else None)
    with pipeline:
        encoded = fn.external_source(lambda: [data], dtype=DALIDataType.UINT8, ndim=1)
        pipeline.set_outputs(decoder(encoded, device="mixed" if device == "gpu" else "cpu"))
    try:
        pipeline.build()
        pipeline.run()
    except RuntimeError:  # DALI's way to say that it has no decoder for this
        return False
    return True


def dali_codecs(device: str) -> list[str]:
    """The codecs that DALI decodes on "cpu" or "gpu", "jpeg" among them."""
    return [codec for codec in (*ENCODERS, "jpeg") if _decodes(codec, device)]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(dali_codecs(sys.argv[1])) + "\n")
