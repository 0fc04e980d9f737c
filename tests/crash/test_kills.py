"""kill -9 before every call that changes the disk, in whole deployments: it ends as if nothing had been.

A preload library counts the calls and kills; the agent is the real one (journal, slots, store, outbox, loop
and lanes on threads), its broker, trial and application are twins. docs/crash-safety.md has the matrix.
"""

from __future__ import annotations

import collections
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.crash.matrix import Found, Plan
from tests.crash.native import built
from tests.crash.scenarios import SCENARIOS

ROOT = Path(__file__).parent.parent.parent
POINTS, PAIRS = 5, 1


@pytest.fixture(scope="session")
def killpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("killpoint", tmp_path_factory.mktemp("native"))


def crash(library: Path, plan: Plan) -> Found:
    """Runs the matrix in a process with the library loaded before libc."""
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    command = [sys.executable, "-m", "tests.crash.matrix", msgspec.json.encode(plan).decode()]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return msgspec.json.decode(done.stdout, type=Found)


def say(name: str, found: Found) -> None:
    of = f"{found.tried} kills over {found.total} points"
    sys.stdout.write(f"crash matrix {name}: {of}, {len(found.violations)} violations\n")


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_at_a_sample_of_points_changes_nothing(killpoint: Path, name: str) -> None:
    seed = int(os.environ.get("SHALLOP_SEED", "1"))
    found = crash(killpoint, Plan(scenario=name, points=POINTS, pairs=PAIRS, seed=seed))
    say(name, found)
    assert found.tried >= POINTS
    assert found.violations == []


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_at_every_point_changes_nothing(killpoint: Path, name: str) -> None:
    found = crash(killpoint, Plan(scenario=name, pairs=25, storms=6))
    say(name, found)
    # A call whose turn comes later than the run that was counted is not reached: threads take turns.
    assert found.tried >= found.total - 5
    assert found.violations == []


def test_the_matrix_covers_each_kind_of_call(killpoint: Path) -> None:
    names = crash(killpoint, Plan(scenario="update", points=0)).names
    kinds = {name.partition(" ")[0] for name in names}
    assert {"write", "fsync", "syncfs", "rename", "link", "symlink", "unlink", "mkdir", "rmdir"} <= kinds
    assert "open64" in kinds or "open" in kinds


@pytest.mark.parametrize(
    ("mutant", "calls", "words"),
    [
        ("link_in_two_steps", "symlink", "has no current"),
        ("journal_in_place", "write /journal.json", "the journal: neither journal nor its copy"),
        ("believing_a_directory", "write /models", "is incomplete"),
        ("no_tidying_at_boot", "rmdir", "was left"),
    ],
)
def test_the_matrix_finds_a_planted_mistake(killpoint: Path, mutant: str, calls: str, words: str) -> None:
    scenario = "refused_trial" if mutant == "no_tidying_at_boot" else "update"
    # Which call a number hits depends on whose turn it is: on a busy machine two points may miss the mistake.
    plan = Plan(scenario=scenario, points=6, calls=calls, mutant=f"tests.crash.mutants:{mutant}")
    found = crash(killpoint, plan)
    assert any(words in violation for violation in found.violations), found.violations


CALLS = (
    "write,pwrite64,writev,sendfile,copy_file_range,ftruncate,truncate,fsync,fdatasync,syncfs,sync_file_range,"
    "fallocate,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,"
    "open,openat,creat"
)
KINDS = {"open64": "open", "openat": "open", "openat64": "open", "creat": "open", "unlinkat": "unlink",
         "mkdirat": "mkdir", "rmdir": "unlink", "renameat": "rename", "renameat2": "rename", "linkat": "link",
         "symlinkat": "symlink"}  # fmt: skip


@pytest.mark.full
def test_no_call_is_missed(killpoint: Path, tmp_path: Path) -> None:
    """Seen by strace: the run whose calls the library counts makes as many of each kind."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: apt-get install strace")
    plan = msgspec.json.encode(Plan(scenario="falls_back", points=0)).decode()
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-s", "4096", "-o", str(trace), "-e", f"trace={CALLS}"]
    command += ["env", f"LD_PRELOAD={killpoint}", sys.executable, "-m", "tests.crash.matrix", plan]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    names = msgspec.json.decode(done.stdout, type=Found).names
    ours = collections.Counter(KINDS.get(kind, kind) for kind in (name.partition(" ")[0] for name in names))
    lines = trace.read_text(errors="replace").splitlines()
    theirs: collections.Counter[str] = collections.Counter()
    for line in lines:
        found = re.match(r"(\d+) +(\w+)\((.*)", line)
        # The matrix itself, which copies the template and removes what is left, is the first process.
        if found is None or found[1] == lines[0].split()[0]:
            continue
        kind = KINDS.get(found[2], found[2])
        where = found[3].partition('"')[0] if kind == "write" else found[3]
        if "/whole/state" in where and (kind != "open" or "O_CREAT" in where or "O_TRUNC" in where):
            theirs[kind] += 1
    assert ours == theirs
