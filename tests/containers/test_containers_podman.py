"""Our recipes built by podman: with packages that play the real ones, which takes seconds, and the cpu image as it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from podman_program import podman

REPO = Path(__file__).resolve().parents[2]
TAG = "aframe-test"

PYPROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "aframe-dagster"
version = "0.1.0"
dependencies = ["torch"]
[project.optional-dependencies]
{extras}
[project.scripts]
aframe = "aframe_ops.cli.main:main"
[tool.setuptools.packages.find]
include = ["aframe_assets*", "aframe_ops*"]
"""
CODE = {
    "aframe_assets/__init__.py": "",
    "aframe_ops/__init__.py": "",
    "aframe_ops/cli/__init__.py": "",
    "aframe_ops/cli/main.py": "import os, sys\ndef main():\n    print('first', os.getuid(), os.path.expanduser('~'), sys.argv[1:])\n",
    "aframe_ops/serving/__init__.py": "",
    "aframe_ops/serving/environment.py": "def install(folder, gpu, tell):\n    folder.mkdir()\n    (folder / 'gpu').write_text(str(gpu))\n",
}


def wheel(folder: Path, name: str, version: str, module: str) -> None:
    """A wheel of one module."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as out:
        out.writestr(f"{name}/__init__.py", module)
        out.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        out.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        out.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    """A folder of packages: what builds ours, and a torch that only says whether it has CUDA."""
    folder = tmp_path_factory.mktemp("planted-wheels")
    found = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, "setuptools>=77"], capture_output=True
    )
    assert found.returncode == 0, found.stderr.decode()
    wheel(folder, "torch", "2.10.0", "class version:\n    cuda = '12.8'\n")
    return folder


@pytest.fixture
def tree(tmp_path) -> Path:
    """A checkout with our recipes and hardly any code."""
    shutil.copytree(REPO / "docker", tmp_path / "tree" / "docker")
    folder = tmp_path / "tree"
    extras = "\n".join(f"{name} = []" for name in ("s3", "postgres", "kubernetes", "tune", "triton", "openvino"))
    (folder / "pyproject.toml").write_text(PYPROJECT.format(extras=extras))
    (folder / "constraints.txt").write_text("torch==2.10.0\n")
    for name in ("README.md", "LICENSE"):
        shutil.copyfile(REPO / name, folder / name)
    for name, text in CODE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def build(base, wheels, monkeypatch, tmp_path):
    """`aframe build-images` on a tree, with packages from the folder alone; its images are removed at the end."""
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    (tmp_path / "pip.conf").write_text(f"[global]\nno-index = true\nfind-links = {wheels}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(tree: Path, *words: str, tag: str = TAG) -> tuple[int, str]:
        command = [sys.executable, "-m", "aframe_ops.cli.main", "build-images", "--engine=podman", f"--base={base}", f"--tree={tree}"]
        done = subprocess.run([*command, f"--tag={tag}", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=3600)
        return done.returncode, done.stdout

    yield run
    for name in ("cpu", "gpu", "triton"):
        podman("rmi", "-f", f"aframe-{name}:{TAG}")


def inspect(name: str, tag: str = TAG) -> dict:
    return json.loads(podman("image", "inspect", f"aframe-{name}:{tag}").stdout)[0]


def run(name: str, *words: str, options: tuple[str, ...] = ()) -> str:
    done = podman("run", "--rm", "--pull=never", *options, f"aframe-{name}:{TAG}", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def find(name: str, tests: str) -> str:
    """What `find` finds in an image, as root."""
    return run(name, "find", "/", "-xdev", *tests.split(), options=("--user=0",))


def layers(name: str) -> list[str]:
    return inspect(name)["RootFS"]["Layers"]


def test_all_images_build_and_are_what_they_should_be(build, tree, wheels):
    code, output = build(tree)
    assert code == 0, output + "".join(p.read_text() for p in (tree.parent / "cache").rglob("*.log"))
    for name in ("cpu", "gpu", "triton"):
        assert run(name, "aframe", "x y", "$(id)") == "first 1000 /home/aframe ['x y', '$(id)']\n"
        assert run(name, "id", "-un").strip() == "aframe"
        found = inspect(name)
        assert found["Config"]["User"] == "1000:1000"
        assert {"org.aframe.environment", "org.aframe.inputs", "org.opencontainers.image.revision"} <= found["Config"]["Labels"].keys()
        left = find(name, "( -path */apt/lists/* -o -name *.deb -o -name pip.conf -o -name certificates -o -path /build* )")
        assert left == "", f"{name}: left in the image: {left}"
        assert find(name, "-user 1000 -not -path /home/*") == "", "files that the user could change"
        # neither what pip was told nor the folder that was mounted
        told = json.dumps(found) + podman("history", "--no-trunc", f"aframe-{name}:{TAG}").stdout
        assert wheels.name not in told
        assert find(name, f"-path *{wheels.name}*") + find(name, "-path *shm/*") == ""
        assert (
            podman("run", "--rm", "--user=0", f"aframe-{name}:{TAG}", "grep", "-rlF", wheels.name, "/etc", "/opt", "/root", "/var").stdout
            == ""
        )
    assert run("triton", "cat", "/opt/triton/gpu") == "True"
    assert run("triton", "sh", "-c", "ls /usr/lib/*/libpython3*.so* | wc -l").strip() != "0"

    code, output = build(tree)
    assert code == 0 and output.count("up to date") == 6, output
    (tree / "aframe_ops" / "cli" / "main.py").write_text("def main():\n    print('second')\n")
    code, output = build(tree, "--check")
    assert code == 1 and f"aframe-cpu:{TAG}: has changed: code" in output
    assert build(tree, "cpu")[0] == 0 and run("cpu", "aframe") == "second\n"


def test_two_builds_of_the_same_are_the_same(build, tree, tmp_path):
    assert build(tree, "cpu")[0] == 0
    first = layers("cpu")
    elsewhere = Path(shutil.copytree(tree, tmp_path / "elsewhere"))
    for path in elsewhere.rglob("*"):
        if path.suffix in (".py", ".toml"):
            os.utime(path, (0, 0))
            path.chmod(0o640)
    podman("rmi", "-f", f"aframe-cpu:{TAG}")
    code, output = build(elsewhere, "cpu", "--force")
    assert code == 0, output
    assert "cpu: torch comes with CUDA 12.8, gigabytes that are not used here" in output
    assert layers("cpu") == first


def test_a_development_image_runs_what_is_mounted(build, tree):
    code, output = build(tree, "cpu", "--dev")
    assert code == 0, output
    refused = podman("run", "--rm", "--pull=never", f"aframe-cpu:{TAG}", "aframe")
    assert refused.returncode == 1 and "bind the working tree to /src" in refused.stderr
    (tree / "aframe_ops" / "cli" / "main.py").write_text("def main():\n    print('edited')\n")
    bound = ("--volume", f"{tree}:/src:ro")
    tree.parent.chmod(0o755)
    assert run("cpu", "aframe", options=bound) == "edited\n"
    assert run("cpu", "python", "-c", "import aframe_ops; print(aframe_ops.__file__)", options=bound) == "/src/aframe_ops/__init__.py\n"
    assert build(tree, "cpu", "--dev", "--check")[0] == 0


def test_a_gpu_image_is_not_made_of_packages_for_processors(build, tree, wheels, tmp_path):
    folder = tmp_path / "wheels"
    shutil.copytree(wheels, folder)
    (folder / "torch-2.10.0-py3-none-any.whl").unlink()
    wheel(folder, "torch", "2.10.0+cpu", "class version:\n    cuda = None\n")
    (tmp_path / "pip.conf").write_text(f"[global]\nno-index = true\nfind-links = {folder}\n")
    code, output = build(tree, "cpu", "gpu", "--force")
    assert code == 1 and "gpu: pip's index has given a torch without CUDA" in output
    table = [line.split()[:2] for line in output.splitlines()]
    assert [f"aframe-cpu:{TAG}", "built"] in table and [f"aframe-gpu:{TAG}", "failed"] in table


@pytest.fixture
def without_torch(tmp_path, monkeypatch) -> None:
    """pip's own settings, and before all else a torch that is nothing but its name: the real one brings gigabytes of CUDA."""
    wheel(tmp_path, "torch", "2.10.0+cpu", "class version:\n    cuda = None\n")
    wheel(tmp_path, "torchaudio", "2.10.0+cpu", "")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{os.environ.get('PIP_FIND_LINKS', '')} {tmp_path}".strip())


@pytest.mark.timeout(3600)
def test_the_doctor_finds_nothing_wrong_in_the_cpu_image(base, without_torch, monkeypatch, tmp_path):
    """Our own tree, with all packages but torch."""
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    command = [sys.executable, "-m", "aframe_ops.cli.main", "build-images", "cpu", "--engine=podman", f"--base={base}", f"--tree={REPO}"]
    built = subprocess.run([*command, "--tag=aframe-real"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=3600)
    print(built.stdout)
    assert built.returncode == 0
    image = ("run", "--rm", "--pull=never", "--network=none", "aframe-cpu:aframe-real")
    found = podman(*image, "aframe", "doctor")
    print(found.stdout)
    assert found.returncode == 0 and "✗" not in found.stdout, found.stdout + found.stderr
    assert podman(*image, "id", "-u").stdout.strip() == "1000"
    assert inspect("cpu", "aframe-real")["Size"] < 3e9
    script = (
        "aframe init /tmp/demo --preset demo && aframe plan /tmp/demo && python -c 'import dagster, lal, bilby, gwpy, onnxruntime, boto3'"
    )
    worked = podman(*image, "sh", "-ec", script)
    assert worked.returncode == 0, worked.stdout + worked.stderr
