"""A run directory: the experiment, where it runs, and what Dagster needs, in one folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aframe_assets.config_load import ConfigError

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.store.workspace import Workspace
    from aframe_ops.site import SiteConfig

MODULE = "aframe_ops.definitions"

RUN_LOCK = ".run.lock"
"""Held by whatever makes or changes artifacts here without Dagster's daemon."""

EVENT_BATCH = "500"
"""Events of many partitions that go to PostgreSQL in one statement (SQLite has no use for it)."""


def require_readable(config: Config) -> None:
    """Reads the files that an experiment names, before anything starts.

    Raises:
        ConfigError: some cannot be used; all of them at once.
    """
    from aframe_assets.preflight import preflight

    found = preflight(config)
    if found:
        raise ConfigError("\n".join(found))


@dataclass(frozen=True)
class RunDirectory:
    """`path` is absolute."""

    path: Path

    @classmethod
    def find(cls, path: str | os.PathLike[str] | None = None, env: Mapping[str, str] | None = None) -> RunDirectory:
        """The run directory at `path`; without one the current directory, or else that of ``$AFRAME_CONFIG``.

        Raises:
            ConfigError: there is no experiment there.
        """
        env = os.environ if env is None else env
        if path is not None:
            candidate = Path(path)
        elif not Path("aframe.yaml").exists() and env.get("AFRAME_CONFIG"):
            candidate = Path(env["AFRAME_CONFIG"]).parent
        else:
            candidate = Path.cwd()
        if not (candidate / "aframe.yaml").is_file():
            raise ConfigError(
                f"{candidate}: is not a run directory (no aframe.yaml); make one with `aframe init {candidate} --preset demo`"
            )
        return cls(candidate.resolve())

    @property
    def experiment(self) -> Path:
        return self.path / "aframe.yaml"

    @property
    def dagster_home(self) -> Path:
        return self.path / "dagster_home"

    @property
    def variables(self) -> dict[str, str]:
        """What `env.sh` exports."""
        shared = {"DAGSTER_EVENT_BATCH_SIZE": EVENT_BATCH} if self.on_postgres else {}
        return {"DAGSTER_HOME": str(self.dagster_home), "DAGSTER_MODULE_NAME": MODULE, "AFRAME_CONFIG": str(self.experiment), **shared}

    @property
    def on_postgres(self) -> bool:
        """Whether Dagster's database is a PostgreSQL."""
        try:
            return "postgres_" in (self.dagster_home / "dagster.yaml").read_text()
        except OSError:
            return False

    def activate(self) -> None:
        """Makes this the run directory of the current process and its children."""
        os.environ.update(self.variables)
        self.dagster_home.mkdir(exist_ok=True)

    def config(self) -> Config:
        """The experiment as it is now, environment included. Raises ConfigError."""
        from aframe_assets.config_load import load_config

        return load_config(self.experiment)

    def site(self) -> SiteConfig:
        """Where it runs. Raises ConfigError."""
        from aframe_ops.site import load_site

        return load_site(env={**os.environ, **self.variables})

    @contextlib.contextmanager
    def pinned(self, config: Config | None = None, site: SiteConfig | None = None) -> Iterator[tuple[Config, SiteConfig]]:
        """Reads experiment and site once; inside, this process and its children see copies that no edit reaches.

        Code that pods fetch is looked up here too: no later push or edit reaches it.

        Args:
            config, site: an experiment, and a site, in place of those of the directory.
        """
        from aframe_assets.config_load import write_resolved
        from aframe_ops.site import write_site

        config, site = config or self.config(), site or self.site()
        if "kubernetes" in site.executor.backends and site.kubernetes.own_code:
            from aframe_ops.executor.kubernetes_code import pin_code

            site = pin_code(site)
        copies = {
            "AFRAME_CONFIG": str(write_resolved(config, site.resolved).resolve()),
            "AFRAME_SITE": str(write_site(site, site.resolved)),
        }
        before = {name: os.environ.get(name) for name in copies}
        os.environ.update(copies)
        try:
            yield config, site
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value

    def workspace(self, config: Config | None = None, site: SiteConfig | None = None) -> Workspace:
        """The store as it is now, seen with `config` and `site` (None: as they are now)."""
        from aframe_assets.store.opening import open_store
        from aframe_assets.store.workspace import Workspace

        site = site or self.site()
        store = open_store(site.store_url, cache_dir=site.cache_dir, cache_bytes=int(site.store.cache_gb * 1e9))
        return Workspace(config or self.config(), store)
