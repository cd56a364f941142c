"""JSON becomes the dataclass that it was written from, or an error that names the field."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from ppma.config.records import RecordError, restore


@dataclass(frozen=True, kw_only=True)
class Part:
    width: int = 3
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True, kw_only=True)
class Whole:
    name: str
    kind: Literal["a", "b"] = "a"
    on: bool = False
    path: Path | None = None
    paths: tuple[Path, ...] | None = None
    counts: dict[str, int] = field(default_factory=dict)
    part: Part = field(default_factory=Part)
    parts: tuple[Part, ...] = ()
    parents: tuple["Whole", ...] = ()


WHOLE = Whole(
    name="x", kind="b", on=True, path=Path("p"), paths=(Path("q"),), counts={"n": 1}, parts=(Part(width=4),), parents=(Whole(name="y"),)
)  # fmt: skip


def test_what_was_written_is_read_back():
    assert restore(Whole, json.loads(json.dumps(asdict(WHOLE), default=str))) == WHOLE
    assert restore(Whole, {"name": "x"}) == Whole(name="x")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"part": {"registers": 4}}, r"part\.registers is unknown"),
        ({"parts": [{"widht": 4}]}, r"parts\.widht is unknown"),
        ({"part": {"width": "4"}}, r"part\.width is '4'"),
        ({"part": {"width": True}}, r"part\.width"),
        ({"part": {"width": 4.5}}, r"part\.width"),
        ({"part": {"betas": [0.9]}}, r"part\.betas .* 2"),
        ({"part": []}, "part is"),
        ({"name": None}, "name is None"),
        ({"on": "yes"}, "on is"),
        ({"kind": "c"}, "kind is 'c'"),
        ({"paths": "q"}, "paths is 'q'"),
        ({"counts": {"n": "many"}}, r"counts\.n"),
        ({"counts": 3}, "counts is 3"),
        ({"parents": [{}]}, r"parents\.name is missing"),
    ],
)
def test_the_field_that_does_not_fit_is_named(change, named):
    with pytest.raises(RecordError, match=named):
        restore(Whole, {"name": "x"} | change)


@pytest.mark.parametrize("value", [[], "x", 3, None, {}])
def test_what_is_no_record_is_refused(value):
    with pytest.raises(RecordError):
        restore(Whole, value)
