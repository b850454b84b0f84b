"""An HTCondor of one slot on this machine: NOT the real daemons, which no package index has, but the executing stand-in
of ``../shared/services/htcondor``: HTCondor's own parser, ClassAds and user log around a queue that really starts jobs.

It needs ``htcondor<25`` (PyPI) in this Python or in ``$CONDOR_PYTHON``. What it cannot show is in docs/htcondor.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SHARED = Path(__file__).resolve().parents[3] / "shared" / "services" / "htcondor"
PYTHON = os.environ.get("CONDOR_PYTHON", sys.executable)
COMMANDS = ("condor_submit", "condor_q", "condor_history", "condor_rm", "condor_hold", "condor_release")


def absent() -> str | None:
    """Why there is no stand-in here, in words; None if there is one."""
    return None if (SHARED / "condor_double.py").exists() else f"the stand-in for HTCondor is not here: {SHARED} (beside the checkout)"


def missing() -> str | None:
    """What the stand-in needs and does not have, in words."""
    done = subprocess.run([PYTHON, "-c", "import classad, htcondor"], env={**os.environ, "CONDOR_CONFIG": "ONLY_ENV"}, capture_output=True)
    return f"{PYTHON} has no 'htcondor<25': pip install it there, or name another Python in CONDOR_PYTHON" if done.returncode else None


class CondorPool:
    """Commands for the stand-in, and its folder. Jobs run as this user; the slot has 8 cores, 16 GB and 2 made-up GPUs."""

    name = "htcondor"
    site = """\
executor:
  backend: htcondor
  poll_seconds: 0.5
  grace_seconds: 2
  env: [TOY, TOY_*, PLANTED]
htcondor:
  setup: |
    export FROM_SETUP='from the set-up'
"""
    held_words = "job {0} will not start by itself: submitted on hold at user's request (`condor_release {0}` lets it go on)"
    cgroups = os.geteuid() == 0 and Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists()
    memory_words = "was stopped because memory ran out; it had 0.7 GB: "
    memory = ("request_memory = 668 MB", "request_memory = 1002 MB")
    asked = ("condor_submit", "condor_q")
    description = ".submit"

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="aframe-condor-"))
        self.bin = self.folder / "bin"
        self.bin.mkdir()
        self._down = self.folder / "down"
        asked = Path(__file__).with_name("condor_questions.py")
        for name in (*COMMANDS, "condor_status"):
            words = shlex.join([PYTHON, str(asked if name == "condor_status" else SHARED / "condor_double.py"), name])
            (self.bin / name).write_text(
                "#!/bin/sh\n"
                f"export CONDOR_DOUBLE_DIR={self.folder} CONDOR_CONFIG=ONLY_ENV _CONDOR_FILESYSTEM_DOMAIN=double\n"
                f'if [ -e {self._down} ]; then echo "ERROR: Can\'t find address of local schedd" >&2; exit 1; fi\n'
                f'case "$*" in *-dry-run*) exec {shlex.join([PYTHON, str(asked)])} "$0";; esac\n'
                f'exec {words} "$@"\n'
            )
            (self.bin / name).chmod(0o755)

    @property
    def env(self) -> dict[str, str]:
        """What a client of this pool needs in its environment."""
        return {"PATH": f"{self.bin}:{os.environ['PATH']}"}

    def client(self, *words: str, timeout: float = 60) -> subprocess.CompletedProcess:
        """Runs an HTCondor command against this pool."""
        return subprocess.run(words, env={**os.environ, **self.env}, capture_output=True, text=True, timeout=timeout)

    def ads(self, id: str) -> dict:
        """Attributes of a job, in the queue or in history."""
        for command in ("condor_q", "condor_history"):
            if text := self.client(command, "-json", id).stdout.strip():
                return json.loads(text)[0]
        return {}

    def active(self) -> set[str]:
        """Ids of the jobs in the queue, held ones too."""
        return set(self.client("condor_q", "-af", "ClusterId").stdout.split())

    def ended_well(self, id: str) -> bool:
        ad = self.ads(id)
        return ad["JobStatus"] == 4 and ad["ExitCode"] == 0

    def ran(self, note: dict, record: dict) -> bool:
        """Whether what a step noted shows that it ran as the job of `record`."""
        return (
            note.get("FROM_SETUP") == "from the set-up"
            and note["BATCH_SYSTEM"] == "HTCondor"
            and self.ads(record["id"])["JobBatchName"] == record["name"]
        )

    def ran_on_gpu(self, note: dict) -> bool:
        return note["CUDA_VISIBLE_DEVICES"].startswith("GPU-")

    def waits(self, id: str) -> bool:
        return self.ads(id)["JobStatus"] in (1, 5)

    def memory_of(self, id: str, description: Path) -> str:
        """The words in which this job asked for memory."""
        return re.search(r"request_memory = .*", description.with_suffix(".submit").read_text())[0]

    @contextlib.contextmanager
    def hold(self) -> Iterator[str]:
        """A site whose jobs wait until they are released."""
        yield self.site + "  commands: {hold: 'true'}\n"

    def questions(self, id: str) -> list[list[str]]:
        """Commands that show all that there is of a job."""
        return [["condor_q", "-long", id], ["condor_history", "-long"]]

    def release(self, id: str) -> None:
        self.client("condor_release", id)

    @contextlib.contextmanager
    def one_at_a_time(self) -> Iterator[str]:
        """A site whose jobs run one after the other."""
        self.slot(Cpus=1)
        try:
            yield self.site
        finally:
            self.slot()

    def slot(self, **attributes: object) -> None:
        """Gives the slot other attributes; without any, its usual ones."""
        (self.folder / "slot.json").write_text(json.dumps(attributes))

    def stop_controller(self) -> None:
        """From now on no command finds the schedd; jobs go on."""
        self._down.touch()

    def start_controller(self) -> None:
        self._down.unlink()

    def close(self) -> None:
        self._down.unlink(missing_ok=True)
        self.client("condor_rm", "-all")
        time.sleep(3)  # starters see that their jobs are gone, and end them
        shutil.rmtree(self.folder, ignore_errors=True)
