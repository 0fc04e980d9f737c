"""The lock that agents of one machine share, whichever user each of them runs as."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.systemd.units import ROOT

PROGRAM = """
import os, sys, threading
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from agent.adapters.locks import MachineLock
os.umask(0o027)
if int(sys.argv[3]) != os.geteuid():
    os.setgroups([]), os.setgid(int(sys.argv[3])), os.setuid(int(sys.argv[3]))
with MachineLock(Path(sys.argv[1])).hold(threading.Event()):
    print("held")
"""


def hold_as(uid: int, lock: Path) -> str:
    """What another user's agent says, with the umask of the unit."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(lock), str(ROOT), str(uid)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users: sudo make test")
def test_agents_of_several_users_share_the_lock() -> None:
    """As in /run/lock: everyone may write there, and nobody may open for creation what another one made."""
    folder = Path(f"/tmp/shallop-lock-{os.getpid()}")
    folder.mkdir()
    folder.chmod(0o1777)
    lock = folder / "shallop-trial.lock"
    try:
        said = [hold_as(uid, lock) for uid in (65533, 65534, 0)]
        assert said == ["held\n"] * 3, said
    finally:
        lock.unlink(missing_ok=True)
        folder.rmdir()


def test_a_link_in_the_locks_place_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.symlink_to(tmp_path / "elsewhere")
    assert "trial_lock" in hold_as(os.geteuid(), lock)
    assert not (tmp_path / "elsewhere").exists()
