"""What is said to SLURM and understood of it, with its commands played by a script."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aframe_ops.executor.base import Request
from aframe_ops.executor.commands import Commands
from aframe_ops.executor.scheduler import BatchJob, Phase
from aframe_ops.executor.slurm import Slurm, script
from aframe_ops.sites.slurm import SlurmSite

PLAYED = """
import json, sys
from pathlib import Path
folder = Path(sys.argv[1])
with (folder / "said").open("a") as f:
    f.write(json.dumps(sys.argv[2:]) + "\\n")
answers = json.loads((folder / "answers").read_text())
code, out, err = answers.get(sys.argv[2], [0, "", ""])
if sys.argv[2] == "squeue" and out == "all pending":
    (jobs,) = [w for w in sys.argv if w.startswith("--jobs=")]
    out = "".join(f"{i:30}{'PENDING':20}{'0':12}{'0:00':20}{'Priority':120}\\n" for i in jobs[7:].split(","))
sys.stdout.write(out), sys.stderr.write(err)
sys.exit(code)
"""


class Played:
    """SLURM whose commands answer what they are told to: exit code, output, complaint."""

    def __init__(self, folder: Path):
        self.folder, self.answers = folder, {}
        (folder / "played.py").write_text(PLAYED)
        self.slurm = Slurm(SlurmSite(command=[sys.executable, str(folder / "played.py"), str(folder)]))
        self.answer()

    def answer(self, **answers: tuple[int, str, str]) -> None:
        self.answers |= answers
        (self.folder / "answers").write_text(json.dumps(self.answers))

    def said(self, command: str) -> list[list[str]]:
        path = self.folder / "said"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [words for words in lines if words[0] == command]

    def job(self, name: str, **changes) -> BatchJob:
        place = {"spec": self.folder / f"{name}.json", "log": self.folder / name, "folder": self.folder, "argv": ("true",)}
        return BatchJob(name=name, request=Request(memory_gb=1), number=0, **place | changes)


@pytest.fixture
def played(tmp_path) -> Played:
    return Played(tmp_path)


def test_an_interrupt_of_the_terminal_does_not_reach_a_command():
    done = Commands([sys.executable, "-c", "import os; print(os.getsid(0) == os.getpid())"], "key")()
    assert done.stdout == "True\n"


def test_a_job_whose_folder_is_missing_says_so_and_does_not_start_elsewhere(played, tmp_path):
    gone = tmp_path / "it's gone"
    text = script(played.job("a", folder=gone, argv=("touch", str(tmp_path / "started"))), SlurmSite())
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True)
    assert done.returncode == 1 and not (tmp_path / "started").exists()
    assert f"there is no {gone}, where the step has to start" in done.stderr


def test_thousands_of_jobs_are_asked_about_and_cancelled_in_several_commands(played):
    ids = [f"1234567_{i}" for i in range(12000)]
    played.answer(squeue=(0, "all pending", ""))
    states = played.slurm.poll(ids)
    assert list(states) == ids and {s.phase for s in states.values()} == {Phase.PENDING}
    assert len(played.said("squeue")) == 12
    played.answer(squeue=(0, "", ""))
    assert played.slurm.poll(ids) == {} and len(played.said("sacct")) == 12
    played.slurm.cancel(ids)
    assert [i for words in played.said("scancel") for i in words[1:]] == ids and len(played.said("scancel")) == 12


@pytest.mark.parametrize(
    ("reason", "stuck"),
    [
        ("launch failed requeued held", True),
        ("JobHeldUser", True),
        ("AssocGrpCPUMinutesLimit", True),
        ("QOSGrpGRESMinutes", True),
        ("AssocGrpWallLimit", True),
        ("Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions", True),
        ("AssocGrpCPURunMinutesLimit", False),
        ("AssocGrpCpuLimit", False),
        ("Priority", False),
    ],
)
def test_what_time_alone_does_not_cure(played, reason, stuck):
    played.answer(squeue=(0, f"{'7':30}{'PENDING':20}{'0':12}{'0:00':20}{reason:120}\n", ""))
    assert played.slurm.poll(["7"])["7"].stuck is stuck
