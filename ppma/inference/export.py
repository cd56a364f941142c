"""`ppma export`: write an encoder for use elsewhere, in three formats that are run before they are kept.

    run folder  ->  model.safetensors (timm's names), export.json, lineage.json, README.md (model card),
                    config.json and state.json, so that the folder is a run, encoder.pt2 (torch.export), encoder.onnx

The exported graph takes uint8 frames, as a video decoder gives them, and normalizes them itself.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from ppma import __version__
from ppma.common.pages import render
from ppma.config.command import DONE, NewPath, parse
from ppma.config.errors import InputError
from ppma.config.model import PIXEL_MEAN, PIXEL_STD, ViTConfig
from ppma.models.classify import Classifier
from ppma.models.mae import MaskedAutoencoder
from ppma.training import checkpoint, lineage, seal
from ppma.training.lineage import Lineage
from ppma.training.run import FinishedRun, open_run

log = logging.getLogger(__name__)

INPUT, OUTPUT = "frames_BTHWC", "features_BD"
TOLERANCE = 1e-4
"""Largest difference between an exported form and the model, relative to the largest feature: float32 sums in another order."""


class FeatureExtractor(nn.Module):
    """The exported function: uint8 frames in, one vector per clip out (tokens pooled, final norm applied)."""

    def __init__(self, model: Classifier | MaskedAutoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames_BTHWC: Tensor) -> Tensor:
        """Return (B, D) features."""
        features = self.model.features(frames_BTHWC)
        return features.mean(dim=1) if features.ndim == 3 else features


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Export the encoder of a run: safetensors with a config and a model card, torch.export and ONNX, each tested by running it.

    For example: ppma export runs/align_nohuman_synthetic exported
    """

    checkpoint: tyro.conf.Positional[Path]
    """Run folder of any recipe that trains weights, or one of its checkpoint folders."""
    out: tyro.conf.Positional[NewPath]
    """New folder."""
    onnx: bool = True
    """Write encoder.onnx too; needs the extra [export]."""


def _check(form: str, found: Tensor, expected: Tensor) -> None:
    apart = float((found - expected).abs().max() / expected.abs().max())
    if not apart <= TOLERANCE:
        raise RuntimeError(
            f"the {form} form differs from the model by {apart:.2g} of the largest feature; it is not written"
        )
    log.info("%s: within %.1g of the model", form, apart)


def _example(vit: ViTConfig, clips: int) -> Tensor:
    generator = torch.Generator().manual_seed(clips)
    return torch.randint(0, 256, (clips, vit.frames, vit.size, vit.size, 3), dtype=torch.uint8, generator=generator)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters, which print their progress and warn about themselves."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def write_program(extractor: FeatureExtractor, vit: ViTConfig, path: Path) -> None:
    """Write a torch.export program with a free batch size; load it and compare it with the model at another batch size."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    with _quiet():
        program = torch.export.export(extractor, (_example(vit, 2),), dynamic_shapes=({0: batch},))
        content = io.BytesIO()  # with a path, torch aborts the process when the disk is full
        torch.export.save(program, content)
        path.write_bytes(content.getvalue())
        found = torch.export.load(io.BytesIO(path.read_bytes())).module()(_example(vit, 3))
    with torch.no_grad():
        _check("torch.export", found.detach(), extractor(_example(vit, 3)))


def write_onnx(extractor: FeatureExtractor, vit: ViTConfig, path: Path) -> None:
    """Write ONNX with a free batch size and compare it with the model in ONNX Runtime.

    Raises:
        InputError: The packages of the extra [export] are missing.
        RuntimeError: The outputs of the ONNX model differ from the model's.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch.onnx needs it and reports it late
    except ImportError as error:
        raise InputError(f"ONNX needs {error.name}: pip install 'ppma[export]', or --no-onnx") from None
    batch = torch.export.Dim("batch", min=1, max=4096)
    with _quiet():
        torch.onnx.export(
            extractor, (_example(vit, 2),), str(path), input_names=[INPUT], output_names=[OUTPUT],
            dynamic_shapes=({0: batch},), dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run([OUTPUT], {INPUT: _example(vit, 3).numpy()})[0]
    with torch.no_grad():
        _check("ONNX", torch.from_numpy(np.asarray(found)), extractor(_example(vit, 3)))


def card(run: FinishedRun, seen: Lineage) -> str:
    """Return the model card of a run as Markdown; `seen` is the lineage of its weights."""
    results = [seal.read_result(path) for path in sorted(run.folder.glob("**/result.json"))]
    return render(
        __package__, "card.md", config=run.config, vit=run.config.vit, results=results, seen=lineage.describe(seen),
        version=__version__, input=INPUT, output=OUTPUT,
        millions=sum(parameter.numel() for parameter in run.model.parameters()) / 1e6,
    )  # fmt: skip


def main(argv: list[str]) -> int:
    """Run `ppma export`."""
    options = parse(ExportOptions, argv, prog="ppma export")
    run = open_run(options.checkpoint, device="cpu", precision="fp32")
    seen, extractor = lineage.read(run.weights), FeatureExtractor(run.model).eval()
    metadata = {
        "vit": asdict(run.config.vit), "input": INPUT, "output": OUTPUT, "mean": PIXEL_MEAN, "std": PIXEL_STD,
        "recipe": run.config.recipe, "label_spaces": run.class_names, "ppma": __version__,
    }  # fmt: skip
    options.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with checkpoint.atomic_folder(options.out.absolute()) as temp_folder:
        checkpoint.save_tensors(temp_folder / checkpoint.MODEL, run.model.state_dict())
        (temp_folder / "export.json").write_text(json.dumps(metadata, indent=2) + "\n")
        (temp_folder / "config.json").write_text(run.config.to_json())  # the folder is opened as a run
        (temp_folder / checkpoint.STATE).write_text(json.dumps(run.metadata, indent=2) + "\n")
        (temp_folder / "README.md").write_text(card(run, seen))
        write_program(extractor, run.config.vit, temp_folder / "encoder.pt2")
        if options.onnx:
            write_onnx(extractor, run.config.vit, temp_folder / "encoder.onnx")
        lineage.write(temp_folder, replace(seen, weights_sha256=""))
    log.info("%s: %s", options.out, ", ".join(sorted(path.name for path in options.out.iterdir())))
    return DONE
