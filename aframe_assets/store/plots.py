"""What an asset's page shows beside numbers: plots and tables, kept next to their artifact as ``{asset}_plots``.

They are no part of the artifact: drawn anew, or not at all, they change no key. They are read back when the artifact is found
complete, since Dagster's page shows the newest materialization only.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from aframe_assets.store.errors import StoreError

if TYPE_CHECKING:
    from aframe_assets.store.base import ArtifactStore
    from aframe_assets.store.handle import Handle, KeyParts
    from aframe_assets.store.job import Product

SUFFIX = "_plots"

MOST_BYTES = 149_000
"""Of a PNG: base64 takes a third more, and a page shall carry no plot above 200 kB."""

_COLOURS = (256, 64, 16)


def small(png: bytes) -> bytes:
    """`png` in at most MOST_BYTES: as it is, else with fewer colours, else with fewer pixels too."""
    if len(png) <= MOST_BYTES:
        return png
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    while True:
        for colours in _COLOURS:
            buffer = io.BytesIO()
            image.quantize(colours).save(buffer, "png", optimize=True)
            if buffer.tell() <= MOST_BYTES:
                return buffer.getvalue()
        image = image.reduce(2)


def plot_markdown(title: str, png: bytes) -> str:
    """A PNG as markdown for an asset's page, below 200 kB."""
    return f"![{title.replace('_', ' ')}](data:image/png;base64,{base64.b64encode(small(png)).decode()})"


def rendered(product: Product, log: logging.Logger) -> dict[str, str]:
    """Plots and tables of `product` as markdown, by title. A plot that fails costs a warning, never what it shows."""
    out = {}
    for title, draw in product.plots.items():
        try:
            out[title] = plot_markdown(title, draw())
        except Exception as e:
            log.warning("the plot '%s' could not be drawn (%s: %s)", title, type(e).__name__, e)
    return out | dict(product.markdown)


def keep(store: ArtifactStore, parts: KeyParts, shown: Mapping[str, str], folder: Path) -> None:
    """Keeps `shown` beside the artifact of `parts`, by way of files in `folder`; what cannot be kept is lost without harm."""
    if not shown:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(StoreError, OSError, ValueError):
        for title, text in shown.items():
            (folder / f"{title}.md").write_text(text)
        store.publish(parts.model_copy(update={"asset": parts.asset + SUFFIX}), folder, {"titles": list(shown)}, keep=False)


def kept(store: ArtifactStore, handle: Handle) -> dict[str, str]:
    """What was kept for the artifact `handle`, as markdown by title in its order; empty where nothing was, or for another key."""
    with suppress(StoreError, OSError):
        manifest = store.manifest(handle.asset + SUFFIX, handle.partition)
        if manifest is None or manifest.handle is None or manifest.parts.model_copy(update={"asset": handle.asset}).key != handle.key:
            return {}
        own = manifest.handle
        return {title: store.open_local(own, f"{title}.md").read_text() for title in own.meta["titles"]}
    return {}
