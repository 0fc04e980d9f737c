"""Entry of the worker: `python -m agent.worker.trial JOB.json`.

For: putting the limits and the sandbox on this process first, and leaving one result file last, which is
opened before: afterwards nothing can be. A candidate that cannot be measured leaves a failure with its name;
whatever worse happens to this process is the daemon's to see.
Not for: the measuring itself (`agent.worker.measuring`), which is imported once the limits stand.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before anything could import the runtime: its Linux wheel has telemetry on (FACTS.md section 1, trap 9).
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from msgspec.structs import replace

from agent.worker import tools
from agent.worker.job import (
    DETAIL_CHARS_MAX,
    DOES_NOT_FIT,
    TrialFailure,
    TrialJob,
    TrialSuccess,
    encoded,
    read_order,
)
from agent.worker.limits import restrict
from agent.worker.sandbox import confine
from wire.errors import ShallopError


def main(arguments: list[str]) -> int:
    """Runs the job in the file; 0 where a result was left, be it a failure."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m agent.worker.trial JOB.json\n")
        return 2
    order = read_order(Path(arguments[0]))
    restrict(order.limits, order.parent_pid)
    with Path(order.result_path).open("wb") as result:
        tools.start(Path(order.job.system_root))
        missing = confine(_readable(order.job))
        result.write(encoded(_noted(_outcome(order.job), missing)))
    return 0


def _readable(job: TrialJob) -> list[Path]:
    """What this trial is about; a model may keep its weights in files beside it."""
    models = [Path(run.model_path).parent for run in (job.candidate, job.incumbent) if run is not None]
    root = Path(job.system_root)
    return [*models, *map(Path, job.shards), root / "proc", root / "sys"]


def _noted(outcome: TrialSuccess | TrialFailure, missing: tuple[str, ...]) -> TrialSuccess | TrialFailure:
    """What was measured without a guard says so."""
    if isinstance(outcome, TrialFailure) or not missing:
        return outcome
    notes = tuple(f"the worker ran without {guard}" for guard in missing)
    return replace(outcome, result=replace(outcome.result, notes=(*outcome.result.notes, *notes)))


def _outcome(job: TrialJob) -> TrialSuccess | TrialFailure:
    try:
        # Here and not above: numpy and the runtime must be loaded under the limits.
        from agent.worker.measuring import run_trial  # noqa: PLC0415

        return TrialSuccess(result=run_trial(job))
    except MemoryError as error:
        return _out_of_memory(error)
    except ImportError as error:
        if DOES_NOT_FIT in str(error):
            return _out_of_memory(error)
        return TrialFailure(code="runtime_missing", detail=f"the worker's Python lacks {error.name}: {error}")
    except ShallopError as error:
        return TrialFailure(code=error.code, detail=str(error.args[0])[:DETAIL_CHARS_MAX])


def _out_of_memory(error: Exception) -> TrialFailure:
    detail = f"the trial needs more memory than it may use: {error}"
    return TrialFailure(code="trial_out_of_memory", detail=detail[:DETAIL_CHARS_MAX])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
