"""What a run reports goes on while the disk is full, and is complete when there is room again."""

import errno
import os
from pathlib import Path

import pytest
import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ppma import phases
from ppma.common import files
from ppma.common.files import PatientFile
from ppma.training.run_folder import read_metrics


class Disk:
    """Takes the place of `os.write`: the disk of a folder has `room` bytes."""

    def __init__(self, folder, monkeypatch, room: float = float("inf")) -> None:
        self.folder, self.room, self.refused = folder, room, 0
        monkeypatch.setattr(files.os, "write", self._write)

    def _write(self, descriptor: int, content: bytes, write=os.write) -> int:
        if self.folder not in Path(f"/proc/self/fd/{descriptor}").readlink().parents:
            return write(descriptor, content)
        if self.room < 1:
            self.refused += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(descriptor, bytes(content[: int(min(self.room, len(content)))]))
        self.room -= written
        return written


@pytest.mark.promise("R4")
def test_a_line_that_the_disk_refused_is_written_later(tmp_path, monkeypatch, caplog):
    disk, file = Disk(tmp_path, monkeypatch, room=5), PatientFile(tmp_path / "lines")
    file.write(b"one\n")
    for line in (b"two\n", b"three\n"):  # the disk takes one byte more
        file.write(line)
    assert (tmp_path / "lines").read_text() == "one\nt" and caplog.text.count("No space left") == 1
    disk.room = 1000
    file.write(b"four\n")
    file.close()
    assert (tmp_path / "lines").read_text() == "one\ntwo\nthree\nfour\n"


@pytest.mark.promise("R4")
def test_lines_that_never_found_room_are_an_error_at_the_end(tmp_path, monkeypatch):
    Disk(tmp_path, monkeypatch, room=0)
    file = PatientFile(tmp_path / "lines")
    file.write(b"one\n")
    with pytest.raises(OSError, match="No space left"):
        file.close()
    file.close()


@pytest.mark.promise("R4")
def test_a_disk_that_is_full_between_checkpoints_changes_nothing(tmp_path, clip_tree, monkeypatch, caplog):
    """Metrics, TensorBoard events and pictures of a run are complete, although its disk was full for three of its steps."""
    data = tiny.make_data(tmp_path, clip_tree, "train")
    disk, advance = Disk(tmp_path, monkeypatch), phases.Monitor.advance

    def fills_up(monitor, step):
        disk.room = {2: 100, 5: float("inf")}.get(step, disk.room)
        advance(monitor, step)

    monkeypatch.setattr(phases.Monitor, "advance", fills_up)
    flags = ("--optim.epochs", 2, "--checkpoint-every", 9, "--pictures-every", 4, "--evaluation.no-at-end")
    folder = phases.train(tiny.config("finetune", data, tmp_path / "run", *flags))
    assert disk.refused and "going on" in caplog.text
    assert [row["step"] for row in read_metrics(folder)] == list(range(1, 7))
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 7))
    assert {event.step for event in events.Images("clips/made")} == {1, 4, 6}
