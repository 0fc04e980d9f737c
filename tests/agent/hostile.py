"""Workers whose model has taken them over: the real entry, its limits and sandbox, and then any code.

For: tests of what a worker cannot do. A model file that crashes a runtime is easy to make, one that opens a
socket is not, so a script stands where the interpreter is expected and puts its own code in place of the
measuring, which the entry imports only after it has closed the sandbox.
Not for: models that are hostile by themselves (`tests.agent.models`).
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from tests.conftest import ROOT

_SCRIPT = """#!{python}
import os, sys, types
sys.path.insert(0, {root!r})
{before}
from agent.errors import FinalError
from agent.worker import trial

told = []

def attempt(name, deed):
    try:
        deed()
    except OSError as error:
        told.append(name + ": " + type(error).__name__)
    else:
        told.append(name + ": done")

def run_trial(job):
{body}
    raise FinalError("told", "; ".join(told))

sys.modules["agent.worker.measuring"] = types.SimpleNamespace(run_trial=run_trial)
sys.exit(trial.main(sys.argv[3:]))
"""


def taken_over(path: Path, body: str, before: str = "") -> str:
    """An executable for `TrialProcess` whose worker runs `body`; what it attempted is told as a failure.

    Args:
        path: of the executable.
        body: runs as the measuring; `attempt(name, deed)` notes what became of a deed, `job` is the trial.
        before: runs before anything of Shallop's is imported.
    """
    inside = textwrap.indent(textwrap.dedent(body), "    ")
    script = _SCRIPT.format(python=sys.executable, root=str(ROOT), before=before, body=inside)
    path.write_text(script)
    path.chmod(0o755)
    return str(path)


def what_it_told(error: Exception) -> dict[str, str]:
    """From the failure of a worker that was taken over: what became of each attempt."""
    told: dict[str, str] = {}
    for pair in str(error.args[0]).split("; "):
        name, _, outcome = pair.partition(": ")
        told[name] = outcome
    return told
