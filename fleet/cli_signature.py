"""`shallop-fleet export-signature`: an OpenSSF model signature of a release, for others' tools.

For: reading arguments, checking the release first, signing, and reading back what was signed.
Not for: the signature that devices believe (`wire.trust`), or the library (`fleet.adapters.model_signature`).

Exit codes: 0 done, 1 the release does not hold (nothing is signed), 2 bad input, 4 no registry answers.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from fleet.adapters.key_files import PASSPHRASE
from fleet.adapters.key_files import verify as check_signature
from fleet.adapters.model_signature import SignatureExportError, require_able, sign_directory, write_new
from fleet.cli_common import fail, server_option, token_option
from fleet.cli_verify import FAILED, digest_option, place_of, show
from fleet.publish.content import read_manifest
from fleet.publish.directory import MANIFEST
from fleet.verification import Asked, Holder, verify
from fleet.verify_statement import expected_files, statement_fault
from wire.bundle import Manifest
from wire.chunks import digest
from wire.errors import ShallopError

_PATH = click.Path(path_type=Path)


@click.command("export-signature")
@click.argument("subject", metavar="RELEASE|DIRECTORY")
@click.option("--key", type=_PATH, required=True, help="PEM file of an EC private key (P-256, P-384, P-521).")
@click.option("--out", type=_PATH, required=True, help="File to write, such as model.sig.")
@click.option("--files", type=_PATH, help="New directory for a release's files; others verify them there.")
@click.option("--root-sha256", callback=digest_option, metavar="SHA256", help="The root that you trust.")
@server_option
@token_option
def export_signature_command(
    subject: str, key: Path, out: Path, files: Path | None, root_sha256: str | None, server: str,
    token_file: Path | None,
) -> None:  # fmt: skip
    """Sign a release as OpenSSF model-signing does, for whoever verifies models with its tools.

    A release of the registry is written to --files, a bundle's directory is signed where it lies. It is
    checked first as `verify` does, and nothing is signed that does not hold.

    Example: shallop-fleet export-signature camera@v2 --key signing.pem --files camera-v2 --out camera-v2.sig
    """
    folder = Path(subject)
    if folder.is_dir() == (files is not None):
        raise click.UsageError("--files DIR is for a release of the registry, and needed there")
    try:
        # Before anything is fetched, so that a wrong key leaves no directory behind.
        require_able(key, os.environ.get(PASSPHRASE), out)
        with place_of(subject, server, token_file) as (holder, topics):
            found = verify(
                holder, Asked(subject=subject, root_sha256=root_sha256, topics=topics), check_signature
            )
            if not found.holds:
                show(found)
                click.echo("nothing is signed", err=True)
                sys.exit(FAILED)
            data = holder.manifest()
            manifest = read_manifest(data)
            if files is not None:
                write_files(holder, manifest, data, files)
        _sign(files or folder, expected_files(manifest, digest(data)), key, out)
    except ShallopError as error:
        fail(error)
    click.echo(f"wrote {out}: {manifest.model}@{manifest.release} {digest(data)}")
    where = files or folder
    click.echo(f"verify it: model_signing verify key {where} --signature {out} --public_key PUBLIC.pem")


def _sign(directory: Path, expected: dict[str, str], key: Path, out: Path) -> None:
    bundle = sign_directory(directory, expected.keys(), key, os.environ.get(PASSPHRASE))
    fault = statement_fault(bundle, expected)
    if fault:
        raise SignatureExportError("signed_otherwise", f"the signature is thrown away: {fault}")
    write_new(out, bundle)


def write_files(holder: Holder, manifest: Manifest, data: bytes, directory: Path) -> None:
    """A release as a directory that `shallop-convert` could have written.

    Raises:
        SignatureExportError: `out_exists`, `out_unwritable`.
        ShallopError: something cannot be had.
    """
    try:
        directory.mkdir(parents=True)
        for file in {file.path: file for file in manifest.all_files()}.values():
            place = directory / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("xb") as target:
                target.writelines(holder.content(file))
        (directory / MANIFEST).write_bytes(data)
    except FileExistsError:
        raise SignatureExportError(
            "out_exists", f"{directory} is there already; name a directory that is not"
        ) from None
    except OSError as error:
        raise SignatureExportError("out_unwritable", f"{directory} cannot be written: {error}") from None
