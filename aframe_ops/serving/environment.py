"""The Python environment of a Triton server that comes from the package index: made once, apart from this project's own.

The package nvidia-pytriton bundles NVIDIA's tritonserver 2.51 with its Python backend. That backend reads inputs as zeros
and answers with empty outputs when its Python has numpy 2, without an error; therefore numpy is pinned here, looked at
before every start, and a model is really served before an environment counts as installed.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from aframe_ops.serving.errors import ServingError

VARIABLE = "AFRAME_TRITON_ENV"
"""Names the folder of the environment."""

PYTHONS = ((3, 12), (3, 11))
"""numpy 1.26 has no wheels for later ones, and the bundled backend no worker for other ones that this project runs on."""

SERVER = "nvidia-pytriton==0.7.0"
NUMPY = "numpy==1.26.4"
RECORD = "aframe-server.json"

_LOG = logging.getLogger(__name__)

_ANSWER, _MAKE, _INSTALL = 60.0, 600.0, 3600.0
"""Seconds for a question to a Python, for making an environment, and for one call of the installer."""

_ASK = """import json, sys, sysconfig
find = sysconfig.get_config_var
print(json.dumps([*sys.version_info[:2], find("LIBDIR"), find("INSTSONAME")]))"""
_LOOK = """import json, numpy
found = {"numpy": numpy.__version__}
if not found["numpy"].startswith("1."):
    found["providers"], found["onnxruntime"] = [], ""
else:
    import onnxruntime
    found["providers"], found["onnxruntime"] = onnxruntime.get_available_providers(), onnxruntime.__version__
print(json.dumps(found))"""


def default_folder() -> Path:
    """``$AFRAME_TRITON_ENV``, or ``aframe/triton`` in the user's cache."""
    named = os.environ.get(VARIABLE)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named).expanduser() if named else cache / "aframe" / "triton"


def requirements(gpu: bool = False) -> list[list[str]]:
    """What is installed, in the order of the calls of the installer.

    The server's own requirements are for a Python interface that is not used here. ONNX Runtime is the version that this
    project runs, so that both answer alike.
    """
    version = importlib.metadata.version("onnxruntime")
    runtime = f"onnxruntime-gpu[cuda,cudnn]=={version}" if gpu else f"onnxruntime=={version}"
    return [["--no-deps", SERVER], [NUMPY, runtime]]


def clean(extra: Sequence[str] = ()) -> dict[str, str]:
    """Variables of this process that a server needs: none with a credential, none that leads Python elsewhere."""
    names = {"HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER", "XDG_RUNTIME_DIR", *extra}
    # which daemon a container's client talks to
    names |= {"DOCKER_CONTEXT", "DOCKER_HOST"}
    families = ("CUDA_", "NVIDIA_", "APPTAINER_", "SINGULARITY_", "CONTAINERS_")
    secret = ("PASSWORD", "USERNAME", "TOKEN", "SECRET")
    return {k: v for k, v in os.environ.items() if (k in names or k.startswith(families)) and not any(s in k for s in secret)}


@dataclass(frozen=True)
class Environment:
    """An installed server.

    Attributes:
        folder: the virtual environment.
        python: (major, minor) of its interpreter.
        libdir: folder of that interpreter's shared library.
    """

    folder: Path
    python: tuple[int, int]
    libdir: Path

    @property
    def packages(self) -> Path:
        return self.folder / "lib" / f"python{self.python[0]}.{self.python[1]}" / "site-packages"

    @property
    def bundle(self) -> Path:
        """The folder of the bundled server."""
        return self.packages / "pytriton" / "tritonserver"

    @property
    def executable(self) -> Path:
        return self.bundle / "bin" / "tritonserver"

    def variables(self) -> dict[str, str]:
        """The server's environment. Its Python worker finds this environment's packages by the first python on PATH (3.12
        looks at nothing else), and the interpreter's library by LD_LIBRARY_PATH."""
        known = clean()
        return known | {
            "PATH": f"{self.folder / 'bin'}:{known.get('PATH', os.defpath)}",
            "LD_LIBRARY_PATH": f"{self.libdir}:{self.packages / 'nvidia_pytriton.libs'}",
            "PYTHONPATH": str(self.packages),
            "VIRTUAL_ENV": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def backends(self, folder: Path) -> Path:
        """Lays out a backend directory in `folder`: the bundled Python backend with the worker of this Python, and ours."""
        python = folder / "python"
        python.mkdir(parents=True)
        own = self.bundle / "backends" / "python"
        worker = self.bundle / "python_backend_stubs" / f"{self.python[0]}.{self.python[1]}" / "triton_python_backend_stub"
        for file in (own / "libtriton_python.so", own / "triton_python_backend_utils.py", worker):
            shutil.copy2(file, python)  # the server refuses links that lead out of the directory
        shutil.copytree(Path(__file__).parent / "backends", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        return folder

    def look(self) -> dict[str, Any]:
        """Versions in the environment: ``numpy``, ``onnxruntime`` and its ``providers``.

        Raises:
            ServingError: numpy 2 or later, a package that is missing, no server.
        """
        mend = f"make it anew with `aframe serve --install {self.folder}`"
        if not self.executable.is_file():
            raise ServingError(f"{self.folder}: holds no tritonserver; {mend}")
        done = _run([self.folder / "bin" / "python", "-I", "-c", _LOOK], _ANSWER, env=clean())
        if done.returncode:
            raise ServingError(f"{self.folder}: the server's Python does not work: {_last(done.stderr)}; {mend}")
        found = json.loads(done.stdout)
        if not found["numpy"].startswith("1."):
            raise ServingError(
                f"{self.folder}: numpy {found['numpy']} is installed, expected {NUMPY}: with numpy 2 this server reads zeros and answers "
                f"with nothing, without an error; {mend}"
            )
        return found


def _run(command: Sequence[str | Path], seconds: float, **settings: Any) -> subprocess.CompletedProcess[str]:
    """A command that has ended, with what it printed. Raises ServingError when it has not within `seconds`."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, **settings)
    except subprocess.TimeoutExpired:
        words = " ".join(str(word) for word in command if "\n" not in str(word))
        raise ServingError(f"{words}: has not ended after {seconds:g} s; is its disk slow or gone? Run it by hand") from None


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def find(folder: Path | None = None) -> Environment:
    """The environment in `folder` (default: `default_folder`).

    Raises:
        ServingError: there is none, or its installation was not finished.
    """
    folder = (folder or default_folder()).expanduser().resolve()
    record = _record(folder)
    if record is None or not record.get("complete"):
        what = "its installation was not finished" if record else "holds no Triton server"
        raise ServingError(f"{folder}: {what}; install it with `aframe serve --install {folder}`")
    return Environment(folder, tuple(record["python"]), Path(record["libdir"]))


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / RECORD).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except json.JSONDecodeError:
        return {"complete": False}


def _write(folder: Path, record: dict[str, Any]) -> None:
    temporary = folder / f".{RECORD}.{os.getpid()}"
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(temporary, folder / RECORD)


def _candidates() -> Iterator[Path]:
    """Interpreters that may do: the one that runs this, then those on PATH, then pyenv's."""
    yield Path(sys.executable)
    for major, minor in PYTHONS:
        for folder in os.get_exec_path():
            yield Path(folder) / f"python{major}.{minor}"
    for major, minor in PYTHONS:
        root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
        yield from sorted(root.glob(f"{major}.{minor}.*/bin/python"), reverse=True)


def find_python(candidates: Sequence[Path] | None = None) -> tuple[Path, tuple[int, int], Path]:
    """An interpreter for the environment, its (major, minor), and the folder of its shared library.

    Args:
        candidates: looked at in this order; None looks around on this machine.

    Raises:
        ServingError: none will do; says of each one found why.
    """
    refused: dict[Path, str] = {}
    for path in candidates if candidates is not None else _candidates():
        if path in refused or not path.is_file():
            continue
        try:
            done = _run([path, "-I", "-c", _ASK], _ANSWER, env=clean())
        except ServingError:
            refused[path] = f"has not answered after {_ANSWER:g} s"
            continue
        if done.returncode:
            refused[path] = "does not run"
            continue
        major, minor, libdir, library = json.loads(done.stdout)
        if (major, minor) not in PYTHONS:
            refused[path] = f"is Python {major}.{minor}"
        elif not (library and ".so" in library and (Path(libdir) / library).is_file()):
            refused[path] = "has no shared library (Debian: install libpython3.X)"
        else:
            return path, (major, minor), Path(libdir)
    found = "".join(f"\n  {p}: {why}" for p, why in refused.items()) or " none found"
    raise ServingError(f"the Triton server needs Python 3.11 or 3.12 with its shared library; looked at:{found}")


def _installer(env_python: Path) -> list[str]:
    """The command that installs into `env_python`'s environment."""
    for command in ([str(env_python), "-m", "pip"], [sys.executable, "-m", "pip"]):
        if _run([*command, "--version"], _ANSWER).returncode == 0:
            place = [] if command[0] == str(env_python) else ["--python", str(env_python)]
            return [*command, *place, "install", "--quiet", "--disable-pip-version-check"]
    if shutil.which("uv"):
        return ["uv", "pip", "install", "--quiet", "--python", str(env_python)]
    raise ServingError("neither pip nor uv is here to install the Triton server with; install one of them")


def _require_place(folder: Path) -> None:
    """Raises ServingError where nothing can be written beside `folder`: a lock would be tried for as long as it may be held."""
    if folder.exists() and not folder.is_dir():
        raise ServingError(f"{folder}: is a file; name a folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder.parent, prefix=".aframe-"):
            pass
    except OSError as e:
        raise ServingError(f"{folder}: cannot be made, {folder.parent} takes no files ({e.strerror}); name another folder") from None


def install(folder: Path | None = None, *, gpu: bool = False, wait: float = 1800, tell: Callable[[str], None] = _LOG.info) -> Environment:
    """Make the environment, or leave it as it is when it is there, whole, and of these versions.

    Args:
        folder: where; default: `default_folder`. New, empty, or an environment that this function has made.
        gpu: with the ONNX Runtime that knows CUDA.
        wait: seconds for another process that installs the same.
        tell: takes what the user should know meanwhile.

    Raises:
        ServingError: no Python that will do, not a machine that the server is built for, a folder that cannot be made or is
            of something else, an installation that failed, or a server that does not answer.
    """
    folder = (folder or default_folder()).expanduser().resolve()
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise ServingError(f"NVIDIA's server package is for Linux on x86_64, not {sys.platform} on {platform.machine()}; use a container")
    _require_place(folder)
    lock = FileLock(folder.with_name(folder.name + ".lock"))
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tell(f"{folder}: waiting for another installation")
            lock.acquire(timeout=wait)
    except Timeout:
        raise ServingError(f"{folder}: another process has been installing for {wait:g} s; see what it does, then try again") from None
    except OSError as e:
        raise ServingError(f"{lock.lock_file}: cannot be locked: {e.strerror}; name another folder") from None
    try:
        return _install(folder, requirements(gpu))
    finally:
        lock.release()


def _install(folder: Path, wanted: list[list[str]]) -> Environment:
    from aframe_ops.serving.probe import probe

    record = _record(folder)
    if record is None and folder.exists() and any(folder.iterdir()):
        raise ServingError(f"{folder}: is not empty and was not made by `aframe serve --install`; name another folder")
    if record and record.get("complete") and record.get("requirements") == wanted:
        environment = find(folder)
        try:
            environment.look()
            return environment
        except ServingError:
            pass  # it has been meddled with since: made anew
    python, version, libdir = find_python()
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    # until this says complete, the folder is only fit to be made anew
    record = {"complete": False, "requirements": wanted, "python": list(version), "libdir": str(libdir)}
    _write(folder, record)
    made = _run([python, "-I", "-m", "venv", folder], _MAKE)
    if made.returncode:
        made = _run([python, "-I", "-m", "venv", "--without-pip", folder], _MAKE)
    if made.returncode:
        raise ServingError(f"{folder}: {python} cannot make a virtual environment: {_last(made.stderr)}")
    installer = _installer(folder / "bin" / "python")
    for packages in wanted:
        done = _run([*installer, *packages], _INSTALL, env={**os.environ, "PYTHONPATH": ""})
        if done.returncode:
            raise ServingError(f"{folder}: {' '.join(packages)} cannot be installed:\n{done.stderr.strip()[-2000:]}")
    environment = Environment(folder, version, libdir)
    environment.look()
    probe(environment)
    _write(folder, record | {"complete": True})
    return environment
