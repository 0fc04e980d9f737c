"""`shallop-fleet`: the registry's process, and the commands that talk to it over HTTP.

For: reading arguments, calling one verb, printing, and the exit code. The commands never open the
database.
Not for: deciding anything.

Exit codes: 0 done; 2 bad input or refused; 3 a rollout that was waited for did not complete (halted,
aborted, or waiting for a person), or a rollback failed on a device; 4 no registry answers.
"""

from __future__ import annotations

import errno
import logging
import sys
from pathlib import Path
from typing import Any

import click

from fleet.adapters import console as con
from fleet.adapters.client import Client
from fleet.adapters.console_trust import restored_lines
from fleet.cli_approve import rollout_approve, rollout_reject
from fleet.cli_bars import bar, bars, unbar
from fleet.cli_broker import broker_group
from fleet.cli_common import (
    NOT_COMPLETED,
    OneLine,
    changing,
    fail,
    failure_option,
    json_option,
    remote,
    rollout_verb,
    server_option,
    token_of,
    token_option,
)
from fleet.cli_enrol import devices_revoke, enrol_group
from fleet.cli_keys import keys_group, opened
from fleet.cli_people import audit_group, tokens_group
from fleet.cli_signature import export_signature_command
from fleet.cli_verify import verify_command
from fleet.config import Config, ConfigError, load, read_mapping
from fleet.people import RollbackAsk, RolloutAsk
from fleet.publish.compress import compressed
from fleet.publish.upload import read_bundle
from fleet.rollout import FailureAction
from fleet.views import RolloutShow
from wire.errors import ShallopError, one_line
from wire.trust import seal

POLL_S = 0.5

_LOG = logging.getLogger("shallop.fleet.cli")


class _Main(click.Group):
    """A file that cannot be used ends every command in words."""

    def invoke(self, ctx: click.Context) -> object:
        """As ever; a broken pipe is click's own matter."""
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            if ctx.invoked_subcommand == "serve":
                _LOG.exception("the registry ended")
            where = f"{error.filename}: " if error.filename else ""
            said = f"{where}{error.strerror or error}; run this as the file's owner, or name another one"
            fail(ConfigError("file_unusable", said))


@click.group(
    cls=_Main,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog='Shell completion: eval "$(_SHALLOP_FLEET_COMPLETE=bash_source shallop-fleet)" (zsh_source, '
    "fish_source alike). Exit codes: 0 done, 2 bad input or refused, 3 not completed, 4 no registry answers.",
)
@click.version_option(package_name="shallop", prog_name="shallop-fleet")
def main() -> None:
    """Registry, rollouts and rollback for a fleet of devices.

    Example: shallop-fleet serve --data /var/lib/shallop-fleet --broker mqtt://127.0.0.1:1883
    """


@main.command()
@click.option("--data", help="Directory of database and blobs.  [default: .]")
@click.option("--database", help="SQLAlchemy URL.  [default: SQLite in --data]")
@click.option("--broker", help="mqtts://HOST:PORT or mqtt://HOST:PORT.  [default: mqtt://127.0.0.1:1883]")
@click.option(
    "--listen", help="HOST:PORT of the HTTP API; port 0 takes a free one.  [default: 127.0.0.1:8470]"
)
@click.option("--root", help="Root of the topic tree.  [default: shallop/v1]")
@click.option("--keys", help="Directory of the fleet's keys.  [default: DATA/keys]")
@click.option("--insecure-unsigned", is_flag=True, default=None, help="Publish without signatures.")
@click.option("--deltas/--no-deltas", default=None, help="Offer deltas between releases.  [default: on]")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="fleet.yaml.")
def serve(config_path: Path | None, **options: Any) -> None:  # noqa: ANN401 - as click read them
    """Run the registry until it is told to stop.

    Example: shallop-fleet serve --data ./fleet-data --broker mqtt://127.0.0.1:1883 --insecure-unsigned
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for chatty in ("alembic", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        config: Config = load(config_path, options)
        # Imported only here: the other commands need neither a database nor a web server.
        from fleet.app import serve as run  # noqa: PLC0415 - as said

        run(config)
    except ShallopError as error:
        fail(error)


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--release-key",
    "release_keys",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Sign here with this release key, as often as its threshold asks; else the registry signs.",
)
@click.option("--raw", is_flag=True, help="Compress no chunk, for agents that cannot read it.")
@changing
def publish(
    client: Client, as_json: bool, directory: Path, release_keys: tuple[Path, ...], raw: bool
) -> None:
    """Check a bundle, upload what the registry lacks, and publish it.

    Example: shallop-fleet publish ./bundle --release-key /media/usb/release-1a2b3c4d5e6f.pem
    """
    bundle = read_bundle(directory) if raw else compressed(read_bundle(directory))
    signers = [opened(path) for path in release_keys]
    envelope = seal("release", bundle.data, signers) if signers else None
    answer = con.with_upload_bar(lambda progress: client.upload(bundle, progress, envelope))
    if as_json:
        con.print_json(answer)
    else:
        click.echo(f"published {answer.model}@{answer.release} {answer.digest}")


@main.command()
@remote
def releases(client: Client, as_json: bool) -> None:
    """List releases.

    Example: shallop-fleet releases --json
    """
    found = client.releases()
    con.print_json(found) if as_json else con.console().print(con.releases_table(found))


@main.command()
@remote
def health(client: Client, as_json: bool) -> None:
    """State of the registry and its broker.

    Example: shallop-fleet health
    """
    found = client.health()
    if as_json:
        con.print_json(found)
        return
    restored = found.pop("restored", None)
    for key, value in con.facts(found):
        click.echo(f"{key:24} {value}")
    for line in () if restored is None else restored_lines(restored):
        click.echo(line)


# --- devices ------------------------------------------------------------------------------------------


@main.group(invoke_without_command=True)
@click.option("--select", default="all", help="Which devices, such as 'arch=aarch64 and label.site=roof'.")
@server_option
@token_option
@json_option
@click.pass_context
def devices(context: click.Context, select: str, server: str, token_file: Path | None, as_json: bool) -> None:
    """List devices, or do something with one.

    Example: shallop-fleet devices --select 'group=north and arch=aarch64'
    """
    if context.invoked_subcommand is not None:
        return
    try:
        with Client(server, token_of(token_file)) as client:
            found = client.devices(select)
    except ShallopError as error:
        fail(error)
    con.print_json(found) if as_json else con.console().print(con.devices_table(found))


@devices.command("show")
@click.argument("device")
@remote
def devices_show(client: Client, as_json: bool, device: str) -> None:
    """Show one device.

    Example: shallop-fleet devices show roof-17
    """
    found = client.device(device)
    if as_json:
        con.print_json(found)
        return
    for table in con.device_tables(found):
        con.console().print(table)


@devices.command("forget")
@click.argument("device")
@changing
def devices_forget(client: Client, as_json: bool, device: str) -> None:
    """Delete a device; if it lives, it comes back as a new one.

    Example: shallop-fleet devices forget roof-17
    """
    client.forget(device)
    con.print_json({"forgotten": device}) if as_json else click.echo(f"{device} is forgotten")


@devices.command("label")
@click.argument("device")
@click.argument("labels", nargs=-1, required=True)
@changing
def devices_label(client: Client, as_json: bool, device: str, labels: tuple[str, ...]) -> None:
    """Set labels; `key=` removes one.

    Example: shallop-fleet devices label roof-17 site=roof ring=canary
    """
    changes: dict[str, str | None] = {}
    for label in labels:
        key, equals, value = label.partition("=")
        if not equals:
            raise click.UsageError(f"{label!r} is no label; write key=value, or key= to remove one")
        changes[key] = value or None
    found = client.label(device, changes)
    con.print_json(found) if as_json else click.echo(f"{device}: {found.labels}")


@devices.command("group")
@click.argument("device")
@click.argument("groups", nargs=-1)
@changing
def devices_group(client: Client, as_json: bool, device: str, groups: tuple[str, ...]) -> None:
    """Set the groups of a device; none given: it is in no group.

    Example: shallop-fleet devices group roof-17 north canary
    """
    found = client.group(device, groups)
    con.print_json(found) if as_json else click.echo(f"{device}: {', '.join(found.groups) or 'no group'}")


@devices.command("clear-duplicate")
@click.argument("device")
@changing
def devices_clear_duplicate(client: Client, as_json: bool, device: str) -> None:
    """Take the mark of two machines under one id away, once that is mended.

    Example: shallop-fleet devices clear-duplicate roof-17
    """
    found = client.clear_duplicate(device)
    con.print_json(found) if as_json else click.echo(f"{device}: the mark is gone")


# --- rollouts -----------------------------------------------------------------------------------------


@main.group()
def rollout() -> None:
    """Roll a release out in waves.

    Example: shallop-fleet rollout start camera@v2 --waves 1,50%,100% --wait
    """


@rollout.command("start")
@click.argument("release")
@click.option("--select", default="all", show_default=True, help="Which devices.")
@click.option("--waves", default="1,50%,100%", show_default=True, help="Counts, then shares, growing.")
@click.option("--gate", "gate_path", type=click.Path(path_type=Path), help="GATE.yaml; see fleet/gates.py.")
@click.option("--soak", "soak_s", type=float, default=60.0, show_default=True, help="Seconds.")
@click.option("--deadline", "deadline_s", type=float, default=86400.0, show_default=True, help="Seconds.")
@failure_option("--on-failure", "When a gate fails.")
@click.option("--evaluate", is_flag=True, help="Trial and report, activate nothing.")
@click.option("--approval", is_flag=True, help="After its first wave, wait for a second person.")
@click.option("--pace", "pace_per_minute", type=int, help="Orders a minute at most.")
@click.option("--wait", is_flag=True, help="Wait for the end; exit 3 if it is not complete.")
@changing
def rollout_start(
    client: Client,
    as_json: bool,
    /,
    release: str,
    gate_path: Path | None,
    wait: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Start a rollout of MODEL@RELEASE.

    Example: shallop-fleet rollout start camera@v2 --select 'arch=aarch64' --waves 1,50%,100% --gate gate.yaml
    """
    model, at, name = release.partition("@")
    if not at:
        raise click.UsageError(f"{release!r} is no release; write MODEL@RELEASE, such as camera@v2")
    gate = {} if gate_path is None else read_mapping(gate_path)
    mode = "evaluate" if options.pop("evaluate") else "deploy"
    on_failure = FailureAction(options.pop("on_failure"))
    ask = RolloutAsk(model=model, release=name, gate=gate, mode=mode, on_failure=on_failure, **options)
    begun = client.start(ask)
    if not wait:
        con.print_json(begun) if as_json else click.echo(f"started {begun.id}; see: rollout show {begun.id}")
        return
    _end_with(_waited(client, begun.id), as_json)


def _waited(client: Client, rollout_id: str) -> RolloutShow:
    shown: list[RolloutShow] = []

    def look() -> tuple[str, bool]:
        show = client.rollout(rollout_id)
        shown.append(show)
        del shown[:-1]
        r = show.rollout
        words = f"{r.id} {r.state}, {r.devices} devices: {r.waiting_for or r.reason}"
        return words, r.state in {"completed", "halted", "aborted", "paused", "unapproved"}

    con.watch(look, POLL_S)
    return shown[-1]


def _end_with(show: RolloutShow, as_json: bool) -> None:
    _print_rollout(show, as_json)
    if show.rollout.state != "completed":
        # It quotes what a device says.
        click.echo(one_line(f"the rollout is {show.rollout.state}: {show.rollout.reason}"), err=True)
        sys.exit(NOT_COMPLETED)


def _print_rollout(show: RolloutShow, as_json: bool) -> None:
    if as_json:
        con.print_json(show)
        return
    for part in con.rollout_tables(show):
        # A line that a person pastes must not be broken in two, nor a `[` in it be read as markup.
        if isinstance(part, str):
            click.echo(con.harmless(part))
        else:
            con.console().print(part)


@rollout.command("list")
@remote
def rollout_list(client: Client, as_json: bool) -> None:
    """List rollouts.

    Example: shallop-fleet rollout list
    """
    found = client.rollouts()
    con.print_json(found) if as_json else con.console().print(con.rollouts_table(found))


@rollout.command("show")
@click.argument("rollout_id")
@click.option("--wait", is_flag=True, help="Wait for the end; exit 3 if it is not complete.")
@remote
def rollout_show(client: Client, as_json: bool, rollout_id: str, wait: bool) -> None:
    """Show a rollout: each device with what it measured, the gate, and the ready way back.

    Example: shallop-fleet rollout show ro-0123456789ab
    """
    if wait:
        _end_with(_waited(client, rollout_id), as_json)
    else:
        _print_rollout(client.rollout(rollout_id), as_json)


@rollout.command("pause")
@click.argument("rollout_id")
@changing
def rollout_pause(client: Client, as_json: bool, rollout_id: str) -> None:
    """Open no further wave; devices that have orders go on.

    Example: shallop-fleet rollout pause ro-0123456789ab --why 'weekend'
    """
    rollout_verb(client, as_json, rollout_id, "pause", {})


@rollout.command("resume")
@click.argument("rollout_id")
@changing
def rollout_resume(client: Client, as_json: bool, rollout_id: str) -> None:
    """Go on with a paused rollout.

    Example: shallop-fleet rollout resume ro-0123456789ab
    """
    rollout_verb(client, as_json, rollout_id, "resume", {})


@rollout.command("abort")
@click.argument("rollout_id")
@failure_option("--action", "What becomes of the devices that it reached.")
@changing
def rollout_abort(client: Client, as_json: bool, rollout_id: str, action: str) -> None:
    """End a rollout.

    Example: shallop-fleet rollout abort ro-0123456789ab --action rollback_all
    """
    rollout_verb(client, as_json, rollout_id, "abort", {"action": action})


for command in (rollout_approve, rollout_reject):
    rollout.add_command(command)


# --- rollback -----------------------------------------------------------------------------------------


@main.command()
@click.argument("model")
@click.option("--device", "devices_", multiple=True, help="A device; may be given again.")
@click.option("--group", help="All devices of a group.")
@click.option("--all", "everything", is_flag=True, help="The whole fleet.")
@click.option("--wait", is_flag=True, help="Wait until every device has answered; exit 3 if one could not.")
@changing
def rollback(
    client: Client,
    as_json: bool,
    model: str,
    devices_: tuple[str, ...],
    group: str | None,
    everything: bool,
    wait: bool,
) -> None:
    """Take a model back to the release before, without any download.

    Example: shallop-fleet rollback camera --device roof-17 --wait
    """
    show = client.roll_back(RollbackAsk(model=model, devices=devices_, group=group, all=everything))
    if wait:
        rollback_id = show.id

        def look() -> tuple[str, bool]:
            now = client.rollback(rollback_id)
            done = sum(line.state == "done" for line in now.devices)
            return f"{rollback_id}: {done} of {len(now.devices)} devices are back", now.ended

        con.watch(look, POLL_S)
        show = client.rollback(rollback_id)
    con.print_json(show) if as_json else con.console().print(con.rollback_table(show))
    if wait and any(line.state != "done" for line in show.devices):
        sys.exit(NOT_COMPLETED)


for command in (keys_group, tokens_group, audit_group, bar, unbar, bars, enrol_group, broker_group):
    main.add_command(command)
devices.add_command(devices_revoke)
for command in (verify_command, export_signature_command):
    main.add_command(command)


if __name__ == "__main__":
    main()
