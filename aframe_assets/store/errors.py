"""What goes wrong in a store, and keeping secrets out of its words."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

_SECRET_NAMES = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|AWS_ACCESS_KEY_ID|API_?KEY|CREDENTIAL", re.IGNORECASE)


class StoreError(RuntimeError):
    """The store cannot do what was asked; the message says where and what to do."""


class AccessDenied(StoreError):
    """The user may not do this there; other things perhaps."""


class ArtifactGone(StoreError, LookupError):
    """An artifact, or a file of it, is not in the store."""


def redact(value: Any, secrets: Iterable[str] = ()) -> Any:
    """`value` with every secret of the environment (and `secrets`) blotted out of its strings."""
    hidden = [v for k, v in os.environ.items() if _SECRET_NAMES.search(k) and len(v) >= 6] + [s for s in secrets if s]
    hidden.sort(key=len, reverse=True)

    def clean(item: Any) -> Any:
        if isinstance(item, str):
            for secret in hidden:
                item = item.replace(secret, "***")
            return item
        if isinstance(item, dict):
            return {k: clean(v) for k, v in item.items()}
        return [clean(v) for v in item] if isinstance(item, list) else item

    return clean(value)
