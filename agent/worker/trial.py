"""Entry of the worker: `python -m agent.worker.trial JOB RESULT LIMITS PARENT`.

For: putting the limits on this process first, and leaving one result file last. A candidate that cannot be
measured leaves a failure with its name; whatever worse happens to this process is the daemon's to see.
Not for: the measuring itself (`agent.worker.measuring`), which is imported once the limits stand.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from agent.worker.job import TrialFailure, TrialSuccess, read_job, write_file
from agent.worker.limits import WorkerLimits, restrict
from wire.errors import ShallopError

DETAIL_CHARS_MAX = 1500


def main(arguments: list[str]) -> int:
    """Runs the job in the file; 0 where a result was left, be it a failure."""
    job_path, result_path, limits, parent = arguments
    restrict(msgspec.json.decode(limits, type=WorkerLimits), int(parent))
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    outcome: TrialSuccess | TrialFailure
    try:
        # Here and not above: numpy and the runtime must be loaded under the limits.
        from agent.worker.measuring import run_trial  # noqa: PLC0415

        outcome = TrialSuccess(result=run_trial(read_job(Path(job_path))))
    except MemoryError:
        outcome = TrialFailure(
            code="trial_out_of_memory", detail="the trial needs more memory than it may use"
        )
    except ImportError as error:
        outcome = TrialFailure(code="runtime_missing", detail=f"the worker's Python lacks {error.name}")
    except ShallopError as error:
        outcome = TrialFailure(code=error.code, detail=str(error.args[0])[:DETAIL_CHARS_MAX])
    write_file(Path(result_path), outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
