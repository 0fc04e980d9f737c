"""`shallop-fleet verify`: a release or a bundle's directory, checked end to end.

For: reading arguments, choosing the place that holds the release, printing rows, and the exit code.
Not for: the checks (`fleet.verification`).

Exit codes: 0 all that was checked holds, 1 something does not, 2 bad input, 4 no registry answers.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click

from fleet.adapters import console as con
from fleet.adapters.client import Client
from fleet.adapters.key_files import verify as check_signature
from fleet.adapters.release_holder import RegistryHolder, find_release
from fleet.adapters.retained import Look, retained
from fleet.cli_common import fail, json_option, server_option, token_of, token_option
from fleet.publish.directory import DirectoryHolder
from fleet.verification import Asked, Holder, verify
from fleet.verify import Outcome, Verification
from wire.errors import ShallopError
from wire.topics import Topics

FAILED = 1

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_COLOURS = {Outcome.OK: "green", Outcome.FAILED: "red", Outcome.NOT_RECORDED: "yellow"}


def digest_option(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """A SHA-256 as it was typed."""
    if value is not None and not re.fullmatch(r"[0-9a-f]{64}", value.lower()):
        raise click.BadParameter("a SHA-256 has 64 hexadecimal digits; `shallop-fleet keys show` prints it")
    return None if value is None else value.lower()


@contextmanager
def place_of(subject: str, server: str, token_file: Path | None) -> Iterator[tuple[Holder, Topics]]:
    """The place that holds a release, and the topic tree of its broker.

    Raises:
        ShallopError: there is no such release, or no registry.
    """
    folder = Path(subject)
    if folder.is_dir():
        yield DirectoryHolder(folder), Topics()
        return
    with Client(server, token_of(token_file)) as client:
        root = client.health().get("root")
        topics = Topics() if root is None else Topics(str(root))
        yield RegistryHolder(client, find_release(client, subject)), topics


@click.command("verify")
@click.argument("subject", metavar="RELEASE|DIRECTORY")
@click.option(
    "--root-sha256", callback=digest_option, metavar="SHA256", help="The root that you trust beforehand."
)
@click.option("--source", "model", type=_FILE, help="The FP32 model that it should be made of.")
@click.option("--calibration", type=_FILE, help="The calibration set.")
@click.option("--validation", type=_FILE, help="The validation set.")
@click.option("--search", type=_FILE, help="The labelled samples that were searched on.")
@click.option("--dataset", type=_FILE, help="The dataset.yaml.")
@click.option("--sla", type=_FILE, help="The SLA.")
@click.option("--broker", metavar="URL", help="Compare what the broker at mqtt[s]://HOST:PORT retains.")
@click.option("--broker-ca", type=_FILE, help="For mqtts://: whose certificate the broker must have.")
@click.option("--broker-cert", type=_FILE, help="For mqtts://: certificate and key, such as a device's.")
@server_option
@token_option
@json_option
def verify_command(
    subject: str, root_sha256: str | None, broker: str | None, server: str,
    token_file: Path | None, *, as_json: bool,
    **given: Path | None,
) -> None:  # fmt: skip
    """Check a release of the registry, or a bundle's directory, end to end.

    RELEASE is MODEL@NAME, a digest or the beginning of one.

    Example: shallop-fleet verify camera@v2 --root-sha256 "$(cat root.sha256)" --source camera.onnx

    Exit codes: 0 all that was checked holds, 1 something does not, 2 bad input, 4 no registry answers.
    """
    ca_file, cert_file = given.pop("broker_ca"), given.pop("broker_cert")
    look = None if broker is None else Look(url=broker, ca_file=ca_file, cert_file=cert_file)
    try:
        with place_of(subject, server, token_file) as (holder, topics):
            asked = Asked(
                subject=subject, root_sha256=root_sha256, topics=topics,
                given={kind: path for kind, path in given.items() if path is not None},
                retained=None if look is None else partial(retained, look),
            )  # fmt: skip
            with con.check_bar() as progress:
                found = verify(holder, asked, check_signature, progress)
    except ShallopError as error:
        fail(error)
    if as_json:
        con.print_json(found)
    else:
        show(found)
    sys.exit(0 if found.holds else FAILED)


def show(found: Verification) -> None:
    """The rows as lines, so that no reason is cut, and the verdict under them."""
    wide = max(len(row.check) for row in found.rows)
    for row in found.rows:
        outcome = click.style(f"{row.outcome:12}", fg=_COLOURS.get(row.outcome))
        # What a registry or a manifest says is not let loose on a terminal.
        click.echo(f"{outcome}  {row.check:{wide}}  {plain(row.reason)}")
    counts = {outcome: sum(row.outcome is outcome for row in found.rows) for outcome in Outcome}
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    click.echo(f"{plain(found.subject)} {_verdict(found)}: {told}")


def _verdict(found: Verification) -> str:
    if found.holds:
        return "holds"
    failed = any(row.outcome is Outcome.FAILED for row in found.rows)
    return "does NOT hold" if failed else "was not checked"


def plain(text: str) -> str:
    """Text without control characters."""
    return "".join(one if one.isprintable() else "?" for one in text)
