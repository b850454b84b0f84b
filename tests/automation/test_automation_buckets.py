"""Files that are dropped in buckets, and buckets that fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from dropped_files import begin, incoming, verdicts, write

from aframe_ops.automation.places import PlaceError, drops, take


def test_files_dropped_in_a_bucket(folder, bucket):
    client, name = bucket
    inc, here = incoming(folder, watch=[f"s3://{name}/drop"], quiet_seconds=0)
    for i, key in enumerate(("drop/a/", "drop/", "dropped/", "drop/.part/")):
        path = write(folder / "made", i)
        client.upload_file(str(path), name, key + path.name)
    client.put_object(Bucket=name, Key="drop/readme.txt", Body=b"no strain")
    assert sorted(inc.look(here, now=0).landed) == [f"background-{begin(i)}-16.hdf5" for i in (0, 1)]
    # the same again, and a key that is listed and never there
    assert not inc.look(here, now=1).new
    found = list(drops(f"s3://{name}/drop"))
    client.delete_object(Bucket=name, Key=f"drop/background-{begin(1)}-16.hdf5")
    with pytest.raises(PlaceError, match=r"cannot be fetched: .*(NoSuchKey|404)"):
        take(next(d for d in found if "/a/" not in d.file), folder / "copy")
    with pytest.raises(PlaceError, match="there is no such bucket"):
        list(drops("s3://no-such-bucket-here/x"))


def test_a_bucket_whose_server_fails_now_and_then_loses_nothing(folder, bucket, proxy, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    client, name = bucket
    inc, here = incoming(folder, watch=[f"s3://{name}/drop", "inbox"], settle_seconds=0, quiet_seconds=0)
    for i in (1, 2):
        path = write(folder / "made", i)
        client.upload_file(str(path), name, f"drop/{path.name}")
    write(folder / "inbox", 3)
    for kind in ("500", "drop", "cut"):
        fault = proxy.fault(kind, where="list-type")
        look = inc.look(here, now=0)
        assert fault.met and f"s3://{name}/drop: cannot be listed" in str(look) and not look.settling, kind
    assert [Path(e.file).parent for e in inc.ledger.read()] == [folder / "inbox"], "the other place was looked at"
    # what breaks off is no fault of the disk here, and holds back no other file
    for kind in ("500", "cut"):
        proxy.fault(kind, where=f"{begin(1)}-")
        look = inc.look(here, now=1)
        assert f"drop/background-{begin(1)}-16.hdf5: cannot be" in str(look) and "copied" not in str(look)
    assert verdicts(inc) == {f"background-{begin(i)}-16.hdf5": "good" for i in (2, 3)}
    assert inc.look(here, now=2).landed == [f"background-{begin(1)}-16.hdf5"]


def test_an_object_that_is_listed_and_never_there_starts_nothing(folder, monkeypatch):
    inc, here = incoming(folder, settle_seconds=0, quiet_seconds=0)
    write(folder / "inbox", 1)
    write(folder / "inbox", 2)
    from aframe_ops.automation import incoming as module

    real = module.take

    def lost(drop, target, **options):
        if str(begin(1)) in drop.file:
            raise PlaceError(f"{drop.file}: cannot be fetched: NoSuchKey")
        return real(drop, target, **options)

    monkeypatch.setattr(module, "take", lost)
    assert [Path(n).name for n in inc.look(here, now=0).landed] == [f"background-{begin(2)}-16.hdf5"]
    for now in range(1, 5):
        look = inc.look(here, now=now)
        assert not look.new and not look.landed and "NoSuchKey" in str(look)
    assert len(inc.ledger.read()) == 1
