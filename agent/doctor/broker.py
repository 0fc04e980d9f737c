"""PURE. The broker, its certificate, and who this device is to it.

For: judging one conversation with the broker, step by step: name, connection, TLS, login, answer.
Not for: having it (`agent.adapters.probe_broker`).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from agent.doctor.finding import Finding, ok, problem, unknown, warning

EXPIRY_DAYS_MIN = 30
Source = Literal["enrolment", "configuration", "board serial number", "machine id", "nothing"]
Step = Literal["name", "connect", "tls", "login", "answer"]

# OpenSSL's X509_V_ERR_* numbers (x509_vfy.h).
_NOT_YET_VALID, _EXPIRED, _SELF_SIGNED, _SELF_SIGNED_CHAIN, _NO_ISSUER_LOCAL, _NO_ISSUER = (
    9,
    10,
    18,
    19,
    20,
    21,
)
_OTHER_NAME, _OTHER_ADDRESS = 62, 64

_CONNACK = {
    1: ("speaks no MQTT 3.1.1", "use a broker that does; all of any age do"),
    2: ("refuses the client id", "set `broker.client_id` to what the broker expects"),
    3: ("says that it is not available", "look at the broker's own log"),
    4: (
        "refuses user name or password",
        "check `broker.username` and the first line of `broker.password_file`",
    ),
    5: (
        "does not authorise this client",
        "check the broker's access list, `broker.username` and its certificate rules",
    ),
}
"""MQTT 3.1.1, table 3.1."""


class BrokerFacts(Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        host: as configured.
        port: as configured.
        client_id: that was used; never that of a running agent, which would be thrown off.
        tls: whether it is configured.
        loopback: whether the broker is on this machine.
        failed: the step that did not work; None where all did.
        error: its words.
        verify_code: of a certificate that was refused.
        connack: return code of a refused login.
        round_trip_ms: median of a few pings.
        tls_version: that was agreed on.
        not_after_s: when the broker's certificate ends.
        own_not_after_s: when this device's ends; None where it has none or it could not be read.
        now_s: the time at which certificates were judged.
        silent: whether the conversation ended before the login, on purpose.
    """

    host: str
    port: int
    client_id: str = ""
    tls: bool = False
    loopback: bool = False
    failed: Step | None = None
    error: str = ""
    verify_code: int | None = None
    connack: int | None = None
    round_trip_ms: float | None = None
    tls_version: str = ""
    not_after_s: float | None = None
    own_not_after_s: float | None = None
    now_s: float = 0.0
    silent: bool = False


class AgentFacts(Struct, frozen=True, kw_only=True):
    """What the running agent's own status says.

    Attributes:
        running: whether its lock is held.
        pid: of the holder.
        connected: by its status; None where it is not known.
        since: of that, RFC 3339.
        detail: why not connected.
    """

    running: bool
    pid: int | None = None
    connected: bool | None = None
    since: str = ""
    detail: str = ""


def broker(facts: BrokerFacts, agent: AgentFacts) -> list[Finding]:
    """Whether the agent can talk to the fleet."""
    return [_reached(facts, agent), _encrypted(facts)]


def _reached(facts: BrokerFacts, agent: AgentFacts) -> Finding:
    name, where = "broker", f"{facts.host}:{facts.port}"
    if facts.failed is None and facts.silent:
        state = f"the running agent is connected since {agent.since}" if agent.connected else "an agent runs"
        detail = f"{where} takes this device's certificate; {state}, so there was no second login"
        return ok(name, detail) if agent.connected else warning(name, detail, "see the line `agent`")
    if facts.failed is None:
        took = "" if facts.round_trip_ms is None else f", round trip {facts.round_trip_ms:.1f} ms"
        return ok(name, f"{where} accepts {facts.client_id}{took}")
    if facts.failed == "login" and agent.running and agent.connected:
        detail = (
            f"the running agent is connected since {agent.since}; {where} takes no second client from here"
        )
        return ok(name, detail)
    return problem(name, *_step(facts, where))


def _step(facts: BrokerFacts, where: str) -> tuple[str, str]:
    """What went wrong at the step, and what to do."""
    if facts.failed == "name":
        fix = f"check `broker.host` and /etc/resolv.conf; `getent hosts {facts.host}` asks the same"
        return f"the name {facts.host} leads to no address: {facts.error}", fix
    if facts.failed == "connect":
        fix = (
            "is the broker running, listening beyond its own machine, and let through by "
            f"firewalls? `nc -vz {facts.host} {facts.port}`"
        )
        return f"nothing answers at {where}: {facts.error}", fix
    if facts.failed == "tls":
        return f"{where} is there; no encrypted connection: {facts.error}", "see the line `tls`"
    if facts.connack is not None:
        says, fix = _CONNACK.get(facts.connack, ("refuses the login", "look at the broker's own log"))
        return f"{where} {says} (return code {facts.connack}, client id {facts.client_id})", fix
    if facts.failed == "login":
        hint = "" if facts.tls else "; perhaps this port wants TLS: set `broker.tls`, mostly port 8883"
        return f"{where} gives no answer to a login: {facts.error}", f"is it an MQTT port?{hint}"
    return f"{where} lets this client in and then says nothing: {facts.error}", "look at the broker's own log"


def _encrypted(facts: BrokerFacts) -> Finding:
    name = "tls"
    if not facts.tls:
        if facts.loopback:
            return ok(name, "not configured; the broker is on this machine")
        detail = "not configured: passwords and reports can be read and changed on the way"
        return warning(name, detail, "set `broker.tls: {ca_file: ...}` and the port, mostly 8883")
    if facts.failed in {"name", "connect"}:
        return unknown(name, "configured; there was no connection to try it on")
    if facts.failed == "tls":
        return problem(name, *_certificate(facts))
    return _expiry(facts) or ok(
        name, f"{facts.tls_version}, certificate valid until {_day(facts.not_after_s)}"
    )


def _certificate(facts: BrokerFacts) -> tuple[str, str]:
    """Why the broker's certificate, or the whole handshake, was refused."""
    code = facts.verify_code
    clock = f"judged at {_day(facts.now_s)}, the later of this clock and the fleet's last signed time"
    if code == _EXPIRED:
        return f"the broker's certificate has expired; {clock}", "renew it, or set the clock if that is wrong"
    if code == _NOT_YET_VALID:
        fix = (
            "set the clock (see the line `clock`); else the certificate was made by a machine "
            "with a wrong one"
        )
        return f"the broker's certificate is not valid yet; {clock}", fix
    if code in {_SELF_SIGNED, _SELF_SIGNED_CHAIN, _NO_ISSUER_LOCAL, _NO_ISSUER}:
        fix = "set `broker.tls.ca_file` to the certificate of the authority that signed the broker's"
        return f"nobody whom this device trusts has signed the broker's certificate: {facts.error}", fix
    if code in {_OTHER_NAME, _OTHER_ADDRESS}:
        fix = "use a name that stands in the certificate as `broker.host`, or add this one as subjectAltName"
        return f"the broker's certificate is not for {facts.host}: {facts.error}", fix
    return _handshake(facts)


def _handshake(facts: BrokerFacts) -> tuple[str, str]:
    """What else may end an encrypted connection before it begins."""
    lowered = facts.error.lower()
    if "certificate required" in lowered or "handshake failure" in lowered:
        fix = "set `broker.tls.cert_file` and `key_file` to what this device was given"
        return f"the broker asks for this device's own certificate: {facts.error}", fix
    if facts.tls_version:
        fix = "if it asks for this device's own certificate, set `broker.tls.cert_file` and `key_file`"
        return f"the broker ends the encrypted connection at once: {facts.error}", f"{fix}; its log says why"
    plain = "wrong version number" in lowered or "record layer failure" in lowered
    what = f"port {facts.port} does not speak TLS" if plain else "no handshake"
    return f"{what}: {facts.error}", "the TLS port is mostly 8883; the broker's own log may say more"


def _expiry(facts: BrokerFacts) -> Finding | None:
    """A certificate that ends soon, the device's own first: nobody but this device would notice."""
    for whose, ends_s in (("this device's", facts.own_not_after_s), ("the broker's", facts.not_after_s)):
        if ends_s is None:
            continue
        days = (ends_s - facts.now_s) / 86400
        if days < 0:
            fix = "renew it, or set the clock if that is wrong"
            return problem("tls", f"{whose} certificate has expired on {_day(ends_s)}", fix)
        if days < EXPIRY_DAYS_MIN:
            detail = f"{whose} certificate ends in {days:.0f} days, on {_day(ends_s)}"
            return warning("tls", detail, "renew it; after that day nothing connects")
    return None


def _day(time_s: float | None) -> str:
    return "an unknown day" if time_s is None else f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d}"


class IdentityFacts(Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        device: None where this machine offers nothing to make one of.
        source: where it comes from.
        hostname: of this machine.
        install_id: of this state directory; None where the agent has never run here.
        told_install_id: of the retained status under this name at the broker; None where there is none or it
            could not be read.
        told_online: what that status says.
    """

    device: str | None
    source: Source
    hostname: str = ""
    install_id: str | None = None
    told_install_id: str | None = None
    told_online: bool = False


def told(facts: IdentityFacts, install_id: str, *, online: bool) -> IdentityFacts:
    """With what the broker remembers under this name."""
    return replace(facts, told_install_id=install_id, told_online=online)


def identity(facts: IdentityFacts) -> list[Finding]:
    """Under which name this device is known, and whether another machine uses it too."""
    name = "device_id"
    if facts.device is None:
        detail = "this machine has neither a serial number nor a machine id: the agent does not start"
        return [problem(name, detail, "set `device` in the configuration")]
    who = f"{facts.device} (from: {facts.source}; host {facts.hostname or 'unknown'})"
    other = facts.told_install_id is not None and facts.told_install_id != facts.install_id
    if other and facts.told_online and facts.install_id is not None:
        detail = f"{who}: another machine is online under this name, and the two throw each other off"
        fix = "give each machine a `device` of its own; images must be cloned with an empty /etc/machine-id"
        return [problem(name, detail, fix)]
    if other:
        detail = f"{who}: the broker remembers a different installation under this name"
        fix = "fine if this machine was set up anew or its state directory is new; else set another `device`"
        return [warning(name, detail, fix)]
    return [ok(name, who)]


def daemon(facts: AgentFacts) -> list[Finding]:
    """Whether the agent runs and is connected, by its own status."""
    name = "agent"
    if not facts.running:
        detail = "not running: what is installed keeps working, orders are not taken"
        return [warning(name, detail, "`systemctl start shallop-agent`, or `shallop-agent run`")]
    pid = f"process {facts.pid}" if facts.pid else "a process"
    if facts.connected is None:
        return [ok(name, f"running ({pid})")]
    if facts.connected:
        return [ok(name, f"running ({pid}), connected since {facts.since}")]
    since = f" since {facts.since}" if facts.since else ""
    detail = f"running ({pid}), not connected{since}: {facts.detail or 'no reason is known'}"
    return [warning(name, detail, "see the lines `broker` and `tls`; it tries again by itself")]
