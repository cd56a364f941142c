"""Tools that users choose by name: their files and license, and how to construct them.

    table of tools, names  ->  find_files(): weights are there, the user's files are right  ->  Tool.load()

Legend: H height, W width of a frame in pixels, N boxes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from ppma.privacy.detectors import weights
from ppma.privacy.detectors.user_models import Model, choose


class Detector(Protocol):
    """Detects people, or their faces, in one frame."""

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """Return boxes_N5, float32 (x0, y0, x1, y1 in pixels, score), of an RGB uint8 frame."""


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A tool, its files and its license."""

    make: Callable[..., Any]
    """Constructor; its first arguments are the dict of weight files by name, or the paths of the user's models."""
    license: str
    weights: str = ""
    """Key of `weights.WEIGHTS`, or empty."""
    user_models: tuple[str, ...] = ()
    """Keys of `user_models.USER_MODELS`."""
    finds: Literal["person", "face", ""] = ""
    """Of a detector."""

    def load(self, folder: Path, models: Sequence[Model] = (), *more: Any) -> Any:
        """Construct the tool.

        Args:
            folder: The weights folder.
            models: The files that users provide; those in the folder if empty.
            more: Further arguments of the constructor.

        Raises:
            InputError: A file is missing, has another hash, or is none of this tool.
        """
        if self.user_models:
            paths = {model.name: model.path for model in models or choose(self.user_models, (), folder)}
            return self.make(*(paths[name] for name in self.user_models), *more)
        return self.make(weights.find(self.weights, folder), *more) if self.weights else self.make(*more)


def find_files(tools: Sequence[Tool], folder: Path, given: Iterable[str] = ()) -> tuple[Model, ...]:
    """Check that all files of these tools are in the folder, or `given`; return those that users provide. See `choose`."""
    models = choose((name for tool in tools for name in tool.user_models), given, folder)
    for key in dict.fromkeys(tool.weights for tool in tools if tool.weights):
        weights.find(key, folder)
    return models
