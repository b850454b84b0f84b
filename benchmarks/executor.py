"""Overhead of steps: ``python -m benchmarks.executor [--json] [--steps 20] [--bookkeeping 1000] [--rounds 2]``.

Steps that do nothing are run on ``local`` and by Dagster's own multiprocess executor, and what CPU seconds they take is what a step costs.
A run of 4 steps is taken off one of 4 + ``--steps``, and the rest is divided by ``--steps``: it is what each step after the first costs.
Counted are, each for itself:

- the run worker: the process that starts and watches steps;
- the fork server, which forks a process for each step (Dagster's executor has none);
- the steps' processes, from fork or start to end: loading what is not loaded yet, finding the step, its events. Their bodies do nothing.

The database is SQLite, in a folder of its own. The least of ``--rounds`` is taken; both executors take turns.

Bookkeeping is what events cost the process that writes and reads them, without any step being started. ``--bookkeeping`` steps of a
fan-out write what such a step wrote in a real run before, and a materialisation of a partition; a run of an asset with as many partitions
is planned and materialised; and all events are read back once, in pieces, as the run worker does. On SQLite, and on a PostgreSQL that is
started for it (Debian's package ``postgresql``), with and without ``DAGSTER_EVENT_BATCH_SIZE``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.postgres import missing, postgres
from benchmarks.table import show

if TYPE_CHECKING:
    import dagster as dg
    from dagster._core.events.log import EventLogEntry

FEW = 4
PARTS = ("run worker", "fork server", "step processes")
EXECUTORS = ("aframe", "multiprocess")
BATCH = "500"
BAR_S = 0.2
"""Most that run worker and fork server may take for a step."""

STORAGE = "telemetry: {enabled: false}\n"
LOGS = "compute_logs: {module: aframe_ops.executor.compute_logs, class: StepLogManager}\n"
POSTGRES = "storage: {postgres: {postgres_url: {env: AFRAME_BENCHMARK_DATABASE}}}\n"


def run_steps(instance: dg.DagsterInstance) -> dict[str, float]:
    """CPU seconds of a run of the graph by this process, whose environment names executor and number of steps."""
    import dagster as dg

    from aframe_ops import runs
    from aframe_ops.executor import local

    runs.MODULE = "benchmarks.executor_graph"
    server = [0.0]
    close = local.ForkedWorkers.close

    def closing(self: local.ForkedWorkers) -> None:
        server[0] += process_seconds(self._process.pid)
        close(self)

    local.ForkedWorkers.close = closing
    own, ended = time.process_time(), _children()
    events = list(runs.execute(instance, ["fanned"], None, started=lambda _: None))
    own, ended = time.process_time() - own, _children() - ended
    if events[-1].event_type != dg.DagsterEventType.RUN_SUCCESS:
        raise RuntimeError(f"the run of steps that do nothing failed: {events[-1].message}")
    return dict(zip(PARTS, (own, server[0], ended - server[0]), strict=True))


def process_seconds(pid: int) -> float:
    """CPU seconds of a process itself, without its children's."""
    cells = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(cells[11]) + int(cells[12])) / os.sysconf("SC_CLK_TCK")


def _children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def bookkeeping(instance: dg.DagsterInstance, steps: int) -> dict[str, float]:
    """CPU seconds of this process for the events of `steps` steps, and of as many partitions of one asset."""
    import dagster as dg

    keys = [f"{i:06d}" for i in range(steps)]

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(keys), backfill_policy=dg.BackfillPolicy.single_run())
    def segmented() -> None: ...

    run_steps(instance)
    template = step_events(instance)
    start = time.process_time()
    tags = {"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[-1]}
    run_id = dg.materialize([segmented], instance=instance, tags=tags).run_id
    materialised = time.process_time()
    for key in keys:
        for entry in template:
            instance.handle_new_event(_of_step(entry, run_id, f"part[{key}]", key))
    written = time.process_time()
    cursor, count = None, 0
    while True:
        found = instance.get_records_for_run(run_id, cursor=cursor, limit=1000)
        cursor, count = found.cursor, count + len(found.records)
        if not found.has_more:
            break
    read = time.process_time()
    return {
        "steps": written - materialised,
        "partitions": materialised - start,
        "reading": read - written,
        "events_of_a_step": float(len(template)),
        "events": float(count),
    }


def step_events(instance: dg.DagsterInstance) -> list[EventLogEntry]:
    """What one mapped step of the last run wrote, and a materialisation of a partition."""
    import dagster as dg
    from dagster._core.events import DagsterEvent, DagsterEventType, StepMaterializationData

    (run,) = instance.get_runs(limit=1)
    entries = [e for e in instance.all_logs(run.run_id) if (e.step_key or "").endswith("part[p0000]")]
    (output,) = [e for e in entries if e.dagster_event and e.dagster_event.event_type == DagsterEventType.STEP_OUTPUT]
    made = DagsterEvent(
        event_type_value=DagsterEventType.ASSET_MATERIALIZATION.value,
        job_name=output.job_name or "",
        step_key=output.step_key,
        event_specific_data=StepMaterializationData(dg.AssetMaterialization("fanned", partition="000000", metadata={"livetime": 1.0})),
    )
    return [*entries, output._replace(dagster_event=made)]


def _of_step(entry: EventLogEntry, run_id: str, step: str, partition: str) -> EventLogEntry:
    import dagster as dg
    from dagster._core.events import StepMaterializationData

    event = entry.dagster_event
    if event is not None:
        event = event._replace(step_key=step)
        if isinstance(event.event_specific_data, StepMaterializationData):
            asset = dg.AssetMaterialization("segmented", partition=partition, metadata={"livetime": 1.0})
            event = event._replace(event_specific_data=StepMaterializationData(asset))
    return entry._replace(run_id=run_id, step_key=step, dagster_event=event)


def here(what: str, count: int, executor: str, storage: str) -> dict[str, float]:
    """Does `what` (``steps`` or ``bookkeeping``) in this process, in a folder of its own."""
    import warnings

    os.environ["AFRAME_BENCHMARK_STEPS"] = str(count if what == "steps" else FEW)
    os.environ["AFRAME_BENCHMARK_EXECUTOR"] = executor
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="aframe-benchmark-") as folder:
        home = Path(folder, "dagster_home")
        home.mkdir()
        (home / "dagster.yaml").write_text(STORAGE + LOGS + (POSTGRES if storage == "postgres" else ""))
        Path(folder, "site.yaml").write_text("executor: {cores: 2, memory_gb: 4}\n")
        os.environ |= {"DAGSTER_HOME": str(home), "AFRAME_SITE": str(Path(folder, "site.yaml"))}
        import dagster as dg

        with dg.DagsterInstance.from_config(str(home)) as instance:
            return run_steps(instance) if what == "steps" else bookkeeping(instance, count)


def elsewhere(what: str, count: int, executor: str = "aframe", storage: str = "sqlite", **variables: str) -> dict[str, float]:
    """`here`, in a new process."""
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.executor", "--here", what, str(count), executor, storage]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("DAGSTER_", "AFRAME_"))} | variables
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{what} with {executor} on {storage} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def per_step(steps: int, rounds: int) -> dict[str, dict[str, float]]:
    """CPU seconds of a step after the first, by executor and part."""
    runs: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(rounds):
        for executor in EXECUTORS:
            for count in (FEW, FEW + steps):
                runs.setdefault((executor, count), []).append(elsewhere("steps", count, executor))
    least = {key: {part: min(run[part] for run in found) for part in PARTS} for key, found in runs.items()}
    return {e: {part: (least[e, FEW + steps][part] - least[e, FEW][part]) / steps for part in PARTS} for e in EXECUTORS}


def books(count: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Name of a database and what bookkeeping took there."""
    yield "SQLite", elsewhere("bookkeeping", count)
    if missing():
        return
    for name, variables in (("PostgreSQL", {}), (f"PostgreSQL, batches of {BATCH}", {"DAGSTER_EVENT_BATCH_SIZE": BATCH})):
        with postgres() as server:
            before = server.cpu_seconds()
            found = elsewhere("bookkeeping", count, storage="postgres", AFRAME_BENCHMARK_DATABASE=server.url, **variables)
            yield name, found | {"server": server.cpu_seconds() - before}


def main(argv: list[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.executor", description=__doc__.split("\n\n")[1])
    parser.add_argument("--json", action="store_true", help="one line of JSON: ratio is a step's cost over that with Dagster's executor")
    parser.add_argument("--steps", type=int, default=20, help="steps of a run beyond the first few (default 20)")
    parser.add_argument("--bookkeeping", type=int, default=1000, help="steps whose events are written (default 1000); 0: none")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each executor (default 2)")
    parser.add_argument("--here", nargs=4, metavar=("WHAT", "COUNT", "EXECUTOR", "STORAGE"), help=argparse.SUPPRESS)
    a = parser.parse_args(argv)
    if a.here:
        sys.stdout.write("\n" + json.dumps(here(a.here[0], int(a.here[1]), a.here[2], a.here[3])) + "\n")
        return
    costs = per_step(a.steps, a.rounds)
    totals = {e: sum(parts.values()) for e, parts in costs.items()}
    ours = costs["aframe"]["run worker"] + costs["aframe"]["fork server"]
    result = {"ratio": totals["aframe"] / totals["multiprocess"], "executor_s": ours, "bar_s": BAR_S, "step_s": costs}
    if not a.json:
        show(
            f"CPU seconds for a step after the first ({a.steps} steps that do nothing)",
            ["", *PARTS, "together"],
            [[e, *parts.values(), totals[e]] for e, parts in costs.items()],
            result,
            notes=(f"run worker and fork server: {ours:.3g} s, at most {BAR_S:g} s wanted; together {result['ratio']:.2g} of Dagster's.",),
        )
    table = dict(books(a.bookkeeping)) if a.bookkeeping else {}
    result["bookkeeping"] = table
    show_books(a.bookkeeping, table, result, a.json)


def show_books(count: int, table: Mapping[str, Mapping[str, float]], result: Mapping[str, object], as_json: bool) -> None:
    rows = [[name, b["steps"], b["partitions"], b["reading"], b.get("server", "")] for name, b in table.items()]
    notes = [f"PostgreSQL was left out: {missing()}"] if missing() else []
    if table:
        notes.append(f"{next(iter(table.values()))['events_of_a_step']:.0f} events a step")
    show(
        f"CPU seconds for the bookkeeping of {count:,} steps of a fan-out",
        ["", "steps' events", "partitions of the run", "reading", "in the server"],
        rows,
        result,
        as_json,
        notes,
    )


if __name__ == "__main__":
    main()
