"""Models that users bring: larger ones than packages carry, given by path or put into the weights folder, checked by hash, never fetched.

    USER_MODELS: file name, hash, what it is  +  --models NAME=FILE  ->  choose()  ->  Model(name, path, sha256), kept in every record

A TorchScript file is a program: whoever gives one trusts who made it. Where the hash of the published file is known any other is refused.
"""

import hashlib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ppma.config.errors import InputError


@dataclass(frozen=True, kw_only=True)
class UserModel:
    """A file that is not ours to hand out."""

    file: str
    """Its name in the weights folder."""
    what: str
    """What it is and what it takes and returns, in words."""
    sha256: str = ""
    """Of the published file, or its first digits; empty where everybody makes their own."""
    script: bool = True
    """TorchScript; else the parameters of a model that torchvision builds."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A file that was chosen."""

    name: str
    path: Path
    sha256: str


USER_MODELS: dict[str, UserModel] = {
    "maskrcnn": UserModel(
        file="maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
        what="torchvision's weights MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1",
        sha256="73cbd019",
        script=False,
    ),
    "lama": UserModel(
        file="big-lama.pt",
        what="LaMa as TorchScript: (picture 1 3 H W from 0 to 1, hidden 1 1 H W) to a picture",
        sha256="344c77bbcb158f17dd143070d1e789f38a66c04202311ae3a258ef66667a9ea9",
    ),
    "semask": UserModel(
        file="semask.pt",
        what="a segmenter as TorchScript (the paper's: SeMask, Swin-L): picture 1 3 H W from 0 to 1 to probability of a person 1 1 H W",
    ),
    "e2fgvi": UserModel(
        file="e2fgvi.pt", what="E2FGVI as TorchScript: (frames 1 T 3 H W from 0 to 1, hidden 1 T 1 H W) to frames"
    ),
    "propainter": UserModel(
        file="propainter.pt",
        what="ProPainter as TorchScript: (frames 1 T 3 H W from 0 to 1, hidden 1 T 1 H W) to frames",
    ),
}


def choose(names: Iterable[str], given: Iterable[str], folder: Path) -> tuple[Model, ...]:
    """The files of the models `names`: those that `given` (NAME=FILE or NAME=FILE#SHA256) tells, else those in the folder.

    InputError where one is not there, is not what was published, or is given for a model that is not used.
    """
    wanted, told = sorted(set(names)), dict(_read(text) for text in given)
    if unused := sorted(set(told) - set(wanted)):
        raise InputError(f"--models {unused[0]}=...: nothing chosen uses it; in use are {', '.join(wanted) or 'none'}")
    return tuple(
        _check(name, *told.get(name, (folder / USER_MODELS[name].file, "")), given=name in told) for name in wanted
    )


def _read(text: str) -> tuple[str, tuple[Path, str]]:
    name, _, rest = text.partition("=")
    path, _, sha256 = rest.partition("#")
    if name not in USER_MODELS or not path:
        raise InputError(f"--models {text!r}: write NAME=FILE or NAME=FILE#SHA256; names are {', '.join(USER_MODELS)}")
    return name, (Path(path), sha256.lower())


def _check(name: str, path: Path, own_sha256: str, *, given: bool) -> Model:
    known = USER_MODELS[name]
    if not path.is_file():
        where = "is no file" if given else f"is not there; put it into that folder, or give --models {name}=FILE"
        raise InputError(f"{name} needs {known.what}, which ppma does not fetch: {path} {where}")
    try:
        sha256 = _sha256_of(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    expected = own_sha256 or known.sha256
    if not sha256.startswith(expected):
        raise InputError(
            f"{path}: SHA-256 is {sha256[:12]}..., not {expected[:12]}...; "
            f"give --models {name}={path}#{sha256} if it is a file of your own that you trust"
        )
    if known.script and not zipfile.is_zipfile(path):
        raise InputError(f"{path}: is no TorchScript file; {name} is {known.what}")
    return Model(name=name, path=path, sha256=sha256)


@cache
def _sha256_of(path: Path, changed_ns: int) -> str:
    """Hash of a file, computed once for each state of it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
