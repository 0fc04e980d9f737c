"""msgspec 0.22 crashes where two threads decode into a type for the first time at once.

Found by the crash matrix: one device in some hundreds died of SIGSEGV at its start, while a lane hashed a
release and the loop read an order. So whatever threads decode into is looked at when it is imported.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

CODE = """
import contextlib, msgspec, msgspec._utils as utils
import agent.app
from agent.deployment import Deployment
from agent.install import _Saved
from agent.installed import ReleaseInfo
from agent.journal import Journal
from typing import get_args
from wire.bundle import Manifest
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

for kind in (New, *get_args(Message), Manifest, Root, Envelope, Journal, Deployment, ReleaseInfo, _Saved):
    with contextlib.suppress(msgspec.DecodeError):
        msgspec.json.decode(b"{}", type=kind)
print([kind.__name__ for kind in looked])
"""


def test_threads_decode_into_nothing_that_was_not_looked_at_before() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "['New']", "a type is looked at by the first thread that decodes into it"
