"""Which tests one worker of pytest-xdist keeps to itself.

For: those that share one booted machine (tests/systemd): on two workers it would be booted and installed
twice, one after the other. They begin first, since they last longest.
Not for: any other test; each of those goes to whoever is free. pytest-xdist's own `--dist loadgroup` does
this by changing the names of tests, which pytest 9.2 no longer lets it (seen with pytest-xdist 3.8.0).
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

MACHINE = (
    "tests/systemd/test_machine",
    "tests/systemd/test_uninstall",
    "TestInTheMachine",
    "test_life_systemd",
)


class MachineScheduling(LoadScopeScheduling):  # type: ignore[misc] # pytest-xdist has no types
    """Every test by itself, but for the machine's."""

    def _split_scope(self, nodeid: str) -> str:
        return "machine" if any(name in nodeid for name in MACHINE) else nodeid
