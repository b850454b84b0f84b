"""A batch system's commands, here or behind a prefix such as ``ssh login``, and the shell lines that start a step in a job."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence

from aframe_ops.executor.scheduler import BatchJob, Unreachable

_PLAIN = re.compile(r"[A-Za-z0-9_.,:=%/+-]+")


class NotFound(Unreachable):
    """The command is not there."""


class Commands:
    """Runs commands whose words mean the same with and without a shell in between, so that a prefix may quote or not as it
    likes. Whatever is not plain goes in through standard input.

    Args:
        prefix: words in front of every command.
        key: key of site.yaml that sets the prefix.
        dropped: beginnings of names of variables that the commands do not get: a run worker may itself be a job, and what
            describes that one must not describe those that it submits.
        kept: names that they do get all the same.
    """

    def __init__(self, prefix: Sequence[str], key: str, *, dropped: tuple[str, ...] = (), kept: tuple[str, ...] = ()):
        self._prefix, self._key, self._dropped, self._kept = list(prefix), key, dropped, kept

    def __call__(self, *words: str, text: str = "", timeout: float = 40.0) -> subprocess.CompletedProcess[str]:
        """The ended command with its output; its exit code is not looked at.

        Raises:
            NotFound: the command, or the prefix, is not there.
            Unreachable: it took longer than `timeout` seconds, or the prefix could not connect.
        """
        unsafe = [w for w in words if not _PLAIN.fullmatch(w)]
        if unsafe:
            raise ValueError(f"{words[0]}: {unsafe[0]!r} is not plain enough to be passed on")
        env = {k: v for k, v in os.environ.items() if k in self._kept or not (self._dropped and k.startswith(self._dropped))}
        try:
            done = subprocess.run(
                [*self._prefix, *words], input=text, env=env, capture_output=True, text=True, errors="replace", timeout=timeout
            )
        except subprocess.TimeoutExpired:
            raise Unreachable(f"{words[0]} took longer than {timeout:g} s") from None
        except OSError as e:
            where = f"{self._key} = {self._prefix}" if self._prefix else f"{self._key} can name a login node that has it"
            raise NotFound(f"{e.filename or words[0]}: {e.strerror}; {where}") from None
        if done.returncode == 255 and self._prefix:  # ssh says so when it cannot connect
            raise Unreachable(complaint(done))
        return done


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """What a command complained about, in one line."""
    lines = [re.sub(r"^\w+: (error: )?", "", line.strip()) for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return "; ".join(lines)[:500] or f"exit code {done.returncode} without a word"


def launcher(job: BatchJob, setup: str, key: str, command: str | None = None) -> str:
    """Lines of bash that become `job`'s process: its folder, the site's set-up lines (of `key`), its command.

    They hold nothing secret; variables come from the job's spec.

    Args:
        command: bash for another command than `job`'s.
    """
    lines = [f"cd -- {shlex.quote(str(job.folder))}"]
    if setup.strip():
        lines.append("set -e")
        lines.append(f"trap 'echo \"aframe: {key} of site.yaml failed: $BASH_COMMAND\" >&2' ERR")
        lines.append(setup.rstrip("\n"))
        lines.append("trap - ERR")
    if job.python_path:
        lines.append(f"export PYTHONPATH={shlex.quote(job.python_path)}${{PYTHONPATH:+:$PYTHONPATH}}")
    lines.append(f"exec {command or shlex.join(job.argv)}")
    return "\n".join(lines) + "\n"
