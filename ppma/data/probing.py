"""Probe many files so that an interrupted run resumes and tasks of an array share the work.

    paths  ->  chunks, in order  ->  Share: a chunk when a worker is free  ->  files probed one by one  ->  a record of each chunk
           ->  answers(): all of them, in the order of the paths

A record has size and time of change of each file: an answer counts only while its file is the same.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ppma.common.frames import clip_place
from ppma.common.shares import Share
from ppma.config.errors import reading
from ppma.config.records import restore
from ppma.loaders.sources.probe import VideoMetadata

CHUNK_FILES = 128
"""A second or two of one core: what a kill costs each worker, and how finely tasks share."""

Answer = VideoMetadata | str
"""The metadata of a file, or why it is refused."""


@dataclass(frozen=True, kw_only=True)
class Probing:
    """Files to probe, and how."""

    root: Path
    paths: Sequence[str]
    """Below the root."""
    share: Share
    probe: Callable[[Iterable[tuple[Any, Path]]], Iterator[tuple[Any, Answer]]]
    """Returns the answer for each key and path (`probe_each`)."""

    @cached_property
    def chunks(self) -> dict[str, Sequence[str]]:
        """The paths in chunks, by the name of the chunk."""
        starts = range(0, len(self.paths), CHUNK_FILES)
        return {f"{start:08d}": self.paths[start : start + CHUNK_FILES] for start in starts}

    def forget_changed(self) -> None:
        """Forget the answers for chunks in which a file has changed."""
        records = self.share.records(self.chunks)
        for name, record in records.items():
            if record["stamps"] != self._stamps(self.chunks[name]):
                self.share.forget(name)

    def run(self, on_progress: Callable[[int, int], None]) -> int:
        """Probe the files of all chunks that this task gets; return how many.

        Args:
            on_progress: Called with (files done, all files).
        """
        before = sum(len(paths) for name, paths in self.chunks.items() if self.share.finished(name))
        done = 0
        on_progress(before, len(self.paths))
        for names in self.share.rounds(list(self.chunks)):
            begun: dict[str, dict[str, Any]] = {}
            for (name, place), answer in self.probe(self._files(names, begun)):
                record = begun[name]
                record["answers"][place] = answer if isinstance(answer, str) else asdict(answer)
                done += 1
                on_progress(before + done, len(self.paths))
                if None not in record["answers"]:
                    self.share.finish(name, begun.pop(name))
        return done

    def _files(self, names: Iterator[str], begun: dict[str, dict[str, Any]]) -> Iterator[tuple[tuple[str, int], Path]]:
        """Yield chunk, place in it and path of each file, and begin the record of each chunk."""
        for name in names:
            paths = self.chunks[name]
            begun[name] = {"stamps": self._stamps(paths), "answers": [None] * len(paths)}
            for place, path in enumerate(paths):
                yield (name, place), self.root / path

    def answers(self) -> list[Answer]:
        """Return the answers for all paths, in their order; InputError if a chunk is not finished."""
        chunks = self.chunks
        self.share.require_all(chunks)
        records = self.share.records(chunks)
        return [answer for name in chunks for answer in self.answers_in(records[name])]

    def answers_in(self, record: dict[str, Any]) -> list[Answer]:
        """Return the answers in the record of a chunk."""
        with reading(self.share.folder or Path(), "the folder of an index that is under way; remove it"):
            return [one if isinstance(one, str) else restore(VideoMetadata, one) for one in record["answers"]]

    def _stamps(self, paths: Sequence[str]) -> list[list[int]]:
        return [_stamp(self.root / path) for path in paths]


def _stamp(path: Path) -> list[int]:
    """Return size and time of the last change of a file, or of the folder of its frames; empty if there is none."""
    try:
        found = clip_place(path).stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]
