"""The connection to an S3 server: its client, what is tried again, and its errors in words that a user can act on.

The client repeats requests that were refused for a reason that passes (5xx, throttling, a connection that is not made or breaks before
the answer) with growing pauses, `AWS_MAX_ATTEMPTS` times in all. An answer that breaks off in its middle is asked for again here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from aframe_assets.store.errors import AccessDenied, StoreError

GONE = {"NoSuchKey", "404", "NotFound"}
CHANGED = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409", "OperationAborted"}
SHORTER = {"InvalidRange", "416"}
TRIES = 5
PAUSE_S = 0.25
CONNECTIONS = 32
_DENIED = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "Forbidden"}
_ELSEWHERE = {"PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"}
_BUSY = {"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "429", "RequestLimitExceeded", "ServiceUnavailable", "503"}
_YES = ("1", "true", "yes")


class Answer(NamedTuple):
    """The body of an answer, and its fields."""

    data: bytes
    fields: Mapping[str, Any]


class Connection:
    """A client for one bucket, made at first use and again in a forked process; it may be pickled.

    Args:
        url: the store's address, for messages.
        bucket: its bucket.
    """

    def __init__(self, url: str, bucket: str) -> None:
        self.url, self.bucket = url, bucket
        self._made: tuple[int, Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}  # a client can be neither pickled nor shared with a forked process

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
            from botocore import UNSIGNED
            from botocore.config import Config
        except ImportError as error:
            raise StoreError(f"the store {self.url} needs boto3: install the extra [s3]") from error
        style = os.environ.get("AWS_S3_ADDRESSING_STYLE")
        if style not in (None, "", "path", "virtual", "auto"):
            raise StoreError(f"AWS_S3_ADDRESSING_STYLE is {style!r}; expected path, virtual or auto")
        tries = os.environ.get("AWS_MAX_ATTEMPTS") or "6"
        if not tries.isdigit() or int(tries) < 1:
            raise StoreError(f"AWS_MAX_ATTEMPTS is {tries!r}; expected a number of tries, 1 or more")
        options: dict[str, Any] = {"s3": {"addressing_style": style}} if style else {}
        if anonymous():
            options["signature_version"] = UNSIGNED
        config = Config(
            retries={"mode": "adaptive", "total_max_attempts": int(tries)},
            connect_timeout=5,
            read_timeout=60,
            max_pool_connections=CONNECTIONS,
            # Ceph and MinIO of a few years ago refuse the checksum headers that boto3 now sends by default
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            **options,
        )
        endpoint = None if self.endpoint == "AWS" else self.endpoint
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        with self.errors("connect"):
            session = boto3.session.Session()
            region = region or session.region_name or "us-east-1"
            client = session.client("s3", endpoint_url=endpoint, region_name=region, config=config)
            return client, None if anonymous() else session.get_credentials()

    def secrets(self) -> list[str]:
        """What no message may hold."""
        with suppress(Exception):  # whatever is wrong with the credentials, hiding them must not fail
            found = self._made[2].get_frozen_credentials()
            return [v for v in (found.secret_key, found.token, found.access_key) if v]
        return []

    def get(self, key: str, first: int = 0, size: int | None = None, doing: str = "read") -> Answer:
        """An object, or `size` bytes of it from byte `first` on; fewer where it ends before.

        Raises:
            StoreError: it cannot be read, or the connection broke off each time.
            botocore.exceptions.ClientError: there is no such object (`GONE`), or none of these bytes (`SHORTER`).
        """
        from botocore import exceptions as boto

        wanted = {} if size is None else {"Range": f"bytes={first}-{first + size - 1}"}
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE_S * 2**attempt)
            with self.errors(doing, GONE | SHORTER):
                found = self.client.get_object(Bucket=self.bucket, Key=key, **wanted)
                body = found["Body"]
                try:
                    if wanted and "ContentRange" not in found:  # some gateways give the whole object, whatever is asked for
                        data = _part(body, first, size)
                    else:
                        data = body.read()
                        if size is not None and len(data) != min(size, total_size(found) - first):
                            continue
                    return Answer(data, found)
                except (boto.IncompleteReadError, boto.HTTPClientError):
                    continue
                finally:
                    body.close()
        raise StoreError(
            f"s3://{self.bucket}/{key} at {self.endpoint}: the connection broke off {TRIES} times while it was read; "
            "check the network, then run the same command again"
        )

    @contextmanager
    def errors(self, doing: str, let: set[str] = frozenset()) -> Iterator[None]:
        """boto3's errors as a user understands them: which bucket, where, what to set; never a secret.

        Args:
            let: codes of the errors that go through as they are.
        """
        from boto3.exceptions import S3UploadFailedError
        from botocore import exceptions as boto

        place = f"{doing}: bucket {self.bucket!r} at {self.endpoint}"
        try:
            yield
        except S3UploadFailedError as error:
            cause = error.__context__ if isinstance(error.__context__, boto.ClientError) else None
            raise StoreError(_explain(place, cause)) from None
        except boto.ClientError as error:
            if code_of(error) in let:
                raise
            raise (AccessDenied if code_of(error) in _DENIED else StoreError)(_explain(place, error)) from None
        except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError, boto.ProfileNotFound) as error:
            raise StoreError(
                f"{place}: no usable credentials ({type(error).__name__}). Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                "AWS_PROFILE; for a public bucket, which can only be read, AWS_NO_SIGN_REQUEST=yes"
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


def anonymous() -> bool:
    """Whether requests are sent without a signature, as for public buckets (the variable is GDAL's)."""
    return os.environ.get("AWS_NO_SIGN_REQUEST", "").lower() in _YES


def code_of(error: Any) -> str:
    """The code of a ClientError, as "NoSuchKey" or "503"."""
    return str(error.response.get("Error", {}).get("Code", "?"))


def total_size(found: Mapping[str, Any]) -> int:
    """Size of the whole object, bytes, of an answer that may be a part of it."""
    return int(found["ContentRange"].rsplit("/", 1)[1]) if "ContentRange" in found else int(found["ContentLength"])


def server_time(found: Mapping[str, Any]) -> datetime:
    """When the server gave this answer, by its own clock; this machine's clock may be wrong."""
    with suppress(KeyError, TypeError, ValueError):
        return parsedate_to_datetime(found["ResponseMetadata"]["HTTPHeaders"]["date"])
    return datetime.now(UTC)


def _part(body: Any, first: int, size: int) -> bytes:
    """Bytes of a stream of the whole object, without holding more than them."""
    block = 1 << 20
    while first:
        skipped = len(body.read(min(block, first)))
        if not skipped:
            return b""
        first -= skipped
    parts = []
    while size and (data := body.read(min(block, size))):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def _explain(place: str, error: Any) -> str:
    code = code_of(error) if error is not None else "?"
    again = "then run the same command again"
    if code == "NoSuchBucket":
        return f"{place}: there is no such bucket. Create it, or correct the store's address or AWS_ENDPOINT_URL_S3"
    if code == "RequestTimeTooSkewed":
        off = (datetime.now(UTC) - server_time(error.response)).total_seconds()
        return f"{place}: refused, since this machine's clock is {off:+.0f} s off the server's. Set it (chronyc, timedatectl), {again}"
    if code in _DENIED:
        if anonymous():
            return f"{place}: access denied ({code}) to a request without signature. Unless the bucket is public, unset AWS_NO_SIGN_REQUEST"
        return (
            f"{place}: access denied ({code}). Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE, AWS_SESSION_TOKEN) "
            "and that they may read, write and list this bucket"
        )
    if code in _ELSEWHERE:
        return f"{place}: the bucket is in another region ({code}). Set AWS_REGION"
    if code in _FULL:
        return f"{place}: no space left ({code}); nothing was published. Free space or raise the quota, {again}"
    if code in ("NotImplemented", "501"):
        return f"{place}: the server does not know this request ({code}); the store needs multipart uploads and conditional writes"
    status = 0 if error is None else error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    tried = "" if error is None else f" after {error.response.get('ResponseMetadata', {}).get('RetryAttempts', 0) + 1} tries"
    if code in _BUSY or status in (429, 503):
        return f"{place}: the server is too busy ({code}){tried}. Start fewer steps at once (executor.max_concurrent of site.yaml), {again}"
    if status >= 500:
        return f"{place}: the server failed ({code}){tried}. Look at the server, {again}"
    return f"{place}: the server answered {code}"
