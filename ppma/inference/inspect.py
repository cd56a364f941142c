"""`ppma inspect RUN`: show what a run saw, reconstructs, attends to and confuses, on one HTML page.

run folder, sources  ->  samples (single clips), neighbors (many clips)  ->  inspect.html, which needs no other file
"""

import json
import logging
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from ppma.common.files import write_text
from ppma.common.plots import svg
from ppma.config.command import DONE, OutFile, parse
from ppma.config.errors import reading, require, require_at_least
from ppma.config.run import EvaluationConfig
from ppma.inference import inspect_page, neighbors, samples
from ppma.inference.inspect_page import Group, Picture, Section
from ppma.inference.samples import evenly_spaced
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Clip, Manifest
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

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder of any recipe that trains weights, or one of its checkpoint folders."""
    out: OutFile | None = None
    """The page (default: inspect.html in the run folder)."""
    sources: tuple[str, ...] = ()
    """More sources to show, by their names in the data catalog."""
    examples: int = 4
    """Clips of each source to show."""
    clips: int = 200
    """Clips of each source to embed, spread over its classes."""
    split: str = "train"
    """Split of the sources."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "--", "examples", "clips")


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
    return Section(
        title="The run", note="From the files of the run.", rows=rows, markdown=lineage.describe(lineage.read(run.weights)),
        list_heading="Data the weights were trained on",
    )  # fmt: skip


def _tests(run: FinishedRun) -> list[Path]:
    """Return the scores.npz of the run's tests."""
    found = [run.folder / "scores.npz", *sorted(run.folder.glob("evaluate-*/scores.npz"))]
    return [path for path in found if path.is_file() and path.with_name("result.json").is_file()]


def _sheets(title: str, note: str, sheets: Iterable[tuple[np.ndarray, str]]) -> Section:
    """Return a section of (picture, caption)."""
    shown = [Picture(pixels_HWC=sheet, caption=caption) for sheet, caption in sheets]
    return Section(title=title, note=note, groups=[Group(pictures=shown)])


def _as_trained(run: FinishedRun, sources: Sequence[Manifest], examples: int) -> Section:
    note = (
        "Views with the window, crop, flip and augmentation of the training. One row a view, frames from left to right."
    )
    if run.config.phase == "classify":
        note += " Clips are erased and mixed where the training does so."
    own = [source for source in sources if source.name in run.config.sources]
    sheets = [(pictures.sheet(list(samples.as_trained(run, source, examples))), source.name) for source in own]
    return _sheets("Clips as the model saw them", note, sheets)


def _reconstructions(run: FinishedRun, model: MaskedAutoencoder, clips: dict[str, np.ndarray]) -> Section:
    note = (
        f"{round(100 * run.config.mae.mask_ratio)} % of the patches are hidden. Brightness and contrast of hidden patches are estimated"
        " from visible ones, unless the caption says otherwise."
    )
    found = [(name, *samples.reconstructed(model, clips_BTHWC)) for name, clips_BTHWC in clips.items()]
    sheets = [(sheet, f"{name}; groups of three rows: {caption}") for name, caption, sheet in found]
    return _sheets("Reconstructions", note, sheets)


def _attention(run: FinishedRun, clips: dict[str, np.ndarray]) -> Section:
    note = (
        "Below each clip: the attention that each place receives in the last block, averaged over heads and queries. Yellow is the"
        " most; each clip has its own scale. It shows which places are read, not why a class was chosen."
    )
    sheets = [(pictures.sheet(samples.attended(run.model, clips_BTHWC)), name) for name, clips_BTHWC in clips.items()]
    return _sheets("Attention", note, sheets)


@dataclass(frozen=True, kw_only=True)
class _Embedded:
    """Clips of several sources and their embeddings, row by row."""

    sources: tuple[Manifest, ...]
    features_VD: np.ndarray
    source_V: np.ndarray
    """Number of the source."""
    row_V: np.ndarray
    """Row in the source."""

    def clip(self, number: int) -> Clip:
        """Return a clip by its number here."""
        return self.sources[self.source_V[number]].clip(int(self.row_V[number]))

    def caption(self, number: int) -> str:
        """Return source and class of a clip, or its path if it has no class."""
        clip = self.clip(number)
        return f"{self.sources[self.source_V[number]].name}: {clip.class_name or clip.path}"

    def of_source(self, number: int) -> np.ndarray:
        """Return the numbers of the clips of a source."""
        return np.flatnonzero(self.source_V == number)


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
    cosine_VV, numbers = neighbors.cosines(found.features_VD), range(len(found.sources))
    lines = list[list[int]]()  # a clip of a source, then its neighbors in each source
    for own in map(found.of_source, numbers):
        for query in own[evenly_spaced(len(own), examples)]:
            closest = [neighbors.nearest(cosine_VV, query, found.of_source(number), NEIGHBORS) for number in numbers]
            lines.append([int(query), *np.concatenate(closest).tolist()])
    frames, groups = _frames(run, found, {clip for line in lines for clip in line}), list[Group]()
    for place, (query, *near) in enumerate(lines):
        shown = [Picture(pixels_HWC=frames[query], caption=found.caption(query), kind="query")]
        for clip in near:
            caption = f"{found.caption(clip)}, {cosine_VV[query, clip]:.2f}"
            shown.append(Picture(pixels_HWC=frames[clip], caption=caption))
        first = place == 0 or found.source_V[query] != found.source_V[lines[place - 1][0]]
        heading = f"Clips of {found.sources[found.source_V[query]].name}" if first else ""
        groups.append(Group(pictures=shown, heading=heading, small=True))
    note = (
        f"A framed clip and its {NEIGHBORS} nearest neighbors in each source, by the cosine of embeddings after their mean is"
        " subtracted. The middle frame of each."
    )
    return Section(title="Nearest neighbors across sources", note=note, groups=groups)


def _frames(run: FinishedRun, found: _Embedded, clips: set[int]) -> dict[int, np.ndarray]:
    """Return the middle frame of some of the embedded clips; each source is read once."""
    frames: dict[int, np.ndarray] = {}
    for number, source in enumerate(found.sources):
        own = sorted(clips & set(found.of_source(number)))
        if own:
            frames |= dict(zip(own, samples.middle_frames(samples.subset(source, found.row_V[own]), run.loader)))
    return frames


def _map(found: _Embedded) -> Section:
    place_V2, share_2 = neighbors.plane(found.features_VD)
    names = [found.sources[number].name for number in found.source_V]
    classes = [found.clip(number).class_name for number in range(len(names))]
    note = (
        f"{len(names)} clips on the first two principal components of their embeddings. Clips that are far apart here are far apart;"
        " clips that are close here may differ in the components that are not shown."
    )
    plot = svg(neighbors.maps(place_V2, share_2, names, classes))
    return Section(title="Map of embeddings", note=note, svg=plot)


def _tested_source(scores: Path, data: catalog.Catalog) -> Manifest:
    """Return the data set of a test; InputError if it is another one now."""
    result = seal.read_result(scores.with_name("result.json"))
    source = data.manifest(result["dataset"], result["split"])
    other = f"{scores} tested another {source.name} {result['split']} than the one in {data.path}; give its --data"
    require(source.sha256 == result["manifest_sha256"], other)
    return source


def _confusions(run: FinishedRun, scores: Path, source: Manifest) -> Section:
    pairs, names = neighbors.confused(scores, PAIRS), class_names(scores)
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
    result = seal.read_result(scores.with_name("result.json"))
    note = f"{result['n_videos']} videos of {source.name} {result['split']}; {found}."
    return Section(title=f"Most confused pairs: {source.name}", note=note, groups=groups)


def sections(run: FinishedRun, options: InspectOptions) -> Iterator[Section]:
    """Yield the sections of the page in order."""
    data = catalog.find(options.data)
    names = dict.fromkeys((*run.config.sources, *options.sources))
    sources = [data.manifest(name, options.split) for name in names]
    tested = {scores: _tested_source(scores, data) for scores in _tests(run)}
    yield _about(run)
    yield _as_trained(run, sources, options.examples)
    shown = {source.name: samples.subset(source, samples.spread_rows(source, options.examples)) for source in sources}
    clips = {name: samples.plain_views(source, run.loader) for name, source in shown.items()}
    if isinstance(run.model, MaskedAutoencoder) and run.model.decoder is not None:
        yield _reconstructions(run, run.model, clips)
    yield _attention(run, clips)
    found = _embed(run, [samples.subset(source, samples.spread_rows(source, options.clips)) for source in sources])
    yield _neighbors(run, found, options.examples)
    yield _map(found)
    for scores, source in tested.items():
        yield _confusions(run, scores, source)


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
