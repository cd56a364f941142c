"""ppma: pre-train action-recognition models on videos whose humans were removed, and on virtual humans.

    import ppma

    model = ppma.load_model("runs/finetune-ucf101")
    model.features("clip.mp4")
    model.predict("clip.mp4").top

A name is imported when it is first used. Every loader worker imports the package, so this file itself imports nothing.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ppma.config.errors import InputError
    from ppma.inference.model import Model, Prediction, VideoFeatures, load_model
    from ppma.inference.videos import find_videos
    from ppma.loaders.batch import ClipBatch
    from ppma.loaders.clip_loader import ClipLoader
    from ppma.phases import run_recipe as train
    from ppma.privacy.audit.command import audit
    from ppma.privacy.removal.command import remove_humans
    from ppma.study.work import run_study
    from ppma.transfer.evaluate import evaluate_run as evaluate

_HOMES = {
    "ClipBatch": ("ppma.loaders.batch", "ClipBatch"),
    "ClipLoader": ("ppma.loaders.clip_loader", "ClipLoader"),
    "InputError": ("ppma.config.errors", "InputError"),
    "Model": ("ppma.inference.model", "Model"),
    "Prediction": ("ppma.inference.model", "Prediction"),
    "VideoFeatures": ("ppma.inference.model", "VideoFeatures"),
    "audit": ("ppma.privacy.audit.command", "audit"),
    "evaluate": ("ppma.transfer.evaluate", "evaluate_run"),
    "find_videos": ("ppma.inference.videos", "find_videos"),
    "load_model": ("ppma.inference.model", "load_model"),
    "remove_humans": ("ppma.privacy.removal.command", "remove_humans"),
    "run_study": ("ppma.study.work", "run_study"),
    "train": ("ppma.phases", "run_recipe"),
}
"""Module and name there of each public name."""

__all__ = [
    "ClipBatch",
    "ClipLoader",
    "InputError",
    "Model",
    "Prediction",
    "VideoFeatures",
    "__version__",
    "audit",
    "evaluate",
    "find_videos",
    "load_model",
    "remove_humans",
    "run_study",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'ppma' has no attribute {name!r}")
    import importlib

    module, attribute = _HOMES[name]
    found = getattr(importlib.import_module(module), attribute)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
