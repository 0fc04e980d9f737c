"""How a registry comes to its broker: with which certificate, under which name, and who keeps the door.

For: reading that off the configuration when the registry starts, and off its files again when they change:
the authority that names devices, and the registry's own certificates.
Not for: the connection itself (`fleet.adapters.mqtt_broker`), cutting off (`fleet.adapters.gate`), or when
the files are looked at (`fleet.adapters.following`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from fleet.adapters.authority import CERTIFICATES, KEYS, Authority
from fleet.adapters.broker_files import BrokerFiles
from fleet.adapters.broker_tls import LatestContext, client_context
from fleet.adapters.gate import BrokerGate, NoGate
from fleet.adapters.key_files import PASSPHRASE
from fleet.adapters.mqtt_broker import encrypted, parse_url
from fleet.broker_rules import REGISTRY, SERVER
from fleet.config import Config
from fleet.current import Current
from fleet.keys import KeysError
from fleet.ports import Clock, Store


class Door(Struct, frozen=True, kw_only=True):
    """The way to the broker.

    Attributes:
        tls: with which the next connection is made; None for mqtt://.
        client_id: the name in the certificate; None where the registry chooses one.
        gate: cuts devices off.
        authority: names devices; None where there was none when the registry started.
    """

    tls: LatestContext | None
    client_id: str | None
    gate: BrokerGate | NoGate
    authority: Current[Authority | None]

    @property
    def accepted(self) -> tuple[str, ...]:
        """SHA-256 of the authorities whose certificates are accepted; the first one signs."""
        authority = self.authority.now
        return () if authority is None else authority.sha256s


def open_door(config: Config, clock: Clock) -> Door:
    """What the configuration says, with the registry's own certificate renewed where that is due.

    Raises:
        BrokerError: `broker_url`, or `broker_tls`: its files cannot be used.
        KeysError: the authority or the broker's files cannot be read.
    """
    address, authority = parse_url(config.broker), _authority(config)
    if not encrypted(config.broker):
        gate = NoGate("the broker asks nobody for a certificate (mqtt://)")
        return Door(tls=None, client_id=None, gate=gate, authority=Current(authority))
    files = BrokerFiles(config.broker_files_dir, config.keys_dir)
    keeper: BrokerGate | NoGate
    if files.exist and authority is not None:
        keeper = BrokerGate(files, authority, address, clock)
        keeper.renew()
    else:
        why = f"the broker was not set up from here: there is no {files.out} (`shallop-fleet broker init`)"
        keeper = NoGate(why)
    tls = LatestContext(client_context(*config.broker_tls_files))
    return Door(tls=tls, client_id=REGISTRY, gate=keeper, authority=Current(authority))


def door_files(config: Config) -> list[Path]:
    """The files that say how the registry comes to its broker, and who names devices."""
    keys = config.keys_dir
    own = [path for path in config.broker_tls_files if path] if encrypted(config.broker) else []
    return list(dict.fromkeys([keys / CERTIFICATES, keys / KEYS, *own]))


class DoorHolder:
    """The door of a running registry; fulfils `fleet.adapters.following.Holder`.

    Args:
        config: of the registry.
        door: as it was opened.
        store: no transaction sees two authorities.
        serve: shows strangers certificates of that authority from now on; where it raises, nothing changed.
    """

    def __init__(self, config: Config, door: Door, store: Store, serve: Callable[[Authority], None]) -> None:
        self._config, self._door, self._store, self._serve = config, door, store, serve

    def files(self) -> list[Path]:
        """The authority's and the registry's own."""
        return door_files(self._config)

    def take_up(self) -> str:
        """Reads the files; another authority, or another certificate of our own, is used from now on.

        Raises:
            KeysError: the authority cannot be used; `ca_gone`; `certificate_foreign`: none of its authorities
                signed a certificate in use. Nothing changed.
            BrokerError: `broker_tls`: likewise our own certificate.
            StoreError: the database. Nothing changed.
        """
        door, before = self._door, self._door.authority.now
        # All that may be refused comes first.
        authority = None if before is None else self._successor()
        tls = None if door.tls is None else client_context(*self._config.broker_tls_files)
        with self._store.begin():
            if before is not None and authority is not None and authority.sha256s != before.sha256s:
                self._serve(authority)
                door.gate.follow(authority)
                door.authority.succeed(authority)
            if door.tls is not None and tls is not None:
                door.tls.succeed(tls)
        return "the registry's certificates" + _accepted(before, door.authority.now)

    def _successor(self) -> Authority:
        """The authority that lies there, if it fits: files of two steps or two backups do not."""
        config, authority = self._config, _authority(self._config)
        if authority is None:
            raise KeysError(
                "ca_gone",
                f"{config.keys_dir / CERTIFICATES} is gone, by which devices are known; put it back",
            )
        broker = config.broker_files_dir / SERVER
        ours = [config.broker_tls_files[1]] if config.broker_tls.cert_file is None else []
        for path in [*ours, broker] if isinstance(self._door.gate, BrokerGate) else []:
            if not authority.signed(path):
                raise KeysError(
                    "certificate_foreign",
                    f"{path} was signed by none of the authorities in {config.keys_dir / CERTIFICATES}; put "
                    "files of one backup back, or run `shallop-fleet broker renew`",
                )
        return authority


def _authority(config: Config) -> Authority | None:
    folder = config.keys_dir
    return Authority.load(folder, os.environ.get(PASSPHRASE)) if Authority.exists(folder) else None


def _accepted(before: Authority | None, now: Authority | None) -> str:
    """What changed about the authorities, in words."""
    if now is None or before is None or now.sha256s == before.sha256s:
        return ""
    names = ", ".join(name[:12] for name in now.sha256s)
    return f", and the authorities: accepted {names}; {now.sha256[:12]} signs"
