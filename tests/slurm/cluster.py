"""A real Slurm on this machine: one controller and two node daemons, all of their files in one folder, gone when it is
stopped.

It needs `slurmctld`, `slurmd` and `munged` (Debian: slurm-wlm and munge). Nothing in /etc is read or written.
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
NODES = ("n1", "n2")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=15
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0
ReturnToService=2
JobRequeue=1
KillWait=20
MessageTimeout=60
SlurmdTimeout=0
UnkillableStepTimeout=600
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000 Gres=gpu:1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=4000 Gres=gpu:1
PartitionName=debug Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
"""`cred_expire` is how long a requeued job waits at least (by default two minutes), and how late a message may be read.
A node whose machine stands still for a while is neither given up nor drained. The GPUs are files that nobody opens."""


def missing_programs() -> list[str]:
    """What of Slurm is not installed."""
    return [name for name in PROGRAMS if _program(name) is None]


def wait_until(
    condition: Callable[[], bool], what: str, seconds: float, explain: Callable[[], str] = lambda: ""
) -> None:
    """Look again until it holds; AssertionError naming `what`, and what explains it, after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s\n{explain()}"
        time.sleep(0.2)


class Cluster:
    """The running Slurm."""

    def __init__(self, folder: Path, project: Path) -> None:
        """Start it. Args: folder: for its files; project: the root of a checkout, where jobs are submitted."""
        self.folder, self.project = folder, project
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        self.environment = {**clean, "SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        host = socket.gethostname().split(".")[0]
        text = CONFIGURATION.format(host=host, ports=_free_ports(3), folder=folder, user=getpass.getuser())
        (folder / "slurm.conf").write_text(text)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self._start("munged", *(f"--{option}={folder / f'munge.{ending}'}" for option, ending in files.items()))
        self._start("slurmctld", "-c")
        for node in NODES:
            self._start("slurmd", "-N", node)
        wait_until(lambda: self.run("sinfo", "-h", "-o", "%T").split() == ["idle"], "two idle nodes", 60)

    def stop(self) -> None:
        """End all jobs and daemons."""
        subprocess.run(
            ["scancel", "--full", "--signal=KILL", "--user", getpass.getuser()], env=self.environment, check=False
        )
        subprocess.run(["scancel", "--user", getpass.getuser()], env=self.environment, check=False)
        wait_until(lambda: not self.run("squeue", "-h"), "an empty queue", 60)
        for name in (*NODES, "controller", "munge"):
            pid = int((self.folder / f"{name}.pid").read_text())
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda pid=pid: _has_ended(pid), f"the end of {name}", 60)

    def run(self, *command: str, **variables: str) -> str:
        """A command in the project; what it printed on standard output."""
        environment = {**self.environment, **variables}
        done = subprocess.run(command, cwd=self.project, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def condition(self) -> str:
        """What the queue, the nodes and the controller say, for the message of a test that waits in vain."""
        said = [self.run("squeue", "-o", "%i %j %T %R"), self.run("sinfo", "-N", "-o", "%N %T %E")]
        said += [path.read_text()[-2_000:] for path in sorted(self.folder.glob("*.log"))]
        return "\n".join(said)

    def submit(self, script: str, options: Sequence[str], arguments: Sequence[str], **variables: str) -> "Job":
        """Submit a batch script; `variables` join its environment."""
        small = ["--parsable", "--cpus-per-task=1", "--time=30", f"--output={self.project}/job-%j.out", *options]
        return Job(self, self.run("sbatch", *small, script, *arguments, **variables))

    def _start(self, program: str, *arguments: str) -> None:
        path = _program(program)
        assert path is not None
        said = self.folder / f"{program}.out"  # a file: daemons keep what they inherit open
        with said.open("a") as output:
            done = subprocess.run(
                [path, *arguments], env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        assert done.returncode == 0, f"{program}: {said.read_text()}"


class Job:
    """A submitted job."""

    def __init__(self, cluster: Cluster, number: str) -> None:
        self.cluster, self.number = cluster, number

    @property
    def log(self) -> str:
        path = self.cluster.project / f"job-{self.number}.out"
        return path.read_text() if path.exists() else ""

    def field(self, name: str) -> str:
        """What `scontrol show job` says."""
        words = self.cluster.run("scontrol", "-o", "show", "job", self.number).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def wait(self, state: str, seconds: float = 300) -> None:
        """Wait until the job is in this state; it may not end in another."""
        ends = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"} - {state}

        def arrived() -> bool:
            now = self.field("JobState")
            assert now not in ends, f"job {self.number} is {now}:\n{self.log}"
            return now == state

        wait_until(
            arrived,
            f"job {self.number} {state}",
            seconds,
            lambda: f"its log:\n{self.log}\n{self.cluster.condition()}",
        )

    def wait_for_line(self, text: str, seconds: float = 300) -> None:
        """Wait until its log has this text."""
        wait_until(
            lambda: text in self.log, f"'{text}' in the log of job {self.number}", seconds, self.cluster.condition
        )

    def process(self, rank: int) -> int:
        """The process of one of its ranks."""
        wanted = {f"SLURM_JOB_ID={self.number}", f"RANK={rank}"}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                is_rank = wanted <= set((folder / "environ").read_text(errors="replace").split("\0"))
                if is_rank and "pretrain.train" in (folder / "cmdline").read_text():
                    return int(folder.name)
            except OSError:  # it has ended, or is not ours
                continue
        raise AssertionError(f"job {self.number} has no process of rank {rank}")


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def _has_ended(pid: int) -> bool:
    """Whether the process is gone, or is only waited for by nobody."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
