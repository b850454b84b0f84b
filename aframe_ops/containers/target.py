"""The Python and the platform that wheels are for."""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass

from packaging.markers import default_environment
from packaging.tags import Tag, compatible_tags, cpython_tags

_OLD_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


class WheelhouseError(Exception):
    """Why there is no wheelhouse, for the user."""


@dataclass(frozen=True)
class Target:
    """Where wheels are to run.

    Attributes:
        python: such as 3.11.
        platform: such as manylinux_2_28_x86_64: glibc and processor.
    """

    python: str
    platform: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"3\.\d{1,2}", self.python):
            raise WheelhouseError(f"--python {self.python!r}: expected a version such as 3.11")
        if not self._parts():
            raise WheelhouseError(f"--platform {self.platform!r}: expected manylinux_2_28_x86_64 or the like (glibc 2.28, x86_64)")

    @classmethod
    def here(cls) -> Target:
        """This Python, and any Linux of the last years on this processor."""
        return cls(f"{sys.version_info[0]}.{sys.version_info[1]}", f"manylinux_2_28_{platform.machine()}")

    def _parts(self) -> tuple[int, str] | None:
        for number, name in _OLD_NAMES.items():
            if self.platform.startswith(f"{name}_"):
                return number, self.platform.removeprefix(f"{name}_")
        found = re.fullmatch(r"manylinux_2_(\d{1,2})_(x86_64|aarch64|ppc64le|s390x|i686)", self.platform)
        return (int(found[1]), found[2]) if found else None

    @property
    def machine(self) -> str:
        return self._parts()[1]  # type: ignore[index]

    @property
    def canonical(self) -> str:
        """The platform in its newer form."""
        number, machine = self._parts()  # type: ignore[misc]
        return f"manylinux_2_{number}_{machine}"

    def platforms(self) -> list[str]:
        """Platforms of all wheels that run there, the best first."""
        newest, machine = self._parts()  # type: ignore[misc]
        names = []
        for number in range(newest, 4, -1):
            names.append(f"manylinux_2_{number}_{machine}")
            if number in _OLD_NAMES:
                names.append(f"{_OLD_NAMES[number]}_{machine}")
        return [*names, f"linux_{machine}"]

    def tags(self) -> set[Tag]:
        """Tags of all wheels that run there."""
        version = tuple(int(x) for x in self.python.split("."))
        interpreter, names = f"cp{version[0]}{version[1]}", self.platforms()
        return {*cpython_tags(version, platforms=names), *compatible_tags(version, interpreter, names)}

    def markers(self) -> dict[str, str]:
        """What environment markers of requirements are there."""
        version = platform.python_version() if self.python == Target.here().python else f"{self.python}.0"
        own = {"python_version": self.python, "python_full_version": version, "implementation_version": version}
        linux = {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux", "platform_machine": self.machine}
        cpython = {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
        return {**default_environment(), **own, **linux, **cpython}  # type: ignore[dict-item]
