"""What an S3 store does when the server or the network fails: it tries again so many times, then says why, and nothing half counts."""

from __future__ import annotations

import json
import os
from datetime import datetime, timedelta

import pytest
from s3_proxy import SKEW_S

from aframe_assets.store import StoreError, open_store, s3, s3_connection, s3_transfer
from aframe_assets.store.leftovers import find_leftovers
from aframe_assets.store.opening import require_writable
from aframe_assets.store.ranges import StoredFile
from aframe_assets.store.unfinished import Unfinished

MB = 1 << 20
REAL = bool(os.environ.get("AFRAME_TEST_S3_ENDPOINT"))


@pytest.fixture
def remote(proxy, bucket, tmp_path, monkeypatch):
    """A store behind the proxy whose files of more than 5 MB go up in parts, and come down in parts of 1 MB."""
    monkeypatch.setattr(s3, "PART_BYTES", 5 * MB)
    monkeypatch.setattr(s3_transfer, "RANGE_BYTES", MB)
    return open_store(f"s3://{bucket[1]}/run", cache_dir=tmp_path / "cache")


@pytest.fixture
def data():
    return os.urandom(6 * MB + 77)


def put(store, parts, data):
    with store.scratch() as folder:
        (folder / "x").write_bytes(data)
        return store.publish(parts, folder)


def test_a_user_who_may_not_list_uploads_publishes_and_keeps_work_in_progress(remote, make, tmp_path, monkeypatch):
    def denied(*_):
        raise StoreError("list uploads: access denied")

    monkeypatch.setattr(s3.S3Store, "_uploads", denied)
    unfinished = Unfinished(remote, make("model", None))
    for step in range(4):
        (tmp_path / "a.ckpt").write_bytes(bytes([step]))
        unfinished.keep({"a.ckpt": tmp_path / "a.ckpt"}, {"step": step})
    assert unfinished.find().meta == {"step": 3} and len(remote._versions("model_unfinished/_")) == 2


@pytest.mark.parametrize("right", ["uploads&", "uploadId"])
def test_what_is_left_over_is_found_without_the_right_to_list_uploads_or_their_parts(remote, proxy, make, data, right):
    handle = put(remote, make(), data)
    orphan = f"background/1-1/{'0' * 16}-{'1' * 8}"
    remote._write(f"{orphan}/a", b"orphan")
    remote.client.create_multipart_upload(Bucket=remote.bucket, Key=remote._key(f"{orphan}/b"))
    said = []
    assert len(find_leftovers(remote, 0, said.append)) == 2 and said == []
    refused = proxy.fault("denied", 99, "GET", right)
    (found,) = find_leftovers(remote, 0, said.append)
    assert refused.met == 1 and found.address == remote.uri(orphan)
    (line,) = said
    assert "uploads" in line and "s3:ListBucketMultipartUploads" in line and "\n" not in line
    found.remove()
    assert remote._read(f"{orphan}/a") is None and remote.verify(handle) == []
    proxy.fault("denied", 1, "GET", "list-type")
    with pytest.raises(StoreError, match="access denied"):
        find_leftovers(remote, 0, said.append)
    refused.times = 0
    proxy.fault("501", 1, "GET", right)
    with pytest.raises(StoreError, match="does not know this request"):
        find_leftovers(remote, 0, said.append)
    assert len(said) == 1


@pytest.mark.parametrize("kind", ["500", "503", "429", "drop", "lost"])
def test_what_passes_is_tried_again(remote, proxy, make, data, kind):
    """Each kind of request meets the fault twice on its way."""
    met = [proxy.fault(kind, 2, method, where) for method, where in MET]
    handle = put(remote, make(), data)
    assert remote.open_local(handle, "x").read_bytes() == data
    assert remote.complete_many([make()]) == {make().partition: handle}
    assert remote.verify(handle) == []
    assert [f.met for f in met] == [2] * len(met)
    assert len(list(remote._pages("background"))) == 3, "the file, its manifest and the index; nothing twice"


MET = [
    ("PUT", "partNumber=1"),
    ("POST", "uploads"),
    ("POST", "uploadId"),
    ("PUT", "-32.json"),
    ("GET", "list-type"),
    ("GET", "/x"),
    ("HEAD", "/x"),
]


def test_an_answer_cut_in_its_middle_is_asked_for_again(remote, proxy, make, data):
    handle = put(remote, make(), data)
    faults = [proxy.fault("cut", 3, "GET", "/x"), proxy.fault("cut", 2, "GET", "-32.json")]
    assert remote.open_local(handle, "x").read_bytes() == data
    assert remote.complete(make()) == handle
    assert bytes(StoredFile(remote, handle, "x").read(MB, 2 * MB)) == data[MB : 3 * MB]
    assert [f.met for f in faults] == [3, 2]
    proxy.fault("cut", 99, "GET", "/x")
    with pytest.raises(StoreError, match="the connection broke off 5 times"):
        remote._sha256(remote._folder(handle) + "/x")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("500", "the server failed .InternalError. after 3 tries"),
        ("503", "too busy .SlowDown. after 3 tries.*executor.max_concurrent"),
        ("drop", "cannot be reached"),
        ("full", "no space left .InsufficientStorage.; nothing was published"),
        ("501", "does not know this request"),
    ],
)
@pytest.mark.parametrize("where", ["partNumber=2", "-32.json"])
def test_what_stays_is_an_error_and_nothing_was_published(proxy, remote, make, data, monkeypatch, kind, words, where):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    old = put(remote, make(v=1), b"old")
    fault = proxy.fault(kind, 999, "PUT", where)
    with pytest.raises(StoreError, match=words):
        put(remote, make(v=2), data)
    assert fault.met <= 3 * 2, "tries have a limit"
    assert remote.complete(make(v=2)) is None and remote.complete(make(v=1)) == old
    assert remote.manifests("background")[make().partition].handle == old
    proxy.faults.clear()
    handle = put(remote, make(v=2), data)
    assert remote.complete(make(v=2)) == handle and remote.verify(handle) == []


@pytest.mark.skipif(REAL, reason="a real server refuses a request whose signed header is gone")
def test_a_server_that_gives_whole_objects_for_ranges(remote, proxy, make, data):
    handle = put(remote, make(), data)
    file, fault = StoredFile(remote, handle, "x"), proxy.fault("strip:range", 999, "GET", "/x")
    assert bytes(file.read(3 * MB - 5, MB)) == data[3 * MB - 5 : 4 * MB - 5]
    assert bytes(file.read(len(data) - 9, 9)) == data[-9:]
    assert remote.open_local(handle, "x").read_bytes() == data and fault.met


def test_clocks_that_differ(remote, proxy, make, monkeypatch):
    put(remote, make(), b"x")
    proxy.fault("skewed", 99)
    with pytest.raises(StoreError, match=r"clock is \+(\d+) s off the server's. Set it") as error:
        remote.complete(make())
    assert abs(int(str(error.value).split("clock is +")[1].split(" s")[0]) - SKEW_S) < 60
    proxy.faults.clear()

    class Wrong(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(hours=5)

    monkeypatch.setattr(s3_connection, "datetime", Wrong)
    (age,) = remote._versions(f"background/{make().partition}").values()
    assert -60 < age < 600, "by the server's clock, so that no publish in progress is taken for an old one"


@pytest.mark.skipif(REAL, reason="a real server refuses a request whose signed header is gone")
def test_a_server_without_conditional_writes_is_found(remote, proxy):
    require_writable(remote)
    proxy.fault("strip:if-none-match", 99, "PUT")
    with pytest.raises(StoreError, match=r"If-None-Match.*two jobs"):
        require_writable(remote)


def test_a_public_bucket_is_read_without_credentials(proxy, bucket, make, tmp_path, monkeypatch):
    client, name = bucket
    handle = put(open_store(f"s3://{name}/run", cache_dir=tmp_path / "cache"), make(), b"public")
    public = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", "s3:ListBucket"]}
    policy = {"Version": "2012-10-17", "Statement": [{**public, "Resource": [f"arn:aws:s3:::{name}", f"arn:aws:s3:::{name}/*"]}]}
    client.put_bucket_policy(Bucket=name, Policy=json.dumps(policy))
    for found in client.list_objects_v2(Bucket=name)["Contents"]:  # moto asks the policy for GET, and these for HEAD
        client.put_object_acl(Bucket=name, Key=found["Key"], ACL="public-read")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "yes")
    proxy.requests.clear()
    reader = open_store(f"s3://{name}/run", cache_dir=tmp_path / "other")
    assert reader.manifests("background")[make().partition].handle == handle
    assert reader.open_local(handle, "x").read_bytes() == b"public" and reader.verify(handle) == []
    assert len(proxy.requests) > 3 and not [r for r in proxy.requests if "Authorization" in r[2]]
    if REAL:
        with pytest.raises(StoreError, match=r"access denied .* without signature.*AWS_NO_SIGN_REQUEST"):
            put(reader, make(v=2), b"mine")


@pytest.mark.skipif(not REAL, reason="moto takes any key; `make test-ceph` asks a real server")
@pytest.mark.parametrize(("name", "value"), [("AWS_SECRET_ACCESS_KEY", "another-secret-1"), ("AWS_ACCESS_KEY_ID", "AKIANOBODY000000")])
def test_wrong_credentials_at_a_real_server(bucket, make, tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=r"access denied .*Check AWS_ACCESS_KEY_ID") as error:
        put(open_store(f"s3://{bucket[1]}/run", cache_dir=tmp_path), make(), b"x")
    assert value not in str(error.value)


def test_a_number_of_tries_that_is_none(bucket, make, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "many")
    with pytest.raises(StoreError, match="AWS_MAX_ATTEMPTS is 'many'; expected a number"):
        open_store(f"s3://{bucket[1]}/run", cache_dir=tmp_path).complete(make())
