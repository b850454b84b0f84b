"""One graph that is run twice, by jobs that reach the event log and by jobs that do not (``$PLAY_TRANSPORT``)."""

import json
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import dagster as dg

from aframe_assets.tags import resources
from aframe_ops.executor.batch import BatchHandler
from aframe_ops.executor.batch_options import BatchOptions
from aframe_ops.executor.executor import HANDLERS, make_executor
from aframe_ops.executor.job import main
from aframe_ops.executor.mailbox import Mailbox
from aframe_ops.executor.routing import BACKEND_TAG
from aframe_ops.executor.scheduler import BatchJob, JobState, Phase, Scheduler
from aframe_ops.executor.transport import Detached
from aframe_ops.site import load_site

NOTES, TRANSPORT = Path(os.environ["TOY"]), os.environ["PLAY_TRANSPORT"]
TAGS = {BACKEND_TAG: os.environ.get("PLAY_BACKEND", "play"), **resources(memory_gb=0.5, time_min=5)}


class Play(Scheduler):
    """Jobs are forks of the run worker, which spares them the imports; those of the transport ``away`` start in a folder of
    their own, to which their files were brought."""

    name = "play"

    def __init__(self) -> None:
        self.jobs: dict[str, int] = {}
        self.ended: dict[str, int] = {}
        self.shared_disk = TRANSPORT != "away"

    def submit(self, job: BatchJob) -> str:
        (NOTES / f"{job.log.name}.spec").write_text(job.spec.read_text())
        spec, folder = str(job.spec), job.folder
        if not self.shared_disk:
            folder = NOTES / job.name
            folder.mkdir()
            for path in (job.spec, *job.files):
                (folder / path.name).write_bytes(path.read_bytes())
            spec = job.spec.name
        pid = os.fork()
        if pid == 0:
            self._become(job, spec, folder)
        self.jobs[job.name] = pid
        return job.name

    def _become(self, job: BatchJob, spec: str, folder: Path) -> NoReturn:
        code = 1
        try:
            os.setsid()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler)
            for fd, suffix in ((1, "out"), (2, "err")):
                os.dup2(os.open(f"{job.log}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), fd)
            # what the run worker was told is not for the job
            kept = {name: os.environ[name] for name in ("PATH", "HOME")}
            os.environ.clear()
            os.environ.update(kept)
            # a container's own ends with it
            tempfile.tempdir = str(NOTES / "tmp")
            os.makedirs(tempfile.tempdir, exist_ok=True)
            os.chdir(folder)
            sys.argv = ["job", spec]
            main()
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def find(self, name: str) -> str | None:
        return name if name in self.jobs else None

    def poll(self, ids: Sequence[str]) -> Mapping[str, JobState]:
        return {i: self._state(i) for i in ids}

    def _state(self, id: str) -> JobState:
        if id not in self.ended:
            pid, status = os.waitpid(self.jobs[id], os.WNOHANG)
            if pid == 0:
                return JobState(Phase.RUNNING, seconds=1.0)
            self.ended[id] = os.waitstatus_to_exitcode(status)
        return JobState(Phase.ENDED, f"ended with {self.ended[id]}")

    def cancel(self, ids: Sequence[str]) -> None:
        self._signal(ids, signal.SIGKILL)

    def interrupt(self, ids: Sequence[str]) -> None:
        self._signal(ids, signal.SIGINT)

    def _signal(self, ids: Sequence[str], number: int) -> None:
        for i in ids:
            if self._state(i).phase is Phase.RUNNING:
                os.kill(self.jobs[i], number)


def _play(setup, site):
    detached = None
    if TRANSPORT != "direct":
        mailbox = Mailbox(os.environ["PLAY_STORE"], setup.files.folder.name) if TRANSPORT == "away" else None
        detached = Detached(setup.files, mailbox)
    options = BatchOptions(poll_s=0.2, grace_s=2, patience_s=10, env=["TOY", "PLAY_*"])
    return BatchHandler(setup, Play(), options, detached)


HANDLERS["play"] = _play


def note(file: str, **values) -> int:
    path = NOTES / f"{file}.jsonl"
    before = len(path.read_text().splitlines()) if path.exists() else 0
    with path.open("a") as f:
        told = {name: os.environ.get(name) for name in ("DAGSTER_HOME", "AFRAME_DATABASE", "SLURM_JOB_ID")}
        f.write(json.dumps({"pid": os.getpid(), "route": route(), **told, **values}) + "\n")
    return before


def route() -> str | None:
    """What comes of connecting to the port of this machine that ``$PLAY_PORT`` names."""
    if "PLAY_PORT" not in os.environ:
        return None
    try:
        socket.create_connection(("127.0.0.1", int(os.environ["PLAY_PORT"])), timeout=5).close()
    except OSError as e:
        return str(e)
    return "connected"


class Handles(dg.IOManager):
    """Values in files that all jobs see."""

    def _path(self, context) -> Path:
        return NOTES / ("value-" + "-".join(context.get_identifier()).replace("/", "_"))

    def handle_output(self, context, value) -> None:
        self._path(context).write_text(json.dumps(value))

    def load_input(self, context):
        return json.loads(self._path(context.upstream_output).read_text())


KEYS = dg.DynamicPartitionsDefinition(name="keys")
ONE_RUN = dg.BackfillPolicy.single_run()


@dg.asset(op_tags=TAGS, code_version="7")
def first(context) -> dg.MaterializeResult:
    context.log.info("a message of first")
    context.instance.add_dynamic_partitions("keys", ["b", "a", "c"])
    print("first says hello")
    print("aframe: first speaks to the user", file=sys.stderr, flush=True)
    note("first")
    return dg.MaterializeResult(data_version=dg.DataVersion("first-1"), metadata={"n": 3, "plot": dg.MetadataValue.md("# plot")})


@dg.asset(op_tags=TAGS, deps=[first], backfill_policy=ONE_RUN)
def many(context):
    if note("many") == 0:
        raise dg.RetryRequested(max_retries=2, seconds_to_wait=0.4)
    context.log_event(dg.AssetObservation("watched", metadata={"seen": 1}, tags={"dagster/data_version": "w1"}))
    yield dg.MaterializeResult(metadata={"attempt": context.retry_number}, data_version=dg.DataVersion("many-1"))


@dg.asset(op_tags=TAGS, partitions_def=KEYS, backfill_policy=ONE_RUN, deps=[first], code_version="2")
def parts(context) -> None:
    note("parts", keys=list(context.partition_keys))
    for key in context.partition_keys:
        context.add_asset_metadata({"of": key}, partition_key=key)


@dg.multi_asset(
    specs=[
        dg.AssetSpec("left", deps=[parts], code_version="1"),
        dg.AssetSpec("right", deps=["left", many], code_version="1"),
    ],
    check_specs=[dg.AssetCheckSpec("warns", asset="left"), dg.AssetCheckSpec("strict", asset="right")],
    op_tags=TAGS,
    backfill_policy=ONE_RUN,
)
def pair():
    warn = dg.AssetCheckResult(passed=False, severity=dg.AssetCheckSeverity.WARN, asset_key="left", check_name="warns", metadata={"m": 1})
    yield dg.MaterializeResult("left", data_version=dg.DataVersion("left-1"))
    yield warn
    yield dg.MaterializeResult("right")
    yield dg.AssetCheckResult(passed=True, asset_key="right", check_name="strict", description="fine")


@dg.asset_check(asset="right", op_tags=TAGS)
def looked_at_later():
    return dg.AssetCheckResult(passed=True)


@dg.op(out=dg.DynamicOut(int), tags=TAGS)
def plan():
    for i in range(3):
        yield dg.DynamicOutput(i, mapping_key=f"p{i}")


@dg.op(tags=TAGS, pool="narrow")
def square(number: int) -> int:
    time.sleep(0.1)
    return number**2


@dg.op(tags=TAGS)
def total(context: dg.AssetExecutionContext, numbers: list[int]) -> dg.Output[int]:
    return dg.Output(sum(numbers), data_version=dg.DataVersion(f"total-{sum(numbers)}"), metadata={"sum": sum(numbers)})


@dg.graph_asset(backfill_policy=ONE_RUN)
def fanned() -> int:
    return total(plan().map(square).collect())


@dg.asset(op_tags=TAGS)
def broken():
    note("broken")
    inner_failure()


def inner_failure():
    raise ValueError("the user's own words")


@dg.asset(op_tags=TAGS, retry_policy=dg.RetryPolicy(max_retries=1))
def killed(context):
    if note("killed") == 0:
        for i in range(50):
            context.log.info(f"before the end {i}")
        os.kill(os.getpid(), signal.SIGKILL)


@dg.asset(op_tags=TAGS)
def vanishing(context):
    context.log.info("last words")
    note("vanishing")
    os._exit(0)


@dg.asset(op_tags=TAGS)
def late(context):
    """Its job ends before it does."""
    if os.fork():
        os._exit(0)
    time.sleep(1)
    context.log.info("here I am")


@dg.asset(op_tags=TAGS)
def chatty(context):
    note("chatty")
    context.log.info("is heard at once")
    deadline = time.time() + 60
    while not (NOTES / "go").exists() and time.time() < deadline:
        time.sleep(0.05)
    note("chatty_ends", heard=(NOTES / "go").exists())


@dg.asset(op_tags=TAGS)
def waiting():
    note("waiting")
    time.sleep(120)


defs = dg.Definitions(
    assets=[first, many, parts, pair, fanned, broken, killed, vanishing, late, chatty, waiting],
    asset_checks=[looked_at_later],
    resources={"io_manager": Handles()},
    executor=make_executor(load_site()),
)
