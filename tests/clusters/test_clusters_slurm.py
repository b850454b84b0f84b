"""Steps on SLURM, against the real daemons: the contract of all batch systems, and what only SLURM has."""

from __future__ import annotations

import time

import pytest
from conftest import wait_until
from contract import Contract, job_of
from slurm_cluster import SITE, SlurmCluster


@pytest.fixture
def cluster(slurm) -> SlurmCluster:
    return slurm


class TestSlurm(Contract):
    out_of_memory = "was killed because memory ran out (OUT_OF_MEMORY); it had 0.7 GB"
    impossible = "PartitionConfig"

    def check_environment(self, note, record):
        assert note["SLURM_JOB_ID"] == record["id"] and note["SLURM_JOB_NAME"] == record["name"]
        assert note["FROM_SETUP"] == "from the set-up" and note["SLURM_JOB_PARTITION"] == "cpu"

    def check_gpu(self, note):
        assert note["SLURM_JOB_PARTITION"] == "gpu"

    def check_requests(self, toy, cluster, ids):
        assert "--mem=668M" in toy.log("hungry.0.sbatch").read_text()
        assert "--mem=1002M" in toy.log("hungry.1.sbatch").read_text()


def test_a_job_that_waits_long_is_healthy_and_a_held_one_is_reported(slurm, new_toy):
    toy = new_toy(slurm, SITE + "  directives: [--hold]\n")
    process = toy.start("fine")
    wait_until(lambda: list((toy.path / "logs").glob("*/fine.0.job")), 60, "the job submitted")
    job = job_of(toy, "fine.0")["id"]
    time.sleep(10)
    assert process.poll() is None and slurm.jobs()[job] == "PENDING"
    slurm.client("scontrol", "release", job)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert output.count(f"job {job} will not start by itself: JobHeldUser (see `scontrol show job {job}`)") == 1


@pytest.mark.parametrize(
    ("asset", "site", "said"),
    [
        ("fine", SITE + "  partition: nowhere\n", "Invalid partition name specified (change slurm.partition"),
        ("boundless", SITE, "Memory specification can not be satisfied"),
        ("on_gpu", SITE.replace("{h200: 141}", "{other: 141}"), "(no node of the partition has as many cores, GPUs or as much memory: "),
        (
            "on_gpu",
            SITE.replace("{h200: 141}", "{small: 8}"),
            "the step needs a GPU with 40 GB, and slurm.gpu.types has none: {'small': 8.0}",
        ),
        ("fine", SITE + "  directives: [--unheard-of=1]\n", "(change slurm.directives)"),
        ("fine", SITE + "  command: [/nonexistent/ssh, login]\n", "/nonexistent/ssh: No such file or directory; slurm.command"),
    ],
)
def test_a_refused_job_fails_its_step_with_slurms_words_and_the_key_to_change(slurm, new_toy, asset, site, said):
    toy = new_toy(slurm, site)
    code, output = toy.run(asset)
    assert code == 1 and said in output, output
    assert f"step {asset} failed: slurm refused the job of step {asset}: " in output
    assert not toy.notes(asset)
    assert not list((toy.path / "logs").glob("*/*.json")), "a start file with credentials was left"


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_commands_through_a_prefix_like_ssh(slurm, new_toy, tmp_path, shell):
    """ssh joins its words and has a shell read them again."""
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\ncd / && echo "$*" >> {tmp_path}/asked && shift && exec {shell} -c "$*"\n')
    ssh.chmod(0o755)
    toy = new_toy(slurm, SITE + f"  command: [{ssh}, login]\n")
    code, output = toy.run("fine", "killed", timeout=240)
    assert code == 0, output
    assert len(toy.notes("fine")) == 1 and len(toy.notes("killed")) == 2
    asked = (tmp_path / "asked").read_text()
    assert "login sbatch" in asked and "login squeue" in asked
