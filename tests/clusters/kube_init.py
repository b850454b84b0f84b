"""Init containers for the stand-in of `kube_cluster`, which knows none: each is run as the kubelet would, before the pod's container."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from typing import Any


def with_init_containers(runner: type) -> type:
    """`kube_double.PodRunner`, which first runs the pod's init containers: the same environment, mounts and memory of the past."""

    class Runner(runner):
        def run(self) -> None:
            for container in self.pod["spec"].get("initContainers", []):
                if not self._first(container):
                    return
            super().run()

        def _first(self, container: dict[str, Any]) -> bool:
            made = self._made(container)
            if made is None:
                self.gone()
                return False
            env, script = made
            words = [*container["command"], *container.get("args", [])]
            argv = [re.sub(r"\$\$|\$\(([-._a-zA-Z0-9]+)\)", lambda m: "$" if m[1] is None else env.get(m[1], m[0]), w) for w in words]
            with subprocess.Popen(
                ["unshare", "-m", "/bin/sh", "-c", script, "sh", *argv],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as self.p:
                said = self.p.stdout.read()
            if self.killed is not None:
                self.gone()
                return False
            self.init_output = getattr(self, "init_output", b"") + said
            code = self.p.returncode
            state = {"terminated": {"exitCode": code, "reason": "Completed" if code == 0 else "Error"}}
            if code and container.get("terminationMessagePolicy") == "FallbackToLogsOnError":
                state["terminated"]["message"] = said.decode(errors="replace")[-2048:]
            self.status(initContainerStatuses=[self.cstat(container, state)])
            if code:
                self.alive = False
                waits = {"waiting": {"reason": "PodInitializing"}}
                self.status(phase="Failed", containerStatuses=[self.cstat(self.pod["spec"]["containers"][0], waits)])
            return code == 0

        def _made(self, container: dict[str, Any]) -> tuple[dict[str, str], str] | None:
            """Environment and mounts, as soon as all Secrets are there; None if the pod is deleted before."""
            base = os.path.join(self.cl.root, "pods", self.pod["metadata"]["uid"])
            os.makedirs(base, exist_ok=True)
            volumes = {v["name"]: v for v in self.pod["spec"]["volumes"]}
            while self.killed is None:
                try:
                    env = self.env(container)
                    mounts = [(self.vol(volumes[m["name"]], base), m) for m in container["volumeMounts"]]
                except Exception as e:
                    waits = {"waiting": {"reason": "CreateContainerConfigError", "message": str(e).strip("'")}}
                    self.status(initContainerStatuses=[self.cstat(container, waits)])
                    time.sleep(0.5)
                    continue
                script = "set -e\nmount --make-rprivate /\n"
                for source, mount in mounts:
                    at = shlex.quote(mount["mountPath"])
                    script += f"mkdir -p {at}; mount --bind {shlex.quote(source)} {at}\n"
                    if mount.get("readOnly"):
                        script += f"mount -o remount,bind,ro {at}\n"
                return env, script + 'cd /\nexec "$@"\n'
            return None

    return Runner
