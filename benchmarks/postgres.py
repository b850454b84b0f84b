"""A PostgreSQL of Debian's (package ``postgresql``) in a private folder, on loopback and a free port, for measurements and tests."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

USER = "dagster"


def programs() -> Path | None:
    """Where initdb and pg_ctl are; None if they are not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda p: int(p.parts[-3]))
    return found[-1].parent if found else None


def missing() -> str | None:
    """What keeps a server from being started here, in words; None if nothing does."""
    if programs() is None:
        return "no PostgreSQL here: apt-get install -y --no-install-recommends postgresql"
    if os.geteuid() == 0 and not shutil.which("runuser"):
        return "PostgreSQL does not run as root, and runuser is not here"
    return None


class Postgres:
    """A running server with an empty database; a password is needed to use it.

    Attributes:
        url: for SQLAlchemy, password included.
        password: of the only user.
        data: its files.
    """

    def __init__(self, folder: Path):
        self.data, self.password = folder / "data", secrets.token_hex(12)
        with socket.create_server(("127.0.0.1", 0)) as s:
            self.port = s.getsockname()[1]
        self._folder = folder

    @property
    def url(self) -> str:
        return f"postgresql+psycopg2://{USER}:{self.password}@127.0.0.1:{self.port}/dagster"

    def start(self) -> None:
        file = self._folder / "password"
        file.write_text(self.password)
        if os.geteuid() == 0:
            for path in (self._folder, file):
                shutil.chown(path, "postgres")
        self._call("initdb", "-D", str(self.data), "-U", USER, "--auth=scram-sha-256", f"--pwfile={file}", "--no-sync", "-E", "UTF8")
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self._folder,
            "fsync": "off",
            "shared_buffers": "64MB",
        }
        with (self.data / "postgresql.conf").open("a") as f:
            f.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        self._call("pg_ctl", "-D", str(self.data), "-l", str(self._folder / "log"), "-w", "-s", "start")
        self.statement("create database dagster", "postgres")

    def stop(self) -> None:
        self._call("pg_ctl", "-D", str(self.data), "-m", "fast", "-w", "-s", "stop")

    def statement(self, text: str, database: str = "dagster") -> str:
        """What psql prints for a statement."""
        words = ["psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, "-d", database, "-tAc", text]
        return subprocess.run(words, env={**os.environ, "PGPASSWORD": self.password}, capture_output=True, text=True, check=True).stdout

    def cpu_seconds(self) -> float:
        """CPU seconds of the server's processes, ended ones included."""
        main = int((self.data / "postmaster.pid").read_text().splitlines()[0])
        total = sum(_times(main))
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, IndexError):
                if int(path.read_text().rpartition(")")[2].split()[1]) == main:
                    total += sum(_times(int(path.parent.name)))
        return total

    def _call(self, program: str, *words: str) -> None:
        prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        found = programs()
        assert found is not None
        # Its output goes to a file: a server keeps what it inherits open, and whoever waits for the end of a pipe would wait for it.
        with (self._folder.parent / f"{self._folder.name}.out").open("ab") as log:
            subprocess.run([*prefix, str(found / program), *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", check=True)


def _times(pid: int) -> tuple[float, ...]:
    """CPU seconds of a process and of its ended children, user and system."""
    cells = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return tuple(int(cells[i]) / os.sysconf("SC_CLK_TCK") for i in (11, 12, 13, 14))


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A server that is stopped and removed at the end.

    Raises:
        RuntimeError: none can be started here.
    """
    if reason := missing():
        raise RuntimeError(reason)
    # Not a test's own folder: the socket's path may not be long, and the server's user has to see it.
    folder = Path(tempfile.mkdtemp(prefix="aframe-postgres-"))
    server = Postgres(folder)
    try:
        server.start()
        yield server
    finally:
        if (server.data / "postmaster.pid").exists():
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_name(f"{folder.name}.out").unlink(missing_ok=True)
