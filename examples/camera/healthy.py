"""The example's health hook: well means that it works, and with the very release that it should.

For: `hooks.MODEL.health` in agent.yaml. An application that goes on with the old model because the new one
cannot be loaded is not well, so that a rollout never counts it as a success.
Not for: judging answers; the trial did that before the switch.

    health: [python3, /opt/camera/healthy.py, /run/camera/status.json]
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

SILENT_S_MAX = 10.0


def main(status: Path) -> str | None:
    """What is wrong; None if nothing is."""
    wanted = Path(os.environ["SHALLOP_CURRENT"]).resolve().name
    try:
        silent_s = time.time() - status.stat().st_mtime
        used = json.loads(status.read_text())["release"]
    except (OSError, ValueError, KeyError) as error:
        return f"the camera has no status: {error}"
    if silent_s > SILENT_S_MAX:
        return f"the camera has said nothing for {silent_s:.0f} s"
    return None if used == wanted else f"the camera uses {used}, not {wanted}"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
