"""Progress where the output is not a terminal: a line with rate and time left, counted from the first call."""

from ppma.common import progress


def test_a_line_has_rate_and_time_left(caplog, monkeypatch):
    now = [100.0]
    caplog.set_level("INFO")
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Progress("clips") as report:
        report(10, 50)
        now[0] += 20
        report(20, 50)
        report(21, 50)
    assert caplog.messages == ["20 of 50 clips, 0.5/s, 60 s left"]
