"""Check the files behind the rows of a strict run: their places, their contents, and other manifests that list them.

paths of a manifest  ->  inside the root, no link out of it  ->  SHA-256 of each clip
packed store         ->  undamaged shards, packed from clips with these hashes
data catalog         ->  no clip that another manifest lists under another domain
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
from ppma.common.frames import clip_place, is_frames
from ppma.common.progress import Progress
from ppma.config.errors import InputError
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.store import Store, damaged_shards, open_shard

THREADS = 8
"""Files hashed at a time; hashing releases the GIL."""


def check_places(root: Path, paths: Iterable[str]) -> None:
    """Raise an InputError unless every clip and every frame of a folder is inside the root, with links resolved."""
    inside = root.resolve()
    for path in paths:
        clip = clip_place(root / path)
        if not clip.exists():
            raise InputError(f"{clip} is missing; --privacy strict checks every clip before it starts")
        links = (Path(entry.path) for entry in os.scandir(clip) if entry.is_symlink()) if clip.is_dir() else ()
        for file in (clip, *links):
            if not file.resolve().is_relative_to(inside):
                raise InputError(f"{file} is a link out of the root {inside}, to {file.resolve()}; copy the file there")


def contents(clips: Sequence[Path], name: str) -> list[str]:
    """Return the content hash of each clip of the source `name`; InputError if one cannot be read."""
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
    """Check that the shards of a store are undamaged and were packed from these clips.

    Args:
        store: The packed store; rows that could not be packed are read from their videos.
        found: Content hash of every row's clip.

    Raises:
        InputError: A shard is damaged, or was packed from other clips.
    """
    for shard, problem in damaged_shards(store.path, store.index.shards):
        if problem:
            raise InputError(f"{store.path / shard.file} {problem}; run ppma pack --verify")
    for number, shard in enumerate(store.index.shards):
        rows = open_shard(store.path / shard.file).samples["f2"]
        places = store.places[rows]
        if not (np.all(places["shard"] == number) and np.array_equal(places["place"], np.arange(len(rows)))):
            raise InputError(f"{store.path}: rows.npy does not fit {shard.file}; run ppma pack again")
        if shard.content_sha256 != joined_sha256(found[row] for row in rows):
            raise InputError(
                f"{store.path / shard.file} was packed from other clips than those present; run ppma pack again"
            )


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """The domain that a manifest gives a clip."""

    clip: Path
    domain: str
    manifest: str

    @cached_property
    def content(self) -> str:
        """Content hash of the clip."""
        return _content(self.clip)


def check_disguise(data: Path | None, sources: Sequence[Manifest]) -> None:
    """Raise an InputError if the data catalog lists a clip of `sources`, or a copy of it, under another domain."""
    same_size = defaultdict[tuple[int, ...], list[_Claim]](list)
    for claim in _claims(sources):
        same_size[_size(claim.clip)].append(claim)
    entries = catalog.find(data).entries.values()
    for claim in _claims(Manifest.read(entry.manifest, root=entry.root) for entry in entries):
        for one in same_size.get(_size(claim.clip), ()) if clip_place(claim.clip).exists() else ():
            if one.domain != claim.domain and one.content == claim.content:
                raise InputError(
                    f"{one.clip} is {one.domain} by {one.manifest}, and {claim.domain} by {claim.manifest}"
                    f" ({claim.clip}); one of them is wrong: index it again with the right --domain"
                )


def _claims(manifests: Iterable[Manifest]) -> Iterator[_Claim]:
    for manifest in manifests:
        for path, domain in zip(manifest.texts("path"), manifest.texts("domain"), strict=True):
            if domain:
                yield _Claim(clip=manifest.root / path, domain=domain, manifest=str(manifest.path))


def _size(clip: Path) -> tuple[int, ...]:
    """Return the bytes of a file, or the number of frames in a folder and the bytes of the first: copies share them."""
    if not is_frames(clip):
        return (clip.stat().st_size,)
    files = sorted(file for file in clip_place(clip).iterdir() if file.is_file())
    return (len(files), files[0].stat().st_size if files else 0)
