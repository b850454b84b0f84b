"""SLURM by its commands: sbatch, squeue, sacct, scancel, here or behind a prefix such as ``ssh login``.

Scripts go in through standard input, and every other word that is passed means the same with and without a shell in
between, so that a prefix may quote or not as it likes.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

from aframe_ops.executor.base import Request, write_private
from aframe_ops.executor.commands import Commands, NotFound, complaint, launcher, require_wheelhouse
from aframe_ops.executor.scheduler import BatchJob, Full, JobState, Phase, Refused, Scheduler, Unreachable, Usage, exit_words
from aframe_ops.sites.slurm import SlurmSite

_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
_ENDED = {
    "BOOT_FAIL": "did not start, because its node did not boot",
    "CANCELLED": "was cancelled by someone, and not by this run",
    "COMPLETED": "ended with exit code 0 without reporting a result",
    "DEADLINE": "was ended at its deadline",
    "FAILED": "failed",
    "NODE_FAIL": "was lost with its node (NODE_FAIL)",
    "OUT_OF_MEMORY": "was killed because memory ran out (OUT_OF_MEMORY)",
    "PREEMPTED": "had to make room for another job (PREEMPTED)",
    "REVOKED": "was taken away by another cluster (REVOKED)",
    "TIMEOUT": "was killed at its time limit (TIMEOUT)",
}
# Of what a group shares, time gives back what its jobs hold now, and not the minutes that are used up.
_STUCK = re.compile(
    "Held|Hold|BadConstraints|NeverSatisfied|PartitionConfig|PartitionDown|PartitionInactive|PartitionNodeLimit|PartitionTimeLimit"
    r"|InvalidAccount|InvalidQOS|AccountNotAllowed|QOSNotAllowed|PerJob|ReqNodeNotAvail|Nodes required .*DOWN"
    r"|(Assoc|QOS)Grp\w*(?<!Run)Minutes|(Assoc|QOS)GrpWall",
    re.IGNORECASE,
)
_LATER = re.compile(
    "unable to contact|connect failure|connection (refused|reset|timed out)|timed out|zero bytes|temporarily|try again"
    "|communication|authentication|credential|not responding",
    re.IGNORECASE,
)
_LIMIT = re.compile(r"\b(Assoc|QOS)\w*Limit\b")
"""Newer versions of SLURM name the limit; older ones have one sentence for the number of jobs and for what one asks for."""
_HINTS = {
    "partition name": "change slurm.partition or slurm.gpu.partition",
    "account/partition": "change slurm.account and slurm.partition to a pair that `sacctmgr show associations` lists",
    "qos": "change slurm.qos",
    "time limit": "lower executor.max_time_min",
    "memory specification": "lower executor.max_memory_gb, or take a partition with larger nodes",
    "node configuration": "no node of the partition has as many cores, GPUs or as much memory: "
    "change slurm.partition, slurm.gpu, or executor.max_memory_gb",
    "gres": "change slurm.gpu.types to types that `sinfo -o %G` lists",
    "option": "change slurm.directives",
}


ARRAY = 500
"""Jobs of one array; SLURM's own limit (MaxArraySize) is 1001 unless a cluster sets another."""

IDS = 1000
"""Ids or names in one command line: Linux takes no word of more than 128 KiB."""


class Slurm(Scheduler):
    """The SLURM that `site` describes."""

    name = "slurm"
    cancel_words = "scancel {}"

    def __init__(self, site: SlurmSite):
        self._site = site
        self.place = os.environ.get("SLURM_CLUSTER_NAME", "")
        self._call = Commands(site.command, "slurm.command", dropped=("SLURM_", "SBATCH_", "SQUEUE_", "SACCT_"), kept=("SLURM_CONF",))
        self.python = site.python or sys.executable
        self.together = ARRAY if site.arrays else 1
        self._requests: dict[str, Request] = {}
        self._places: dict[str, tuple[str, int]] = {}
        self._accounting = True

    def submit(self, job: BatchJob) -> str:
        self._places.pop(job.name, None)
        id = self._submitted(script(job, self._site), job)
        self._requests[id] = job.request
        return id

    def submit_together(self, jobs: Sequence[BatchJob]) -> Sequence[str]:
        if len(jobs) == 1:
            return super().submit_together(jobs)
        text = array_script(jobs, self._site)
        self._places |= {job.name: (jobs[0].name, place) for place, job in enumerate(jobs)}
        array = self._submitted(text, jobs[0])
        ids = [f"{array}_{place}" for place in range(len(jobs))]
        self._requests |= {id: job.request for id, job in zip(ids, jobs, strict=True)}
        return ids

    def rehearse(self, job: BatchJob) -> str:
        """What sbatch says of `job` without queueing it: nodes and partition that it would get. Raises what `submit` does."""
        return complaint(self._sbatch(script(job, self._site), job, "--test-only"))

    def nodes(self) -> list[tuple[str, str, str]]:
        """Partition, host and generic resources (``gpu:a100:4(S:0-1)``) of every node. Raises Unreachable."""
        widths = {"Partition": 60, "NodeHost": 80, "Gres": 200}
        done = self._ask("sinfo", "--noheader", "--Node", f"--Format={','.join(f'{name}:{width}' for name, width in widths.items())}")
        cells = (list(_cut(line, widths.values())) for line in done.stdout.splitlines())
        return [(partition.rstrip("*"), host, gres) for partition, host, gres in cells]

    def _submitted(self, text: str, job: BatchJob) -> str:
        done = self._sbatch(text, job, "--parsable")
        found = re.search(r"^(\d+)(;\S+)?\s*$", done.stdout, re.MULTILINE)
        if not found:
            raise Unreachable(f"sbatch answered {done.stdout.strip()[:200]!r} where the id of a job was expected")
        return found[1]

    def _sbatch(self, text: str, job: BatchJob, option: str) -> subprocess.CompletedProcess[str]:
        require_wheelhouse(self._site, self._site.command, "slurm.wheelhouse")
        write_private(job.log.with_name(job.log.name + ".sbatch"), text)
        # On the command line these prevail over SBATCH_EXPORT and its like.
        try:
            done = self._call("sbatch", option, "--export=NONE", "--no-requeue", text=text)
        except NotFound as e:
            raise Refused(str(e)) from None
        if done.returncode:
            said = complaint(done)
            if "MaxSubmitJob" in said:
                raise Full(said, surely=True)
            if "submit limit" in said and not _LIMIT.search(said):
                raise Full(said + _hint(said))
            raise Unreachable(said) if _LATER.search(said) else Refused(said + _hint(said))
        return done

    def find(self, name: str) -> str | None:
        return self.find_many([name]).get(name)

    def find_many(self, names: Sequence[str]) -> Mapping[str, str]:
        places = {name: self._places.get(name, (name, None)) for name in names}
        queued: dict[str, list[str]] = {}
        for part in _parts(list(dict.fromkeys(submitted for submitted, _ in places.values()))):
            done = self._ask("squeue", "--noheader", "--array", "--states=all", f"--name={','.join(part)}", "--format=%i,%j")
            for id, _, name in (line.strip().partition(",") for line in done.stdout.splitlines()):
                queued.setdefault(name, []).append(id)
        found: dict[str, str] = {}
        for name, (submitted, place) in places.items():
            for id in queued.get(submitted, ()):
                array, _, task = id.partition("_")
                if place is None:
                    found.setdefault(name, array)  # of an array of another run: what all its jobs have in common
                elif task == str(place):
                    found.setdefault(name, id)
        return found

    def poll(self, ids: Sequence[str]) -> Mapping[str, JobState]:
        # Fixed widths, because no separator is plain in every shell.
        widths = {"JobArrayID": 30, "State": 20, "exit_code": 12, "TimeUsed": 20, "Reason": 120}
        columns = ",".join(f"{name}:{width}" for name, width in widths.items())
        states, wanted = {}, set(ids)
        for part in _parts(ids):
            done = self._ask("squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(part)}", f"--Format={columns}")
            for line in done.stdout.splitlines():
                cells = list(_cut(line, widths.values()))
                if cells[0] in wanted:
                    code = cells[2] if ":" in cells[2] else _from_status(cells[2])
                    states[cells[0]] = self._state(cells[0], cells[1], code, _seconds(cells[3]), cells[4])
        gone = wanted - states.keys()
        for row in self._books([i for i in ids if i in gone], "JobID", "State", "ExitCode", "ElapsedRaw"):
            if row[0] in gone:
                states[row[0]] = self._state(row[0], row[1], row[2], float(row[3] or 0), "")
        return states

    def cancel(self, ids: Sequence[str]) -> None:
        for part in _parts(ids):
            self._ask("scancel", *part)

    def interrupt(self, ids: Sequence[str]) -> None:
        for part in _parts(ids):
            self._ask("scancel", "--signal=INT", "--full", *part)

    def usage(self, ids: Sequence[str]) -> Mapping[str, Usage]:
        used: dict[str, Usage] = {}
        for job, elapsed, cpu, memory, host in self._books(ids, "JobID", "ElapsedRaw", "TotalCPU", "MaxRSS", "NodeList"):
            id, _, step = job.partition(".")
            if not step:  # the job as a whole has no memory, its steps do
                used[id] = Usage(float(elapsed or 0), _seconds(cpu), None, host)
            elif id in used and memory:
                largest = max(used[id].max_memory_gb or 0.0, _gigabytes(memory))
                used[id] = Usage(used[id].elapsed_s, used[id].cpu_s, largest, host)
        return used

    def _state(self, id: str, word: str, code: str, seconds: float, reason: str) -> JobState:
        state = word.split()[0].rstrip("+") if word else ""
        if state in _ENDED:
            return JobState(Phase.ENDED, self._ending(id, state, code), seconds)
        if state in _RUNNING:
            return JobState(Phase.RUNNING, seconds=seconds)
        stuck = bool(_STUCK.search(reason))
        return JobState(Phase.PENDING, reason + (f"{_remedy(reason)} (see `scontrol show job {id}`)" if stuck else ""), stuck=stuck)

    def _ending(self, id: str, state: str, code: str) -> str:
        request = self._requests.get(id)
        if state == "FAILED":
            exit_code, _, number = code.partition(":")
            return exit_words(exit_code, int(number or 0))
        if request and state == "OUT_OF_MEMORY":
            return f"{_ENDED[state]}; it had {request.memory_gb:.3g} GB"
        if request and state == "TIMEOUT":
            return f"{_ENDED[state]} of {request.time_min} min"
        return _ENDED[state]

    def _books(self, ids: Sequence[str], *columns: str) -> Iterator[list[str]]:
        """Rows of sacct; none where the cluster keeps no accounts."""
        for part in _parts(ids):
            if not self._accounting:
                return
            done = self._call("sacct", "--noheader", "--parsable2", f"--jobs={','.join(part)}", f"--format={','.join(columns)}")
            if done.returncode:
                if "disabled" not in done.stderr:
                    raise Unreachable(complaint(done))
                self._accounting = False
            for line in done.stdout.splitlines():
                if len(row := line.split("|")) == len(columns):
                    yield row

    def time_limits(self) -> dict[str, float]:
        """Longest time limit of each partition, minutes (infinite where there is none); the default one also as ``*``.

        Raises:
            Unreachable: nothing is known.
        """
        limits: dict[str, float] = {}
        for line in self._ask("sinfo", "--noheader", "--format=%P,%l").stdout.split():
            name, _, text = line.rpartition(",")
            limit = _seconds(text) / 60 if text[:1].isdigit() else math.inf
            limits |= dict.fromkeys((name.rstrip("*"), "*") if name.endswith("*") else (name,), limit)
        return limits

    def _ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command that can only fail because the controller does not answer, or does not know a job."""
        done = self._call(*words)
        if done.returncode and not re.search("invalid job id|already (completing|completed|finished)", done.stderr, re.IGNORECASE):
            raise Unreachable(complaint(done))
        return done


_REMEDIES = {
    "PartitionTimeLimit": "executor.max_time_min",
    "PartitionConfig": "slurm.partition, executor.max_memory_gb",
    "PartitionNodeLimit": "slurm.partition",
    "InvalidAccount": "slurm.account",
    "InvalidQOS": "slurm.qos",
    "BadConstraints": "slurm.directives",
}


def _remedy(reason: str) -> str:
    found = next((key for word, key in _REMEDIES.items() if word in reason), None)
    return f"; Ctrl-C, change {found}, run again" if found else ""


def script(job: BatchJob, site: SlurmSite) -> str:
    """The sbatch script of `job`. It holds nothing secret; variables come from the job's spec.

    Raises:
        Refused: a path of the run directory cannot be written into a directive.
    """
    lines = ["#!/bin/bash", *(f"#SBATCH {line}" for line in directives(job, site)), "export SLURM_EXPORT_ENV=ALL", ""]
    return "\n".join(lines) + launcher(job, site.setup, "slurm.setup", site)


def array_script(jobs: Sequence[BatchJob], site: SlurmSite) -> str:
    """The sbatch script of `jobs` as one array, each with files and a command of its own; else as `script`."""
    most = f"%{site.array_limit}" if site.array_limit else ""
    head = [f"#SBATCH {line}" for line in directives(jobs[0], site, output=False)]
    lines = ["#!/bin/bash", *head, f"#SBATCH --array=0-{len(jobs) - 1}{most}", "export SLURM_EXPORT_ENV=ALL"]
    lines.append('case "$SLURM_ARRAY_TASK_ID" in')
    for place, job in enumerate(jobs):
        out, err = (shlex.quote(f"{job.log}.{suffix}") for suffix in ("out", "err"))
        lines.append(f"{place}) exec >> {out} 2>> {err}; set -- {shlex.join(job.argv)} ;;")
    return "\n".join([*lines, "esac", ""]) + launcher(jobs[0], site.setup, "slurm.setup", site, given=True)


def directives(job: BatchJob, site: SlurmSite, *, output: bool = True) -> Iterator[str]:
    """What follows ``#SBATCH``, in sbatch's own quoting.

    Args:
        output: whether SLURM itself opens the files of `job`'s output.
    """
    request, gpu = job.request, site.gpu
    yield f"--job-name={job.name}"
    for option, suffix in (("output", "out"), ("error", "err")):
        yield f"--{option}={_quoted_path(f'{job.log}.{suffix}') if output else '/dev/null'}"
    yield "--chdir=/"
    yield "--open-mode=append"
    yield "--nodes=1"
    yield "--ntasks=1"
    yield f"--cpus-per-task={request.cpus}"
    if request.memory_gb:
        yield f"--mem={math.ceil(request.memory_gb * 1e9 / 2**20)}M"
    yield f"--time={request.time_min}"
    if site.signal_seconds:
        # A limit of a few minutes must leave the step some time to work: SLURM may be a minute early.
        yield f"--signal=B:USR1@{min(site.signal_seconds, 15 * request.time_min)}"
    queue = {name: (request.gpus and getattr(gpu, name)) or getattr(site, name) for name in ("partition", "account", "qos")}
    yield from (f"--{option}={value}" for option, value in queue.items() if value)
    if request.gpus:
        kind = _gpu_type(request, job.number, site)
        yield f"--gres=gpu:{kind + ':' if kind else ''}{request.gpus}"
    for text in site.directives + (gpu.directives if request.gpus else []):
        option, equals, value = text.partition("=")
        yield f'{option}="{value}"' if equals else option


def _gpu_type(request: Request, number: int, site: SlurmSite) -> str | None:
    types = site.gpu.types
    if not types:
        return None
    large = [name for name, memory_gb in types.items() if memory_gb >= request.gpu_memory_gb]
    if not large:
        raise Refused(f"the step needs a GPU with {request.gpu_memory_gb:g} GB, and slurm.gpu.types has none: {types}")
    return large[number % len(large)]


def _quoted_path(path: str) -> str:
    if re.search(r"[\x00-\x1f\x7f\\]", path):
        raise Refused(f"{path!r}: SLURM cannot write to a path with a backslash or a control character; move the run directory")
    return '"' + path.replace("%", "%%").replace('"', '\\"') + '"'


def _parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[i : i + IDS] for i in range(0, len(ids), IDS))


def _cut(line: str, widths: Iterable[int]) -> Iterator[str]:
    start = 0
    for width in widths:
        yield line[start : start + width].strip()
        start += width


def _from_status(status: str) -> str:
    """``exit code:signal`` of a wait status."""
    number = int(status) if status.isdigit() else 0
    return f"{number >> 8}:{number & 127}"


def _seconds(text: str) -> float:
    """Seconds of ``[days-][[hours:]minutes:]seconds``; 0 for what is no time."""
    days, _, clock = text.rpartition("-")
    try:
        parts = [float(p) for p in clock.split(":")]
        return 86400 * int(days or 0) + sum(p * 60**i for i, p in enumerate(reversed(parts)))
    except ValueError:
        return 0.0


def _gigabytes(text: str) -> float:
    """GB (1e9 bytes) of sacct's ``1234K``."""
    found = re.fullmatch(r"([\d.]+)([KMGTP]?)", text)
    return float(found[1]) * 1024 ** " KMGTP".index(found[2] or " ") / 1e9 if found else 0.0


def _hint(said: str) -> str:
    return next((f" ({hint})" for word, hint in _HINTS.items() if word in said.lower()), "")
