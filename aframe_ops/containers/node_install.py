"""Installs a wheelhouse on the disk of the node that a job runs on, once, and goes on as the Python of it.

`aframe wheelhouse` copies this file into the wheelhouse, because a job runs it before anything of this project is on the
node: it imports the standard library only, and Python 3.7 or later will do. ::

    python3 node_install.py --wheelhouse DIR --node-disk '$SLURM_TMPDIR' [--python PYTHON] -- -m package.module ...

Below the node's disk, in a folder of this user's own: ``env-HASH`` is the environment of the wheelhouse whose manifest has
that sha256; ``env-HASH.installing`` is locked by whoever installs it, ``env-HASH.used`` (shared) by all that use it. The
file ``complete.json`` in it is written last; an environment without it is what a killed job left, and is made anew.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

MANIFEST = "wheelhouse.json"
FORMAT = 1
COMPLETE = "complete.json"
USED, INSTALLING = "used", "installing"
ENVIRONMENT = "AFRAME_NODE_ENV"
"""Variable of a process that runs in such an environment: its folder."""

NODE_VARIABLES = (
    "SLURM_TMPDIR",
    "TMPDIR",
    "SCRATCH",
    "LSCRATCH",
    "LOCAL_SCRATCH",
    "LOCALSCRATCH",
    "PBS_JOBFS",
    "_CONDOR_SCRATCH_DIR",
)
"""Variables that may stand for the node's disk. Nothing else is ever expanded."""

_NODE_DISK = re.compile(r"(\$(" + "|".join(NODE_VARIABLES) + r")(?=/|$)|/)[A-Za-z0-9._@=+/-]*")

UNUSED_S = 14 * 86400.0
"""Environments of other wheelhouses go when nobody has used them for so long, or when the disk is full."""

_WHEEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_BLOCK = 4 << 20


class InstallError(Exception):
    """Why there is no environment, and what to do about it, for the user."""


def tell(line: str) -> None:
    """A line for the user: the job's output is relayed."""
    sys.stderr.write("aframe: " + " ".join(line.split()) + "\n")
    sys.stderr.flush()


def require_node_disk(text: str) -> None:
    """Raises InstallError for what is neither an absolute path nor one of `NODE_VARIABLES`, alone or with a path below it."""
    if not _NODE_DISK.fullmatch(text) or ".." in text.split("/"):
        raise InstallError(
            f"node_disk = {text!r}: expected a plain absolute path without '..', or one that starts with ${', $'.join(NODE_VARIABLES)}"
        )


def expanded(text: str, environ: dict[str, str]) -> Path:
    """The path that a node's disk, `text`, is in this job.

    Raises:
        InstallError: it is of another form, names a variable that the job has not, or is no folder.
    """
    require_node_disk(text)
    path = text
    if text.startswith("$"):
        name, _, rest = text[1:].partition("/")
        value = environ.get(name, "")
        if not value.startswith("/"):
            there = ", ".join(f"${n}" for n in NODE_VARIABLES if environ.get(n, "").startswith("/")) or "none of those that may be named"
            raise InstallError(f"node_disk = {text!r}: this job has no folder ${name}; it has {there}")
        path = os.path.join(value, rest) if rest else value
    if not os.path.isdir(path):
        raise InstallError(f"node_disk = {text!r}: {path} is no folder on {platform.node()}")
    return Path(path)


def own_folder(disk: Path) -> Path:
    """``aframe-UID`` in `disk`, which this user alone can enter.

    Raises:
        InstallError: it cannot be made, or somebody else was there first.
    """
    folder = disk / f"aframe-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = os.lstat(folder)
    except OSError as e:
        raise InstallError(f"{folder} cannot be made: {e.strerror}; choose another node_disk") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise InstallError(f"{folder} is not a folder that only this user may write to; have it removed, or choose another node_disk")
    return folder


def read_manifest(wheelhouse: Path) -> tuple[dict, str]:
    """The manifest of `wheelhouse` and its sha256.

    Raises:
        InstallError: there is none, it is not of this format, or it names files that no wheelhouse has.
    """
    path = wheelhouse / MANIFEST
    mend = f"make it with `aframe wheelhouse {wheelhouse}` on a machine with a network"
    try:
        data = path.read_bytes()
        manifest = json.loads(data.decode())
        wheels = manifest["wheels"]
        sound = manifest["format"] == FORMAT and re.fullmatch(r"3\.\d+", manifest["python"]) and wheels
        for wheel in wheels:
            sound = sound and _WHEEL.fullmatch(wheel["file"]) and _NAME.fullmatch(wheel["name"])
            sound = sound and re.fullmatch("[0-9a-f]{64}", wheel["sha256"]) and wheel["unpacked"] >= 0
    except OSError as e:
        raise InstallError(f"{path} cannot be read on {platform.node()} ({e.strerror}); {mend}, on a disk that nodes see") from None
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise InstallError(f"{path} is not the manifest of a wheelhouse; {mend}")
    return manifest, hashlib.sha256(data).hexdigest()


def find_python(version: str, named: str | None = None) -> str:
    """An interpreter of `version` (such as 3.11): the one that is named, this one, or one on the path.

    Raises:
        InstallError: none is here.
    """
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if named is None and here == version:
        return sys.executable
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    said = ""
    for found in [named] if named else filter(None, map(shutil.which, (f"python{version}", "python3", "python"))):
        done = subprocess.run([found, "-I", "-c", ask], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        said = done.stdout.decode(errors="replace").strip()
        if said == version:
            return found
    if not named:
        raise InstallError(
            f"the wheelhouse is for Python {version}; {platform.node()} has none on its path, and this is {here}. "
            f"Load one in the site's setup (such as `module load python/{version}`), name it with the site's key python, "
            f"or make a wheelhouse with --python {here}"
        )
    raise InstallError(f"the wheelhouse is for Python {version}, and {named} is {said or 'not a Python that runs'}")


def require_platform(wanted: str) -> None:
    """Raises InstallError where wheels for `wanted` (such as manylinux_2_28_x86_64) do not run."""
    found = re.fullmatch(r"(?:manylinux_(\d+)_(\d+)|linux)_(\w+)", wanted)
    if not found:
        return
    if platform.machine() != found[3]:
        raise InstallError(f"the wheelhouse is for {found[3]}, and {platform.node()} is {platform.machine()}; make one with --platform")
    libc = platform.libc_ver()[1]
    if found[1] and libc and tuple(map(int, libc.split(".")[:2])) < (int(found[1]), int(found[2])):
        raise InstallError(
            f"the wheelhouse is for glibc {found[1]}.{found[2]} or later, and {platform.node()} has {libc}; "
            f"make one with --platform manylinux_{libc.replace('.', '_')}_{found[3]}"
        )


class Node:
    """Environments in `folder`, which is this user's own on the disk of a node."""

    def __init__(self, folder: Path):
        self.folder = folder

    def environment(self, wheelhouse: Path, python: str | None = None) -> Path:
        """The environment of `wheelhouse`, installed if it is not here. It is locked as long as this process, or what it
        becomes, lives.

        Raises:
            InstallError: it cannot be installed.
        """
        manifest, digest = read_manifest(wheelhouse)
        env = self.folder / f"env-{digest[:16]}"
        used = self._open(env, USED)
        fcntl.flock(used, fcntl.LOCK_SH)
        while not self._complete(env, digest):
            # whoever waits here must not keep the one who installs from using what is installed
            fcntl.flock(used, fcntl.LOCK_UN)
            self._alone(wheelhouse, manifest, digest, env, python)
            fcntl.flock(used, fcntl.LOCK_SH)
        os.set_inheritable(used, True)
        os.utime(str(env / COMPLETE))
        self._sweep(env, UNUSED_S)
        return env

    @staticmethod
    def _open(env: Path, kind: str) -> int:
        return os.open(f"{env}.{kind}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _alone(self, wheelhouse: Path, manifest: dict, digest: str, env: Path, python: str | None) -> None:
        """Installs while nobody else does, unless somebody else has."""
        lock = self._open(env, INSTALLING)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                tell(f"another job is installing {env} on {platform.node()}; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._complete(env, digest):
                self._install(wheelhouse, manifest, digest, env, python, lock)
        finally:
            os.close(lock)

    @staticmethod
    def _complete(env: Path, digest: str) -> bool:
        try:
            return json.loads((env / COMPLETE).read_text())["manifest"] == digest
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _install(self, wheelhouse: Path, manifest: dict, digest: str, env: Path, named: str | None, lock: int) -> None:
        python = find_python(manifest["python"], named)
        require_platform(manifest["platform"])
        start = time.time()
        if env.exists():
            tell(f"{env} was not finished by the job that began it; it is made anew")
            shutil.rmtree(str(env))
        self._require_space(env, sum(w["unpacked"] for w in manifest["wheels"]))
        tell(f"installing {len(manifest['wheels'])} packages from {wheelhouse} into {env} on {platform.node()}")
        try:
            self._fill(wheelhouse, manifest, env, python, lock)
            self._finish(env, digest)
        except OSError as e:
            if e.errno not in _FULL:
                raise
            raise InstallError(f"no space left in {self.folder} on {platform.node()}; {_MORE_SPACE}") from None
        tell(f"installed {env} in {time.time() - start:.0f} s")

    def _require_space(self, env: Path, needed: int) -> None:
        for unused_s in (None, 0.0):
            if unused_s is not None:
                self._sweep(env, unused_s)
            free = shutil.disk_usage(str(self.folder)).free
            if free >= needed * 1.05:
                return
        raise InstallError(
            f"{self.folder} on {platform.node()} has {free / 1e9:.2f} GB free, and the wheelhouse needs {needed / 1e9:.2f} GB; "
            f"{_MORE_SPACE}"
        )

    def _fill(self, wheelhouse: Path, manifest: dict, env: Path, python: str, lock: int) -> None:
        wheels = {w["file"]: w for w in manifest["wheels"]}
        pip = next((w for w in wheels.values() if w["name"] == "pip"), None)
        if pip is None:
            raise InstallError(f"{wheelhouse} has no pip in it; make it anew with `aframe wheelhouse {wheelhouse}`")
        require_sound(wheelhouse, [pip])
        made = subprocess.run([python, "-I", "-m", "venv", "--without-pip", str(env)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if made.returncode:
            raise InstallError(f"{python} cannot make a virtual environment in {env}: {_last(made.stdout)}")
        wanted = env / "requirements.txt"
        lines = (
            f"{w['name']} @ file://{quote(str(wheelhouse / w['file']))} --hash=sha256:{w['sha256']}\n"
            for w in wheels.values()
            if w is not pip
        )
        wanted.write_text("".join(lines))
        # pip's own wheel is a program; so the node needs no pip, and what its pip is configured to do does not matter
        words = [str(env / "bin" / "python"), "-I", str(wheelhouse / pip["file"] / "pip"), "install", "--isolated", "--no-index"]
        words += ["--no-deps", "--require-hashes", "--no-compile", "--no-cache-dir", "--quiet", "--disable-pip-version-check"]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))}
        # pip unpacks below here, and /tmp may be small
        temporary = env / "unpacking"
        temporary.mkdir()
        clean.update({"PIP_CONFIG_FILE": os.devnull, "TMPDIR": str(temporary)})
        # a pip that outlives this process keeps the lock until it is done with the folder
        done = subprocess.run([*words, "-r", str(wanted)], env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=(lock,))
        if done.returncode:
            said = done.stdout.decode(errors="replace")
            if any(os.strerror(number) in said for number in _FULL):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            require_sound(wheelhouse, list(wheels.values()))
            raise InstallError(f"pip cannot install {wheelhouse} into {env}: {_last(done.stdout)}")
        shutil.rmtree(str(temporary), ignore_errors=True)

    @staticmethod
    def _finish(env: Path, digest: str) -> None:
        temporary = env / f"{COMPLETE}.{os.getpid()}"
        with temporary.open("w") as f:
            json.dump({"manifest": digest, "time": time.time(), "host": platform.node()}, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(str(temporary), str(env / COMPLETE))

    def _sweep(self, spare: Path, unused_s: float) -> None:
        """Removes other environments that nobody uses and nobody has used for `unused_s` seconds."""
        for env in self.folder.glob("env-????????????????"):
            if env == spare:
                continue
            locks = [self._open(env, kind) for kind in (USED, INSTALLING)]
            try:
                for lock in locks:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                marker = env / COMPLETE
                last = (marker if marker.exists() else env).stat().st_mtime
                if time.time() - last >= unused_s:
                    # first the marker: a kill in the middle must not leave something that looks whole
                    if marker.exists():
                        marker.unlink()
                    shutil.rmtree(str(env), ignore_errors=True)
            except OSError:
                pass  # somebody uses it
            finally:
                for lock in locks:
                    os.close(lock)


_MORE_SPACE = "choose another node_disk, or have the job ask for disk (such as slurm.directives: [--tmp=20G])"


def require_sound(wheelhouse: Path, wheels: list[dict]) -> None:
    """Raises InstallError for the first file that is absent or has not the sha256 of the manifest."""
    for wheel in wheels:
        path = wheelhouse / wheel["file"]
        digest = hashlib.sha256()
        try:
            with path.open("rb") as f:
                for block in iter(lambda f=f: f.read(_BLOCK), b""):
                    digest.update(block)
        except OSError as e:
            raise InstallError(f"{path} cannot be read: {e.strerror}; `aframe wheelhouse {wheelhouse}` gets what is missing") from None
        if digest.hexdigest() != wheel["sha256"]:
            raise InstallError(
                f"{path} has sha256 {digest.hexdigest()[:16]}..., and the manifest says {wheel['sha256'][:16]}...: it was damaged or "
                f"replaced. `aframe wheelhouse {wheelhouse}` gets it again"
            )


def _last(output: bytes) -> str:
    lines = [line for line in output.decode(errors="replace").strip().splitlines() if line.strip()]
    return "; ".join(lines[-3:])[-800:] or "no message"


def python_path(value: str) -> str:
    """A PYTHONPATH without the places that this project would be imported from instead of the environment."""
    kept = [p for p in value.split(os.pathsep) if p and not os.path.isdir(os.path.join(p, "aframe_ops"))]
    return os.pathsep.join(kept)


def main(argv: list[str] | None = None) -> None:
    """Becomes the Python of the environment, with the words after ``--``; exit code 1 and one line if that cannot be."""
    parser = argparse.ArgumentParser(prog="node_install")
    parser.add_argument("--wheelhouse", required=True, type=Path)
    parser.add_argument("--node-disk", required=True)
    parser.add_argument("--python")
    parser.add_argument("words", nargs="+")
    options = parser.parse_args(argv)
    try:
        env = Node(own_folder(expanded(options.node_disk, dict(os.environ)))).environment(options.wheelhouse, options.python)
    except InstallError as e:
        tell(str(e))
        sys.exit(1)
    os.environ.update({ENVIRONMENT: str(env), "VIRTUAL_ENV": str(env), "PYTHONNOUSERSITE": "1"})
    os.environ["PATH"] = str(env / "bin") + os.pathsep + os.environ.get("PATH", os.defpath)
    kept = python_path(os.environ.pop("PYTHONPATH", ""))
    if kept:
        os.environ["PYTHONPATH"] = kept
    python = str(env / "bin" / "python")
    os.execv(python, [python, *options.words])


if __name__ == "__main__":
    main()
