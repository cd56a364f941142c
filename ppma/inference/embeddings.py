"""`ppma features`: write the embeddings of clips to a file for numpy, pandas or other tools.

checkpoint, data sets  ->  tokens pooled, mean over views  ->  FILE.npz or FILE.parquet, a row a clip, with hashes of its inputs
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ppma.common.files import atomic_path, file_sha256
from ppma.config.command import DONE, OutFile, parse
from ppma.config.errors import InputError
from ppma.config.run import EvaluationConfig
from ppma.inference.samples import embed
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.training.run import DataOptions, FinishedRun

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(DataOptions):
    """Write the embedding of every clip: the pooled tokens of the encoder, averaged over views, before the final norm.

    For example: ppma features --checkpoint runs/align_nohuman_synthetic --dataset ucf101 --out ucf101.parquet
    """

    checkpoint: Path
    """Run folder of any recipe that trains weights, or one of its checkpoint folders."""
    dataset: tuple[str, ...]
    """Names in the data catalog."""
    out: OutFile
    """FILE.npz (arrays path, source, label, class_name, decoded, features) or FILE.parquet (columns of these names)."""
    split: str = "val"
    """Split of each data set."""
    windows: int = 1
    """Temporal windows of a video: one is its middle, two are its start and its end."""
    crops: int = 1
    """Squares along the long side of a frame, 1 or 3."""
    batch_clips: int = 16
    """Videos at a time; does not change the result."""
    on_bad: Literal["fail", "mark"] = "fail"
    """For an undecodable video, fail: stop with its name; mark: write NaN in its row."""

    def __post_init__(self) -> None:
        if self.out.suffix not in WRITERS:
            raise InputError(f"--out is {self.out}; give a file that ends in {' or '.join(WRITERS)}")
        if not self.dataset:
            raise InputError("--dataset names no data set; give at least one")

    @property
    def views(self) -> EvaluationConfig:
        """The views as an evaluation describes them."""
        return EvaluationConfig(
            split=self.split, windows=self.windows, crops=self.crops, batch_clips=self.batch_clips, on_bad=self.on_bad
        )


def columns_of(run: FinishedRun, source: Manifest, views: EvaluationConfig) -> dict[str, np.ndarray]:
    """Return the columns of one source; `features` is float32 (V, D), NaN where a clip could not be decoded."""
    found = embed(run, source, views)
    features_VD = found.features_VWD.float().mean(dim=1).cpu().numpy()
    decoded_V = found.decoded_V.cpu().numpy()
    features_VD[~decoded_V] = np.nan
    return {
        "path": np.array(source.texts("path")),
        "source": np.full(len(source), source.name),
        "label": source.labels,
        "class_name": np.array(source.texts("class_name")),
        "decoded": decoded_V,
        "features": features_VD,
    }


def write_npz(path: Path, columns: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """Write the columns as arrays, and `metadata` as JSON in the array `facts`."""
    arrays: dict[str, Any] = {**columns, "facts": np.array(json.dumps(metadata))}
    np.savez_compressed(path, **arrays)


def write_parquet(path: Path, columns: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """Write a table, features as lists of one length, and `metadata` as JSON in the schema's metadata."""
    features_VD = columns["features"]
    flat = pa.array(features_VD.ravel(), pa.float32())
    arrays = {name: pa.array(values) for name, values in columns.items() if name != "features"}
    arrays["features"] = pa.FixedSizeListArray.from_arrays(flat, features_VD.shape[1])
    table = pa.table(arrays).replace_schema_metadata({"ppma": json.dumps(metadata)})
    parquet.write_table(table, path)


WRITERS: dict[str, Callable[[Path, dict[str, np.ndarray], dict[str, Any]], None]] = {
    ".npz": write_npz,
    ".parquet": write_parquet,
}


def main(argv: list[str]) -> int:
    """Run `ppma features`."""
    options = parse(FeatureOptions, argv, prog="ppma features")
    data = catalog.find(options.data)
    sources = [data.manifest(name, options.split) for name in options.dataset]
    run = options.open(options.checkpoint)
    parts = [columns_of(run, source, options.views) for source in sources]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    metadata = {
        "checkpoint": str(run.weights),
        "weights_sha256": file_sha256(run.weights),
        "manifests": {f"{source.name}.{options.split}": source.sha256 for source in sources},
        "views": f"{options.windows} windows x {options.crops} crops",
        "frames": run.loader.frames,
        "size": run.loader.size,
    }
    with atomic_path(options.out) as temp_path:
        WRITERS[options.out.suffix](temp_path, columns, metadata)
    bad = int((~columns["decoded"]).sum())
    log.info(
        "%s: %d clips of %s, %d numbers each%s", options.out, len(columns["label"]), ", ".join(options.dataset),
        columns["features"].shape[1], f"; {bad} could not be decoded" if bad else "",
    )  # fmt: skip
    return DONE
