"""The site: its usual settings, and what its cluster allows, so that a wrong flag is told before anything is submitted.

site.toml           ->  defaults of the launcher's flags
sinfo, sacctmgr     ->  the flags are possible, or an InputError with the values that are
"""

import dataclasses
import getpass
import logging
import os
import re
import subprocess
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ppma.config.errors import InputError
from ppma.slurm.cluster import ClusterConfig, allocate, minutes

log = logging.getLogger(__name__)

C = TypeVar("C", bound=ClusterConfig)


def site_file(argv: Sequence[str]) -> Path | None:
    """--site of a command line, else $XDG_CONFIG_HOME/ppma/site.toml where it exists."""
    for flag, value in zip(argv, [*argv[1:], ""]):
        if flag == "--site":
            return Path(value)
        if flag.startswith("--site="):
            return Path(flag.removeprefix("--site="))
    usual = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "ppma" / "site.toml"
    return usual if usual.is_file() else None


def with_site(config: C, argv: Sequence[str]) -> C:
    """`config` with the settings of the site in place of its defaults; flags are read after it."""
    path = site_file(argv)
    if path is None:
        return config
    try:
        settings: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"--site {path}: {error}") from None
    names = [field.name for field in dataclasses.fields(ClusterConfig) if field.name != "site"]
    if unknown := sorted(settings.keys() - set(names)):
        raise InputError(f"{path}: {unknown[0]} is no setting; there are {', '.join(names)}")
    if isinstance(table := settings.get("slurm"), dict):
        settings["slurm"] = [f"{key}={value}" for key, value in table.items()]
    for name, value in settings.items():
        default = getattr(config, name)
        if isinstance(value, list):
            settings[name] = tuple(map(str, value))
        elif isinstance(default, (bool, int, str)) and type(value) is not type(default):
            raise InputError(f"{path}: {name} is {value!r}; it must be {type(default).__name__}, as {default!r}")
    return dataclasses.replace(config, **settings)


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node in a partition, as sinfo tells it."""

    partition: str
    name: str
    state: str
    gpus: int
    cpus: int
    time_limit: int | None
    """Minutes; None: no limit."""

    @property
    def usable(self) -> bool:
        """Whether jobs run there."""
        return not re.search(r"down|drain|fail|power|unk|maint|[*]$", self.state)


def _ask(*command: str) -> str:
    """Output of a command of the cluster."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        raise InputError(f"{command[0]} does not answer within 60 s: is the cluster's controller up?") from None
    if done.returncode:
        raise InputError(f"{command[0]} does not answer: {' '.join((done.stderr or done.stdout).split())}")
    return done.stdout


def _node(line: str) -> tuple[Node, bool]:
    partition, name, state, gres, cpus, limit = line.split("|")
    gpus = sum(int(number) for number in re.findall(r"gpu(?::[^:,(]+)?:(\d+)", gres))
    time_limit = None if limit == "infinite" else minutes(limit)
    node = Node(
        partition=partition.rstrip("*"), name=name, state=state, gpus=gpus, cpus=int(cpus), time_limit=time_limit
    )
    return node, partition.endswith("*")


def _nodes(config: ClusterConfig) -> list[Node]:
    """The nodes of the partition asked for, or of the default one."""
    told = [_node(line) for line in _ask("sinfo", "-h", "-N", "-o", "%P|%N|%T|%G|%c|%l").splitlines()]
    wanted = config.partition or next((node.partition for node, default in told if default), None)
    if wanted is None:
        raise InputError(
            f"there is no default partition; --partition takes {_names(node.partition for node, _ in told)}"
        )
    found = [node for node, _ in told if node.partition in wanted.split(",")]
    if not found:
        raise InputError(f"--partition is {wanted}; there are {_names(node.partition for node, _ in told)}")
    return found


def _names(words: Any) -> str:
    return ", ".join(sorted(set(words)))


def check(config: ClusterConfig) -> None:
    """InputError when the cluster can never run such a job."""
    allocation, nodes = allocate(config), _nodes(config)
    where = f"partition {nodes[0].partition}"
    limits = (
        ("--nodes", allocation.nodes, len({node.name for node in nodes}), f"{where} has"),
        ("--gpus-per-node", allocation.gpus, max(node.gpus for node in nodes), f"nodes of {where} have up to"),
        ("--cpus-per-task", config.cpus, max(node.cpus for node in nodes) // allocation.tasks,
         f"with {allocation.tasks} tasks a node, nodes of {where} have up to"),
    )  # fmt: skip
    for flag, asked, most, whose in limits:
        if asked > most:
            raise InputError(f"{flag} is {asked}; {whose} {most}")
    longest = None if any(node.time_limit is None for node in nodes) else max(node.time_limit or 0 for node in nodes)
    if longest is not None and minutes(config.time) > longest:
        raise InputError(
            f"--time is {config.time}; {where} allows up to {longest // 1440}-{longest // 60 % 24:02}:{longest % 60:02}:00"
        )
    if config.nodelist:
        _check_nodelist(config.nodelist, nodes, where)
    usable = {node.name for node in nodes if node.usable}
    if len(usable) < allocation.nodes:
        log.warning("%s has %d usable nodes now, the job waits for %d", where, len(usable), allocation.nodes)


def _check_nodelist(nodelist: str, nodes: list[Node], where: str) -> None:
    known = {node.name: node for node in nodes}
    usable = _names(node.name for node in nodes if node.usable) or "none"
    for name in _ask("scontrol", "show", "hostnames", nodelist).split():
        if name not in known:
            raise InputError(f"--nodelist: {name} is no node of {where}; usable are {usable}")
        if not known[name].usable:
            raise InputError(f"--nodelist: {name} is {known[name].state}; usable nodes of {where} are {usable}")


ALLOWED = (
    ("feature spec", "--constraint takes", "%f"),
    ("memory spec", "MB of memory that nodes have:", "%m"),
    ("gres|generic resource", "--gres takes", "%G"),
    ("node name", "nodes are", "%N"),
)
"""What sbatch complains about, and what sinfo is asked for then: (pattern, words, its field)."""


def explain_refusal(stderr: str) -> str:
    """sbatch's complaint as one line, with the allowed values where the cluster can tell them."""
    lines = [line.removeprefix("sbatch: error: ") for line in stderr.splitlines() if line.startswith("sbatch: error:")]
    text = "sbatch refuses: " + ("; ".join(lines) or " ".join(stderr.split()[-40:]))
    told = [_accounts()] if re.search(r"account|qos", text, re.IGNORECASE) else []
    for pattern, words, field in ALLOWED:
        if re.search(pattern, text, re.IGNORECASE):
            values = _ask("sinfo", "-h", "-N", "-o", field).split()
            told.append(f"{words} {_names(value for word in values for value in word.split(','))}")
    return "; ".join([text, *filter(None, told)])


def _accounts() -> str:
    """What this user may be charged to."""
    command = ["sacctmgr", "-nP", "show", "assoc", f"user={getpass.getuser()}", "format=account,qos"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    pairs = [line.split("|") for line in done.stdout.splitlines() if "|" in line]
    if not pairs:
        return ""
    accounts, services = (pair[0] for pair in pairs), (qos for pair in pairs for qos in pair[1].split(","))
    return f"--account takes {_names(accounts)}; --qos takes {_names(services)}"
