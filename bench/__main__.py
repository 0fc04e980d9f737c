"""`python -m bench [agent] [--quick | --full]`: prints the figures as JSON, progress on standard error."""

from __future__ import annotations

import argparse
import json
import sys

from bench.agent import LENGTHS, agent_figures


def main() -> int:
    """Runs the benchmarks that were asked for, all by default."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("what", nargs="*", choices=["agent", []], help="which figures; all by default")
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
    length = LENGTHS["quick" if options.quick else "full" if options.full else "default"]
    figures = agent_figures(length, lambda what: print(f"{what} ...", file=sys.stderr, flush=True))
    print(json.dumps({"agent": figures}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
