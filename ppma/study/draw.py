"""The data of a study that draws its own: what `ppma demo` draws, and one's own clips beside it.

Study with a [draw] table, --videos DIR  ->  OUT/data/{clips, *.beton, data.toml}  ->  the catalog, and which source is read beside which
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ppma.config.errors import InputError
from ppma.loaders.sources import catalog
from ppma.study import demo
from ppma.study.spec import Study

FOLDERS = (demo.ACTIONS, "probe", "test")
CHANGEABLE = ("learned", "new", "learned_clips", "probe_clips", "test_clips")


def config(study: Study, out: Path, videos: Path | None, workers: int) -> demo.DemoConfig:
    """The demo's settings that draw this study's data. InputError for a table that does not fit, or --videos without one."""
    if study.draw is None:
        raise InputError(
            f"--videos: {study.name} draws no data; index your clips (`ppma index`) and name them in a recipe's --sources"
        )
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in study.draw.items()
    }
    for key, value in given.items():
        if key not in CHANGEABLE:
            raise InputError(f"[draw]: there is no key {key!r}; the keys are {', '.join(CHANGEABLE)}")
        if not isinstance(value, type(getattr(demo.DemoConfig, key))):
            raise InputError(f"[draw]: {key} = {value!r}; its default is {getattr(demo.DemoConfig, key)!r}")
    return demo.DemoConfig(out=out / "data", videos=videos, workers=workers, **given)


def is_there(settings: demo.DemoConfig) -> bool:
    """Whether all was drawn, packed and entered into the catalog."""
    entered = catalog.read(settings.data).entries
    wanted = [(demo.ACTIONS, "train"), (demo.SCENES, "train"), (demo.TRANSFER, "train"), (demo.TRANSFER, "val")]
    wanted += [] if settings.videos is None else [(demo.REAL, "train")]
    scenes = replace(settings, videos=None)
    return all(name in entered for name in wanted) and all(demo.drawn(scenes, folder) for folder in FOLDERS)


def draw(settings: demo.DemoConfig) -> None:
    """Draw what is not there, and look into one's own clips. A folder drawn with other settings is an InputError."""
    for folder in FOLDERS:
        demo.draw(replace(settings, videos=None), folder)
    if settings.videos is not None and (demo.REAL, "train") not in catalog.read(settings.data).entries:
        demo.index_videos(settings)


def beside(settings: demo.DemoConfig) -> dict[str, str]:
    """Stage 1 reads one's own clips together with the drawn scenes."""
    return {} if settings.videos is None else {demo.SCENES: demo.REAL}
