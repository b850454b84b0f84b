"""What the store keeps about an artifact: its key, its files, and how it came to be. Plain pydantic, no I/O."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import PurePath
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")
_NAME_PART = re.compile(r"[^\x00-\x1f/\\]+")


def plain(value: Any, where: str = "value") -> Any:
    """`value` as JSON knows it: numpy scalars and arrays, paths and tuples are converted.

    Raises:
        TypeError: a value that JSON cannot hold, with its place.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        # subclasses (enum members, numpy.float64, bool_) must not leak their own repr into the JSON
        for kind in (bool, int, float, str):
            if isinstance(value, kind):
                return kind(value)
        return None
    if isinstance(value, Mapping):
        return {str(k): plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else value
        return [plain(v, f"{where}[{i}]") for i, v in enumerate(items)]
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="json"), where)
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist") and hasattr(value, "shape"):
        return plain(value.tolist(), where)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"{where}: a {type(value).__name__} cannot be written as JSON; give numbers, strings, lists or dicts")


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted keys, no spaces."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"))


def check_word(word: str, what: str) -> str:
    """`word` if it may be an asset name or a partition key (a single, visible folder name).

    Raises:
        ValueError: anything that could leave its folder or meet the store's own files.
    """
    if not _WORD.fullmatch(word) or ".." in word or word.endswith(".json") or len(word) > 200:
        raise ValueError(
            f"{what} {word!r} cannot be stored: expected letters, digits and . _ = + -, "
            "starting with a letter or digit, without '..' or a final .json"
        )
    return word


def check_name(name: str) -> str:
    """`name` if it may be a file's name inside an artifact; '/' separates folders.

    Raises:
        ValueError: absolute paths, '.', '..', empty parts, backslashes and control characters.
    """
    parts = name.split("/")
    if not name or any(p in ("", ".", "..") or not _NAME_PART.fullmatch(p) for p in parts):
        raise ValueError(f"file name {name!r} cannot be stored: expected a relative path without '..', '.', empty parts or backslashes")
    return name


class FileEntry(BaseModel, frozen=True):
    """One file of an artifact: its name in the folder, sha256 (hex), size in bytes, and ETag on S3."""

    name: str
    sha256: str
    nbytes: int = Field(ge=0)
    etag: str | None = None

    _name = field_validator("name")(check_name)


def content_sha256(files: Iterable[FileEntry]) -> str:
    """The sha256 of a whole artifact: over the sorted names and sha256 of its files."""
    text = canonical_json(sorted([f.name, f.sha256] for f in files))
    return hashlib.sha256(text.encode()).hexdigest()


class KeyParts(BaseModel, frozen=True):
    """Everything that decides whether an artifact is the wanted one (DESIGN, decision 1).

    Attributes:
        asset, code_version, partition: what is made, by which code, for which chunk.
        config: the config values that the asset reads.
        inputs: identity ``{"key", "sha256"}`` of each upstream.
    """

    asset: str
    code_version: str
    partition: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @field_validator("asset")
    @classmethod
    def _asset(cls, value: str) -> str:
        return check_word(value, "asset name")

    @field_validator("partition")
    @classmethod
    def _partition(cls, value: str | None) -> str | None:
        return value if value is None else check_word(value, "partition key")

    @cached_property
    def key(self) -> str:
        """sha256 (hex) of the canonical JSON of all parts."""
        # the text of `config`, by far the longest, is that of thousands of partitions: it is made once for all copies
        texts = {name: canonical_json(getattr(self, name)) for name in ("asset", "code_version", "inputs", "partition")}
        texts["config"] = self._config_text
        return hashlib.sha256(("{" + ",".join(f'"{name}":{texts[name]}' for name in sorted(texts)) + "}").encode()).hexdigest()

    @cached_property
    def _config_text(self) -> str:
        return canonical_json(self.config)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values; its key is its own."""
        _ = self._config_text
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("key", None)
        if update and "config" in update:
            copy.__dict__.pop("_config_text", None)
        return copy


class Handle(BaseModel, frozen=True):
    """A published artifact; what bodies return and read.

    Attributes:
        key: the completeness key that it was made for.
        uri: folder of this version (``file:///...`` or ``s3://...``).
        files: what is in it.
        sha256: content hash over the sorted names and hashes of the files.
        meta: small values that other bodies read without opening a file.
    """

    asset: str
    partition: str | None = None
    key: str
    uri: str
    files: tuple[FileEntry, ...]
    sha256: str
    meta: dict[str, Any] = Field(default_factory=dict)

    @property
    def identity(self) -> dict[str, str]:
        """What enters the key of a reader."""
        return {"key": self.key, "sha256": self.sha256}

    @property
    def nbytes(self) -> int:
        """Size of all files, in bytes."""
        return sum(f.nbytes for f in self.files)

    @property
    def label(self) -> str:
        """The artifact in words, for messages."""
        return self.asset if self.partition is None else f"{self.asset}[{self.partition}]"

    def file(self, name: str) -> FileEntry:
        """The entry of the file `name`.

        Raises:
            KeyError: no such file; the message lists what there is.
        """
        for entry in self.files:
            if entry.name == name:
                return entry
        there = ", ".join(f.name for f in self.files[:20])
        raise KeyError(f"{self.label} has no file {name!r}; it holds: {there}")


class Manifest(BaseModel):
    """The record of one (asset, partition), written last; without it nothing was published.

    Attributes:
        handle: the artifact; None after a failure.
        parts: what its key was made of.
        error: text of the failure.
        left: `meta` of an artifact that was taken out of use: what was decided in it, as which segments are retired, still counts.
        checks: outcomes, dicts with at least name, passed, severity ('error' | 'warn') and blocking.
        provenance: created, host, run_id, wall_s, cpu_s, max_rss_mb, versions.
    """

    model_config = ConfigDict(extra="ignore")

    handle: Handle | None = None
    parts: KeyParts
    status: Literal["ok", "failed"]
    error: str | None = None
    left: dict[str, Any] | None = None
    checks: list[dict[str, Any]] = Field(default_factory=list)
    provenance: dict[str, Any] = Field(default_factory=dict)

    @property
    def decided(self) -> dict[str, Any] | None:
        """The artifact's `meta`, or that of the one before this failure."""
        return self.handle.meta if self.handle is not None else self.left

    @property
    def blocked(self) -> list[str]:
        """Names of the failed checks that hold readers back."""
        return [
            str(c.get("name"))
            for c in self.checks
            if c.get("blocking") and not c.get("passed") and str(c.get("severity", "error")).lower() == "error"
        ]

    def dumps(self) -> str:
        """JSON text. (Not pydantic's own: it would turn NaN into null.)"""
        return json.dumps(plain(self.model_dump(mode="python")), indent=1)

    @classmethod
    def loads(cls, text: str | bytes) -> Manifest:
        """The inverse of `dumps`.

        Raises:
            ValueError: not a manifest (pydantic's and json's errors are ValueErrors).
        """
        return cls.model_validate(json.loads(text))
