"""Which handler runs a step: its tag, else the run's, else the site's choice."""

from __future__ import annotations

import contextlib
import fnmatch
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping

from dagster._core.events import DagsterEvent, EngineEventData
from dagster._core.executor.step_delegating import CheckStepHealthResult, StepHandler, StepHandlerContext

from aframe_ops.executor.base import RELAYED, Attempt, Handler, Request, relay

BACKEND_TAG = "aframe/backend"
"""Op tag or run tag that names a handler for one step or one run."""

SIGN_S = 60.0
"""Seconds between signs of life of a run worker."""

GPUS = "gpus"
"""Key of ``executor.routes`` that stands for every step that asks for a GPU."""


class RoutingHandler(StepHandler):
    """Hands each step to the handler that was chosen for it; handlers are made when first needed.

    Args:
        makers: name -> function that makes the handler.
        default: the site's backend.
        routes: name of an asset or op, a pattern, or `GPUS` -> name of a handler; the first that fits counts.
        sign: gives a sign of life; called every `SIGN_S` seconds while a step is started or runs, wherever that is.
    """

    def __init__(
        self,
        makers: Mapping[str, Callable[[], Handler]],
        default: str,
        routes: Mapping[str, str] | None = None,
        sign: Callable[[], None] = lambda: None,
    ):
        self._sign, self._next_sign = sign, 0.0
        self._makers, self._default, self._routes = dict(makers), default, dict(routes or {})
        for key, name in {"executor.backend": default, **{f"executor.routes.{k}": v for k, v in self._routes.items()}}.items():
            if name not in makers:
                raise ValueError(f"{key} = {name}: expected one of {', '.join(makers)}")
        self._handlers: dict[str, Handler] = {}
        self._chosen: dict[str, str] = {}

    @property
    def name(self) -> str:
        return f"aframe ({self._default})"

    def choice(self, context: StepHandlerContext) -> tuple[str, str]:
        """Name of the handler for this step, and what chose it: op tag, then run tag, then the site's routes, then its default."""
        step = Attempt.of(context).step
        tags = context.step_tags[step]
        for who, name in (("its tag", tags.get(BACKEND_TAG)), ("the run's tag", context.dagster_run.tags.get(BACKEND_TAG))):
            if name:
                if name not in self._makers:
                    raise ValueError(f"step {step}: {BACKEND_TAG} = {name} ({who}): expected one of {', '.join(self._makers)}")
                return name, f"{who} {BACKEND_TAG}"
        return routed(named_by(step), Request.of(tags), self._default, self._routes)

    def _handler(self, context: StepHandlerContext) -> Handler:
        step = Attempt.of(context).step
        if step not in self._chosen:  # by a run worker before this one
            self._chosen[step], _ = self.choice(context)
        name = self._chosen[step]
        if name not in self._handlers:
            self._handlers[name] = self._makers[name]()
        return self._handlers[name]

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        self._live()
        step = Attempt.of(step_handler_context).step
        name, reason = self.choice(step_handler_context)
        self._chosen[step] = name
        yield DagsterEvent.engine_event(step_handler_context.get_step_context(step), f"runs on {name} ({reason})", EngineEventData())
        yield from self._handler(step_handler_context).launch_step(step_handler_context)

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        self._live()
        return self._handler(step_handler_context).check_step_health(step_handler_context)

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        yield from self._handler(step_handler_context).terminate_step(step_handler_context)

    def _live(self) -> None:
        if time.monotonic() >= self._next_sign:
            self._next_sign = time.monotonic() + SIGN_S
            with contextlib.suppress(OSError):  # of a disk that is away for a moment
                self._sign()

    def close(self) -> None:
        """Ends what is left of the run in every handler that was used, whatever becomes of the others."""
        with contextlib.ExitStack() as stack:  # an interrupt is passed on when all are closed
            for name, handler in self._handlers.items():
                stack.callback(_close, name, handler)


def _close(name: str, handler: Handler) -> None:
    try:
        handler.close()
    except Exception as e:  # told only: what became of the steps is in the event log, and does not depend on it
        traceback.print_exc()
        relay(f"{RELAYED} cleaning up after the steps on {name} did not end well ({type(e).__name__}: {e})")


def routed(name: str, request: Request, default: str, routes: Mapping[str, str]) -> tuple[str, str]:
    """The site's handler for the asset or op `name`, and the key that chose it: the first of `routes` that fits, else `default`."""
    for key, backend in routes.items():
        if request.gpus > 0 if key == GPUS else fnmatch.fnmatchcase(name, key):
            return backend, f"executor.routes.{key}"
    return default, "executor.backend"


def named_by(step: str) -> str:
    """The asset or op that a step key belongs to: ``triggers`` for ``triggers.infer_chunk[c00001]``."""
    return step.split(".")[0].split("[")[0]


def unknown_routes(routes: Iterable[str], assets: Iterable[str]) -> list[str]:
    """Those of ``executor.routes`` that fit no asset and no check of one (an op with the asset's name and ``_`` before its own)."""
    assets = list(assets)
    known = [key for key in routes if key == GPUS or any(fnmatch.fnmatchcase(a, key) or key.startswith(f"{a}_") for a in assets)]
    return [key for key in routes if key not in known]
