"""PURE. The system calls that a worker does without, with their numbers.

For: `agent.worker.seccomp`. A measuring worker computes; whatever opens a socket, starts a process, changes
a file, looks into another process or reaches for the kernel's own levers is not its business.
Not for: building or loading the filter.

Numbers are x86-64's (arch/x86/entry/syscalls/syscall_64.tbl) and the generic ones that aarch64 uses
(include/uapi/asm-generic/unistd.h); both never change. None: that machine has no such call. From 424 on the
numbers are the same everywhere.
"""

from __future__ import annotations

Numbers = dict[str, tuple[int | None, int | None]]
"""By name: of x86-64, of aarch64."""

MACHINES = ("x86_64", "aarch64")
"""Order of the numbers."""

NEWEST = 462
"""`mseal` of Linux 6.10. What came later is answered as by a kernel that does not have it."""

NETWORK: Numbers = {
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "accept4": (288, 242),
    "bind": (49, 200), "listen": (50, 201),
    # These do input and output, sockets included, past this filter.
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
}  # fmt: skip

PROCESSES: Numbers = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "setsid": (112, 157), "setpgid": (109, 154),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "tkill": (200, 130), "setpriority": (141, 140), "ioprio_set": (251, 30), "flock": (73, 32),
    # What these make outlives its maker.
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
}  # fmt: skip

KERNEL: Numbers = {
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97), "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "syslog": (103, 116), "iopl": (172, None), "ioperm": (173, None),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "sethostname": (170, 161), "setdomainname": (171, 162),
}  # fmt: skip

ATTRIBUTES: Numbers = {
    # Landlock has no say in these: without them a reader could lock the owner out of its own files.
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
}  # fmt: skip

FILES: Numbers = {
    "creat": (85, None), "truncate": (76, 45), "mkdir": (83, None), "mkdirat": (258, 34),
    "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None),
    "renameat": (264, 38), "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37),
    "symlink": (88, None), "symlinkat": (266, 36), "mknod": (133, None), "mknodat": (259, 33),
}  # fmt: skip

ABSENT: Numbers = {"clone3": (435, 435), "openat2": (437, 437)}
"""Answered as by an older kernel: their flags lie behind a pointer, where a filter cannot look, and every
C library falls back to `clone` and `openat`."""

OPENING: Numbers = {"open": (2, None), "openat": (257, 56)}
"""May read only."""
OPEN_FLAGS = {"open": 1, "openat": 2}
"""Which argument holds the flags."""

SIGNALLING: Numbers = {
    "kill": (62, 129), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
}  # fmt: skip
"""To itself only, as `abort` does."""

CLONE: tuple[int, int] = (56, 220)
"""Threads only."""
PRLIMIT64: tuple[int, int] = (302, 261)
"""Of itself only."""
PRCTL: tuple[int, int] = (157, 167)
"""All but unsaying that it dies with its parent."""
SECCOMP: tuple[int, int] = (317, 277)
