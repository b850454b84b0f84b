"""Which handler runs a step: its tag, else the site's choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from dagster._core.events import DagsterEvent
from dagster._core.executor.step_delegating import CheckStepHealthResult, StepHandler, StepHandlerContext

from aframe_ops.executor.base import Attempt, Handler

BACKEND_TAG = "aframe/backend"
"""Op tag or run tag that names a handler for one step or one run."""


class RoutingHandler(StepHandler):
    """Hands each step to the handler that was chosen for it; handlers are made when first needed.

    Args:
        makers: name -> function that makes the handler.
        default: the site's backend.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Handler]], default: str):
        if default not in makers:
            raise ValueError(f"executor.backend = {default}: expected one of {', '.join(makers)}")
        self._makers, self._default = dict(makers), default
        self._handlers: dict[str, Handler] = {}

    @property
    def name(self) -> str:
        return f"aframe ({self._default})"

    def choice(self, context: StepHandlerContext) -> str:
        """Name of the handler for this step: op tag, then run tag, then the site's default."""
        step = Attempt.of(context).step
        name = context.step_tags[step].get(BACKEND_TAG) or context.dagster_run.tags.get(BACKEND_TAG) or self._default
        if name not in self._makers:
            raise ValueError(f"step {step}: {BACKEND_TAG} = {name}: expected one of {', '.join(self._makers)}")
        return name

    def _handler(self, context: StepHandlerContext) -> Handler:
        name = self.choice(context)
        if name not in self._handlers:
            self._handlers[name] = self._makers[name]()
        return self._handlers[name]

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        yield from self._handler(step_handler_context).launch_step(step_handler_context)

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        return self._handler(step_handler_context).check_step_health(step_handler_context)

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        yield from self._handler(step_handler_context).terminate_step(step_handler_context)

    def close(self) -> None:
        """Ends what is left of the run in every handler that was used."""
        for handler in self._handlers.values():
            handler.close()
