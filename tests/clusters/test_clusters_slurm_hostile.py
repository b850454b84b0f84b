"""No value is ever run by a shell, on the way to SLURM or in the job; and no secret is where others can read it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import wait_until
from hostile import ECHO, hostile, job_for
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
