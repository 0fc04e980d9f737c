"""Power cuts on ext4: what no flush followed is lost, in part or as a whole, and the device recovers.

Needs root, /dev/fuse, loop devices and libfuse's headers; skipped by name where one is missing. In memory, so
that no disk of this machine is worn. docs/crash-safety.md says what this proves and what it does not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.crash.matrix import Found
from tests.crash.native import built
from tests.crash.power import FLUSH, HEAD, PowerPlan, pieces, segments

ROOT = Path(__file__).parent.parent.parent
CASES = [
    ("first_install", ""),
    ("update", ""),
    ("update", "noauto_da_alloc"),
    ("falls_back", "noauto_da_alloc"),
    ("rollback", ""),
]
SEED = int(os.environ.get("SHALLOP_SEED", "1"))


@pytest.fixture(scope="session")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> str:
    missing = [
        name
        for name in ("mkfs.ext4", "losetup", "blockdev", "mount", "fusermount3")
        if shutil.which(name) is None
    ]
    if missing:
        pytest.skip(f"{missing[0]} is not installed: apt-get install e2fsprogs mount fuse3")
    if os.geteuid() != 0:
        pytest.skip("power cuts need root, to mount")
    if not Path("/dev/fuse").exists() or not Path("/dev/loop-control").exists():
        pytest.skip("power cuts need /dev/fuse and loop devices; this machine or container has none")
    free = subprocess.run(["losetup", "--find"], capture_output=True, text=True, check=False)
    if free.returncode:
        pytest.skip(f"power cuts need a free loop device: {free.stderr.strip()}")
    return str(built("recorder", tmp_path_factory.mktemp("native"), shared=False, package="fuse3"))


def cut(plan: PowerPlan) -> Found:
    command = [sys.executable, "-m", "tests.crash.power", msgspec.json.encode(plan).decode()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = msgspec.json.decode(done.stdout, type=Found)
    line = f"{found.tried} of {found.total} states, {len(found.violations)} violations"
    sys.stdout.write(f"power-cut matrix {plan.scenario} {plan.options or 'ext4 defaults'}: {line}\n")
    return found


@pytest.mark.parametrize(("scenario", "options"), CASES)
def test_a_sample_of_power_cuts_changes_nothing(recorder: str, scenario: str, options: str) -> None:
    found = cut(PowerPlan(scenario=scenario, recorder=recorder, states=3, options=options, seed=SEED))
    assert found.tried == 3
    assert found.violations == []


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("scenario", "options"), CASES)
def test_every_power_cut_changes_nothing(recorder: str, scenario: str, options: str) -> None:
    found = cut(PowerPlan(scenario=scenario, recorder=recorder, options=options))
    assert found.tried == found.total
    assert found.violations == []


@pytest.mark.parametrize("mutant", ["no_fsync_of_folders", "no_fsync_of_files"])
def test_a_missing_fsync_is_found(recorder: str, mutant: str) -> None:
    plan = PowerPlan(
        scenario="update", recorder=recorder, states=40, options="noauto_da_alloc", stop_at=1,
        mutant=f"tests.crash.mutants:{mutant}",
    )  # fmt: skip
    assert cut(plan).violations


def test_the_log_is_cut_at_its_flushes() -> None:
    write = HEAD.pack(4096, 5) + b"hello"
    flush = HEAD.pack(FLUSH, FLUSH)
    first, second, rest = segments(write + write + flush + flush + write)
    assert ([len(s.writes) for s in (first, second, rest)], first.end) == ([2, 0, 1], 2 * len(write))
    assert rest.writes == [(4096, b"hello")]
    assert pieces([(0, b"x" * 5000)]) == [(0, b"x" * 4096), (4096, b"x" * 904)]
