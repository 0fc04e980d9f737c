"""A device that speaks the contract by a script, for tests of the registry.

For: status, identity, reported, reports with acknowledgement, rollback and stale orders, as an agent
says them, without fetching or running anything.
Not for: testing the agent. The transport is the caller's: `says` collects (topic, payload, retain).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from msgspec.structs import replace

from wire import topics as wt
from wire.codec import decode, encode
from wire.figures import PairedCounts
from wire.measures import Latency, Measure, TrialResult
from wire.messages import (
    Ack,
    Command,
    Desired,
    DesiredModel,
    Hardware,
    Identity,
    Message,
    ModelState,
    OrderEnded,
    OrderOutcome,
    OrderRefused,
    Phase,
    PhaseChanged,
    Reason,
    Reply,
    Report,
    Reported,
    ReportEvent,
    Rollback,
    RuntimeInfo,
    Slot,
    Status,
    TrialEnded,
    TrialSummary,
)
from wire.sla import Verdict
from wire.topics import Topics
from wire.trust import Policy, open_envelope

UNSIGNED = Policy(insecure_unsigned=True)


def trial(entry: DesiredModel, variant: str) -> TrialSummary:
    result = TrialResult(
        variant=variant,
        runtime="onnxruntime",
        runtime_version="1.0",
        shards=entry.shards,
        n_samples=200,
        accuracy=Measure(value=0.9, low=0.85, high=0.94, n=200),
        agreement=Measure(value=0.99, n=200),
        against_baseline=PairedCounts(both=178, candidate_only=2, reference_only=2, neither=18),
        latency=Latency(ms_p50=1.5, ms_p95=2.5, ms_p99=3.0, n=200),
        cpu="test",
    )
    return TrialSummary(result=result, verdict=Verdict(findings=()))


class ScriptedDevice:
    """One device.

    Attributes:
        says: what it wants published: (topic, payload, retain).
        refuses: releases (by name) that fail their trial here.
        holds_back: while set, new orders stay unanswered, as on a device that is busy.
        received: orders in the order in which they were taken up.
        ran: those of them that needed a trial.
    """

    def __init__(self, device: str, topics: Topics, refuses: frozenset[str] = frozenset()) -> None:
        self.device = device
        self.install_id = hashlib.md5(device.encode(), usedforsecurity=False).hexdigest()
        self.topics = topics
        self.refuses = refuses
        self.holds_back = False
        self.says: list[tuple[str, bytes, bool]] = []
        self.states: dict[str, ModelState] = {}
        self.received: list[int] = []
        self.ran: list[int] = []
        self.groups: tuple[str, ...] = ()
        self.unacknowledged: dict[int, Report] = {}
        self._numbers: dict[str, int] = {}
        self._waiting: dict[str, DesiredModel] = {}

    def filters(self) -> list[tuple[str, int]]:
        own = [wt.DESIRED, wt.COMMAND, wt.ACK]
        return [
            *[(self.topics.topic(channel, device=self.device), 1) for channel in own],
            (self.topics.filter(wt.COMMAND_GROUP), 1),
            (self.topics.topic(wt.COMMAND_ALL), 1),
        ]

    def connect(self) -> None:
        """What an agent says after each connection."""
        self._up(
            wt.STATUS,
            Status(
                device=self.device,
                install_id=self.install_id,
                number=self._number("status"),
                online=True,
                agent_version="1",
            ),
        )
        self._up(
            wt.IDENTITY,
            Identity(
                device=self.device,
                install_id=self.install_id,
                number=self._number("identity"),
                hardware=Hardware(arch="x86_64", cpu="test", cores=4),
                runtimes=(RuntimeInfo(name="onnxruntime", version="1.0"),),
                agent_version="1",
            ),
        )
        self._reported()
        for report in self.unacknowledged.values():
            self._up(wt.REPORT, report)

    def resend(self) -> None:
        """What an agent does once a minute with reports that nobody acknowledged."""
        for report in self.unacknowledged.values():
            self._up(wt.REPORT, report)

    def leave(self) -> None:
        """Its last will."""
        number = self._numbers["status"]
        self._up(
            wt.STATUS,
            Status(
                device=self.device, install_id=self.install_id, number=number, online=False, agent_version="1"
            ),
        )

    def hears(self, topic: str, payload: bytes) -> None:
        """Takes one message from the broker."""
        parsed = self.topics.parse(topic)
        if parsed is None or not payload:
            return
        channel = parsed[0]
        if channel is wt.ACK:
            ack = decode(payload, Ack, channel.size_bytes_max)
            if ack.install_id == self.install_id:
                self.unacknowledged = {n: r for n, r in self.unacknowledged.items() if n > ack.number}
        elif channel is wt.DESIRED:
            opened = open_envelope(payload, "desired", UNSIGNED, channel.size_bytes_max)
            desired = decode(opened, Desired, channel.size_bytes_max)
            assert desired.device == self.device
            self.groups = desired.groups
            for model, entry in desired.models.items():
                self._ordered(model, entry)
        elif channel in {wt.COMMAND, wt.COMMAND_GROUP, wt.COMMAND_ALL}:
            opened = open_envelope(payload, "command", UNSIGNED, channel.size_bytes_max)
            command = decode(opened, Command, channel.size_bytes_max)
            if channel is not wt.COMMAND_GROUP or parsed[1]["group"] in self.groups:
                self._commanded(command)

    def wake(self) -> None:
        """Does what it held back."""
        self.holds_back = False
        for model, entry in self._waiting.items():
            self._run(model, entry)
        self._waiting.clear()

    def _state(self, model: str) -> ModelState:
        return self.states.get(model, ModelState())

    def _ordered(self, model: str, entry: DesiredModel) -> None:
        state = self._state(model)
        if entry.order == state.order:
            return
        if entry.order <= state.order_highest:
            reason = Reason(code="stale_order", detail=f"{entry.order} < {state.order_highest}")
            self._report(model, entry, OrderRefused(reason=reason, order_highest=state.order_highest))
            return
        self.received.append(entry.order)
        self._change(
            model,
            lambda s: replace(
                s,
                order=entry.order,
                order_highest=entry.order,
                outcome=None,
                phase=Phase.FETCHING,
                in_flight=entry.digest,
                trial=None,
                reason=None,
            ),
        )
        self._report(model, entry, PhaseChanged(phase=Phase.FETCHING))
        if state.active is not None and state.active.digest == entry.digest:
            # It runs already: the order ends at once, without a trial.
            active = replace(state.active, order=entry.order)
            self._change(
                model,
                lambda s: replace(
                    s, active=active, outcome=OrderOutcome.ACTIVE, phase=Phase.IDLE, in_flight=None
                ),
            )
            self._report(model, entry, OrderEnded(outcome=OrderOutcome.ACTIVE, active=active))
        elif self.holds_back:
            self._waiting[model] = entry
        else:
            self._run(model, entry)

    def _run(self, model: str, entry: DesiredModel) -> None:
        self.ran.append(entry.order)
        variant = entry.variants[0] if entry.variants else "onnxruntime/unknown"
        summary = trial(entry, variant)
        self._report(model, entry, TrialEnded(trial=summary))
        if entry.release in self.refuses:
            reason = Reason(code="accuracy_below_limit", detail="0.5 is below 0.9")
            self._change(
                model,
                lambda s: replace(
                    s,
                    phase=Phase.IDLE,
                    in_flight=None,
                    outcome=OrderOutcome.FAILED,
                    reason=reason,
                    trial=summary,
                ),
            )
            self._report(model, entry, OrderEnded(outcome=OrderOutcome.FAILED, reason=reason))
            return
        slot = Slot(digest=entry.digest, release=entry.release, variant=variant, order=entry.order)

        def switched(s: ModelState) -> ModelState:
            same = s.active is not None and s.active.digest == entry.digest
            return replace(
                s,
                active=slot,
                previous=s.previous if same else s.active,
                phase=Phase.IDLE,
                in_flight=None,
                outcome=OrderOutcome.ACTIVE,
                trial=summary,
            )

        self._change(model, switched)
        self._report(model, entry, OrderEnded(outcome=OrderOutcome.ACTIVE, active=slot))

    def _commanded(self, command: Command) -> None:
        action = command.action
        assert isinstance(action, Rollback)
        state = self._state(action.model)
        applies = state.in_flight == action.from_ or (
            state.active is not None and state.active.digest == action.from_
        )
        back = state.active if state.in_flight == action.from_ else state.previous
        nowhere = back is None and state.in_flight != action.from_
        if not applies or action.order < state.order_highest or nowhere:
            highest = max(state.order_highest, action.order)
            self._change(action.model, lambda s: replace(s, order_highest=highest))
            self._reply(command, "not_applicable", state.order_highest)
            return

        def swapped(s: ModelState) -> ModelState:
            return replace(
                s,
                active=back,
                previous=None,
                order_highest=action.order,
                outcome=OrderOutcome.ROLLED_BACK,
                phase=Phase.IDLE,
                in_flight=None,
                blocked=(action.from_,),
            )

        self._waiting.pop(action.model, None)
        self._change(action.model, swapped)
        self._reply(command, "done", action.order)

    def _reply(self, command: Command, result: str, highest: int) -> None:
        reply = Reply(
            device=self.device,
            install_id=self.install_id,
            number=self._number("reply"),
            command=command.id,
            result="done" if result == "done" else "not_applicable",
            order_highest=highest,
        )
        topic = self.topics.topic(wt.REPLY, device=self.device, id=command.id)
        self.says.append((topic, encode(reply), False))

    def _change(self, model: str, how: Callable[[ModelState], ModelState]) -> None:
        self.states[model] = how(self._state(model))
        self._reported()

    def _reported(self) -> None:
        self._up(
            wt.REPORTED,
            Reported(
                device=self.device,
                install_id=self.install_id,
                number=self._number("reported"),
                models=dict(self.states),
            ),
        )

    def _report(self, model: str, entry: DesiredModel, event: ReportEvent) -> None:
        report = Report(
            device=self.device,
            install_id=self.install_id,
            number=self._number("report"),
            model=model,
            order=entry.order,
            digest=entry.digest,
            event=event,
        )
        self.unacknowledged[report.number] = report
        self._up(wt.REPORT, report)

    def _number(self, kind: str) -> int:
        self._numbers[kind] = self._numbers.get(kind, 0) + 1
        return self._numbers[kind]

    def _up(self, channel: wt.Channel, message: Message) -> None:
        topic = self.topics.topic(channel, device=self.device)
        self.says.append((topic, encode(message), channel.retain))
