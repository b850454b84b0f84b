"""No value ends a submit command, starts a macro or is run by a shell on the way through HTCondor; no secret is left behind.

The parser that reads the descriptions is HTCondor's own; the queue behind it is the stand-in of `condor_pool`.
"""

from __future__ import annotations

import json
import sys

import pytest
from conftest import wait_until
from hostile import ECHO, hostile, job_for
from pydantic import ValidationError

from aframe_ops.executor.htcondor import HTCondor, description
from aframe_ops.executor.scheduler import Phase, Refused
from aframe_ops.sites.htcondor import HTCondorSite

MACROS = [
    "$(HOME)",
    "$ENV(HOME)",
    "$$(Machine)",
    "$$([1+1])",
    "$(DOLLAR)",
    "$F(x)",
    "$RANDOM_INTEGER(1,9)",
    "\nqueue 50",
    "\nexecutable = /x",
    "a \\",
]
"""What the submit language itself would expand or take for an end."""


@pytest.mark.timeout(1800)
def test_200_hostile_strings_as_arguments_and_paths(htcondor, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", htcondor.env["PATH"])
    marker = tmp_path / "marker"
    texts = [*MACROS, *hostile(marker)][:200]
    assert len(set(texts)) == 200
    scheduler = HTCondor(HTCondorSite())
    submitted: dict[str, tuple[str, str]] = {}
    refused = 0
    for number, text in enumerate(texts):
        # as the name of a folder, a slash means another folder
        folder = tmp_path / "folders" / str(number) / ("_" + text.replace("/", "_"))
        folder.mkdir(parents=True)
        argv = (sys.executable, "-S", "-c", ECHO, str(tmp_path / f"{number}.json"), text)
        changes = {"folder": folder, "python_path": text}
        try:
            id = scheduler.submit(job_for(tmp_path, number, argv, log=folder / "log", **changes))
        except Refused as e:
            assert "move the run directory" in str(e), text
            assert (
                "$$" in text or "$(DOLLAR)" in text or "\\" in text or text[-1:].isspace() or any(c < " " or c == "\x7f" for c in text)
            ), text
            id, refused = scheduler.submit(job_for(tmp_path, number, argv, **changes)), refused + 1
        submitted[id] = (text, str(folder))
    wait_until(lambda: not htcondor.active(), 1500, "all jobs to end")
    states = scheduler.poll(list(submitted))
    assert {s.phase for s in states.values()} == {Phase.ENDED} and len(submitted) == 200
    for number, (text, folder) in enumerate(submitted.values()):
        arguments, cwd, python_path = json.loads((tmp_path / f"{number}.json").read_text())
        assert arguments == [text] and cwd == folder and python_path == text
    assert not marker.exists()
    assert 10 < refused < 80


VALUES = ("accounting_group", "accounting_group_user", "container_image", "requirements")


def test_200_hostile_values_of_the_site_are_refused_or_stay_in_their_line(tmp_path):
    texts = [*MACROS, *hostile(tmp_path / "marker")][:200]
    job = job_for(tmp_path, 0, ("/bin/true",))
    plain = description(job, HTCondorSite(container_image="x", requirements="x", commands={"rank": "x"}), {}).count("\n")
    taken = 0
    for text in texts:
        for key in VALUES[:2]:
            with pytest.raises(ValidationError):
                HTCondorSite(**{key: text})
        for variable in ("LIGO_GROUP", "LIGO_USERNAME"):
            with pytest.raises(Refused, match=variable):
                description(job, HTCondorSite(), {variable: text})
        with pytest.raises(ValidationError):
            HTCondorSite(commands={text: "1"})
        for key in VALUES[2:]:
            other = {k: "x" for k in VALUES[2:] if k != key}
            try:
                site = HTCondorSite(**{key: text}, **other, commands={"rank": text})
            except ValidationError:
                continue
            written = description(job, site, {})
            assert written.count("\n") == plain and "$" not in written.replace("$(DOLLAR)", "") and "\\" not in written
            taken += 1
    assert 40 < taken < 300


@pytest.mark.parametrize(
    ("commands", "said"),
    [
        ({"executable": "/x"}, "executable is set by the executor alone"),
        ({"Request_Memory": "1"}, "request_memory is set by the step's resources and executor.max_memory_gb"),
        ({"+RequestMemory": "1"}, "request_memory is set by"),
        ({"MY.OnExitRemove": "false"}, "on_exit_remove is set by the executor alone"),
        ({"periodic_release": "true"}, "periodic_release is set by the executor alone"),
        ({"environment": '"A=1"'}, "environment is set by executor.env"),
        ({"queue": "3"}, "queue is set by the executor alone"),
    ],
)
def test_commands_that_are_not_the_sites_to_give(commands, said):
    with pytest.raises(ValidationError, match=said.replace("'", ".")):
        HTCondorSite(commands=commands)


@pytest.mark.parametrize("text", ["x) || (true", "(x", 'Machine == "x', 'x "(")'])
def test_an_expression_cannot_undo_what_is_around_it(text):
    with pytest.raises(ValidationError, match="whose brackets and quotes are closed"):
        HTCondorSite(requirements=text)
