"""`python -m bench [agent|trust] [--quick | --full]`: prints figures as JSON, progress on standard error."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from bench import agent, trust
from bench.agent import agent_figures
from bench.trust import trust_figures


def _say(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)


def main() -> int:
    """Runs the benchmarks that were asked for, all by default."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "what", nargs="*", choices=["agent", "trust", []], help="which figures; all by default"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a minute: fewer repetitions, a smaller transfer"
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="idle memory over 10 minutes after 5 minutes' warm-up, 300 rollbacks",
    )
    options = parser.parse_args()
    if options.quick and options.full:
        parser.error("--quick and --full exclude each other")
    length = "quick" if options.quick else "full" if options.full else "default"
    wanted = options.what or ["agent", "trust"]
    figures: dict[str, Any] = {}
    if "agent" in wanted:
        figures["agent"] = agent_figures(agent.LENGTHS[length], _say)
    if "trust" in wanted:
        figures["trust"] = trust_figures(trust.LENGTHS[length], _say)
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
