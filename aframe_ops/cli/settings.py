"""`aframe config keys`: what there is to set."""

from __future__ import annotations

import difflib

import typer

from aframe_assets.config import Config
from aframe_assets.config_load import ConfigError
from aframe_assets.config_reference import Setting, as_markdown, settings
from aframe_ops.site import SiteConfig

NOT_SET = ("directory",)
"""Fields of a site that its file cannot have."""


def show_keys(part: str | None, *, site: bool, markdown: bool) -> None:
    """Prints the settings whose path holds `part`, all without it.

    Raises:
        ConfigError: there are none.
    """
    every = settings(SiteConfig, NOT_SET) if site else settings(Config)
    found = [s for s in every if part is None or part in s.key]
    if not found:
        near = difflib.get_close_matches(part or "", [word for s in every for word in (s.key, *s.key.split("."))], n=1, cutoff=0.5)
        which, other = ("site.yaml", "without --site") if site else ("aframe.yaml", "with --site")
        raise ConfigError(
            f"{part}: no key of {which} holds this; {f'did you mean {near[0]}? The' if near else 'the'} other file's keys: {other}"
        )
    typer.echo(as_markdown(found).rstrip() if markdown else "\n".join(map(_as_text, found)))


def _as_text(setting: Setting) -> str:
    default = f" = {setting.default}" if setting.default else ""
    return f"{setting.key}{default}  ({setting.kind})\n    {setting.meaning}"
