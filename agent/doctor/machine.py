"""PURE. The clock, the disk, the memory controller and what the kernel offers.

For: judging what was found about the machine itself.
Not for: finding it (`agent.adapters.probe_machine`), or sensors (`agent.doctor.sensing`).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from msgspec import Struct

from agent.doctor.finding import Finding, amount, ok, problem, unknown, warning

YEAR_MIN, YEAR_MAX = 2026, 2037
"""No release of this program is older; clocks beyond are those of a dead battery or of 2040."""
INODES_MIN = 1000
_BACKWARDS_S = 86400.0

_MOVE = "put `state_dir` on ext4, f2fs, btrfs or xfs"
_Kinds = tuple[set[str], Callable[[str, str, str], Finding], str, str]
_KINDS: tuple[_Kinds, ...] = (
    ({"vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk"}, problem,
     "it has no symbolic links and no owners, so that releases cannot be switched", _MOVE),
    ({"tmpfs", "ramfs"}, problem, "every release is gone after a restart", _MOVE),
    ({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs"}, warning,
     "it is on another machine: locks and fsync are only as good as that one", _MOVE),
    ({"overlay", "overlayfs", "aufs"}, warning,
     "with a write layer in memory (Raspberry Pi OS's overlay) all is gone after a restart",
     "bind or mount a partition of its own at `state_dir`"),
)  # fmt: skip
"""What is said of file systems that are not fit, or may not be."""


class ClockFacts(Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        now_s: what the clock says, seconds since 1970.
        synchronised: by the kernel's own account; None where it does not tell.
        newest_s: time of the newest file that this machine has written or installed; None without one.
    """

    now_s: float
    synchronised: bool | None
    newest_s: float | None = None


def clock(facts: ClockFacts) -> list[Finding]:
    """A wrong clock neither blocks nor admits an order; windows wait for it and TLS refuses by it."""
    now = datetime.fromtimestamp(facts.now_s, UTC)
    says = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    set_it = (
        "let it be synchronised: `timedatectl set-ntp true`, and a time server within reach; without a "
        "battery-backed clock also `apt-get install fake-hwclock`"
    )
    harm = "TLS certificates fail and maintenance windows wait"
    if not YEAR_MIN <= now.year <= YEAR_MAX:
        return [problem("clock", f"the year {now.year} cannot be right ({says}): {harm}", set_it)]
    if facts.newest_s is not None and facts.newest_s - facts.now_s > _BACKWARDS_S:
        days = (facts.newest_s - facts.now_s) / 86400
        return [problem("clock", f"{says} is {days:.0f} days before files on this disk: {harm}", set_it)]
    if facts.synchronised is None:
        return [unknown("clock", f"{says}; the kernel does not tell whether it is synchronised", set_it)]
    if not facts.synchronised:
        return [warning("clock", f"{says}, not synchronised: maintenance windows wait", set_it)]
    return [ok("clock", f"{says}, synchronised")]


class DiskFacts(Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        path: the state directory, or what of it exists.
        free_bytes: for an unprivileged process.
        total_bytes: of the file system.
        inodes_free: None where the file system has no fixed number.
        margin_bytes: kept free by disk admission.
        largest_bytes: largest release held; None without one.
        read_only: how it is mounted.
        kind: of file system; None where it could not be found out.
        options: of the mount and of the file system.
    """

    path: str
    free_bytes: int
    total_bytes: int
    inodes_free: int | None
    margin_bytes: int
    largest_bytes: int | None = None
    read_only: bool = False
    kind: str | None = None
    options: tuple[str, ...] = ()


def disk(facts: DiskFacts) -> list[Finding]:
    """Room, and a file system that keeps what is written."""
    return [_room(facts), _file_system(facts)]


def _room(facts: DiskFacts) -> Finding:
    free, margin = amount(facts.free_bytes), amount(facts.margin_bytes)
    clear = "free some space there, move `state_dir`, or lower `limits.disk_free_bytes_min`"
    if facts.free_bytes <= facts.margin_bytes:
        detail = f"{free} free below {facts.path}, the margin alone is {margin}: no release will be admitted"
        return problem("disk", detail, clear)
    if facts.inodes_free is not None and facts.inodes_free < INODES_MIN:
        detail = f"{facts.inodes_free} inodes free below {facts.path}: files can no longer be made"
        return problem("disk", detail, "remove many small files there; `df -i` shows them")
    # Admission asks for the files and, while they are assembled, for the chunks that were fetched for them.
    again = None if facts.largest_bytes is None else 2 * facts.largest_bytes
    if again is not None and facts.free_bytes < facts.margin_bytes + again:
        detail = (
            f"{free} free below {facts.path}; the largest release here takes {amount(again / 2)}, "
            f"and another as large may need twice that and the margin of {margin}"
        )
        return warning("disk", detail, clear)
    held = "no release here yet" if again is None else f"largest release {amount(again / 2)}"
    return ok("disk", f"{free} of {amount(facts.total_bytes)} free below {facts.path}, {held}")


def _file_system(facts: DiskFacts) -> Finding:
    name, kind = "file_system", facts.kind
    if facts.read_only:
        fix = "`mount -o remount,rw` it; `dmesg` says whether errors made it read-only"
        return problem(name, f"{facts.path} is mounted read-only", fix)
    if kind is None:
        return unknown(name, f"the kind of file system below {facts.path} could not be found out")
    for kinds, judged, detail, fix in _KINDS:
        if kind in kinds:
            return judged(name, f"{kind}: {detail}", fix)
    if {"barrier=0", "nobarrier"} & set(facts.options):
        detail = f"{kind} without write barriers: a power cut may lose what was fsynced"
        return warning(name, detail, "remove `nobarrier` or `barrier=0` from /etc/fstab")
    return ok(name, kind)


class MemoryFacts(Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        cmdline: of the kernel.
        controllers: of cgroup 2; None where cgroup 2 is not mounted.
        v1_memory: whether cgroup 1's table has the memory controller enabled; None without that table.
        boot_file: the file that holds the kernel's command line on this board, if it is known.
    """

    cmdline: str
    controllers: tuple[str, ...] | None
    v1_memory: bool | None = None
    boot_file: str | None = None


def memory_cgroup(facts: MemoryFacts) -> list[Finding]:
    """Without the controller systemd ignores MemoryMax= in silence (raspberrypi/linux#6439)."""
    name = "memory_cgroup"
    there = "memory" in facts.controllers if facts.controllers is not None else facts.v1_memory
    if there is None:
        return [unknown(name, "no cgroups can be seen here; the trial's own limits (RLIMIT_AS) hold still")]
    if there:
        return [ok(name, "the kernel limits memory by cgroup")]
    boot = facts.boot_file or "the kernel's command line"
    off = "cgroup_disable=memory stands in" if "cgroup_disable=memory" in facts.cmdline.split() else "by"
    detail = (
        f"switched off {off} the kernel's command line: MemoryMax= of the units is ignored, "
        "only the trial's own limits (RLIMIT_AS) hold"
    )
    remedy = f"add `cgroup_enable=memory cgroup_memory=1` to the one line of {boot}, and restart"
    return [warning(name, detail, remedy)]


class KernelFacts(Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        release: of the kernel.
        landlock_abi: 0 where the kernel has none.
        seccomp: whether filters can be installed.
        lsm: security modules that run; None where it is not told.
    """

    release: str
    landlock_abi: int
    seccomp: bool
    lsm: tuple[str, ...] | None = None


def kernel(facts: KernelFacts) -> list[Finding]:
    """What a trial's process can be locked in with."""
    found = []
    if facts.landlock_abi > 0:
        found.append(ok("landlock", f"version {facts.landlock_abi} (kernel {facts.release})"))
    else:
        detail = f"kernel {facts.release} offers none: a model on trial may read what the agent may read"
        on = f"lsm={','.join(['landlock', *(facts.lsm or ())])}"
        fix = f"a kernel from 5.13 on, with `{on}` on its command line; or the units under systemd/"
        found.append(warning("landlock", detail, fix))
    if facts.seccomp:
        found.append(ok("seccomp", "filters can be installed"))
    else:
        detail = "this kernel has none: a trial is kept from the network by its unit only"
        found.append(warning("seccomp", detail, "a kernel with CONFIG_SECCOMP_FILTER"))
    return found
