"""What the doctor makes of facts: every row says what was found, how bad it is and what to do."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.doctor import broker, machine, places, sensing, software
from agent.doctor.finding import Finding, Status, exit_code, ok, problem, warning
from agent.doctor.machine import ClockFacts, DiskFacts, KernelFacts, MemoryFacts
from agent.doctor.places import PathFacts, Person, SlotFacts, StateFacts, may
from agent.doctor.sensing import SensorFacts
from agent.doctor.software import RuntimeFacts, RuntimeTry, SystemdFacts, TrustFacts
from agent.doctor.table import table

NOW = 1_795_000_000.0  # November 2026
DAY = 86400.0
GIB = 1024**3
OK, WARNING, PROBLEM, UNKNOWN = Status.OK, Status.WARNING, Status.PROBLEM, Status.UNKNOWN


def said(findings: list[Finding]) -> dict[str, Status]:
    """Every finding has words, and one that is bad says what to do."""
    for finding in findings:
        assert finding.detail
        if finding.status in {WARNING, PROBLEM}:
            assert finding.remedy, finding
    return {finding.name: finding.status for finding in findings}


@pytest.mark.parametrize(
    ("facts", "status", "word"),
    [
        (ClockFacts(now_s=NOW, synchronised=True), OK, "synchronised"),
        (ClockFacts(now_s=NOW, synchronised=False), WARNING, "not synchronised"),
        (ClockFacts(now_s=NOW, synchronised=None), UNKNOWN, "does not tell"),
        (ClockFacts(now_s=3600, synchronised=True), PROBLEM, "1970"),
        (ClockFacts(now_s=2_208_988_800, synchronised=True), PROBLEM, "2040"),
        (ClockFacts(now_s=NOW, synchronised=True, newest_s=NOW + 3 * DAY), PROBLEM, "3 days before files"),
        (ClockFacts(now_s=NOW, synchronised=True, newest_s=NOW + 0.5 * DAY), OK, "synchronised"),
        (ClockFacts(now_s=NOW, synchronised=True, newest_s=NOW - 900 * DAY), OK, "synchronised"),
    ],
)
def test_the_clock(facts: ClockFacts, status: Status, word: str) -> None:
    (finding,) = machine.clock(facts)
    said([finding])
    assert finding.status is status
    assert word in finding.detail


DISK = DiskFacts(
    path="/var/lib/shallop", free_bytes=5 * GIB, total_bytes=30 * GIB, inodes_free=100_000,
    margin_bytes=16 * 1024**2, largest_bytes=20 * 1024**2, kind="ext4", options=("rw", "noatime"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "disk", "file_system"),
    [
        (DISK, OK, OK),
        (replace(DISK, largest_bytes=None), OK, OK),
        (replace(DISK, inodes_free=None), OK, OK),
        (replace(DISK, inodes_free=10), PROBLEM, OK),
        (replace(DISK, inodes_free=999), PROBLEM, OK),
        (replace(DISK, inodes_free=1000), OK, OK),
        (replace(DISK, free_bytes=DISK.margin_bytes), PROBLEM, OK),
        (replace(DISK, free_bytes=DISK.margin_bytes + 1, largest_bytes=None), OK, OK),
        (replace(DISK, free_bytes=DISK.margin_bytes + 40 * 1024**2 - 1), WARNING, OK),
        (replace(DISK, free_bytes=DISK.margin_bytes + 40 * 1024**2), OK, OK),
        (replace(DISK, read_only=True), OK, PROBLEM),
        (replace(DISK, kind="vfat"), OK, PROBLEM),
        (replace(DISK, kind="tmpfs"), OK, PROBLEM),
        (replace(DISK, kind="nfs4"), OK, WARNING),
        (replace(DISK, kind="overlay"), OK, WARNING),
        (replace(DISK, options=("rw", "nobarrier")), OK, WARNING),
        (replace(DISK, kind=None), OK, UNKNOWN),
    ],
)
def test_the_disk(facts: DiskFacts, disk: Status, file_system: Status) -> None:
    assert said(machine.disk(facts)) == {"disk": disk, "file_system": file_system}


PI = "console=tty1 cgroup_disable=memory root=PARTUUID=1"


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        (MemoryFacts(cmdline="quiet", controllers=("cpu", "memory")), OK),
        (MemoryFacts(cmdline=PI, controllers=("cpu", "pids")), WARNING),
        (MemoryFacts(cmdline=f"{PI} cgroup_enable=memory", controllers=("cpu", "memory")), OK),
        (MemoryFacts(cmdline=PI, controllers=None, v1_memory=False), WARNING),
        (MemoryFacts(cmdline="", controllers=None, v1_memory=True), OK),
        (MemoryFacts(cmdline="", controllers=None), UNKNOWN),
    ],
)
def test_the_memory_controller(facts: MemoryFacts, status: Status) -> None:
    assert said(machine.memory_cgroup(facts)) == {"memory_cgroup": status}


def test_the_remedy_names_the_boards_own_file() -> None:
    facts = MemoryFacts(cmdline=PI, controllers=("cpu",), boot_file="/boot/firmware/cmdline.txt")
    (finding,) = machine.memory_cgroup(facts)
    assert "cgroup_enable=memory" in finding.remedy
    assert "/boot/firmware/cmdline.txt" in finding.remedy


def test_the_kernel() -> None:
    full = KernelFacts(release="6.6", landlock_abi=4, seccomp=True)
    assert said(machine.kernel(full)) == {"landlock": OK, "seccomp": OK}
    assert said(machine.kernel(replace(full, landlock_abi=1)))["landlock"] is OK
    bare = KernelFacts(release="5.10", landlock_abi=0, seccomp=False, lsm=("capability", "apparmor"))
    assert said(machine.kernel(bare)) == {"landlock": WARNING, "seccomp": WARNING}
    assert "lsm=landlock,capability,apparmor" in machine.kernel(bare)[0].remedy


def test_sensors() -> None:
    assert "unknown)" not in sensing.sensors(SensorFacts())[0].detail
    assert "(Raspberry Pi 4)" in sensing.sensors(SensorFacts(board="Raspberry Pi 4"))[0].detail
    nothing = said(sensing.sensors(SensorFacts(board="Raspberry Pi 4")))
    assert nothing == {"power": UNKNOWN, "temperature": UNKNOWN, "throttling": UNKNOWN}
    fine = SensorFacts(
        power_sensor="rpi5_pmic", watts=3.456, temperature_c=48.5, throttled=False, throttled_before=False,
        firmware_bits=0,
    )  # fmt: skip
    assert set(said(sensing.sensors(fine)).values()) == {OK}
    assert "3.46 W" in sensing.sensors(fine)[0].detail
    assert sensing.sensors(fine)[2].detail == "not held back"
    alarm = replace(fine, throttled_before=None, firmware_bits=None)
    assert "before is not known" in sensing.sensors(alarm)[2].detail
    hot = replace(fine, temperature_c=80.0)
    assert said(sensing.sensors(hot))["temperature"] is WARNING
    weak = replace(fine, throttled=True, firmware_bits=0x50005)
    assert said(sensing.sensors(weak))["throttling"] is PROBLEM
    assert "under-voltage, throttled" in sensing.sensors(weak)[2].detail
    before = replace(fine, throttled_before=True, firmware_bits=0x80000)
    assert said(sensing.sensors(before))["throttling"] is WARNING
    assert "soft temperature limit" in sensing.sensors(before)[2].detail
    refused = replace(fine, power_sensor=None, watts=None, unreadable=("/sys/x/energy_uj",))
    assert said(sensing.sensors(refused))["power"] is WARNING
    silent = replace(fine, watts=None)
    assert said(sensing.sensors(silent))["power"] is WARNING


def test_runtimes() -> None:
    packages: dict[str, str | None] = {"numpy": "2.1.0", "msgspec": "0.20"}
    works = RuntimeTry(name="onnxruntime", version="1.31", load_ms=6.0)
    facts = RuntimeFacts(python="/x/python", python_version="3.11.2", packages=packages, tries=(works,))
    assert said(software.runtimes(facts)) == {"runtimes": OK, "runtime:onnxruntime": OK}
    assert said(software.runtimes(replace(facts, tries=()))) == {"runtimes": PROBLEM}
    assert said(software.runtimes(replace(facts, error="no such file"))) == {"runtimes": PROBLEM}
    lacks = replace(facts, packages={"numpy": None, "msgspec": "1"})
    assert said(software.runtimes(lacks)) == {"runtimes": PROBLEM}
    old = RuntimeTry(
        name="tflite-runtime", version="2.14", code="runtime_missing", detail="_ARRAY_API not found"
    )
    findings = software.runtimes(replace(facts, tries=(works, old)))
    assert said(findings)["runtime:tflite-runtime"] is PROBLEM
    assert "numpy 1" in findings[2].remedy
    assert "trial.python" in findings[2].remedy
    tight = replace(works, load_ms=None, code="trial_out_of_memory")
    assert "memory_bytes_max" in software.runtimes(replace(facts, tries=(tight,)))[1].remedy
    slow = replace(works, load_ms=None, code="trial_timeout")
    assert "dmesg" in software.runtimes(replace(facts, tries=(slow,)))[1].remedy


UNIT = {"LoadState": "loaded", "UnitFileState": "enabled", "ActiveState": "active", "SubState": "running",
        "WatchdogUSec": "1min", "NRestarts": "0"}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "statuses"),
    [
        ({}, [OK]),
        ({"LoadState": "not-found"}, [WARNING]),
        ({"UnitFileState": "disabled"}, [PROBLEM]),
        ({"ActiveState": "failed", "SubState": "failed"}, [PROBLEM]),
        ({"UnitFileState": "", "ActiveState": "inactive"}, [PROBLEM, PROBLEM]),
        ({"WatchdogUSec": "0"}, [WARNING]),
        ({"NRestarts": "1"}, [WARNING]),
        ({"NRestarts": "[not set]"}, [OK]),
    ],
)
def test_the_unit(changed: dict[str, str], statuses: list[Status]) -> None:
    findings = software.systemd(SystemdFacts(booted=True, properties={**UNIT, **changed}), "a.service")
    said(findings)
    assert [finding.status for finding in findings] == statuses


def test_without_systemd_the_unit_is_skipped_by_name() -> None:
    (finding,) = software.systemd(SystemdFacts(booted=False), "a.service")
    assert finding.status is UNKNOWN
    assert "skipped" in finding.detail
    assert said(software.systemd(SystemdFacts(booted=True), "a.service")) == {"systemd": UNKNOWN}


@pytest.mark.parametrize(
    ("facts", "status", "words"),
    [
        (TrustFacts(insecure_unsigned=False, enrolled=True, root=3), OK, "root 3"),
        (TrustFacts(insecure_unsigned=True, enrolled=True, root=3), OK, "has no effect"),
        (TrustFacts(insecure_unsigned=True, enrolled=False), WARNING, "whoever may write"),
        (TrustFacts(insecure_unsigned=False, enrolled=False), PROBLEM, "not enrolled"),
        (TrustFacts(insecure_unsigned=False, enrolled=True, error="torn"), PROBLEM, "nothing is believed"),
        (TrustFacts(insecure_unsigned=True, enrolled=None), UNKNOWN, "may not be read"),
    ],
)
def test_whom_it_believes(facts: TrustFacts, status: Status, words: str) -> None:
    (finding,) = software.trust(facts)
    said([finding])
    assert finding.status is status
    assert words in finding.detail


# --- broker -----------------------------------------------------------------------------------------

BROKER = broker.BrokerFacts(
    host="broker", port=1883, client_id="roof-17-doctor", round_trip_ms=1.5, now_s=NOW
)
TLS = replace(BROKER, tls=True, tls_version="TLSv1.3", not_after_s=NOW + 100 * DAY)
IDLE = broker.AgentFacts(running=False)


@pytest.mark.parametrize(
    ("facts", "reached", "encrypted"),
    [
        (BROKER, OK, WARNING),
        (replace(BROKER, loopback=True), OK, OK),
        (TLS, OK, OK),
        (replace(TLS, not_after_s=None), OK, OK),
        (replace(TLS, not_after_s=NOW + 29 * DAY), OK, WARNING),
        (replace(TLS, not_after_s=NOW + 31 * DAY), OK, OK),
        (replace(TLS, own_not_after_s=NOW + 3 * DAY), OK, WARNING),
        (replace(TLS, own_not_after_s=NOW - DAY), OK, PROBLEM),
        (replace(TLS, failed="name", error="x"), PROBLEM, UNKNOWN),
        (replace(TLS, failed="connect", error="x"), PROBLEM, UNKNOWN),
        (replace(TLS, failed="tls", error="x"), PROBLEM, PROBLEM),
        (replace(BROKER, failed="login", error="x"), PROBLEM, WARNING),
        (replace(BROKER, failed="login", connack=9), PROBLEM, WARNING),
        (replace(BROKER, failed="answer", error="x"), PROBLEM, WARNING),
    ],
)
def test_the_broker(facts: broker.BrokerFacts, reached: Status, encrypted: Status) -> None:
    assert said(broker.broker(facts, IDLE)) == {"broker": reached, "tls": encrypted}


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (10, "", "has expired"), (9, "", "not valid yet"), (18, "", "nobody whom this device trusts"),
        (20, "", "nobody whom this device trusts"), (62, "", "not for broker"), (64, "", "not for broker"),
        (None, "tlsv13 alert certificate required", "own certificate"),
        (None, "wrong version number", "does not speak TLS"), (None, "other", "no handshake"),
    ],
)  # fmt: skip
def test_a_handshake_that_fails_says_why(code: int | None, error: str, words: str) -> None:
    facts = replace(TLS, failed="tls", verify_code=code, error=error, tls_version="")
    assert words in broker.broker(facts, IDLE)[1].detail


def test_a_broker_that_hangs_up_after_the_handshake_may_want_a_certificate() -> None:
    found = broker.broker(replace(TLS, failed="tls", error="it closed the connection"), IDLE)[1]
    assert "ends the encrypted connection" in found.detail
    assert "broker.tls.cert_file" in found.remedy


def test_the_last_day_of_a_certificate() -> None:
    def status(days: float) -> Status:
        return broker.broker(replace(TLS, not_after_s=NOW + days * DAY), IDLE)[1].status

    assert [status(days) for days in (-0.01, 0, 29.99, 30)] == [PROBLEM, WARNING, WARNING, OK]


def test_a_silent_port_may_want_tls() -> None:
    silent = replace(BROKER, failed="login", error="it closed the connection")
    assert "perhaps this port wants TLS" in broker.broker(silent, IDLE)[0].remedy
    assert "wants TLS" not in broker.broker(replace(silent, tls=True), IDLE)[0].remedy


def test_a_running_agents_word_counts_where_the_broker_takes_no_second_client() -> None:
    refused = replace(BROKER, failed="login", connack=5, loopback=True)
    connected = broker.AgentFacts(running=True, pid=7, connected=True, since="2026-11-21T12:00:00Z")
    assert said(broker.broker(refused, connected)) == {"broker": OK, "tls": OK}
    assert said(broker.broker(refused, replace(connected, connected=False)))["broker"] is PROBLEM
    assert said(broker.daemon(connected)) == {"agent": OK}
    assert said(broker.daemon(replace(connected, connected=False))) == {"agent": WARNING}
    assert said(broker.daemon(replace(connected, connected=None))) == {"agent": OK}
    assert said(broker.daemon(IDLE)) == {"agent": WARNING}


def test_identity() -> None:
    mine, other = "a" * 32, "b" * 32
    facts = broker.IdentityFacts(device="roof-17", source="configuration", hostname="pi", install_id=mine)
    assert said(broker.identity(facts)) == {"device_id": OK}
    assert said(broker.identity(broker.told(facts, mine, online=True))) == {"device_id": OK}
    assert said(broker.identity(broker.told(facts, other, online=True))) == {"device_id": PROBLEM}
    assert said(broker.identity(broker.told(facts, other, online=False))) == {"device_id": WARNING}
    new = replace(facts, install_id=None)
    assert said(broker.identity(broker.told(new, other, online=True))) == {"device_id": WARNING}
    assert said(broker.identity(replace(facts, device=None, source="nothing"))) == {"device_id": PROBLEM}


# --- places -----------------------------------------------------------------------------------------

SHALLOP = Person(uid=990, gids=(990, 44), name="shallop")
DIR, FILE, SOCK = stat.S_IFDIR, stat.S_IFREG, stat.S_IFSOCK


def path(role: places.Role, mode: int, uid: int = 0, gid: int = 990, error: str = "") -> PathFacts:
    return PathFacts(role=role, path="/some/where", mode=mode, uid=uid, gid=gid, error=error)


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        (path("state", DIR | 0o750, uid=990), OK),
        (path("state", DIR | 0o750, uid=0), PROBLEM),
        (path("state", DIR | 0o777, uid=990), PROBLEM),
        (path("state", 0, error="missing"), WARNING),
        (path("config", FILE | 0o640), OK),
        (path("config", FILE | 0o640, gid=0), PROBLEM),
        (path("config", FILE | 0o646), PROBLEM),
        (path("config", FILE | 0o641), OK),
        (path("config", FILE | 0o644, error="Permission denied"), UNKNOWN),
        (path("secret", FILE | 0o640), OK),
        (path("secret", FILE | 0o644), PROBLEM),
        (path("secret", FILE | 0o600), PROBLEM),
        (path("secret", 0, error="missing"), PROBLEM),
        (path("hook", FILE | 0o755), OK),
        (path("hook", FILE | 0o644), PROBLEM),
        (path("hook", DIR | 0o755), PROBLEM),
        (path("hook", FILE | 0o757), PROBLEM),
        (path("hook", 0, error="missing"), PROBLEM),
        (path("lock_dir", DIR | 0o1777), OK),
        (path("lock_dir", DIR | 0o755, gid=0), PROBLEM),
        (path("live_dir", DIR | 0o1777), OK),
        (path("live_dir", DIR | 0o777), WARNING),
        (path("live_dir", DIR | 0o755), OK),
        (path("live_dir", 0, error="missing"), WARNING),
        (path("socket", SOCK | 0o660), OK),
        (path("socket", SOCK | 0o660, gid=0), PROBLEM),
        (path("socket", FILE | 0o660), PROBLEM),
        (path("socket", 0, error="missing"), PROBLEM),
    ],
)
def test_permissions(facts: PathFacts, status: Status) -> None:
    (finding,) = places.permissions((facts,), SHALLOP)
    said([finding])
    assert finding.status is status, finding


@given(st.integers(0, 0o777), st.booleans(), st.booleans(), st.integers(1, 7))
def test_what_one_may_do_is_what_the_kernel_says(mode: int, owner: bool, group: bool, bits: int) -> None:
    facts = path("config", FILE | mode, uid=990 if owner else 1, gid=44 if group else 1)
    triple = mode >> 6 if owner else mode >> 3 if group else mode
    assert may(SHALLOP, facts, bits) == (bits & ~triple & 7 == 0)


def test_a_line_says_which_path_whose_and_how() -> None:
    hook = replace(path("hook", FILE | 0o644), label="digits/health")
    nobody = Person(uid=65534)
    found = places.permissions((hook, path("config", FILE | 0o4640), path("state", DIR | 0o700)), nobody)
    assert [f.name for f in found] == [
        "permissions:hook:digits/health",
        "permissions:config",
        "permissions:state",
    ]
    assert "65534 may not read /some/where (4640)" in found[1].detail
    assert "chgrp 65534" in found[1].remedy
    assert "shallop may not" in places.permissions((path("config", FILE),), SHALLOP)[0].detail
    (fine,) = places.permissions((path("config", FILE | 0o644),), nobody)
    assert "as user 65534 needs" in fine.detail


def test_root_may_all_but_run_what_nobody_may_run() -> None:
    root = Person(uid=0)
    assert may(root, path("config", FILE, uid=5), 6)
    assert not may(root, path("hook", FILE | 0o644, uid=5), 1)
    assert may(root, path("state", DIR, uid=5), 7)


SLOT = SlotFacts(model="digits", expected="a" * 64 + "-one", pointed="a" * 64 + "-one", whole=True)


@pytest.mark.parametrize(
    ("slot", "status"),
    [
        (SLOT, OK),
        (replace(SLOT, whole=None), OK),
        (replace(SLOT, whole=False), PROBLEM),
        (replace(SLOT, readable=False), PROBLEM),
        (replace(SLOT, pointed=None), PROBLEM),
        (replace(SLOT, pointed="b"), PROBLEM),
        (replace(SLOT, pointed="b", in_flight=True), OK),
        (replace(SLOT, expected=None), PROBLEM),
        (replace(SLOT, expected=None, pointed=None), OK),
    ],
)
def test_a_slot(slot: SlotFacts, status: Status) -> None:
    found = said(places.state(StateFacts(path="/s", slots=(slot,))))
    assert found == {"journal": OK, "slots:digits": status}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (StateFacts(path="/s", exists=False), {"journal": UNKNOWN}),
        (StateFacts(path="/s", journal=False), {"journal": OK}),
        (StateFacts(path="/s", notes=("journal.json: torn",)), {"journal": WARNING}),
        (StateFacts(path="/s", error="x", error_code="journal_lost"), {"journal": PROBLEM}),
        (StateFacts(path="/s", error="x", error_code="journal_version"), {"journal": PROBLEM}),
        (StateFacts(path="/s", error="Permission denied"), {"journal": UNKNOWN}),
        (StateFacts(path="/s", leftovers=(("a.part", 5),)), {"journal": OK, "leftovers": WARNING}),
        (StateFacts(path="/s", leftovers=(("a.part", 5),), busy=True), {"journal": OK}),
    ],
)
def test_the_state(facts: StateFacts, expected: dict[str, Status]) -> None:
    assert said(places.state(facts)) == expected


def test_the_words_of_the_state() -> None:
    none, one = StateFacts(path="/s", journal=False), StateFacts(path="/s", slots=(SLOT,))
    assert "no order was ever taken" in places.state(none)[0].detail
    assert places.state(one)[0].detail == "readable, 1 model"
    assert places.state(StateFacts(path="/s", slots=(SLOT, SLOT)))[0].detail == "readable, 2 models"
    astray = places.state(StateFacts(path="/s", slots=(replace(SLOT, pointed="b"),)))[1].detail
    assert astray == f"`current` points to b, the journal says {SLOT.expected}"
    names = tuple((f"{n}.part", 1) for n in range(5))
    left = places.state(StateFacts(path="/s", leftovers=names))[-1].detail
    assert left == "5 bytes that nothing refers to: 0.part, 1.part, 2.part and 2 more"
    few = places.state(StateFacts(path="/s", leftovers=names[:3]))[-1].detail
    assert few.endswith("0.part, 1.part, 2.part")


# --- the table --------------------------------------------------------------------------------------


def test_only_a_problem_makes_the_exit_code() -> None:
    assert exit_code([ok("a", "b"), warning("a", "b", "c")]) == 0
    assert exit_code([ok("a", "b"), problem("a", "b", "c")]) == 3


def test_the_table_fits_its_width_and_shows_no_control_characters() -> None:
    findings = [ok("a", "word " * 60), problem("runtime:" + "x" * 40, "\x1b[31mred\x07", "do " * 50)]
    shown = table(findings, 80, colour=False)
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert shown.rstrip().endswith("1 problem, 1 ok")
    assert "\x1b[1;31mPROBLEM" in table(findings, 80, colour=True)
