"""`shallop-fleet rollout approve` and `reject`: the second person's word.

For: reading arguments, calling one verb, printing.
Not for: whose word counts (`fleet.approval`, in the registry).
"""

from __future__ import annotations

import click

from fleet.adapters import console as con
from fleet.adapters.client import Client
from fleet.cli_common import remote
from fleet.rollout import FailureAction

why_required = click.option("--why", required=True, help="Why, for the audit log.")


@click.command("approve")
@click.argument("rollout_id")
@why_required
@remote
def rollout_approve(client: Client, as_json: bool, rollout_id: str) -> None:
    """Let a rollout that asked for a second person go beyond its first wave; not by who started it.

    Example: shallop-fleet rollout approve ro-0123456789ab --why 'the canary ran through the night'
    """
    found = client.verb(rollout_id, "approve", {})
    con.print_json(found) if as_json else con.console().print(con.rollouts_table([found]))


@click.command("reject")
@click.argument("rollout_id")
@click.option(
    "--action",
    type=click.Choice([action.value for action in FailureAction]),
    default=FailureAction.ROLLBACK_ALL.value,
    show_default=True,
    help="What becomes of the devices that it reached.",
)
@why_required
@remote
def rollout_reject(client: Client, as_json: bool, rollout_id: str, action: str) -> None:
    """End a rollout that waits for a second person.

    Example: shallop-fleet rollout reject ro-0123456789ab --why 'too slow on the roof' --action rollback_all
    """
    found = client.verb(rollout_id, "reject", {"action": action})
    con.print_json(found) if as_json else con.console().print(con.rollouts_table([found]))
