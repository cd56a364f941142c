"""Read a site's default settings and check a job against what its cluster allows, before anything is submitted.

site.toml        ->  defaults of the launcher's flags
sinfo            ->  GPUs and cores of a node, where the flags leave them open
sinfo, sacctmgr  ->  the job can run, or an InputError with the allowed values
"""

import dataclasses
import getpass
import logging
import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ppma.config.errors import InputError, reading, require
from ppma.slurm.cluster import USUAL_CORES, ClusterConfig, allocate, ask, minutes

log = logging.getLogger(__name__)

C = TypeVar("C", bound=ClusterConfig)


def site_file(argv: Sequence[str]) -> Path | None:
    """Return --site of a command line, otherwise $XDG_CONFIG_HOME/ppma/site.toml if it exists."""
    for flag, value in zip(argv, [*argv[1:], ""]):
        if flag == "--site":
            return Path(value)
        if flag.startswith("--site="):
            return Path(flag.removeprefix("--site="))
    usual = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "ppma" / "site.toml"
    return usual if usual.is_file() else None


def with_site(config: C, argv: Sequence[str]) -> C:
    """Return `config` with the site's settings in place of its defaults; flags are parsed on top of it.

    Raises:
        InputError: The site's file cannot be read, or a setting is unknown or of the wrong type.
    """
    path = site_file(argv)
    if path is None:
        return config
    with reading(path, "the settings of a site (--site) in TOML"):
        settings: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    names = [field.name for field in dataclasses.fields(ClusterConfig) if field.name != "site"]
    for name in settings:
        require(name in names, f"{path}: unknown setting {name}; the settings are {', '.join(names)}")
    if isinstance(table := settings.get("slurm"), dict):
        settings["slurm"] = [f"{key}={value}" for key, value in table.items()]
    for name, value in settings.items():
        default = getattr(config, name)
        if isinstance(value, list):
            settings[name] = tuple(map(str, value))
        elif getattr(ClusterConfig(), name) == "auto":
            fits = type(value) is int or value == "auto"
            require(fits, f"{path}: {name} is {value!r}; it must be a whole number or 'auto'")
        elif isinstance(default, (bool, int, str)):
            kind = type(default)
            require(type(value) is kind, f"{path}: {name} is {value!r}; it must be {kind.__name__}, as {default!r}")
    return replace(config, **settings)


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of a partition, as sinfo lists it."""

    partition: str
    is_default: bool
    """Whether the partition is the default one."""
    name: str
    state: str
    gpus: int
    cpus: int
    time_limit: float
    """Minutes; infinity without a limit."""
    features: frozenset[str]

    @property
    def usable(self) -> bool:
        """True if jobs run there."""
        return not re.search(r"down|drain|fail|power|unk|maint|[*]$", self.state)


class NoClusterError(InputError):
    """A command of the cluster does not answer."""


def _ask(*command: str) -> str:
    """Return the output of one of the cluster's commands.

    Raises:
        NoClusterError: There is no such command, or it fails, or takes more than a minute.
    """
    done = ask(*command)
    if done.returncode:
        raise NoClusterError(f"{command[0]} does not answer: {' '.join((done.stderr or done.stdout).split())}")
    return done.stdout


def _node(line: str) -> Node:
    partition, name, state, gres, cpus, limit, features = line.split("|", 6)
    return Node(
        partition=partition.rstrip("*"), is_default=partition.endswith("*"), name=name, state=state, cpus=int(cpus),
        gpus=sum(int(number) for number in re.findall(r"\bgpu(?::[^:,(]+)*:(\d+)", gres)),
        time_limit=float("inf") if limit == "infinite" else minutes(limit), features=frozenset(features.split(",")),
    )  # fmt: skip


def _partition_nodes(config: ClusterConfig) -> list[Node]:
    """Return the nodes of the requested partition, or of the default one."""
    nodes = [_node(line) for line in _ask("sinfo", "-h", "-N", "-o", "%P|%N|%T|%G|%c|%l|%f").splitlines()]
    names = _sorted(node.partition for node in nodes)
    partition = config.partition or next((node.partition for node in nodes if node.is_default), None)
    if partition is None:
        raise InputError(f"there is no default partition; give --partition: {names}")
    found = [node for node in nodes if node.partition in partition.split(",")]
    require(bool(found), f"--partition is {partition}; the partitions are {names}")
    return found


def _fitting_nodes(config: ClusterConfig) -> list[Node]:
    """Return the nodes of the partition, each once, that --nodelist, --exclude and --constraint leave."""
    nodes = {node.name: node for node in _partition_nodes(config)}
    listed, excluded = (_host_names(names) for names in (config.nodelist, config.exclude))
    wanted = set(re.split("[&,]", config.constraint or "")) - {""}
    if any(re.search(r"[^\w.+-]", word) for word in wanted):
        raise InputError(f"--constraint {config.constraint} has choices; give --gpus-per-node and --cpus-per-task too")
    return [
        node
        for node in nodes.values()
        if (not listed or node.name in listed) and node.name not in excluded and wanted <= node.features
    ]


def _host_names(names: str | None) -> list[str]:
    return _ask("scontrol", "show", "hostnames", names).split() if names else []


def fit(config: C) -> C:
    """Return `config` with GPUs per node and cores per process as the nodes have them, where they are `auto`.

    Where no node fits, nothing is changed: `check` or sbatch says why such a job cannot run.

    Raises:
        NoClusterError: sinfo does not answer.
        InputError: The nodes have no GPU.
    """
    both_given = "auto" not in (config.gpus_per_node, config.cpus_per_task)
    if config.cluster != "slurm" or both_given:
        return config
    nodes = sorted(_fitting_nodes(config), key=lambda node: node.gpus, reverse=True)
    if config.gpus_per_node == "auto" and not config.gpus_per_task and nodes:
        most = nodes[: config.nodes][-1].gpus  # what as many nodes have as are asked for
        where = f"nodes of partition {nodes[0].partition}"
        require(most > 0, f"--gpus-per-node is auto, and {where} have no GPU; give --partition, or --gpus-per-node 0")
        config = replace(config, gpus_per_node=most)
    fitting = [node for node in nodes if node.gpus >= allocate(config).gpus]
    if config.cpus_per_task == "auto" and not config.cpus_per_gpu and fitting:
        config = replace(config, cpus_per_task=max(1, min(_cores(config, node) for node in fitting)))
    return config


def _cores(config: ClusterConfig, node: Node) -> int:
    """Return the cores of a node for each process."""
    allocation = allocate(config)
    if allocation.gpus and node.gpus:
        return node.cpus * allocation.gpus // node.gpus // allocation.tasks
    return min(USUAL_CORES, node.cpus // allocation.tasks)


def _sorted(words: Iterable[str]) -> str:
    return ", ".join(sorted(set(words)))


def check(config: ClusterConfig) -> None:
    """Raise InputError if the cluster can never run such a job; log a warning if it has to wait for nodes."""
    allocation, nodes = allocate(config), _partition_nodes(config)
    where = f"partition {nodes[0].partition}"
    limits = (
        ("--nodes", allocation.nodes, len({node.name for node in nodes}), f"{where} has"),
        ("--gpus-per-node", allocation.gpus, max(node.gpus for node in nodes), f"nodes of {where} have up to"),
        ("--cpus-per-task", config.cpus, max(node.cpus for node in nodes) // allocation.tasks,
         f"with {allocation.tasks} tasks a node, nodes of {where} have up to"),
    )  # fmt: skip
    for flag, asked, most, whose in limits:
        require(asked <= most, f"{flag} is {asked}; {whose} {most}")
    longest = max(node.time_limit for node in nodes)
    if minutes(config.time) > longest:
        days, rest = divmod(int(longest), 1440)
        raise InputError(f"--time is {config.time}; {where} allows up to {days}-{rest // 60:02}:{rest % 60:02}:00")
    if config.nodelist:
        _check_nodelist(config.nodelist, nodes, where)
    usable = {node.name for node in nodes if node.usable}
    if len(usable) < allocation.nodes:
        log.warning("%s has %d usable nodes now, the job waits for %d", where, len(usable), allocation.nodes)


def _check_nodelist(nodelist: str, nodes: list[Node], where: str) -> None:
    known = {node.name: node for node in nodes}
    usable = _sorted(node.name for node in nodes if node.usable) or "none"
    for name in _host_names(nodelist):
        state = known[name].state if name in known else f"no node of {where}"
        fine = name in known and known[name].usable
        require(fine, f"--nodelist: {name} is {state}; usable nodes of {where} are {usable}")


ALLOWED = (
    ("feature spec", "--constraint takes", "%f"),
    ("memory spec", "MB of memory that nodes have:", "%m"),
    ("gres|generic resource", "--gres takes", "%G"),
    ("node name", "nodes are", "%N"),
)
"""sbatch's complaints, and the field of sinfo that lists the allowed values: (pattern, words, field)."""


def explain_refusal(stderr: str) -> str:
    """Return sbatch's complaint as one line, with the allowed values if the cluster lists them."""
    lines = [line.removeprefix("sbatch: error: ") for line in stderr.splitlines() if line.startswith("sbatch: error:")]
    text = "sbatch refuses: " + ("; ".join(lines) or " ".join(stderr.split()[-40:]))
    hints = [_accounts()] if re.search(r"account|qos", text, re.IGNORECASE) else []
    for pattern, words, field in ALLOWED:
        if re.search(pattern, text, re.IGNORECASE):
            values = _ask("sinfo", "-h", "-N", "-o", field).split()
            hints.append(f"{words} {_sorted(value for word in values for value in word.split(','))}")
    return "; ".join([text, *filter(None, hints)])


def _accounts() -> str:
    """Return the accounts and qualities of service that this user may use."""
    listed = ask("sacctmgr", "-nP", "show", "assoc", f"user={getpass.getuser()}", "format=account,qos").stdout
    pairs = [line.split("|") for line in listed.splitlines() if "|" in line]
    services = _sorted(qos for pair in pairs for qos in pair[1].split(","))
    return f"--account takes {_sorted(pair[0] for pair in pairs)}; --qos takes {services}" if pairs else ""
