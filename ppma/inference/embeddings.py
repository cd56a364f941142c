"""`ppma features`: write the embeddings of videos to a file for numpy, pandas or other tools.

videos or data sets  ->  Model.features  ->  FILE.npz or FILE.parquet, a row for each video or window, with hashes of its inputs
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import tyro
from pyarrow import parquet

from ppma.common.files import atomic_path, file_sha256
from ppma.config.command import DONE, OutFile, parse
from ppma.config.errors import InputError, counted, require
from ppma.inference.model import Model, VideoFeatures
from ppma.inference.videos import find_videos
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.training.run import DataOptions

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VideoOptions(DataOptions):
    """Flags of the commands that run a model over videos."""

    videos: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[VIDEOS ...]")] = ()
    """Video files, folders of frames, or folders of either, which are searched."""
    dataset: tuple[str, ...] = ()
    """Instead of VIDEOS: names in the data catalog."""
    split: str = "val"
    """Split of each data set."""
    checkpoint: Path
    """Run folder, one of its checkpoint folders, or a folder of `ppma convert` or `ppma export`."""
    window: float | None = None
    """Length in seconds of a sliding window (default: that of the training)."""
    stride: float | None = None
    """Seconds between the starts of two windows (default: half a window)."""
    on_bad: Literal["fail", "mark"] = "fail"
    """For a video that cannot be read, fail: stop with its name; mark: write NaN in its row."""

    def __post_init__(self) -> None:
        require(bool(self.videos) != bool(self.dataset), "give VIDEOS or --dataset NAME, one of the two")

    def find(self) -> list[list[Path]] | list[Manifest]:
        """Return the videos, or the manifest of each data set."""
        if not self.dataset:
            return [[video for path in self.videos for video in find_videos(path)]]
        data = catalog.find(self.data)
        return [data.manifest(name, self.split) for name in self.dataset]


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(VideoOptions):
    """Write the embedding of every video: the encoder's tokens, averaged, before the final norm.

    The columns are path, start_seconds, end_seconds, decoded and features; of a data set also source, label and
    class_name. With --window or --stride a row is a window, and otherwise the middle window of a video.

    For example:
      ppma features clips --checkpoint runs/mae_nohuman --out clips.parquet
      ppma features long.mp4 --window 2.7 --stride 1.35 --checkpoint runs/mae_nohuman --out long.npz
      ppma features --dataset ucf101 --checkpoint runs/align_nohuman_synthetic --out ucf101.parquet
    """

    out: OutFile
    """FILE.npz (an array for each column) or FILE.parquet."""
    tokens: bool = False
    """Write every token, in the order (time, height, width), not their mean."""
    final_norm: bool = False
    """Apply the model's final LayerNorm, as the exported model and timm do."""
    windows: int = 1
    """Temporal windows of a video that are averaged: one is its middle, two are its start and its end."""
    crops: int = 1
    """Squares along the long side of a frame, 1 or 3."""
    batch_clips: int = 16
    """Videos at a time; does not change the result."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out.suffix not in WRITERS:
            raise InputError(f"--out is {self.out}; give a file that ends in {' or '.join(WRITERS)}")


def provenance(model: Model) -> dict[str, Any]:
    """Return what rows of a file came from."""
    run = model.run
    return {
        "checkpoint": str(run.weights), "weights_sha256": file_sha256(run.weights), "frames": run.loader.frames, "size": run.loader.size,
    }  # fmt: skip


def write_npz(path: Path, columns: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """Write the columns as arrays, and `metadata` as JSON in the array `facts`."""
    arrays: dict[str, Any] = {**columns, "facts": np.array(json.dumps(metadata))}
    np.savez_compressed(path, **arrays)


def write_parquet(path: Path, columns: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """Write a table, features and scores as lists of one length, and `metadata` as JSON in the schema's metadata."""

    def array(values: np.ndarray) -> pa.Array:
        if values.ndim == 1:
            return pa.array(values)
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float32()), int(np.prod(values.shape[1:])))

    table = pa.table({name: array(values) for name, values in columns.items()})
    parquet.write_table(table.replace_schema_metadata({"ppma": json.dumps(metadata)}), path)


WRITERS: dict[str, Callable[[Path, dict[str, np.ndarray], dict[str, Any]], None]] = {
    ".npz": write_npz,
    ".parquet": write_parquet,
}


def write_rows(path: Path, columns: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """Write a table in the format of its suffix, atomically."""
    with atomic_path(path) as temp_path:
        WRITERS[path.suffix](temp_path, columns, metadata)


def _columns(found: VideoFeatures, source: Manifest | None) -> dict[str, np.ndarray]:
    columns = {"path": np.array(found.video), "start_seconds": found.start_seconds, "end_seconds": found.end_seconds}
    if source is not None:
        columns |= {"source": np.full(len(found), source.name), "label": source.labels[found.number]}
        columns["class_name"] = np.array(source.texts("class_name"))[found.number]
    return columns | {"decoded": found.decoded, "features": found.values.numpy()}


def main(argv: list[str]) -> int:
    """Run `ppma features`."""
    options = parse(FeatureOptions, argv, prog="ppma features")
    inputs = options.find()
    model, parts = Model(options.open(options.checkpoint)), []
    sources = [one for one in inputs if isinstance(one, Manifest)]
    for one in inputs:
        found = model.features(
            one, window=options.window, stride=options.stride, tokens=options.tokens, final_norm=options.final_norm,
            windows=options.windows, crops=options.crops, batch_clips=options.batch_clips, on_bad=options.on_bad,
        )  # fmt: skip
        parts.append(_columns(found, one if isinstance(one, Manifest) else None))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    metadata = provenance(model) | {
        "manifests": {f"{source.name}.{options.split}": source.sha256 for source in sources},
        "views": f"{options.windows} windows x {options.crops} crops", "window": options.window, "stride": options.stride,
    }  # fmt: skip
    write_rows(options.out, columns, metadata)
    bad = int((~columns["decoded"]).sum())
    shape = " x ".join(map(str, columns["features"].shape[1:]))
    undecodable = f"; {bad} could not be decoded" if bad else ""
    log.info("%s: %s of %s numbers%s", options.out, counted(len(columns["path"]), "row"), shape, undecodable)
    return DONE
