"""Read files by URL: byte ranges over HTTP, S3 and whatever else fsspec knows, with retries and a bounded local cache.

    "s3://bucket/ucf101.beton"  ->  as_path  ->  Url, a Path
    Url  ->  RemoteFile: offset, size  ->  blocks of 64 KiB  ->  BlockCache, else one range request for each gap, retried

A Url can be used wherever the Path of a file that is only read can. What needs a local path refuses it in one line.
fsspec and its packages are imported at the first read of a URL; a local path never gets here.
"""

import errno
import hashlib
import io
import logging
import os
import random
import re
import socket
import time
import zlib
from collections.abc import Callable
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path, PosixPath
from typing import IO, Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

import numpy as np

from ppma.config.cache import cache_folder
from ppma.config.errors import InputError, RefusedError, UnreachableError

log = logging.getLogger(__name__)
T = TypeVar("T")

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_HTTP = ("http", "https")
CONNECT_SECONDS, READ_SECONDS = 10.0, 30.0
"""Limits for a connection, and for a server that sends nothing."""
WAITS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6)
"""Seconds between the tries of one request, each shortened by a random share of up to a half: 51 s at most."""
QUIET_TRIES = 3
"""Failures of a request before the log names it."""
REMEDIES = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket FSSPEC_S3_ANON=true",
    "http": "check its address, or give credentials: https://USER:PASSWORD@HOST/...",
}
BLOCK = 2**16
STREAM_BYTES, WHOLE_BYTES = 2**20, 2**23
"""Bytes of a request where a file is read on and on, and where it is read whole."""


# ------------------------------------------------------------------------------------------------------------- paths


class Url(PosixPath):
    """A file or folder on a server. `str` leaves out user, password and query; `full` has them, as has a pickle.

    The first part is the scheme, the second the server with user and query, as in https:/user:key@host?sig=1/folder/file.
    """

    def __str__(self) -> str:
        scheme, server, *names = self.parts
        return "/".join((f"{scheme}/", server.partition("?")[0].rpartition("@")[2], *names))

    def __fspath__(self) -> str:
        raise InputError(f"{self} is a URL, and this works on local files only; copy it to a local disk")

    @property
    def scheme(self) -> str:
        """The part before the colon, in lower case; http for https too."""
        return "http" if self.parts[0][:-1] in _HTTP else self.parts[0][:-1]

    @property
    def full(self) -> str:
        """The URL with user, password and query, for requests and data.toml only."""
        scheme, server, *names = self.parts
        if self.scheme != "http":
            return "/".join((f"{scheme}/", server, *names))
        host, mark, query = server.partition("?")
        return "/".join((f"{scheme}/", host, *map(quote, names))) + mark + query

    def is_absolute(self) -> bool:
        return True

    def resolve(self, strict: bool = False) -> "Url":
        return self

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return size and modification time, a number that changes with the file's version. FileNotFoundError without one."""
        file = RemoteFile(self)
        version = int.from_bytes(hashlib.sha256(file.version.encode()).digest()[:7], "big")
        return os.stat_result((0o100444, 0, 0, 0, 0, 0, file.size, 0, 0, 0), {"st_mtime_ns": version})

    def exists(self) -> bool:  # type: ignore[override]  # Python 3.12 has an argument for links
        """Return True if there is such a file; a server cannot be asked for a folder."""
        try:
            return bool(self.stat())
        except FileNotFoundError:
            return False

    is_file = exists  # type: ignore[assignment]

    def is_dir(self) -> bool:  # type: ignore[override]
        return False

    def open(self, mode: str = "r", *_: Any, encoding: str | None = None, **__: Any) -> IO[Any]:  # type: ignore[override]
        """Open the file for reading."""
        if set(mode) - set("rbt"):
            raise InputError(f"{self} is a URL, which is only read; give a local path to write to")
        file = io.BufferedReader(_Stream(RemoteFile(self)), STREAM_BYTES)
        return file if "b" in mode else io.TextIOWrapper(file, encoding)


def as_path(path: str | Path) -> Path:
    """Return a Url for a string such as s3://... or https://..., else a local path (also for file://...)."""
    found = _URL.fullmatch(path) if isinstance(path, str) else None
    if found is None:
        return Path(path) if isinstance(path, str) else path
    scheme, rest = found[1].lower(), found[2]
    if scheme in ("file", "local"):
        server, _, name = rest.partition("/")
        if server not in ("", "localhost"):
            raise InputError(f"{path} names a server; a file:// URL has three slashes: file:///{name}")
        return Path("/" + unquote(name))
    if scheme in _HTTP:
        parts = urlsplit(str(path))
        query = f"?{parts.query.replace('/', '%2F')}" if parts.query else ""
        rest = f"{parts.netloc}{query}{unquote(parts.path)}"
    if not rest.strip("/"):
        raise InputError(f"{path} names no server; write {scheme}://SERVER/FOLDER")
    return Url(f"{scheme}:/{rest}")


# ---------------------------------------------------------------------------------------------------------- requests


@cache
def _filesystem(scheme: str) -> Any:
    """Return the fsspec file system of a scheme. InputError if its package is not installed, or there is none."""
    import fsspec

    options: dict[str, Any] = {}
    try:
        if scheme == "http":
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
            options = {"client_kwargs": {"timeout": timeout}}
        elif scheme == "s3":
            limits = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS, "retries": {"max_attempts": 1}}
            options = {"config_kwargs": limits}
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        package = "pip install s3fs aiohttp" if scheme in ("http", "s3") else f"its fsspec package ({error})"
        raise InputError(f"{scheme}:// needs a package that is not installed: {package}") from None
    except ValueError:
        raise InputError(f"{scheme}:// is no scheme that fsspec knows; use s3://, gs://, https:// or file://") from None


_jitter = random.Random()  # not the module's RNG, which belongs to the program


def _patiently(url: Url, ask: Callable[[], T]) -> T:
    """Return the result of a request, retried with back-off.

    Raises:
        FileNotFoundError: There is no such file.
        RefusedError: The server refuses, and would do so again.
        UnreachableError: It does not answer, or only with errors.
    """
    for tries, wait in enumerate((*WAITS, None), 1):
        try:
            return ask()
        except Exception as error:  # noqa: BLE001 - each package of fsspec raises its own types
            if (refusal := _refusal(url, error)) is not None:
                raise refusal from None  # the chain would show the URL with its credentials
            why = _short(error)
            if wait is None:
                raise UnreachableError(
                    f"{url} cannot be read, after {tries} tries ({why}); is its server up?"
                ) from None
        if tries > QUIET_TRIES:
            log.warning("%s cannot be read (%s); trying again in %.0f s", url, why, wait)
        time.sleep(wait * _jitter.uniform(0.5, 1))
    raise AssertionError("the last try returns or raises")


def _inner(error: Exception) -> BaseException:
    """Return the error that fsspec has wrapped: over HTTP it calls whatever goes wrong "not found"."""
    cause = error.__cause__
    return cause if cause is not None and type(cause).__module__.partition(".")[0] in ("aiohttp", "asyncio") else error


def _short(error: Exception) -> str:
    found = _inner(error)
    status = getattr(found, "status", None)
    return f"the server answers {status}" if status else getattr(found, "strerror", None) or type(found).__name__


def _refusal(url: Url, error: Exception) -> Exception | None:
    """Return what to raise for a permanent error; None for one that is worth another try."""
    found = _inner(error)
    status, kind = getattr(found, "status", None), type(found).__name__
    if isinstance(error, InputError | ImportError):
        return error
    if status in (401, 403) or isinstance(found, PermissionError) or "Credentials" in kind:
        remedy = REMEDIES.get(url.scheme, "set the credentials that its fsspec package reads")
        return RefusedError(f"{url}: permission denied{f' ({status})' if status else ''}; {remedy}")
    if status in (404, 410) or isinstance(found, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "no such file on the server", str(url))
    if status == 416:
        return RefusedError(f"{url}: is shorter than it was when it was opened; copy it there again, and start again")
    if status is not None and 400 <= status < 500 and status not in (408, 425, 429):
        return RefusedError(f"{url}: {_short(error)}; check its address")
    if isinstance(found, ValueError) or "Redirect" in kind:
        return RefusedError(f"{url}: cannot be followed ({kind}); check its address")
    return None


class RemoteFile:
    """Read ranges of one file by URL. Threads can share it."""

    def __init__(self, url: Url) -> None:
        """Ask the server for the file's size and version. Raises as `_patiently` does."""
        self.url, self._fs = url, _filesystem(url.scheme)
        found = _patiently(url, lambda: self._fs.info(url.full))
        if found.get("type") == "directory":
            raise FileNotFoundError(errno.ENOENT, "is a folder on the server, not a file", str(url))
        if found.get("size") is None:
            raise RefusedError(f"{url}: the server does not state its size; use one that answers range requests")
        self.size = int(found["size"])
        names = ("ETag", "etag", "md5Hash", "Last-Modified", "LastModified", "mtime")
        self.version = next((str(found[name]) for name in names if found.get(name)), "")
        """Changes with the file's contents; empty if the server sends neither ETag nor time."""
        self._key = hashlib.sha256(f"{url} {self.size} {self.version}".encode()).digest()

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`, fewer at the end of the file. Raises as `_patiently` does."""
        stop = min(offset + size, self.size)
        numbers = range(offset // BLOCK, -(-stop // BLOCK)) if offset < stop else range(0)
        cached = _block_cache()
        parts: list[bytes | None] = []
        for number in numbers:
            begin, end = max(offset - number * BLOCK, 0), min(stop - number * BLOCK, BLOCK)
            parts.append(cached.get(self._key, number, begin, end, min(BLOCK, self.size - number * BLOCK)))
        for run in _runs([number for number, part in zip(numbers, parts) if part is None]):
            data, shift, at = self._fetch(run), run.start * BLOCK, run.start - numbers.start
            inside = data[max(offset - shift, 0) : stop - shift]
            parts[at : at + len(run)] = [inside, *[b""] * (len(run) - 1)]
        return b"".join(filter(None, parts))

    def read_ahead(self, offset: int, size: int) -> None:
        """Bring a range into the cache. Raises as `_patiently` does."""
        cached = _block_cache()
        if cached.sets:
            numbers = range(offset // BLOCK, -(-min(offset + size, self.size) // BLOCK))
            for run in _runs([number for number in numbers if not cached.has(self._key, number)]):
                self._fetch(run)

    def _fetch(self, run: range) -> bytes:
        """Return a run of blocks by one request, and keep them."""
        begin, end = run.start * BLOCK, min(run.stop * BLOCK, self.size)
        data = _patiently(self.url, lambda: self._request(begin, end))
        for number in run:
            at = number * BLOCK - begin
            _block_cache().put(self._key, number, data[at : at + BLOCK])
        return data

    def _request(self, begin: int, end: int) -> bytes:
        limit = {"timeout": 2 * READ_SECONDS + (end - begin) / 1e6} if self._fs.async_impl else {}
        data: bytes = self._fs.cat_file(self.url.full, start=begin, end=end, **limit)
        if len(data) > end - begin:
            raise RefusedError(f"{self.url}: the server ignores ranges; use one that answers range requests (206)")
        if len(data) < end - begin:
            raise ConnectionError(errno.EPROTO, f"{len(data)} of {end - begin} bytes")
        return data


def _runs(numbers: list[int]) -> list[range]:
    """Return ascending numbers as ranges without gaps: one request each."""
    breaks = [at for at in range(1, len(numbers)) if numbers[at] != numbers[at - 1] + 1]
    return [range(numbers[low], numbers[high - 1] + 1) for low, high in pairwise([0, *breaks, len(numbers)]) if high]


class _Stream(io.RawIOBase):
    """A RemoteFile as a Python file."""

    def __init__(self, file: RemoteFile) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def readall(self) -> bytes:
        found = []
        while data := self._file.read(self._at, WHOLE_BYTES):
            found.append(data)
            self._at += len(data)
        return b"".join(found)


# ------------------------------------------------------------------------------------------------------------- cache

CACHE_VARIABLE, SIZE_VARIABLE = "PPMA_REMOTE_CACHE", "PPMA_REMOTE_CACHE_GB"
"""Environment variables: the folder of the cache, on a local disk, and its bound."""
DEFAULT_GB = 20.0
WAYS = 32
"""Slots that a block may have. The last of a full set passes blocks from reading ahead to reading."""
KEEP_SECONDS = 86400
"""How long a slot keeps its block after its last use; an epoch reads each block once, so all have the same worth."""
TOUCH_SECONDS = 3600
SLOT = np.dtype([("digest", "V20"), ("crc", "<u4"), ("used", "<u4")])


class BlockCache:
    """A file of a fixed size with blocks of remote files, shared by the processes of a machine without locks.

    A block has one of WAYS slots, by the hash of its name. A full set keeps what it has: replacing the oldest would
    help no run that reads everything once an epoch. Each process checks the CRC of a block at its first use, so that
    a block that was half written is a miss. A full disk makes nothing but misses.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Open or create the file; a smaller or larger one of this machine is deleted."""
        self.sets = max(0, limit_bytes) // ((BLOCK + SLOT.itemsize) * WAYS)
        self._data_at = self.sets * WAYS * SLOT.itemsize
        if not self.sets:
            return
        machine = f"blocks-{re.sub('[^A-Za-z0-9.-]', '_', socket.gethostname())}-"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob(f"{machine}[0-9]*"):
                if old.name != f"{machine}{self.sets}":
                    old.unlink(missing_ok=True)
            self._fd = os.open(folder / f"{machine}{self.sets}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            log.warning("%s: %s; what is read by URL is not kept. $%s names a folder", folder, error, CACHE_VARIABLE)
            self.sets = 0

    @cached_property
    def _checked(self) -> np.ndarray:
        """CRC of each slot's block that this process has found right; pages are allocated as they are used."""
        return np.zeros(self.sets * WAYS, np.uint32)

    def _set(self, key: bytes, number: int) -> tuple[bytes, int, bytes]:
        """Return a block's digest, the first slot of its set and the headers of the set."""
        digest = hashlib.blake2b(key + number.to_bytes(8, "little"), digest_size=20).digest()
        first = int.from_bytes(digest[:8], "little") % self.sets * WAYS
        size = WAYS * SLOT.itemsize
        return digest, first, os.pread(self._fd, size, first * SLOT.itemsize).ljust(size, b"\0")

    def has(self, key: bytes, number: int) -> bool:
        """Return True if a slot has this block; its CRC is not checked."""
        digest, _, headers = self._set(key, number)
        return digest in headers

    def get(self, key: bytes, number: int, begin: int, end: int, size: int) -> bytes | None:
        """Return bytes [begin, end) of a block of `size` bytes; None if it is not here."""
        if not self.sets:
            return None
        digest, first, headers = self._set(key, number)
        at = headers.find(digest)
        if at < 0:
            return None
        slot = first + at // SLOT.itemsize
        crc, used = (int.from_bytes(headers[at + skip : at + skip + 4], "little") for skip in (20, 24))
        if self._checked[slot] != crc:
            data = os.pread(self._fd, size, self._data_at + slot * BLOCK)
            if zlib.crc32(data) != crc:
                return None
            self._checked[slot] = crc
            data = data[begin:end]
        else:
            data = os.pread(self._fd, end - begin, self._data_at + slot * BLOCK + begin)
            again = os.pread(self._fd, 24, slot * SLOT.itemsize)
            if again != headers[at : at + 24]:
                return None  # another process has replaced it meanwhile
        if (now := int(time.time())) - used > TOUCH_SECONDS:
            self._write(now.to_bytes(4, "little"), slot * SLOT.itemsize + 24)
        return data

    def put(self, key: bytes, number: int, data: bytes) -> None:
        """Keep a block if there is a slot for it."""
        if not self.sets:
            return
        digest, first, headers = self._set(key, number)
        used, now, at = np.frombuffer(headers, SLOT)["used"], int(time.time()), headers.find(digest)
        slot = at // SLOT.itemsize if at >= 0 else int(used.argmin())
        if at < 0 and used[slot] > now - KEEP_SECONDS:
            slot = WAYS - 1
        slot += first
        header = digest + zlib.crc32(data).to_bytes(4, "little") + now.to_bytes(4, "little")
        if self._write(bytes(SLOT.itemsize), slot * SLOT.itemsize) and self._write(data, self._data_at + slot * BLOCK):
            self._write(header, slot * SLOT.itemsize)

    def _write(self, data: bytes, offset: int) -> bool:
        try:
            return os.pwrite(self._fd, data, offset) == len(data)
        except OSError as error:  # a full or failing disk; what is read stays right without a cache
            log.debug("the cache of URLs cannot be written: %s", error)
            return False


@cache
def _block_cache() -> BlockCache:
    """Return this process's cache, as the environment sets it."""
    given = os.environ.get(SIZE_VARIABLE) or DEFAULT_GB
    try:
        limit = float(given) * 1e9
    except ValueError:
        raise InputError(f"${SIZE_VARIABLE} is {given!r}; give a number of GB, 0 for none") from None
    folder = os.environ.get(CACHE_VARIABLE)
    return BlockCache(Path(folder) if folder else cache_folder() / "remote", int(limit))
