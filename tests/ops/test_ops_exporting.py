"""`aframe export` and `aframe crate` on a finished run."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path

import pytest


def test_files_are_copied_whole(tiny_run, tmp_path):
    out = tiny_run.aframe("export", str(tiny_run.path), "--to", str(tmp_path / "results")).stdout
    names = {p.name for p in (tmp_path / "results").iterdir()}
    assert names == {"report.html", "candidates.csv", "candidates-gracedb.json", "candidates.xml.gz", "sensitive_volume.h5"}
    assert all(n in out for n in names)
    events = json.loads((tmp_path / "results" / "candidates-gracedb.json").read_text())
    lines = (tmp_path / "results" / "candidates.csv").read_text().splitlines()
    assert len(events) == len(lines) - 1 > 0
    page = (tmp_path / "results" / "report.html").read_text()
    assert page.count('<article class="event"') == 2 and "Q-scan" in page and page.count("<img src=") == 4
    # what the user has is the user's to change
    (tmp_path / "results" / "report.html").write_text("mine")
    tiny_run.aframe("export", str(tiny_run.path), "--to", str(tmp_path / "results"), "--format", "report")
    assert (tmp_path / "results" / "report.html").read_text() == page


def test_the_report_is_found(tiny_run, tmp_path):
    out = tiny_run.aframe("report", str(tiny_run.path)).stdout
    assert "sensitive volume" in out and Path(out.rsplit("report: ", 1)[1].strip()).is_file()
    tiny_run.aframe("init", str(tmp_path / "new"), "--preset", "demo")
    again = tiny_run.aframe("report", str(tmp_path / "new"), check=False)
    assert again.returncode == 1 and "report is missing or out of date" in again.stderr


def test_what_cannot_be_exported_is_refused(tiny_run, tmp_path):
    from aframe_assets.store import open_store
    from aframe_assets.store.workspace import Workspace
    from aframe_ops.cli.exporting import NotMade, export_files

    wrong = tiny_run.aframe("export", str(tiny_run.path), "--to", str(tmp_path / "x"), "--format", "pdf", check=False)
    assert wrong.returncode == 2 and "expected one of report, csv, gracedb" in wrong.stderr and not (tmp_path / "x").exists()
    empty = Workspace(tiny_run.workspace().config, open_store(tmp_path / "empty"))
    with pytest.raises(NotMade, match="report is missing or out of date; make it with `aframe run --until report`"):
        export_files(empty, tmp_path / "x", ["report"], None)
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(importlib.util.find_spec("rocrate") is None, reason="rocrate is not installed; `make install-dev` installs it")
def test_the_run_as_a_crate(tiny_run, tmp_path):
    target = tmp_path / "tiny.zip"
    tiny_run.aframe("crate", str(tiny_run.path), "--to", str(target), "--author", "A. Person <0000-0002-1825-0097>")
    with zipfile.ZipFile(target) as z:
        names = set(z.namelist())
        found = {e["@id"]: e for e in json.loads(z.read("ro-crate-metadata.json"))["@graph"]}
    assert {"report/report.html", "candidates/candidates.csv", "manifests/background.json", "experiment.json"} <= names
    assert found["https://orcid.org/0000-0002-1825-0097"]["name"] == "A. Person"
    assert {f"#make-{a}" for a in tiny_run.workspace().graph} <= set(found)
    again = tiny_run.aframe("crate", str(tiny_run.path), "--to", str(target), check=False)
    assert again.returncode == 1 and "is there already" in again.stderr
    unread = tiny_run.aframe("crate", str(tiny_run.path), "--to", str(tmp_path / "y"), "--author", "<x>", check=False)
    assert unread.returncode == 2 and "--author '<x>'" in unread.stderr
