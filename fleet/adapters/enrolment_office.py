"""Enrolment put together on its adapters: the authority's key, the listener, and what they serve.

For: one thing that the registry starts and stops, whether or not it has keys and an authority.
Not for: deciding anything (`fleet.enrolling`, `fleet.enrolments`).
"""

from __future__ import annotations

from fleet.adapters.authority import Authority
from fleet.adapters.door import Door
from fleet.adapters.enrol_server import EnrolServer, Limits
from fleet.adapters.key_files import verify
from fleet.api.enrol_door import Door as EnrolDoor
from fleet.config import Config
from fleet.current import Current
from fleet.doorman import Doorman
from fleet.enrolling import Enrolling, Office
from fleet.enrolments import DAY_S, Bounds
from fleet.orders import Desk
from fleet.ports import Clock, ConflictError, Store
from wire.enrolment import BrokerAddress


class EnrolmentOffice:
    """Enrolment of one registry.

    Attributes:
        enrolling: the verbs.

    Raises:
        KeysError: the authority cannot sign the listener a certificate.
        ConflictError: `no_keys` or `no_ca`: a listener is configured, and what it needs is not there;
            `address_in_use`.
        ConfigError: the configuration's addresses cannot be used.
    """

    def __init__(self, config: Config, store: Store, clock: Clock, desk: Current[Desk], door: Door) -> None:
        folder, listen = config.keys_dir, config.enrol_address
        self._authority = door.authority
        self._server: EnrolServer | None = None
        self._url: str | None = None
        if listen is not None:
            if desk.now.root is None:
                raise ConflictError(
                    "no_keys",
                    f"enrol_listen is set and {folder} holds no keys; `shallop-fleet keys init`",
                )
            self._listen(config, listen)
        host, port = config.broker_told
        office = Office(
            authority=lambda: self._authority.now, check=verify, url=lambda: self._url,
            broker=BrokerAddress(host=host, port=port, root=config.root),
            bounds=Bounds(
                expired_renew_s=config.expired_renew_days * DAY_S,
                renewals_per_day_max=config.renewals_per_day_max,
            ),
            lifetime_s=config.certificate_days * DAY_S, devices_max=config.devices_max,
        )  # fmt: skip
        self._doorman = Doorman(store, clock, door.gate)
        self.enrolling = Enrolling(store, clock, desk, office, self._doorman)

    def _listen(self, config: Config, listen: tuple[str, int]) -> None:
        authority = self._authority.now
        if authority is None:
            raise ConflictError(
                "no_ca",
                f"enrol_listen is set and there is no certificate authority in {config.keys_dir}; make it by "
                "`shallop-fleet broker init`",
            )
        limits = Limits(
            connections_max=config.enrol_connections_max, request_s=config.enrol_request_s,
            connections_per_minute=config.enrol_connections_per_minute,
            failures_per_minute=config.enrol_failures_per_minute,
        )  # fmt: skip
        self._server = EnrolServer(listen, config.enrol_hosts, authority, limits)
        self._url = config.enrol_address_told(self._server.port)

    def start(self) -> None:
        """Lets devices in, and tells the broker what it was not told before."""
        self._doorman.start()
        if self._server is not None:
            self._server.start(EnrolDoor(self.enrolling, self._accepted).answer)

    def follow(self, authority: Authority) -> None:
        """Strangers are shown a certificate of that authority from now on.

        Raises:
            KeysError: `no_life`: it can sign none; nothing changed.
        """
        if self._server is not None:
            self._server.follow(authority)

    def _accepted(self) -> str:
        authority = self._authority.now
        return "" if authority is None else authority.certificates_pem

    def stop(self) -> None:
        """Closes the door."""
        if self._server is not None:
            self._server.stop()
        self._doorman.stop()
