"""The user log of an HTCondor job, read while it grows."""

from __future__ import annotations

from aframe_ops.executor.userlog import ABORTED, UserLog

FIRST = "000 (007.000.000) 2026-11-21 10:00:00 Job submitted from host: <10.0.0.1>\n...\n"
LAST = "009 (007.000.000) 2026-11-21 10:01:00 Job was aborted.\n\tstopped, and so on...\n"


def test_a_line_that_ends_with_dots_ends_no_event(tmp_path):
    path = tmp_path / "condor"
    log = UserLog(path)
    path.write_text(FIRST + LAST)
    assert [e.number for e in log.read()] == [0]
    path.write_text(FIRST + LAST + "\tby nobody\n...\n")
    assert [e.number for e in log.read()] == [0, ABORTED]
    assert log.last(ABORTED).reason() == "stopped, and so on... by nobody"


def test_dots_at_the_start_are_passed_over(tmp_path):
    path = tmp_path / "condor"
    path.write_text("...\n")
    log = UserLog(path)
    assert log.read() == []
    path.write_text("...\n" + FIRST)
    assert [e.number for e in log.read()] == [0]
