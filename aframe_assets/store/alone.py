"""One process of this machine at a time in a folder that outlives processes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def alone(folder: Path, told: Callable[[], None]) -> Iterator[bool]:
    """Waits until no other process of this machine is in here with `folder`; whether there was one.

    The lock is on the machine's own disk, belongs to the process without its children, and ends with it. Where none can be made, nobody
    waits. Other machines are not seen: batch jobs have leases.

    Args:
        folder: what only one is to work in; need not exist.
        told: called once before waiting.
    """
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"aframe-{os.getuid()}-{name}.lock"
    descriptor, waited = None, False
    try:
        with suppress(OSError):
            descriptor, waited = _locked(path, told)
        yield waited
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _locked(path: Path, told: Callable[[], None]) -> tuple[int, bool]:
    waited = False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # held, in either of the ways that POSIX has to say so
                if not waited:
                    told()
                waited = True
                fcntl.lockf(descriptor, fcntl.LOCK_EX)
            # whoever held it has removed it
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor, waited
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
