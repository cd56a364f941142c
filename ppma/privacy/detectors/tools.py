"""Tools that users choose by name: their license, how to construct them, and model files that no package carries.

    table of tools, names  ->  find_files(): weights are there, the user's files are right  ->  Tool.load()
    USER_MODELS: file name, address, hash  ->  download()  ->  the weights folder
    USER_MODELS  +  --models NAME=FILE  ->  choose()  ->  Model, part of every record

A TorchScript file is a program, so use only files from people you trust. Where the hash of the published file is known,
others are rejected.
Legend: H height, W width of a frame in pixels, N boxes.
"""

import hashlib
import http.client
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from ppma.common.files import atomic_path
from ppma.common.progress import Progress
from ppma.config.errors import InputError
from ppma.privacy.detectors import weights

TIMEOUT_SECONDS = 60.0


class Detector(Protocol):
    """Detects people, or their faces, in one frame."""

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """Return boxes_N5, float32 (x0, y0, x1, y1 in pixels, score), of an RGB uint8 frame."""


@dataclass(frozen=True, kw_only=True)
class UserModel:
    """A model file that no package carries."""

    file: str
    """Its name in the weights folder; .pt: TorchScript."""
    what: str
    """Its origin, inputs and output, in words."""
    sha256: str = ""
    """Hash of the published file or its first digits; empty if there is none."""
    url: str = ""
    """Address of the published file, if its hash is known."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The file chosen for a user model."""

    name: str
    path: Path
    sha256: str


SAM2_FEATURES = ("image_embed", "high_res_feats_0", "high_res_feats_1")
SAM2_PROMPT = (*SAM2_FEATURES, "point_coords", "point_labels", "mask_input", "has_mask_input")
"""Outputs of SAM 2's encoder and inputs of its decoder, as samexporter names them."""
_SAM2 = "https://huggingface.co/SharpAI/sam2-hiera-base-plus-onnx/resolve/main"
_VIDEO_INPAINTER = "as TorchScript: (frames 1 T 3 H W from 0 to 1, hidden 1 T 1 H W) to frames"

USER_MODELS: dict[str, UserModel] = {
    "maskrcnn": UserModel(
        file="maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
        what="torchvision's weights MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1",
        sha256="73cbd019",
        url="https://download.pytorch.org/models/maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
    ),
    "lama": UserModel(
        file="big-lama.pt",
        what="LaMa as TorchScript: (image 1 3 H W from 0 to 1, hidden 1 1 H W) to an image",
        sha256="344c77bbcb158f17dd143070d1e789f38a66c04202311ae3a258ef66667a9ea9",
        url="https://github.com/Sanster/models/releases/download/add_big_lama/big-lama.pt",
    ),
    "sam2-encoder": UserModel(
        file="sam2_hiera_base_plus.encoder.onnx",
        what=f"the image encoder of SAM 2 as ONNX: image 1 3 S S to {', '.join(SAM2_FEATURES)}",
        sha256="063717f7b501e7433f775408eafbfcee5684dd19f7f7604fcb81285123db629f",
        url=f"{_SAM2}/encoder.onnx",
    ),
    "sam2-decoder": UserModel(
        file="sam2_hiera_base_plus.decoder.onnx",
        what=f"the mask decoder of SAM 2 as ONNX: {', '.join(SAM2_PROMPT)} to masks, iou_predictions",
        sha256="90dbe3d746cfdb9050695a94cd3cdd90244c7af48383df2ec340f80587b61726",
        url=f"{_SAM2}/decoder.onnx",
    ),
    "semask": UserModel(
        file="semask.pt",
        what="a segmenter as TorchScript (in the paper SeMask, Swin-L): image 1 3 H W from 0 to 1 to probability 1 1 H W",
    ),
    "yolox": UserModel(
        file="yolox.onnx",
        what="YOLOX as its authors' ONNX: image 1 3 S S, blue, green, red from 0 to 255, to rows 1 N 85, not decoded",
    ),
    "e2fgvi": UserModel(file="e2fgvi.pt", what=f"E2FGVI {_VIDEO_INPAINTER}"),
    "propainter": UserModel(file="propainter.pt", what=f"ProPainter {_VIDEO_INPAINTER}"),
}


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A tool, its files and its license."""

    make: Callable[..., Any]
    """Constructor; its first arguments are the dict of weight files by name, or the paths of the user's models."""
    license: str
    weights: str = ""
    """Key of `weights.WEIGHTS`, or empty."""
    user_models: tuple[str, ...] = ()
    """Keys of USER_MODELS."""
    finds: Literal["person", "face", ""] = ""
    """Of a detector."""

    def load(self, folder: Path, models: Sequence[Model] = (), *more: Any) -> Any:
        """Construct the tool.

        Args:
            folder: The weights folder.
            models: The files that users provide; those in the folder if empty.
            more: Further arguments of the constructor.

        Raises:
            InputError: A file is missing, has another hash, or is none of this tool.
        """
        if self.user_models:
            paths = {model.name: model.path for model in models or choose(self.user_models, (), folder)}
            return self.make(*(paths[name] for name in self.user_models), *more)
        return self.make(weights.find(self.weights, folder), *more) if self.weights else self.make(*more)


def find_files(tools: Sequence[Tool], folder: Path, given: Iterable[str] = ()) -> tuple[Model, ...]:
    """Check that all files of these tools are in the folder, or `given`; return those that users provide. See `choose`."""
    models = choose((name for tool in tools for name in tool.user_models), given, folder)
    for key in dict.fromkeys(tool.weights for tool in tools if tool.weights):
        weights.find(key, folder)
    return models


def download(name: str, folder: Path) -> None:
    """Download a user model with an address into the weights folder, unless it is there.

    Raises:
        InputError: The address cannot be read, or gives a file with another hash.
    """
    known, digest = USER_MODELS[name], hashlib.sha256()
    if (folder / known.file).is_file():
        return
    try:
        with (
            atomic_path(folder / known.file) as part,
            Progress("MB") as progress,
            urllib.request.urlopen(known.url, timeout=TIMEOUT_SECONDS) as answer,
            part.open("wb") as file,
        ):
            megabytes = int(answer.headers["Content-Length"] or 0) // 2**20
            while chunk := answer.read(2**20):
                digest.update(chunk)
                file.write(chunk)
                progress(file.tell() // 2**20, megabytes)
            if not digest.hexdigest().startswith(known.sha256):
                raise InputError(
                    f"{known.url}: SHA-256 is {digest.hexdigest()[:12]}..., not {known.sha256[:12]}...; rejected"
                )
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
        raise InputError(f"{known.url}: {error}; download it elsewhere and put it into {folder}") from None


def choose(names: Iterable[str], given: Iterable[str], folder: Path) -> tuple[Model, ...]:
    """Find the files of user models.

    Args:
        names: Keys of USER_MODELS that are needed.
        given: NAME=FILE or NAME=FILE#SHA256, in place of the file in the folder.
        folder: The weights folder.

    Raises:
        InputError: A file is missing, has another hash, or is given for a model that is not needed.
    """
    wanted, paths = sorted(set(names)), dict(_parse(text) for text in given)
    if unused := sorted(set(paths) - set(wanted)):
        raise InputError(f"--models {unused[0]}=...: no chosen tool uses it; in use are {', '.join(wanted) or 'none'}")
    return tuple(
        _check(name, *paths.get(name, (folder / USER_MODELS[name].file, "")), given=name in paths) for name in wanted
    )


def _parse(text: str) -> tuple[str, tuple[Path, str]]:
    """Split NAME=FILE#SHA256 into (name, (path, hash or empty))."""
    name, _, rest = text.partition("=")
    path, _, sha256 = rest.partition("#")
    if name not in USER_MODELS or not path:
        raise InputError(f"--models {text!r}: write NAME=FILE or NAME=FILE#SHA256; names are {', '.join(USER_MODELS)}")
    return name, (Path(path), sha256.lower())


def _check(name: str, path: Path, own_sha256: str, *, given: bool) -> Model:
    known = USER_MODELS[name]
    if not path.is_file():
        where = "is not a file" if given else f"is missing; put it into that folder, or give --models {name}=FILE"
        fetch = "; `ppma privacy fetch --set quality` downloads it" if known.url and not given else ""
        raise InputError(f"{name} needs {known.what}: {path} {where}{fetch}")
    try:
        sha256 = weights.model_sha256(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    expected = own_sha256 or known.sha256
    if not sha256.startswith(expected):
        raise InputError(
            f"{path}: SHA-256 is {sha256[:12]}..., not {expected[:12]}...; "
            f"give --models {name}={path}#{sha256} if it is a file of your own that you trust"
        )
    if known.file.endswith(".pt") and not zipfile.is_zipfile(path):
        raise InputError(f"{path}: is not a TorchScript file; {name} is {known.what}")
    return Model(name=name, path=path, sha256=sha256)
