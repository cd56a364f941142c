"""`ppma export`: an encoder for use elsewhere, in three forms that are checked by running them.

    run folder  ->  model.safetensors (timm's names), export.json, lineage.json, README.md (model card),
                    encoder.pt2 (torch.export), encoder.onnx

The exported graph takes what a video decoder gives, uint8 frames, and does the normalisation itself: one thing less to get wrong.
"""

import contextlib
import io
import json
import logging
import shutil
import tempfile
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from safetensors.torch import save_file
from torch import Tensor, nn

from ppma import __version__
from ppma.config.command import DONE, parse
from ppma.config.errors import InputError
from ppma.config.model import PIXEL_MEAN, PIXEL_STD, MAEConfig, ViTConfig
from ppma.models.classify import Classifier
from ppma.models.mae import MaskedAutoencoder
from ppma.training import checkpoint, lineage
from ppma.training.lineage import Lineage
from ppma.transfer.evaluate import load_classifier, run_folder

log = logging.getLogger(__name__)

INPUT, OUTPUT = "frames_BTHWC", "features_BD"
TOLERANCE = 1e-4
"""Largest difference, over the largest feature, between a form and the model it was made from: float32 in another order of sums."""


class FeatureExtractor(nn.Module):
    """What is exported: uint8 frames in, one vector a clip out (the mean over the tokens, after the final norm)."""

    def __init__(self, model: Classifier | MaskedAutoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames_BTHWC: Tensor) -> Tensor:
        """(B, D)"""
        features = self.model.features(frames_BTHWC)
        return features.mean(dim=1) if features.ndim == 3 else features


@dataclass(frozen=True, kw_only=True)
class Options:
    """Export the encoder of a run: safetensors with a config and a model card, torch.export and ONNX, each checked by running it.

    For example: ppma export runs/align_nohuman_synthetic exported
    """

    checkpoint: tyro.conf.Positional[Path]
    """Run folder, or one of its checkpoint folders."""
    out: tyro.conf.Positional[Path]
    """Folder to make."""
    onnx: bool = True
    """Write encoder.onnx too; needs the extra [export]."""


def load_encoder_model(path: Path) -> tuple[Classifier | MaskedAutoencoder, dict[str, Any]]:
    """The model of a run, of any phase, with its weights, and the run's config.json."""
    saved = json.loads((run_folder(path) / "config.json").read_text())
    vit = ViTConfig(**{**saved["vit"], "patch": tuple(saved["vit"]["patch"])})
    model: Classifier | MaskedAutoencoder
    if saved["phase"] == "mae":
        model = MaskedAutoencoder(vit, MAEConfig(**saved["mae"]))
        checkpoint.load_model(model, path)
    else:
        model, _ = load_classifier(path)
    return model.float().eval(), saved


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
def _quiet() -> Any:
    """The exporters report their progress on stdout and warn about themselves."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def write_program(extractor: FeatureExtractor, vit: ViTConfig, path: Path) -> None:
    """torch.export with a free batch size, loaded again and run on another batch size than it was traced with."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    with _quiet():
        program = torch.export.export(extractor, (_example(vit, 2),), dynamic_shapes=({0: batch},))
        torch.export.save(program, path)
        found = torch.export.load(path).module()(_example(vit, 3))
    with torch.no_grad():
        _check("torch.export", found.detach(), extractor(_example(vit, 3)))


def write_onnx(extractor: FeatureExtractor, vit: ViTConfig, path: Path) -> None:
    """ONNX with a free batch size, run with ONNX Runtime. InputError where the packages for it are missing."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch.onnx needs it and says so late
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


CARD = """---
library_name: ppma
tags: [video, action-recognition, self-supervised]
---

# {recipe}

A video transformer of {millions:.1f} million parameters (width {vit.width}, {vit.depth} layers, {vit.heads} heads, patches of
{vit.patch}) for clips of {vit.frames} frames at {vit.size} x {vit.size}, trained with ppma {version}.

## Training

- Recipe: `{recipe}`, phase {phase}, {epochs} epochs, batch {batch}, seed {seed}
- Sources: {sources}
- Started from: {init}

## What the weights have seen

{lineage}

`lineage.json` beside this card holds the whole record. Domains are what the sources say of themselves, an audit says how many people its
detectors found; no claim of anonymity is made.

## Use

`encoder.onnx` and `encoder.pt2` take uint8 RGB frames `{input}` = (batch, {vit.frames}, {vit.size}, {vit.size}, 3) and give
`{output}` = (batch, {vit.width}). The frames are uniformly spaced in a window of {seconds} s. The weights in `model.safetensors` carry the
names of timm's VisionTransformer; `--init` of a ppma recipe takes this folder.

## Results

{results}
"""


def _result_line(path: Path) -> str:
    found = json.loads(path.read_text())
    low, high = found["ci95"]["top1"]
    test = f"{found['dataset']} {found['split']} ({found['protocol']})"
    return f"- {test}: top-1 {found['top1']:.3f} (95 %: {low:.3f} to {high:.3f}), top-5 {found['top5']:.3f} over {found['n_videos']} videos"


def card(saved: dict[str, Any], vit: ViTConfig, parameters: int, source: Path, seen: Lineage) -> str:
    """The model card, from the run's own files; `saved` is its config.json, `seen` the lineage of the weights."""
    results = [_result_line(path) for path in sorted(source.glob("**/result.json"))]
    return CARD.format(
        recipe=saved["recipe"], phase=saved["phase"], epochs=saved["optim"]["epochs"], batch=saved["batch"], seed=saved["seed"],
        sources=", ".join(saved["sources"]), init=saved["init"] or "random weights", seconds=saved["loader"]["window_seconds"],
        vit=vit, millions=parameters / 1e6, version=__version__, input=INPUT, output=OUTPUT,
        results="\n".join(results) or "None recorded with this run.", lineage=lineage.describe(seen),
    )  # fmt: skip


def main(argv: list[str]) -> int:
    """The command."""
    options = parse(Options, argv, prog="ppma export")
    if options.out.exists():
        raise InputError(f"{options.out} is there already; choose another folder")
    model, saved = load_encoder_model(options.checkpoint)
    vit, source = model.config, run_folder(options.checkpoint)
    options.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{options.out.name}.", dir=options.out.absolute().parent))
    try:
        weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, temporary / checkpoint.MODEL)
        facts = {
            "vit": asdict(vit), "input": INPUT, "output": OUTPUT, "mean": PIXEL_MEAN, "std": PIXEL_STD, "recipe": saved["recipe"],
            "label_spaces": getattr(model, "label_spaces", {}), "ppma": __version__,
        }  # fmt: skip
        (temporary / "export.json").write_text(json.dumps(facts, indent=2) + "\n")
        parameters = sum(parameter.numel() for parameter in model.parameters())
        seen = lineage.read(checkpoint.locate_model(options.checkpoint))
        (temporary / "README.md").write_text(card(saved, vit, parameters, source, seen))
        extractor = FeatureExtractor(model).eval()
        write_program(extractor, vit, temporary / "encoder.pt2")
        if options.onnx:
            write_onnx(extractor, vit, temporary / "encoder.onnx")
        lineage.write(temporary, replace(seen, weights_sha256=""))
        temporary.chmod(0o755)
        temporary.rename(options.out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    log.info("%s: %s", options.out, ", ".join(sorted(path.name for path in options.out.iterdir())))
    return DONE
