"""The engine of a search with its networks evaluated by a Triton server."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from tritonclient.grpc.model_config_pb2 import ModelParameter

from aframe_assets.engine.engine import Engine
from aframe_assets.engine.parity import probes
from aframe_assets.engine.repository import BLOCKS, FILTER_BLOCKS, NETWORK
from aframe_assets.engine.signature import Signature
from aframe_assets.inference.remote.client import ATTEMPTS, PATIENCE
from aframe_assets.inference.remote.connection import Connection, Dropped, Refused, ServerError, require_counts
from aframe_assets.inference.remote.runner import Probe, RemoteRunner
from aframe_assets.inference.remote.server import RunningServer

TOLERANCE = 1e-3
"""Accepted difference between the server's answers to the probes and those of the engine that it stands for."""

_PROBES = 3
_PAUSE = 0.2


class RemoteEngine(Engine):
    """Answers as the engine it is made from, by a server on the model repository of that engine.

    What a head joins is joined here, in torch: ``head`` is the local one. Every model is asked, when it is first needed and
    whenever the server was started again, for probes that the local engine has answered.

    Args:
        local: the engine of the search.
        server: that runs.
        tolerance: see TOLERANCE; times the largest answer where that is above 1.
        in_flight: requests under way, >= 1.
        log: is told of interruptions.
        blocks: model that has the cheapest form, where that is not windows.
        settings: `attempts`, `patience`, `answer_timeout`, `share_memory` of `RemoteRunner`.

    Raises:
        ServerError: no server is ready, or its models are not those of `local`.
    """

    def __init__(
        self,
        local: Engine,
        server: RunningServer,
        *,
        tolerance: float = TOLERANCE,
        in_flight: int = 4,
        log: logging.Logger | None = None,
        blocks: str = BLOCKS,
        **settings: Any,
    ) -> None:
        self.runners: list[RemoteRunner] = []
        self.filter = None
        options = {"tolerance": tolerance, "in_flight": in_flight, "log": log} | settings
        windowed = replace(local.signature, form="windows")
        connect = partial(self._connect, local, server, options)
        cheapest = connect(NETWORK, windowed) if local.form == "windows" else connect(blocks, local.signature)
        try:
            own_filter = None if local.filter is None else RemoteEngine(local.filter, server, blocks=FILTER_BLOCKS, **options)
        except BaseException:
            # what the first has of the server's memory is given back
            self.close()
            raise
        # the repository holds a filter in its cheapest form alone
        windows = (lambda: partial(_score_windows, local)) if blocks == FILTER_BLOCKS else lambda: connect(NETWORK, windowed)
        super().__init__(
            local.signature,
            local.bundle,
            f"triton at {server.url}",
            cheapest,
            windows=None if local.form == "windows" else windows,
            head=lambda: local.head,
            batch=local.batch,
            calls=in_flight,
            filter=own_filter,
        )

    def _connect(self, local: Engine, server: RunningServer, options: dict[str, Any], model: str, signature: Signature) -> RemoteRunner:
        """A runner of `model`, once it is known to be what `signature` says."""
        options = dict(options)
        tolerance = options.pop("tolerance")
        _require_signature(server.url, model, signature, **{k: options[k] for k in ("attempts", "patience") if k in options})
        x = probes(len(signature.ifos), signature.samples, signature.sample_rate, _PROBES + 1, seed=2)[:_PROBES]
        answers = local.score_windows(x)[:, None] if signature.form == "windows" else local.infer(x)
        self.runners.append(RemoteRunner(server, model, Probe(x, answers, tolerance), **options))
        return self.runners[-1]

    def __enter__(self) -> RemoteEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connections; may be called again."""
        for runner in self.runners:
            runner.close()
        if isinstance(self.filter, RemoteEngine):
            self.filter.close()


def _score_windows(engine: Engine, windows: np.ndarray) -> np.ndarray:
    return engine.score_windows(windows)[:, None]


def _parameters(url: str, model: str, attempts: int, patience: float) -> Mapping[str, ModelParameter]:
    """What the model's configuration says for clients, by a server that may be started again meanwhile."""
    for attempt in range(attempts):
        time.sleep(_PAUSE * attempt)
        connection = Connection.ready(url, model, patience)
        try:
            return connection.configuration().parameters
        except Dropped as e:
            last = e
        finally:
            connection.close()
    raise ServerError(f"{attempts} attempts to connect failed; the last: {last}")


def _require_signature(url: str, model: str, signature: Signature, attempts: int = ATTEMPTS, patience: float = PATIENCE) -> None:
    """Refuse a model that says of itself (parameter ``aframe``) that it is another one; other servers' models say nothing."""
    require_counts(attempts=attempts)
    parameters = _parameters(url, model, attempts, patience)
    if "aframe" not in parameters:
        return
    told, wanted = json.loads(parameters["aframe"].string_value), json.loads(json.dumps(asdict(signature)))
    different = [f"{k} = {told[k]}: the engine of this search has {v}" for k, v in wanted.items() if k in told and told[k] != v]
    if different:
        raise Refused(f"Triton server at {url}, model {model}: {'; '.join(different)}; serve the model_repository of this run")
