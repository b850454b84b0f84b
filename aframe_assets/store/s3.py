"""A store in an S3 bucket: AWS, Ceph, MinIO, or whatever speaks the protocol.

Endpoint: ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``. Addressing: ``AWS_S3_ADDRESSING_STYLE`` = path | virtual |
auto. Credentials: boto3's own chain only (environment, profile, instance role). boto3 is imported at first use.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aframe_assets.store.base import ArtifactStore
from aframe_assets.store.cache import Cache, CacheError
from aframe_assets.store.errors import StoreError
from aframe_assets.store.handle import FileEntry, Handle
from aframe_assets.store.layout import Listed, Lying, Marked, Stat
from aframe_assets.store.node import NodeDisk
from aframe_assets.store.ranges import Pieces, Source, StoredFile, ranges_of

PART_BYTES = 32 << 20
_PARALLEL = 8
_TRIES = 5
_ABANDONED = timedelta(days=1)
_GONE = {"NoSuchKey", "404", "NotFound"}
_CHANGED = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409", "OperationAborted"}
_DENIED = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "Forbidden"}


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
        self._made: tuple[int, Any, Any] | None = None

    def __repr__(self) -> str:
        return f"S3Store({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}  # a client can be neither pickled nor shared with a forked process

    @property
    def local(self) -> Path:
        # two buckets may share the cache, never their work in progress
        return self._folder_cache / "stores" / hashlib.sha256(f"{self.endpoint} {self.url}".encode()).hexdigest()[:16]

    @property
    def endpoint(self) -> str:
        """Where the bucket is, as configured."""
        return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"

    @property
    def client(self) -> Any:
        """The boto3 client of this process."""
        if self._made is None or self._made[0] != os.getpid():
            self._made = (os.getpid(), *self._connect())
        return self._made[1]

    def _connect(self) -> tuple[Any, Any]:
        try:
            import boto3
            from botocore.config import Config
        except ImportError as error:
            raise StoreError(f"the store {self.url} needs boto3: install the extra [s3]") from error
        style = os.environ.get("AWS_S3_ADDRESSING_STYLE")
        if style not in (None, "", "path", "virtual", "auto"):
            raise StoreError(f"AWS_S3_ADDRESSING_STYLE is {style!r}; expected path, virtual or auto")
        options: dict[str, Any] = {"s3": {"addressing_style": style}} if style else {}
        config = Config(
            retries={"mode": "adaptive", "max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS", "6"))},
            connect_timeout=5,
            read_timeout=60,
            max_pool_connections=32,
            # Ceph and MinIO of a few years ago refuse the checksum headers that boto3 now sends by default
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            **options,
        )
        endpoint = None if self.endpoint == "AWS" else self.endpoint
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        with self._errors("connect"):
            session = boto3.session.Session()
            region = region or session.region_name or "us-east-1"
            return session.client("s3", endpoint_url=endpoint, region_name=region, config=config), session.get_credentials()

    def _secrets(self) -> list[str]:
        with suppress(Exception):  # whatever is wrong with the credentials, hiding them must not fail
            found = self._made[2].get_frozen_credentials()
            return [v for v in (found.secret_key, found.token, found.access_key) if v]
        return []

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """boto3's errors as a user understands them: which bucket, where, what to set; never a secret."""
        from boto3.exceptions import S3UploadFailedError
        from botocore import exceptions as boto

        place = f"{doing}: bucket {self.bucket!r} at {self.endpoint}"
        try:
            yield
        except S3UploadFailedError as error:
            cause = error.__context__ if isinstance(error.__context__, boto.ClientError) else None
            raise StoreError(self._explain(place, cause)) from None
        except boto.ClientError as error:
            raise StoreError(self._explain(place, error)) from None
        except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError, boto.ProfileNotFound) as error:
            raise StoreError(
                f"{place}: no usable credentials ({type(error).__name__}). Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            ) from None
        except (boto.HTTPClientError, boto.ConnectionError) as error:
            raise StoreError(
                f"{place}: cannot be reached ({type(error).__name__}). "
                "Check AWS_ENDPOINT_URL_S3 (or AWS_ENDPOINT_URL), the network and the server"
            ) from None
        except (boto.ParamValidationError, ValueError) as error:
            raise StoreError(
                f"{place}: {type(error).__name__}; check the bucket's name and AWS_ENDPOINT_URL_S3 (http:// or https:// in front)"
            ) from None

    @staticmethod
    def _explain(place: str, error: Any) -> str:
        code = str(error.response.get("Error", {}).get("Code", "?")) if error is not None else "?"
        if code == "NoSuchBucket":
            return f"{place}: there is no such bucket. Create it, or correct the store's address or AWS_ENDPOINT_URL_S3"
        if code in _DENIED:
            return (
                f"{place}: access denied ({code}). Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE, AWS_SESSION_TOKEN) "
                "and that they may read, write and list this bucket"
            )
        if code in ("PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"):
            return f"{place}: the bucket is in another region ({code}). Set AWS_REGION"
        if code in ("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"):
            return f"{place}: no space left ({code}); nothing was published. Free space or raise the quota, then run the same command again"
        return f"{place}: the server answered {code}"

    def check(self) -> None:
        """Ask for the bucket.

        Raises:
            StoreError: unreachable, absent or forbidden, and what to set.
        """
        from botocore.exceptions import ClientError

        with self._errors("check"):
            try:
                self.client.head_bucket(Bucket=self.bucket)
            except ClientError as error:
                if error.response["Error"]["Code"] in _GONE:
                    error.response["Error"]["Code"] = "NoSuchBucket"  # HEAD has no body to say so
                raise

    def _key(self, path: str) -> str:
        return f"{self.prefix}/{path}" if self.prefix else path

    def _path(self, key: str) -> str:
        return key[len(self.prefix) + 1 :] if self.prefix else key

    def _read(self, path: str) -> bytes | None:
        from botocore.exceptions import ClientError

        with self._errors("read"):
            try:
                return self.client.get_object(Bucket=self.bucket, Key=self._key(path))["Body"].read()
            except ClientError as error:
                if error.response["Error"]["Code"] in _GONE:
                    return None
                raise

    def _write(self, path: str, data: bytes) -> None:
        with self._errors("write"):
            self.client.put_object(Bucket=self.bucket, Key=self._key(path), Body=data, ContentType="application/json")

    def _marked(self, path: str) -> Marked:
        from botocore.exceptions import ClientError

        with self._errors("read"):
            try:
                found = self.client.get_object(Bucket=self.bucket, Key=self._key(path))
                return Marked(found["Body"].read(), found["ETag"].strip('"'))
            except ClientError as error:
                if error.response["Error"]["Code"] in _GONE:
                    return Marked(None, None)
                raise

    def _exchange(self, path: str, data: bytes, mark: str | None) -> bool:
        from botocore.exceptions import ClientError

        # Ceph compares the bare ETag, the standard says that it is quoted: the condition is the same, so both may be tried.
        conditions = [{"IfNoneMatch": "*"}] if mark is None else [{"IfMatch": mark}, {"IfMatch": f'"{mark}"'}]
        with self._errors("write"):
            for condition in conditions:
                try:
                    self.client.put_object(Bucket=self.bucket, Key=self._key(path), Body=data, ContentType="application/json", **condition)
                    return True
                except ClientError as error:
                    if error.response["Error"]["Code"] not in _CHANGED | _GONE:
                        raise
        return False

    def _pages(self, folder: str, delimiter: str = "") -> Iterator[dict[str, Any]]:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self._key(f"{folder}/"), **({"Delimiter": delimiter} if delimiter else {})
        )
        with self._errors("list"):
            for page in pages:
                yield from page.get("Contents", [])

    def _list(self, folder: str) -> list[Listed]:
        return [Listed(o["Key"].rsplit("/", 1)[1], f"{o['Size']}-{o['ETag'].strip(chr(34))}") for o in self._pages(folder, "/")]

    def _head(self, path: str) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        with self._errors("look up"):
            try:
                return self.client.head_object(Bucket=self.bucket, Key=self._key(path))
            except ClientError as error:
                if error.response["Error"]["Code"] in _GONE:
                    return None
                raise

    def _stat(self, path: str) -> Stat | None:
        found = self._head(path)
        return None if found is None else Stat(found["ContentLength"], found["ETag"].strip('"'))

    def _stats(self, folder: str) -> dict[str, Stat]:
        return {self._path(o["Key"]): Stat(o["Size"], o["ETag"].strip('"')) for o in self._pages(folder)}

    def _place(self, folder: str, files: Mapping[str, Path], entries: Sequence[FileEntry]) -> list[FileEntry]:
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=_PARALLEL)
        out = []
        for entry in entries:
            path = f"{folder}/{entry.name}"
            there = self._head(path)
            # an object that carries this hash and size came from an earlier publish of the same bytes
            if there is None or there["ContentLength"] != entry.nbytes or there.get("Metadata", {}).get("sha256") != entry.sha256:
                with self._errors("upload"):
                    extra = {"Metadata": {"sha256": entry.sha256}}
                    self.client.upload_file(str(files[entry.name]), self.bucket, self._key(path), ExtraArgs=extra, Config=config)
                there = self._head(path)
            if there is None or there["ContentLength"] != entry.nbytes:
                raise StoreError(f"{self.uri(path)} is not there, or not whole, right after its upload; run the same command again")
            out.append(entry.model_copy(update={"etag": there["ETag"].strip('"')}))
        return out

    def _versions(self, folder: str) -> dict[str, float]:
        now = datetime.now(UTC)
        self._abort_uploads(folder, now - _ABANDONED)
        out: dict[str, float] = {}
        start = len(self._key(f"{folder}/"))
        for found in self._pages(folder):
            version = found["Key"][start:].split("/", 1)[0]
            age = (now - found["LastModified"]).total_seconds()
            out[version] = min(age, out.get(version, age))
        return out

    def _abort_uploads(self, folder: str, before: datetime) -> None:
        """Give back the space of uploads that a kill cut off; they are invisible but are paid for."""
        with self._errors("list uploads"):
            found = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=self._key(f"{folder}/"))
            for upload in found.get("Uploads", []):
                if upload["Initiated"] < before:
                    self.client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def _everything(self) -> Iterator[Lying]:
        now, where = datetime.now(UTC), {"Bucket": self.bucket, "Prefix": self._key("")}
        with self._errors("list"):
            for page in self.client.get_paginator("list_objects_v2").paginate(**where):
                for found in page.get("Contents", []):
                    yield Lying(self._path(found["Key"]), found["Size"], (now - found["LastModified"]).total_seconds())
            for page in self.client.get_paginator("list_multipart_uploads").paginate(**where):
                for found in page.get("Uploads", []):
                    yield Lying(self._path(found["Key"]), 0, (now - found["Initiated"]).total_seconds(), found["UploadId"])

    def _abort(self, upload: Lying) -> None:
        with self._errors("abort an upload"):
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=self._key(upload.path), UploadId=upload.upload)

    def _remove(self, path: str) -> None:
        keys = [o["Key"] for o in self._pages(path)] + [self._key(path)]
        # one by one: the bulk call needs checksums that older servers do not understand
        with self._errors("remove"), ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(lambda key: self.client.delete_object(Bucket=self.bucket, Key=key), keys))

    def _sha256(self, path: str) -> str:
        digest = hashlib.sha256()
        with self._errors("read"):
            body = self.client.get_object(Bucket=self.bucket, Key=self._key(path))["Body"]
            for block in body.iter_chunks(4 << 20):
                digest.update(block)
        return digest.hexdigest()

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
        """One request; tried again where the connection breaks off after the answer has begun, which boto3 does not."""
        from botocore import exceptions as boto

        for attempt in range(_TRIES):
            with self._errors("read"):
                try:
                    found = self.client.get_object(Bucket=self.bucket, Key=self._key(path), Range=f"bytes={first}-{first + size - 1}")
                except boto.ClientError as error:
                    if error.response["Error"]["Code"] in _GONE | {"InvalidRange", "416"}:
                        raise self.missing(handle, [f"{self.uri(path)} is missing or shorter than recorded"]) from None
                    raise
                total, etag = int(found["ContentRange"].rsplit("/", 1)[1]), found["ETag"].strip('"')
                if total != entry.nbytes or (entry.etag and etag != entry.etag):
                    raise self.missing(handle, [f"{self.uri(path)} was replaced ({total} bytes, ETag {etag})"])
                try:
                    data = found["Body"].read()
                    if len(data) == size:
                        return data
                except (boto.IncompleteReadError, boto.HTTPClientError):
                    pass
            time.sleep(0.5 * 2**attempt)
        raise StoreError(f"{self.uri(path)}: the connection broke off {_TRIES} times while {size} bytes were read; check the network")

    def open_local(self, handle: Handle, name: str | None = None) -> Path:
        names = [f.name for f in handle.files] if name is None else [handle.file(name).name]
        folder = self._folder(handle)

        def fetch(entry: FileEntry, target: Path) -> None:
            from boto3.s3.transfer import TransferConfig
            from botocore.exceptions import ClientError

            config = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=_PARALLEL)
            key = self._key(f"{folder}/{entry.name}")
            with self._errors("download"), target.open("wb") as stream:
                try:
                    self.client.download_fileobj(self.bucket, key, stream, Config=config)
                except ClientError as error:
                    if error.response["Error"]["Code"] in _GONE:
                        raise self.missing(handle, [f"{self.uri(f'{folder}/{entry.name}')} is missing"]) from None
                    raise

        try:
            path = (self.node and self.node.open(handle, names, fetch)) or self.cache.open(handle, names, fetch)
        except CacheError as error:
            raise StoreError(f"{handle.label} from {handle.uri}: {error}") from error
        return path if name is None else path / name
