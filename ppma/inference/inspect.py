"""`ppma inspect RUN`: one page that shows what a run saw, what it makes of it, and what it takes for what.

run folder, sources  ->  sights (single clips), neighbours (many clips)  ->  inspect.html, which needs nothing beside it
"""

import json
import logging
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from ppma.common.files import write_text
from ppma.common.plots import svg
from ppma.config.command import DONE, parse
from ppma.config.errors import InputError
from ppma.config.run import EvaluationConfig
from ppma.inference import inspect_page, neighbours
from ppma.inference import samples as sights
from ppma.inference.inspect_page import Section
from ppma.inference.open_run import Look, open_run, spread_rows, subset
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.models import pictures
from ppma.training import lineage

log = logging.getLogger(__name__)

NEIGHBOURS = 3
"""Shown of each source."""
PAIRS, EXAMPLES_OF_PAIR = 8, 4


@dataclass(frozen=True, kw_only=True)
class Options:
    """Look into a run: its clips as trained on, reconstructions, attention, neighbours, maps of embeddings, confusions. One HTML page.

    For example: ppma inspect runs/align_nohuman_synthetic --sources ucf101
    """

    run: tyro.conf.Positional[Path]
    """Run folder of any phase, or one of its checkpoint folders."""
    out: Path | None = None
    """The page; none: inspect.html in the run folder."""
    sources: tuple[str, ...] = ()
    """Sources to look at besides the run's own, by their names in the data catalog."""
    examples: int = 4
    """Clips of each source that are shown."""
    clips: int = 200
    """Clips of each source that are embedded, spread over its classes."""
    split: str = "train"
    """Split of the sources."""
    data: Path | None = None
    """The data catalog; none: $PPMA_DATA, else ./data.toml."""
    workers: int = 2
    """Loader processes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one."""

    def __post_init__(self) -> None:
        for name in ("examples", "clips"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} is {getattr(self, name)}; it must be at least 1")
        if self.out is not None and not self.out.absolute().parent.is_dir():
            raise InputError(f"--out {self.out}: there is no folder {self.out.absolute().parent}; make it first")


def _about(look: Look) -> Section:
    saved, facts = look.saved, []
    environment = look.folder / "environment.json"
    command = json.loads(environment.read_text())[0]["command"] if environment.is_file() else []
    facts += [["recipe", f"{saved['recipe']} ({saved['phase']})"], ["weights", str(look.weights)]]
    vit = look.model.config
    facts += [["encoder", f"width {vit.width}, {vit.depth} layers, {vit.tokens} tokens of {vit.patch}"]]
    facts += [["epochs, batch, seed", f"{saved['optim']['epochs']}, {saved['batch']}, {saved['seed']}"]]
    facts += [["command", shlex.join(command)]] if command else []
    for path in _tests(look):
        result = json.loads(path.with_name("result.json").read_text())
        low, high = result["ci95"]["top1"]
        facts += [
            [f"top-1 on {result['dataset']} {result['split']}", f"{result['top1']:.3f} (95 %: {low:.3f} to {high:.3f})"]
        ]
    seen = inspect_page.items(lineage.describe(lineage.read(look.weights)))
    body = inspect_page.table(["what", "value"], facts) + "<h3>What the weights have seen</h3>" + seen
    return Section(title="The run", note="From the run's own files.", body=body)


def _tests(look: Look) -> list[Path]:
    """scores.npz of the run's tests."""
    found = [look.folder / "scores.npz", *sorted(look.folder.glob("evaluate-*/scores.npz"))]
    return [path for path in found if path.is_file() and path.with_name("result.json").is_file()]


def _as_trained(look: Look, sources: Sequence[Manifest], examples: int) -> Section:
    own = [source for source in sources if source.name in look.saved["sources"]]
    sheets = [
        inspect_page.picture(pictures.sheet(list(sights.as_trained(look, source, examples))), source.name)
        for source in own
    ]
    note = "Views drawn as the run draws them: window, crop, flip and augmentation. A row a view, its frames from left to right."
    if look.saved["phase"] == "classify":
        note += " Erasing and mixing of clips are shown too, where the run does them."
    return Section(title="Clips as the model saw them", note=note, body="".join(sheets))


def _reconstructions(look: Look, sources: Sequence[Manifest]) -> Section:
    sheets = []
    for source in sources:
        caption, sheet = sights.reconstructed(look, source)
        sheets.append(inspect_page.picture(sheet, f"{source.name}; rows in threes: {caption}"))
    hidden = round(100 * look.saved["mae"]["mask_ratio"])
    note = (
        f"{hidden} % of the places are hidden. Brightness and contrast of hidden places come from visible ones, unless the caption"
        " says otherwise."
    )
    return Section(title="Reconstructions", note=note, body="".join(sheets))


def _attention(look: Look, sources: Sequence[Manifest]) -> Section:
    sheets = [inspect_page.picture(pictures.sheet(sights.attended(look, source)), source.name) for source in sources]
    note = (
        "Under each clip the attention that a place gets in the last block, averaged over heads and over all places that ask; yellow is"
        " most, the scale is each clip's own. It shows where information is taken from, not what decided."
    )
    return Section(title="Attention", note=note, body="".join(sheets))


@dataclass(frozen=True, kw_only=True)
class _Embedded:
    """Clips of several sources and their embeddings, row by row."""

    sources: tuple[Manifest, ...]
    features_VD: np.ndarray
    source_V: np.ndarray
    row_V: np.ndarray
    """Row within its source."""


def _embed(look: Look, sources: Sequence[Manifest]) -> _Embedded:
    features, of_source, rows = [], [], []
    for number, source in enumerate(sources):
        found = look.embed(source, EvaluationConfig(windows=1, crops=1, on_bad="mark"))
        fine = np.flatnonzero(found.decoded_V.cpu().numpy())
        features.append(found.features_VWD[:, 0].float().cpu().numpy()[fine])
        of_source.append(np.full(len(fine), number))
        rows.append(fine)
    return _Embedded(
        sources=tuple(sources), features_VD=np.concatenate(features), source_V=np.concatenate(of_source),
        row_V=np.concatenate(rows),
    )  # fmt: skip


def _neighbours(look: Look, found: _Embedded, examples: int) -> Section:
    cosine_VV = neighbours.cosines(found.features_VD)
    lines: dict[int, list[list[int]]] = {}
    for number in range(len(found.sources)):
        own = np.flatnonzero(found.source_V == number)
        queries = own[np.unique(np.linspace(0, len(own) - 1, min(examples, len(own))).astype(int))]
        lines[number] = [_beside(found, int(query), cosine_VV) for query in queries]
    frames = _frames(look, found, {clip for rows in lines.values() for shown in rows for clip in shown})
    body = ""
    for number, rows in lines.items():
        body += f"<h3>Clips of {escape(found.sources[number].name)}</h3>\n"
        for shown in rows:
            near = [f", {cosine_VV[shown[0], clip]:.2f}" for clip in shown]
            figures = [
                inspect_page.picture(frames[clip], _caption(found, clip) + (near[i] if i else ""), "" if i else "query")
                for i, clip in enumerate(shown)
            ]
            body += inspect_page.row(figures)
    note = (
        f"A clip, framed, and the {NEIGHBOURS} nearest of each source by the cosine of embeddings about their mean; the middle frame of"
        " each."
    )
    return Section(title="Nearest neighbours across sources", note=note, body=body)


def _beside(found: _Embedded, query: int, cosine_VV: np.ndarray) -> list[int]:
    """The query and its neighbours in each source."""
    shown = [query]
    for number in range(len(found.sources)):
        shown += neighbours.nearest(cosine_VV, query, np.flatnonzero(found.source_V == number), NEIGHBOURS).tolist()
    return shown


def _frames(look: Look, found: _Embedded, clips: set[int]) -> dict[int, np.ndarray]:
    """The middle frame of some of the embedded clips, each source read once."""
    frames: dict[int, np.ndarray] = {}
    for number, source in enumerate(found.sources):
        own = sorted(clip for clip in clips if found.source_V[clip] == number)
        if own:
            shown = subset(source, [int(found.row_V[clip]) for clip in own])
            frames |= dict(zip(own, sights.middle_frames(shown, look.loader)))
    return frames


def _caption(found: _Embedded, clip: int) -> str:
    source, row = found.sources[found.source_V[clip]], int(found.row_V[clip])
    return f"{source.name}: {source.clip(row).class_name or source.clip(row).path}"


def _map(found: _Embedded) -> Section:
    place_V2, share_2 = neighbours.plane(found.features_VD)
    names = [found.sources[number].name for number in found.source_V]
    classes = [found.sources[number].clip(int(row)).class_name for number, row in zip(found.source_V, found.row_V)]
    drawing = svg(neighbours.maps(place_V2, share_2, names, classes))
    note = (
        f"{len(names)} clips on the two directions in which their embeddings vary most (PCA). Clips that are apart here are apart; clips"
        " that lie together here may be apart in the directions that are not shown."
    )
    return Section(title="Map of embeddings", note=note, body=drawing)


def _confusions(look: Look, data: catalog.Catalog) -> Iterator[Section]:
    for path in _tests(look):
        result = json.loads(path.with_name("result.json").read_text())
        source = data.manifest(result["dataset"], result["split"])
        if source.sha256 != result["manifest_sha256"]:
            raise InputError(
                f"{path} is of another {source.name} {result['split']} than {data.path} names; give its --data"
            )
        pairs = neighbours.confused(path, PAIRS)
        rows = [neighbours.rows_of(source, pair.videos[:EXAMPLES_OF_PAIR]) for pair in pairs]
        wanted = sorted({row for several in rows for row in several})
        frames = dict(zip(wanted, sights.middle_frames(subset(source, wanted), look.loader) if wanted else []))
        body = ""
        for pair, several in zip(pairs, rows):
            label, named = (escape(source.class_names.get(i, f"class {i}")) for i in (pair.label, pair.named))
            body += f"<h3>{label} taken for {named}: {pair.count} of {pair.of}</h3>\n"
            body += inspect_page.row([inspect_page.picture(frames[row], source.clip(row).path) for row in several])
        note = f"{result['n_videos']} videos of {source.name} {result['split']}; the clips that were surest of the wrong class first."
        title = f"Most confused pairs: {source.name}"
        yield Section(title=title, note=note, body=body or "<p>No video was taken for another class.</p>\n")


def sections(look: Look, options: Options) -> Iterator[Section]:
    """The parts of the page, in order."""
    data = catalog.find(options.data)
    names = dict.fromkeys((*look.saved["sources"], *options.sources))
    sources = [data.manifest(name, options.split) for name in names]
    shown = [subset(source, spread_rows(source, options.examples)) for source in sources]
    yield _about(look)
    yield _as_trained(look, sources, options.examples)
    if look.saved["phase"] == "mae":
        yield _reconstructions(look, shown)
    yield _attention(look, shown)
    found = _embed(look, [subset(source, spread_rows(source, options.clips)) for source in sources])
    yield _neighbours(look, found, options.examples)
    yield _map(found)
    yield from _confusions(look, data)


def main(argv: list[str]) -> int:
    """The command."""
    options = parse(Options, argv, prog="ppma inspect")
    look = open_run(options.run, device=options.device, workers=options.workers)
    parts = []
    for section in sections(look, options):
        log.info("%s", section.title)
        parts.append(section)
    page = inspect_page.html(f"{look.saved['recipe']}: {look.folder.name}", parts)
    out = options.out or look.folder / "inspect.html"
    write_text(out, page)
    log.info("%s (%.1f MB)", out, len(page) / 1e6)
    return DONE
