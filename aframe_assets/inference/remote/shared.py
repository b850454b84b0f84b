"""System shared memory between this process and a server on the same machine."""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
from pathlib import Path

import numpy as np
from tritonclient.grpc import service_pb2

from aframe_assets.inference.remote.connection import Connection, ServerError

FOLDER = Path("/dev/shm")
"""Where Linux keeps what ``shm_open`` names."""


class Region:
    """Memory that a server has opened too.

    Its name is removed as soon as the server has opened it: nothing is left behind, even by a process that is killed.

    Args:
        connection: to the server.
        size: bytes, >= 1.

    Raises:
        OSError: no shared memory here, or not enough of it.
        ServerError: the server cannot open it.
    """

    def __init__(self, connection: Connection, size: int) -> None:
        self.name, self.size = f"aframe-{os.getpid()}-{secrets.token_hex(8)}", size
        path = FOLDER / self.name
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            # reserved now: a full /dev/shm must not show itself as a bus error later
            os.posix_fallocate(descriptor, 0, size)
            self._memory = mmap.mmap(descriptor, size)
            request = service_pb2.SystemSharedMemoryRegisterRequest(name=self.name, key=f"/{self.name}", offset=0, byte_size=size)
            connection.ask("SystemSharedMemoryRegister", request)
        finally:
            os.close(descriptor)
            path.unlink()

    def floats(self, shape: tuple[int, ...]) -> np.ndarray:
        """The beginning of the memory as float32 of `shape`; valid until `close`."""
        return np.frombuffer(self._memory, np.float32, int(np.prod(shape))).reshape(shape)

    def mark(self, tensor: object, size: int) -> None:
        """Say in a request that the first `size` bytes are the data of `tensor`, or the place for them."""
        tensor.parameters["shared_memory_region"].string_param = self.name
        tensor.parameters["shared_memory_byte_size"].int64_param = size

    def close(self, connection: Connection) -> bool:
        """Takes it back from the server. False if that still works on a request that uses it: to be tried again."""
        try:
            connection.ask("SystemSharedMemoryUnregister", service_pb2.SystemSharedMemoryUnregisterRequest(name=self.name), 2.0)
        except ServerError as e:
            # a server that is gone, or was started again, has given it back
            if "currently in use" in str(e):
                return False
        # an array that somebody still holds keeps the memory until it is gone
        with contextlib.suppress(BufferError):
            self._memory.close()
        return True
