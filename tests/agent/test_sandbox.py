"""What a worker that was taken over can do: nothing that anybody would notice."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.adapters.trial_process import TrialProcess
from agent.errors import FinalError
from agent.worker import landlock, sandbox, seccomp, syscalls
from agent.worker.job import TrialJob
from agent.worker.limits import WorkerLimits
from tests.agent.hostile import taken_over, what_it_told
from tests.agent.models import good_job
from tests.agent.tflite import one_operator
from tests.conftest import ROOT
from tests.device_trees import build

LIMITS = WorkerLimits(wall_s_max=60.0)
LANDLOCK = pytest.mark.skipif(
    landlock.abi() == 0, reason="this kernel has no Landlock; boot one with landlock in CONFIG_LSM or lsm="
)


def outcome(
    folder: Path, body: str, job: TrialJob | None = None, limits: WorkerLimits = LIMITS
) -> FinalError:
    """How the trial of a worker that runs `body` ends."""
    python = taken_over(folder / "python", body)
    with pytest.raises(FinalError) as raised:
        TrialProcess(folder / "scratch", limits, python).run(job or good_job(folder), threading.Event())
    assert list((folder / "scratch").iterdir()) == []
    return raised.value


def attempts(folder: Path, body: str) -> dict[str, str]:
    error = outcome(folder, body)
    assert error.code == "told", error
    return what_it_told(error)


def test_no_socket_of_any_family_can_be_opened(tmp_path: Path) -> None:
    told = attempts(
        tmp_path,
        """
        import ctypes, socket
        for family in ("AF_INET", "AF_INET6", "AF_NETLINK", "AF_UNIX", "AF_PACKET"):
            attempt(family, lambda: socket.socket(getattr(socket, family), socket.SOCK_DGRAM))
        libc = ctypes.CDLL(None, use_errno=True)
        def ring():
            if libc.syscall(425, 1, None) < 0 and ctypes.get_errno() == 1:
                raise PermissionError
        attempt("io_uring", ring)
        """,
    )
    assert told == dict.fromkeys(
        ["AF_INET", "AF_INET6", "AF_NETLINK", "AF_UNIX", "AF_PACKET", "io_uring"], "PermissionError"
    )


def test_no_process_can_be_started_nor_touched(tmp_path: Path) -> None:
    told = attempts(
        tmp_path,
        """
        import resource, signal, subprocess
        daemon = os.getppid()
        attempt("fork", os.fork)
        attempt("spawn", lambda: subprocess.Popen(["/bin/sleep", "1000"]))
        attempt("exec", lambda: os.execv("/bin/true", ["true"]))
        attempt("kill", lambda: os.kill(daemon, signal.SIGKILL))
        attempt("kill all", lambda: os.kill(-1, signal.SIGKILL))
        attempt("leave the group", lambda: os.setpgid(0, os.getsid(0)))
        attempt("limit", lambda: resource.prlimit(daemon, resource.RLIMIT_FSIZE, (0, 0)))
        attempt("own limit", lambda: resource.prlimit(os.getpid(), resource.RLIMIT_CORE, (0, 0)))
        attempt("slow it down", lambda: os.setpriority(os.PRIO_PROCESS, daemon, 19))
        attempt("own thread", lambda: __import__("threading").Thread(target=int).start())
        """,
    )
    assert told.pop("own limit") == told.pop("own thread") == "done"
    assert set(told.values()) == {"PermissionError"}
    assert len(told) == 8


@LANDLOCK
def test_nobody_elses_file_can_be_read(tmp_path: Path) -> None:
    secret = tmp_path.parent / f"{tmp_path.name}-secret"
    secret.write_text("password")
    told = attempts(
        tmp_path,
        f"""
        read = lambda path: open(path, "rb").read(1)
        attempt("shadow", lambda: read("/etc/shadow"))
        attempt("passwd", lambda: read("/etc/passwd"))
        attempt("secret", lambda: read({str(secret)!r}))
        attempt("tests", lambda: read({str(ROOT / "tests/conftest.py")!r}))
        attempt("daemon's environment", lambda: read(f"/proc/{{os.getppid()}}/environ"))
        attempt("daemon's memory", lambda: read(f"/proc/{{os.getppid()}}/mem"))
        attempt("own model", lambda: read(job.candidate.model_path))
        attempt("shard", lambda: read(job.shards[0]))
        attempt("sensors", lambda: read("/proc/meminfo"))
        """,
    )
    for own in ("own model", "shard", "sensors"):
        assert told.pop(own) == "done"
    assert set(told.values()) == {"PermissionError"}
    assert len(told) == 6


def test_nothing_can_be_written_anywhere(tmp_path: Path) -> None:
    job = good_job(tmp_path)
    model = Path(job.candidate.model_path)
    before = model.read_bytes(), model.stat().st_mode, model.stat().st_mtime_ns
    error = outcome(
        tmp_path,
        f"""
        model, folder = job.candidate.model_path, {str(tmp_path)!r}
        attempt("overwrite", lambda: open(model, "r+b"))
        attempt("append", lambda: open(model, "ab"))
        attempt("truncate", lambda: os.truncate(model, 0))
        attempt("remove", lambda: os.remove(model))
        attempt("rename", lambda: os.rename(model, model + ".gone"))
        attempt("link", lambda: os.link(model, model + ".too"))
        attempt("symlink", lambda: os.symlink(model, model + ".sym"))
        attempt("chmod", lambda: os.chmod(model, 0))
        attempt("chown", lambda: os.chown(model, 1, 1))
        attempt("utime", lambda: os.utime(model, (0, 0)))
        attempt("setxattr", lambda: os.setxattr(model, "user.x", b"y"))
        attempt("new", lambda: open(folder + "/new", "wb"))
        attempt("mkdir", lambda: os.mkdir(folder + "/dir"))
        attempt("mknod", lambda: os.mkfifo(folder + "/fifo"))
        attempt("scratch", lambda: open("more", "wb"))
        attempt("temporary", lambda: open("/tmp/shallop-test", "wb"))
        attempt("shared memory", lambda: open("/dev/shm/shallop-test", "wb"))
        attempt("lock", lambda: __import__("fcntl").flock(os.open(model, os.O_RDONLY), 2))
        """,
        job,
    )
    told = what_it_told(error)
    assert set(told.values()) == {"PermissionError"}
    assert len(told) == 18
    assert (model.read_bytes(), model.stat().st_mode, model.stat().st_mtime_ns) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "python", "scratch", "shard.npz"]


def test_a_gigabyte_on_both_outputs_is_a_bounded_log_and_no_harm(tmp_path: Path) -> None:
    error = outcome(
        tmp_path,
        """
        for number in (1, 2):
            written = 0
            try:
                while written < 2**30:
                    written += os.write(number, b"noise " * 10000)
            except OSError as error:
                told.append(f"{number}: {type(error).__name__}")
        told.append(f"log: {os.fstat(2).st_size}")
        """,
        limits=WorkerLimits(wall_s_max=60.0, file_bytes_max=2**20),
    )
    assert error.code == "told"
    assert what_it_told(error) == {"2": "OSError", "log": str(2**20)}


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("os.abort()", "trial_crashed", "SIGABRT"),
        ("import ctypes; ctypes.string_at(0)", "trial_crashed", "SIGSEGV"),
        ("os._exit(0)", "trial_crashed", "exit code 0"),
        ("bytearray(2**40)", "trial_out_of_memory", "more memory"),
        ("kept = [bytearray(2**20) for _ in range(2**20)]", "trial_out_of_memory", "more memory"),
        ("os.closerange(0, 256)", "trial_crashed", "exit code"),
        ("files = [open('/dev/zero', 'rb') for _ in range(1000)]", "trial_crashed", "Too many open files"),
    ],
)
def test_each_way_to_break_has_its_name(tmp_path: Path, body: str, code: str, words: str) -> None:
    limits = WorkerLimits(wall_s_max=60.0, memory_bytes_max=2**29)
    error = outcome(tmp_path, body, limits=limits)
    assert (error.code, words in str(error)) == (code, True), error


def test_threads_without_end_stop_at_a_limit(tmp_path: Path) -> None:
    error = outcome(
        tmp_path,
        """
        import threading
        stay, count = threading.Event(), 0
        try:
            while count < 20000:
                threading.Thread(target=stay.wait, daemon=True).start()
                count += 1
        except RuntimeError:
            pass
        told.append("stopped: " + str(count < 20000))
        """,
    )
    assert what_it_told(error) == {"stopped": "True"}


def test_a_file_that_aborts_the_runtime_is_a_named_end(tmp_path: Path) -> None:
    """LiteRT aborts the whole process at an INT8 ADD whose tensors have no scales."""
    job = good_job(tmp_path)
    model = one_operator(tmp_path / "add.tflite", "ADD", {"x": "INT8", "y": "INT8"}, (0, 0))
    error = outcome(
        tmp_path,
        f"""
        from agent.worker.runtimes import find
        import numpy
        session = find("ai-edge-litert").load({str(model)!r}, 1, {{}})
        session.run({{"x": numpy.zeros((1, 1), numpy.int8)}})
        """,
        job,
    )
    assert error.code == "trial_crashed"
    assert "SIG" in str(error)


def test_the_pi_tool_is_asked_through_a_process_beside(tmp_path: Path) -> None:
    root = build(tmp_path / "root", "rpi5")
    error = outcome(
        tmp_path,
        f"""
        from pathlib import Path
        from agent.adapters import power, sensors, thermal
        root = Path({str(root)!r})
        sensor = power.find_sensor(root)
        told.append(f"sensor: {{sensor.name}} {{sensor.watts():.3f}}")
        told.append(f"bits: {{thermal.throttling(root).past}}")
        told.append(f"other: {{sensors.vcgencmd(root, 'otp_dump')}}")
        told.append(f"again: {{sensors.vcgencmd(root, 'get_throttled').strip()}}")
        """,
        good_job_below(tmp_path, root),
    )
    told = what_it_told(error)
    assert told["sensor"].startswith("rpi5_pmic ")
    assert told["bits"] == f"({0x50000},)"
    assert (told["other"], told["again"]) == ("None", "throttled=0x50000")


def good_job_below(folder: Path, root: Path) -> TrialJob:
    return replace(good_job(folder), system_root=str(root))


def test_a_guard_that_is_missing_is_noted_in_the_result(tmp_path: Path) -> None:
    path = tmp_path / "python"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from agent.worker import landlock, trial\n"
        "landlock.abi = lambda: 0\n"
        "sys.exit(trial.main(sys.argv[3:]))\n"
    )
    path.chmod(0o755)
    result = TrialProcess(tmp_path / "scratch", LIMITS, str(path)).run(good_job(tmp_path), threading.Event())
    assert len(result.notes) == 1
    assert result.notes[0].startswith("the worker ran without Landlock (")


@LANDLOCK
def test_with_all_guards_there_is_nothing_to_note(tmp_path: Path) -> None:
    job = good_job(tmp_path / "model")
    shard = tmp_path / "shard.npz"
    Path(job.shards[0]).rename(shard)
    job = replace(job, shards=(str(shard),))
    result = TrialProcess(tmp_path / "scratch", LIMITS).run(job, threading.Event())
    assert result.notes == ()


# --- each guard by itself, without privileges


def probe(body: str, *, user: int | None = None) -> str:
    """What a process of its own prints; as another user where this one is root."""
    become = f"os.setgroups([]); os.setgid({user}); os.setuid({user})" if user and os.getuid() == 0 else ""
    code = f"""
import ctypes, os, resource, socket, sys, threading
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from agent.worker import landlock, limits, sandbox, seccomp
def refused(deed):
    try:
        deed()
    except OSError:
        return 1
    return 0
{become}
{body}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_ordinary_user_needs_no_privilege() -> None:
    told = probe(
        """
missing = sandbox.confine()
print(os.getuid(), missing, refused(socket.socket), refused(os.fork), refused(lambda: os.listdir("/etc")))
""",
        user=65534,
    )
    user = 65534 if os.getuid() == 0 else os.getuid()
    if landlock.abi():
        assert told == f"{user} () 1 1 1"
    else:
        assert told.endswith("1 1 0")
        assert "Landlock" in told


def test_the_limit_on_tasks_bounds_and_is_taken_back_where_it_would_bound_too_much() -> None:
    told = probe(
        """
soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
honest, limits._tasks_of_user = limits._tasks_of_user, lambda: 0
limits._limit_tasks(1)  # this very process is one already, and not seen
print(resource.getrlimit(resource.RLIMIT_NPROC) == (soft, hard), end=" ")
limits._tasks_of_user = honest
seen = honest()
limits._limit_tasks(20)
soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
print(soft == hard, 1 <= hard - seen <= 20, end=" ")
stay = threading.Event()
try:
    for _ in range(50):
        threading.Thread(target=stay.wait, daemon=True).start()
except RuntimeError:
    print("bounded", end="", flush=True)
os._exit(0)
""",
        user=65533,
    )
    assert told == "True True True bounded"


@LANDLOCK
def test_landlock_alone_keeps_files_away(tmp_path: Path) -> None:
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen/file").write_text("x")
    (tmp_path / "hidden").write_text("x")
    told = probe(f"""
seccomp.no_new_privileges()
here = Path({str(tmp_path)!r})
said = landlock.restrict([here / "seen", here / "absent", here / "seen/file"], [])
print(said, refused((here / "seen/file").read_text), refused((here / "hidden").read_text),
      refused(lambda: (here / "seen/new").write_text("")), refused(lambda: os.unlink(here / "seen/file")))
""")
    assert told == "None 0 1 1 1"


def test_without_landlock_the_filter_alone_keeps_everything_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    told = probe(f"""
landlock.restrict = lambda *places: "switched off"
here = Path({str(tmp_path)!r})
missing = sandbox.confine()
print(missing, refused((here / "file").read_text), refused(lambda: (here / "file").write_text("y")),
      refused(lambda: (here / "new").write_text("")), refused(lambda: os.unlink(here / "file")),
      refused(lambda: os.rename(here / "file", here / "gone")), refused(lambda: os.mkdir(here / "folder")))
""")
    assert told == "('Landlock (switched off)',) 0 1 1 1 1 1"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_who_has_no_capability_asks_for_no_change() -> None:
    """A unit of systemd that has taken all of them refuses capset itself."""
    told = probe(
        """
sandbox.drop_capabilities()
libc = ctypes.CDLL(None)
filters = seccomp.program
seccomp.program = lambda *a, **k: (*filters(*a, **k)[:4], *seccomp._deny({"x86_64": 126}.get(a[0], 91)),
                                   (0x06, 0, 0, 0x7FFF0000))
seccomp.no_new_privileges()
print(seccomp.load(writes=True), sandbox.drop_capabilities())
""",
        user=65534,
    )
    assert told == "None True"


@LANDLOCK
def test_a_worker_that_must_write_does_so_in_its_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    told = probe(f"""
here = Path({str(tmp_path)!r})
missing = sandbox.confine([], [here / "out"])
print(missing, refused(lambda: (here / "out/new").write_text("x")),
      refused(lambda: os.rename(here / "out/new", here / "out/final")),
      refused(lambda: (here / "other").write_text("x")), refused(socket.socket),
      refused(lambda: os.chmod(here / "out/final", 0)))
""")
    assert told == "() 0 0 1 1 1"
    assert (tmp_path / "out/final").read_text() == "x"


@pytest.mark.skipif(os.getuid() != 0, reason="only root has capabilities to lose; run as root")
def test_root_keeps_no_right_beyond_others() -> None:
    told = probe("""
print(sandbox.drop_capabilities(), [line for line in open("/proc/self/status") if line.startswith("CapEff")])
""")
    assert told == "True ['CapEff:\\t0000000000000004\\n']"


# --- the filter's program, interpreted


def answered(program: tuple[seccomp.Instruction, ...], machine: str, number: int, *arguments: int) -> int:
    """What the kernel's interpreter of classic BPF gives for a call (Documentation/networking/filter.rst)."""
    audit = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]
    data = {0: number, 4: audit}
    for index, argument in enumerate((*arguments, 0, 0, 0)):
        data[16 + 8 * index] = argument & 0xFFFFFFFF
    value = position = 0
    while True:
        code, true, false, k = program[position]
        position += 1
        if code == 0x06:
            return k
        if code == 0x20:
            value = data[k]
        else:
            holds = {0x15: value == k, 0x25: value > k, 0x45: bool(value & k)}[code]
            position += true if holds else false


ALLOW, DENY, ABSENT = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
HARMLESS = {"x86_64": (0, 1, 9, 202, 12, 3), "aarch64": (63, 64, 222, 98, 214, 57)}
"""read, write, mmap, futex, brk, close."""


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("machine", syscalls.MACHINES)
def test_the_program_answers_each_call_as_the_tables_say(machine: str, writes: bool) -> None:
    which, pid = syscalls.MACHINES.index(machine), 4711
    program = seccomp.program(machine, pid, writes=writes)

    def says(number: int | None, *arguments: int) -> int:
        return answered(program, machine, number or 0, *arguments)

    for number in HARMLESS[machine]:
        assert says(number) == ALLOW
    for table in (syscalls.NETWORK, syscalls.PROCESSES, syscalls.KERNEL, syscalls.ATTRIBUTES):
        assert {says(n[which]) for n in table.values() if n[which] is not None} == {DENY}
    files = {says(n[which]) for n in syscalls.FILES.values() if n[which] is not None}
    assert files == {ALLOW if writes else DENY}
    assert {says(n[which]) for n in syscalls.ABSENT.values()} == {ABSENT}
    assert says(syscalls.NEWEST) == ALLOW
    assert says(syscalls.NEWEST + 1) == says(0x40000000 + 41) == ABSENT
    clone, prlimit, prctl = syscalls.CLONE[which], syscalls.PRLIMIT64[which], syscalls.PRCTL[which]
    assert says(clone, 0x3D0F00) == ALLOW  # as pthread_create asks
    assert says(clone, 0x01200011) == says(clone, 0x4111) == DENY  # as fork and vfork ask
    for numbers in syscalls.SIGNALLING.values():
        assert [says(numbers[which], who) for who in (pid, pid + 1, 0, -1)] == [ALLOW, DENY, DENY, DENY]
    assert [says(prlimit, who) for who in (0, pid, pid + 1)] == [ALLOW, ALLOW, DENY]
    assert [says(prctl, what) for what in (1, 38, 15)] == [DENY, ALLOW, ALLOW]
    for name, numbers in syscalls.OPENING.items():
        before = (0,) * syscalls.OPEN_FLAGS[name]
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_RDWR | os.O_CLOEXEC):
            if numbers[which] is not None:
                assert says(numbers[which], *before, flags) == (ALLOW if writes else DENY)
        if numbers[which] is not None:
            assert says(numbers[which], *before, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY) == ALLOW


@given(st.integers(0, 2**32 - 1), st.sampled_from(syscalls.MACHINES), st.booleans())
def test_every_number_has_an_answer(number: int, machine: str, writes: bool) -> None:
    program = seccomp.program(machine, 1, writes=writes)
    assert answered(program, machine, number) in {ALLOW, DENY, ABSENT}


def test_another_machines_calls_end_the_process() -> None:
    program = seccomp.program("x86_64", 1, writes=False)
    assert answered(program, "aarch64", 0) == 0x80000000


@pytest.mark.parametrize(
    ("header", "which"), [("x86_64-linux-gnu/asm/unistd_64.h", 0), ("asm-generic/unistd.h", 1)]
)
def test_the_numbers_are_the_headers(header: str, which: int) -> None:
    path = Path("/usr/include") / header
    if not path.is_file():
        pytest.skip(f"{path} is not here; apt-get install linux-libc-dev on x86-64 brings it")
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text())[::-1])
    tables = (
        syscalls.NETWORK, syscalls.PROCESSES, syscalls.KERNEL, syscalls.ATTRIBUTES, syscalls.FILES,
        syscalls.ABSENT, syscalls.OPENING, syscalls.SIGNALLING,
    )  # fmt: skip
    checked = 0
    for name, numbers in [pair for table in tables for pair in table.items()]:
        if name in found:
            assert str(numbers[which]) == found[name], name
            checked += 1
        else:  # not on this machine, or newer than the header
            assert (numbers[which] or 450) >= 450, name
    assert checked > 90


def test_the_libraries_of_an_unusual_prefix_are_found_where_the_loaded_ones_lie() -> None:
    import _ctypes  # noqa: PLC0415 - a library, wherever this interpreter keeps its own

    assert Path(_ctypes.__file__).resolve().parent in sandbox._mapped()


def test_a_machine_without_a_table_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        machine = "riscv64"

    monkeypatch.setattr(os, "uname", Other)
    assert "riscv64" in (seccomp.load(writes=False) or "")
    assert ctypes.sizeof(ctypes.c_void_p) in {4, 8}
