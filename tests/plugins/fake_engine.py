"""A program that plays podman, docker or apptainer, by its name: it keeps what it was told, and images as files of labels.

Folder ``$FAKE_ENGINE``: ``calls`` has a JSON list of words per line; ``images`` the labels of what was built, by its name;
``told.NAME`` what a build of image NAME could read; ``fail`` the images whose build fails, ``vanish`` those whose build makes
nothing and ends with 0; ``together`` how many builds must have begun before one ends; ``stay`` makes builds last until they
are interrupted.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from pathlib import Path
from urllib.parse import quote

PLACE = Path(os.environ["FAKE_ENGINE"])
PROGRAM = Path(sys.argv[0]).name


def keep(words: list[str]) -> None:
    with open(PLACE / "calls", "a") as calls:
        fcntl.flock(calls, fcntl.LOCK_EX)
        calls.write(json.dumps([PROGRAM, *words]) + "\n")


def asked(name: str) -> str:
    file = PLACE / name
    return file.read_text() if file.exists() else ""


def values(words: list[str], option: str) -> dict[str, str]:
    return dict(words[i + 1].split("=", 1) for i, word in enumerate(words) if word == option)


def image_file(reference: str) -> Path:
    return PLACE / "images" / quote(reference, safe="")


def build(words: list[str]) -> None:
    if PROGRAM == "apptainer":
        recipe, reference = Path(words[-1]), words[-2]
        arguments = values(words, "--build-arg")
        labels = {"org.aframe.environment": arguments["ENVIRONMENT"], "org.aframe.inputs": arguments["INPUTS"]}
        secrets = Path(words[words.index("--bind") + 1].split(":")[0])
    else:
        recipe, reference = Path(words[words.index("--file") + 1]), words[words.index("--tag") + 1]
        labels = values(words, "--label")
        secrets = Path(next(w for w in words if w.startswith("id=pip,")).split("src=")[1]).parent
    name = recipe.name.split(".")[0]
    told = {"mode": (secrets / "pip.conf").stat().st_mode & 0o777, "conf": (secrets / "pip.conf").read_text()}
    told["folder"], told["files"] = str(secrets), sorted(p.name for p in secrets.iterdir())
    told["context"] = sorted(str(p.relative_to(recipe.parents[1])) for p in recipe.parents[1].rglob("*") if p.is_file())
    (PLACE / f"told.{name}").write_text(json.dumps(told))
    print(f"{PROGRAM} builds {name}", flush=True)
    (PLACE / f"began.{name}").touch()
    while (PLACE / "stay").exists():
        time.sleep(0.05)
    deadline = time.monotonic() + 60
    while len(list(PLACE.glob("began.*"))) < int(asked("together") or 1):
        if time.monotonic() > deadline:
            sys.exit("the others have not begun")
        time.sleep(0.02)
    # only now: whoever counted as it began might find that one of the others had ended since
    running = len(list(PLACE.glob("began.*"))) - len(list(PLACE.glob("ended.*")))
    with open(PLACE / "at-once", "a") as file:
        file.write(f"{running}\n")
    (PLACE / f"ended.{name}").touch()
    if name in asked("fail").split():
        print(f"no space left for {name}")
        sys.exit(125)
    if name in asked("vanish").split():
        return
    if PROGRAM == "apptainer":
        Path(reference).write_text(json.dumps(labels))
    else:
        image_file(reference).write_text(json.dumps(labels))


def main() -> None:
    words = sys.argv[1:]
    keep(words)
    if words[0] == "version":
        sys.exit(asked("broken") or 0)
    elif words[0] == "build":
        build(words[1:])
    elif words[:2] == ["image", "inspect"]:
        if not image_file(words[2]).exists():
            sys.exit(f"Error: {words[2]}: image not known" if PROGRAM == "podman" else f"Error: No such image: {words[2]}")
        print(json.dumps([{"Config": {"Labels": json.loads(image_file(words[2]).read_text())}, "Size": 1_500_000_000}]))
    elif words[0] == "inspect":
        print(json.dumps({"data": {"attributes": {"labels": json.loads(Path(words[-1]).read_text())}}, "type": "container"}))


main()
