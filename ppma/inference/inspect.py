"""`ppma inspect RUN`: show what a run saw, reconstructs, attends to and confuses, on one HTML page.

run folder, sources  ->  samples (single clips), neighbors (many clips)  ->  inspect.html, which needs no other file
"""

import json
import logging
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from ppma.common.files import write_text
from ppma.common.plots import svg
from ppma.config.command import DONE, OutFile, parse
from ppma.config.errors import InputError, reading
from ppma.config.run import EvaluationConfig
from ppma.inference import inspect_page, neighbors, samples
from ppma.inference.inspect_page import Group, Picture, Section
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.models import pictures
from ppma.models.mae import MaskedAutoencoder
from ppma.training import lineage, seal
from ppma.training.run import DataOptions, FinishedRun
from ppma.transfer.result import class_names

log = logging.getLogger(__name__)

NEIGHBORS = 3
"""Neighbors shown from each source."""
PAIRS, EXAMPLES_OF_PAIR = 8, 4


@dataclass(frozen=True, kw_only=True)
class InspectOptions(DataOptions):
    """Show a run on one HTML page: training clips, reconstructions, attention, neighbors, maps of embeddings, confusions.

    For example:
      ppma inspect runs/align_nohuman_synthetic --sources ucf101
    """

    run: tyro.conf.Positional[Path]
    """Run folder of any recipe that trains weights, or one of its checkpoint folders."""
    out: OutFile | None = None
    """The page; none: inspect.html in the run folder."""
    sources: tuple[str, ...] = ()
    """More sources to show, by their names in the data catalog."""
    examples: int = 4
    """Clips of each source to show."""
    clips: int = 200
    """Clips of each source to embed, spread over its classes."""
    split: str = "train"
    """Split of the sources."""

    def __post_init__(self) -> None:
        for name in ("examples", "clips"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} is {getattr(self, name)}; it must be at least 1")


def _about(run: FinishedRun) -> Section:
    config, vit, environment = run.config, run.config.vit, run.folder / "environment.json"
    rows = [
        ("recipe", f"{config.recipe} ({config.phase})"),
        ("weights", str(run.weights)),
        ("encoder", f"width {vit.width}, {vit.depth} layers, {vit.tokens} tokens of {vit.patch}"),
        ("epochs, batch, seed", f"{config.optim.epochs}, {config.batch}, {config.seed}"),
    ]
    if environment.is_file():
        with reading(environment, "the record of a run's starts"):
            command = json.loads(environment.read_text(encoding="utf-8"))[0]["command"]
            rows += [("command", shlex.join(command))] if command else []
    for path in _tests(run):
        result = seal.read_result(path.with_name("result.json"))
        low, high = result["ci95"]["top1"]
        accuracy = f"{result['top1']:.3f} (95 %: {low:.3f} to {high:.3f})"
        rows.append((f"top-1 on {result['dataset']} {result['split']}", accuracy))
    seen = lineage.describe(lineage.read(run.weights))
    note = "From the files of the run."
    return Section(
        title="The run", note=note, rows=rows, markdown=seen, list_heading="Data the weights were trained on"
    )


def _tests(run: FinishedRun) -> list[Path]:
    """Return the scores.npz of the run's tests."""
    found = [run.folder / "scores.npz", *sorted(run.folder.glob("evaluate-*/scores.npz"))]
    return [path for path in found if path.is_file() and path.with_name("result.json").is_file()]


def _as_trained(run: FinishedRun, sources: Sequence[Manifest], examples: int) -> Section:
    own = [source for source in sources if source.name in run.config.sources]
    sheets = [
        Picture(pixels_HWC=pictures.sheet(list(samples.as_trained(run, source, examples))), caption=source.name)
        for source in own
    ]
    note = (
        "Views with the window, crop, flip and augmentation of the training. One row a view, frames from left to right."
    )
    if run.config.phase == "classify":
        note += " Clips are erased and mixed where the training does so."
    return Section(title="Clips as the model saw them", note=note, groups=[Group(pictures=sheets)])


def _reconstructions(run: FinishedRun, model: MaskedAutoencoder, sources: Sequence[Manifest]) -> Section:
    sheets = []
    for source in sources:
        caption, sheet = samples.reconstructed(model, source, run.loader)
        sheets.append(Picture(pixels_HWC=sheet, caption=f"{source.name}; groups of three rows: {caption}"))
    note = (
        f"{round(100 * run.config.mae.mask_ratio)} % of the patches are hidden. Brightness and contrast of hidden patches are estimated"
        " from visible ones, unless the caption says otherwise."
    )
    return Section(title="Reconstructions", note=note, groups=[Group(pictures=sheets)])


def _attention(run: FinishedRun, sources: Sequence[Manifest]) -> Section:
    sheets = [
        Picture(pixels_HWC=pictures.sheet(samples.attended(run, source)), caption=source.name) for source in sources
    ]
    note = (
        "Below each clip: the attention that each place receives in the last block, averaged over heads and queries. Yellow is the"
        " most; each clip has its own scale. It shows which places are read, not why a class was chosen."
    )
    return Section(title="Attention", note=note, groups=[Group(pictures=sheets)])


@dataclass(frozen=True, kw_only=True)
class _Embedded:
    """Clips of several sources and their embeddings, row by row."""

    sources: tuple[Manifest, ...]
    features_VD: np.ndarray
    source_V: np.ndarray
    """Number of the source."""
    row_V: np.ndarray
    """Row in the source."""


def _embed(run: FinishedRun, sources: Sequence[Manifest]) -> _Embedded:
    features, of_source, rows = [], [], []
    for number, source in enumerate(sources):
        found = samples.embed(run, source, EvaluationConfig(windows=1, crops=1, on_bad="mark"))
        decoded = np.flatnonzero(found.decoded_V.cpu().numpy())
        features.append(found.features_VWD[:, 0].float().cpu().numpy()[decoded])
        of_source.append(np.full(len(decoded), number))
        rows.append(decoded)
    return _Embedded(
        sources=tuple(sources), features_VD=np.concatenate(features), source_V=np.concatenate(of_source),
        row_V=np.concatenate(rows),
    )  # fmt: skip


def _neighbors(run: FinishedRun, found: _Embedded, examples: int) -> Section:
    cosine_VV = neighbors.cosines(found.features_VD)
    lines: dict[int, list[list[int]]] = {}
    for number in range(len(found.sources)):
        own = np.flatnonzero(found.source_V == number)
        queries = own[np.unique(np.linspace(0, len(own) - 1, min(examples, len(own))).astype(int))]
        lines[number] = [_query_and_neighbors(found, int(query), cosine_VV) for query in queries]
    frames = _frames(run, found, {clip for rows in lines.values() for shown in rows for clip in shown})
    groups = []
    for number, rows in lines.items():
        for place, (query, *near) in enumerate(rows):
            shown = [Picture(pixels_HWC=frames[query], caption=_caption(found, query), kind="query")]
            for clip in near:
                caption = f"{_caption(found, clip)}, {cosine_VV[query, clip]:.2f}"
                shown.append(Picture(pixels_HWC=frames[clip], caption=caption))
            heading = "" if place else f"Clips of {found.sources[number].name}"
            groups.append(Group(pictures=shown, heading=heading, small=True))
    note = (
        f"A framed clip and its {NEIGHBORS} nearest neighbors in each source, by the cosine of embeddings after their mean is"
        " subtracted. The middle frame of each."
    )
    return Section(title="Nearest neighbors across sources", note=note, groups=groups)


def _query_and_neighbors(found: _Embedded, query: int, cosine_VV: np.ndarray) -> list[int]:
    shown = [query]
    for number in range(len(found.sources)):
        shown += neighbors.nearest(cosine_VV, query, np.flatnonzero(found.source_V == number), NEIGHBORS).tolist()
    return shown


def _frames(run: FinishedRun, found: _Embedded, clips: set[int]) -> dict[int, np.ndarray]:
    """Return the middle frame of some of the embedded clips; each source is read once."""
    frames: dict[int, np.ndarray] = {}
    for number, source in enumerate(found.sources):
        own = sorted(clip for clip in clips if found.source_V[clip] == number)
        if own:
            shown = samples.subset(source, [int(found.row_V[clip]) for clip in own])
            frames |= dict(zip(own, samples.middle_frames(shown, run.loader)))
    return frames


def _caption(found: _Embedded, clip: int) -> str:
    source, row = found.sources[found.source_V[clip]], int(found.row_V[clip])
    return f"{source.name}: {source.clip(row).class_name or source.clip(row).path}"


def _map(found: _Embedded) -> Section:
    place_V2, share_2 = neighbors.plane(found.features_VD)
    names = [found.sources[number].name for number in found.source_V]
    classes = [found.sources[number].clip(int(row)).class_name for number, row in zip(found.source_V, found.row_V)]
    note = (
        f"{len(names)} clips on the first two principal components of their embeddings. Clips that are far apart here are far apart;"
        " clips that are close here may differ in the components that are not shown."
    )
    plot = svg(neighbors.maps(place_V2, share_2, names, classes))
    return Section(title="Map of embeddings", note=note, svg=plot)


def _confusions(run: FinishedRun, data: catalog.Catalog) -> Iterator[Section]:
    for path in _tests(run):
        result = seal.read_result(path.with_name("result.json"))
        source = data.manifest(result["dataset"], result["split"])
        if source.sha256 != result["manifest_sha256"]:
            raise InputError(
                f"{path} tested another {source.name} {result['split']} than the one in {data.path}; give its --data"
            )
        pairs, names = neighbors.confused(path, PAIRS), class_names(path)
        rows = [neighbors.rows_of(source, pair.videos[:EXAMPLES_OF_PAIR]) for pair in pairs]
        shown = sorted({row for several in rows for row in several})
        frames = dict(zip(shown, samples.middle_frames(samples.subset(source, shown), run.loader) if shown else []))
        groups = []
        for pair, several in zip(pairs, rows):
            label, named = (names[i] or f"class {i}" for i in (pair.label, pair.named))
            videos = [Picture(pixels_HWC=frames[row], caption=source.clip(row).path) for row in several]
            heading = f"{label} predicted as {named}: {pair.count} of {pair.of}"
            groups.append(Group(pictures=videos, heading=heading, small=True))
        found = "the clips with the highest wrong score first" if pairs else "no video was predicted as another class"
        note = f"{result['n_videos']} videos of {source.name} {result['split']}; {found}."
        yield Section(title=f"Most confused pairs: {source.name}", note=note, groups=groups)


def sections(run: FinishedRun, options: InspectOptions) -> Iterator[Section]:
    """Yield the sections of the page in order."""
    data = catalog.find(options.data)
    names = dict.fromkeys((*run.config.sources, *options.sources))
    sources = [data.manifest(name, options.split) for name in names]
    shown = [samples.subset(source, samples.spread_rows(source, options.examples)) for source in sources]
    yield _about(run)
    yield _as_trained(run, sources, options.examples)
    if isinstance(run.model, MaskedAutoencoder) and run.model.decoder is not None:
        yield _reconstructions(run, run.model, shown)
    yield _attention(run, shown)
    found = _embed(run, [samples.subset(source, samples.spread_rows(source, options.clips)) for source in sources])
    yield _neighbors(run, found, options.examples)
    yield _map(found)
    yield from _confusions(run, data)


def main(argv: list[str]) -> int:
    """Run `ppma inspect`."""
    options = parse(InspectOptions, argv, prog="ppma inspect")
    run = options.open(options.run)
    parts = []
    for section in sections(run, options):
        log.info("%s", section.title)
        parts.append(section)
    page = inspect_page.html(f"{run.config.recipe}: {run.folder.name}", parts)
    out = options.out or run.folder / "inspect.html"
    write_text(out, page)
    log.info("%s (%.1f MB)", out, len(page) / 1e6)
    return DONE
