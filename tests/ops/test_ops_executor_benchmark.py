"""`python -m benchmarks.executor`, small: what a step's events are, and that each part of its cost is counted."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.executor import PARTS


def measured(*words: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.executor", "--here", *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_events_of_steps_are_written_and_read_back():
    found = measured("bookkeeping", "5", "aframe", "sqlite")
    # of 5 steps; and of the run that plans and materialises as many partitions
    assert found["events_of_a_step"] >= 10 and found["events"] >= 5 * found["events_of_a_step"] + 10
    assert min(found["steps"], found["partitions"], found["reading"]) > 0


def test_every_part_of_a_step_is_counted():
    found = measured("steps", "2", "aframe", "sqlite")
    assert set(found) == set(PARTS) and min(found.values()) > 0
