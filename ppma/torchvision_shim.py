"""timm, importable beside a CPU-only torch. Every import of timm in the project goes through this module.

timm imports torchvision, whose wheel links CUDA libraries. Beside a CPU build of torch its import dies with "operator
torchvision::nms does not exist": the fake kernels that it registers for nms name a schema which only its compiled
library defines. With the two schemas defined first, transforms and model creation work; only torchvision's own
compiled operators do not, and they say so when called. Where torchvision imports by itself nothing is touched, and a
failure of any other kind is raised as it is.
"""

import importlib
import sys

import torch

_SCHEMAS: list[torch.library.Library] = []  # a Library withdraws its operators when it is collected


def ensure_torchvision() -> bool:
    """Import torchvision, defining its missing schemas if they alone are in the way. True when they were needed."""
    try:
        importlib.import_module("torchvision")
        return bool(_SCHEMAS)
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # what the failed import left behind
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _SCHEMAS.append(library)
    importlib.import_module("torchvision")
    return True


ensure_torchvision()

import timm  # noqa: E402
import timm.layers  # noqa: E402
import timm.models  # noqa: E402

__all__ = ["ensure_torchvision", "timm"]
