"""PURE. This device's identity: its files, how long its certificate lives, and whether its fleet is there.

For: judging what was found, each with what to do.
Not for: finding it (`agent.adapters.probe_identity`).
"""

from __future__ import annotations

from msgspec import Struct

from agent.doctor.finding import Finding, ok, problem, unknown, warning
from agent.renewing import DUE, SPREAD
from agent.signed_time import text_of

ANEW = "`shallop-agent enrol TOKEN`, with a token of `shallop-fleet enrol DEVICE`"


class IdentityFiles(Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        there: whether there is an identity; None where that cannot be seen.
        error: why it cannot be used: damaged, a key that does not fit, another device's.
        device: whose it is.
        url: of the enrolment.
        not_before_s: of the certificate.
        not_after_s: of it.
        now_s: the judged time.
        open_to: names of files that others than their owner may use.
        waits: whether an enrolment waits to be taken up.
        overruled: keys by which the configuration wins over it.
        registry: why the enrolment's address cannot be used; empty where it answers; None where not tried.
        refused: what the running agent says of the certificate.
    """

    there: bool | None
    error: str = ""
    device: str = ""
    url: str = ""
    not_before_s: float = 0.0
    not_after_s: float = 0.0
    now_s: float = 0.0
    open_to: tuple[str, ...] = ()
    waits: bool = False
    overruled: tuple[str, ...] = ()
    registry: str | None = None
    refused: str = ""


def identity(facts: IdentityFiles) -> list[Finding]:
    """Who this device is to its fleet, and whether it can stay that."""
    name = "identity"
    if facts.there is None:
        return [
            unknown(name, f"cannot be looked at: {facts.error}", "run this as root or as the agent's user")
        ]
    if facts.waits:
        detail = "an enrolment is complete and waits for the agent to start"
        return [warning(name, detail, "`systemctl restart shallop-agent`")]
    if not facts.there:
        return [unknown(name, "not enrolled; name, broker and TLS are the configuration's", ANEW)]
    if facts.error:
        return [problem(name, facts.error, ANEW)]
    if facts.open_to:
        names = " ".join(facts.open_to)
        detail = f"the private key can be read by others than its owner: {names}"
        return [problem(name, detail, f"`chmod go= {names}`, and enrol it again if others were here")]
    return [_life(facts), _registry(facts)]


def _life(facts: IdentityFiles) -> Finding:
    name, ends = "identity", text_of(facts.not_after_s)
    who = f"certificate of {facts.device}"
    if facts.refused:
        return problem(name, f"{who}: {facts.refused}", f"whoever runs the fleet decides; then {ANEW}")
    if facts.now_s >= facts.not_after_s:
        fix = "a running agent renews it at the registry by itself; if that is refused, " + ANEW
        return problem(name, f"{who} has ended: {ends}; judged at {text_of(facts.now_s)}", fix)
    if facts.now_s < facts.not_before_s:
        detail = f"{who} begins {text_of(facts.not_before_s)}, it is {text_of(facts.now_s)}"
        return problem(name, detail, "set the clock (see the line `clock`)")
    won = (
        f"; the configuration wins by {', '.join(f'broker.{key}' for key in facts.overruled)}"
        if facts.overruled
        else ""
    )
    latest_s = facts.not_before_s + (facts.not_after_s - facts.not_before_s) * (DUE + SPREAD)
    if facts.now_s > latest_s:
        detail = f"{who} ends {ends} and should have been renewed by {text_of(latest_s)}{won}"
        return warning(
            name, detail, "`shallop-agent status` says why; does the agent run and reach the broker?"
        )
    return ok(name, f"{who}, ends {ends}, is renewed by {text_of(latest_s)}{won}")


def _registry(facts: IdentityFiles) -> Finding:
    name = "enrolment"
    if facts.registry is None:
        return unknown(name, "the registry's address was not tried")
    if facts.registry:
        detail = f"a certificate that ends could not be renewed: {facts.registry}"
        return warning(
            name, detail, "it matters only once the certificate has ended; the registry's owner can tell"
        )
    return ok(name, f"{facts.url} answers, with a certificate of this fleet")
