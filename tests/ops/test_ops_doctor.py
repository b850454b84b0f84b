"""`aframe doctor` about databases, stores and batch systems. Commands of the latter are stand-ins here; real ones are in tests/clusters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aframe_ops.cli import doctor_database
from aframe_ops.cli.doctor_database import check_database, filesystem, is_network, read_database
from aframe_ops.cli.doctor_findings import Finding, blotted, secrets_of, within
from aframe_ops.cli.doctor_htcondor import check_htcondor
from aframe_ops.cli.doctor_kubernetes import _places
from aframe_ops.cli.doctor_slurm import check_slurm, runs_here
from aframe_ops.cli.doctor_steps import Need, needs
from aframe_ops.cli.main import app
from aframe_ops.executor.base import Request
from aframe_ops.executor.scheduler import Refused
from aframe_ops.run_directory import RunDirectory
from aframe_ops.site import load_site
from aframe_ops.sites.htcondor import HTCondorSite
from aframe_ops.sites.kubernetes import KubernetesSite
from aframe_ops.sites.slurm import SlurmSite

SMALL = Need(Request(cpus=1, memory_gb=2, time_min=30), ("psd",))
LARGE = Need(Request(cpus=4, memory_gb=8, gpus=2, gpu_memory_gb=40, time_min=60), ("model", "engine"))
PASSWORD = "pa55@w0rd-planted"


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Puts a command on the path that records its words and input, and answers as told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def make(name: str, out: str = "", err: str = "", code: int = 0, body: str = "") -> None:
        record = f"printf '%s\\n' \"$*\" >> {tmp_path}/{name}.argv; cat >> {tmp_path}/{name}.stdin\n"
        answer = f"cat <<'EOF'\n{out}\nEOF\n" if out else ""
        complain = f"cat >&2 <<'EOF'\n{err}\nEOF\n" if err else ""
        (folder / name).write_text(f"#!/bin/sh\n{record}{body}\n{answer}{complain}exit {code}\n")
        (folder / name).chmod(0o755)

    return make


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunDirectory:
    path = tmp_path / "run dir"
    monkeypatch.setenv("DAGSTER_HOME", str(path / "dagster_home"))
    assert CliRunner().invoke(app, ["init", str(path), "--preset", "demo"]).exit_code == 0
    return RunDirectory(path)


def texts(found, level: str) -> list[str]:
    return [f.text for f in found if f.level == level]


def rows(*nodes: tuple[str, str, str]) -> str:
    return "\n".join(f"{partition:60}{host:80}{gres:200}" for partition, host, gres in nodes)


# --- SLURM ----------------------------------------------------------------------------------------


def test_slurm_is_shown_every_kind_of_job_and_queues_none(fake, tmp_path):
    fake("sbatch", err="sbatch: Job 17 to start at 2026-01-01T00:00:00 using 4 processors on nodes n1 in partition gpu")
    fake("sinfo", rows(("cpu*", "n0", "(null)"), ("gpu", "n1", "gpu:a100:4(S:0-1)"), ("gpu", "n2", "gpu:t4:1,shard:8")))
    site = SlurmSite(partition="cpu", account="lab", gpu={"partition": "gpu", "types": {"a100": 40, "t4": 16}})
    found = list(check_slurm(site, [LARGE, SMALL], tmp_path))
    assert not texts(found, "error") and not texts(found, "warning")
    assert texts(found, "ok") == [
        "slurm takes 2 kinds of jobs, the largest: 4 cores, 8 GB, 2 GPUs of 40 GB, 60 min (model, engine): "
        "to start at 2026-01-01T00:00:00 using 4 processors on nodes n1 in partition gpu",
        "slurm: partition gpu has a100 (4 a node), t4 (1 a node); a100 for 4 cores, 8 GB, 2 GPUs of 40 GB, 60 min (model, engine)",
    ]
    assert (tmp_path / "sbatch.argv").read_text().splitlines() == ["--test-only --export=NONE --no-requeue"] * 2
    scripts = (tmp_path / "sbatch.stdin").read_text()
    assert "#SBATCH --gres=gpu:a100:2" in scripts and "#SBATCH --partition=cpu" in scripts and "#SBATCH --account=lab" in scripts


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("sbatch: error: invalid partition specified: x", "change slurm.partition"),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified", "change slurm.account"),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", "change slurm.qos"),
    ],
)
def test_what_slurm_refuses_comes_with_the_key_to_change(fake, tmp_path, said, fix):
    fake("sbatch", err=said.replace("invalid partition specified", "Invalid partition name specified"), code=1)
    (found,) = check_slurm(SlurmSite(), [SMALL], tmp_path)
    assert found.level == "error" and found.text.startswith("slurm refuses 1 core, 2 GB, 30 min (psd): ") and fix in found.text


def test_a_slurm_that_is_not_there_or_silent_is_asked_once(fake, tmp_path, monkeypatch):
    fake("sbatch", err="sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", code=1)
    run = CliRunner().invoke(app, ["init", str(tmp_path / "r"), "--preset", "demo", "--profile", "slurm"])
    assert run.exit_code == 0
    result = CliRunner().invoke(app, ["doctor", str(tmp_path / "r")])
    assert result.exit_code == 1 and result.output.count("slurm does not answer") == 1, result.output
    assert "name a login node in slurm.command" in result.output
    (tmp_path / "r" / "site.yaml").write_text("executor: {backend: slurm}\nslurm: {command: [/no/such/ssh, login]}\n")
    result = CliRunner().invoke(app, ["doctor", str(tmp_path / "r")])
    assert result.exit_code == 1 and "/no/such/ssh: No such file or directory; slurm.command = " in result.output


@pytest.mark.parametrize(
    ("site", "gres", "level", "said"),
    [
        ({"types": {"h100": 80}}, "gpu:a100:4", "error", "has no GPU of type h100, but a100 (4 a node): change slurm.gpu.types"),
        ({"types": {"h100": 80, "a100": 40}}, "gpu:a100:4", "warning", "has no GPU of type h100"),
        ({"types": {"a100": 40}}, "gpu:a100:1", "error", "no GPUs for 4 cores, 8 GB, 2 GPUs of 40 GB"),
        ({}, "gpu:4", "warning", "their memory is not known to SLURM"),
        ({}, "(null)", "error", "no node of partition gpu has a GPU"),
        ({"partition": "fast"}, "gpu:4", "error", "no node in partition fast; partitions are gpu: change slurm.gpu.partition"),
    ],
)
def test_gpus_that_do_not_fit(fake, tmp_path, site, gres, level, said):
    fake("sbatch", err="sbatch: Job 17 to start")
    fake("sinfo", rows(("gpu", "n1", gres)))
    found = list(check_slurm(SlurmSite(gpu={"partition": "gpu", **site}), [LARGE], tmp_path))
    assert any(said in text for text in texts(found, level)), found


@pytest.mark.parametrize(
    ("site", "minutes", "said"),
    [
        ({}, 61, "a job of 2 cores, 1 GB, 61 min (train) would wait for ever: the default partition allows 60 min"),
        ({"partition": "long"}, 1441, "partition long allows 1440 min; set executor.max_time_min: 1440"),
        ({"partition": "cpu,long"}, 61, None),
        ({"partition": "gpu"}, 10**6, None),
        ({}, 60, None),
    ],
)
def test_a_job_longer_than_its_partition_allows_is_told_though_sbatch_takes_it(fake, tmp_path, site, minutes, said):
    fake("sbatch", err="sbatch: Job 17 to start")
    fake("sinfo", "cpu*,1:00:00\nlong,1-00:00:00\ngpu,infinite")
    need = Need(Request(cpus=2, memory_gb=1, time_min=minutes), ("train",))
    errors = texts(check_slurm(SlurmSite(**site), [need], tmp_path), "error")
    assert len(errors) == (said is not None) and all(said in e for e in errors), errors


def test_a_cluster_of_this_machine_alone_is_known_as_such(fake):
    here = os.uname().nodename.split(".")[0]
    fake("sinfo", rows(("a", here, "(null)"), ("b", here, "(null)")))
    assert runs_here(SlurmSite()) is True
    fake("sinfo", rows(("a", here, "(null)"), ("b", "other", "(null)")))
    assert runs_here(SlurmSite()) is False
    fake("sinfo", err="slurm_load_node: Unable to contact slurm controller", code=1)
    assert runs_here(SlurmSite()) is None


# --- HTCondor -------------------------------------------------------------------------------------

SLOT = {"Machine": "n1", "TotalCpus": 8, "TotalMemory": 32000, "TotalGPUs": 2, "GPUs_GlobalMemoryMb": 40536, "GPUs_DeviceName": "A100"}


def test_htcondor_reads_descriptions_and_shows_slots(fake, tmp_path):
    fake("condor_submit", "Dry-Run job(s).\nClusterId=1")
    fake("condor_q", "[]")
    fake("condor_status", json.dumps([SLOT]))
    found = list(check_htcondor(HTCondorSite(accounting_group="ligo.dev"), [LARGE, SMALL], tmp_path))
    assert not texts(found, "error"), found
    assert "htcondor: A100 (42.5 GB) for 4 cores, 8 GB, 2 GPUs of 40 GB, 60 min (model, engine)" in texts(found, "ok")
    assert (tmp_path / "condor_submit.argv").read_text().splitlines() == ["-dry-run - -"] * 2
    assert "request_gpus = 2\ngpus_minimum_memory = 38147 MB" in (tmp_path / "condor_submit.stdin").read_text()


@pytest.mark.parametrize(
    ("slot", "said"),
    [
        ({"TotalGPUs": 1}, "no machine has the GPUs of"),
        ({"GPUs_GlobalMemoryMb": 16000}, "no machine has the GPUs of"),
        ({"TotalMemory": 4000}, "no machine of the pool is large enough for"),
    ],
)
def test_slots_that_are_too_small(fake, tmp_path, slot, said):
    fake("condor_submit")
    fake("condor_q")
    fake("condor_status", json.dumps([SLOT | slot]))
    assert [said in text for text in texts(check_htcondor(HTCondorSite(), [LARGE], tmp_path), "error")] == [True]


def test_htcondor_refuses_or_is_not_there(fake, tmp_path):
    fake("condor_submit", err="ERROR: Parse error in expression: \n\tRequirements = Memory >", code=1)
    fake("condor_q", err="-- Failed to fetch ads from: <127.0.0.1:9618> : CEDAR:6001", code=1)
    found = list(check_htcondor(HTCondorSite(command=["env"]), [SMALL], tmp_path))
    refused, silent = texts(found, "error")
    assert "htcondor refuses 1 core, 2 GB" in refused and "change htcondor.requirements" in refused
    assert "the schedd does not answer condor_q" in silent and "htcondor.command = ['env']" in silent


# --- Kubernetes -----------------------------------------------------------------------------------


class Nodes:
    """A cluster that only knows its nodes."""

    def __init__(self, *nodes):
        self._nodes = nodes

    def nodes(self):
        if not self._nodes:
            raise Refused('nodes is forbidden: User "u" cannot list resource "nodes"')
        return list(self._nodes)


def node(gpus: str = "2", cpu: str = "8", **labels: str) -> dict:
    return {
        "metadata": {"labels": {k.replace("__", "."): v for k, v in labels.items()}},
        "status": {"allocatable": {"cpu": cpu, "memory": "64Gi", "nvidia.com/gpu": gpus}},
    }


def labelled(memory: str = "", product: str = "", **more: str) -> dict:
    made = node(**more)
    made["metadata"]["labels"] |= {"nvidia.com/gpu.memory": memory or "0", "nvidia.com/gpu.product": product}
    return made


@pytest.mark.parametrize(
    ("site", "nodes", "level", "said"),
    [
        ({}, [labelled("81559")], "ok", "1 node with the GPUs of 4 cores"),
        ({}, [labelled("16384")], "error", "nvidia.com/gpu.memory is 16384: change kubernetes.gpu.memory_label"),
        ({"gpu": {"products": {"A100": 40}}}, [labelled(product="A100")], "ok", "nvidia.com/gpu.product is A100"),
        ({"gpu": {"products": {"H100": 80}}}, [labelled(product="T4")], "error", "is T4: change kubernetes.gpu.products"),
        ({}, [labelled("81559", gpus="1")], "error", "at most 8 cores, 68.7 GB, 1 of nvidia.com/gpu; change kubernetes.gpu.resource"),
        ({}, [labelled("81559", cpu="2")], "error", "none of 1 nodes is large enough"),
        ({"node_selector": {"zone": "b"}}, [labelled("81559")], "error", "no node has the labels zone=b"),
        ({}, [], "warning", "may not list nodes"),
    ],
)
def test_nodes_and_gpus_of_kubernetes(site, nodes, level, said):
    found = list(_places(Nodes(*nodes), KubernetesSite(image="a", **site), [LARGE]))
    assert len(found) == 1 and found[0].level == level and said in found[0].text, found


# --- the database ---------------------------------------------------------------------------------


def mount(monkeypatch, kind: str) -> None:
    monkeypatch.setattr(doctor_database, "filesystem", lambda path: kind)


@pytest.mark.parametrize("kind", ["nfs4", "lustre", "gpfs", "cifs", "beegfs_nodev", "fuse.sshfs", "ceph"])
def test_sqlite_on_a_network_disk_is_refused_for_steps_elsewhere(run, monkeypatch, kind):
    mount(monkeypatch, kind)
    (found,) = check_database(run, run.site(), ("slurm",))
    assert found.level == "error" and kind in found.text and "--database env:NAME" in found.text
    # one machine may use it, at its own risk
    warned, reached = check_database(run, run.site(), ())
    assert (warned.level, reached.level) == ("warning", "ok") and kind in warned.text and "--database env:NAME" in warned.text
    assert is_network(kind) and not is_network("ext4") and not is_network("overlay")


def test_sqlite_with_steps_elsewhere_is_refused_and_with_none_accepted(run, monkeypatch):
    mount(monkeypatch, "ext4")
    (found,) = check_database(run, run.site(), ("slurm", "kubernetes"))
    assert found.level == "error" and "serves one machine, and steps run on slurm, kubernetes" in found.text
    assert [f.level for f in check_database(run, run.site(), ())] == ["ok", "ok"]


def test_the_folder_of_sqlite_counts_and_not_that_of_the_run(run, tmp_path, monkeypatch):
    (run.dagster_home / "dagster.yaml").write_text(f"storage: {{sqlite: {{base_dir: {tmp_path / 'elsewhere'}}}}}\n")
    monkeypatch.setattr(doctor_database, "filesystem", lambda path: "nfs" if path.is_relative_to(run.path) else "ext4")
    assert read_database(run.dagster_home).folder == tmp_path / "elsewhere"
    assert [f.level for f in check_database(run, run.site(), ())] == ["ok", "ok"]


def test_the_mount_table_is_read_to_the_deepest_point(tmp_path):
    assert filesystem(Path("/proc/self")) == "proc" and filesystem(tmp_path / "not there yet") == filesystem(tmp_path)


POSTGRES = "storage: {postgres: {postgres_url: {env: TEST_PG_URL}}}\n"


@pytest.mark.parametrize(
    ("url", "site", "said"),
    [
        (None, "", "takes Dagster's database from $TEST_PG_URL, which is not set"),
        (f"postgresql+psycopg2://me:{PASSWORD}@db.example.org/x", "", "do not get $TEST_PG_URL"),
        (f"postgresql+psycopg2://me:{PASSWORD}@127.0.0.1:1/x", "executor: {env: [TEST_*]}\n", "on the nodes of slurm is the node itself"),
        (f"postgresql://me:{PASSWORD}@db.example.org/x", "executor: {env: [TEST_*]}\n", "write postgresql+psycopg2://"),
        (f"postgresql+psycopg2://me:{PASSWORD}@[db/x", "executor: {env: [TEST_*]}\n", "is no URL; expected postgresql+psycopg2://"),
    ],
)
def test_a_shared_database_that_jobs_cannot_use(run, monkeypatch, url, site, said):
    (run.dagster_home / "dagster.yaml").write_text(POSTGRES)
    (run.path / "site.yaml").write_text(site)
    if url:
        monkeypatch.setenv("TEST_PG_URL", url)
    found = list(check_database(run, run.site(), ("slurm",)))
    assert [f.level for f in found] == ["error"] and said in found[0].text, found
    assert PASSWORD not in found[0].text


def test_a_database_that_is_not_there_is_named_without_its_password(run, monkeypatch):
    (run.dagster_home / "dagster.yaml").write_text(POSTGRES)
    monkeypatch.setenv("TEST_PG_URL", f"postgresql+psycopg2://me:{PASSWORD}@127.0.0.1:1/x")
    result = CliRunner().invoke(app, ["doctor", str(run.path), "--json"])
    assert result.exit_code == 1
    (found,) = [f for f in json.loads(result.output)["findings"] if f["check"] == "database" and f["level"] == "error"]
    assert "127.0.0.1, port 1: Connection refused" in found["text"] and "dagster.yaml" in found["text"]
    assert PASSWORD not in result.output and "w0rd-planted" not in result.output


# --- what jobs need of the store ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "env", "said"),
    [
        ("executor: {backend: slurm}\n", {}, "nodes of slurm must see"),
        ("executor: {backend: kubernetes}\nkubernetes: {image: a}\n", {}, "mount it with kubernetes.volumes"),
        (
            "executor: {backend: slurm}\nstore: {root: 's3://b/x'}\n",
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            "on each node the node itself",
        ),
        (
            "executor: {backend: slurm}\nstore: {root: 's3://b/x'}\n",
            {"AWS_ENDPOINT_URL": "https://s3.org"},
            "need a route to https://s3.org",
        ),
    ],
)
def test_what_jobs_need_to_reach_the_store(run, monkeypatch, site, env, said):
    from aframe_ops.cli.doctor import _store_of_jobs

    for name, value in env.items():
        monkeypatch.setenv(name, value)
    (run.path / "site.yaml").write_text(site)
    loaded = load_site(run.path / "site.yaml")
    assert any(said in f.text for f in _store_of_jobs(loaded, [b for b in loaded.executor.backends if b != "local"]))


# --- all together ---------------------------------------------------------------------------------


def test_exit_codes_and_json(run, tmp_path):
    result = CliRunner().invoke(app, ["doctor", str(run.path), "--json"])
    found = json.loads(result.output)
    assert result.exit_code == 0 and found["ok"] is True
    assert {"python", "packages", "machine", "experiment", "disk", "database", "store"} <= {f["check"] for f in found["findings"]}
    assert CliRunner().invoke(app, ["doctor", str(tmp_path)]).exit_code == 2
    (run.path / "site.yaml").write_text("executor: {backend: moon}\n")
    result = CliRunner().invoke(app, ["doctor", str(run.path)])
    assert result.exit_code == 2 and "executor.backend = 'moon'" in result.output


def test_a_check_that_hangs_is_ended_with_what_it_started(fake, run, tmp_path):
    fake("sinfo", body="sleep 300")
    fake("sbatch", body=f"echo $$ > {tmp_path}/pid; exec sleep 300")
    (run.path / "site.yaml").write_text("executor: {backend: slurm}\n")
    start = time.monotonic()
    result = CliRunner().invoke(app, ["doctor", str(run.path), "--timeout", "3"])
    assert result.exit_code == 1 and "slurm: no answer within 3 s" in result.output, result.output
    assert time.monotonic() - start < 60
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z"
    assert not list((run.path / "logs").glob("doctor-*")), "files of the check that was ended"


def test_a_check_that_dies_or_raises_is_reported():
    def dies(number: int):
        yield Finding("ok", "first")
        os.kill(os.getpid(), number)

    for number, word in ((signal.SIGTERM, "SIGTERM"), (signal.SIGKILL, "by the kernel when memory ran out")):
        first, died = within(20, "x", lambda number=number: dies(number))
        assert first == Finding("ok", "first", "x") and died.level == "error" and word in died.text
    (left,) = within(20, "x", lambda: exit(3))
    assert left.level == "error" and "what it had still to find is not known" in left.text
    (found,) = within(20, "x", lambda: 1 / 0)
    assert found == Finding("error", "ZeroDivisionError: division by zero", "x")


def test_secrets_are_blotted_out():
    env = {"AWS_SECRET_ACCESS_KEY": "abc/def+ghi", "PG": f"postgresql://me:{PASSWORD}@db/x", "PGPASSWORD": "hunter22", "HOME": "/home/me"}
    hidden = secrets_of(env)
    text = blotted(f"abc/def+ghi hunter22 {PASSWORD} w0rd-planted postgresql://you:other@db2/y /home/me", hidden)
    assert text == "*** *** *** *** postgresql://you:***@db2/y /home/me"


def test_what_the_graph_asks_for_and_where_it_goes(run):
    (run.path / "site.yaml").write_text(
        "executor: {routes: {model: slurm, 'training_*': htcondor}, max_memory_gb: 2}\nhtcondor: {accounting_group: a}\n"
    )
    found = needs(run.config(), run.site())
    assert [n.steps for n in found["slurm"]] == [("model",)] and found["slurm"][0].request.memory_gb == 2
    assert all(s.startswith("training_waveforms") for n in found["htcondor"] for s in n.steps) and "local" in found


def test_its_modules_are_light():
    code = "import sys; import aframe_ops.cli.doctor; print({'torch', 'kubernetes', 'boto3', 'sqlalchemy'} & set(sys.modules) or '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
