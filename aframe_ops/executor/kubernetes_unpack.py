"""In the init container of a pod: ``python -m aframe_ops.executor.kubernetes_unpack SPEC FOLDER`` fetches a snapshot of the code.

It is run by the image's version of this project, so what it reads of SPEC stays as it is: ``code`` (``store`` and ``sha256``)
and ``env``, with the store's credentials.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path

from aframe_assets.store.blobs import get_blob
from aframe_assets.store.errors import StoreError
from aframe_assets.store.opening import open_store

LIMIT_BYTES = 500_000_000
"""No more than this is unpacked."""


def unpack(packed: bytes, folder: Path) -> None:
    """Unpacks a tar archive into the new folder `folder`, all of it or nothing.

    Raises:
        tarfile.FilterError: something in it would be put outside.
        ValueError: it is too large.
    """
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as tar:
        if (size := sum(member.size for member in tar.getmembers())) > LIMIT_BYTES:
            raise ValueError(f"the archive holds {size / 1e6:.0f} MB, more than {LIMIT_BYTES / 1e6:.0f} MB")
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
        tar.extractall(part, filter="data")
    part.chmod(0o755)
    os.replace(part, folder)


def main() -> None:
    spec, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    if folder.exists():  # this container was started again after its work was done
        return
    os.environ.update(spec["env"])
    code = spec["code"]
    store = open_store(code["store"], cache_dir=tempfile.gettempdir())
    try:
        packed = get_blob(store, code["sha256"])
    except StoreError as e:
        sys.exit(f"the code of this run cannot be had: {e}; pods need the store on S3, or on a volume under the same path")
    unpack(packed, folder)


if __name__ == "__main__":
    main()
