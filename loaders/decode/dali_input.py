"""What DALI's video decoders support, as plain data: codecs and frame sizes. PyAV decodes everything else."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a decoder supports of a codec; sizes are in pixels of a frame."""

    smallest: tuple[int, int] = (1, 1)
    """Width, height."""
    largest: tuple[int, int] = (1 << 16, 1 << 16)
    macroblocks: int = 1 << 32
    """Most blocks of 16 x 16 pixels in a frame."""
    multiple: int = 1
    """Width and height must be multiples of this."""
    single: bool = False
    """Each packet must hold exactly one picture; those of VP9 with alternate references do not."""

    def refuse(self, width: int, height: int) -> str:
        """Return why the size cannot be decoded; empty where it can."""
        if width < self.smallest[0] or height < self.smallest[1]:
            return f"smaller than {self.smallest[0]} x {self.smallest[1]}"
        if width > self.largest[0] or height > self.largest[1]:
            return f"larger than {self.largest[0]} x {self.largest[1]}"
        if width * height > 256 * self.macroblocks:
            return f"more than {self.macroblocks} macroblocks"
        return f"not a multiple of {self.multiple}" if width % self.multiple or height % self.multiple else ""


Codecs = Mapping[str, Limits]
"""{codec: what a decoder supports of it}."""
DALI_CPU_CODECS: Codecs = dict.fromkeys(("vp8", "vp9", "mjpeg"), Limits())
"""What DALI 2.4 decodes without a GPU; everything else raises there."""
DALI_GPU_CODECS: Codecs = {
    "h264": Limits(smallest=(48, 16), largest=(4096, 4096), macroblocks=65536, multiple=2),
    "hevc": Limits(smallest=(144, 144), largest=(8192, 8192), macroblocks=262144, multiple=2),
    "vp8": Limits(smallest=(48, 16), largest=(4096, 4096), macroblocks=65536, multiple=2),
    "vp9": Limits(smallest=(128, 128), largest=(8192, 8192), macroblocks=262144, multiple=2, single=True),
    "mpeg4": Limits(smallest=(48, 16), largest=(2032, 2032), macroblocks=8192, multiple=2),
}
"""What NVDEC decodes through DALI 2.4, in 8-bit 4:2:0 only. The sizes are those that drivers report (cuvidGetDecoderCaps, printed by
nvdecinfo, github.com/philipl/nv-video-info, pull request 7, and by nvidia-vaapi-driver); profiles are in NVIDIA's NVDEC application note,
table 1. AV1 is not here: Hopper has no decoder for it, and DALI pairs packets with pictures in a way that its repeated frames would shift.
DALI numbers every picture of a VP9 packet, also those that are not shown. Its list of GPU codecs leaves out MJPEG (both in
frames_decoder_gpu.cc). Its color kernel looks for the chroma at height * pitch (color_space.cu): odd sizes are left to PyAV."""
