"""The main job, end to end, on one machine: `make demo`.

Converts the example model, starts a broker, the registry and three agents as processes of their own, rolls
two releases out in waves, lets the canary refuse a damaged third, rolls one device back with one MQTT
message and the rest with a command, and asks the old model again. Ends with 0 if all of that was seen to
happen, else with 1 and the first thing that was not.

Not for: production; everything listens on loopback, nothing is signed, and the soak is two seconds long.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from rich.console import Console

from examples.demo.acts import Acts
from examples.demo.house import ROOT, House, HouseError

FOLDER = ROOT / ".demo"
MARKER = FOLDER / ".made-by-shallop-demo"


def main() -> int:
    """Runs the acts in order; see `examples.demo.acts`."""
    # Without a terminal (in CI, in a file) there is no width to fit into.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 130)
    started = time.monotonic()
    _fresh_folder(FOLDER)
    with House(FOLDER) as house:
        acts = Acts(house, console)
        try:
            acts.convert_first()
            acts.start_everything()
            acts.roll_out_first()
            acts.roll_out_second()
            acts.refuse_third()
            acts.roll_back_one_by_message()
            acts.roll_back_the_rest()
            acts.ask_the_old_model()
        except HouseError as error:
            console.print(f"\n[bold red]The demo did not go as it should:[/] {error}", markup=True)
            console.print(f"Logs of every process: {house.logs}")
            return 1
        acts.summary(time.monotonic() - started)
    return 0


def _fresh_folder(folder: Path) -> None:
    """Empties the demo's own folder; one that something else made is left alone."""
    if folder.exists() and any(folder.iterdir()) and not MARKER.exists():
        sys.exit(f"{folder} was not made by the demo; move it away and start again")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    MARKER.touch()


if __name__ == "__main__":
    sys.exit(main())
