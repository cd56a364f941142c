"""`ppma features`: embeddings of clips as a file that numpy, pandas or anything else reads.

checkpoint, data sets  ->  mean over tokens and views  ->  FILE.npz or FILE.parquet, a row a clip, with hashes of what they came from
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ppma.common.files import file_sha256
from ppma.config.command import DONE, parse
from ppma.config.errors import InputError
from ppma.config.run import EvaluationConfig, Precision
from ppma.inference.open_run import Look, open_run
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write the embedding of every clip: the encoder's tokens averaged over the clip and over its views, before the final norm.

    For example: ppma features --checkpoint runs/align_nohuman_synthetic --dataset ucf101 --out ucf101.parquet
    """

    checkpoint: Path
    """Run folder of any phase, or one of its checkpoint folders."""
    dataset: tuple[str, ...]
    """Names in the data catalog."""
    out: Path
    """FILE.npz (arrays path, source, label, class_name, decoded, features) or FILE.parquet (columns of these names)."""
    split: str = "val"
    """Split of each data set."""
    windows: int = 1
    """Temporal windows of a video: one is its middle, two are its start and its end."""
    crops: int = 1
    """Squares along the long side of a frame, 1 or 3."""
    batch_clips: int = 16
    """Videos at a time; changes no result."""
    on_bad: Literal["fail", "mark"] = "fail"
    """What an undecodable video does: stop with its name, or leave NaN in its row."""
    data: Path | None = None
    """The data catalog; none: $PPMA_DATA, else ./data.toml."""
    workers: int = 2
    """Loader processes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one."""
    precision: Precision = "auto"
    """auto: bf16 products on a GPU, float32 on a CPU."""

    def __post_init__(self) -> None:
        if self.out.suffix not in WRITERS:
            raise InputError(f"--out is {self.out}; give a file that ends in {' or '.join(WRITERS)}")
        if not self.out.absolute().parent.is_dir():
            raise InputError(f"--out {self.out}: there is no folder {self.out.absolute().parent}; make it first")
        if not self.dataset:
            raise InputError("--dataset names no data set; give at least one")

    @property
    def views(self) -> EvaluationConfig:
        """As an evaluation has them."""
        return EvaluationConfig(
            split=self.split, windows=self.windows, crops=self.crops, batch_clips=self.batch_clips, on_bad=self.on_bad
        )


def embed(look: Look, source: Manifest, views: EvaluationConfig) -> dict[str, np.ndarray]:
    """The columns of one source; `features` is float32 (V, D), NaN where a clip could not be decoded."""
    found = look.embed(source, views)
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


def write_npz(path: Path, columns: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Arrays by name, and `facts` as JSON in an array of its own."""
    with path.open("wb") as file:
        arrays: dict[str, Any] = {**columns, "facts": np.array(json.dumps(facts))}
        np.savez_compressed(file, **arrays)


def write_parquet(path: Path, columns: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Columns by name, features as lists of one length, and `facts` as JSON in the schema's metadata."""
    features_VD = columns["features"]
    flat = pa.array(features_VD.ravel(), pa.float32())
    arrays = {name: pa.array(values) for name, values in columns.items() if name != "features"}
    arrays["features"] = pa.FixedSizeListArray.from_arrays(flat, features_VD.shape[1])
    table = pa.table(arrays).replace_schema_metadata({"ppma": json.dumps(facts)})
    parquet.write_table(table, path)


WRITERS: dict[str, Callable[[Path, dict[str, np.ndarray], dict[str, Any]], None]] = {
    ".npz": write_npz,
    ".parquet": write_parquet,
}


def write(path: Path, columns: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """By the suffix; the file appears complete or not at all."""
    handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    os.close(handle)
    beside = Path(name)
    try:
        WRITERS[path.suffix](beside, columns, facts)
        beside.chmod(0o644)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def main(argv: list[str]) -> int:
    """The command."""
    options = parse(Options, argv, prog="ppma features")
    data = catalog.find(options.data)
    sources = [data.manifest(name, options.split) for name in options.dataset]
    look = open_run(options.checkpoint, device=options.device, precision=options.precision, workers=options.workers)
    parts = [embed(look, source, options.views) for source in sources]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    facts = {
        "checkpoint": str(look.weights),
        "weights_sha256": file_sha256(look.weights),
        "manifests": {f"{source.name}.{options.split}": source.sha256 for source in sources},
        "views": f"{options.windows} windows x {options.crops} crops",
        "frames": look.loader.frames,
        "size": look.loader.size,
    }
    write(options.out, columns, facts)
    bad = int((~columns["decoded"]).sum())
    log.info(
        "%s: %d clips of %s, %d numbers each%s", options.out, len(columns["label"]), ", ".join(options.dataset),
        columns["features"].shape[1], f"; {bad} could not be decoded" if bad else "",
    )  # fmt: skip
    return DONE
