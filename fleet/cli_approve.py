"""`shallop-fleet rollout approve` and `reject`: the second person's word.

For: reading arguments, calling one verb, printing.
Not for: whose word counts (`fleet.approval`, in the registry).
"""

from __future__ import annotations

import click

from fleet.adapters.client import Client
from fleet.cli_common import failure_option, remote, rollout_verb

why_required = click.option("--why", required=True, help="Why, for the audit log.")


@click.command("approve")
@click.argument("rollout_id")
@why_required
@remote
def rollout_approve(client: Client, as_json: bool, rollout_id: str) -> None:
    """Let a rollout that asked for a second person go beyond its first wave; not by who started it.

    Example: shallop-fleet rollout approve ro-0123456789ab --why 'the canary ran through the night'
    """
    rollout_verb(client, as_json, rollout_id, "approve", {})


@click.command("reject")
@click.argument("rollout_id")
@failure_option("--action", "What becomes of the devices that it reached.")
@why_required
@remote
def rollout_reject(client: Client, as_json: bool, rollout_id: str, action: str) -> None:
    """End a rollout that waits for a second person.

    Example: shallop-fleet rollout reject ro-0123456789ab --why 'too slow on the roof' --action rollback_all
    """
    rollout_verb(client, as_json, rollout_id, "reject", {"action": action})
