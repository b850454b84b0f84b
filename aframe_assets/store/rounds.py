"""An asset made in fixed rounds: propose, make all proposals in parallel, look at what came out, propose again."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from aframe_assets import lineage
from aframe_assets.config import Config
from aframe_assets.store.bodies import GLUE, failure_kept, making_room, metadata_of, produce, tell_user, wanted_or_refuse
from aframe_assets.store.errors import StoreError
from aframe_assets.store.fanout import check_of_whole, graph_asset
from aframe_assets.store.job import Declared, Job, Product
from aframe_assets.store.plots import kept, rendered
from aframe_assets.store.work import makes, reported_trials, trial_parts
from aframe_assets.store.workspace import Wanted
from aframe_assets.tags import resources

Record = dict[str, Any]
"""What is known of one trial: its `round`, `index`, what was proposed and, once made, `meta` and `made` (key, sha256) of its artifact."""


def rounds_asset(
    name: str,
    ask: Callable[[Config, Sequence[Record], int], Sequence[Mapping[str, Any]]],
    make_trial: Callable[[Job, Record], Product],
    tell: Callable[[Config, Sequence[Record], Path], Product],
    finish: Callable[[Job, Sequence[Record]], Product],
    config: Config,
    *,
    num_rounds: int,
    tags: Mapping[str, str],
    kinds: set[str],
    checks: Sequence[Declared] = (),
) -> list[Any]:
    """An unpartitioned asset found in `num_rounds` rounds of trials, each trial a step of its own.

    What was asked (``{name}_asked``, by round) and each trial (``{name}_trial``) are artifacts, so a killed run repeats only what
    was in flight. After each round what is known so far is published as ``{name}_journal`` and observed on the asset's page.

    Args:
        ask: (config, records of earlier rounds, round) -> what this round's trials are, as tables.
        make_trial: (job, record) -> product; its meta becomes part of the record. ``job.services["report"]`` takes plain data that
            is kept in the store until the trial is made; see `aframe_assets.store.work.reported_trials`.
        tell: (config, records so far, an empty folder) -> product, whose meta, plots and markdown are observed.
        finish: (job, all records) -> the asset's product.
        checks: those that `finish` reports.

    A ValueError of `ask` or `finish` is told to the user, and not tried again.
    """
    blocking = {c.name: c.blocking for c in checks}
    glue, upstream = resources(**GLUE), lineage.deps(lineage.graph(config)[name])
    needs = {"required_resource_keys": {"experiment"}}

    def open_wanted(context):
        workspace = context.resources.experiment.workspace()
        wanted = wanted_or_refuse(workspace, name)
        return workspace, wanted, workspace.store.complete(wanted.parts)

    @dg.op(name=f"start_{name}", ins={d: dg.In(dg.Nothing) for d in upstream}, out=dg.Out(list), tags=glue, **needs)
    def start(context):
        return []

    def after(wanted, role, number, records):
        """Key parts of what follows from `records` in round `number`."""
        known = {"round": number, "records": [r["made"] for r in records]}
        update = {"asset": f"{name}_{role}", "config": {**wanted.parts.config, **known}}
        return wanted.parts.model_copy(update=update)

    def refusing(do):
        try:
            return do()
        except ValueError as e:
            tell_user(f"{name}: {e}")
            raise dg.Failure(description=f"{name}: {e}", allow_retries=False) from e

    def asking(number: int):
        @dg.op(name=f"ask_{name}_{number:02d}", ins={"records": dg.In(list)}, out=dg.DynamicOut(dict), tags=glue, **needs)
        def op(context, records):
            workspace, wanted, done = open_wanted(context)
            if done is not None:
                return
            store = workspace.store
            parts = after(wanted, "asked", number, records).model_copy(update={"partition": f"{number:02d}"})
            asked = store.complete(parts)
            if asked is None:
                proposed = [dict(p) for p in refusing(lambda: ask(workspace.config, records, number))]
                with store.scratch() as folder:
                    file = folder / "asked.json"
                    file.write_text(json.dumps(proposed, indent=1))
                    asked = store.publish(parts, {file.name: file}, {"proposed": proposed}, provenance={"run_id": context.run_id})
            for i, said in enumerate(asked.meta["proposed"]):
                yield dg.DynamicOutput({"round": number, "index": i, **said}, mapping_key=f"t{i:03d}")

        return op

    def trying(number: int):
        @dg.op(
            name=f"try_{name}_{number:02d}",
            ins={"record": dg.In(dict)},
            out=dg.Out(dict),
            tags={**tags, **makes(name, "trial")},
            retry_policy=dg.RetryPolicy(max_retries=config.execution.max_retries, delay=1),
            **needs,
        )
        def op(context, record):
            workspace, wanted, _ = open_wanted(context)
            part = Wanted(trial_parts(wanted.parts, record), wanted.inputs, wanted.row)
            handle = workspace.store.complete(part.parts)
            if handle is None:
                reported, place = reported_trials(workspace.store, name), f"{part.parts.partition}.json"

                def report(value: Any) -> None:
                    try:
                        reported.put(place, json.dumps({**record, "reported": value}).encode())
                    except StoreError as e:
                        context.log.warning(f"how trial {place} goes could not be kept ({e}); it goes on")

                services = {"report": report}
                with making_room(config):
                    handle, _ = produce(workspace, part, lambda job: make_trial(job, record), {}, context.run_id, context.log, services)
                reported.remove(place)
            return {**record, "meta": dict(handle.meta), "made": handle.identity}

        return op

    def telling(number: int):
        @dg.op(name=f"tell_{name}_{number:02d}", ins={"records": dg.In(list), "made": dg.In(list)}, out=dg.Out(list), tags=glue, **needs)
        def op(context, records, made):
            workspace, wanted, done = open_wanted(context)
            known, store = [*records, *sorted(made, key=lambda r: r["index"])], workspace.store
            parts = after(wanted, "journal", number, known)
            if done is None and made and store.complete(parts) is None:
                with store.scratch() as folder:
                    product = tell(workspace.config, known, folder)
                    handle = store.publish(parts, product.files, product.meta, provenance={"run_id": context.run_id})
                    shown = rendered(product, context.log)
                context.log_event(dg.AssetObservation(asset_key=name, metadata=metadata_of(handle, True, shown) | {"round": number}))
            return known

        return op

    @dg.op(name=f"finish_{name}", ins={"records": dg.In(list)}, tags={**glue, **makes(name)}, **needs)
    def finishing(context: dg.AssetExecutionContext, records):
        workspace, wanted, handle = open_wanted(context)
        made = handle is None
        if made:
            with failure_kept(workspace.store, wanted.parts):
                handle, shown = refusing(
                    lambda: produce(workspace, wanted, lambda job: finish(job, records), blocking, context.run_id, context.log)
                )
        else:
            shown = kept(workspace.store, handle)
        # of trials that were published by a step that was killed before it could take its report back
        reported_trials(workspace.store, name).clear()
        context.add_asset_metadata(metadata_of(handle, made, shown), asset_key=name)
        return handle

    steps = [(asking(r), trying(r), telling(r)) for r in range(num_rounds)]

    def compose(**upstream):
        records = start(**upstream)
        for ask_op, try_op, tell_op in steps:
            records = tell_op(records, ask_op(records).map(try_op).collect())
        return finishing(records)

    asset = graph_asset(name, config, compose, finish, kinds=kinds, partitioned=False)
    return [asset, *[check_of_whole(name, c) for c in checks]]
