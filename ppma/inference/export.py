"""`ppma export`: write a model for use elsewhere.

    run folder  ->  model.safetensors (timm's names), export.json, lineage.json, README.md (model card),
                    config.json and state.json, so that the folder is a run, encoder.pt2 (torch.export) and encoder.onnx,
                    which are run before they are kept
      --to huggingface       model.safetensors, config.json, preprocessor_config.json, lineage.json, README.md
      --to timm              model.safetensors, lineage.json, README.md
      --to ppma, videomae    model.pth, lineage.json, README.md

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
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from ppma import __version__
from ppma.common.pages import render
from ppma.config.command import DONE, NewPath, parse
from ppma.config.errors import InputError, require
from ppma.config.model import PIXEL_MEAN, PIXEL_STD, PRESETS, ViTConfig
from ppma.inference import huggingface
from ppma.inference.layouts import Format, Weights, write_as
from ppma.models.classify import Classifier
from ppma.models.mae import MaskedAutoencoder
from ppma.training import checkpoint, lineage, seal
from ppma.training.lineage import Lineage
from ppma.training.run import MIXING, FinishedRun, open_run

log = logging.getLogger(__name__)

INPUT, OUTPUT = "frames_BTHWC", "features_BD"
TOLERANCE = 1e-5
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


def provenance(run: FinishedRun, seen: Lineage) -> dict[str, Any]:
    """Return the lineage of a run's weights as JSON-LD in the vocabularies of Croissant and W3C PROV."""

    def entity(one: Lineage, name: str) -> dict[str, Any]:
        sources = [
            {
                "@type": "sc:Dataset", "name": f"{source.name} {source.split}", "license": sorted(source.licences),
                "cr:recordCount": source.clips, "sha256": source.manifest_sha256, "prov:wasAttributedTo": sorted(source.domains),
            }
            for source in one.sources
        ]  # fmt: skip
        parents = [entity(parent, parent.recipe or parent.origin) for parent in one.parents]
        return {
            "@type": "prov:Entity", "name": name, "sha256": one.weights_sha256, "description": one.note,
            "prov:wasGeneratedBy": {"@type": "prov:Activity", "name": one.recipe or one.origin, "sc:softwareVersion": f"ppma {one.ppma}"},
            "prov:wasDerivedFrom": [*sources, *parents],
        }  # fmt: skip

    schema = "https://schema.org/"
    context = {
        "@vocab": schema,
        "sc": schema,
        "cr": "http://mlcommons.org/croissant/",
        "prov": "http://www.w3.org/ns/prov#",
    }
    return {"@context": context, **entity(seen, run.config.recipe)}


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Export a model: safetensors with a config and a model card, torch.export and ONNX, each tested by running it, or the
    files of another project.

    `hf upload NAME/my-model my-model` publishes such a folder on the Hugging Face hub.

    For example:
      ppma export runs/align_nohuman_synthetic exported
      ppma export --to huggingface runs/finetune-ucf101 my-model
    """

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder of any recipe that trains weights, or one of its checkpoint folders."""
    out: Annotated[NewPath, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """New folder."""
    to: Format | None = None
    """Project to write for: huggingface for `from_pretrained` and pipelines, timm for `create_model(checkpoint_path=)`, ppma
    and videomae for their own code (default: safetensors, torch.export and ONNX)."""
    space: str | None = None
    """With --to, the label space whose head to write; required where the run has several."""
    onnx: bool = True
    """Write encoder.onnx too; needs onnx, onnxscript and onnxruntime."""

    def __post_init__(self) -> None:
        require(self.space is None or self.to is not None, f"--space {self.space} needs --to")


def _example(vit: ViTConfig, clips: int) -> Tensor:
    generator = torch.Generator().manual_seed(clips)
    return torch.randint(0, 256, (clips, vit.frames, vit.size, vit.size, 3), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def _check(form: str, found: Tensor, extractor: FeatureExtractor, frames_BTHWC: Tensor) -> None:
    expected = extractor(frames_BTHWC)
    apart = float((found - expected).abs().max() / expected.abs().max())
    if not apart <= TOLERANCE:
        raise RuntimeError(
            f"the {form} form differs from the model by {apart:.2g} of the largest feature; it is not written"
        )
    log.info("%s: within %.1g of the model", form, apart)


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
    _check("torch.export", found.detach(), extractor, _example(vit, 3))


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
        raise InputError(
            f"ONNX needs {error.name}: pip install onnx onnxscript onnxruntime, or give --no-onnx"
        ) from None
    batch = torch.export.Dim("batch", min=1, max=4096)
    with _quiet():
        torch.onnx.export(
            extractor, (_example(vit, 2),), str(path), input_names=[INPUT], output_names=[OUTPUT],
            dynamic_shapes=({0: batch},), dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run([OUTPUT], {INPUT: _example(vit, 3).numpy()})[0]
    _check("ONNX", torch.from_numpy(np.asarray(found)), extractor, _example(vit, 3))


def card(run: FinishedRun, seen: Lineage, to: Format | None = None, note: str = "") -> str:
    """Return the model card of a run as Markdown; `note` is what `write_for` returned for the project `to`."""
    results = [seal.read_result(path) for path in sorted(run.folder.glob("**/result.json"))]
    return render(
        __package__, "card.md", config=run.config, vit=run.config.vit, results=results, seen=lineage.describe(seen),
        version=__version__, input=INPUT, output=OUTPUT, to=to, note=note, provenance=json.dumps(provenance(run, seen), indent=2),
        millions=sum(parameter.numel() for parameter in run.model.parameters()) / 1e6,
    )  # fmt: skip


def timm_arguments(vit: ViTConfig, weights: Weights) -> str:
    """Return the arguments of timm.create_model for a model with these weights, as Python.

    Raises:
        InputError: timm knows no model of this shape.
    """
    shape = ("width", "depth", "heads", "mlp_ratio", "patch")
    name = next((name for name, one in PRESETS.items() if all(getattr(one, f) == getattr(vit, f) for f in shape)), None)
    require(
        name is not None, f"timm has no model of this shape; it has ppma_vit_NAME_patch16_224 of {', '.join(PRESETS)}"
    )
    classes = len(weights["head.bias"]) if "head.bias" in weights else 0
    given = {
        "num_classes": (classes, 0), "img_size": (vit.size, 224), "frames": (vit.frames, 16),
        "fc_norm": ("fc_norm.weight" in weights, True), "norm_eps": (vit.norm_eps, 1e-6), "head_norm_eps": (vit.head_norm_eps, 1e-6),
    }  # fmt: skip
    more = [f"{argument}={value}" for argument, (value, default) in given.items() if value != default]
    return ", ".join([f'"ppma_vit_{name}_patch16_224"', *more])


def write_for(to: Format, run: FinishedRun, folder: Path, space: str | None) -> str:
    """Write the weights of a run under the names of another project.

    Args:
        to: The project.
        run: The run.
        folder: An empty folder.
        space: Label space whose head to write.

    Returns:
        For the model card: what `huggingface.difference` measured, or the arguments of timm.create_model.

    Raises:
        InputError: The project's model has no place for a part of ours.
    """
    ours = {name: tensor for name, tensor in checkpoint.read_weights(run.weights).items() if name != MIXING}
    if to == "huggingface":
        huggingface.write(folder, run, ours, space)
        apart = huggingface.difference(run.model, _example(run.config.vit, 2))
        level = logging.WARNING if apart > TOLERANCE else logging.INFO
        log.log(
            level,
            "outputs in transformers differ by %.1g of the largest: its last LayerNorm has another epsilon",
            apart,
        )
        return f"{apart:.1g}"
    kept = ours if to == "ppma" and space is None else huggingface.one_head(ours, run, space)[0]
    theirs = {name: tensor.contiguous() for name, tensor in write_as(to, kept).items()}
    if to == "timm":
        checkpoint.save_tensors(folder / checkpoint.MODEL, theirs)
        return timm_arguments(run.config.vit, theirs)
    checkpoint.save_pickle(folder / "model.pth", {"model": theirs})
    return ""


def write_all(run: FinishedRun, folder: Path, *, onnx: bool) -> None:
    """Write the weights of a run as a folder that opens as a run, as a torch.export program and as ONNX.

    Args:
        run: The run, on the CPU.
        folder: An empty folder.
        onnx: Write encoder.onnx too.
    """
    metadata = {
        "vit": asdict(run.config.vit), "input": INPUT, "output": OUTPUT, "mean": PIXEL_MEAN, "std": PIXEL_STD,
        "recipe": run.config.recipe, "label_spaces": run.class_names, "ppma": __version__,
    }  # fmt: skip
    extractor = FeatureExtractor(run.model).eval()
    checkpoint.save_tensors(folder / checkpoint.MODEL, run.model.state_dict())
    (folder / "export.json").write_text(json.dumps(metadata, indent=2) + "\n")
    (folder / "config.json").write_text(run.config.to_json())
    (folder / checkpoint.STATE).write_text(json.dumps(run.metadata, indent=2) + "\n")
    if onnx:  # first: it needs packages that may be missing
        write_onnx(extractor, run.config.vit, folder / "encoder.onnx")
    write_program(extractor, run.config.vit, folder / "encoder.pt2")


def main(argv: list[str]) -> int:
    """Run `ppma export`."""
    options = parse(ExportOptions, argv, prog="ppma export")
    run = open_run(options.checkpoint, device="cpu", precision="fp32")
    seen, note = lineage.read(run.weights), ""
    options.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with checkpoint.atomic_folder(options.out.absolute()) as temp_folder:
        if options.to is None:
            write_all(run, temp_folder, onnx=options.onnx)
        else:
            note = write_for(options.to, run, temp_folder, options.space)
        (temp_folder / "README.md").write_text(card(run, seen, options.to, note))
        lineage.write(temp_folder, replace(seen, weights_sha256=""))
    log.info("%s: %s", options.out, ", ".join(sorted(path.name for path in options.out.iterdir())))
    return DONE
