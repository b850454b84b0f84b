"""What this room needs of whoever runs a Triton server. Implemented outside of the graph, and passed in as a resource."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

RESOURCE = "inference_server"
"""Name of the resource that holds an `InferenceServer`."""


class RunningServer(Protocol):
    """A server that answers.

    Attributes:
        url: host and port of its gRPC service. Stays the same when the server is started again.
        local: it runs on this machine, so that shared memory may work.
    """

    url: str
    local: bool


class InferenceServer(Protocol):
    """Starts a server, or knows of one. One object serves all segments of a step."""

    def open(self, repository: Path, log: logging.Logger, threads: int | None = None) -> RunningServer:
        """A server on the models of `repository`, ready; the one that already runs, if there is one.

        Args:
            repository: folder of a Triton model repository.
            log: takes what the user should know.
            threads: of each network; None for what the repository says.

        Raises:
            RuntimeError: no server can be started here; says what to install or set.
        """
        ...

    def close(self) -> None:
        """Stops what was started; may be called again."""
        ...


class NoServer:
    """Stands where no server was passed in."""

    def open(self, repository: Path, log: logging.Logger, threads: int | None = None) -> Any:
        """Raises RuntimeError: see `InferenceServer.open`."""
        raise RuntimeError(
            "inference.mode: triton needs a Triton server, and none was given to this graph: run it with `aframe run` after "
            "`aframe serve --install`, or name a server as triton.url in site.yaml, or set inference.mode: inprocess"
        )

    def close(self) -> None:
        """Nothing was started."""
