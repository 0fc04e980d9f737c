"""What a transfer of 100 MB takes of the daemon's memory, fetching and putting together told apart.

For: `python -m bench.transfer_memory [MEGABYTES]`. The real agent as a process, a real broker, a real model
with ballast. Peak RSS is the kernel's own high-water mark (VmHWM, reset before by clear_refs), so nothing
falls between two samples; PSS is sampled, so its peak is a lower bound.
Not for: asserting anything, or speed (`bench.agent`).
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from examples.demo.house import House
from tests.integration.bundles import make_bundle
from tests.integration.hand import Hand
from wire.messages import OrderOutcome

DEVICE = "bench-1"
SAMPLE_S = 0.02


class Watch:
    """Samples a process until it is closed."""

    def __init__(self, pid: int, hand: Hand) -> None:
        self._proc = Path(f"/proc/{pid}")
        self._hand = hand
        self.pss_kib: dict[str, int] = {}
        self.rss_kib: dict[str, int] = {}
        self._over = threading.Event()
        (self._proc / "clear_refs").write_text("5", encoding="ascii")
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(SAMPLE_S):
            state = self._hand.state(DEVICE, "big")
            phase = str(state.phase) if state else "before"
            self.pss_kib[phase] = max(self.pss_kib.get(phase, 0), self._field("smaps_rollup", "Pss"))
            self.rss_kib[phase] = max(self.rss_kib.get(phase, 0), self._field("status", "VmRSS"))

    def _field(self, file: str, name: str) -> int:
        lines = (self._proc / file).read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    def close(self) -> dict[str, Any]:
        """The figures, in MiB."""
        self._over.set()
        self._thread.join()
        return {
            "rss_peak_mib": round(self._field("status", "VmHWM") / 1024, 1),
            "rss_mib_by_phase": {name: round(kib / 1024, 1) for name, kib in self.rss_kib.items()},
            "pss_mib_by_phase": {name: round(kib / 1024, 1) for name, kib in self.pss_kib.items()},
            "pss_after_mib": round(self._field("smaps_rollup", "Pss") / 1024, 1),
        }


def measure(megabytes: int) -> dict[str, Any]:
    """One deployment of a model of that size, watched."""
    folder = Path(tempfile.mkdtemp(prefix="shallop-memory-"))
    with House(folder / "house") as house:
        house.start_broker()
        with Hand(house.broker_port) as hand:
            make_bundle(folder / "one", release="1", seed=1)
            hand.desire(DEVICE, "tiny", hand.publish_bundle(folder / "one"), order=1)
            agent = house.agent(DEVICE)
            hand.wait_ended(DEVICE, "tiny", 1, 60)
            time.sleep(2)
            make_bundle(folder / "big", model="big", ballast_bytes=megabytes * 1_000_000)
            digest = hand.publish_bundle(folder / "big")
            watch = Watch(agent.pid, hand)
            hand.desire(DEVICE, "big", digest, order=2)
            outcome = hand.wait_ended(DEVICE, "big", 2, 300).outcome
            if outcome is not OrderOutcome.ACTIVE:
                raise RuntimeError(f"the deployment ended {outcome}")
            return {"megabytes": megabytes, **watch.close()}


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 100), indent=2))
