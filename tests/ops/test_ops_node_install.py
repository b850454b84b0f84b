"""A wheelhouse is installed on a node once, whole or not at all, by whatever jobs come first."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError
from tiny_wheels import wheel, wheelhouse

from aframe_ops.containers import node_install
from aframe_ops.containers.node_install import InstallError, Node, expanded, own_folder
from aframe_ops.sites.htcondor import HTCondorSite
from aframe_ops.sites.slurm import SlurmSite

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
SAY = "import sys, alpha, beta; print(sys.executable, alpha.VERSION, beta.VERSION)"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel house")  # a blank in the name
    made = tmp_path_factory.mktemp("made")
    own = [wheel(made, "alpha", requires=["absent"]), wheel(made, "beta", "2.0", files=600)]
    return wheelhouse(folder, *own, python=HERE, platform=f"linux_{platform.machine()}")


@pytest.fixture
def disk(tmp_path) -> Path:
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


def command(wheels: Path, disk: str | Path, *words: str) -> list[str]:
    # the copy in the wheelhouse, by itself: -I keeps this project off its path
    return [sys.executable, "-I", str(wheels / "node_install.py"), "--wheelhouse", str(wheels), "--node-disk", str(disk), "--", *words]


def start(wheels: Path, disk: str | Path, *words: str, **env: str) -> subprocess.Popen:
    env = {**os.environ, **env}
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(wheels, disk, *(words or ("-c", SAY))), env=env, start_new_session=True, **out)


def install(wheels: Path, disk: str | Path, *words: str, **env: str) -> tuple[int, str, str]:
    process = start(wheels, disk, *words, **env)
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def test_a_job_gets_an_environment_on_the_nodes_disk_and_the_next_one_the_same(wheels, disk, tmp_path):
    hostile = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_TARGET": str(tmp_path / "elsewhere"), "PIP_REQUIRE_VIRTUALENV": "1"}
    code, out, err = install(wheels, "$SLURM_TMPDIR", SLURM_TMPDIR=str(disk), **hostile)
    assert code == 0, err
    python, *versions = out.split()
    assert Path(python).is_relative_to(disk / f"aframe-{os.getuid()}") and versions == ["1.0", "2.0"]
    assert err.splitlines()[0].startswith("aframe: installing 3 packages from") and not (tmp_path / "elsewhere").exists()
    before = {p: p.stat().st_ctime_ns for p in Path(python).parents[1].rglob("*.py")}
    code, again, err = install(wheels, disk)
    assert (code, again, err) == (0, out, "")
    assert {p: p.stat().st_ctime_ns for p in before} == before


def test_the_step_gets_its_words_as_they_are_and_no_pythonpath_with_our_source(wheels, disk, tmp_path):
    text = "$(touch marker) `x` ; 'q' \n *"
    (tmp_path / "source" / "aframe_ops").mkdir(parents=True)
    show = "import os, sys; print(repr([sys.argv[1:], os.environ['PYTHONPATH'], os.environ['AFRAME_NODE_ENV']]))"
    code, out, err = install(wheels, disk, "-c", show, text, PYTHONPATH=f"{tmp_path / 'source'}:/users/own")
    assert code == 0, err
    argv, path, env = eval(out)
    assert argv == [text] and path == "/users/own" and env.startswith(str(disk))


def test_jobs_that_come_together_install_once(wheels, disk):
    jobs = [start(wheels, disk) for _ in range(3)]
    ended = [(*job.communicate(timeout=200), job.returncode) for job in jobs]
    assert [code for _, _, code in ended] == [0, 0, 0], ended
    assert len({out for out, _, _ in ended}) == 1
    errors = "".join(err for _, err, _ in ended)
    assert errors.count("installed ") == 1 and errors.count("installing 3 packages") == 1


def test_a_job_that_waits_goes_on_while_the_one_that_installed_still_runs(wheels, disk):
    first = start(wheels, disk, "-c", "import time; time.sleep(100)")
    try:
        code, _, err = install(wheels, disk)
        assert code == 0 and first.poll() is None, err
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()


def half_made(disk: Path) -> Path:
    """The environment that is being installed, once pip has begun to fill it."""
    deadline = time.monotonic() + 100
    while not (found := list(disk.glob("aframe-*/env-*/lib/python*/site-packages/*"))):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return found[0].parents[3]


@pytest.mark.parametrize("whom", ["job", "bootstrap"])
def test_what_a_killed_job_left_is_thrown_away(wheels, disk, whom):
    """The whole job by kill -9, or the process that runs pip alone, so that pip goes on without it."""
    job = start(wheels, disk)
    env = half_made(disk)
    (env / "left over").touch()
    (os.killpg if whom == "job" else os.kill)(job.pid, signal.SIGKILL)
    if whom == "job":
        job.communicate()
    assert not (env / node_install.COMPLETE).exists()
    code, out, err = install(wheels, disk)
    assert code == 0 and out.startswith(str(env)), err
    assert "was not finished by the job that began it; it is made anew" in err
    assert not (env / "left over").exists() and len(list(env.glob("lib/python*/site-packages/beta/*.py"))) == 600
    job.communicate()


def damage(wheels: Path, folder: Path, name: str) -> Path:
    folder.mkdir()
    for path in wheels.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (found,) = folder.glob(f"{name}-*.whl")
    data = bytearray(found.read_bytes())
    data[len(data) // 2] ^= 1
    found.write_bytes(data)
    return folder


@pytest.mark.parametrize("name", ["alpha", "pip"])
def test_a_damaged_wheel_is_named_and_nothing_counts_as_installed(wheels, disk, tmp_path, name):
    bad = damage(wheels, tmp_path / "bad", name)
    code, out, err = install(bad, disk)
    assert code == 1 and not out
    assert f"{bad}/{name}-" in err and "and the manifest says" in err and "gets it again" in err
    assert not list(disk.glob(f"aframe-*/env-*/{node_install.COMPLETE}"))


def edited(wheels: Path, folder: Path, /, **changes) -> Path:
    folder.mkdir()
    for path in wheels.iterdir():
        (folder / path.name).symlink_to(path)
    manifest = json.loads((wheels / node_install.MANIFEST).read_text()) | changes
    (folder / node_install.MANIFEST).unlink()
    (folder / node_install.MANIFEST).write_text(json.dumps(manifest))
    return folder


def test_a_disk_without_space(wheels, disk, tmp_path):
    records = json.loads((wheels / node_install.MANIFEST).read_text())["wheels"]
    huge = edited(wheels, tmp_path / "huge", wheels=[r | {"unpacked": 10**15} for r in records])
    code, _, err = install(huge, disk)
    assert code == 1 and "GB free, and the wheelhouse needs" in err and "choose another node_disk" in err
    # the manifest says less than pip then needs
    if os.geteuid() or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here: needs root and `unshare -m`")
    small = edited(wheels, tmp_path / "small", wheels=[r | {"unpacked": 0} for r in records])
    words = command(small, disk, "-c", SAY)
    mount = 'mount -t tmpfs -o size=2m none "$1" && shift && exec "$@"'
    done = subprocess.run(["unshare", "-m", "sh", "-c", mount, "sh", str(disk), *words], capture_output=True, text=True, timeout=200)
    assert done.returncode == 1 and "no space left in" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 2  # that it installs, and why it cannot


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"python": "3.99"}, "the wheelhouse is for Python 3.99; .* has none on its path"),
        ({"platform": "manylinux_2_99_" + platform.machine()}, "is for glibc 2.99 or later"),
        ({"platform": "linux_pdp11"}, "is for pdp11"),
        ({"format": 0}, "is not the manifest of a wheelhouse"),
        (
            {"wheels": [{"name": "x", "version": "1", "file": "../x-1-py3-none-any.whl", "sha256": "0" * 64, "unpacked": 0}]},
            "is not the manif",
        ),
        (
            {"wheels": [{"name": "x", "version": "1", "file": "x-1-py3-none-any.whl", "sha256": "0 --index", "unpacked": 0}]},
            "is not the manif",
        ),
        (
            {"wheels": [{"name": "x -r", "version": "1", "file": "x-1-py3-none-any.whl", "sha256": "0" * 64, "unpacked": 0}]},
            "is not the manif",
        ),
    ],
)
def test_wheelhouses_that_are_not_for_this_node(wheels, disk, tmp_path, changes, said):
    with pytest.raises(InstallError, match=said):
        Node(own_folder(disk)).environment(edited(wheels, tmp_path / "edited", **changes))


def test_old_environments_go_unless_somebody_uses_them(wheels, disk, tmp_path):
    folder = own_folder(disk)
    used = start(edited(wheels, tmp_path / "used", only=[]), disk, "-c", "import time; print('up', flush=True); time.sleep(100)")
    try:
        assert used.stdout.readline() == "up\n"
        (in_use,) = (p for p in folder.glob("env-*") if p.is_dir())
        (folder / "env-0123456789abcdef" / "lib").mkdir(parents=True)
        for old in (in_use / node_install.COMPLETE, folder / "env-0123456789abcdef"):
            os.utime(old, (0, 0))
        env = Node(folder).environment(wheels)
        assert sorted(p for p in folder.glob("env-*") if p.is_dir()) == sorted([in_use, env])
    finally:
        os.killpg(used.pid, signal.SIGKILL)
        used.communicate()


HOSTILE = [
    "$HOME",
    "${TMPDIR}",
    "$TMPDIRX",
    "$(touch x)",
    "`x`",
    "/a/../b",
    "$TMPDIR/../..",
    "relative",
    "",
    "/a b",
    "/a;b",
    "/a\nb",
    "~",
    "/$TMPDIR",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_but_a_named_variable_is_expanded(text):
    with pytest.raises(InstallError, match="expected a plain absolute path"):
        expanded(text, {"TMPDIR": "/tmp", "HOME": "/tmp"})
    for site in (SlurmSite, HTCondorSite):
        with pytest.raises(ValidationError, match="expected a plain absolute path"):
            site(node_disk=text)


def test_what_the_variable_has_to_be(disk):
    assert expanded("$TMPDIR", {"TMPDIR": str(disk)}) == disk
    (disk / "sub").mkdir()
    assert expanded("$LSCRATCH/sub", {"LSCRATCH": str(disk)}) == disk / "sub"
    with pytest.raises(InstallError, match=r"this job has no folder \$SLURM_TMPDIR; it has \$TMPDIR"):
        expanded("$SLURM_TMPDIR", {"TMPDIR": "/tmp"})
    with pytest.raises(InstallError, match="is no folder on"):
        expanded("$TMPDIR/none", {"TMPDIR": str(disk)})


def test_a_folder_that_somebody_else_made_is_not_used(disk, tmp_path):
    (tmp_path / "theirs").mkdir()
    (disk / f"aframe-{os.getuid()}").symlink_to(tmp_path / "theirs")
    with pytest.raises(InstallError, match="not a folder that only this user may write to"):
        own_folder(disk)
    (disk / f"aframe-{os.getuid()}").unlink()
    assert own_folder(disk).stat().st_mode & 0o777 == 0o700
    own_folder(disk).chmod(0o777)
    with pytest.raises(InstallError, match="not a folder that only this user may write to"):
        own_folder(disk)


def test_a_site_needs_a_disk_for_its_wheelhouse():
    with pytest.raises(ValidationError, match="wheelhouse needs node_disk"):
        SlurmSite(wheelhouse="/shared/wheels")
    for path in ("wheels", "/a/../b", "/a\nb", "/$HOME/x"):
        with pytest.raises(ValidationError):
            SlurmSite(wheelhouse=path, node_disk="$TMPDIR")
    with pytest.raises(ValidationError, match="a container brings the project with it"):
        HTCondorSite(wheelhouse="/shared/wheels", node_disk="$TMPDIR", shared_disk=False)
