"""A Ceph of Debian's (packages ``ceph-mon ceph-osd radosgw``) that speaks S3, in a private folder, on loopback and free ports, for
measurements and tests. ``python -m benchmarks.ceph COMMAND...`` runs a command with its address and keys in the environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
START_S = 120.0
OPTIONS = """\
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon2},v1:127.0.0.1:{mon1}
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
auth cluster required = none
auth service required = none
auth client required = none
run dir = {folder}
log file = {folder}/$name.log
admin socket = {folder}/$name.asok
mon data = {folder}/mon
osd data = {folder}/osd
osd objectstore = bluestore
bluestore block size = 21474836480
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd crush chooseleaf type = 0
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
mon max pg per osd = 2000
osd memory target = 939524096
[client.rgw]
# the gateway asks for encryption by default, which needs the keys that are switched off above
ms mon client mode = crc
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw dns name = localhost
rgw thread pool size = 32
"""


def missing() -> str | None:
    """What keeps a server from being started here, in words; None if nothing does."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"no {', '.join(absent)} here: apt-get install -y --no-install-recommends ceph-mon ceph-osd radosgw"
    return None


class Ceph:
    """One monitor, one disk (a sparse file) and one S3 gateway.

    Attributes:
        url: of the gateway.
        key, secret: of its only user, once it has been started.
        folder: all its files.
    """

    def __init__(self, folder: Path):
        self.folder, self.key, self.secret = folder, "", ""
        ports = []
        with contextlib.ExitStack() as held:
            for _ in range(3):
                ports.append(held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1])
        self.url = f"http://127.0.0.1:{ports[0]}"
        self._conf = folder / "ceph.conf"
        self._fsid = str(uuid.uuid4())
        self._conf.write_text(OPTIONS.format(fsid=self._fsid, folder=folder, port=ports[0], mon1=ports[1], mon2=ports[2]))
        self._monitor = f"[v2:127.0.0.1:{ports[2]},v1:127.0.0.1:{ports[1]}]"
        self._running: list[subprocess.Popen] = []

    @property
    def variables(self) -> dict[str, str]:
        """What S3 clients read, and this project's tests."""
        return {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
            "AWS_S3_ADDRESSING_STYLE": "path",
            "AFRAME_TEST_S3_ENDPOINT": self.url,
            "AFRAME_TEST_S3_KEY": self.key,
            "AFRAME_TEST_S3_SECRET": self.secret,
        }

    def start(self) -> None:
        """Raises TimeoutError if a daemon does not come up; its log is in the folder."""
        monmap = str(self.folder / "monmap")
        self._call("monmaptool", "--create", "--fsid", self._fsid, "--addv", "a", self._monitor, monmap)
        (self.folder / "mon").mkdir()
        self._call("ceph-mon", *self._options, "-i", "a", "--mkfs", "--monmap", monmap)
        self._spawn("ceph-mon", "-f", "-i", "a")
        self._wait("the monitor", lambda: bool(self._ask("mon", "stat")))
        (self.folder / "osd").mkdir()
        disk = str(uuid.uuid4())
        self._ask("osd", "new", disk)
        self._call("ceph-osd", *self._options, "-i", "0", "--mkfs", "--osd-uuid", disk)
        self._ask("osd", "crush", "add", "osd.0", "1.0", "root=default", "host=localhost")
        self._spawn("ceph-osd", "-f", "-i", "0")
        self._wait("the disk", lambda: "1 up" in self._ask("osd", "stat"))
        self._spawn("radosgw", "-f", "-n", "client.rgw")
        self._wait("the gateway", self._answers)
        # it makes the keys itself: as words of a command they would be in the list of processes
        made = self._call("radosgw-admin", *self._options, "-n", "client.rgw", "user", "create", "--uid=test", "--display-name=test")
        (keys,) = json.loads(made)["keys"]
        self.key, self.secret = keys["access_key"], keys["secret_key"]

    def stop(self) -> None:
        for process in reversed(self._running):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @property
    def _options(self) -> tuple[str, str]:
        return "-c", str(self._conf)

    def _spawn(self, program: str, *words: str) -> None:
        log = (self.folder / f"{program}.out").open("wb")
        with log:
            self._running.append(subprocess.Popen([program, *self._options, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def _call(self, *words: str) -> str:
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=START_S).stdout

    def _ask(self, *words: str) -> str:
        done = subprocess.run(
            ["ceph", *self._options, "--connect-timeout", "5", *words], capture_output=True, text=True, timeout=START_S, check=False
        )
        return done.stdout + done.stderr if done.returncode == 0 else ""

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(self.url, timeout=5):
                return True
        return False

    def _wait(self, what: str, ready: Callable[[], bool]) -> None:
        until = time.monotonic() + START_S
        while not ready():
            if time.monotonic() > until or any(p.poll() is not None for p in self._running):
                raise TimeoutError(f"{what} of Ceph does not come up; see {self.folder}/*.out")
            time.sleep(0.2)


@contextlib.contextmanager
def running() -> Iterator[Ceph]:
    """A server that is stopped and removed at the end, also when this process is asked to end.

    Raises:
        RuntimeError: it is not installed.
    """
    if reason := missing():
        raise RuntimeError(reason)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="aframe-ceph-") as folder:
        ceph = Ceph(Path(folder))
        try:
            ceph.start()
            yield ceph
        finally:
            ceph.stop()
            signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    with running() as server:
        result = subprocess.run(sys.argv[1:], env={**os.environ, **server.variables}, check=False)
    sys.exit(result.returncode)
