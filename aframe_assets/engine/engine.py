"""Engines: an exported network made ready to answer on this kind of machine, for a whole search.

`aframe_assets.engine.build` chooses the platform once and records the choice with its measurement; `load_engine` opens what was
built and never measures again, so that one search has one engine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aframe_assets.engine.export import SIGNATURE_FILE, CheapestForm
from aframe_assets.engine.platforms import get_platform
from aframe_assets.engine.runners import How, Runner, default_threads
from aframe_assets.engine.signature import BLOCK, MODEL, Form, Signature

if TYPE_CHECKING:
    from torch import nn

    from aframe_assets.model.bundle import Bundle

ENGINE_FILE = "engine.json"
FILTER = "filter"
"""Folder of a cascade's filter network, of the same layout."""

WINDOW_BATCH = 32
"""Windows of a call where the cheapest form is not windows: on a CPU more at once gain nothing and cost memory."""


class Engine:
    """A network that answers, whatever runs it.

    Attributes:
        platform: what runs it.
        signature: its input and output.
        ifos: detectors in the order of the channels.
        sample_rate: Hz.
        kernel, context, window: samples of a window without its context, of the context on each side, and of both.
        form, stride, total_stride, block: see `Signature`.
        conditioning: settings that its strain is whitened with.
        bundle: description of the model it was made from.
        batch: windows or blocks of a call.
        calls: that are under way at a time.
        threads: of the CPU.
        filter: a cascade's filter network, or None.

    Args:
        signature: of the network.
        bundle: description of the model.
        platform: name of what runs it.
        runner: of the cheapest form.
        windows: opens the runner of the windowed form, called once and only when needed; None where that is `runner`.
        head: gives the network as a torch module, called once and only when needed; None for windows.
        batch, calls, filter: see above.
    """

    def __init__(
        self,
        signature: Signature,
        bundle: Mapping[str, Any],
        platform: str,
        runner: Runner,
        *,
        windows: Callable[[], Runner] | None = None,
        head: Callable[[], nn.Module] | None = None,
        batch: int = 32,
        calls: int = 1,
        filter: Engine | None = None,
    ) -> None:
        self.signature, self.bundle, self.platform, self.filter = signature, dict(bundle), platform, filter
        self.batch, self.calls = batch, calls
        self.ifos, self.sample_rate, self.conditioning = list(signature.ifos), signature.sample_rate, dict(signature.conditioning)
        self.kernel, self.context, self.window = signature.kernel, signature.context, signature.window
        self.form: Form = signature.form
        self.stride, self.total_stride, self.block = signature.stride, signature.total_stride, signature.block
        self.threads = runner.threads
        self._runner, self._open_windows, self._open_head = runner, windows, head

    @cached_property
    def head(self) -> nn.Module | None:
        """The network in torch, for its `slide` and `combine` on what `infer` gives; None for windows."""
        return None if self.form == "windows" or self._open_head is None else self._open_head()

    @property
    def together(self) -> int:
        """Windows or blocks that are best asked for at once: those of all calls that may be under way."""
        return self.batch * self.calls

    @cached_property
    def _windows(self) -> Runner:
        return self._runner if self._open_windows is None else self._open_windows()

    def infer(self, x: np.ndarray) -> np.ndarray:
        """The cheapest form of the network on any number of inputs, `batch` at a time.

        Args:
            x: float32 (n, ifo, samples), `signature.samples` of whitened strain.

        Returns:
            float32; windows: logits (n,); frames and maps as `Signature` says.

        Raises:
            ValueError: another shape.
        """
        out = self._call(self._runner, x, self.signature.samples, self.batch)
        return out[:, 0] if self.form == "windows" else out

    def score_windows(self, windows: np.ndarray, group: int | None = None) -> np.ndarray:
        """Logits float32 (n,) of windows float32 (n, ifo, window), whatever the form.

        Args:
            windows: of whitened strain.
            group: number of windows that no call reaches across: the answers are, to the bit, those of as many calls of
                `score_windows` with `group` windows each. None for all of them.

        Raises:
            ValueError: another shape.
        """
        batch = self.batch if self.form == "windows" else WINDOW_BATCH
        return self._call(self._windows, windows, self.window, batch, group)[:, 0]

    def _call(self, runner: Runner, x: np.ndarray, samples: int, batch: int, group: int | None = None) -> np.ndarray:
        wanted = (len(self.ifos), samples)
        if x.ndim != 3 or x.shape[1:] != wanted:
            raise ValueError(
                f"engine got data of shape {x.shape}; expected (batch, {wanted[0]}, {wanted[1]}): {self.ifos}, {samples} samples"
            )
        x = np.ascontiguousarray(x, dtype=np.float32)
        if not len(x):
            # what an empty batch gives has the other axes of a full one
            return runner(np.zeros((1, *wanted), np.float32))[:0]
        group = group or len(x)
        groups = (x[i : i + group] for i in range(0, len(x), group))
        parts = [own[i : i + batch] for own in groups for i in range(0, len(own), batch)]
        return np.concatenate(list(runner.each(parts) if hasattr(runner, "each") else map(runner, parts)))


def load_engine(folder: Path | str, threads: int | None = None) -> Engine:
    """The engine in `folder`.

    Args:
        folder: written by `aframe_assets.engine.build.build_engine`.
        threads: of the network; None for `default_threads`.

    Raises:
        ValueError: the folder holds no engine, or one of a platform that is not known here.
    """
    folder = Path(folder)
    try:
        text = (folder / ENGINE_FILE).read_text()
    except FileNotFoundError:
        raise ValueError(f"{folder}: no {ENGINE_FILE}; expected a folder that `aframe run --until engine` made") from None
    try:
        record = json.loads(text)
        platform, batch, bundle = record["platform"], record["batch"], record["bundle"]
        how = How(record["device"], record["precision"], threads or 0)
        get_platform(platform)
    except (json.JSONDecodeError, KeyError) as e:
        raise ValueError(
            f"{folder / ENGINE_FILE}: not an engine ({type(e).__name__}: {e}); build it again with `aframe run --until engine`"
        ) from None
    return open_engine(folder, platform, batch, bundle, how=how)


def open_engine(
    folder: Path,
    platform: str,
    batch: int = 32,
    bundle: Mapping[str, Any] | None = None,
    threads: int | None = None,
    *,
    how: How | None = None,
) -> Engine:
    """An engine on the files in `folder`, exported or built, with that of its `filter/`.

    Args:
        folder: what `export` wrote serves 'onnxruntime' and 'torch'; others need what they built.
        platform: one of `aframe_assets.engine.support.SUPPORT`.
        batch: windows or blocks of a call.
        bundle: description of the model.
        threads: of the CPU; None for `default_threads`.
        how: device, precision and threads; None for float32 on the CPU.

    Raises:
        KeyError: an unknown platform.
        ValueError: a file is missing, or the platform cannot be had here.
    """
    from aframe_assets.model.bundle import load_bundle

    signature, kind, how = Signature.read(folder / SIGNATURE_FILE), get_platform(platform), (how or How(threads=threads or 0)).settled()
    return Engine(
        signature,
        bundle or {},
        platform,
        kind.open(folder, MODEL, how),
        windows=None if signature.form == "windows" else lambda: kind.open(folder, signature.windows_stem, how),
        # where frames and maps are made, so that they are joined there too
        head=lambda: load_bundle(folder).network.to(how.device),
        batch=batch,
        filter=load_engine(folder / FILTER, how.threads) if (folder / FILTER / ENGINE_FILE).is_file() else None,
    )


def network_engine(
    bundle: Bundle, device: str = "cpu", *, block: float = BLOCK, threads: int | None = None, batch: int = 32, filter: Engine | None = None
) -> Engine:
    """A bundle's network in torch, not exported: an engine on any device.

    Args:
        bundle: the model.
        device: of torch.
        block: seconds of output of a call, for frames and maps.
        threads: of the CPU; None for `default_threads`.
        batch: windows or blocks of a call.
        filter: a cascade's filter network.
    """
    from aframe_assets.engine.torch_platform import TorchRunner

    signature, threads = Signature.of_bundle(bundle, block), threads or default_threads()
    network = bundle.network.to(device)
    return Engine(
        signature,
        bundle.description,
        f"torch on {device}",
        TorchRunner(CheapestForm(network, signature.form), threads, device),
        windows=None if signature.form == "windows" else lambda: TorchRunner(network, threads, device),
        head=lambda: network,
        batch=batch,
        filter=filter,
    )
