"""Clips as a run sees them: chosen rows, plain views, embeddings, training views, reconstructions and attention.

a source                     ->  subset, spread_rows  ->  plain_views: frames of the middle window, or embed: features of every clip
the run's loader and seed    ->  clips as the model saw them in training, erased and mixed
a stage 1 model              ->  originals, their visible patches, reconstructions
the encoder                  ->  how much attention each place receives in the last block, drawn over the frames
"""

from collections.abc import Iterable
from dataclasses import replace

import cv2
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ppma.config.loader import LoaderConfig
from ppma.config.model import PIXEL_MEAN, PIXEL_STD, MixConfig, ViTConfig
from ppma.config.run import EvaluationConfig
from ppma.kernels.erase import erase_
from ppma.loaders.batch import ClipBatch
from ppma.loaders.sampler import EvaluationSampler, TrainingSampler
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.stream import ClipStream
from ppma.models import pictures
from ppma.models.mae import MaskedAutoencoder
from ppma.models.mixing import draw_mix, mix
from ppma.models.vit import Block, Encoder
from ppma.training.run import FinishedRun
from ppma.transfer.features import Features, compute_features, evaluation_loader

QUERIES = 256
"""Places whose attention is computed at a time: the scores of all 1,568 tokens would take 118 MB for 12 heads in float32."""


def subset(source: Manifest, rows: Iterable[int]) -> Manifest:
    """Return a manifest of some rows of a source; packed clips are read from their videos."""
    return Manifest.from_clips([source.clip(int(row)) for row in rows], root=source.root, name=source.name)


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """Return at most `most` numbers from 0 to `count` - 1, ends included."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(int))


def spread_rows(source: Manifest, most: int) -> list[int]:
    """Return at most `most` rows, equally many of each class, evenly spaced in it; they depend on the manifest only."""
    if len(source) <= most:
        return list(range(len(source)))
    by_class = [np.flatnonzero(source.labels == label) for label in np.unique(source.labels)]
    each = max(1, most // len(by_class))
    return sorted(int(row) for rows in by_class for row in rows[evenly_spaced(len(rows), each)])[:most]


def plain_views(source: Manifest, loader: LoaderConfig) -> np.ndarray:
    """Return (N, T, H, W, 3) uint8: middle window and center square of every clip; black where one cannot be decoded."""
    plain = EvaluationConfig(windows=1, crops=1)
    config = replace(evaluation_loader(loader, plain), workers=min(loader.workers, len(source)))
    sampler = EvaluationSampler(source, config, batch_clips=min(8, len(source)), windows=1, crops=1)
    with ClipStream(sampler, [source], config, device=torch.device("cpu"), on_bad="mark") as stream:
        return np.concatenate([batch.frames_BTHWC.numpy() for batch in stream])


def middle_frames(source: Manifest, loader: LoaderConfig) -> list[np.ndarray]:
    """Return one frame_HWC of each clip."""
    clips = plain_views(source, loader)
    return list(clips[:, clips.shape[1] // 2])


def embed(run: FinishedRun, source: Manifest, views: EvaluationConfig) -> Features:
    """Return the pooled tokens of each view of every clip, before the final norm."""
    return compute_features(run.model, source, run.loader, views, ranks=run.ranks, compute=run.compute)


def as_trained(run: FinishedRun, source: Manifest, rows: int) -> np.ndarray:
    """Return (rows, T, H, W, 3) uint8 views of a source, drawn as in training; for classifiers also erased and mixed."""
    config, labeled = run.config, run.config.phase == "classify"
    mixing = config.classifier.mix if labeled and config.classifier.mix.mixes else None
    unit = mixing.group if mixing else 1
    loader = replace(config.loader, workers=1, implementation="auto", read_ahead_batches=0)
    clips = min(len(source), -(-max(rows, unit) // loader.views))
    if clips * loader.views % unit:
        clips, mixing = max(1, rows // loader.views), None
    sampler = TrainingSampler([source], loader, seed=config.seed, batch_clips=clips, epoch_clips=clips)
    with ClipStream(sampler, [source], loader, device=torch.device("cpu"), epochs=1) as stream:
        batch = next(iter(stream))
    frames_BTHWC = _erased_and_mixed(run, batch, mixing) if labeled else batch.frames_BTHWC
    return frames_BTHWC[:rows].numpy()


def _erased_and_mixed(run: FinishedRun, batch: ClipBatch, mixing: MixConfig | None) -> Tensor:
    """Return the pixels of a batch after erasing and mixing, before the first layer."""
    vit, key_B = run.config.vit, batch.key_B
    patches_BNP = run.model.cpu().patches(batch.frames_BTHWC, dtype=torch.float32)
    if run.config.loader.erase_probability > 0:
        erase_(patches_BNP, batch.erase_B4, key_B, grid=vit.grid, patch=vit.patch)
    if mixing is not None:
        patches_BNP = mix(patches_BNP, draw_mix(key_B, mixing, vit.size, vit.size), mixing.group, vit)
    run.model.to(run.ranks.device)
    return pixels(patches_BNP, vit)


def pixels(patches_BNP: Tensor, vit: ViTConfig) -> Tensor:
    """Return uint8 frames_BTHWC of normalized patches, whose values are ordered (c, t, h, w)."""
    (nt, nh, nw), (t, h, w) = vit.grid, vit.patch
    frames_BTHWC = rearrange(
        patches_BNP, "B (nt nh nw) (c t h w) -> B (nt t) (nh h) (nw w) c", nt=nt, nh=nh, nw=nw, t=t, h=h, w=w
    )
    colors = frames_BTHWC * torch.tensor(PIXEL_STD) + torch.tensor(PIXEL_MEAN)
    return (colors.clamp(0, 1) * 255).round().to(torch.uint8)


def reconstructed(model: MaskedAutoencoder, clips_BTHWC: np.ndarray) -> tuple[str, np.ndarray]:
    """Return (caption, picture) of clips as a stage 1 model fills them in; three rows per clip."""
    frames_BTHWC = torch.from_numpy(clips_BTHWC).to(model.position_ND.device)
    keys_B = torch.arange(len(frames_BTHWC), device=frames_BTHWC.device)
    return pictures.reconstructions(model, frames_BTHWC, keys_B, clips=len(frames_BTHWC))


@torch.inference_mode()
def attention_received(model: Encoder, frames_BTHWC: Tensor) -> Tensor:
    """Return (B, nt, nh, nw) float32: the attention that each place receives in the last block.

    It is averaged over heads and over all queries; the mean over the places is 1, so that 2 means twice the average.
    """
    tokens_BND = model.embed(model.patches(frames_BTHWC))
    *blocks, last = model.blocks
    for block in blocks:
        tokens_BND = block(tokens_BND)
    assert isinstance(last, Block)
    packed = last.attn.qkv(last.norm1(tokens_BND)).float().unflatten(2, (3, last.attn.heads, -1))
    query_BHNC, key_BHNC, _ = packed.permute(2, 0, 3, 1, 4)
    total_BN = torch.zeros(tokens_BND.shape[:2], device=tokens_BND.device)
    for part in query_BHNC.split(QUERIES, dim=2):
        scores = part @ key_BHNC.transpose(2, 3) * key_BHNC.shape[-1] ** -0.5
        total_BN += scores.softmax(dim=-1).mean(dim=1).sum(dim=1)
    return total_BN.unflatten(1, model.config.grid)


def attended(model: Encoder, clips_BTHWC: np.ndarray) -> list[np.ndarray]:
    """Return two rows per clip: its frames, and the same in gray under a heat map of the attention received."""
    rows = []
    for frames_THWC in clips_BTHWC:
        frames_BTHWC = torch.from_numpy(frames_THWC[None]).to(model.position_ND.device)
        heat = attention_received(model, frames_BTHWC)[0].cpu().numpy()
        rows += [frames_THWC, overlay(frames_THWC, heat)]
    return rows


def overlay(frames_THWC: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return gray frames under a color map of `heat`, (nt, nh, nw), scaled from its minimum to its maximum."""
    T, H, W, _ = frames_THWC.shape
    scaled = (255 * (heat - heat.min()) / max(float(np.ptp(heat)), 1e-9)).astype(np.uint8)
    out = []
    for t, frame_HWC in enumerate(frames_THWC):
        coarse = scaled[t * len(scaled) // T]
        colors = cv2.applyColorMap(cv2.resize(coarse, (W, H), interpolation=cv2.INTER_LINEAR), cv2.COLORMAP_VIRIDIS)
        gray = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
        out.append((0.45 * gray + 0.55 * cv2.cvtColor(colors, cv2.COLOR_BGR2RGB)).astype(np.uint8))
    return np.stack(out)
