"""ppma: pre-train action-recognition models on video without showing them a single real human.

    import ppma

    model = ppma.load_model("runs/finetune-ucf101")
    model.features("clip.mp4")
    model.predict("clip.mp4").top

A name is imported when it is first used. Every loader worker imports the package, so this file itself imports nothing.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ppma.config.errors import InputError as InputError
    from ppma.inference.model import Model as Model
    from ppma.inference.model import Prediction as Prediction
    from ppma.inference.model import VideoFeatures as VideoFeatures
    from ppma.inference.model import load_model as load_model
    from ppma.inference.videos import find_videos as find_videos

_HOMES = {
    "InputError": "ppma.config.errors",
    "Model": "ppma.inference.model",
    "Prediction": "ppma.inference.model",
    "VideoFeatures": "ppma.inference.model",
    "load_model": "ppma.inference.model",
    "find_videos": "ppma.inference.videos",
}
"""The module of each public name."""

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'ppma' has no attribute {name!r}")
    import importlib

    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
