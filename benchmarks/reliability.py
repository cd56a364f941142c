"""Run the tests that prove what is promised of a run, and print one table: promise, how it is tested, figure.

    tests marked `promise("R7")`  ->  one pytest run  ->  outcomes and the figures that the tests measured  ->  the table of README

The small form runs what `make test` runs; `--full` adds the full-size proofs. A promise that fails, was skipped or has
no test is a failure of the command.

    python benchmarks/reliability.py
    python benchmarks/reliability.py --full --only R6 R7 --out reliability.md
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppma.common.files import write_text
from ppma.config.command import DONE, OutFile, parse, run
from ppma.config.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
PROMISES = {
    "R1": "kill -9 and resume: the weights differ in no bit",
    "R2": "the order of samples is the same for any resume point and 1, 2 or 4 ranks",
    "R3": "SIGKILL during a save leaves a loadable checkpoint",
    "R4": "a full disk stops every command with exit code 75, a training at its next checkpoint, and loses nothing",
    "R5": "a signal to any rank stops all ranks at the same step; a preempted run equals an uninterrupted one",
    "R6": "every container, codec and GOP gives the frames that the file shows; a mutated file neither crashes nor hangs",
    "R7": "bad files are named and counted, and no good frame is another frame",
    "R8": "evaluation scores each clip once at any world size",
    "R9": "decoders agree within 2 of 255",
    "R10": "oversized files are refused by the probe in bounded memory",
    "R11": "memory stays flat over epochs",
    "R12": "NaN on one rank: all ranks skip the step; too many roll back once and are left out; then a stop names the clips",
    "R13": "malicious files and paths are refused",
    "R14": "the same seed, epoch and index give the same sample",
    "R15": "no way around the privacy gate is open",
    "R16": "a hang dumps all stacks and exits with 75",
    "R17": "a fresh install passes `ppma doctor`",
    "R18": "conversions to and from published weights give the same outputs",
    "R19": "a GPU survives a soak of decoding and training",
    "R20": "of two owners of one run folder one is refused",
    "R21": "labels are mapped by name",
    "R22": "a resume on changed data is refused",
    "R23": "a damaged newest checkpoint falls back to the one before",
    "R24": "a killed worker loses no clip",
    "R25": "64 MB of /dev/shm suffice, or the message says what to set",
    "R26": "256 open files suffice",
    "R27": "following the remedy that a message names helps",
    "R28": "every command answers every wrong input with one line",
    "R29": "an interrupted pack, index, remove-humans or synthesize, run again, gives the same bytes",
    "R30": "an hour of video, 10 million rows and 1,000 shards work",
    "R31": "a stopped or killed evaluation goes on with the videos that it has not scored, and its scores differ in no bit",
    "R32": "data on a server is read as from a disk: faults change no sample, and make no file bad",
}
"""What this project promises of a run."""


@dataclass(frozen=True, kw_only=True)
class ReliabilityConfig:
    """Run the proofs of what is promised and print them as a table."""

    full: bool = False
    """Run the full-size proofs too (hours)."""
    only: tuple[str, ...] = ()
    """Promises to prove, such as R6 R7; all by default."""
    out: OutFile | None = None
    """Write the table to this Markdown file too."""

    def __post_init__(self) -> None:
        unknown = set(self.only) - set(PROMISES)
        if unknown:
            raise InputError(f"--only {' '.join(sorted(unknown))}: the promises are R1 to R{len(PROMISES)}")


@dataclass
class Proofs:
    """A pytest plugin that keeps the outcome and the figures of each promise."""

    only: tuple[str, ...] = ()
    outcomes: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """{promise: "passed", "failed" or "skipped" of each of its tests}."""
    figures: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """{promise: what its tests measured}."""
    files: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """{promise: test files, relative to the repository}."""

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keep the tests of the wanted promises."""
        marks = [{mark.args[0] for mark in item.iter_markers("promise")} for item in items]
        wanted = [bool(of & set(self.only or PROMISES)) for of in marks]
        config.hook.pytest_deselected(items=[item for item, keep in zip(items, wanted) if not keep])
        items[:] = [item for item, keep in zip(items, wanted) if keep]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Read one report: of the test itself, or of a set-up that failed or skipped."""
        if report.when != "call" and report.outcome == "passed":
            return
        properties = [(key, str(value)) for key, value in report.user_properties]
        for promise in {value for key, value in properties if key == "promise"}:
            self.outcomes[promise].append(report.outcome)
            name = report.nodeid.partition("::")[0]
            self.files[promise] += [] if name in self.files[promise] else [name]
            self.figures[promise] += [value for key, value in properties if key == f"figure {promise}"]

    def result(self, promise: str) -> str:
        """Return what the tests of a promise showed, in a few words."""
        found = self.outcomes[promise]
        if not found:
            return "not proven: no test"
        failed, skipped = found.count("failed"), found.count("skipped")
        if failed:
            return f"**{failed} of {len(found)} tests failed**"
        if skipped == len(found):
            return "not run"
        passed = f"{len(found) - skipped} of {len(found) - skipped} tests"
        return "; ".join(dict.fromkeys(self.figures[promise])) or passed

    def holds(self, promise: str) -> bool:
        """Return whether some test of the promise passed and none failed."""
        return "passed" in self.outcomes[promise] and "failed" not in self.outcomes[promise]


def table(proofs: Proofs, promises: Sequence[str]) -> str:
    """Return the Markdown table of promises."""
    lines = ["| | Promise | Proven by | Measured |", "|---|---|---|---|"]
    for promise in promises:
        files = ", ".join(f"`{name.removeprefix('tests/')}`" for name in proofs.files[promise])
        lines.append(f"| {promise} | {PROMISES[promise]} | {files} | {proofs.result(promise)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    config = parse(ReliabilityConfig, argv, prog="reliability")
    proofs = Proofs(config.only)
    options = ["--rootdir", str(ROOT), "-p", "no:cacheprovider", *(["--slow"] if config.full else [])]
    pytest.main([*options, str(ROOT / "tests")], plugins=[proofs])
    promises = [name for name in PROMISES if name in (config.only or PROMISES)]
    made = table(proofs, promises)
    print(made)
    if config.out is not None:
        write_text(config.out, made)
    return DONE if all(map(proofs.holds, promises)) else 1


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="reliability"))
