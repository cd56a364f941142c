"""All tokens of every clip behind a frozen encoder, cached on disk: the training data of an attentive probe.

manifest, encoder  ->  tokens averaged over cells, each normalized  ->  float16 (V, N, D) in one memory-mapped file  ->  rows of a batch

The file is in the folder of features, with the same kind of name and lock. A normalized token has no value above sqrt(D), so float16 holds
it to 1 part in 2048. Memory holds a batch and what the kernel caches of the file.
"""

import hashlib
import logging
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ppma.config.errors import InputError
from ppma.config.run import RunConfig
from ppma.loaders.prefetch import upload
from ppma.loaders.sources.manifest import Manifest
from ppma.models.attentive import cells_of, normed_cells
from ppma.models.classify import Classifier
from ppma.models.vit import TRUNK
from ppma.training import distributed
from ppma.training.compute import Compute
from ppma.training.distributed import Ranks
from ppma.transfer.features import PLAIN_VIEWS, address, encoded, folder_of, lock

log = logging.getLogger(__name__)


class TokenRows:
    """The mapped file: row numbers on the host give (B, N, D) on the device."""

    device = torch.device("cpu")

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype) -> None:
        self._tokens_VND = np.load(path, mmap_mode="r")
        self._to, self._dtype = device, dtype

    def __len__(self) -> int:
        return len(self._tokens_VND)

    def __getitem__(self, row_B: Tensor) -> Tensor:
        return upload(torch.from_numpy(self._tokens_VND[row_B.numpy()]), self._to).to(self._dtype)


def _check_room(folder: Path, size: int, name: str) -> None:
    """Raise InputError where `size` bytes would fill the disk."""
    present = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(present).free
    if size > free:
        raise InputError(
            f"the tokens of {name} take {size / 1e9:.3g} GB, {folder} has {free / 1e9:.3g} GB free; average them over cells with "
            "--attentive.cells 2 2 2, or choose another disk with --features DIR"
        )


@torch.inference_mode()
def _fill(
    path: Path, shape: tuple[int, int, int], model: Classifier, manifest: Manifest, config: RunConfig, ranks: Ranks,
    compute: Compute,
) -> None:  # fmt: skip
    """Write the rows of this rank's clips. By plain writes: ranks on several nodes cannot share the pages of a mapping."""
    if ranks.is_main:
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    distributed.barrier(ranks)
    start = np.load(path, mmap_mode="r").offset
    row_bytes = shape[1] * shape[2] * np.dtype(np.float16).itemsize
    parts = encoded(
        model, manifest, config.loader, PLAIN_VIEWS, ranks=ranks, compute=compute, hang_seconds=config.hang_seconds
    )
    with path.open("r+b", buffering=0) as file:
        for part in parts:
            kept_CND = normed_cells(part.tokens_BND.float(), model.config, config.attentive.cells).half().cpu().numpy()
            for row, kept_ND in zip(part.ids_C.tolist(), kept_CND):
                file.seek(start + row * row_bytes)
                file.write(kept_ND.tobytes())
    distributed.barrier(ranks)


def cached_tokens(
    model: Classifier, manifest: Manifest, config: RunConfig, *, ranks: Ranks, compute: Compute
) -> TokenRows:
    """Return the tokens of plain views of every clip, from the cache or computed now.

    Raises:
        InputError: The disk has no room for them, or the cells do not divide the encoder's grid.
    """
    cells = config.attentive.cells
    tokens = cells_of(torch.empty(1, model.config.tokens, 1, device="meta"), model.config, cells).shape[1]
    shape = (len(manifest), tokens, model.config.width)
    trunk = address(model, manifest, config.loader, PLAIN_VIEWS, compute, before=TRUNK)
    key = hashlib.sha256(f"{trunk} {cells}".encode()).hexdigest()
    path = folder_of(config) / f"{manifest.name}-train-tokens-{key[:24]}.npy"
    with lock(path, ranks) as exists:
        if exists:
            log.info("tokens of %s: read from %s", manifest.name, path)
        else:
            _check_room(path.parent, 2 * shape[0] * shape[1] * shape[2], manifest.name)
            temp_path = path.with_name(f".{path.name}.tmp")  # one name for all ranks; the lock keeps others away
            _fill(temp_path, shape, model, manifest, config, ranks, compute)
            if ranks.is_main:
                temp_path.replace(path)
    return TokenRows(path, ranks.device, compute.weight_dtype)
