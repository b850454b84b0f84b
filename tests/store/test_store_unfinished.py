"""Work in progress: replaced at once, found by its key alone, removed when it is of no more use."""

from __future__ import annotations

from aframe_assets.store.unfinished import Unfinished


def test_what_is_kept_is_whole_and_little(store, make, tmp_path):
    parts = make("model", None)
    unfinished = Unfinished(store, parts)
    assert unfinished.find() is None and unfinished.fetch(tmp_path / "none") is None
    for step in range(5):
        (tmp_path / "a.ckpt").write_bytes(bytes([step]) * 1000)
        unfinished.keep({"a.ckpt": tmp_path / "a.ckpt"}, {"step": step})
        (tmp_path / "a.ckpt").unlink()
    assert len(store._versions("model_unfinished/_")) == 2
    assert Unfinished(store, make("model", None, seed=2)).find() is None
    other = Unfinished(store, parts)
    assert other.fetch(tmp_path / "there") == {"step": 4}
    assert (tmp_path / "there" / "a.ckpt").read_bytes() == bytes([4]) * 1000
    unfinished.keep({"a.ckpt": tmp_path / "there" / "a.ckpt"}, {"step": 5})
    other = Unfinished(store, parts)
    assert other.find().meta == {"step": 5}, "a try that had a later state itself, and only looked"
    other.drop()
    assert not store._versions("model_unfinished/_") and unfinished.find() is None


def test_a_lost_try_that_goes_on_takes_nothing_from_the_one_after_it(store, make, tmp_path, monkeypatch):
    lost, later = Unfinished(store, make("model", None)), Unfinished(store, make("model", None))
    versions = type(store)._versions

    def keep(which: Unfinished, step: int) -> None:
        (tmp_path / f"{step}.ckpt").write_bytes(bytes([step]) * 1000)
        which.keep({"a.ckpt": tmp_path / f"{step}.ckpt"}, {"step": step})

    def meanwhile(self, where):
        monkeypatch.setattr(type(store), "_versions", versions)
        keep(later, 9)
        return versions(self, where)

    keep(lost, 1)
    monkeypatch.setattr(type(store), "_versions", meanwhile)
    keep(lost, 2)
    assert later.find().meta == {"step": 9}


def test_an_artifact_that_kept_nothing_is_asked_nothing_at_its_end(store, make, monkeypatch):
    unfinished = Unfinished(store, make("model", None))
    asked = []
    for name in ("_remove", "_read", "_versions"):
        monkeypatch.setattr(type(store), name, lambda *words: asked.append(words))
    unfinished.drop()
    assert asked == []
