"""A store in an S3 bucket: AWS, Ceph, MinIO, or whatever speaks the protocol.

Endpoint: ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``. Addressing: ``AWS_S3_ADDRESSING_STYLE`` = path | virtual |
auto. Credentials: boto3's own chain only (environment, profile, instance role); none with ``AWS_NO_SIGN_REQUEST``. boto3 is imported at
first use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aframe_assets.store.base import ArtifactStore
from aframe_assets.store.cache import Cache, CacheError
from aframe_assets.store.errors import AccessDenied, ArtifactGone, StoreError
from aframe_assets.store.handle import FileEntry, Handle
from aframe_assets.store.layout import Listed, Lying, Marked, Stat
from aframe_assets.store.node import NodeDisk
from aframe_assets.store.ranges import Pieces, Source, StoredFile, ranges_of
from aframe_assets.store.s3_connection import CHANGED, GONE, SHORTER, Connection, code_of, server_time, total_size
from aframe_assets.store.s3_transfer import save, sha256_of

PART_BYTES = 8 << 20
"""Of an upload; the client takes larger ones where a file would have more than 10,000."""
_PARALLEL = 10
_ABANDONED_S = 86400.0


class S3Store(ArtifactStore):
    """Artifacts below ``s3://bucket/prefix``; files are read through a local cache.

    Args:
        url: ``s3://bucket`` or ``s3://bucket/prefix``.
        cache_dir: local folder for the cache, scratch and work in progress.
        cache_bytes: cap of the cache, in bytes.
        node: disk of the node, for cache and scratch; work in progress stays below `cache_dir`, for the next node to find.

    Raises:
        ValueError: not such an address, or one that carries credentials.
    """

    _flushes = False

    def __init__(self, url: str, cache_dir: str | Path, cache_bytes: int = 50_000_000_000, node: NodeDisk | None = None):
        found = urlsplit(url)
        if "@" in found.netloc:
            raise ValueError(
                "the store's address carries credentials; give s3://bucket/prefix and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if found.scheme != "s3" or not found.netloc or found.query or found.fragment:
            raise ValueError(f"store {url!r}: expected s3://bucket/prefix")
        self.bucket, self.prefix = found.netloc, found.path.strip("/")
        if any(part in ("", ".", "..") for part in self.prefix.split("/")) and self.prefix:
            raise ValueError(f"store {url!r}: the prefix may not hold empty parts, '.' or '..'")
        self.url = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        self._folder_cache = Path(cache_dir).expanduser().absolute()
        self.node, self.cache = node, Cache(self._folder_cache, cache_bytes)
        self.pieces = Pieces(node.cache if node else self.cache)
        self.connection = Connection(self.url, self.bucket)

    def __repr__(self) -> str:
        return f"S3Store({self.url!r})"

    @property
    def local(self) -> Path:
        # two buckets may share the cache, never their work in progress
        return self._folder_cache / "stores" / hashlib.sha256(f"{self.endpoint} {self.url}".encode()).hexdigest()[:16]

    @property
    def endpoint(self) -> str:
        """Where the bucket is, as configured."""
        return self.connection.endpoint

    @property
    def client(self) -> Any:
        """The boto3 client of this process."""
        return self.connection.client

    def _secrets(self) -> list[str]:
        return self.connection.secrets()

    def check(self) -> None:
        """Ask for the bucket.

        Raises:
            StoreError: unreachable, absent or forbidden, and what to set.
        """
        from botocore.exceptions import ClientError

        with self.connection.errors("check"):
            try:
                self.client.head_bucket(Bucket=self.bucket)
            except ClientError as error:
                if code_of(error) in GONE:
                    error.response["Error"]["Code"] = "NoSuchBucket"  # HEAD has no body to say so
                raise

    def _key(self, path: str) -> str:
        return f"{self.prefix}/{path}" if self.prefix else path

    def _path(self, key: str) -> str:
        return key[len(self.prefix) + 1 :] if self.prefix else key

    def _read(self, path: str) -> bytes | None:
        return self._marked(path).data

    def _write(self, path: str, data: bytes) -> None:
        with self.connection.errors("write"):
            self.client.put_object(Bucket=self.bucket, Key=self._key(path), Body=data, ContentType="application/json")

    def _marked(self, path: str) -> Marked:
        from botocore.exceptions import ClientError

        try:
            found = self.connection.get(self._key(path))
        except ClientError as error:
            if code_of(error) not in GONE:
                raise
            return Marked(None, None)
        return Marked(found.data, found.fields["ETag"].strip('"'))

    def _exchange(self, path: str, data: bytes, mark: str | None) -> bool:
        from botocore.exceptions import ClientError

        # Ceph compares the bare ETag, the standard says that it is quoted: the condition is the same, so both may be tried.
        conditions = [{"IfNoneMatch": "*"}] if mark is None else [{"IfMatch": mark}, {"IfMatch": f'"{mark}"'}]
        for condition in conditions:
            with self.connection.errors("write", CHANGED | GONE):
                try:
                    self.client.put_object(Bucket=self.bucket, Key=self._key(path), Body=data, ContentType="application/json", **condition)
                    return True
                except ClientError as error:
                    if code_of(error) not in CHANGED | GONE:
                        raise
        # the client repeats a request whose answer was lost, and is then refused because of its own first success
        return self._read(path) == data

    def _answers(self, folder: str, delimiter: str = "") -> Iterator[dict[str, Any]]:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self._key(f"{folder}/"), **({"Delimiter": delimiter} if delimiter else {})
        )
        with self.connection.errors("list"):
            yield from pages

    def _pages(self, folder: str, delimiter: str = "") -> Iterator[dict[str, Any]]:
        for answer in self._answers(folder, delimiter):
            yield from answer.get("Contents", [])

    def _list(self, folder: str) -> list[Listed]:
        return [Listed(o["Key"].rsplit("/", 1)[1], f"{o['Size']}-{o['ETag'].strip(chr(34))}") for o in self._pages(folder, "/")]

    def _folders(self) -> list[str]:
        start = self._key("")
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start, Delimiter="/")
        with self.connection.errors("list"):
            return [found["Prefix"][len(start) :].rstrip("/") for page in pages for found in page.get("CommonPrefixes", [])]

    def _head(self, path: str) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        try:
            with self.connection.errors("look up", GONE):
                return self.client.head_object(Bucket=self.bucket, Key=self._key(path))
        except ClientError:
            return None

    def _stat(self, path: str) -> Stat | None:
        found = self._head(path)
        return None if found is None else Stat(found["ContentLength"], found["ETag"].strip('"'))

    def _stats(self, folder: str) -> dict[str, Stat]:
        return {self._path(o["Key"]): Stat(o["Size"], o["ETag"].strip('"')) for o in self._pages(folder)}

    def _place(self, folder: str, files: Mapping[str, Path], entries: Sequence[FileEntry]) -> list[FileEntry]:
        return [self._upload(f"{folder}/{entry.name}", files[entry.name], entry) for entry in entries]

    def _upload(self, path: str, file: Path, entry: FileEntry) -> FileEntry:
        """Brings `file` to `path`, where it does not lie there already; its entry with the ETag."""
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=_PARALLEL)
        there = self._holding(path, entry)
        if there is None:
            failed = None
            try:
                with self.connection.errors("upload"):
                    self.client.upload_file(str(file), self.bucket, self._key(path), Config=config)
            except StoreError as error:
                failed = error
            # an upload that was completed, with its answer lost, is repeated and then refused; what lies there counts
            with suppress(StoreError) if failed else nullcontext():
                there = self._holding(path, entry) if failed else self._head(path)
            if there is None or there["ContentLength"] != entry.nbytes:
                words = f"{self.uri(path)} is not there, or not whole, right after its upload"
                raise failed or StoreError(f"{words}; run the same command again")
        return entry.model_copy(update={"etag": there["ETag"].strip('"')})

    def _holding(self, path: str, entry: FileEntry) -> dict[str, Any] | None:
        """The head of an object that is the file of `entry`, as an earlier publish of the same bytes leaves it: it is read to know that."""
        there = self._head(path)
        if there is None or there["ContentLength"] != entry.nbytes:
            return None
        with suppress(ArtifactGone):
            return there if self._sha256(path) == entry.sha256 else None
        return None

    def _versions(self, folder: str) -> dict[str, float]:
        out: dict[str, float] = {}
        start = len(self._key(f"{folder}/"))
        for answer in self._answers(folder):
            # by the clock that stamped them: with one of this machine that goes wrong, a publish in progress would seem old
            now = server_time(answer)
            for found in answer.get("Contents", []):
                version = found["Key"][start:].split("/", 1)[0]
                age = _age(now, found["LastModified"])
                out[version] = min(age, out.get(version, age))
        self._abort_uploads(folder)
        return out

    def _abort_uploads(self, folder: str) -> None:
        """Give back the space of uploads that a kill cut off; they are invisible but are paid for."""
        with suppress(StoreError):  # who may write a bucket may not be allowed to list its uploads
            for found in self._uploads(self._key(f"{folder}/")):
                if found.age_s > _ABANDONED_S:
                    found.abort()

    def _uploads(self, prefix: str) -> Iterator[Lying]:
        """Uploads that were begun and not ended; their age is that of their last part: a large file takes hours."""
        pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=prefix)
        with self.connection.errors("list uploads"):
            for page in pages:
                now = server_time(page)
                for found in page.get("Uploads", []):
                    parts = self._parts(found["Key"], found["UploadId"])
                    last = max([found["Initiated"], *(part["LastModified"] for part in parts)])
                    nbytes = sum(part["Size"] for part in parts)
                    yield Lying(self._path(found["Key"]), nbytes, _age(now, last), partial(self._abort, found["Key"], found["UploadId"]))

    def _parts(self, key: str, upload: str) -> list[dict[str, Any]]:
        from botocore.exceptions import ClientError

        pages = self.client.get_paginator("list_parts").paginate(Bucket=self.bucket, Key=key, UploadId=upload)
        with suppress(ClientError), self.connection.errors("list uploads", {"NoSuchUpload"}):  # it has just been ended
            return [part for page in pages for part in page.get("Parts", [])]
        return []

    def _everything(self, say: Callable[[str], object]) -> Iterator[Lying]:
        prefix = self._key("")
        with self.connection.errors("list"):
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                now = server_time(page)
                for found in page.get("Contents", []):
                    yield Lying(self._path(found["Key"]), found["Size"], _age(now, found["LastModified"]))
        try:
            yield from self._uploads(prefix)
        except AccessDenied:
            rights = "s3:ListBucketMultipartUploads and s3:ListMultipartUploadParts"
            say(f"uploads that were cut off are left out, for want of the rights {rights} on the bucket {self.bucket!r}")

    def _abort(self, key: str, upload: str) -> None:
        from botocore.exceptions import ClientError

        with suppress(ClientError), self.connection.errors("abort an upload", {"NoSuchUpload"}):  # another worker was first
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload)

    def _remove(self, path: str) -> None:
        keys = [o["Key"] for o in self._pages(path)] + [self._key(path)]
        # one by one: the bulk call needs checksums that older servers do not understand
        with self.connection.errors("remove"), ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(lambda key: self.client.delete_object(Bucket=self.bucket, Key=key), keys))

    def _sha256(self, path: str) -> str:
        from botocore.exceptions import ClientError

        there = self._head(path)
        try:
            if there is not None:
                return sha256_of(there["ContentLength"], lambda first, size: self.connection.get(self._key(path), first, size).data)
        except ClientError as error:
            if code_of(error) not in GONE | SHORTER:
                raise
        raise ArtifactGone(f"{self.uri(path)} is missing")

    def open_ranges(self, handle: Handle, name: str) -> Source:
        return StoredFile(self, handle, handle.file(name).name)

    def read_range(self, handle: Handle, name: str, first: int, size: int) -> bytes | bytearray:
        entry, path = handle.file(name), f"{self._folder(handle)}/{name}"
        copy = self.pieces.cache.copy(handle, name)
        if copy is not None:
            # the cache may remove it meanwhile
            with suppress(OSError):
                return ranges_of(copy).read(first, size)
        return self.pieces.read(entry, first, size, lambda start, count: self._fetch(handle, entry, path, start, count))

    def _fetch(self, handle: Handle, entry: FileEntry, path: str, first: int, size: int) -> bytes:
        """One range of a file, of the object that the handle means and of no other."""
        from botocore.exceptions import ClientError

        try:
            found = self.connection.get(self._key(path), first, size, "download")
        except ClientError as error:
            if code_of(error) not in GONE | SHORTER:
                raise
            raise self.missing(handle, [f"{self.uri(path)} is missing or shorter than recorded"]) from None
        total, etag = total_size(found.fields), found.fields["ETag"].strip('"')
        if total != entry.nbytes or (entry.etag and etag != entry.etag):
            raise self.missing(handle, [f"{self.uri(path)} was replaced ({total} bytes, ETag {etag})"])
        return found.data

    def _save(self, handle: Handle, entry: FileEntry, target: Path) -> str:
        """Writes a file to the new file `target`; its sha256."""
        path = f"{self._folder(handle)}/{entry.name}"
        return save(entry.nbytes, lambda first, size: self._fetch(handle, entry, path, first, size), target)

    def hashed(self, handle: Handle, name: str, spare: Path) -> tuple[Path, str]:
        return spare, self._save(handle, handle.file(name), spare)

    def open_local(self, handle: Handle, name: str | None = None) -> Path:
        names = [f.name for f in handle.files] if name is None else [handle.file(name).name]

        def fetch(entry: FileEntry, target: Path) -> str:
            return self._save(handle, entry, target)

        try:
            path = (self.node and self.node.open(handle, names, fetch)) or self.cache.open(handle, names, fetch)
        except CacheError as error:
            raise StoreError(f"{handle.label} from {handle.uri}: {error}") from error
        return path if name is None else path / name


def _age(now: datetime, then: datetime) -> float:
    """Seconds. An answer's time is in whole seconds, that of an object in thousandths: a new one would seem to come from the future."""
    return max(0.0, (now - then).total_seconds())
