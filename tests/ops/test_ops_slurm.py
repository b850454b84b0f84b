"""What is said to SLURM and understood of it, with its commands played by a script."""

from __future__ import annotations

import subprocess
import sys

import pytest
from slurm_played import Played

from aframe_ops.executor.commands import Commands
from aframe_ops.executor.scheduler import Phase
from aframe_ops.executor.slurm import script
from aframe_ops.sites.slurm import SlurmSite


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
