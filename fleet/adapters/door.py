"""How a registry comes to its broker: with which certificate, under which name, and who keeps the door.

For: reading that off the configuration once, when the registry starts.
Not for: the connection itself (`fleet.adapters.mqtt_broker`) or cutting off (`fleet.adapters.gate`).
"""

from __future__ import annotations

import os
import ssl

from msgspec import Struct

from fleet.adapters.authority import Authority
from fleet.adapters.broker_files import BrokerFiles
from fleet.adapters.broker_tls import client_context
from fleet.adapters.gate import BrokerGate, NoGate
from fleet.adapters.key_files import PASSPHRASE
from fleet.adapters.mqtt_broker import encrypted, parse_url
from fleet.broker_rules import REGISTRY
from fleet.config import Config
from fleet.ports import Clock


class Door(Struct, frozen=True, kw_only=True):
    """The way to the broker.

    Attributes:
        tls: None for mqtt://.
        client_id: the name in the certificate; None where the registry chooses one.
        gate: cuts devices off.
    """

    tls: ssl.SSLContext | None
    client_id: str | None
    gate: BrokerGate | NoGate


def open_door(config: Config, clock: Clock) -> Door:
    """What the configuration says, with the registry's own certificate renewed where that is due.

    Raises:
        BrokerError: `broker_url`, or `broker_tls`: its files cannot be used.
        KeysError: the authority or the broker's files cannot be read.
    """
    address = parse_url(config.broker)
    if not encrypted(config.broker):
        return Door(
            tls=None, client_id=None, gate=NoGate("the broker asks nobody for a certificate (mqtt://)")
        )
    keys, files = config.keys_dir, BrokerFiles(config.broker_files_dir, config.keys_dir)
    given = config.broker_tls
    if not files.exist or not Authority.exists(keys):
        why = f"the broker was not set up from here: there is no {files.out} (`shallop-fleet broker init`)"
        return Door(tls=_context(config), client_id=REGISTRY, gate=NoGate(why))
    gate = BrokerGate(files, Authority.load(keys, os.environ.get(PASSPHRASE)), address, clock)
    gate.renew()
    tls = _context(config)
    if given.cert_file is None:
        gate.on_renewed(lambda: tls.load_cert_chain(keys / "registry.pem"))
    return Door(tls=tls, client_id=REGISTRY, gate=gate)


def _context(config: Config) -> ssl.SSLContext:
    return client_context(*config.broker_tls_files)
