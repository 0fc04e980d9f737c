"""A machine of our own with a real systemd as process 1, over the files of this one, thrown away afterwards.

For: what only a running systemd shows: readiness, watchdog, restarts, sockets, sandboxes, upgrades in place.
It is systemd-nspawn over an overlay of `/` whose upper layer is memory. Mounts and processes live in
namespaces whose first process dies with this one, so nothing is left behind, however a test ends.
Not for: limits on memory, which nspawn does not enforce here (FACTS.md section 6), nor for other kernels.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import pytest

from tests.systemd.units import ROOT, require, unavailable

LOCK = Path("/tmp/shallop-nspawn.lock")
SHARED = "/srv/shared"
NEEDED = (
    ("systemd-nspawn", "systemd-container"), ("mosquitto", "mosquitto"), ("dbus-daemon", "dbus"),
    ("polkitd", "polkitd"), ("python3", "python3-venv"),
)  # fmt: skip
_BOOT_S = 60.0
_POLL_S = 0.05
_HOLD = """
set -e
mount -t tmpfs -o mode=755 tmpfs {place}
mkdir {place}/upper {place}/work {place}/root
mount -t overlay overlay -o lowerdir=/,upperdir={place}/upper,workdir={place}/work {place}/root
mkdir -p /run/systemd/nspawn
mount -t tmpfs tmpfs /run/systemd/nspawn
echo ready
exec sleep infinity
"""


def _child(pid: int) -> int:
    """The first process that another one started."""
    try:
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    except (OSError, IndexError):
        raise AssertionError(f"process {pid} has no child") from None


def require_nspawn() -> None:
    """Skips by name where no machine can be booted."""
    for program, package in NEEDED:
        require(program, package)
    if os.geteuid() != 0:
        pytest.skip("a machine is booted by root only: sudo make test")
    probe = ["unshare", "--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this container lets its root mount nothing, so no machine can be booted in it")


class Machine:
    """Boots when it is entered; `run` runs a command inside.

    Args:
        folder: of this test; `folder/shared` is `SHARED` inside.
    """

    def __init__(self, folder: Path) -> None:
        self.shared = folder / "shared"
        self.shared.mkdir(parents=True)
        self._place = folder / "machine"
        self._place.mkdir()
        self._console = folder / "console.log"
        self._lock: IO[str] | None = None
        self._holder: subprocess.Popen[str] | None = None
        self._nspawn: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._lock = LOCK.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # two at once would share names in the control groups
        try:
            self._hold()
            self.boot()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _hold(self) -> None:
        """A process whose mount namespace has the machine's files; they go with it."""
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "--pid",
             "--fork", "--kill-child=KILL", "--mount-proc", "sh", "-c", _HOLD.format(place=self._place)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        said = self._holder.stdout.readline()
        if said != "ready\n":
            unavailable(f"the machine's files cannot be mounted here: {said}{self._holder.stdout.read()}")
        # What this machine has enabled is no part of the test, nor is a login on a console.
        enabled = self.path("/etc/systemd/system")
        for wants in enabled.glob("*.wants"):
            shutil.rmtree(wants)
        for unit in ("getty.target", "systemd-networkd.service", "systemd-resolved.service"):
            (enabled / unit).unlink(missing_ok=True)
            (enabled / unit).symlink_to("/dev/null")

    def path(self, inside: str) -> Path:
        """Where a file of the machine is for this process."""
        assert self._holder is not None
        return Path(f"/proc/{_child(self._holder.pid)}/root{self._place}/root{inside}")

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        """Writes a file of the machine, with the directories above it."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)

    # --- power

    def boot(self) -> None:
        """Starts it and waits until systemd says that everything is up."""
        assert self._holder is not None
        command = [
            "nsenter", "--target", str(_child(self._holder.pid)), "--mount", "--pid",
            "systemd-nspawn", "--quiet", f"--directory={self._place}/root", "--boot", "--register=no",
            "--keep-unit", "--private-network", "--console=pipe", "--link-journal=no",
            "--machine=shallop-test", f"--bind-ro={ROOT}", f"--bind={self.shared}:{SHARED}",
            # Of what nspawn itself forbids, this is what a machine allows and the worker uses.
            "--system-call-filter=landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp",
            "systemd.unit=multi-user.target",
        ]  # fmt: skip
        with self._console.open("ab") as console:
            self._nspawn = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
            )
        self.wait("the machine to boot", self._is_up, _BOOT_S)

    def _is_up(self) -> bool:
        if self._nspawn is None or self._nspawn.poll() is not None:
            pytest.fail(f"the machine did not boot: {self._console.read_text(errors='replace')[-2000:]}")
        with contextlib.suppress(AssertionError):
            return self.run("systemctl", "is-system-running", check=False).stdout.strip() in {
                "running",
                "degraded",
            }
        return False

    def cut_power(self) -> None:
        """Every process of the machine is gone at once; its files stay."""
        if self._nspawn is None:
            return
        with contextlib.suppress(ProcessLookupError, AssertionError):
            os.kill(self.init, signal.SIGKILL)
        try:
            self._nspawn.wait(10)
        finally:
            self._nspawn.kill()
            self._nspawn.wait()
            self._nspawn = None

    def _end(self) -> None:
        self.cut_power()
        if self._holder is not None:
            self._holder.kill()
            self._holder.communicate()
        if self._lock is not None:
            self._lock.close()

    # --- inside

    @property
    def init(self) -> int:
        """Process id, outside, of the machine's systemd."""
        assert self._nspawn is not None
        return _child(_child(self._nspawn.pid))

    def run(
        self, *command: str, check: bool = True, timeout_s: float = 120.0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in the machine, as root and with nothing of this process's environment."""
        words = [f"{name}={text}" for name, text in environment.items()]
        result = subprocess.run(
            ["nsenter", "-t", str(self.init), "-m", "-u", "-i", "-n", "-p", "-C", "--wd", "env", "-i",
             "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", *words,
             *command],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        if check:
            said = f"{result.stdout[-3000:]}{result.stderr[-3000:]}"
            assert result.returncode == 0, f"{' '.join(command)} gave {result.returncode}: {said}"
        return result

    def shell(self, script: str) -> str:
        """Runs a script in the machine, for what it says."""
        return self.run("sh", "-ec", script).stdout

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", f"--property={name}", "--value", unit).stdout.strip()

    def journal(self, unit: str) -> str:
        """What a unit said."""
        self.run("journalctl", "--sync", check=False)
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}").stdout

    def wait(self, what: str, look: Callable[[], object], timeout_s: float = 30.0) -> None:
        """Polls `look` until it gives something true."""
        end_s = time.monotonic() + timeout_s
        while not look():
            assert time.monotonic() < end_s, f"waited {timeout_s:.0f} s in vain for {what}"
            time.sleep(_POLL_S)

    def wait_show(self, unit: str, name: str, value: str, timeout_s: float = 30.0) -> None:
        """Waits until a property of a unit has a value."""
        self.wait(f"{name}={value} of {unit}", lambda: self.show(unit, name) == value, timeout_s)

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """This thread, and those that it starts meanwhile, are in the machine's network."""
        libc = ctypes.CDLL(None, use_errno=True)

        def enter(namespace: str) -> None:
            with open(namespace, "rb") as file:  # noqa: PTH123 - a file descriptor for setns(2)
                if libc.setns(file.fileno(), 0x40000000) != 0:  # CLONE_NEWNET
                    raise OSError(ctypes.get_errno(), "setns")

        own = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            enter(f"/proc/{self.init}/ns/net")
            yield
        finally:
            enter(f"/proc/self/fd/{own}")
            os.close(own)
