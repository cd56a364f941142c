"""Decide which frames of a clip a packed store keeps, and say what windows lose by it.

A window may begin at any moment, so every frame of a video can be asked for. But a window shows only 16 of its frames,
evenly spaced: of a clip thinned evenly, to the fewest frames that leave 16 in every window, each window still has 16
different ones, at nearly the same spacing. What is lost is the choice between neighbors.

    81 frames in 2.7 s at 30 per second  ->  every fifth or sixth (81 / 16 = 5.06) is kept  ->  16 in any 2.7 s
"""

import numpy as np

from ppma.config.loader import LoaderConfig
from ppma.config.recipes import RECIPES, published_rate
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.store import PackParameters, pictures_needed

_ROUNDING = 1e-6
"""Frames by which a number of them may be off, as a product of floats."""


def _fewest_in_window(manifest: Manifest, config: LoaderConfig) -> np.ndarray:
    """Return int (rows,), the fewest frames that any window of a row holds; a short clip is one window."""
    seconds = config.window_seconds * (config.assumed_fps / manifest.fps if config.assumed_fps else 1.0)
    held = np.minimum(seconds, manifest.ends - manifest.starts) * manifest.fps
    return np.maximum(np.floor(held + _ROUNDING), 1).astype(int)


def kept_rates(manifest: Manifest, parameters: PackParameters) -> np.ndarray:
    """Return float (rows,), the frames per second to keep of each row; infinity for all."""
    if parameters.window is None:
        return np.full(len(manifest), np.inf if parameters.fps is None else parameters.fps)
    frames, seconds = parameters.window
    held = _fewest_in_window(manifest, LoaderConfig(window_seconds=seconds))
    return np.where(held > frames, frames * manifest.fps / held, np.inf)


def kept_frames(manifest: Manifest, rates: np.ndarray) -> np.ndarray:
    """Return float (rows,), roughly how many frames each row will give."""
    seconds = np.clip(manifest.ends - manifest.starts, 0, manifest.durations)
    return np.minimum(manifest.frames * seconds / manifest.durations, seconds * rates + 1)


def losses(manifest: Manifest, rates: np.ndarray, frames: int) -> str:
    """Return how many different frames windows have in the store, of all recipes and of runs with twice the --frames."""
    names: dict[LoaderConfig, list[str]] = {}
    for name, recipe in RECIPES.items():
        own = recipe().loader
        names.setdefault(LoaderConfig(frames=own.frames, window_seconds=own.window_seconds), []).append(name)
    names.setdefault(published_rate(LoaderConfig(), (manifest.name,)), ["--published"])
    names.setdefault(LoaderConfig(frames=2 * frames), [f"--frames {2 * frames}"])
    found = []
    for loader, (first, *more) in names.items():
        others = f" and {len(more)} more recipes" if more else ""
        found.append(f"{_different(manifest, rates, loader)} for {first}{others}")
    return ", ".join(found)


def _different(manifest: Manifest, rates: np.ndarray, loader: LoaderConfig) -> str:
    """Return the mean number of different frames of a window, in the store and in the videos."""
    held = _fewest_in_window(manifest, loader)
    kept = np.floor(held * np.minimum(1, rates / manifest.fps) + _ROUNDING)
    store, videos = (np.minimum(loader.frames, found).mean() for found in (kept, held))
    return f"{store:.3g} of {videos:.3g}"


def decoded_per_frame(manifest: Manifest, rates: np.ndarray, parameters: PackParameters) -> float:
    """Return how many pictures a decoder decodes for each that a window of the recipes shows, in a typical clip."""
    loader = LoaderConfig(frames=parameters.window[0] if parameters.window else LoaderConfig.frames)
    kept = int(np.median(_fewest_in_window(manifest, loader) * np.minimum(1, rates / manifest.fps)) + _ROUNDING)
    chosen = np.unique(np.linspace(0, max(kept, 1) - 1, loader.frames).astype(int))
    decoded = [len(pictures_needed((first + chosen).tolist(), parameters.gop)) for first in range(parameters.gop)]
    return float(np.mean(decoded)) / len(chosen)
