"""In the init container of a pod: ``python -m aframe_ops.executor.kubernetes_unpack SPEC FOLDER`` fetches a snapshot of the code.

It is run by the image's version of this project, so what it reads of SPEC stays as it is: ``code`` (``store`` and ``sha256``)
and ``env``, with the store's credentials.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

LIMIT_BYTES = 500_000_000
"""No more than this is unpacked."""


def stays_inside(folder: Path, name: str) -> bool:
    """Whether the link `name` in `folder` is relative and leads to something below `folder`, by way of whatever links."""
    end = Path(os.path.realpath(folder / name))  # a circle of links is no error
    return not os.path.isabs(os.readlink(folder / name)) and end.is_relative_to(os.path.realpath(folder))


def unpack(packed: bytes, folder: Path) -> None:
    """Unpacks a tar archive into the new folder `folder`, all of it or nothing.

    Takes plain files, folders and links inside. By itself: tarfile has its filters since Python 3.11.4 only, and images have 3.11.2.

    Raises:
        ValueError: something in it would be put outside, or is there twice, or is a device; or it is too large.
    """
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=os.path.realpath(folder.parent)))
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as tar:
            _unpack(tar, part)
        part.chmod(0o755)
        os.replace(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _unpack(tar: tarfile.TarFile, part: Path) -> None:
    members = tar.getmembers()
    if (size := sum(member.size for member in members)) > LIMIT_BYTES:
        raise ValueError(f"the archive holds {size / 1e6:.0f} MB, more than {LIMIT_BYTES / 1e6:.0f} MB")
    # links last, so that nothing is written through one
    for member in sorted(members, key=tarfile.TarInfo.issym):
        try:
            _put(tar, member, part)
        except (FileExistsError, NotADirectoryError):
            raise ValueError(f"member {member.name!r} is there twice, or below a file; the archive is not unpacked") from None
    for member in members:
        if member.issym() and not stays_inside(part, member.name):
            raise ValueError(f"member {member.name!r} is a link out of the folder; the archive is not unpacked")


def _put(tar: tarfile.TarFile, member: tarfile.TarInfo, part: Path) -> None:
    target = part / member.name
    if os.path.isabs(member.name) or ".." in Path(member.name).parts or os.path.realpath(target.parent) != str(target.parent):
        raise ValueError(f"member {member.name!r} would leave the folder; the archive is not unpacked")
    target.parent.mkdir(parents=True, exist_ok=True)
    if member.isdir():
        target.mkdir(exist_ok=True)
    elif member.issym():
        target.symlink_to(member.linkname)
    elif member.isreg() and (stream := tar.extractfile(member)):
        with stream, target.open("xb") as out:
            shutil.copyfileobj(stream, out)
        target.chmod(0o755 if member.mode & 0o100 else 0o644)
    else:
        raise ValueError(f"member {member.name!r} is neither a file, a folder nor a link; the archive is not unpacked")


def main() -> None:
    # only here, since whoever unpacks needs no more than the standard library
    from aframe_assets.store.blobs import get_blob
    from aframe_assets.store.errors import StoreError
    from aframe_assets.store.opening import open_store

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
    try:
        unpack(packed, folder)
    except (ValueError, tarfile.TarError) as e:
        sys.exit(f"the code of this run cannot be unpacked: {e}")


if __name__ == "__main__":
    main()
