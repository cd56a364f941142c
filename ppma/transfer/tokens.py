"""Every token of every clip behind a frozen encoder, kept on disk: what a probe that attends to tokens trains on.

manifest, encoder  ->  cells of tokens averaged, each normed  ->  float16 (V, N, D) in one mapped file  ->  rows of a batch

The file lies among the features and is addressed and held against other processes as they are. A normed token has no value above sqrt(D),
so float16 holds it to 1 part in 2048; memory holds the batch and what the kernel keeps of the file.
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
from ppma.transfer.features import PLAIN_VIEWS, address, alone, encoded, folder_of

log = logging.getLogger(__name__)


class TokenRows:
    """The mapped file: indexed with row numbers on the host it gives (B, N, D) on the device."""

    device = torch.device("cpu")

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype) -> None:
        self._tokens_VND = np.load(path, mmap_mode="r")
        self._to, self._dtype = device, dtype

    def __len__(self) -> int:
        return len(self._tokens_VND)

    def __getitem__(self, row_B: Tensor) -> Tensor:
        return upload(torch.from_numpy(self._tokens_VND[row_B.numpy()]), self._to).to(self._dtype)


def _check_room(folder: Path, size: int, name: str) -> None:
    """InputError where the file would fill the disk."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    if size > free:
        raise InputError(
            f"the tokens of {name} take {size / 1e9:.3g} GB, {folder} has {free / 1e9:.3g} GB free; average cells of them with "
            "--attentive.cells 2 2 2, or choose another disk with --features DIR"
        )


@torch.inference_mode()
def _fill(
    path: Path, shape: tuple[int, int, int], model: Classifier, manifest: Manifest, config: RunConfig, ranks: Ranks,
    compute: Compute,
) -> None:  # fmt: skip
    """Each rank writes the rows of its clips. Plain writes and no mapping, which ranks on several nodes could not share a page of."""
    if ranks.is_main:
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    distributed.barrier(ranks)
    start = np.load(path, mmap_mode="r").offset
    row_bytes = shape[1] * shape[2] * np.dtype(np.float16).itemsize
    was_training = model.training
    model.eval()
    with path.open("r+b", buffering=0) as file:
        for part in encoded(
            model, manifest, config.loader, PLAIN_VIEWS, ranks=ranks, compute=compute, hang_seconds=config.hang_seconds
        ):
            kept_CND = normed_cells(part.tokens_BND.float(), model.config, config.attentive.cells).half().cpu().numpy()
            for row, kept_ND in zip(part.ids_C.tolist(), kept_CND):
                file.seek(start + row * row_bytes)
                file.write(kept_ND.tobytes())
    model.train(was_training)
    distributed.barrier(ranks)


def cached_tokens(
    model: Classifier, manifest: Manifest, config: RunConfig, *, ranks: Ranks, compute: Compute
) -> TokenRows:
    """Tokens of plain views of every clip, from the file that an earlier run left, or computed now."""
    cells = config.attentive.cells
    tokens = cells_of(torch.empty(1, model.config.tokens, 1, device="meta"), model.config, cells).shape[1]
    shape = (len(manifest), tokens, model.config.width)
    trunk = address(model, manifest, config.loader, PLAIN_VIEWS, compute, before=TRUNK)
    key = hashlib.sha256(f"{trunk} {cells}".encode()).hexdigest()
    path = folder_of(config) / f"{manifest.name}-train-tokens-{key[:24]}.npy"
    with alone(path, ranks) as there:
        if not there:
            _check_room(path.parent, 2 * shape[0] * shape[1] * shape[2], manifest.name)
            beside = path.with_name(f".{path.name}.tmp")  # of this process alone, which holds the lock
            _fill(beside, shape, model, manifest, config, ranks, compute)
            if ranks.is_main:
                beside.replace(path)
        else:
            log.info("tokens of %s: read from %s", manifest.name, path)
    return TokenRows(path, ranks.device, compute.weights)
