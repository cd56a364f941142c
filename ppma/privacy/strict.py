"""`--privacy strict`: check everything a run may learn from before its first step.

    config, manifests  ->  rows: domain, licence, audit  ->  files: their places and their hashes
                       ->  strength of each audit  <-  the policy: privacy.toml, or defaults
                       ->  lineage of the initial weights  ->  Lineage of the run, or InputError

Synthetic rows need a stated license, human-removed rows also a passed audit of this very manifest and these very files;
other rows are refused. Hashes reveal files that were mixed up, edited, swapped or left behind. They do not stop anyone who
forges manifest, seal and report together, labels people synthetic where no other manifest knows them, or swaps files
while the run reads them (docs/privacy.md).
"""

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from ppma.common.files import file_sha256, joined_sha256
from ppma.config.errors import InputError
from ppma.config.run import RunConfig
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.remote import Url
from ppma.privacy import policy, verdict
from ppma.privacy.clip_files import check_disguise, check_places, check_store, contents
from ppma.training import checkpoint, distributed, lineage
from ppma.training.distributed import Ranks
from ppma.training.lineage import Lineage, Seen

REMOVED, SYNTHETIC = "human-removed", "synthetic"
NO_LICENCE = (
    *("", "na", "nan", "nolicence", "nolicense", "none", "notapplicable", "notstated"),
    *("null", "tbd", "todo", "undefined", "unknown"),
)
"""What states no license, in lower case and without anything but letters and digits."""


def admit(config: RunConfig, sources: Sequence[Manifest], ranks: Ranks, resumed: Path | None) -> Lineage:
    """Return the lineage of a run that is about to start; every rank calls it and hashes its share of the clips.

    Args:
        config: The run.
        sources: The manifests that it learns from.
        ranks: This rank and the others.
        resumed: The checkpoint that it continues from, if any.

    Raises:
        InputError: Under --privacy strict, a row, a file or the initial weights are refused.
    """
    if config.privacy != "strict":
        return _lineage(config, [lineage.seen(source) for source in sources], resumed)
    audits = precheck(config, sources, resumed)
    found = _lineage(config, [_check_files(*pair, ranks) for pair in zip(sources, audits, strict=True)], resumed)
    distributed.on_all_ranks(ranks, lambda: check_disguise(config.data, sources) if ranks.is_main else None)
    if objection := objection_to(found):  # covers the weights that a resumed run continues from
        raise InputError(f"{config.run_dir} is refused by --privacy strict: {objection}")
    return found


def precheck(config: RunConfig, sources: Sequence[Manifest], resumed: Path | None) -> list[dict[str, verdict.Audited]]:
    """Check what can be checked without reading videos: rows, seals and initial weights; see `admit`.

    Returns:
        The audit of each source, by path.

    Raises:
        InputError: Something is refused.
    """
    for source in sources:
        places = (source.path, source.root, source.store and source.store.path)
        if urls := [place for place in places if isinstance(place, Url)]:
            raise InputError(
                f"{urls[0]} is a URL, and --privacy strict hashes files that only this machine can change; copy it to a disk"
            )
    least = policy.read(verdict.policy_path(config))
    audits = [_check_rows(source, least, config.trust) for source in sources]
    starts = [("--average" if config.average else "--init", path) for path in config.starts]
    for flag, path in (*starts, ("--resume", resumed)):
        if path and (objection := objection_to(lineage.read(checkpoint.locate_model(path)))):
            raise InputError(f"{flag} {path} is refused by --privacy strict: {objection}")
    if config.features is not None:
        raise InputError("--features names a folder that other runs write to; leave it out with --privacy strict")
    if (config.run_dir / "features").exists() and not (config.run_dir / "config.json").exists():
        raise InputError(f"{config.run_dir} holds features of unchecked clips; remove them or choose another --run-dir")
    return audits


def objection_to(found: Lineage) -> str:
    """Return why weights with this lineage are refused, or an empty string."""
    for one in lineage.history(found):
        if one.origin == "unknown":
            return f"the training data of the weights is unknown: {one.note}"
        if one.origin == "averaged" and not one.parents:
            return "it is an average without named parents"
        for source in one.sources:
            for domain in sorted(set(source.domains) - {REMOVED, SYNTHETIC}):
                count = source.domains[domain]
                return f"{one.recipe} saw {count} clips of {source.name} whose domain is {domain or 'unknown'}"
        if one.origin == "trained" and one.privacy != "strict":
            return f"{one.recipe} was trained without --privacy strict on unchecked data; train it with that flag"
    return ""


def _lineage(config: RunConfig, seen: Sequence[Seen], resumed: Path | None) -> Lineage:
    return lineage.of_run(
        config.recipe,
        config.privacy,
        seen,
        policy=policy.read(verdict.policy_path(config)).text() if config.privacy == "strict" else "",
        starts=[checkpoint.locate_model(path) for path in config.starts],
        resumed=checkpoint.locate_model(resumed) if resumed else None,
    )


def _check_rows(source: Manifest, least: policy.Policy, trusted: Path | None) -> dict[str, verdict.Audited]:
    """Return the audit of each path, empty if no row needs one; InputError names the first row that is refused."""
    assert source.path is not None  # the catalog read it from a file
    domains = source.texts("domain")
    for row, (domain, licence) in enumerate(zip(domains, source.texts("licence"), strict=True)):
        if objection := _objection_to_row(domain, licence):
            raise InputError(f"{source.path}, line {row + 2}: {objection}")
    if REMOVED not in domains:
        return {}
    audited = verdict.read_verdicts(source.path, trusted)
    if file_sha256(source.path) != source.sha256:  # its rows may come from a cache, which sizes and times address
        raise InputError(f"{source.path} was changed after it was read; run the command again")
    for row, (path, domain) in enumerate(zip(source.texts("path"), domains, strict=True)):
        if domain == REMOVED and audited[path].verdict != verdict.PASSED:
            passed = verdict.passed_path(source.path)
            raise InputError(
                f"{source.path}, line {row + 2}: the audit of {path} says {audited[path].verdict!r}, and --privacy"
                f" strict needs {verdict.PASSED!r}; "
                + (f"the rows that passed are in {passed.name}" if passed.is_file() else "no row of it passed")
            )
        if domain == REMOVED and (objection := least.objection_to(audited[path])):
            where = f"{source.path}, line {row + 2}: the audit of {path}"
            raise InputError(f"{where} is weaker than --privacy strict allows: {objection}; {verdict.AGAIN}")
    return audited


def _objection_to_row(domain: str, licence: str) -> str:
    if not domain:
        return "its domain is not known; index it again with --domain"
    if domain not in (REMOVED, SYNTHETIC):
        return f"its domain is {domain}, and --privacy strict accepts only {REMOVED} and {SYNTHETIC}"
    words = unicodedata.normalize("NFKC", licence).casefold()
    if "".join(filter(str.isalnum, words)) in NO_LICENCE:
        return f"its licence is {licence!r}; index it again with --licence"
    return ""


def _check_files(source: Manifest, audited: Mapping[str, verdict.Audited], ranks: Ranks) -> Seen:
    """Return the source's entry in the lineage; InputError if a file is missing, elsewhere, or not the audited one."""
    paths = source.texts("path")
    own = range(ranks.rank, len(paths), ranks.world_size)
    distributed.on_all_ranks(ranks, lambda: check_places(source.root, [paths[row] for row in own]))
    parts = distributed.on_all_ranks(ranks, lambda: contents([source.root / paths[row] for row in own], source.name))
    found = [""] * len(paths)
    for rank, part in enumerate(parts):
        found[rank :: ranks.world_size] = part
    domains = source.texts("domain")
    for row, path in enumerate(paths):
        if domains[row] == REMOVED and audited[path].sha256 != found[row]:
            raise InputError(
                f"{source.root / path} is not the file that was audited; restore that one, or run `ppma audit` on"
                f" {source.path} again"
            )
    if source.store is not None:
        store = source.store
        distributed.on_all_ranks(ranks, lambda: check_store(store, found) if ranks.is_main else None)
    sealed = verdict.audit_sha256(source.path) if audited and source.path else ""
    return lineage.seen(source, audit_sha256=sealed, content_sha256=joined_sha256(found))
