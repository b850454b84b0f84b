"""The init container that brings a pod the code of the run, and what the step's container needs to find it.

The step's container sees neither the ssh key nor git. Values reach the shell of the init container as its arguments, never as text of
its script.
"""

from __future__ import annotations

from typing import Any

from aframe_ops.sites.kubernetes import KubernetesSite

INIT_CONTAINER = "code"
CODE_FOLDER = "/run/aframe-code"
SOURCE = f"{CODE_FOLDER}/src"
KEY_FOLDER = "/run/aframe-git"
KEY_FILES = ("ssh", "known_hosts")
CODE_PATH_KEY = "code-pythonpath"

# ssh refuses a key that others may read, and a Secret's files belong to root: the copy is private, and gone with the container.
# Backquotes, since Kubernetes has a meaning of its own for a dollar before a parenthesis.
_FETCH = f"""\
set -eu
umask 022
export GIT_TERMINAL_PROMPT=0 GIT_ALLOW_PROTOCOL=ssh:https:file
if [ -d {KEY_FOLDER} ]; then
  keys=`umask 077; mktemp -d /tmp/aframe-git.XXXXXX`
  trap 'rm -rf "$keys"' EXIT
  (umask 077; cat {KEY_FOLDER}/ssh > "$keys/ssh"; cat {KEY_FOLDER}/known_hosts > "$keys/known_hosts")
  GIT_SSH_COMMAND="ssh -F /dev/null -i $keys/ssh -o IdentitiesOnly=yes -o IdentityAgent=none -o BatchMode=yes \\
    -o StrictHostKeyChecking=yes -o UserKnownHostsFile=$keys/known_hosts"
  export GIT_SSH_COMMAND
fi
git init -q "$3"
cd "$3"
# a server that gives only what a branch or tag names now has it in the history of one
git fetch -q --depth 1 --no-tags -- "$1" "$2" || git fetch -q --no-tags -- "$1" "$4"
git -c advice.detachedHead=false checkout -q --detach "$2"
"""


def python_path(job_path: str | None) -> str:
    """PYTHONPATH of a step whose own would be `job_path`."""
    return f"{SOURCE}:{job_path}" if job_path else SOURCE


def path_variable(secret: str, key: str) -> list[dict[str, Any]]:
    """PYTHONPATH from a key of a Secret: the one variable that a step needs before it can read its own."""
    return [{"name": "PYTHONPATH", "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}]


def literal(word: str) -> str:
    """`word` without its meaning for Kubernetes, which replaces ``$(NAME)`` in commands and reads ``$$`` as ``$``."""
    return word.replace("$", "$$")


def add_code(pod: dict[str, Any], site: KubernetesSite, secret: str, spec: str) -> None:
    """Adds to a pod's description what puts the code of the run before that of its image.

    Args:
        pod: with one container, whose mounts and variables the init container of a snapshot gets too.
        secret: name of the attempt's Secret, which may hold the ssh key.
        spec: where the step's container finds the file with what the step is told.
    """
    (step,) = pod["containers"]
    mount = {"name": "code", "mountPath": CODE_FOLDER}
    init: dict[str, Any] = {
        "name": INIT_CONTAINER,
        "image": step["image"],
        "volumeMounts": [mount],
        # of the node's total a pod takes the larger of both, so this costs nothing; quotas refuse containers that ask for nothing
        "resources": {kind: {k: v for k, v in asked.items() if k in ("cpu", "memory")} for kind, asked in step["resources"].items()},
        "securityContext": step["securityContext"],
        # its last words are what the user is told
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if pull := step.get("imagePullPolicy"):
        init["imagePullPolicy"] = pull
    pod["volumes"].append({"name": "code", "emptyDir": {}})
    if (git := site.git) is None:
        init["command"] = [literal(site.python), "-m", "aframe_ops.executor.kubernetes_unpack", spec, SOURCE]
        init["env"], init["envFrom"] = step["env"], step["envFrom"]
        init["volumeMounts"] = [*step["volumeMounts"], mount]
    else:
        init["image"] = git.image or step["image"]
        history = "+refs/heads/*:refs/remotes/origin/*" if git.ref == site.pinned else git.ref
        init["command"] = ["/bin/sh", "-c", _FETCH, "sh", *map(literal, (git.repository, site.pinned or "", SOURCE, history))]
        if git.host is not None:
            files = {"secretName": git.secret or secret, "defaultMode": 0o440 if site.user is not None else 0o444}
            pod["volumes"].append({"name": "git", "secret": {**files, "items": [{"key": name, "path": name} for name in KEY_FILES]}})
            init["volumeMounts"].append({"name": "git", "mountPath": KEY_FOLDER, "readOnly": True})
        elif git.repository.startswith("file:"):
            init["volumeMounts"] += [m for m in step["volumeMounts"] if m["name"].startswith("claim-")]
    pod["initContainers"] = [init]
    step["volumeMounts"].append(mount)
    # `python -m` looks into the folder that it is started in before PYTHONPATH, and images may start in their own code
    step["workingDir"] = SOURCE
    step["env"] = path_variable(secret, CODE_PATH_KEY)
