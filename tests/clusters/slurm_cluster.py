"""A SLURM of one node on this machine: the real daemons, on loopback and free ports, with all state in one folder.

Needs root and the Debian packages ``slurm-wlm munge slurm-wlm-basic-plugins``; `accounting` needs ``slurmdbd mariadb-server``.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

CGROUPS = ("memory", "freezer", "devices", "cpuset")


def missing(*, accounting: bool = False) -> str | None:
    """What keeps a cluster from being started here, in words; None if nothing does."""
    if os.geteuid() != 0:
        return "starting slurmd needs root"
    wanted = ["munged", "slurmctld", "slurmd", "sbatch"] + (["slurmdbd", "mariadbd", "mariadb-install-db"] if accounting else [])
    absent = [name for name in wanted if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
    packages = "slurm-wlm munge slurm-wlm-basic-plugins" + (" slurmdbd mariadb-server" if accounting else "")
    return f"{', '.join(absent)} not found: apt-get install -y --no-install-recommends {packages}" if absent else None


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _cgroups() -> bool:
    """Whether this machine lets us make version 1 control groups; without them nothing ends as OUT_OF_MEMORY."""
    for name in CGROUPS:
        probe = Path("/sys/fs/cgroup", name, f"aframe_probe_{os.getpid()}")
        try:
            probe.mkdir()
            probe.rmdir()
        except OSError:
            return False
    return True


class SlurmCluster:
    """One node with `cpus` advertised cores, `memory_mb` of memory and `gpus` made-up GPUs of type h200.

    Partitions: ``cpu`` (default) and ``gpu``. Jobs that ended are remembered for `memory_s` seconds and a little more. With
    `local_disk`, a job has a folder of its own in ``$SLURM_TMPDIR``, and it goes with the job.
    """

    name = "slurm"
    site = """\
executor:
  backend: slurm
  poll_seconds: 0.5
  grace_seconds: 2
  env: [TOY, TOY_*, PLANTED]
slurm:
  gpu: {partition: gpu, types: {h200: 141}}
  setup: |
    export FROM_SETUP='from the set-up'
"""
    held_words = "job {0} will not start by itself: JobHeldUser (see `scontrol show job {0}`)"
    memory_words = "was killed because memory ran out (OUT_OF_MEMORY); it had 0.7 GB"
    memory = ("--mem=668M", "--mem=1002M")
    asked = ("sbatch", "squeue")
    description = ".sbatch"
    impossible = "PartitionConfig"
    impatient = ""

    def __init__(
        self,
        *,
        cpus: int = 8,
        memory_mb: int = 16000,
        gpus: int = 2,
        accounting: bool = False,
        memory_s: int = 900,
        local_disk: bool = False,
    ):
        # Not pytest's folder: munge's socket has a path of at most 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="aframe-slurm-"))
        self.folder.chmod(0o755)
        self.cpus, self.memory_mb, self.gpus, self.accounting = cpus, memory_mb, gpus, accounting
        self.memory_s, self.cgroups, self.local_disk = memory_s, _cgroups(), local_disk
        self.host = socket.gethostname().split(".")[0]
        self.ports = _free_ports(3)
        self.conf = self.folder / "slurm.conf"
        self._daemons: dict[str, subprocess.Popen] = {}

    @property
    def env(self) -> dict[str, str]:
        """What a client of this cluster needs in its environment."""
        return {"SLURM_CONF": str(self.conf)}

    def start(self) -> SlurmCluster:
        try:
            for name in ("state", "spool", "dev"):
                (self.folder / name).mkdir()
            self._write_conf()
            self._start_munge()
            if self.accounting:
                self._start_accounting()
            self.start_controller()
            self._spawn("slurmd", "/usr/sbin/slurmd", "-D", "-f", self.conf, "-N", self.host, env=self.env)
            self._wait(lambda: self.client("sinfo", "-h", "-p", "cpu", "-o", "%t").stdout.strip() in ("idle", "mix", "alloc"), "slurmd")
        except BaseException:
            self.close()
            raise
        return self

    def client(self, *words: str, timeout: float = 60) -> subprocess.CompletedProcess:
        """Runs a SLURM command against this cluster."""
        return subprocess.run(words, env={**os.environ, **self.env}, capture_output=True, text=True, timeout=timeout)

    def jobs(self) -> dict[str, str]:
        """Id -> state of every job that the controller remembers."""
        lines = self.client("squeue", "-h", "--array", "--states=all", "-o", "%i %T").stdout.splitlines()
        return dict(line.split() for line in lines)

    def active(self) -> set[str]:
        """Ids of the jobs that have not ended."""
        return {job for job, state in self.jobs().items() if state in ("PENDING", "RUNNING", "COMPLETING")}

    def ended_well(self, id: str) -> bool:
        return self.jobs()[id] == "COMPLETED"

    def ran(self, note: dict, record: dict) -> bool:
        """Whether what a step noted shows that it ran as the job of `record`."""
        if note.get("FROM_SETUP") != "from the set-up":
            return False
        return (note["SLURM_JOB_ID"], note["SLURM_JOB_NAME"]) == (
            record["id"],
            record["name"],
        )

    def ran_on_gpu(self, note: dict) -> bool:
        return note["CUDA_VISIBLE_DEVICES"] in ("0", "1") and note["SLURM_JOB_PARTITION"] == "gpu"

    def waits(self, id: str) -> bool:
        return self.jobs()[id] == "PENDING"

    def memory_of(self, id: str, description: Path) -> str:
        """The words in which this job asked for memory."""
        return re.search(r"--mem=\S+", description.with_suffix(".sbatch").read_text())[0]

    @contextlib.contextmanager
    def hold(self) -> Iterator[str]:
        """A site whose jobs wait until they are released."""
        yield self.site + "  directives: [--hold]\n"

    def questions(self, id: str) -> list[list[str]]:
        """Commands that show all that there is of a job."""
        return [["scontrol", "show", "job", "-dd", id], ["scontrol", "write", "batch_script", id, "-"]]

    def release(self, id: str) -> None:
        self.client("scontrol", "release", id)

    @contextlib.contextmanager
    def one_at_a_time(self) -> Iterator[str]:
        """A site whose jobs run one after the other."""
        yield self.site + "  directives: [--exclusive]\n"

    def start_controller(self) -> None:
        self._spawn("slurmctld", "/usr/sbin/slurmctld", "-D", "-f", self.conf, env=self.env)
        self._wait(lambda: "UP" in self.client("scontrol", "ping").stdout, "slurmctld")

    def stop_controller(self) -> None:
        """Ends slurmctld as if its machine were gone; jobs go on."""
        self._stop("slurmctld")

    def close(self) -> None:
        if "slurmctld" in self._daemons and self.jobs():
            self.client("scancel", "--state=PENDING", "--user=root")
            self.client("scancel", "--user=root")
            self._wait(lambda: not {"RUNNING", "COMPLETING", "PENDING"} & set(self.jobs().values()), "jobs to end", check=False)
        for name in reversed(list(self._daemons)):
            self._stop(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _spawn(self, name: str, *words: object, env: dict[str, str] | None = None) -> None:
        with open(self.folder / f"{name}.out", "ab") as log:
            self._daemons[name] = subprocess.Popen(
                [str(w) for w in words],
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _stop(self, name: str) -> None:
        process = self._daemons.pop(name)
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait(self, ready: Callable[[], bool], what: str, *, timeout: float = 30, check: bool = True) -> None:
        deadline = time.monotonic() + timeout
        while not ready():
            if time.monotonic() > deadline:
                if not check:
                    return
                logs = "\n".join(f"{p}: {p.read_text(errors='replace')[-1500:]}" for p in sorted(self.folder.glob("*.out")))
                raise RuntimeError(f"{what}: not ready within {timeout} s\n{logs}")
            time.sleep(0.1)

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        parts = {"key-file": key, "socket": self._munge, "pid-file": self.folder / "munge.pid", "log-file": self.folder / "munge.log"}
        parts["seed-file"] = self.folder / "munge.seed"
        self._spawn("munged", "/usr/sbin/munged", "--foreground", *(f"--{k}={v}" for k, v in parts.items()))
        self._wait(lambda: subprocess.run(["munge", "-S", self._munge, "-n"], capture_output=True).returncode == 0, "munged")

    @property
    def _munge(self) -> Path:
        return self.folder / "munge.sock"

    def _start_accounting(self) -> None:
        data, sock = self.folder / "mysql", self.folder / "mysql.sock"
        subprocess.run(
            [
                "mariadb-install-db",
                "--no-defaults",
                "--user=root",
                f"--datadir={data}",
                "--skip-test-db",
                "--auth-root-authentication-method=socket",
            ],
            check=True,
            capture_output=True,
        )
        common = [f"--datadir={data}", f"--socket={sock}", f"--pid-file={self.folder / 'mysql.pid'}"]
        tuning = ["--skip-networking", "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M", "--innodb-lock-wait-timeout=900"]
        self._spawn("mariadbd", "/usr/sbin/mariadbd", "--no-defaults", "--user=root", *common, *tuning)
        ping = ["mariadb-admin", "--no-defaults", "-S", str(sock), "ping"]
        self._wait(lambda: subprocess.run(ping, capture_output=True).returncode == 0, "mariadbd")
        conf = self.folder / "slurmdbd.conf"
        conf.write_text(
            f"AuthType=auth/munge\nAuthInfo=socket={self._munge}\nDbdHost=localhost\nDbdAddr=127.0.0.1\nDbdPort={self.ports[2]}\n"
            f"SlurmUser=root\nPidFile={self.folder}/slurmdbd.pid\nLogFile={self.folder}/slurmdbd.log\n"
            "StorageType=accounting_storage/mysql\nStorageHost=localhost\nStorageUser=root\nStorageLoc=slurm_acct\n"
        )
        conf.chmod(0o600)
        env = {"MYSQL_UNIX_PORT": str(sock), "SLURM_CONF": str(conf)}
        self._spawn("slurmdbd", "/usr/sbin/slurmdbd", "-D", env=env)
        self._wait(self._dbd_listens, "slurmdbd")

    def _dbd_listens(self) -> bool:
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.ports[2])) == 0

    def _write_conf(self) -> None:
        f = self.folder
        for i in range(self.gpus):
            # NVIDIA's device numbers, without a driver. A copy of /dev/null would lose every job its /dev/null.
            os.mknod(f / "dev" / f"gpu{i}", 0o20666, os.makedev(195, i))
        gres = f"NodeName={self.host} Name=gpu Type=h200 File={f}/dev/gpu[0-{self.gpus - 1}]\n" if self.gpus else ""
        (f / "gres.conf").write_text(gres)
        if self.cgroups:
            lines = ["CgroupPlugin=cgroup/v1", "CgroupMountpoint=/sys/fs/cgroup", "ConstrainRAMSpace=yes", "ConstrainDevices=yes"]
            (f / "cgroup.conf").write_text("\n".join(lines) + "\n")
        if self.accounting:
            store = "slurmdbd"
            store += f"\nAccountingStorageHost=127.0.0.1\nAccountingStoragePort={self.ports[2]}\nAccountingStoragePass={self._munge}"
        else:
            store = "none"
        disk = self._local_disk() if self.local_disk else ""
        self.conf.write_text(f"""ClusterName=aframe
SlurmctldHost={self.host}(127.0.0.1)
SlurmctldPort={self.ports[0]}
SlurmdPort={self.ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={self._munge},cred_expire=5
CredType=cred/munge
StateSaveLocation={f}/state
SlurmdSpoolDir={f}/spool
SlurmctldPidFile={f}/slurmctld.pid
SlurmdPidFile={f}/slurmd.pid
SlurmctldLogFile={f}/slurmctld.log
SlurmdLogFile={f}/slurmd.log
ProctrackType=proctrack/{"cgroup" if self.cgroups else "linuxproc"}
TaskPlugin=task/{"cgroup" if self.cgroups else "none"}
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=UsePss{"" if self.cgroups else ",OverMemoryKill"}
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=100000
KillWait=2
MinJobAge={self.memory_s}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ReturnToService=2
MpiDefault=none
GresTypes=gpu
# Control groups carry the id of the job: two clusters on one machine must not count alike.
FirstJobId={random.randrange(10_000, 900_000)}
AccountingStorageType=accounting_storage/{store}
NodeName={self.host} NodeAddr=127.0.0.1 CPUs={self.cpus} RealMemory={self.memory_mb} {f"Gres=gpu:h200:{self.gpus}" if self.gpus else ""}
PartitionName=cpu Nodes={self.host} Default=YES DefaultTime=00:10:00 MaxTime=1-00:00:00 State=UP
PartitionName=gpu Nodes={self.host} DefaultTime=00:10:00 MaxTime=1-00:00:00 State=UP
{disk}""")

    def _local_disk(self) -> str:
        """Lines of slurm.conf: a folder is made before a job, named in its environment, and removed after it."""
        local = self.folder / "local"
        local.mkdir(mode=0o755)
        scripts = {
            "Prolog": f'mkdir -p "{local}/$SLURM_JOB_ID" && chown "$SLURM_JOB_UID" "{local}/$SLURM_JOB_ID"',
            "TaskProlog": f'echo "export SLURM_TMPDIR={local}/$SLURM_JOB_ID"',
            "Epilog": f'case "$SLURM_JOB_ID" in [0-9]*) rm -rf "{local}/$SLURM_JOB_ID";; esac',
        }
        for name, text in scripts.items():
            path = self.folder / name.lower()
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)
        return "".join(f"{name}={self.folder / name.lower()}\n" for name in scripts) + "PrologFlags=Alloc\n"
