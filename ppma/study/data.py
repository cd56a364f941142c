"""Render and pack the data of a study: virtual people, scenes without people, and the user's own clips.

    DataConfig  ->  OUT/{clips, *.beton, data.toml}, with the sources actions, scenes, transfer and, with --videos, real

Finished clips and packed sources are kept, so the same call continues after a stop.
"""

import csv
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ppma.common.progress import Progress
from ppma.config import recipes
from ppma.config.errors import InputError, require, require_at_least
from ppma.data import index, pack
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.loaders.sources.store import REJECTED
from ppma.study.spec import Study
from ppma.synthetic import CLASSES, SynthesisConfig, generate
from ppma.synthetic.production import plan as plan_clips

log = logging.getLogger(__name__)

NEW = CLASSES[1::3]
"""Actions of the transfer: every third in the alphabet, so that no result decides which."""
LEARNED = tuple(name for name in CLASSES if name not in NEW)
ACTIONS, SCENES, TRANSFER, REAL = "actions", "scenes", "transfer", "real"
"""Names of the sources."""
SETS = (ACTIONS, "probe", "test")
"""Folders of clips: learned actions and their scenes; new actions by the same people; new actions by unseen people."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to render. The fields from `learned` on are the keys of a spec's [draw] table."""

    out: Path
    """Folder of clips, packed sources and the data catalog."""
    videos: Path | None = None
    """The user's human-removed clips, <class>/<video>."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes that render and pack."""
    learned: tuple[str, ...] = LEARNED
    """Actions of stage 2."""
    new: tuple[str, ...] = NEW
    """Actions of the transfer; none of them is learned."""
    learned_clips: int = 120
    """Clips per learned action, and as many scenes without people."""
    probe_clips: int = 40
    """Training clips per new action, of the people of stage 2."""
    test_clips: int = 40
    """Test clips per new action, of unseen people."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "", "workers", "learned_clips", "probe_clips", "test_clips")
        both = sorted(set(self.learned) & set(self.new))
        require(not both, f"new: {', '.join(both)} would be learned in stage 2 already; transfer needs other actions")
        require(min(len(self.learned), len(self.new)) > 1, "learned and new need at least two actions each")
        found = self.videos is None or self.videos.is_dir()
        require(found, f"--videos {self.videos}: no such folder; give one with human-removed clips, <class>/<video>")

    @property
    def data(self) -> Path:
        """The data catalog."""
        return self.out / "data.toml"


TABLE = ("learned", "new", "learned_clips", "probe_clips", "test_clips")
"""Keys of a spec's [draw] table."""


def data_config(study: Study, out: Path, videos: Path | None, workers: int) -> DataConfig:
    """Return what to render for a study with a [draw] table; the other arguments are those of DataConfig.

    Raises:
        InputError: The table has an unknown key or a wrong value, or there are videos but no table.
    """
    if study.draw is None:
        raise InputError(f"--videos: {study.name} renders no data; index your clips and name them in --sources")
    given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in study.draw.items()}
    for key, value in given.items():
        require(key in TABLE, f"[draw]: unknown key {key!r}; the keys are {', '.join(TABLE)}")
        default = getattr(DataConfig, key)
        require(isinstance(value, type(default)), f"[draw]: {key} = {value!r}; its default is {default!r}")
    return DataConfig(out=out, videos=videos, workers=workers, **given)


def make_data(config: DataConfig) -> None:
    """Render, pack and catalog what is missing.

    Raises:
        InputError: A folder was rendered with other settings.
    """
    if config.videos is not None and not is_packed(config, REAL):
        index_videos(config, config.videos)  # first: a folder without clips is refused before anything is rendered
    for folder in SETS:
        _render_set(config, folder)


def is_complete(config: DataConfig) -> bool:
    """True if everything is rendered, packed and in the catalog."""
    known = catalog.read(config.data).entries
    entries = [(ACTIONS, "train"), (SCENES, "train"), (TRANSFER, "train"), (TRANSFER, "val")]
    entries += [] if config.videos is None else [(REAL, "train")]
    clips = (job for folder in SETS for job in plan_clips(_synthesis(config, folder)))
    return all(entry in known for entry in entries) and all(job.done() for job in clips)


def index_videos(config: DataConfig, videos: Path) -> None:
    """Index and pack the user's clips as human-removed, which the user vouches for."""
    config.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(config.out / f"{REAL}.beton", ignore_errors=True)  # half-written by a run that was stopped
    found = config.out / "real_as_found.csv"
    index.main([str(videos), "--out", str(found), "--domain", "human-removed"])
    _add_scenes(config, REAL, found, videos.absolute())


def _synthesis(config: DataConfig, folder: str) -> SynthesisConfig:
    counts = {ACTIONS: config.learned_clips, "probe": config.probe_clips, "test": config.test_clips}
    return SynthesisConfig(
        out=config.out / "clips" / folder, classes=config.learned if folder == ACTIONS else config.new, clips=counts[folder],
        size=recipes.DEMO_CLIP_SIZE, fps=recipes.DEMO_FPS, split="test" if folder == "test" else "train", empty=folder == ACTIONS,
        workers=config.workers,
    )  # fmt: skip


def _render_set(config: DataConfig, folder: str) -> None:
    """Render one set of clips; the learned actions come with scenes without people, and both are packed."""
    synthesis = _synthesis(config, folder)
    log.info("clips of virtual people: %s", synthesis.out)
    with Progress("clips") as progress:
        manifest = generate(synthesis, on_progress=progress)
    name, split = (ACTIONS if folder == ACTIONS else TRANSFER), ("val" if folder == "test" else "train")
    catalog.add(config.data, name=name, split=split, manifest=manifest, root=synthesis.out)
    if folder == ACTIONS:
        _add_scenes(config, SCENES, synthesis.out / "train_empty.csv", synthesis.out)
        _pack(config, ACTIONS)


def _add_scenes(config: DataConfig, name: str, manifest: Path, root: Path) -> None:
    """Catalog and pack scenes without people; clips that cannot be packed are left out.

    Their labels follow those of the actions, for the head that stage 2 shares. Of more clips than are rendered an
    evenly spaced selection is taken, so that training takes the same time.
    """
    listed, most = Manifest.read(manifest, root=root), len(config.learned) * config.learned_clips
    rows = np.unique(np.linspace(0, len(listed) - 1, min(most, len(listed))).astype(int))
    clips = [listed.clip(int(row)) for row in rows]
    first = len(config.learned)
    clips = [clip if clip.label is None else replace(clip, label=clip.label + first) for clip in clips]
    if refused := _add_and_pack(config, name, clips, root):
        log.warning("%d of %d clips are damaged and left out", len(refused), len(clips))
        shutil.rmtree(config.out / f"{name}.beton")
        _add_and_pack(config, name, [clip for i, clip in enumerate(clips) if i not in refused], root)


def _add_and_pack(config: DataConfig, name: str, clips: Sequence[Clip], root: Path) -> set[int]:
    """Catalog and pack some clips; return the rows that could not be packed."""
    manifest = config.out / f"{name}.csv"
    Manifest.write(manifest, clips)
    catalog.add(config.data, name=name, split="train", manifest=manifest, root=root)
    _pack(config, name)
    return _refused(config, name)


def _pack(config: DataConfig, name: str) -> None:
    """Pack a source: stage 2 reads each clip dozens of times, and decoding video would take as long as training."""
    flags = {"--out": config.out / f"{name}.beton", "--data": config.data, "--workers": config.workers}
    flags |= {"--short-side": recipes.DEMO_CLIP_SIZE, "--fps": recipes.DEMO_FPS}
    pack.main([name, *(str(word) for flag in flags.items() for word in flag)])


def _refused(config: DataConfig, name: str) -> set[int]:
    """Return the rows that could not be packed."""
    with (config.out / f"{name}.beton" / REJECTED).open(newline="") as file:
        return {int(row["row"]) for row in csv.DictReader(file)}


def is_packed(config: DataConfig, name: str) -> bool:
    """True if all rows of a source are packed."""
    return (config.out / f"{name}.beton" / REJECTED).is_file() and not _refused(config, name)  # which is written last
