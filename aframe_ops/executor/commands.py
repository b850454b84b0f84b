"""A batch system's commands, here or behind a prefix such as ``ssh login``, and the shell lines that start a step in a job."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from aframe_ops.containers import node_install, staging
from aframe_ops.executor.base import RELAYED, relay
from aframe_ops.executor.scheduler import BatchJob, Refused, Unreachable
from aframe_ops.sites.node import NodeSite

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
            # A session of its own: Ctrl-C at a terminal is for us, and would end a submission whose job exists already.
            done = subprocess.run(
                [*self._prefix, *words],
                input=text,
                env=env,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                start_new_session=True,
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


def launcher(job: BatchJob, setup: str, key: str, node: NodeSite, *, given: bool = False) -> str:
    """Lines of bash that become `job`'s process: its folder, the site's set-up lines (of `key`), the node's disk, its command.

    They hold nothing secret; variables come from the job's spec.

    Args:
        given: the command is in the positional parameters already, and may be another than `job`'s.
    """
    folder = shlex.quote(str(job.folder))
    # Elsewhere it would import other code, or none.
    missing = f"printf 'aframe: on %s there is no %s, where the step has to start\\n' \"$(hostname)\" {folder} >&2"
    lines = [f"cd -- {folder} || {{ {missing}; exit 1; }}"]
    if setup.strip():
        lines.append("set -e")
        lines.append(f"trap 'echo \"aframe: {key} of site.yaml failed: $BASH_COMMAND\" >&2' ERR")
        lines.append(setup.rstrip("\n"))
        lines.append("trap - ERR")
    if job.python_path:
        lines.append(f"export PYTHONPATH={shlex.quote(job.python_path)}${{PYTHONPATH:+:$PYTHONPATH}}")
    if node.node_disk and node.stage:
        lines.append(f"export {staging.VARIABLE}={shlex.quote(node.node_disk)}")  # unexpanded: see `staging`
    if not given:
        lines.append(f"set -- {shlex.join(job.argv)}")
    lines += installer(node) if node.wheelhouse else ['exec "$@"']
    return "\n".join(lines) + "\n"


def installer(node: NodeSite) -> list[str]:
    """Lines of bash that become the command in the positional parameters, with the Python of an environment on the node's disk;
    it is installed if it is not there.

    The interpreter that installs is the site's, or whatever Python there is on the node's path.
    """
    folder, named = str(node.wheelhouse), node.python
    words = [f"{folder}/{Path(node_install.__file__).name}", "--wheelhouse", folder, "--node-disk", str(node.node_disk)]
    words += ["--python", named] if named else []
    command = f'{shlex.join([*words, "--"])} "${{@:2}}"'
    if named:
        return [f"exec {shlex.quote(named)} {command}"]
    return [
        "for python in python3.13 python3.12 python3.11 python3 ''; do command -v \"$python\" >/dev/null && break; done",
        '[ -n "$python" ] || { echo "aframe: there is no Python on $(hostname); load one in the set-up of site.yaml" >&2; exit 1; }',
        f'exec "$python" {command}',
    ]


def require_wheelhouse(node: NodeSite, prefix: Sequence[str], key: str) -> None:
    """Raises Refused where jobs would find no wheelhouse. Behind a `prefix`, it may be on a disk that is not seen from here."""
    if node.wheelhouse and not (prefix and not Path(node.wheelhouse).exists()):
        try:
            manifest, digest = node_install.read_manifest(Path(node.wheelhouse))
        except node_install.InstallError as e:
            raise Refused(f"{key} = {node.wheelhouse}: {e}") from None
        _tell_stale(node.wheelhouse, digest, manifest.get("source"))


@functools.cache
def _tell_stale(wheelhouse: str, digest: str, source: str | None) -> None:
    """Says once that jobs run other code than this process."""
    from aframe_ops.containers import wheelhouse as ours
    from aframe_ops.containers.target import WheelhouseError

    with contextlib.suppress(WheelhouseError):
        if ours.source_digest(ours.source_tree()) != source:
            mend = f"`aframe wheelhouse {wheelhouse}` renews it"
            relay(f"{RELAYED} jobs run our code as it is in {wheelhouse}, and it has changed here since; {mend}")
