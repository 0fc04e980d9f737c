"""Settings that every test shares: Hypothesis without deadlines, and where subprocesses find the code."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent.parent

# A loaded CI machine must not turn a slow example into a failure: timings are never asserted here.
settings.register_profile("shallop", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shallop")

# Tests start real programs with `python -m`; they must find this tree whatever folder they start in.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
