"""Find the codecs that DALI decodes on this machine by decoding a few frames of each.

`python -m ppma.doctor.codecs cpu|gpu` writes them as a JSON list. It runs in a separate process, because DALI reports
an unsupported codec on stderr from C++ and a broken driver may kill the process.
"""

import io
import json
import sys
from fractions import Fraction

import av
import numpy as np

ENCODERS = {
    "h264": "libx264", "hevc": "libx265", "av1": "libsvtav1", "vp8": "libvpx", "vp9": "libvpx-vp9", "mpeg4": "mpeg4", "mjpeg": "mjpeg",
}  # fmt: skip
"""codec: the encoder in PyAV's FFmpeg that makes its sample."""
SIDE = 256
"""Pixels; NVDEC refuses pictures below about 145 on a side."""


def _sample(codec: str) -> np.ndarray:
    """Return four gray frames as a Matroska file, or for "jpeg" one picture, as bytes."""
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
    except RuntimeError:  # DALI has no decoder for it
        return False
    return True


def dali_codecs(device: str) -> list[str]:
    """Return the codecs that DALI decodes on "cpu" or "gpu", including "jpeg"."""
    return [codec for codec in (*ENCODERS, "jpeg") if _decodes(codec, device)]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(dali_codecs(sys.argv[1])) + "\n")
