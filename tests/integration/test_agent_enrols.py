"""The real agent and the real registry: enrolled, renewed, cut off, back, ended; one model on through it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import statusing
from agent.identities import Identities
from agent.identity import Identity
from agent.journal import JournalFile
from tests.agent.twins import until
from tests.integration import bundles
from tests.integration.enrolled_fleet import EnrolledFleet

pytestmark = [pytest.mark.broker, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
DEVICE = "roof-17"
AT_ONCE_DAYS, ENDED_DAYS = 0.012, 0.00004
REVOKED = {"revoked", "certificate_refused"}
"""With the hour by which a life is backdated: more than three quarters of it over at once; ended soon."""


class Site:
    """A fleet, and one device's folder beside it."""

    def __init__(self, folder: Path) -> None:
        self.fleet = EnrolledFleet(folder / "fleet")
        self.folder, self.state = folder, folder / "state"
        self.config = folder / "agent.yaml"
        self.config.write_text(
            f"state_dir: {self.state}\ntransfer: {{reconnect_spread_s: 0}}\nbroker: {{reconnect_s_max: 1}}\n"
        )

    def write(self, days: float) -> None:
        """How long certificates live, into the registry's configuration."""
        config = self.folder / "fleet" / "fleet.yaml"
        lines = [line for line in config.read_text().splitlines() if not line.startswith("certificate_days")]
        limits = ["renewals_per_day_max: 2", f"certificate_days: {days:f}"]
        config.write_text("\n".join([*(line for line in lines if line not in limits), *limits, ""]))

    def certificates_live(self, days: float) -> None:
        """Those that are issued from now on."""
        self.fleet.registry.stop()
        self.write(days)
        self.fleet.registry.start()
        self.until(lambda: self.fleet.health()["broker_connected"], "the registry")

    def agent(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "agent", *arguments, "--config", str(self.config)],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout + done.stderr

    def token(self) -> str:
        return str(self.fleet.ask("enrol", DEVICE)["token"])

    @contextlib.contextmanager
    def daemon(self) -> Iterator[None]:
        command = [sys.executable, "-m", "agent", "run", "--config", str(self.config)]
        with (
            (self.folder / "log").open("ab") as log,
            subprocess.Popen(command, cwd=ROOT, stderr=log) as process,
        ):
            try:
                yield
                assert process.poll() is None
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(20)

    def until(self, holds: Callable[[], object], what: str) -> None:
        try:
            until(holds, what, 40)
        except AssertionError as error:
            log = self.folder / "log"
            raise AssertionError(f"{error}\n{log.read_text() if log.exists() else ''}") from None

    @property
    def identity(self) -> Identity:
        found = Identities(self.state).read()
        assert found is not None
        return found

    def online(self) -> bool:
        return bool(self.fleet.shown(DEVICE)["online"])

    @property
    def noted(self) -> statusing.Noted:
        """What the agent tells `status`."""
        found = statusing.read(self.state)
        assert found is not None
        return found

    def why(self) -> str:
        """Why there is no newer certificate, as the device says it."""
        note = self.noted.identity
        return note.why.code if note is not None and note.why is not None else ""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    made.write(ENDED_DAYS)
    made.fleet.start()
    yield made
    made.fleet.stop()


def test_a_devices_life_in_its_fleet(site: Site) -> None:
    """One model goes on through all of it."""
    bundles.make_bundle(site.folder / "bundle", seed=1)
    model = next((site.folder / "bundle").rglob("*.onnx"))
    site.agent("adopt", "tiny", str(model))
    current = (site.state / "models" / "tiny" / "current").resolve()

    def carries_on() -> bool:
        journal = JournalFile(site.state, DEVICE).load()
        assert journal is not None
        active = journal.models["tiny"].active
        return (site.state / "models" / "tiny" / "current").resolve() == current and active is not None

    token = site.token()
    site.agent("enrol", token)
    ended = site.identity
    assert "token_used" in site.agent("enrol", token, code=1), "the same token, another key"
    assert site.identity == ended

    site.certificates_live(AT_ONCE_DAYS)
    site.until(lambda: time.time() > ended.not_after_s + 1, "the end of the certificate")
    with site.daemon():
        site.until(site.online, "the way back by HTTPS, without a certificate that lives")
        site.until(lambda: site.identity.not_after_s > ended.not_after_s, "the new identity")
        https = site.identity
        assert carries_on()
    with site.daemon():
        site.until(lambda: site.identity.public != https.public, "a renewal over the connection")
        site.until(lambda: site.noted.connected, "the connection with it")
        assert carries_on()
    with site.daemon():
        site.until(lambda: site.why() == "too_many", "the registry's limit")
        assert site.noted.connected

        site.fleet.command("devices", "revoke", DEVICE, "--server", site.fleet.registry.url)
        site.until(lambda: not site.noted.connected and site.why() in REVOKED, "the reason")
        revoked = site.identity
        assert carries_on()

        assert "took it up" in site.agent("enrol", site.token())
        site.until(lambda: site.noted.connected and site.online(), "the way back")
        assert site.identity.public != revoked.public
        assert carries_on()
