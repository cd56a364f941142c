"""The least strength of an audit that `--privacy strict` accepts: a file `privacy.toml`, or the defaults.

privacy.toml  ->  read(): Policy  ->  objection_to(Audited): the field that is too weak, the audit's value, the policy's
"""

import json
import tomllib
from collections import Counter
from dataclasses import dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any

from ppma.config.errors import reading, require
from ppma.privacy.detectors.auditors import AUDITORS, BUNDLED
from ppma.privacy.verdict import FLOOR, Audited


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What an audit must be at least."""

    source: str = "the default policy"
    """Name in messages."""
    person_auditors: int = 2
    """Auditors that find people; only those in BUNDLED count, whose files have known hashes."""
    face_auditors: int = 1
    auditors: tuple[str, ...] = ()
    """Auditors that must be among them."""
    operating_points: dict[str, float] = field(default_factory=lambda: {n: AUDITORS[n].threshold for n in BUNDLED})
    """Highest operating point of each auditor."""
    points_since: date = date.min
    """Earliest date at which the operating points were measured."""
    frames: int = 12
    """Inspected frames of each clip, or all of a shorter one; 0: all frames."""
    sensitivity: float = FLOOR
    """Share of the known people that the auditors find in each clip."""
    reviewed: float = 1.0
    """Highest share of frames with a person (95 %) that `ppma audit review` leaves possible; 1: none is asked for."""
    method: str = "remove"
    """What the record of each clip says was done to its people; empty: clips without a record are accepted."""

    def __post_init__(self) -> None:
        for name in (*self.auditors, *self.operating_points):
            require(name in AUDITORS, f"there is no auditor {name!r}; auditors are {', '.join(AUDITORS)}")
        for name in ("person_auditors", "face_auditors", "frames"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it must be at least 0")
        shares = {"sensitivity": self.sensitivity, "reviewed": self.reviewed, **self.operating_points}
        for name, share in shares.items():
            require(0 <= share <= 1, f"{name} is {share}; it must be from 0 to 1")

    def text(self) -> str:
        """Return all values as JSON, for the lineage of weights."""
        return json.dumps({key: getattr(self, key) for key in KEYS}, default=str)

    def objection_to(self, audited: Audited) -> str:
        """Return which field of a clip's audit is too weak, with both values, or an empty string."""
        points = audited.auditors
        finds = Counter(AUDITORS[name].finds for name in points if name in BUNDLED)
        missing = [name for name in self.auditors if name not in points]
        high = {name: most for name, most in self.operating_points.items() if not points.get(name, 0) <= most}
        frames = min(self.frames or audited.frames, audited.frames)
        found = (
            ("person_auditors", finds["person"] >= self.person_auditors, finds["person"], self.person_auditors),
            ("face_auditors", finds["face"] >= self.face_auditors, finds["face"], self.face_auditors),
            ("auditors", not missing, ", ".join(points), ", ".join(missing)),
            ("operating_points", not high, {name: points[name] for name in high}, high),
            ("points_since", audited.points_date >= self.points_since, audited.points_date, self.points_since),
            ("frames", audited.looked_at >= frames, audited.looked_at, frames),
            ("sensitivity", audited.sensitivity >= self.sensitivity, round(audited.sensitivity, 3), self.sensitivity),
            ("reviewed", audited.reviewed <= self.reviewed, round(audited.reviewed, 4), self.reviewed),
            ("method", self.method in ("", audited.method), repr(audited.method), repr(self.method)),
        )
        weak = (
            f"{name}: {value} in the audit, {asked} in {self.source}" for name, held, value, asked in found if not held
        )
        return next(weak, "")


KEYS = tuple(one.name for one in fields(Policy) if one.name != "source")


def read(path: Path | None) -> Policy:
    """Return the policy of a file, whose missing keys have their defaults; None: all of them.

    Raises:
        InputError: It cannot be read, or a key or value is wrong.
    """
    if path is None:
        return Policy()
    with reading(path, "a policy in TOML as docs/privacy.md shows one"):
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        return Policy(source=str(path), **{key: _value(key, given) for key, given in table.items()})


def _value(key: str, given: Any) -> Any:
    """Return the value of a field from what the file gives; InputError unless it has the type of the default."""
    require(key in KEYS, f"unknown key {key!r}; the keys are {', '.join(KEYS)}")
    default: Any = getattr(Policy(), key)
    value: Any = tuple(given) if isinstance(given, list) else given
    if isinstance(default, float) and type(given) is int:
        value = float(given)
    numbers = [*given.values()] if isinstance(given, dict) else []
    fits = type(value) is type(default) and all(type(number) in (int, float) for number in numbers)
    require(fits, f"{key} = {given!r}; its default is {default!r}")
    return default | value if key == "operating_points" else value
