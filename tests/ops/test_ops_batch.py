"""What batch handlers decide before any scheduler is asked: the request, the script, the route. Real clusters: tests/clusters."""

from __future__ import annotations

import io
import os
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from aframe_assets.config_load import ConfigError
from aframe_ops.executor.base import Attempt, Relayed, Request, relay_to, write_private
from aframe_ops.executor.batch_options import BatchOptions, job_name, passed_environment, scaled
from aframe_ops.executor.routing import named_by, unknown_routes
from aframe_ops.executor.scheduler import BatchJob, Refused, Usage
from aframe_ops.executor.slurm import _seconds, directives, script
from aframe_ops.executor.usage import describe_usage
from aframe_ops.site import ExecutorSite, load_site
from aframe_ops.sites.slurm import SlurmSite

JOB = BatchJob(
    "step.0-abc", Request(cpus=2, memory_gb=4, time_min=30), 0, ("python", "-c", "pass"), Path("s.json"), Path("/x/log"), Path("/x")
)


def test_memory_grows_with_each_attempt_up_to_the_sites_cap():
    request, options = Request(memory_gb=4, time_min=600), BatchOptions(max_memory_gb=8, max_time_min=240)
    assert [scaled(request, n, options).memory_gb for n in range(4)] == [4, 6, 8, 8]
    assert [scaled(request, n, BatchOptions()).memory_gb for n in range(3)] == [4, 6, 9]
    assert scaled(request, 20, BatchOptions()).memory_gb == 13.5, "it made room twenty times, and did not run out of memory"
    assert scaled(request, 0, options).time_min == 240 and scaled(request, 0, BatchOptions()).time_min == 600


def test_names_of_jobs_are_plain_short_and_different():
    steps = ["a", "a[b]", "a_b_", "x" * 200, "$(touch y)", "--wrap", "…"]
    names = {job_name(Attempt(run, step, n)) for run in ("r1", "r2") for step in steps for n in (0, 1)}
    assert len(names) == 4 * len(steps)
    assert all(len(n) <= 63 and n.replace("_", "").replace(".", "").replace("-", "").isalnum() and n[0] != "-" for n in names)


def test_gpu_steps_get_their_queue_and_the_next_large_enough_type_at_each_attempt():
    site = SlurmSite(partition="cpu", account="lab", gpu={"partition": "gpu", "types": {"t4": 16, "a100": 40, "h100": 80}})
    job = replace(JOB, request=JOB.request._replace(gpus=2, gpu_memory_gb=30))
    lines = [list(directives(replace(job, number=n), site)) for n in range(3)]
    assert [next(x for x in ls if "gres" in x) for ls in lines] == ["--gres=gpu:a100:2", "--gres=gpu:h100:2", "--gres=gpu:a100:2"]
    assert {"--partition=gpu", "--account=lab"} <= set(lines[0])
    assert {"--partition=cpu", "--mem=3815M", "--cpus-per-task=2", "--time=30", "--signal=B:USR1@120"} <= set(directives(JOB, site))
    assert "--signal=B:USR1@30" in directives(replace(JOB, request=JOB.request._replace(time_min=2)), site)
    with pytest.raises(Refused, match="needs a GPU with 90 GB"):
        list(directives(replace(JOB, request=Request(gpus=1, gpu_memory_gb=90)), site))


def test_a_failing_setup_ends_the_job_and_says_which_line():
    text = script(replace(JOB, folder=Path("/")), SlurmSite(setup="export A=1\nfalse || true\nmodule-that-is-not-there load x\n"))
    done = subprocess.run(["bash"], input=text, capture_output=True, text=True)
    assert done.returncode != 0
    assert "aframe: slurm.setup of site.yaml failed: module-that-is-not-there load x" in done.stderr


def test_a_path_that_slurm_cannot_write_to_is_refused():
    with pytest.raises(Refused, match="move the run directory"):
        script(replace(JOB, log=Path("/x/a\nb")), SlurmSite())


def test_only_named_variables_are_passed_on(monkeypatch):
    for name in ("AFRAME_X", "OTHER_SECRET", "MINE_1", "MINE_2"):
        monkeypatch.setenv(name, "1")
    assert set(passed_environment(["AFRAME_*", "MINE_?"])) >= {"AFRAME_X", "MINE_1", "MINE_2"}
    assert "OTHER_SECRET" not in passed_environment(["AFRAME_*", "MINE_?"])


def test_private_files_are_private_whatever_the_umask(tmp_path):
    old = os.umask(0)
    try:
        write_private(tmp_path / "spec", "x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "spec").stat().st_mode) == 0o600


def test_lines_are_relayed_once_and_only_when_they_are_whole(tmp_path):
    seen, path = io.StringIO(), tmp_path / "relay"
    relayed = Relayed(path)
    relay_to(seen)
    try:
        for text in (None, "aframe: one\naframe: t", "wo\n", None):
            if text:
                with path.open("a") as f:
                    f.write(text)
            relayed.pump()
    finally:
        relay_to(None)
    assert seen.getvalue() == "aframe: one\naframe: two\n"


def test_usage_in_words_and_as_metadata():
    words, metadata = describe_usage(Request(cpus=4, memory_gb=8), Usage(elapsed_s=100, cpu_s=300, max_memory_gb=2, host="n1"))
    assert words == "75% of 4 cores for 100 s, 2 of 8 GB"
    assert metadata["cpu efficiency"].value == 0.75 and metadata["max memory (GB)"].value == 2
    assert describe_usage(Request(), Usage(elapsed_s=0.0, cpu_s=0.0)) == ("", {})


@pytest.mark.parametrize(("text", "seconds"), [("1-02:03:04", 93784), ("02:03", 123), ("00:01.500", 1.5), ("INVALID", 0), ("", 0)])
def test_times_of_slurm(text, seconds):
    assert _seconds(text) == seconds


def test_routes_that_lead_nowhere():
    routes = {"modle": "slurm", "gpus": "slurm", "training_*": "slurm", "injections_count": "local", "psd": "local", "?": "local"}
    assert unknown_routes(routes, ["psd", "injections", "training_waveforms"]) == ["modle", "?"]


def test_the_asset_of_a_step():
    assert [named_by(s) for s in ("model", "triggers.infer_chunk[c00001]", "op[a]")] == ["model", "triggers", "op"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("executor: {routes: {gpus: moon}}", "executor.routes.gpus = 'moon'"),
        ("executor: {poll_seconds: 0}", "executor.poll_seconds = 0"),
        ("executor: {transport: pigeon}", "executor.transport = 'pigeon'"),
        ("executor: {transports: {local: detached}}", "executor.transports.local"),
        ("executor: {env: ['A B']}", "executor.env.0 = 'A B'"),
        ("slurm: {partition: 'a b'}", "slurm.partition = 'a b'"),
        ("slurm: {gpu: {types: {a100: 0}}}", "slurm.gpu.types.a100 = 0"),
        ("slurm: {directives: [--mem=1G]}", "--mem is set by the step's resources and executor.max_memory_gb"),
        ("slurm: {directives: ['-p gpu']}", "expected --option or --option=value"),
        ("htcondor: {accounting_group: 'a b'}", "htcondor.accounting_group = 'a b'"),
        ("htcondor: {requirements: '(x'}", "whose brackets and quotes are closed"),
        ("htcondor: {container_image: 'a$(b)'}", "htcondor.container_image = 'a$(b)'"),
        ("htcondor: {commands: {queue: '2'}}", "queue is set by the executor alone"),
        ("executor: {routes: {gpus: htcondor}}\nhtcondor: {shared_disk: false}", "expected s3://bucket/prefix"),
        ("slurm: {partitions: a}", "slurm.partitions = 'a': unknown key; did you mean partition?"),
        ("slurm: {gpu: {zzz: a}}", "slurm.gpu.zzz = 'a': unknown key; expected one of partition, account, qos, directives, types"),
        ("sIurm: {partition: a}", "sIurm = {'partition': 'a'}: unknown key; did you mean slurm?"),
        ("slurm: {account: 123}", "slurm.account = 123: expected text; put it in quotes"),
        ("slurm: {directives: --x}", "slurm.directives = '--x': expected a list, as in [a, b]"),
        ("slurm: [a]", "slurm = ['a']: expected keys with values below it"),
        ('slurm: {command: ["a\\0b"]}', "slurm.command.0 = 'a\\x00b': expected text of the form"),
        ("slurm: {command: ['']}", "slurm.command.0 = '': expected text of the form"),
        ("executor: {backend: local}\nexecutor: {backend: slurm}", "executor: stands there more than once"),
        ("executor: {poll_seconds: .inf}", "executor.poll_seconds = inf"),
        ("directory: /etc", "directory: is the folder of this file and cannot be set"),
        ("store: {root: 's3://key:plan/ted@bucket/x'}", "store = {'root': 's3://***@bucket/x'}: expected an address without user and keys"),
        ("executor: {backend: kubernetes}", "kubernetes.image is not set"),
        ("kubernetes: {namespace: 'A b'}", "kubernetes.namespace = 'A b'"),
        ("kubernetes: {volumes: [{path: /d}]}", ": expected exactly one of claim, secret, empty_gb"),
        ("kubernetes: {volumes: [{path: /d/../e, claim: c}]}", "'..' is not allowed"),
        ("kubernetes: {volumes: [{path: /dev/shm/, claim: c}]}", "mounted by the executor itself"),
        ("kubernetes: {volumes: [{path: /d, claim: c}, {path: /d/, claim: e}]}", "more than one at /d"),
        ("kubernetes: {tolerations: [{key: a, value: b}]}", "a value needs operator: Equal"),
        ("kubernetes: {gpu: {products: {a100: 0}}}", "kubernetes.gpu.products.a100 = 0"),
    ],
)
def test_mistakes_in_the_site_file_are_named(tmp_path, text, said):
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as e:
        load_site(path)
    assert said in str(e.value)


def test_a_section_of_comments_is_none_and_bytes_are_no_site(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text("executor:\n  # backend: slurm\nslurm: {partition: a}\n")
    assert load_site(path).executor.backend == "local"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"cannot be read .*expected a site file"):
        load_site(path)


def test_a_site_is_read_again_as_it_was_written(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text("executor: {routes: {gpus: slurm}}\nslurm: {gpu: {types: {a100: 40}}, directives: [--constraint=avx2]}\n")
    site = load_site(path)
    assert site.executor.backends == ("local", "slurm")
    (tmp_path / "site.json").write_text(site.model_dump_json())
    assert load_site(tmp_path / "site.json") == site


def test_how_jobs_report_by_backend_and_in_general():
    site = ExecutorSite(transport="detached", transports={"kubernetes": "direct"})
    assert [site.transport_of(name) for name in ("slurm", "htcondor", "kubernetes")] == ["detached", "detached", "direct"]
    assert ExecutorSite().transport_of("slurm") == "direct"
