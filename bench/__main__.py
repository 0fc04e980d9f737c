"""`python -m bench [agent] [--quick]`: prints the figures as JSON, progress on standard error."""

from __future__ import annotations

import argparse
import json
import sys

from bench.agent import agent_figures


def main() -> int:
    """Runs the benchmarks that were asked for, all by default."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("what", nargs="*", choices=["agent", []], help="which figures; all by default")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: 10 rollbacks, 3 starts")
    options = parser.parse_args()
    print("measuring the agent; this takes a few minutes ...", file=sys.stderr, flush=True)
    fewer = {"rollbacks": 10, "starts": 3, "idle_s": 6} if options.quick else {}
    figures = agent_figures(**fewer)
    print(json.dumps({"agent": figures}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
