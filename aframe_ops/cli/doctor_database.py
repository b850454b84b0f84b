"""Dagster's database: where it is, whether it is reached, and whether the jobs of this site can use it."""

from __future__ import annotations

import fnmatch
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import yaml

from aframe_ops.cli.doctor_findings import Finding, one_line
from aframe_ops.executor.batch_options import PASSED
from aframe_ops.run_directory import RunDirectory
from aframe_ops.site import SiteConfig

NETWORK = (
    "nfs* cifs smb* smbfs lustre* gpfs mmfs* beegfs* ceph* glusterfs fuse.glusterfs fuse.ceph* fuse.sshfs fuse.s3fs fuse.rclone "
    "fuse.cvmfs* afs orangefs pvfs2 panfs wekafs quobyte fuse.quobyte ocfs2 gfs2 9p virtiofs fuse.davfs*"
).split()
"""Types of file systems, in the mount table's words, that several machines share."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")
FIX = "make a run directory with `aframe init --database env:NAME`, or set storage.postgres in {}"


class Database(NamedTuple):
    """What `dagster.yaml` says.

    Attributes:
        kind: sqlite, postgres, or the name of another storage's class.
        folder: of SQLite's files.
        variables: names of the environment that it takes values from.
        url: of PostgreSQL; None if it is not known here.
    """

    kind: str
    folder: Path | None = None
    variables: tuple[str, ...] = ()
    url: str | None = None


def check_database(run: RunDirectory, site: SiteConfig, remote: Sequence[str]) -> Iterator[Finding]:
    """Refuses SQLite where it does not work, and reaches whatever it is. ``$DAGSTER_HOME`` has to be that of `run`.

    Args:
        remote: backends of the site whose jobs run on other machines (or may do so).
    """
    file = run.dagster_home / "dagster.yaml"
    try:
        database = read_database(run.dagster_home)
    except (OSError, yaml.YAMLError, ValueError) as e:
        yield Finding("error", f"{file}: cannot be read: {' '.join(str(e).split())}")
        return
    asking = [name for name in remote if site.executor.transport_of(name) != "detached"]
    refused = list(_sqlite(database, file, asking) if database.kind == "sqlite" else _shared(database, file, site, asking))
    yield from refused
    if not any(f.level == "error" for f in refused):
        yield _reached(run, database, file)


def read_database(home: Path) -> Database:
    """What ``dagster.yaml`` in `home` says; SQLite in `home` without one.

    Raises:
        OSError, yaml.YAMLError: the file cannot be read.
        ValueError: it is no mapping.
    """
    file = home / "dagster.yaml"
    settings = (yaml.safe_load(file.read_text()) if file.exists() else None) or {}
    if not isinstance(settings, dict):
        raise ValueError(f"expected a mapping, found {type(settings).__name__}")
    storage = settings.get("storage") or settings.get("event_log_storage") or {"sqlite": {}}
    kind, config = next(iter(storage.items())) if len(storage) == 1 else (str(storage.get("class", "")), storage.get("config") or {})
    config = config if isinstance(config, dict) else {}
    if "sqlite" in kind.lower():
        return Database("sqlite", home / str(_value(config.get("base_dir")) or ""))
    if "postgres" in kind.lower():
        url = _value(config.get("postgres_url")) or _url(config.get("postgres_db"))
        return Database("postgres", variables=tuple(_variables(config)), url=url)
    return Database(kind, variables=tuple(_variables(config)))


def _value(setting: Any) -> str | None:
    if isinstance(setting, dict) and "env" in setting:
        return os.environ.get(str(setting["env"]))
    return None if setting is None else str(setting)


def _url(parts: Any) -> str | None:
    if not isinstance(parts, dict):
        return None
    return f"postgresql+psycopg2://{_value(parts.get('hostname'))}:{_value(parts.get('port')) or 5432}/{_value(parts.get('db_name'))}"


def _variables(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if "env" in config:
            yield str(config["env"])
        for value in config.values():
            yield from _variables(value)


def _sqlite(database: Database, file: Path, remote: Sequence[str]) -> Iterator[Finding]:
    folder = database.folder or file.parent
    while not folder.exists():
        folder = folder.parent
    kind, shared = filesystem(folder), is_network(filesystem(folder))
    if remote:
        where = f", and on {kind}, where it may lose or lock its database," if shared else ""
        yield Finding(
            "error",
            f"Dagster's database is SQLite in {folder}{where} which serves one machine, and steps run on {', '.join(remote)}: "
            f"{FIX.format(file)}",
        )
    elif shared:
        yield Finding(
            "warning",
            f"Dagster's database is SQLite in {folder} on {kind}, where it may lose or lock it: put it on a local disk "
            f"(storage.sqlite.base_dir in {file}), or {FIX.format(file)}",
        )
    else:
        yield Finding("ok", f"Dagster's database is SQLite in {folder} on {kind or 'a local disk'}")


def _shared(database: Database, file: Path, site: SiteConfig, remote: Sequence[str]) -> Iterator[Finding]:
    if words := unset(database, file):
        yield Finding("error", words)
        return
    patterns = (*PASSED, *site.executor.env)
    hidden = [name for name in database.variables if not any(fnmatch.fnmatchcase(name, p) for p in patterns)]
    if remote and hidden:
        yield Finding(
            "error",
            f"jobs on {', '.join(remote)} do not get ${', $'.join(hidden)}, which {file} needs: add it to executor.env of site.yaml",
        )
    if database.kind != "postgres":
        return
    try:
        parts = urlsplit(database.url or "")
        scheme, host = parts.scheme, parts.hostname or ""
    except ValueError:
        yield Finding(
            "error",
            "the address of Dagster's database is no URL; expected postgresql+psycopg2://user:password@host:5432/name, "
            "with %XX for what is not a letter or digit in the password",
        )
        return
    if scheme in ("postgresql", "postgres") and not _has_driver(scheme):
        yield Finding(
            "error",
            f"the address of Dagster's database starts with {scheme}://, which this SQLAlchemy gives to a driver that is not "
            "installed: write postgresql+psycopg2://",
        )
    if remote and host in LOOPBACK:
        yield Finding(
            "error",
            f"Dagster's database is at {host}, which on the nodes of {', '.join(remote)} is the node itself: "
            "give it an address that they reach",
        )


def unset(database: Database, file: Path) -> str:
    """Which variables of the database are missing here, and what to do; empty if none is."""
    names = [name for name in database.variables if not os.environ.get(name)]
    if not names:
        return ""
    return f"{file} takes Dagster's database from ${', $'.join(names)}, which is not set: export it before `aframe` and `dagster`"


def _has_driver(scheme: str) -> bool:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        make_url(f"{scheme}://host/name").get_dialect().import_dbapi()
    except (ImportError, SQLAlchemyError):
        return False
    return True


def _reached(run: RunDirectory, database: Database, file: Path) -> Finding:
    import warnings

    warnings.filterwarnings("ignore", module="dagster")
    from dagster import DagsterInstance

    if silent := _silent(database.url):
        return Finding("error", f"Dagster's database does not answer: {silent}; is it up, and its address right (storage in {file})?")
    what = {"sqlite": "SQLite", "postgres": "PostgreSQL"}.get(database.kind, database.kind)
    try:
        with DagsterInstance.from_config(str(run.dagster_home)) as instance:
            count = instance.get_runs_count()
    except Exception as e:  # drivers and Dagster raise what they like; the words are what counts
        return Finding("error", f"Dagster's database ({what}) cannot be used: {one_line(e)}; see storage in {file}")
    return Finding("ok", f"Dagster's database ({what}) answers: {count} run{'s' * (count != 1)}")


def _silent(url: str | None) -> str:
    """Why nobody listens at the address of a server; empty if somebody does, or it is no such address. Dagster would try for long."""
    parts = urlsplit(url or "")
    if not parts.hostname:  # a file, or a socket of this machine
        return ""
    try:
        socket.create_connection((parts.hostname, parts.port or 5432), 10).close()
    except OSError as e:
        return f"{parts.hostname}, port {parts.port or 5432}: {e.strerror or e}"
    return ""


def is_network(kind: str) -> bool:
    """Whether file systems of this type are shared by several machines."""
    return any(fnmatch.fnmatchcase(kind.lower(), pattern) for pattern in NETWORK)


def filesystem(path: Path) -> str:
    """Type of the file system that holds `path`, from the mount table; empty when it cannot be told."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    best, kind = "", ""
    resolved = str(path.resolve())
    for _, point, fs, *_ in mounts:
        point = point.encode().decode("unicode_escape")  # a blank is \040
        if (resolved == point or resolved.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, fs
    return kind
