"""SLURM whose commands are played by a script."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from aframe_ops.executor.base import Request
from aframe_ops.executor.scheduler import BatchJob
from aframe_ops.executor.slurm import Slurm
from aframe_ops.sites.slurm import SlurmSite

PLAYED = """
import json, sys
from pathlib import Path
folder = Path(sys.argv[1])
with (folder / "said").open("a") as f:
    f.write(json.dumps(sys.argv[2:]) + "\\n")
answers = json.loads((folder / "answers").read_text())
code, out, err = answers.get(sys.argv[2], [0, "", ""])
if sys.argv[2] == "squeue" and out == "all pending":
    (jobs,) = [w for w in sys.argv if w.startswith("--jobs=")]
    out = "".join(f"{i:30}{'PENDING':20}{'0':12}{'0:00':20}{'Priority':120}\\n" for i in jobs[7:].split(","))
sys.stdout.write(out), sys.stderr.write(err)
sys.exit(code)
"""


class Played:
    """SLURM whose commands answer what they are told to: exit code, output, complaint."""

    def __init__(self, folder: Path):
        self.folder, self.answers = folder, {}
        (folder / "played.py").write_text(PLAYED)
        self.slurm = Slurm(SlurmSite(command=[sys.executable, str(folder / "played.py"), str(folder)]))
        self.answer()

    def answer(self, **answers: tuple[int, str, str]) -> None:
        self.answers |= answers
        (self.folder / "answers").write_text(json.dumps(self.answers))

    def said(self, command: str) -> list[list[str]]:
        path = self.folder / "said"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [words for words in lines if words[0] == command]

    def job(self, name: str, **changes) -> BatchJob:
        place = {"spec": self.folder / f"{name}.json", "log": self.folder / name, "folder": self.folder, "argv": ("true",)}
        return BatchJob(name=name, request=Request(memory_gb=1), number=0, **place | changes)
