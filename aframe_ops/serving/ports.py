"""Ports to listen at."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Sequence

from aframe_ops.serving.errors import ServingError


def _socket(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)


def free_ports(host: str, count: int) -> list[int]:
    """Ports of `host` that nothing listens at now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(_socket(host)) for _ in range(count)]
        for s in sockets:
            s.bind((host, 0))
        return [s.getsockname()[1] for s in sockets]


def require_free(host: str, ports: Sequence[int]) -> None:
    """Raises ServingError where something listens at one of `ports` of `host`, or nothing may."""
    for port in ports:
        with _socket(host) as s:
            # connections of an earlier server that are being forgotten do no harm
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind((host, port))
            except OSError as e:
                if e.errno == errno.EADDRINUSE:
                    raise ServingError(f"port {port} is in use; choose another --port") from None
                raise ServingError(f"{host}, port {port}: cannot be listened at: {e.strerror or e}") from None
