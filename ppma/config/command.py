"""What all commands share: reading flags, reporting wrong input, and exit codes.

    config class, argv  -> parse ->  config, or one line on stderr and exit code 2
    main, argv          -> run   ->  exit code

Every error is handled in `run`. It imports the command's module too; importing this one must stay fast, because until
then Ctrl-C prints a traceback.

Exit codes: 0 done, 2 the user's input is wrong, 75 stopped cleanly (rerun to resume), 130 interrupted, 1 everything
else.
"""

import contextlib
import dataclasses
import errno
import importlib
import inspect
import io
import logging
import math
import os
import re
import resource
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from ppma.config.errors import DiskFullError, InputError, KilledError, Stopped, UnreachableError
from ppma.config.manual import manual, one_column

log = logging.getLogger(__name__)

DONE, FAILED, WRONG_INPUT, FAILED_AUDIT, RUN_AGAIN, INTERRUPTED = 0, 1, 2, 3, 75, 130
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals after which a training saves and stops: from a scheduler, a terminal, a lost connection, `sbatch --signal`."""

LOG_LINE, LOG_TIME = "%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"
"""Format of log lines; `name_rank` adds the rank."""

NO_GPU = "--device cpu runs without a GPU"
GPU_REMEDIES = {
    r"CUDA.* out of memory|cudaErrorMemoryAllocation": "--accumulate 2 computes the same batch in two halves, --vit.recompute and "
    "a smaller --batch need less memory too; `nvidia-smi` lists other processes on the GPU",
    r"out of memory|can't allocate memory|not enough memory": "this machine does not have enough memory; a smaller --batch, "
    "--model or --workers needs less",
    r"no kernel image is available|too old to be supported|not compatible with the current PyTorch": "this torch does not support this "
    f"GPU: `ppma doctor` names both; {NO_GPU}",
    r"driver.*(too old|insufficient)|Found no NVIDIA driver": "update the NVIDIA driver, or install a torch that matches it "
    f"(`ppma doctor` names both); {NO_GPU}",
}
"""Pattern in the message of a RuntimeError of torch: what to do."""
OS_REMEDIES = {
    errno.ENOENT: "check the path",
    errno.EEXIST: "give another path",
    errno.ENOTDIR: "a part of this path is a file; give another path",
    errno.EISDIR: "give a file",
    errno.EACCES: "choose a path that you may read and write, or change its permissions",
    errno.EPERM: "choose a path that you may read and write, or change its permissions",
    errno.EROFS: "this file system is read-only; choose another path",
    errno.ENAMETOOLONG: "use shorter names",
    errno.ELOOP: "a link leads back to itself; replace it",
    errno.EMLINK: "this folder holds as many entries as its file system allows; use several folders",
    errno.EMFILE: "raise the limit of open files, for example with `ulimit -n 65536`, or use fewer --workers",
    errno.ENFILE: "this machine has too many open files; end other programs",
    errno.EIO: "the disk or the network file system is failing; copy the file elsewhere",
    errno.ENOMEM: "this machine does not have enough memory; use fewer --workers",
}
"""Number of an OSError: what to do."""

OutFile = Annotated[Path, "out", "file"]
"""A file to write: its folder exists, and it may replace a file."""
OutFolder = Annotated[Path, "out", "folder"]
"""A folder to write, which may exist."""
NewPath = Annotated[Path, "out", "new"]
"""A file or folder to make, which must not exist. `parse` checks all three, so that no work is done in vain."""

T = TypeVar("T")


def parse(config_class: Callable[..., T], argv: Sequence[str], *, prog: str) -> T:
    """Return a config read from flags by tyro. --help prints the flags and exits with 0.

    Args:
        config_class: Dataclass, or function whose result is returned. Its docstring and those of its fields are the
            help text.
        argv: Flags.
        prog: Name of the command in messages.

    Raises:
        InputError: A flag does not exist or does not fit, or the config refuses a value.
    """
    import tyro

    words = ["--help"] if {"-h", "--help"} & {*argv} else list(argv)  # tyro leaves given arguments out of the usage
    return _checked(_in_one_line(lambda: tyro.cli(config_class, args=words, prog=prog), prog))


def _checked(config: T) -> T:
    """Return a config from flags; InputError for a number that no computation holds, or an output that cannot be written."""
    for flag, value, hint in _fields(config):
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and not -(2**63) <= number < 2**63:
                raise InputError(f"{flag} is {number}; it must be between {-(2**63)} and {2**63 - 1}")
            if isinstance(number, float) and not math.isfinite(number):
                raise InputError(f"{flag} is {number}; give a finite number")
        if isinstance(value, Path) and (kind := _out_kind(hint)):
            check_out(flag, value, kind)
    return config


def _fields(config: object, prefix: str = "--") -> Iterator[tuple[str, Any, Any]]:
    """Yield (flag, value, type) of every field of a config, those of inner configs too."""
    if not dataclasses.is_dataclass(config):
        return
    hints = get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        flag, value = f"{prefix}{field.name.replace('_', '-')}", getattr(config, field.name)
        yield flag, value, hints[field.name]
        yield from _fields(value, f"{flag}.")


def _out_kind(hint: Any) -> Any:
    """Return "file", "folder" or "new" for the type of an output, None for any other type."""
    found = [_out_kind(part) for part in get_args(hint) if not isinstance(part, str)]
    metadata: tuple[Any, ...] = getattr(hint, "__metadata__", ())
    return metadata[1] if metadata[:1] == ("out",) else next(filter(None, found), None)


def check_out(flag: str, path: Path, kind: Literal["file", "folder", "new"]) -> None:
    """Raise InputError unless a command can write a path when its work is done.

    Args:
        flag: Name of the flag, for the message.
        path: Its value.
        kind: See `OutFile`, `OutFolder` and `NewPath`.
    """
    try:
        found = stat.S_IFMT(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        found = 0
    if found and kind == "new":
        raise InputError(f"{flag} {path} exists; give a new name")
    if path.is_symlink() and not path.exists():
        raise InputError(f"{flag} {path} is a link to nothing; remove it")
    if path.is_dir() if kind == "file" else found and not path.is_dir():
        raise InputError(f"{flag} {path} is a {'folder' if kind == 'file' else 'file'}; give a {kind}")
    above = path if path.is_dir() else next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if kind == "file" and above != path.absolute().parent:
        raise InputError(f"{flag} {path}: there is no folder {path.absolute().parent}; create it first")
    if not above.is_dir():
        raise InputError(f"{flag} {path}: {above} is a file; give another path")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{flag} {path}: {above} cannot be written; choose a folder that you may write")


def check_ranges(config: object, **ranges: tuple[float, float]) -> None:
    """Raise an InputError that names the flag unless each of these fields of `config` is between its (low, high)."""
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if not low <= value <= high:
            allowed = f"{low:g} to {high:g}" if math.isfinite(high) else f"at least {low:g}"
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be {allowed}")


def as_flags(settings: Mapping[str, object]) -> list[str]:
    """Return keyword arguments as flags: a sequence as several values, a boolean as --field or --no-field.

    Args:
        settings: {name: value}, names with _ or -; a dotted name, or a mapping for a value, means fields of a group.
    """
    words: list[str] = []
    for name, value in settings.items():
        group, dot, field = name.replace("_", "-").rpartition(".")
        if isinstance(value, Mapping):
            words += as_flags({f"{name}.{inner}": one for inner, one in value.items()})
        elif isinstance(value, bool):
            words.append(f"--{group}{dot}{'' if value else 'no-'}{field}")
        else:
            words += [f"--{group}{dot}{field}", *map(str, value if isinstance(value, tuple | list) else (value,))]
    return words


def parse_known(default: T, argv: Sequence[str], *, prog: str) -> tuple[T, list[str]]:
    """Return `default` with fields replaced by flags, and the unknown flags. Raises as `parse` does."""
    import tyro

    kind = type(default)
    config, unknown = _in_one_line(
        lambda: tyro.cli(kind, args=list(argv), prog=prog, default=default, return_unknown_args=True), prog
    )
    return _checked(config), unknown


def _in_one_line(read: Callable[[], T], prog: str) -> T:
    """Call tyro; turn its framed error into an InputError of one line, and its help into a manual page."""
    report, shown = io.StringIO(), io.StringIO()
    try:
        with one_column(), contextlib.redirect_stderr(report), contextlib.redirect_stdout(shown):
            return read()
    except SystemExit as stop:
        if not stop.code:
            sys.stdout.write(manual(shown.getvalue()))
            raise
        raise InputError(f"{_message(report.getvalue())} ({prog} --help lists the flags)") from None


PLAIN_WORDS = {
    r"^Missing from .*?: (\S+).*": r"\1 is missing",
    r"^Unrecognized options: (--parts)\b.*": r"\1 goes with --engine slurm, for a command that has --part",
    r"^Unrecognized options: (-[^\s,]+).*": r"there is no flag \1",
    r"^Unrecognized options: (.*)": r"unexpected argument: \1",
    r"^Error parsing (--\S+): ": r"\1: ",
    r"no type matching INT\|\{auto\} could be instantiated from \[('.*?')\].*": r"\1 is neither a whole number nor auto",
    r"invalid literal for int\(\) with base 10: ('.*?')": r"\1 is not a whole number",
    r"could not convert string to float: ('.*?')": r"\1 is not a number",
}
"""What tyro says, as a regular expression, and what to say instead."""


def _message(box: str) -> str:
    """Return tyro's error without its frame: the text above the first rule, and the flag that it suggests."""
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()[1:]]
    if lines and re.fullmatch(r"-+", lines[0]):  # a plain rule under the title, where tyro draws no frame
        del lines[0]
    rule = next((i for i, line in enumerate(lines) if re.match(r"──|--+$", line)), len(lines))
    message = re.sub(r"^Error parsing \w+: ", "", " ".join(filter(None, lines[:rule])))
    for pattern, plain in PLAIN_WORDS.items():
        message = re.sub(pattern, plain, message)
    meant = message.startswith("there is no flag") and re.search(
        r"Perhaps you meant: (--[\w.-]+)", " ".join(lines[rule:])
    )
    return f"{message}; did you mean {meant[1]}?" if meant else message


def run(main: Callable[[list[str]], int] | str, argv: list[str], *, prog: str) -> int:
    """Call the main function of a command and return its exit code.

    Whatever is not a defect is reported in one line on stderr: wrong input, errors of the operating system, a full
    disk, a GPU that is too small, too old or lacks a driver, a stop, Ctrl-C. Any other exception passes.

    Args:
        main: The function, or the name of the module that has it, which is then imported here.
        argv: Its flags.
        prog: Name of the command in messages.
    """
    logging.basicConfig(level=logging.INFO, format=LOG_LINE, datefmt=LOG_TIME)
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # rank 0 holds a connection to every rank
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names and frames of tables print in every locale
    inspect.modulesbyfile = _ModulesByFile(inspect.modulesbyfile)  # type: ignore[attr-defined]
    try:
        return (_import(main, prog).main if isinstance(main, str) else main)(argv)
    except BrokenPipeError:  # `ppma ... | head` closed the pipe, and Python would complain again when it flushes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (Exception, KeyboardInterrupt) as error:
        answer = explain(error)
        if answer is None:
            raise
        log.debug("the error in full", exc_info=True)
        code, line = answer
        with contextlib.suppress(OSError):  # the terminal was closed, and the exit code still counts
            sys.stderr.write(f"{prog}: {' '.join(line.split())}\n")
        return code


class _ModulesByFile(dict[str, str]):
    """`inspect`'s names of modules by file, without asking the file system for the real path of every loaded module.

    torch looks up where its operators are registered. That was 38,000 of the 63,000 file calls of a rank that starts.
    """

    def __contains__(self, file: object) -> bool:
        if not super().__contains__(file):
            for name, module in list(sys.modules.items()):
                if getattr(module, "__dict__", {}).get("__file__") == file:  # a lazy module must not be loaded for this
                    self[str(file)] = name
        return super().__contains__(file)


def name_rank(rank: int) -> None:
    """Add the rank to the log lines of this process."""
    line = LOG_LINE.replace("%(message)s", f"rank {rank}: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter(line, LOG_TIME))


def _import(module: str, prog: str) -> Any:
    """Import a module. Ctrl-C ends the process at once, because compiled modules swallow a KeyboardInterrupt."""

    def leave(number: int, frame: object) -> None:
        os.write(sys.stderr.fileno(), f"{prog}: interrupted\n".encode())
        os._exit(INTERRUPTED)

    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not raises or threading.current_thread() is not threading.main_thread():
        return importlib.import_module(module)
    signal.signal(signal.SIGINT, leave)
    try:
        return importlib.import_module(module)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def explain(error: BaseException) -> tuple[int, str] | None:
    """Return exit code and message of an exception that a command ends with, None for a defect."""
    match error:
        case InputError():
            return WRONG_INPUT, str(error)
        case KeyboardInterrupt():
            return INTERRUPTED, "interrupted"
        case Stopped():
            return RUN_AGAIN, f"stopped cleanly; {error.remedy}"
        case UnicodeError():
            return WRONG_INPUT, f"text that is not UTF-8 ({error}); save the file as UTF-8, or rename it"
        case MemoryError():
            return WRONG_INPUT, f"{error or 'out of memory'}: smaller numbers need less memory"
        case DiskFullError() | OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return RUN_AGAIN, f"{error}; finished work is kept: free space and run the same command again"
        case KilledError():
            return RUN_AGAIN, f"{error}; finished work is kept: free memory and run the same command again"
        case UnreachableError():
            return RUN_AGAIN, f"{error} Finished work is kept: run the same command again"
        case ConnectionError() | FloatingPointError():  # ranks that do not meet, a loss that stays NaN
            return FAILED, str(error)
        case OSError(errno=errno.EIO | errno.ESTALE | errno.ETIMEDOUT | errno.EREMOTEIO | errno.EHOSTDOWN):
            return FAILED, _os_message(error)  # a file system that fails on one rank must not look like wrong input
        case OSError(errno=int()):  # one without a number comes from Python: a defect
            return WRONG_INPUT, _os_message(error)
        case RuntimeError():
            line = gpu_remedy(error)
            return None if line is None else (WRONG_INPUT, line)
    return None


def _os_message(error: OSError) -> str:
    paths = " -> ".join(str(path) for path in (error.filename, error.filename2) if path is not None)
    what = error.strerror or str(error) or type(error).__name__
    return "; ".join(filter(None, [f"{paths}: {what}" if paths else what, OS_REMEDIES.get(error.errno or 0)]))


def gpu_remedy(error: BaseException) -> str | None:
    """Return message and remedy in one line if missing memory or an unusable GPU caused this error, else None."""
    cause: BaseException | None = error
    while cause is not None:
        for sentence in re.split(r"(?<=[.!])\s", " ".join(str(cause).split())):
            for pattern, remedy in GPU_REMEDIES.items():
                if re.search(pattern, sentence):
                    return f"{sentence.rstrip('.')}: {remedy}"
        cause = cause.__cause__
    return None
