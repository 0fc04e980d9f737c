"""PURE. What `shallop-agent status` shows: the journal and the living agent's notes, put into words.

For: one picture for people and for programs, with or without a daemon, after a kill too. What nobody can
know reads "unknown" or null, never zero.
Not for: reading files (`agent.statusing`, `agent.app`).
"""

from __future__ import annotations

from msgspec import Struct

from agent.deployment import Deployment, model_state
from wire.measures import Measure, TrialResult
from wire.messages import ModelState, Phase, Reason, Slot, TrialSummary


class ModelPicture(Struct, frozen=True, kw_only=True):
    """One model.

    Attributes:
        state: as it is reported.
        in_flight: name of the release on its way.
        left_s: until the phase's deadline; None while idle.
        soaked_s: of the soak that is done; None outside of it.
        attempts: failures in a row of the present piece of work.
        boots: starts of the agent without progress.
        retry_in_s: until the next try; None where nothing waits, or no agent is there to try.
        retry_reason: why it waits.
        trialed_at: when the last trial ended; None where it is not known.
    """

    state: ModelState
    in_flight: str | None = None
    left_s: float | None = None
    soaked_s: float | None = None
    attempts: int = 0
    boots: int = 0
    retry_in_s: float | None = None
    retry_reason: Reason | None = None
    trialed_at: str | None = None


class IdentityPicture(Struct, frozen=True, kw_only=True):
    """Who the device is to its fleet.

    Attributes:
        device: by its certificate; None where that cannot be read.
        url: of the enrolment.
        ends_at: when the certificate ends.
        renewed_at: when the fleet signed it.
        due_at: when the next one is asked for; None where no agent has said.
        renewal: where that stands; None likewise.
        failures: to get it, in a row.
        why: why there is no newer one, or why the broker refuses this one.
        overruled: keys of the configuration's section `broker` that win over the enrolment.
        error: why the identity cannot be read.
    """

    device: str | None = None
    url: str = ""
    ends_at: str = ""
    renewed_at: str = ""
    due_at: str | None = None
    renewal: str | None = None
    failures: int = 0
    why: Reason | None = None
    overruled: tuple[str, ...] = ()
    error: str = ""


class Picture(Struct, frozen=True, kw_only=True):
    """One device.

    Attributes:
        device: its id; None where it cannot be known.
        broker: address.
        running: whether an agent is at work; None where that cannot be seen.
        pid: of it.
        started_at: when it began.
        connected: None where nobody knows.
        connected_since: of the present connection.
        broker_seen_at: when the broker was last known to be there, while it is not now.
        connection_detail: why there is no connection.
        pending_reports: not yet acknowledged; None where they cannot be counted.
        identity: of a device that is enrolled.
        journal_notes: what was wrong with the journal.
        models: by name.
    """

    device: str | None
    broker: str
    running: bool | None
    pid: int | None = None
    started_at: str | None = None
    connected: bool | None = None
    connected_since: str | None = None
    broker_seen_at: str | None = None
    connection_detail: str = ""
    pending_reports: int | None = None
    identity: IdentityPicture | None = None
    journal_notes: tuple[str, ...] = ()
    models: dict[str, ModelPicture] = {}


def model_picture(d: Deployment, retry: tuple[float, Reason | None] | None, at: str | None) -> ModelPicture:
    """A deployment with what the living agent adds: the next try (seconds, why) and when it was trialed."""
    busy = d.phase is not Phase.IDLE
    return ModelPicture(
        state=model_state(d),
        in_flight=d.desired.release if d.desired else None,
        left_s=round(d.left_s, 1) if busy else None,
        soaked_s=round(d.soaked_s, 1) if d.phase is Phase.SOAKING else None,
        attempts=d.attempts,
        boots=d.boots,
        retry_in_s=round(max(0.0, retry[0]), 1) if retry and busy else None,
        retry_reason=retry[1] if retry and busy else None,
        trialed_at=at if d.trial is not None else None,
    )


def text(picture: Picture) -> str:
    """The picture for people; control characters in words from outside are shown as `?`."""
    lines = [f"device    {picture.device or 'unknown'}", f"agent     {_agent(picture)}"]
    lines.append(f"broker    {picture.broker}: {_connection(picture)}")
    lines += [f"identity  {words}" for words in _identity(picture.identity)]
    count = picture.pending_reports
    lines.append(f"reports   {'unknown' if count is None else count} not yet acknowledged")
    lines += [f"journal   {note}" for note in picture.journal_notes]
    if not picture.models:
        lines += ["", "no models yet"]
    for name, model in sorted(picture.models.items()):
        lines += ["", name, *(f"  {label:<13} {words}" for label, words in _model(model))]
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines) + "\n"


def _identity(identity: IdentityPicture | None) -> list[str]:
    if identity is None:
        return []
    if identity.device is None:
        return [f"unknown: {identity.error}"]
    renewed = f", of {identity.renewed_at}" if identity.renewed_at else ""
    lines = [f"certificate of {identity.device} ends {identity.ends_at}{renewed}"]
    if identity.due_at is not None:
        failed = f" after {identity.failures} failures in a row" if identity.failures else ""
        lines.append(f"the next one is asked for at {identity.due_at}, {identity.renewal}{failed}")
    if identity.why is not None:
        lines.append(f"{identity.why.code}: {identity.why.detail or 'no more is known'}")
    if identity.overruled:
        keys = ", ".join(f"broker.{name}" for name in identity.overruled)
        lines.append(f"the configuration wins over the enrolment by {keys}")
    return lines


def _agent(picture: Picture) -> str:
    if picture.running is None:
        return "unknown whether it runs"
    if not picture.running:
        return "not running; what is installed keeps working"
    since = f" since {picture.started_at}" if picture.started_at else ""
    return f"running, process {picture.pid or 'unknown'}{since}"


def _connection(picture: Picture) -> str:
    if picture.connected:
        return f"connected since {picture.connected_since or 'unknown'}"
    seen = f"last seen {picture.broker_seen_at}" if picture.broker_seen_at else "last seen: unknown"
    why = f" ({picture.connection_detail})" if picture.connection_detail else ""
    return f"{'unknown' if picture.connected is None else 'not connected'}{why}, {seen}"


def _model(model: ModelPicture) -> list[tuple[str, str]]:
    state = model.state
    rows = [("runs", _slot(state.active) + (", not the first choice" if state.degraded else ""))]
    rows.append(("before it", _slot(state.previous)))
    rows.append(("phase", _phase(model)))
    if state.outcome is not None and state.order:
        rows.append(("last order", f"{state.order} {state.outcome}"))
    if state.reason is not None:
        rows.append(("why", f"{state.reason.code}: {state.reason.detail or 'no more is known'}"))
    if state.phase is not Phase.IDLE:
        rows.append(("next try", _retry(model)))
    rows.append(("last trial", _trial(state.trial, model.trialed_at)))
    if state.blocked:
        rows.append(("blocked", ", ".join(digest[:12] for digest in state.blocked)))
    if state.missing:
        rows.append(("missing", f"{len(state.missing)} chunks that the broker does not hold"))
    return rows


def _slot(slot: Slot | None) -> str:
    return "nothing" if slot is None else f"{slot.release} ({slot.variant}), {slot.digest[:12]}"


def _phase(model: ModelPicture) -> str:
    if model.state.phase is Phase.IDLE:
        return "idle"
    words = [f"{model.state.phase} {model.in_flight or ''}".rstrip(), f"order {model.state.order}"]
    if model.soaked_s is not None:
        words.append(f"{duration(model.soaked_s)} soaked")
    if model.left_s is not None:
        words.append(f"{duration(model.left_s)} left")
    if model.boots:
        words.append(f"{model.boots} starts without progress")
    return ", ".join(words)


def _retry(model: ModelPicture) -> str:
    failed = f" after {model.attempts} failures in a row" if model.attempts else ""
    if model.retry_in_s is None:
        return f"at work now{failed}"
    why = f" ({model.retry_reason.code}: {model.retry_reason.detail})" if model.retry_reason else ""
    return f"in {duration(model.retry_in_s)}{failed}{why}"


def _trial(trial: TrialSummary | None, at: str | None) -> str:
    if trial is None:
        return "none is known"
    r = trial.result
    latency = "latency unknown"
    if r.latency is not None:
        latency = f"p50 {r.latency.ms_p50:.3g} ms, p95 {r.latency.ms_p95:.3g} ms"
    memory = "unknown" if r.memory_bytes_peak is None else f"{r.memory_bytes_peak / 1e6:.0f} MB"
    words = [
        f"{r.variant} in {r.runtime} {r.runtime_version}: {trial.verdict.status}",
        f"accuracy {_measure(r.accuracy)}", f"agreement {_measure(r.agreement)}", latency,
        f"energy {_energy(r)}", f"memory {memory}", f"{r.n_samples} samples", f"ended {at or 'unknown'}",
    ]  # fmt: skip
    if r.throttled:
        words.append("the machine was held back")
    return ", ".join(words)


def _measure(measure: Measure | None) -> str:
    return "unknown" if measure is None else f"{measure.value:.4g}"


def _energy(result: TrialResult) -> str:
    return "unknown" if result.energy_mj is None else f"{result.energy_mj.value:.3g} mJ"


def duration(seconds: float) -> str:
    """Seconds for a person.

    >>> duration(0.4), duration(75), duration(7300), duration(200000)
    ('0 s', '1 min 15 s', '2 h 1 min', '2 d 7 h')
    """
    whole = max(0, int(seconds))
    for size, name, part, part_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // part} {part_name}"
    return f"{whole} s"
