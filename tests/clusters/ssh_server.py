"""An ssh server of a test's own, on loopback, that lets one key use git and nothing else."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path


def missing() -> str | None:
    """What keeps it from being started here, in words; None if nothing does."""
    absent = [name for name in ("git", "ssh-keygen", "git-shell") if not shutil.which(name)]
    absent += [] if Path("/usr/sbin/sshd").exists() else ["sshd (Debian: openssh-server)"]
    return f"an ssh server for git needs {', '.join(absent)}" if absent else None


class SshServer:
    """Serves from construction to `close`.

    Args:
        folder: a new folder for its keys.
        modern: whether git's second protocol is let through, without which a server gives only what branches and tags name now.

    Attributes:
        key: private key that is let in; `key` with ``.pub`` is the public one.
        known_hosts: file with the server's public key.
        address: ``ssh://USER@HOST:PORT``, to be followed by an absolute path.
    """

    def __init__(self, folder: Path, *, modern: bool = True):
        folder.mkdir()
        self.key, self.known_hosts = folder / "id_ed25519", folder / "known_hosts"
        host_key = folder / "host_key"
        for path in (self.key, host_key):
            make_key(path)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {host_key.with_suffix('.pub').read_text()}")
        allowed = folder / "authorized_keys"
        only_git = 'restrict,command="git-shell -c \\"$SSH_ORIGINAL_COMMAND\\""'
        allowed.write_text(f"{only_git} {self.key.with_suffix('.pub').read_text()}")
        settings = folder / "sshd_config"
        settings.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {host_key}\nAuthorizedKeysFile {allowed}\nPidFile none\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin forced-commands-only\n"
            + ("AcceptEnv GIT_PROTOCOL\n" if modern else "")
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        self.log = folder / "log"
        self._process = subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", str(settings), "-E", str(self.log)])
        self.address = f"ssh://root@127.0.0.1:{self.port}"
        deadline = time.monotonic() + 30
        while not self._answers():
            assert time.monotonic() < deadline and self._process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def _answers(self) -> bool:
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)


def make_key(path: Path, passphrase: str = "") -> None:
    """A new key pair in `path` and ``path.pub``."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "test", "-f", str(path)], check=True)
