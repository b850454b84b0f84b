"""HTCondor by its commands (condor_submit, condor_q, condor_rm, condor_history) and by the user log of each job.

Its commands end with 0 whether or not they knew the job, and print nothing where JSON was asked for; so their output is
what counts. A log ends with the job, whatever the queue says, and is read first.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aframe_ops.executor import userlog
from aframe_ops.executor.base import Request, write_private
from aframe_ops.executor.commands import Commands, NotFound, complaint, launcher, require_wheelhouse
from aframe_ops.executor.scheduler import BatchJob, JobState, Phase, Refused, Scheduler, Unreachable, Usage, exit_words
from aframe_ops.sites.htcondor import ACCOUNT, HTCondorSite

NAMES = 500
"""Names in one question: they are a word of a command line, which has a limit of its own."""

IDLE, RUNNING, REMOVED, COMPLETED, HELD = 1, 2, 3, 4, 5

_BY_USER = {1, 15}
"""Hold codes of condor_hold and of jobs that were submitted on hold: someone wants them to wait."""
_SPOOLING = 16
_TIME, _MEMORY = {46, 47}, {34}
_HOLDS = {
    4: "the access point could not use the credentials; try `condor_submit` by hand, it may ask for a token",
    6: "the node could not start it; check htcondor.container_image, htcondor.python and that nodes see the run directory",
    12: "files could not be brought back",
    13: "files could not be brought to the node",
    14: "nodes do not see the run directory; see htcondor.shared_disk",
}
_LATER = re.compile(
    "can't find address|failed to (connect|fetch|contact|start|commit|receive|send)|unable to (find|contact|connect)"
    "|not find the (local )?schedd|connection (refused|reset)|timed out|timeout|CEDAR|SECMAN|AUTHENTICAT"
    "|not responding|try again|MAX_JOBS|number of jobs|queue is full",
    re.IGNORECASE,
)
_UNKNOWN = re.compile("no jobs in the queue|not found|could(n't| not) find|already", re.IGNORECASE)
_HINTS = {
    "accounting": "change htcondor.accounting_group and htcondor.accounting_group_user",
    "group": "change htcondor.accounting_group",
    "oauth": "change htcondor.oauth_services, or run condor_submit once by hand to get the token",
    "credential": "run condor_submit once by hand to get the token",
    "container": "change htcondor.container_image",
    "requiregpus": "change htcondor.gpu.require",
    "require_gpus": "change htcondor.gpu.require",
    "requirements": "change htcondor.requirements",
    "parse": "change htcondor.commands",
}
_ATTRIBUTES = (
    "ClusterId,ProcId,JobStatus,HoldReason,HoldReasonCode,HoldReasonSubCode,JobCurrentStartDate,NumJobStarts,"
    "ExitBySignal,ExitCode,ExitSignal,RemoveReason"
)


class HTCondor(Scheduler):
    """The HTCondor pool that `site` describes."""

    name = "htcondor"
    cancel_words = "condor_rm {}"

    def __init__(self, site: HTCondorSite):
        self._site = site
        self._call = Commands(site.command, "htcondor.command")
        self.python = site.python or sys.executable
        self.warn_s, self.shared_disk = float(site.signal_seconds), site.shared_disk
        self._requests: dict[str, Request] = {}
        self._logs: dict[str, userlog.UserLog] = {}
        self._unanswered: dict[str, BatchJob] = {}

    def submit(self, job: BatchJob) -> str:
        text = self._prepare(job)
        self._unanswered[job.name] = job
        done = self._condor_submit("-terse", "-", text=text)
        found = re.search(r"^\s*(\d+)\.(\d+) - ", done.stdout, re.MULTILINE)
        if not found:
            raise _refusal(done)
        id = f"{found[1]}.{found[2]}"
        self._know(id, job)
        if unused := _unused(done):
            self._discard([id])
            raise unused
        return id

    def rehearse(self, job: BatchJob) -> None:
        """Has condor_submit read the description of `job` without queueing it. Raises what `submit` does."""
        done = self._condor_submit("-dry-run", "-", "-", text=self._prepare(job))
        if done.returncode:
            raise _refusal(done)
        if unused := _unused(done):
            raise unused

    def slots(self) -> list[dict[str, Any]]:
        """What the machines of the pool advertise, a slot each. Raises Unreachable."""
        wanted = "Machine,SlotType,TotalCpus,TotalMemory,TotalGPUs,GPUs_GlobalMemoryMb,GPUs_DeviceName,GPUs_Capability"
        return self._json("condor_status", "-json", "-attributes", wanted)

    def _prepare(self, job: BatchJob) -> str:
        require_wheelhouse(self._site, self._site.command, "htcondor.wheelhouse")
        text = description(job, self._site, os.environ)
        start = _beside(job, "sh")
        write_private(start, starter(job, self._site))
        start.chmod(0o700)
        write_private(_beside(job, "submit"), text)
        return text

    def _condor_submit(self, *words: str, text: str) -> subprocess.CompletedProcess[str]:
        try:
            return self._call("condor_submit", *words, text=text)
        except NotFound as e:
            raise Refused(str(e)) from None

    def find(self, name: str) -> str | None:
        if job := self._unanswered.get(name):
            events = userlog.UserLog(_beside(job, "condor")).read()
            if events:
                self._know(events[0].id, job)
                return events[0].id
        id = self.find_many([name]).get(name)
        if id and job:
            self._know(id, job)
        return id

    def find_many(self, names: Sequence[str]) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for start in range(0, len(names), NAMES):
            few = names[start : start + NAMES]
            # A constraint needs quotes, so no word of a command line can hold it: see `Commands`. xargs reads it from its input.
            words = ("condor_q", "-allusers", "-json", "-attributes", "ClusterId,ProcId,JobBatchName", "-constraint")
            constraint = f"'stringListMember(JobBatchName,\"{','.join(map(_plain_name, few))}\")'\n"
            for ad in self._ads("xargs", *words, text=constraint):
                if ad.get("JobBatchName") in few:
                    found.setdefault(ad["JobBatchName"], _id(ad))
        return found

    @functools.cached_property
    def place(self) -> str:
        """The access point, whose ids mean nothing at another; empty where its configuration cannot be asked."""
        with contextlib.suppress(Unreachable):
            for macro in ("SCHEDD_HOST", "FULL_HOSTNAME"):
                done = self._call("condor_config_val", macro)
                if done.returncode == 0 and done.stdout.strip():
                    return done.stdout.strip()
        return ""

    def poll(self, ids: Sequence[str]) -> Mapping[str, JobState]:
        ended = self._from_logs(ids)
        rest = [i for i in ids if i not in ended]
        if not rest:
            return ended
        states = self._asked(rest, ended)
        # a job that is held, or was sent away from its node, would stay in the queue or be started a second time
        self._discard([i for i, s in states.items() if s.phase is Phase.ENDED and i in rest])
        return states

    def watch(self, ids: Sequence[str]) -> Mapping[str, JobState]:
        return self._asked(list(ids), {})

    def _asked(self, rest: Sequence[str], states: dict[str, JobState]) -> dict[str, JobState]:
        """`states`, with those of the jobs `rest` by the queue and the history."""
        try:
            ads = self._ads("condor_q", "-allusers", "-json", "-attributes", _ATTRIBUTES, *rest)
        except Unreachable:
            if states:  # what is known is not lost; the next question says that nobody answers
                return states
            raise
        states |= {_id(ad): self._state(_id(ad), ad) for ad in ads if _id(ad) in rest}
        gone = [i for i in rest if i not in states or states[i].phase is Phase.ENDED]
        if gone:
            states |= self._from_logs(gone)  # it may have ended between the two questions
        if unknown := [i for i in gone if i not in states]:
            with contextlib.suppress(Unreachable):
                found = self._ads("condor_history", "-json", "-limit", str(len(unknown)), "-attributes", _ATTRIBUTES, *unknown)
                states |= {_id(ad): self._state(_id(ad), ad) for ad in found if _id(ad) in unknown}
        return states

    def cancel(self, ids: Sequence[str]) -> None:
        done = self._call("condor_rm", *ids)
        said = complaint(done) if done.stderr.strip() or done.returncode else ""
        if said and (_LATER.search(said) or (done.returncode and not _UNKNOWN.search(said))):
            raise Unreachable(said)

    def usage(self, ids: Sequence[str]) -> Mapping[str, Usage]:
        used = {i: [e.usage() for e in log.read() if e.usage()] for i in ids if (log := self._logs.get(i))}
        return {i: found[-1] for i, found in used.items() if found}

    def _know(self, id: str, job: BatchJob) -> None:
        self._requests[id] = job.request
        self._logs[id] = userlog.UserLog(_beside(job, "condor"))
        self._unanswered.pop(job.name, None)

    def _discard(self, ids: Sequence[str]) -> None:
        with contextlib.suppress(Unreachable):
            if ids:
                self.cancel(ids)

    def _from_logs(self, ids: Sequence[str]) -> dict[str, JobState]:
        """What the logs of ended jobs say; nothing about others."""
        ended = {}
        for id in ids:
            log = self._logs.get(id)
            if log and log.read() and (event := log.last(userlog.TERMINATED, userlog.ABORTED)):
                ended[id] = JobState(Phase.ENDED, self._last_words(event))
        return ended

    def _last_words(self, event: userlog.Event) -> str:
        if event.number == userlog.ABORTED:
            return _removed(event.reason())
        return exit_words(*(event.exit() or ("unknown", 0)))

    def _state(self, id: str, ad: Mapping[str, Any]) -> JobState:
        status = ad.get("JobStatus")
        if status == COMPLETED:
            code, number = ad.get("ExitCode", "unknown"), ad.get("ExitSignal", 0) if ad.get("ExitBySignal") else 0
            return JobState(Phase.ENDED, exit_words(code, int(number)))
        if status == REMOVED:
            return JobState(Phase.ENDED, _removed(str(ad.get("RemoveReason", ""))))
        if status == HELD:
            codes = (int(ad.get(f"HoldReason{name}", 0)) for name in ("Code", "SubCode"))
            return self._held(id, str(ad.get("HoldReason", "no reason was given")), *codes)
        if status == IDLE and ad.get("NumJobStarts", 0) > 0:
            return JobState(Phase.ENDED, f"had to leave its node, and is not started a second time{self._eviction(id)}")
        if status == IDLE:
            return JobState(Phase.PENDING)
        since = ad.get("JobCurrentStartDate") or time.time()
        return JobState(Phase.RUNNING, seconds=max(0.0, time.time() - float(since)))

    def _held(self, id: str, reason: str, code: int, subcode: int) -> JobState:
        if code in _BY_USER:
            return JobState(Phase.PENDING, f"{reason} (`condor_release {id}` lets it go on)", stuck=True)
        if code == _SPOOLING:
            return JobState(Phase.PENDING)
        request, words = self._requests.get(id), "was put on hold"
        if code in _MEMORY or "memory" in reason.lower():
            words = "was stopped because memory ran out" + (f"; it had {request.memory_gb:.3g} GB" if request else "")
        elif code in _TIME:
            words = "was stopped at its time limit" + (f" of {request.time_min} min" if request else "")
        hint = f"; {_HOLDS[code]}" if code in _HOLDS else ""
        return JobState(Phase.ENDED, f"{words}: {' '.join(reason.split())} (hold code {code}, subcode {subcode}){hint}")

    def _eviction(self, id: str) -> str:
        log = self._logs.get(id)
        event = log.last(userlog.EVICTED, userlog.SHADOW_FAILED, userlog.LOST_CONTACT) if log else None
        return f": {event.reason()}" if event and event.reason() else ""

    def _ads(self, *words: str, text: str = "") -> list[dict[str, Any]]:
        """The jobs that a query prints. Raises Unreachable."""
        return [ad for ad in self._json(*words, text=text) if "ClusterId" in ad and "ProcId" in ad]

    def _json(self, *words: str, text: str = "") -> list[dict[str, Any]]:
        """What a query prints; an empty answer is one about nothing.

        Raises:
            Unreachable: nobody answers, or what is said is no JSON.
        """
        done = self._call(*words, text=text)
        if done.returncode or _LATER.search(done.stderr):
            raise Unreachable(complaint(done))
        if not done.stdout.strip():
            return []
        try:
            ads = json.loads(done.stdout)
        except ValueError:
            raise Unreachable(f"{words[0]} answered {done.stdout.strip()[:200]!r} where JSON was expected") from None
        return [ad for ad in ads if isinstance(ad, dict)]


def starter(job: BatchJob, site: HTCondorSite) -> str:
    """The script that a job of `job` starts: HTCondor's own quoting never sees a value of the experiment."""
    if site.shared_disk:
        return "#!/bin/bash\n" + launcher(job, site.setup, "htcondor.setup", site)
    # the spec, and all else, is in the folder that the job starts in
    argv = tuple(job.spec.name if word == str(job.spec) else word for word in job.argv)
    carried = replace(job, argv=argv, folder=Path("."), python_path=None)
    return "#!/bin/bash\n" + launcher(carried, site.setup, "htcondor.setup", site)


def description(job: BatchJob, site: HTCondorSite, env: Mapping[str, str]) -> str:
    """The submit description of `job`. It holds nothing secret.

    Raises:
        Refused: a path of the run directory, ``$LIGO_GROUP`` or ``$LIGO_USERNAME`` cannot be written into it.
    """
    return "".join(f"{name} = {value}\n" for name, value in commands(job, site, env)) + "queue 1\n"


def commands(job: BatchJob, site: HTCondorSite, env: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The submit commands of `job` with their values, in order."""
    request = job.request
    yield "batch_name", job.name
    yield "executable", _path(_beside(job, "sh"))
    yield "initialdir", _path(job.log.parent)
    for name, suffix in (("log", "condor"), ("output", "out"), ("error", "err")):
        yield name, _path(_beside(job, suffix))
    yield from _transfer(job, site)
    yield "request_cpus", str(request.cpus)
    if request.memory_gb:
        yield "request_memory", f"{math.ceil(request.memory_gb * 1e9 / 2**20)} MB"
    yield "request_disk", f"{math.ceil((request.disk_gb or site.disk_gb) * 1e9 / 2**10)} KB"
    if request.gpus:
        yield "request_gpus", str(request.gpus)
        if request.gpu_memory_gb:
            yield "gpus_minimum_memory", f"{math.ceil(request.gpu_memory_gb * 1e9 / 2**20)} MB"
        if site.gpu.minimum_capability is not None:
            yield "gpus_minimum_capability", f"{site.gpu.minimum_capability:g}"
        if site.gpu.require:
            yield "require_gpus", site.gpu.require
    yield from _accounting(site, env)
    if site.container_image:
        yield "container_image", site.container_image
    if site.oauth_services:
        yield "use_oauth_services", ", ".join(site.oauth_services)
    yield from (("getenv", "false"), ("notification", "never"))
    yield from site.commands.items()
    yield from _policies(request, site)


def _transfer(job: BatchJob, site: HTCondorSite) -> Iterator[tuple[str, str]]:
    """What HTCondor moves to the node and back."""
    yield "transfer_executable", "false" if site.shared_disk else "true"
    if site.shared_disk and not site.container_image:
        yield "should_transfer_files", "NO"
        return
    # images are transferred too
    yield from (
        ("should_transfer_files", "YES"),
        ("when_to_transfer_output", "ON_EXIT"),
        ("stream_output", "true"),
        ("stream_error", "true"),
    )
    if site.shared_disk:
        yield "transfer_output_files", '""'  # what a step leaves in its scratch folder is not wanted among the logs
    else:
        yield "transfer_input_files", ", ".join(_listed(p) for p in (job.spec, *job.files))


def _policies(request: Request, site: HTCondorSite) -> Iterator[tuple[str, str]]:
    """A job starts once, ends in time, and does not stay in the queue when nobody watches it any more."""
    yield "requirements", "(NumJobStarts == 0)" + (f" && ({site.requirements})" if site.requirements else "")
    yield "allowed_job_duration", str(60 * request.time_min)
    # a step that is interrupted reports so; what is terminated cannot
    yield from (("kill_sig", "SIGINT"), ("kill_sig_timeout", "30"))
    yield from (("on_exit_remove", "true"), ("on_exit_hold", "false"), ("periodic_release", "false"))
    sent_away = f"(JobStatus == {IDLE} && NumJobStarts > 0)"
    forgotten = f"(JobStatus == {HELD} && HoldReasonCode =!= 1 && HoldReasonCode =!= 15 && time() - EnteredCurrentStatus > 3600)"
    endless = f"(JobStatus == {RUNNING} && time() - JobCurrentStartDate > {60 * request.time_min + 3600})"
    yield "periodic_remove", f"{sent_away} || {forgotten} || {endless}"


def _accounting(site: HTCondorSite, env: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, variable in (("accounting_group", "LIGO_GROUP"), ("accounting_group_user", "LIGO_USERNAME")):
        if value := getattr(site, name) or env.get(variable):
            if not re.fullmatch(ACCOUNT, value):
                raise Refused(f"{variable} = {value!r} is no {name.replace('_', ' ')}; set htcondor.{name} or correct the variable")
            yield name, value


def _beside(job: BatchJob, suffix: str) -> Path:
    return job.log.with_name(f"{job.log.name}.{suffix}")


def _path(path: Path) -> str:
    """`path` as the value of a submit command."""
    text = str(path)
    # The parser takes one of two backslashes away, expands what follows its own word for a dollar, and expands two dollars
    # once more when the job has found its node; no quoting helps against any of it.
    if re.search(r"[\x00-\x1f\x7f\\]|\$\$|\$\(dollar\)|\s$", text, re.IGNORECASE) or not text.startswith("/"):
        raise Refused(f"{text!r}: HTCondor cannot take a path with $$, a backslash or a control character; move the run directory")
    return text.replace("$", "$(DOLLAR)")


def _listed(path: Path) -> str:
    if re.search(r"[,\"]|^\s", str(path)):
        raise Refused(f"{str(path)!r}: HTCondor cannot transfer a path with a comma or a double quote; move the run directory")
    return _path(path)


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise ValueError(f"{name!r} is no name of a job")
    return name


def _id(ad: Mapping[str, Any]) -> str:
    return f"{ad['ClusterId']}.{ad['ProcId']}"


def _removed(reason: str) -> str:
    return "was removed from the queue" + (f": {reason}" if reason else "")


def _refusal(done: subprocess.CompletedProcess[str]) -> Refused | Unreachable:
    said = complaint(done)
    return Unreachable(said) if _LATER.search(said) or not done.returncode else Refused(said + _hint(said))


def _unused(done: subprocess.CompletedProcess[str]) -> Refused | None:
    found = re.search(r"the line '(.*)' was unused", done.stderr)
    return Refused(f"condor_submit does not know {found[1]!r}; change htcondor.commands") if found else None


def _hint(said: str) -> str:
    return next((f" ({hint})" for word, hint in _HINTS.items() if word in said.lower()), "")
