"""No value is ever run by a shell, on the way to SLURM or in the job; and no secret is where others can read it."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest
from conftest import SITE, wait_until
from hostile import ECHO, holding, hostile, job_for
from pydantic import ValidationError

from aframe_ops.executor.scheduler import Phase, Refused
from aframe_ops.executor.slurm import Slurm
from aframe_ops.sites.slurm import SlurmSite


def test_200_hostile_strings_as_arguments_paths_and_directives(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    marker = tmp_path / "marker"
    texts = hostile(marker)
    assert len(texts) == 200
    submitted: dict[str, tuple[str, Path, str]] = {}
    comments: dict[str, str] = {}
    logs: dict[str, Path] = {}
    refused = 0
    for number, text in enumerate(texts):
        answer = tmp_path / f"{number}.json"
        # as the name of a folder, a slash means another folder
        folder = tmp_path / "folders" / str(number) / ("_" + text.replace("/", "_").replace("\x00", ""))
        folder.mkdir(parents=True)
        site = {"directives": [f"--comment={text}"]}
        try:
            scheduler = Slurm(SlurmSite(**site))
        except ValidationError:
            scheduler, refused = Slurm(SlurmSite()), refused + 1
            site = {}
        argv = (sys.executable, "-c", ECHO, str(answer), text)
        changes = {"folder": folder, "python_path": text}
        try:
            id = scheduler.submit(job_for(tmp_path, number, argv, log=folder / "log", **changes))
            logs[id] = folder / "log.err"
        except Refused as e:
            assert "control character" in str(e), text
            id = scheduler.submit(job_for(tmp_path, number, argv, **changes))
        submitted[id] = (text, answer, str(folder))
        if site:
            comments[id] = text
    wait_until(lambda: all(s.phase is Phase.ENDED for s in scheduler.poll(list(submitted)).values()), 180, "all jobs to end")
    for id, (text, answer, folder) in submitted.items():
        assert answer.exists(), (text, slurm.client("scontrol", "show", "job", id).stdout)
        arguments, cwd, python_path = json.loads(answer.read_text())
        assert arguments == [text] and cwd == folder and python_path == text
    assert not marker.exists()
    assert len(logs) > 120 and all(p.read_text() == "" for p in logs.values())
    assert len(comments) + refused == 200 and refused > 20 and len(comments) > 50
    shown = slurm.client("scontrol", "show", "job").stdout
    for text in comments.values():
        assert f"Comment={text}\n" in shown or f"Comment={text} \n" in shown, text


@pytest.mark.parametrize("key", ["partition", "account", "qos"])
def test_200_hostile_names_of_queues_are_refused_when_the_site_is_read(key, tmp_path):
    for text in hostile(tmp_path / "marker"):
        with pytest.raises(ValidationError):
            SlurmSite(**{key: text})
        with pytest.raises(ValidationError):
            SlurmSite(gpu={"types": {text: 80}})


@pytest.mark.parametrize(
    ("directive", "said"),
    [
        ("--output=/tmp/x", "--output is set by the executor alone"),
        ("--outp=/tmp/x", "--output is set by the executor alone"),
        ("--wra=rm", "--wrap is set by the executor alone"),
        ("--mem=1G", "--mem is set by the step's resources and executor.max_memory_gb"),
        ("--export=ALL", "--export is set by executor.env"),
        ("-p gpu", "expected --option or --option=value"),
        ("--comment=a\n#SBATCH --hold", "expected --option or --option=value"),
    ],
)
def test_directives_that_are_not_the_sites_to_give(directive, said):
    with pytest.raises(ValidationError, match=said.replace("'", ".")):
        SlurmSite(directives=[directive])


def test_a_secret_is_only_in_a_file_that_its_owner_can_read_and_that_goes_when_the_job_starts(slurm, new_toy):
    secret = "planted-secret-6f1d"
    toy = new_toy(slurm, SITE + "  directives: [--hold]\n", PLANTED=secret, AWS_SECRET_ACCESS_KEY=secret)
    process = toy.start("waiting")
    wait_until(lambda: list((toy.path / "logs").glob("*/waiting.0.job")), 60, "the job submitted")
    job = json.loads(toy.log("waiting.0.job").read_text())["id"]
    spec = toy.log("waiting.0.json")
    assert secret in spec.read_text()
    assert stat.S_IMODE(spec.stat().st_mode) == 0o600
    assert stat.S_IMODE(toy.log("waiting.0.sbatch").stat().st_mode) == 0o600
    assert holding(secret, toy.path) == [spec]
    slurm.client("scontrol", "release", job)
    (note,) = toy.wait_for("waiting")
    assert note["PLANTED"] == secret
    assert holding(secret, toy.path, slurm.folder) == []
    for words in (["scontrol", "show", "job", "-dd", job], ["scontrol", "write", "batch_script", job, "-"], ["ps", "axww"]):
        assert secret not in slurm.client(*words).stdout
    (toy.notes_dir / "go").touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and secret not in output
    assert holding(secret, toy.path) == []


def test_a_cancelled_job_leaves_no_secret(slurm, new_toy):
    toy = new_toy(slurm, SITE + "  directives: [--hold]\n", PLANTED="planted-secret-77ab")
    process = toy.start("fine")
    wait_until(lambda: list((toy.path / "logs").glob("*/fine.0.job")), 60, "the job submitted")
    process.terminate()
    process.communicate(timeout=60)
    assert holding("planted-secret-77ab", toy.path) == []
