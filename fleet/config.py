"""The registry's configuration: defaults, then a YAML file, then the command line.

For: one frozen value with every limit and its unit, parsed once, unknown keys refused.
Not for: what a rollout asks for, or anything that a person changes while the registry runs.

Example of a fleet.yaml; every key is optional:

    listen: 127.0.0.1:8470
    broker: mqtt://127.0.0.1:1883
    root: shallop/v1
    database: postgresql+psycopg://shallop@db/shallop
    insecure_unsigned: true
    tick_s: 1.0
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
import yaml
from msgspec import Meta, Struct

from fleet.enrol_config import ConfigError, EnrolConfig, address
from wire import plain_yaml
from wire.errors import WireError
from wire.topics import ROOT_DEFAULT, Topics
from wire.types import Seconds

__all__ = ["Config", "ConfigError", "load", "read_mapping"]

CONFIG_BYTES_MAX = 256 * 1024


class BrokerTls(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """With what the registry speaks TLS to the broker, for mqtts://; `broker init` makes the defaults.

    Attributes:
        ca_file: whose certificates are accepted of the broker; None is KEYS/ca.pem.
        cert_file: our own, with the name `fleet.registry`; None is KEYS/registry.pem.
        key_file: its private key; None: it lies in `cert_file`.
    """

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


class Config(EnrolConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a registry runs; how devices enrol is `fleet.enrol_config`.

    Attributes:
        data: directory for blobs and, unless `database` says otherwise, the database.
        database: URL for SQLAlchemy; None is SQLite at DATA/fleet.db.
        broker: mqtts://HOST:PORT with TLS (docs/broker.md), or mqtt://HOST:PORT on loopback.
        broker_tls: certificates for mqtts://.
        broker_files: directory of what the broker reads (`broker init --out`); None is DATA/broker.
        listen: HOST:PORT of the HTTP API. Beyond loopback a token
            must have been made (`shallop-fleet tokens create`).
        root: of the topic tree.
        keys: directory of the root documents and the online keys (`shallop-fleet keys init`); None is
            DATA/keys. With keys there everything is signed.
        insecure_unsigned: publish without signatures; without it and without keys nothing is published.
        tick_s: how often rollouts, and the files of the keys, are looked at when nothing happens.
        ingest_batch_max: messages from devices in one transaction.
        publish_batch_max: posts in one round of publishing.
        publish_timeout_s: how long a round waits for acknowledgements.
        seed_wait_s: how long after a connection the retained seed is waited for.
        rollback_answer_s: how long a device may take to answer a rollback command before only its
            desired document is counted on.
        republish_s: least time between two publications of a digest that devices miss.
        report_gap_s: how long a missing report holds up the acknowledgement of later ones.
        reports_keep_s: how long acknowledged reports are kept.
        approval: whether every rollout needs a second person before its second wave
            (`shallop-fleet rollout start --approval` asks for one rollout).
        deltas: whether devices are offered deltas between releases (`on` or `off`).
        devices_max: devices taken up; messages of further ones are refused.
    """

    data: str = "."
    database: str | None = None
    broker: str = "mqtt://127.0.0.1:1883"
    broker_tls: BrokerTls = BrokerTls()
    broker_files: str | None = None
    listen: str = "127.0.0.1:8470"
    root: str = ROOT_DEFAULT
    keys: str | None = None
    insecure_unsigned: bool = False
    tick_s: Annotated[float, Meta(gt=0.0, le=60.0)] = 1.0
    ingest_batch_max: Annotated[int, Meta(ge=1, le=10_000)] = 500
    publish_batch_max: Annotated[int, Meta(ge=1, le=10_000)] = 256
    publish_timeout_s: Annotated[float, Meta(gt=0.0, le=600.0)] = 10.0
    seed_wait_s: Annotated[float, Meta(ge=0.0, le=60.0)] = 2.0
    rollback_answer_s: Seconds = 30.0
    republish_s: Seconds = 30.0
    report_gap_s: Seconds = 600.0
    reports_keep_s: Seconds = 90 * 86400.0
    approval: bool = False
    deltas: bool = True
    devices_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 100_000

    @property
    def database_url(self) -> str:
        """The database's URL, the default written out."""
        return self.database or f"sqlite:///{(Path(self.data) / 'fleet.db').resolve()}"

    @property
    def keys_dir(self) -> Path:
        """Where the keys lie, the default written out."""
        return Path(self.keys) if self.keys else Path(self.data) / "keys"

    @property
    def broker_files_dir(self) -> Path:
        """Where the broker's files lie, the default written out."""
        return Path(self.broker_files) if self.broker_files else Path(self.data) / "broker"

    @property
    def broker_tls_files(self) -> tuple[Path, Path, Path | None]:
        """Authorities, own certificate and, where it lies elsewhere, its key; defaults written out."""
        given, keys = self.broker_tls, self.keys_dir
        key = Path(given.key_file) if given.key_file else None
        return Path(given.ca_file or keys / "ca.pem"), Path(given.cert_file or keys / "registry.pem"), key

    @property
    def publisher_options(self) -> tuple[str, ...]:
        """Options by which `mosquitto_pub` publishes as this registry, while it is down."""
        parts = urlsplit(self.broker)
        encrypted = parts.scheme == "mqtts"
        where = ("-h", parts.hostname or "", "-p", str(parts.port or (8883 if encrypted else 1883)))
        if not encrypted:
            return where
        authorities, own, key = self.broker_tls_files
        return (*where, "--cafile", str(authorities), "--cert", str(own), "--key", str(key or own))

    @property
    def listen_address(self) -> tuple[str, int]:
        """Host and port to listen on.

        Raises:
            ConfigError: `listen_malformed`.
        """
        return address(self.listen, "listen")


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file; an empty file has none.

    Raises:
        ConfigError: `config_unreadable` or `config_malformed`.
    """
    try:
        with path.open("rb") as file:
            text = file.read(CONFIG_BYTES_MAX + 1)
        if len(text) > CONFIG_BYTES_MAX:
            raise ConfigError("config_unreadable", f"{path} is larger than {CONFIG_BYTES_MAX} bytes")
        parsed = plain_yaml.read(yaml, text)
    except (OSError, WireError) as error:
        raise ConfigError("config_unreadable", f"{path} cannot be read: {error}") from None
    if parsed is None:
        return {}
    if not isinstance(parsed, dict) or not all(isinstance(key, str) for key in parsed):
        raise ConfigError("config_malformed", f"{path} must hold keys and values, such as `key: value`")
    return parsed


def load(path: Path | None, overrides: dict[str, Any]) -> Config:
    """The configuration; `overrides` that are None are not given.

    Raises:
        ConfigError: `config_unreadable` or `config_malformed`, naming the key.
    """
    values: dict[str, Any] = {} if path is None else read_mapping(path)
    values.update({key: value for key, value in overrides.items() if value is not None})
    try:
        config = msgspec.convert(values, Config)
        Topics(config.root)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise ConfigError("config_malformed", f"the configuration cannot be used: {error}") from None
    _ = config.listen_address, config.enrol_address, config.broker_told
    return config
