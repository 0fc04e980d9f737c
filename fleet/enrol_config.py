"""Enrolment's part of the registry's configuration.

For: where devices enrol, what strangers may use up, how long certificates live; part of `fleet.config`.
Not for: reading files (`fleet.config`), or the configuration of the broker (`shallop-fleet broker init`).

    enrol_listen: 0.0.0.0:8471
    enrol_hosts: [fleet.example, 192.0.2.7]
    certificate_days: 90
"""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta, Struct

from wire.enrolment import server
from wire.errors import ShallopError, WireError

_Days = Annotated[float, Meta(gt=0.0, le=20 * 366.0)]
_Host = Annotated[str, Meta(min_length=1, max_length=253)]
_PerMinute = Annotated[int, Meta(ge=1, le=1_000_000)]


class ConfigError(ShallopError):
    """The configuration cannot be used."""


class EnrolConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How devices enrol.

    Attributes:
        enrol_listen: HOST:PORT of the devices' HTTPS; None: no device enrols here.
        enrol_hosts: names and addresses under which devices reach it; they stand in its certificate, and the
            first one in tokens.
        enrol_url: https://HOST:PORT in tokens, where a router translates the port; its host must be one of
            `enrol_hosts`. None: the first host and the port that is listened on.
        enrol_broker: HOST:PORT at which devices find the broker; None: the first host and port 8883.
        enrol_connections_max: of strangers at one time.
        enrol_request_s: from a stranger's connection to the last byte of its answer; within it a device that
            was revoked waits until the broker lets it in again.
        enrol_connections_per_minute: of one address; a whole site may stand behind one.
        enrol_failures_per_minute: wrong tries of one address; then it waits.
        certificate_days: life of a device's certificate; it renews at two thirds of it.
        expired_renew_days: how long after its end a certificate's key may still ask for the next one.
        renewals_per_day_max: certificates that one device gets by renewal within 24 hours.
    """

    enrol_listen: str | None = None
    enrol_hosts: Annotated[tuple[_Host, ...], Meta(max_length=32)] = ()
    enrol_url: str | None = None
    enrol_broker: str | None = None
    enrol_connections_max: Annotated[int, Meta(ge=1, le=10_000)] = 256
    enrol_request_s: Annotated[float, Meta(gt=0.0, le=300.0)] = 30.0
    enrol_connections_per_minute: _PerMinute = 240
    enrol_failures_per_minute: _PerMinute = 20
    certificate_days: _Days = 90.0
    expired_renew_days: Annotated[float, Meta(ge=0.0, le=20 * 366.0)] = 400.0
    renewals_per_day_max: Annotated[int, Meta(ge=1, le=1000)] = 10

    @property
    def enrol_address(self) -> tuple[str, int] | None:
        """Host and port of the devices' HTTPS; None where it is off.

        Raises:
            ConfigError: `listen_malformed` or `enrol_hosts_missing`.
        """
        if self.enrol_listen is None:
            return None
        if not self.enrol_hosts:
            raise ConfigError(
                "enrol_hosts_missing",
                "enrol_listen needs enrol_hosts: the names by which devices reach this machine",
            )
        return address(self.enrol_listen, "enrol_listen")

    def enrol_address_told(self, port: int) -> str:
        """https://HOST:PORT as it stands in tokens.

        Args:
            port: that is listened on.

        Raises:
            ConfigError: `enrol_url_malformed`: a host that no certificate can be checked against.
        """
        url = self.enrol_url or f"https://{_in_url(self.enrol_hosts[0])}:{port}"
        try:
            host, _port = server(url)
        except WireError as error:
            raise ConfigError("enrol_url_malformed", f"enrol_url cannot be used: {error.args[0]}") from None
        if host not in {known.strip("[]") for known in self.enrol_hosts}:
            raise ConfigError(
                "enrol_url_malformed", f"the host of enrol_url, {host}, must be one of enrol_hosts"
            )
        return url

    @property
    def broker_told(self) -> tuple[str, int]:
        """Host and port of the broker for devices.

        Raises:
            ConfigError: `listen_malformed`.
        """
        if self.enrol_broker is not None:
            return address(self.enrol_broker, "enrol_broker")
        return (self.enrol_hosts[0].strip("[]") if self.enrol_hosts else "localhost"), 8883


def address(text: str, key: str) -> tuple[str, int]:
    """Host and port of HOST:PORT.

    Raises:
        ConfigError: `listen_malformed`.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ConfigError("listen_malformed", f"{key} is {text!r}; write HOST:PORT")
    return host.strip("[]"), int(port)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
