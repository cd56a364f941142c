"""What `ppma inspect` shows of single clips, as rows of frames.

the run's loader and draws  ->  clips as the model saw them, erased and mixed where it does that
a stage 1 checkpoint        ->  originals, what was visible, reconstructions
the encoder                 ->  how much attention each place gets in the last block, laid over the frames
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ppma.config.loader import LoaderConfig
from ppma.config.model import PIXEL_MEAN, PIXEL_STD, MAEConfig, MixConfig, ViTConfig
from ppma.inference.open_run import Look, plain_views
from ppma.kernels.erase import erase_
from ppma.loaders.batch import ClipBatch
from ppma.loaders.sampler import TrainingSampler
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.stream import ClipStream
from ppma.models import pictures
from ppma.models.mae import MaskedAutoencoder
from ppma.models.mixing import draw_mix, mix
from ppma.models.vit import Block, Encoder
from ppma.training import checkpoint

QUERIES = 256
"""Places whose attention is worked out at a time: all of them would take 120 MB a head for 1,568 tokens in float32."""


def training_loader(saved: dict[str, Any], workers: int) -> LoaderConfig:
    """The loader of a run's config.json, as it was in training."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in saved["loader"].items()
    }
    return replace(LoaderConfig(**values), workers=workers, implementation="auto", read_ahead_batches=0)


def as_trained(look: Look, source: Manifest, rows: int) -> np.ndarray:
    """(rows, T, H, W, 3) uint8: views of a source drawn as in training; classifiers get them erased and mixed."""
    mixing = _mixing(look.saved)
    unit = mixing.group if mixing else 1
    loader = training_loader(look.saved, workers=1)
    clips = min(len(source), -(-max(rows, unit) // loader.views))
    if clips * loader.views % unit:
        clips, mixing = max(1, rows // loader.views), None
    sampler = TrainingSampler([source], loader, seed=look.saved["seed"], batch_clips=clips, epoch_clips=clips)
    with ClipStream(sampler, [source], loader, device=torch.device("cpu"), epochs=1) as stream:
        batch = next(iter(stream))
    frames = _erased_and_mixed(look, batch, mixing) if look.saved["phase"] == "classify" else batch.frames_BTHWC
    return frames[:rows].numpy()


def _mixing(saved: dict[str, Any]) -> MixConfig | None:
    mixing = MixConfig(**saved["classifier"]["mix"])
    return mixing if saved["phase"] == "classify" and mixing.mixes else None


def _erased_and_mixed(look: Look, batch: ClipBatch, mixing: MixConfig | None) -> Tensor:
    """What the model makes of a batch before its first layer, back in pixels."""
    vit, key_B = look.model.config, batch.key_B
    patches_BNP = look.model.cpu().patches(batch.frames_BTHWC, dtype=torch.float32)
    if look.saved["loader"]["erase_probability"] > 0:
        erase_(patches_BNP, batch.erase_B4, key_B, grid=vit.grid, patch=vit.patch)
    if mixing is not None:
        patches_BNP = mix(patches_BNP, draw_mix(key_B, mixing, vit.size, vit.size), mixing.group, vit)
    pixels = _pixels(patches_BNP, vit)
    look.model.to(look.ranks.device)
    return pixels


def _pixels(patches_BNP: Tensor, vit: ViTConfig) -> Tensor:
    """uint8 frames_BTHWC of normalised patches, whose values are ordered (c, t, h, w)."""
    (nt, nh, nw), (t, h, w) = vit.grid, vit.patch
    frames_BTHWC = rearrange(
        patches_BNP, "B (nt nh nw) (c t h w) -> B (nt t) (nh h) (nw w) c", nt=nt, nh=nh, nw=nw, t=t, h=h, w=w
    )
    colours = frames_BTHWC * torch.tensor(PIXEL_STD) + torch.tensor(PIXEL_MEAN)
    return (colours.clamp(0, 1) * 255).round().to(torch.uint8)


def reconstructed(look: Look, source: Manifest) -> tuple[str, np.ndarray]:
    """(caption, sheet) of the clips of a source, by a stage 1 run; three rows a clip."""
    model = MaskedAutoencoder(look.model.config, MAEConfig(**look.saved["mae"]))
    checkpoint.load_model(model, look.weights)
    frames_BTHWC = torch.from_numpy(plain_views(source, look.loader))
    return pictures.reconstructions(model, frames_BTHWC, torch.arange(len(frames_BTHWC)), clips=len(frames_BTHWC))


@torch.inference_mode()
def attention_received(model: Encoder, frames_BTHWC: Tensor) -> Tensor:
    """(B, nt, nh, nw) float32: the share of attention that each place gets in the last block, averaged over heads and over all who ask.

    The mean over the places is 1, so that 2 means twice its share.
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


def attended(look: Look, source: Manifest) -> list[np.ndarray]:
    """Two rows a clip: its frames, and the same in grey under the attention that each place gets."""
    rows = []
    for frames_THWC in plain_views(source, look.loader):
        frames_BTHWC = torch.from_numpy(frames_THWC[None]).to(look.ranks.device)
        heat = attention_received(look.model, frames_BTHWC)[0].cpu().numpy()
        rows += [frames_THWC, overlay(frames_THWC, heat)]
    return rows


def overlay(frames_THWC: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Grey frames under a map of colours; `heat` is (nt, nh, nw), its scale that of the clip."""
    T, H, W, _ = frames_THWC.shape
    scaled = (255 * (heat - heat.min()) / max(float(np.ptp(heat)), 1e-9)).astype(np.uint8)
    out = []
    for t, frame_HWC in enumerate(frames_THWC):
        coarse = scaled[t * len(scaled) // T]
        colours = cv2.applyColorMap(cv2.resize(coarse, (W, H), interpolation=cv2.INTER_LINEAR), cv2.COLORMAP_VIRIDIS)
        grey = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
        out.append((0.45 * grey + 0.55 * cv2.cvtColor(colours, cv2.COLOR_BGR2RGB)).astype(np.uint8))
    return np.stack(out)


def middle_frames(source: Manifest, loader: LoaderConfig) -> Sequence[np.ndarray]:
    """One frame_HWC of each clip."""
    clips = plain_views(source, loader)
    return list(clips[:, clips.shape[1] // 2])
