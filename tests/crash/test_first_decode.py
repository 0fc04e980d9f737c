"""msgspec 0.22 crashes where two threads decode into a type for the first time at once.

Found by the crash matrix: one device in some hundreds died of SIGSEGV at its start, while a lane hashed a
release and the loop read an order. So whatever threads decode into is looked at when it is imported.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

CODE = """
import contextlib, msgspec, msgspec._utils as utils
import agent.app
import fleet.app
from agent.deployment import Deployment
from agent.believing import TrustState
from agent.home_assistant_link import Remembered
from agent.install import _Saved
from agent.installed import ReleaseInfo
from agent.journal import Journal
from agent.live import LiveFile
from agent.live_watch import _Saved as Tracks
from agent.rebuilding import _Memory
from agent.statusing import Noted
from agent.worker.delta_job import DeltaOutcome
from agent.worker.job import TrialFailure, TrialOrder, TrialSuccess, WorkerOrder
from fleet.gate_limits import Gate
from fleet.inventory import Device
from fleet.publish.hints import Made
from fleet.rollout import Rollout
from typing import get_args
from wire.bundle import InputData, Manifest
from wire.deltas import DeltaIndex
from wire.messages import Message
from wire.roots import Root
from wire.trust import Envelope

looked, real = [], utils._get_class_mro_and_typevar_mappings
def record(kind):
    looked.append(kind)
    return real(kind)
utils._get_class_mro_and_typevar_mappings = record

class New(msgspec.Struct):
    field: int

AGENT = (
    Journal, Deployment, ReleaseInfo, _Saved, TrustState, Remembered, LiveFile, Tracks, _Memory, Noted,
    DeltaOutcome, TrialFailure, TrialOrder, TrialSuccess, WorkerOrder, DeltaIndex, InputData,
)
for kind in (New, *get_args(Message), Manifest, Root, Envelope, *AGENT, Gate, Device, Made, Rollout):
    with contextlib.suppress(msgspec.DecodeError):
        msgspec.json.decode(b"{}", type=kind)
print([kind.__name__ for kind in looked])
"""


def test_threads_decode_into_nothing_that_was_not_looked_at_before() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "['New']", "a type is looked at by the first thread that decodes into it"


ONE_THREAD = {
    "agent/adapters/aside.py",  # at the start, before there are threads
    "agent/adapters/worker_process.py",  # a plain mapping: there is no type to look at
    "fleet/adapters/client.py",  # the command line's only thread
    "fleet/adapters/sql_audit.py",  # a plain mapping
    "fleet/api/exchange.py",  # the event loop's thread; what its handlers do elsewhere is decoded by then
    "fleet/cli_bars.py",  # the command line
}
"""Where a type may be named at the call."""


def test_decoders_of_the_daemons_are_made_on_import() -> None:
    """`msgspec.json.decode(data, type=...)` looks at the type when it is called, on whichever thread."""
    call = re.compile(r"msgspec\.(json|msgpack)\.decode\((?:[^()]|\([^()]*\))*type=")
    guilty = {
        path.relative_to(ROOT).as_posix()
        for room in ("agent", "fleet", "wire")
        for path in (ROOT / room).rglob("*.py")
        if call.search(path.read_text(encoding="utf-8"))
    }
    assert guilty - ONE_THREAD - {"agent/worker/delta_apply.py"} == set(), "make a Decoder beside the type"
