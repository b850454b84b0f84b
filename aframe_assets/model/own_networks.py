"""Networks that another package brings: an entry point and one class.

A package names the class in its `pyproject.toml`::

    [project.entry-points."aframe.networks"]
    wide = "my_package.networks:Wide"

and an experiment then asks for it by `model.architecture.name`. Imports no torch, and no package that is not asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ValidationError

from aframe_assets.config_quantities import Section

if TYPE_CHECKING:
    from torch import nn

    from aframe_assets.model.networks import Sky

GROUP = "aframe.networks"
"""Entry points of networks."""

BUILT_IN = ("resnet", "streaming", "map", "wavenet", "s4")
"""Networks of this package."""


class OwnNetwork(ABC):
    """Describes a network and builds it; subclass it, and register the subclass.

    The module that holds the subclass is imported whenever an experiment that asks for it is read, in every step. So import torch
    inside `build`.

    Attributes:
        Settings: what `model.architecture.settings` may hold: fields with types, defaults and bounds. Unknown keys are refused.
        version: change it when the same settings give another network, so that what was trained with the old one is out of date.
        settings: the validated settings of this experiment.
    """

    Settings: ClassVar[type[Section]] = Section
    version: ClassVar[str] = "1"

    def __init__(self, settings: Section) -> None:
        self.settings = settings

    @abstractmethod
    def build(self, sky: Sky, context: int) -> nn.Module:
        """The untrained network.

        It maps whitened strain (batch, sky.num_ifos, kernel + 2 context) float32 to logits (batch, 1), has no random numbers
        but its first weights, and can be traced by ``torch.export`` with any batch. One that streams also follows
        `aframe_assets.model.streaming.FrameNetwork`, with the strides that `total_stride` says.

        Args:
            sky: detectors, sample rate, light travel times, kernel.
            context: samples of `model.architecture.context`.
        """

    def total_stride(self) -> int:
        """Samples by which data must be moved for all frames to move with them; 0 for a network that takes windows one by one."""
        return 0

    def least_context(self, sample_rate: float, travel_time: float) -> int:
        """Samples of context that the network needs on each side, a multiple of `total_stride`; 0 for one that takes windows.

        Args:
            sample_rate: Hz.
            travel_time: longest between two detectors, seconds.
        """
        return 0

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> OwnNetwork:
        """With these settings. Raises ValueError for wrong ones, a line each."""
        try:
            return cls(cls.Settings.model_validate(dict(settings)))
        except ValidationError as e:
            lines = []
            for error in e.errors():
                key = ".".join(str(part) for part in error["loc"])
                known = f"; expected some of {', '.join(cls.Settings.model_fields) or 'none'}" if error["type"] == "extra_forbidden" else ""
                lines.append(f"{key} = {error['input']!r}: {error['msg'].removeprefix('Value error, ')}{known}")
            raise ValueError("; ".join(lines)) from None
        except Exception as e:  # what another package's class raises is its own
            raise ValueError(f"{cls.__module__}.{cls.__qualname__}: cannot be made ({type(e).__name__}: {e})") from e

    @classmethod
    def complete(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """`settings` with their defaults, as plain data. Raises ValueError for wrong ones."""
        return cls.of(settings).settings.model_dump(mode="json")


def _registered() -> dict[str, list[EntryPoint]]:
    """Entry points by name; names of this package's own networks are not given away."""
    out: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        if entry.name not in BUILT_IN:
            out.setdefault(entry.name, []).append(entry)
    return out


def _entry(name: str) -> EntryPoint:
    found = _registered().get(name)
    if found is None:
        raise ValueError(f"no network {name!r}; expected one of {', '.join(names())}, or install the package that registers it in {GROUP}")
    several = sorted({f"{e.value} ({e.dist.name if e.dist else 'unknown package'})" for e in found})
    if len(several) > 1:
        raise ValueError(f"network {name!r} is registered in {GROUP} by {' and '.join(several)}; uninstall all but one, or rename them")
    return found[0]


def is_registered(name: str) -> bool:
    """Whether an installed package registers a network `name`. Imports nothing."""
    return name not in BUILT_IN and name in _registered()


def names() -> list[str]:
    """All that `model.architecture.name` may be here."""
    return [*BUILT_IN, *sorted(_registered())]


@cache
def _load(entry: EntryPoint) -> type[OwnNetwork]:
    said = f"entry point {entry.name} = {entry.value} of {GROUP}"
    try:
        found = entry.load()
    except Exception as e:  # what a package raises while it is imported is its own
        raise ValueError(f"{said}: cannot be imported ({type(e).__name__}: {e}); install its package and what it needs") from e
    if not (isinstance(found, type) and issubclass(found, OwnNetwork)):
        raise ValueError(f"{said}: is {found!r}; expected a subclass of aframe_assets.model.own_networks.OwnNetwork")
    return found


def find(name: str) -> type[OwnNetwork]:
    """The class that is registered as `name`.

    Raises:
        ValueError: there is none or more than one, it cannot be imported, or it is no `OwnNetwork`.
    """
    return _load(_entry(name))


def origin(name: str) -> dict[str, str]:
    """Where the network `name` comes from: its entry point, package, and the package's and the network's own version.

    Raises:
        ValueError: as `find`.
    """
    network, entry = find(name), _entry(name)
    package = {"package": entry.dist.name, "package_version": entry.dist.version} if entry.dist else {}
    return {"entry_point": entry.value, **package, "version": network.version}
