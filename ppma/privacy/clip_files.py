"""The files behind the rows of a strict run: that they lie where they should, what they hold, and that nobody calls
them something else.

paths of a manifest  ->  inside the root, no link out of it  ->  SHA-256 of each clip
packed store         ->  its shards whole, made from clips with these hashes
the data catalog   ->  no clip that another manifest files under another domain
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ppma.common.files import content_sha256, joined_sha256
from ppma.common.progress import Progress
from ppma.config.errors import InputError
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.store import Store, damaged_shards, open_shard

THREADS = 8
"""Files hashed at a time; hashing leaves the interpreter free."""


def check_places(root: Path, paths: Iterable[str]) -> None:
    """InputError unless each clip is there, inside the root, links followed, and so is every frame of a folder of
    them."""
    inside = root.resolve()
    for path in paths:
        _check_place(root / path, inside)


def _check_place(clip: Path, inside: Path) -> None:
    if not clip.exists():
        raise InputError(f"{clip} is not there; --privacy strict looks at every clip before it starts")
    frames = (Path(entry.path) for entry in os.scandir(clip) if entry.is_symlink()) if clip.is_dir() else ()
    for one in (clip, *frames):
        if not one.resolve().is_relative_to(inside):
            raise InputError(
                f"{one} is a link out of the root {inside}, to {one.resolve()}; --privacy strict takes files below it"
            )


def contents(clips: Sequence[Path], name: str) -> list[str]:
    """The hash of what each clip holds."""
    found = []
    with ThreadPoolExecutor(THREADS) as pool, Progress(f"clips of {name} hashed") as progress:
        for sha256 in pool.map(_content, clips):
            found.append(sha256)
            progress(len(found), len(clips))
    return found


def _content(clip: Path) -> str:
    try:
        return content_sha256(clip)
    except OSError as error:
        raise InputError(f"{clip} cannot be read ({error.strerror}); --privacy strict reads every clip first") from None


def check_store(store: Store, found: Sequence[str]) -> None:
    """InputError unless the shards are as they were written, and were packed from clips that hold what was found.

    `found` has the hash of every row's clip. Rows that could not be packed are read from their videos.
    """
    for shard, wrong in damaged_shards(store.path, store.index.shards):
        if wrong:
            raise InputError(f"{store.path / shard.file} {wrong}; run ppma pack --verify")
    for number, shard in enumerate(store.index.shards):
        rows = open_shard(store.path / shard.file).samples["f2"]
        places = store.places[rows]
        if not (np.all(places["shard"] == number) and np.array_equal(places["place"], np.arange(len(rows)))):
            raise InputError(f"{store.path}: rows.npy does not fit {shard.file}; run ppma pack again")
        if shard.content_sha256 != joined_sha256(found[row] for row in rows):
            raise InputError(
                f"{store.path / shard.file} was packed from other clips than lie there now, or before ppma noted from which;"
                " pack the source again"
            )


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """What a manifest says of one clip."""

    clip: Path
    domain: str
    where: str

    @cached_property
    def content(self) -> str:
        """Hash of what it holds."""
        return _content(self.clip)


def check_disguise(data: Path | None, sources: Sequence[Manifest]) -> None:
    """InputError when a clip of `sources` is also in a manifest of the data catalog under another domain, by this name
    or as a copy."""
    same_file, same_size = {}, defaultdict[tuple[int, ...], list[_Claim]](list)
    for claim in _claims(sources):
        status = claim.clip.stat()
        same_file[status.st_dev, status.st_ino] = claim
        same_size[_size(claim.clip)].append(claim)
    known = catalog.find(data)
    others = [known.entry(*key) for key in known.entries]
    for claim in _claims(Manifest.read(entry.manifest, root=entry.root) for entry in others):
        if not claim.clip.exists():
            continue
        status = claim.clip.stat()
        own = same_file.get((status.st_dev, status.st_ino))
        twins = [own] if own else [one for one in same_size[_size(claim.clip)] if one.domain != claim.domain]
        for one in twins:
            if one.domain != claim.domain and (one is own or one.content == claim.content):
                raise InputError(
                    f"{one.clip} is {one.domain} by {one.where}, and {claim.domain} by {claim.where} ({claim.clip}); one of them is"
                    " wrong: index it again with the right --domain"
                )


def _claims(manifests: Iterable[Manifest]) -> Iterator[_Claim]:
    for manifest in manifests:
        for path, domain in zip(manifest.texts("path"), manifest.texts("domain"), strict=True):
            if domain:
                yield _Claim(clip=manifest.root / path, domain=domain, where=str(manifest.path))


def _size(clip: Path) -> tuple[int, ...]:
    """What copies have in common and can be told at a glance: the bytes of a file, number of frames and bytes of the
    first."""
    if not clip.is_dir():
        return (clip.stat().st_size,)
    files = sorted(file for file in clip.iterdir() if file.is_file())
    return (len(files), files[0].stat().st_size if files else 0)
