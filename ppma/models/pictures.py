"""Pictures for TensorBoard: the model's input, and reconstructions of stage 1.

    clips (B, T, H, W, 3)  ->  one RGB picture: a row per clip, its frames from left to right

Reconstructions take brightness and contrast of masked patches from the visible ones, unless their caption says
otherwise.
"""

import numpy as np
import torch
from torch import Tensor

from ppma.models.mae import MaskedAutoencoder

FRAMES_SHOWN = 8
GAP = 2
"""White pixels between frames."""


def sheet(rows: list[np.ndarray]) -> np.ndarray:
    """Return a picture with a row for each uint8 (T, H, W, 3) clip, of at most FRAMES_SHOWN frames."""
    bands = []
    for frames_THWC in rows:
        chosen = np.linspace(0, len(frames_THWC) - 1, min(FRAMES_SHOWN, len(frames_THWC))).astype(int)
        padded = np.pad(frames_THWC[chosen], ((0, 0), (GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)
        bands.append(np.concatenate(list(padded), axis=1))
    return np.concatenate(bands, axis=0)


def clips_of_source(frames_BTHWC: Tensor, source_B: Tensor, source: int, *, clips: int = 4) -> np.ndarray:
    """Return a sheet of the first `clips` clips in a batch that come from a source."""
    rows = torch.nonzero(source_B == source)[:clips, 0]
    return sheet(list(frames_BTHWC[rows].cpu().numpy()))


def reconstructions(
    model: MaskedAutoencoder, frames_BTHWC: Tensor, key_B: Tensor, *, clips: int = 2
) -> tuple[str, np.ndarray]:
    """Return (caption, sheet) with rows for each clip: frames, visible patches, reconstruction."""
    frames_BTHWC, key_B = frames_BTHWC[:clips], key_B[:clips]
    was_training = model.training
    model.eval()
    result = model.reconstruct(frames_BTHWC, key_B)
    model.train(was_training)
    rows = []
    for clip in range(len(frames_BTHWC)):
        rows.append(frames_BTHWC[clip].cpu().numpy())
        for picture_BTHWC in (result.masked_BTHWC, result.prediction_BTHWC):
            rows.append((picture_BTHWC[clip].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
    caption = "original, visible, reconstructed"
    return caption + (" (with the statistics of masked patches)" if result.uses_hidden_statistics else ""), sheet(rows)
