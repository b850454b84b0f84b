"""What only remote stores have: the cache, the connection and its errors."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
import time

import pytest

from aframe_assets.store import StoreError, open_store, s3
from aframe_assets.store.cache import Cache, CacheError


@pytest.fixture
def remote(bucket, tmp_path):
    return open_store(f"s3://{bucket[1]}/run", cache_dir=tmp_path / "cache", cache_bytes=10_000)


@pytest.fixture
def fetched(remote, monkeypatch):
    """Names of the objects that are downloaded from now on."""
    names = []
    original = remote.client.get_object

    def get(**kwargs):
        if "Range" in kwargs:
            names.append(kwargs["Key"].rsplit("/", 1)[1])
        return original(**kwargs)

    monkeypatch.setattr(remote.client, "get_object", get)
    return names


def put(store, parts, **files):
    with store.scratch() as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return store.publish(parts, folder)


def test_files_are_fetched_once(remote, make, fetched, tmp_path):
    handle = put(remote, make(), a=b"aa", b=b"bb")
    assert fetched == []
    path = remote.open_local(handle, "a")
    assert (path.read_bytes() == b"aa" and not os.access(path, os.W_OK)) or os.geteuid() == 0
    assert remote.open_local(handle, "a") == path and fetched == ["a"]
    folder = remote.open_local(handle)
    assert sorted(p.name for p in folder.iterdir()) == ["a", "b"] and fetched == ["a", "b"]
    # the same content under another key is the same entry
    other = put(remote, make(partition="2-2"), a=b"aa", b=b"bb")
    assert remote.open_local(other) == folder and fetched == ["a", "b"]
    again = open_store(remote.url, cache_dir=tmp_path / "cache")
    assert again.open_local(handle, "b") == folder / "b"


@pytest.mark.parametrize("change", ["size", "content", "gone", "record"])
def test_corrupt_cache_entry_is_fetched_again(remote, make, fetched, change):
    handle = put(remote, make(), a=b"good")
    path = remote.open_local(handle, "a")
    path.chmod(0o644)
    if change == "size":
        path.write_bytes(b"go")
    elif change == "content":
        path.write_bytes(b"evil")
    elif change == "gone":
        path.unlink()
    else:
        path.parent.with_suffix(".json").write_text("{broken")
    assert remote.open_local(handle, "a").read_bytes() == b"good"
    assert fetched == ["a", "a"]


def test_damaged_object_never_enters_the_cache(remote, make, fetched, damage):
    handle = put(remote, make(), a=b"good")
    damage(remote, handle, "a", b"evil")
    with pytest.raises(StoreError, match=r"background\[1126259446-32\].*was replaced"):
        remote.open_local(handle, "a")
    # its disk gives other bytes under the same ETag
    handle = handle.model_copy(update={"files": (handle.files[0].model_copy(update={"etag": None}),)})
    fetched.clear()
    with pytest.raises(StoreError, match=r"background\[1126259446-32\].*does not have the recorded sha256.*aframe verify"):
        remote.open_local(handle, "a")
    assert fetched == ["a", "a"], "it is read twice before it is called damaged"
    assert not [p for p in remote.cache.root.rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert "another sha256" in remote.verify(handle)[0]


def test_cap_drops_the_least_recently_used(remote, make):
    remote.cache.keep_s = 0.0
    handles = [put(remote, make(partition=f"{i}-4"), a=bytes([i]) * 4000) for i in range(3)]
    paths = [remote.open_local(h, "a") for h in handles[:2]]
    past = time.time() - 100
    for i, path in enumerate(paths):
        os.utime(path.parent.with_suffix(".json"), (past + i, past + i))
    remote.open_local(handles[0], "a")  # now 1 is the older one
    third = remote.open_local(handles[2], "a")
    assert third.exists() and paths[0].exists() and not paths[1].exists()
    assert remote.open_local(handles[1], "a").read_bytes() == bytes([1]) * 4000


def test_what_was_just_opened_stays_above_the_cap(remote, make):
    paths = [remote.open_local(put(remote, make(partition=f"{i}-4"), a=bytes([i]) * 9000), "a") for i in range(3)]
    assert all(p.exists() for p in paths)


def test_cache_on_a_full_disk(remote, make, tmp_path):
    handle = put(remote, make(), a=b"good")
    cache = Cache(tmp_path / "small", 10_000)

    def full(entry, target):
        target.write_bytes(b"go")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CacheError, match=r"no space left in the cache.*AFRAME_CACHE_DIR"):
        cache.open(handle, ["a"], full)
    assert not [p for p in cache.root.rglob("*") if p.is_file() and p.suffix != ".lock"]

    # old entries make room for the new one
    old = put(remote, make(partition="1-1"), a=b"old")
    cache.keep_s = 0.0
    cache.open(old, ["a"], lambda entry, target: target.write_bytes(b"old") and None)
    tries = []

    def tight(entry, target):
        tries.append(entry.name)
        if (cache.root / "files" / old.sha256[:2] / old.sha256).exists():
            full(entry, target)
        target.write_bytes(b"good")

    assert (cache.open(handle, ["a"], tight) / "a").read_bytes() == b"good" and tries == ["a", "a"]


def test_workers_of_one_host_fetch_once(remote, make, fetched):
    handle = put(remote, make(), a=b"x" * 5000)
    out = []
    workers = [threading.Thread(target=lambda: out.append(remote.open_local(handle, "a").read_bytes())) for _ in range(6)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert out == [b"x" * 5000] * 6 and fetched == ["a"]


def test_equal_bytes_are_not_uploaded_again(remote, make, monkeypatch):
    first = put(remote, make(), a=b"aa", b=b"bb")
    monkeypatch.setattr(remote.client, "upload_file", None)
    assert put(remote, make(), a=b"aa", b=b"bb") == first


def test_cut_off_uploads_are_aborted_in_the_end(remote, make, bucket, monkeypatch):
    client, name = bucket
    for i in range(3):
        client.create_multipart_upload(Bucket=name, Key=f"run/background/1126259446-32/dead/{i}")
    # the test server says of every upload that it began in 2010
    monkeypatch.setattr(s3, "_ABANDONED_S", 3e9)
    put(remote, make(), a=b"aa")
    assert len(client.list_multipart_uploads(Bucket=name)["Uploads"]) == 3, "they may be another worker's"
    monkeypatch.setattr(s3, "_ABANDONED_S", -60.0)
    put(remote, make(partition="1126259446-32", v=2), a=b"ab")
    assert "Uploads" not in client.list_multipart_uploads(Bucket=name)


def test_bucket_without_prefix(bucket, make, tmp_path):
    store = open_store(f"s3://{bucket[1]}", cache_dir=tmp_path)
    handle = put(store, make(), a=b"aa")
    assert handle.uri.startswith(f"s3://{bucket[1]}/background/")
    assert store.complete_many([make()]) == {"1126259446-32": handle}
    assert store.open_local(handle, "a").read_bytes() == b"aa"


def test_no_secret_in_any_object(remote, make, bucket):
    client, name = bucket
    put(remote, make(), a=b"aa")
    remote.record_failure(make(partition="2-2"), f"boto said {os.environ['AWS_SECRET_ACCESS_KEY']} {os.environ['AWS_ACCESS_KEY_ID']}")
    remote.manifests("background")
    bodies = [client.get_object(Bucket=name, Key=o["Key"])["Body"].read() for o in client.list_objects_v2(Bucket=name)["Contents"]]
    assert len(bodies) == 4
    for body in bodies:
        assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in body
        assert os.environ["AWS_ACCESS_KEY_ID"].encode() not in body


def test_secret_of_a_profile_is_blotted_out_too(s3_server, bucket, make, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    key, secret = s3_server["AWS_ACCESS_KEY_ID"], s3_server["AWS_SECRET_ACCESS_KEY"]  # a real server knows no others
    (tmp_path / "credentials").write_text(f"[lab]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    store = open_store(f"s3://{bucket[1]}/run", cache_dir=tmp_path)
    store.record_failure(make(), f"failed with {secret}")
    assert store.manifest("background", "1126259446-32").error == "failed with ***"


def closed_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_errors_say_what_to_set(bucket, make, tmp_path, monkeypatch):
    _, name = bucket
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    endpoint = os.environ["AWS_ENDPOINT_URL_S3"]

    def message(store, doing):
        with pytest.raises(StoreError) as error:
            doing(store)
        seen = error.value
        while seen is not None:
            assert secret not in str(seen)
            seen = None if seen.__suppress_context__ else seen.__context__
        return str(error.value)

    absent = f"no-{name}"
    for doing in (lambda s: s.check(), lambda s: s.manifest("background"), lambda s: put(s, make(), a=b"a"), lambda s: s.manifests("a")):
        text = message(open_store(f"s3://{absent}/x", cache_dir=tmp_path), doing)
        assert absent in text and endpoint in text and "no such bucket" in text

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{closed_port()}")
    text = message(open_store(f"s3://{name}/x", cache_dir=tmp_path), lambda s: s.check())
    assert "cannot be reached" in text and os.environ["AWS_ENDPOINT_URL_S3"] in text and "AWS_ENDPOINT_URL_S3 (or" in text
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "no-scheme:99")
    assert "http://" in message(open_store(f"s3://{name}/x", cache_dir=tmp_path), lambda s: s.check())
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)

    monkeypatch.setenv("AWS_S3_ADDRESSING_STYLE", "odd")
    assert "expected path, virtual or auto" in message(open_store(f"s3://{name}/x", cache_dir=tmp_path), lambda s: s.check())
    monkeypatch.setenv("AWS_S3_ADDRESSING_STYLE", "path")

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    text = message(open_store(f"s3://{name}/x", cache_dir=tmp_path), lambda s: s.check())
    assert "Set AWS_ACCESS_KEY_ID" in text
    monkeypatch.setenv("AWS_PROFILE", "absent")
    assert "AWS_PROFILE" in message(open_store(f"s3://{name}/x", cache_dir=tmp_path), lambda s: s.check())


def test_wrong_credentials(bucket, make, tmp_path, monkeypatch):
    from botocore.exceptions import ClientError

    store = open_store(f"s3://{bucket[1]}/x", cache_dir=tmp_path)
    for code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken", "403"):

        def refuse(code=code, **kwargs):
            raise ClientError({"Error": {"Code": code, "Message": os.environ["AWS_SECRET_ACCESS_KEY"]}}, "GetObject")

        monkeypatch.setattr(store.client, "get_object", refuse)
        with pytest.raises(StoreError, match=rf"access denied \({code}\).*Check AWS_ACCESS_KEY_ID") as error:
            store.manifest("background")
        assert bucket[1] in str(error.value) and os.environ["AWS_SECRET_ACCESS_KEY"] not in str(error.value)


def test_full_bucket(bucket, make, tmp_path, monkeypatch):
    from botocore.exceptions import ClientError

    store = open_store(f"s3://{bucket[1]}/x", cache_dir=tmp_path)

    def full(*args, **kwargs):
        raise ClientError({"Error": {"Code": "QuotaExceeded"}}, "PutObject")

    monkeypatch.setattr(store.client, "upload_file", full)
    with pytest.raises(StoreError, match=r"no space left.*nothing was published"):
        put(store, make(), a=b"a")
    assert store.complete(make()) is None


def test_addressing_style_and_checksums(bucket, tmp_path, monkeypatch):
    for style in ("path", "virtual", "auto"):
        monkeypatch.setenv("AWS_S3_ADDRESSING_STYLE", style)
        config = open_store("s3://b/x", cache_dir=tmp_path).client.meta.config
        assert config.s3["addressing_style"] == style
        assert config.request_checksum_calculation == "when_required"
        assert config.retries["mode"] == "adaptive"
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert open_store("s3://b/x", cache_dir=tmp_path).client.meta.endpoint_url == "http://127.0.0.1:9"


def test_without_boto3(make, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(StoreError, match=r"needs boto3: install the extra \[s3\]"):
        open_store("s3://b/x", cache_dir=tmp_path).complete(make())


def test_a_forked_worker_gets_its_own_client(remote, make):
    handle = put(remote, make(), a=b"aa")
    child = os.fork()
    if child == 0:
        os._exit(0 if remote.connection._made[0] != os.getpid() and remote.complete(make()) == handle else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_default_cache_folder(monkeypatch, tmp_path):
    from aframe_assets.store.opening import default_cache

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "aframe"
    monkeypatch.setenv("AFRAME_CACHE_DIR", str(tmp_path / "mine"))
    assert open_store("s3://b/x").cache.root == tmp_path / "mine"
