"""`aframe wheelhouse`: what pip is asked, what is kept, and what is refused. pip is real; what it finds is made up."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import pytest
from packaging.tags import sys_tags
from tiny_wheels import pip_wheel, project, sdist, wheel
from typer.testing import CliRunner

from aframe_ops.cli import main as cli
from aframe_ops.cli.wheelhouse import summary
from aframe_ops.containers import node_install, wheelhouse
from aframe_ops.containers.target import Target, WheelhouseError
from aframe_ops.containers.wheelhouse import build

HERE = Target.here()


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """All that pip can find."""
    folder = tmp_path / "index"
    folder.mkdir()
    pip_wheel(folder)
    wheel(folder, "alpha", requires=["beta>=1", "gamma; python_version >= '3.12'", "delta; extra == 'more'"])
    wheel(folder, "alpha", "2.0")  # constraints.txt says 1.0
    for name in ("beta", "gamma", "delta"):
        wheel(folder, name)
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    settings = {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": "/dev/null"}
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Name -> version, and that the manifest is right about the files."""
    manifest, _ = node_install.read_manifest(folder)
    node_install.require_sound(folder, manifest["wheels"])
    return {w["name"]: w["version"] for w in manifest["wheels"] if w["name"] != "pip"}


def test_a_wheelhouse_is_made_and_a_second_call_adds_what_is_new(index, tmp_path):
    source, folder, said = project(tmp_path / "source", ["alpha"], extras={"more": ["delta"]}), tmp_path / "wheels", []
    before = sorted(p.name for p in source.rglob("*"))
    first = build(folder, source=source, tell=said.append)
    wanted = {"ours": "0.1.0", "alpha": "1.0", "beta": "1.0"} | ({"gamma": "1.0"} if sys.version_info >= (3, 12) else {})
    assert contents(folder) == wanted
    assert len(first.new) == len(first.wheels) == len(wanted) + 1
    assert any(line.endswith(": alpha 1.0") for line in said)
    assert f"{len(first.wheels)} wheels, " in summary(first)[0] and "pip" in summary(first)[1]
    manifest = (folder / node_install.MANIFEST).read_bytes()
    assert sorted(p.name for p in source.rglob("*")) == before  # the build leaves nothing there
    # nothing has changed: the same manifest, so that nodes keep what they have
    assert build(folder, source=source).new == [] and (folder / node_install.MANIFEST).read_bytes() == manifest
    # another extra, another version of our own code, a damaged file
    (source / "ours" / "__init__.py").write_text("VALUE = 2\n")
    (found,) = folder.glob("beta-*.whl")
    found.write_bytes(b"x")
    again = build(folder, source=source, extras=["more"])
    assert contents(folder) == wanted | {"delta": "1.0"}
    assert {w.name for w in again.new} == {"delta", "ours"}
    (old,) = again.unused
    assert old.startswith("ours-0.1.0-0") and old in summary(again)[-1]
    assert not list(folder.glob(".arriving*"))


@pytest.mark.slow  # pip starts many times
def test_markers_are_those_of_the_nodes_python(index, tmp_path):
    """pip alone reads them as for the Python that it runs in."""
    target = Target("3.12" if sys.version_info < (3, 12) else "3.11", HERE.platform)
    build(tmp_path / "wheels", target, source=project(tmp_path / "source", ["alpha"]))
    wanted = {"ours", "alpha", "beta"} | ({"gamma"} if target.python == "3.12" else set())
    assert wanted <= set(contents(tmp_path / "wheels")) <= wanted | {"gamma"}
    with pytest.raises(WheelhouseError, match=r"is for Python 3\.1. on manylinux_2_28_.*; name another folder"):
        build(tmp_path / "wheels", source=project(tmp_path / "other", ["alpha"]))


@pytest.mark.slow  # pip starts many times
def test_what_is_a_source_only_is_built(index, tmp_path):
    sdist(index, "epsilon")
    sdist(index, "eta")
    source = project(tmp_path / "source", ["epsilon", "eta"])
    with (source / "constraints.txt").open("a") as f:
        f.write("eta==1.0\n")
    said: list[str] = []
    build(tmp_path / "wheels", source=source, tell=said.append)
    assert contents(tmp_path / "wheels") == {"ours": "0.1.0", "epsilon": "1.0", "eta": "1.0"}
    for name in ("epsilon", "eta==1.0"):
        assert f"{name} has no wheel for {HERE.platform}; building it from its source" in said


def test_requirements_that_contradict_each_other(index, tmp_path):
    wheel(index, "theta", requires=["alpha>=2"])
    with pytest.raises(WheelhouseError, match="pip finds no set of packages: Cannot install"):
        build(tmp_path / "wheels", source=project(tmp_path / "source", ["theta"]))


@pytest.mark.slow  # pip starts many times
def test_what_its_source_makes_has_to_run_on_the_nodes(index, tmp_path):
    own = next(str(t) for t in sys_tags() if t.platform.startswith("linux_") and t.abi == t.interpreter)
    sdist(index, "zeta", tag=own)
    source = project(tmp_path / "source", ["zeta"])
    build(tmp_path / "wheels", source=source)
    assert contents(tmp_path / "wheels") == {"ours": "0.1.0", "zeta": "1.0"}
    with pytest.raises(
        WheelhouseError, match=r"zeta: is a source only, and what it makes here \(zeta-1.0-cp\d+.*\) does not run with Python 3.13"
    ):
        build(tmp_path / "other", Target("3.13" if sys.version_info < (3, 13) else "3.12", HERE.platform), source=source)
    assert not (tmp_path / "other" / node_install.MANIFEST).exists()


def test_refusals_name_what_is_wrong(index, tmp_path, monkeypatch):
    source = project(tmp_path / "source", ["alpha", "torch"], extras={"more": ["delta"]})
    folder = tmp_path / "wheels"

    def refused(match: str, **options) -> None:
        with pytest.raises(WheelhouseError, match=match):
            build(folder, **{"source": source, **options})
        assert not (folder / node_install.MANIFEST).exists()

    refused("--extra none: expected one of more", extras=["none"])
    refused("--only beta: the project does not require it; it requires alpha, torch", only=["beta"])
    refused("torch==2.0,!=2.0.cpu: there is no wheel of it for Python .*, and it cannot be built here")
    refused(r"torch==2.0\+cpu: pip's index has no build of it for CPUs. .* set PIP_EXTRA_INDEX_URL", torch="cpu")
    refused("--torch tpu: expected cpu or gpu", torch="tpu")
    # a password in an address is never repeated
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:planted-secret@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(WheelhouseError) as error:
        build(folder, source=source)
    assert "planted" not in str(error.value)
    (folder / "thesis.tex").touch()
    refused("holds thesis.tex, and is no wheelhouse")
    folder.joinpath("thesis.tex").unlink()
    folder.chmod(0o777)
    refused("everybody may write there")


@pytest.mark.slow  # pip starts many times
def test_torch_for_cpus_is_the_build_with_that_name(index, tmp_path):
    wheel(index, "torch", "2.0")
    wheel(index, "torch", "2.0+cpu")
    source = project(tmp_path / "source", ["torch"])
    for variant, version in (("cpu", "2.0+cpu"), ("gpu", "2.0")):
        build(tmp_path / variant, source=source, torch=variant)
        assert contents(tmp_path / variant)["torch"] == version


@pytest.mark.parametrize("options", [{"python": "three"}, {"platform": "win_amd64"}, {"platform": "manylinux_2_28_x86_64; touch x"}])
def test_targets_that_there_are_not(options):
    with pytest.raises(WheelhouseError, match="expected"):
        Target(**{"python": "3.11", "platform": "manylinux_2_28_x86_64", **options})


def test_platforms_are_all_that_run_there():
    names = Target("3.11", "manylinux2014_x86_64").platforms()
    assert names[:2] == ["manylinux_2_17_x86_64", "manylinux2014_x86_64"] and names[-1] == "linux_x86_64"
    assert "manylinux_2_28_x86_64" not in names and "manylinux1_x86_64" in names
    assert Target("3.11", "manylinux2014_x86_64").canonical == "manylinux_2_17_x86_64"


def test_without_a_source_tree(tmp_path, monkeypatch):
    installed = tmp_path / "site-packages" / "aframe_ops" / "containers" / "node_install.py"
    monkeypatch.setattr(wheelhouse.node_install, "__file__", str(installed))
    result = CliRunner().invoke(cli.app, ["wheelhouse", str(tmp_path / "wheels")])
    assert result.exit_code == 1 and "without its source tree; clone its repository" in result.output


def test_our_own_checkout_is_found_and_its_extras_are_read():
    source = wheelhouse.source_tree()
    names = {r.name for r in wheelhouse.requirements_of(source, ["dev"], HERE.markers())}
    assert {"dagster", "torch", "ml4gw", "boto3", "pytest", "kubernetes"} <= names and "aframe-dagster" not in names
    assert len(wheelhouse.source_digest(source)) == 64
    assert json.loads(json.dumps(HERE.markers()))["platform_machine"] == platform.machine()
