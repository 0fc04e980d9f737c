"""What people can ask of the registry: each verb is one transaction.

For: rollouts, rollbacks, labels, groups and forgetting; whoever speaks (HTTP today) calls these, and says
who it is by: every verb that changes something writes its entry into the audit log.
Not for: HTTP, printing, or taking in bundles (`fleet.publish.intake`).
"""

from __future__ import annotations

import re
import secrets
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from fleet import rollback as rollbacks
from fleet.audit import NOBODY_SAID, By
from fleet.bars import require_not_barred
from fleet.config import Config
from fleet.current import Current
from fleet.enrolling import require_welcome, trust_in, trusts
from fleet.facts import facts_of, read_rollout, with_rollout
from fleet.gates import parse_gate
from fleet.inventory import Device, cleared_duplicate, labelled
from fleet.orders import Desk, command_topic, desired_post, give, rollback_envelope, rollback_of
from fleet.ports import (
    Clock,
    ConflictError,
    NotFoundError,
    ReadyFiles,
    RegistryError,
    RolloutRow,
    Store,
    Tx,
)
from fleet.publish.content import clearing, manifest_of
from fleet.publish.intake import restore_content
from fleet.rollout import FailureAction, Request, Rollout, abort, create, pause, resume
from fleet.selection import matches, parse_selector
from fleet.views import (
    DeviceView,
    ReadyRollback,
    ReleaseView,
    RollbackShow,
    RolloutShow,
    RolloutView,
    device_lines,
    device_view,
    release_view,
    rollback_show,
    rollout_view,
)
from wire import topics as wt
from wire.messages import ToAll, ToDevice, ToGroup
from wire.types import DeviceId, GroupName, ModelName, Seconds

LABELS_MAX = 64

_Words = Annotated[str, Meta(max_length=2000)]


class RolloutAsk(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rollout as a person asks for it; `release` is a name or a digest."""

    model: ModelName
    release: Annotated[str, Meta(max_length=64)]
    select: _Words = "all"
    waves: _Words = "1,50%,100%"
    gate: dict[str, object] = {}
    soak_s: Seconds = 60.0
    deadline_s: Annotated[float, Meta(gt=0.0, le=366 * 86400.0)] = 86400.0
    mode: Annotated[str, Meta(pattern="^(deploy|evaluate)$")] = "deploy"
    on_failure: FailureAction = FailureAction.ROLLBACK_ALL
    pace_per_minute: Annotated[int, Meta(ge=1)] | None = None
    seen_within_s: Annotated[float, Meta(gt=0.0, le=366 * 86400.0)] = 7 * 86400.0
    approval: bool = False


class RollbackAsk(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rollback as a person asks for it; exactly one of `devices`, `group` and `all`."""

    model: ModelName
    devices: Annotated[tuple[DeviceId, ...], Meta(max_length=10_000)] = ()
    group: GroupName | None = None
    all: bool = False


class People:
    """The verbs."""

    def __init__(
        self, store: Store, clock: Clock, desk: Current[Desk], files: ReadyFiles, config: Config
    ) -> None:
        self._store = store
        self._files = files
        self._clock = clock
        self._desk = desk
        self._config = config

    def require_authority(self) -> None:
        """Nothing is published without a signature unless the configuration says so.

        Raises:
            ConflictError: `unsigned_refused`.
        """
        if not self._desk.now.signers and not self._config.insecure_unsigned:
            raise ConflictError(
                "unsigned_refused",
                "no signing key is configured, so nothing is published; for a trial without keys start "
                "the registry with --insecure-unsigned and set insecure_unsigned: true in agent.yaml",
            )

    # --- releases and devices -------------------------------------------------------------------------

    def releases(self) -> list[ReleaseView]:
        """All releases, oldest first."""
        with self._store.begin() as tx:
            rows = tx.releases()
        return [release_view(row, manifest_of(row.manifest)) for row in rows]

    def devices(self, select: str) -> list[DeviceView]:
        """Devices that a selector means.

        Raises:
            SelectorError: it cannot be read.
        """
        selector = parse_selector(select)
        with self._store.begin() as tx:
            known = trusts(tx, self._clock.now())
            return [device_view(d, known.get(d.id)) for d in tx.devices() if matches(selector, d)]

    def device(self, device: str) -> DeviceView:
        """One device.

        Raises:
            NotFoundError: `unknown_device`.
        """
        with self._store.begin() as tx:
            return device_view(_device(tx, device), trust_in(tx, device, self._clock.now()))

    def forget(self, device: str, by: By = NOBODY_SAID) -> None:
        """Deletes a device and what the broker keeps of it; if it lives, it comes back as a new one.

        Raises:
            NotFoundError: `unknown_device`.
        """
        with self._store.begin() as tx:
            _device(tx, device)
            tx.forget_device(device)
            channels = (wt.STATUS, wt.IDENTITY, wt.REPORTED, wt.DESIRED)
            tx.post([clearing(self._desk.now.topics.topic(channel, device=device)) for channel in channels])
            self._record(tx, by, "device.forget", device)

    def label(self, device: str, changes: dict[str, str | None], by: By = NOBODY_SAID) -> DeviceView:
        """Sets labels of the registry; None removes one.

        Raises:
            NotFoundError: `unknown_device`.
            RegistryError: `label_malformed`.
        """
        for key, value in changes.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}", key) or len(value or "") > 200:
                raise RegistryError(
                    "label_malformed",
                    f"label {key[:80]!r}: keys are up to 63 letters, digits and ._/-, values up to 200 long",
                )
        with self._store.begin() as tx:
            view = _device(tx, device)
            merged = {**view.labels_own, **changes}
            labels = {key: value for key, value in merged.items() if value is not None}
            if len(labels) > LABELS_MAX:
                raise RegistryError("label_malformed", f"at most {LABELS_MAX} labels a device")
            view = labelled(view, labels, view.groups)
            tx.save_labels(view)
            self._record(tx, by, "device.label", device, changes=changes)
            return device_view(view)

    def group(self, device: str, groups: tuple[str, ...], by: By = NOBODY_SAID) -> DeviceView:
        """Sets the device's groups, and tells it, since it obeys only groups that its document names.

        Raises:
            NotFoundError: `unknown_device`.
            ConflictError: `unsigned_refused`.
        """
        self.require_authority()
        with self._store.begin() as tx:
            before = _device(tx, device)
            view = labelled(before, before.labels_own, groups)
            tx.save_labels(view)
            self._record(tx, by, "device.group", device, groups=groups, before=before.groups)
            tx.post([desired_post(tx, self._desk.now, device, self._clock.now())])
            return device_view(view)

    def clear_duplicate(self, device: str, by: By = NOBODY_SAID) -> DeviceView:
        """Takes the mark of a duplicate identity away, after a person has sorted it out.

        Raises:
            NotFoundError: `unknown_device`.
        """
        with self._store.begin() as tx:
            view = cleared_duplicate(_device(tx, device))
            tx.save_device(view)
            self._record(tx, by, "device.clear-duplicate", device)
            return device_view(view)

    # --- rollouts -------------------------------------------------------------------------------------

    def start(self, ask: RolloutAsk, by: By = NOBODY_SAID) -> RolloutView:
        """A new rollout, with its two order numbers and its ready rollback payload.

        Raises:
            NotFoundError: `unknown_release`.
            ConflictError: `unsigned_refused`, `release_unfinished` or `release_barred`.
            SelectorError, LimitsError, RolloutError: it cannot be made as asked.
        """
        self.require_authority()
        gate, now = parse_gate(ask.gate), self._clock.now()
        with self._store.begin() as tx:
            release = tx.release_named(ask.model, ask.release) or tx.release(ask.release)
            if release is None or release.model != ask.model:
                raise NotFoundError(
                    "unknown_release",
                    f"there is no {ask.model}@{ask.release}; `shallop-fleet releases` lists them",
                )
            if release.state != "published":
                raise ConflictError(
                    "release_unfinished",
                    f"{ask.model}@{ask.release} was not uploaded whole; publish it again",
                )
            require_not_barred(tx, release.digest)
            request = Request(
                model=ask.model,
                digest=release.digest,
                release=release.name,
                selector=ask.select,
                waves=ask.waves,
                gate=gate,
                soak_s=ask.soak_s,
                deadline_s=ask.deadline_s,
                mode="evaluate" if ask.mode == "evaluate" else "deploy",
                on_failure=ask.on_failure,
                pace_per_minute=ask.pace_per_minute,
                seen_within_s=ask.seen_within_s,
                approval=ask.approval or self._config.approval,
            )
            facts = facts_of(tx, ask.model, release.digest)
            order = tx.take_orders(2)
            rollout = create(f"ro-{secrets.token_hex(6)}", request, order, order + 1, facts, now, by.who)
            restore_content(tx, release, self._desk.now)
            row = self._row(rollout, now)
            tx.save_rollout(row)
            said = {**msgspec.to_builtins(ask), "digest": release.digest, "order": order}
            self._record(tx, by, "rollout.start", row.id, **said)
            # Before the commit: a rollout never runs without its way back lying ready.
            self._files.write(row.id, row.rollback_payload)
            return rollout_view(rollout)

    def _row(self, rollout: Rollout, now: float) -> RolloutRow:
        action = rollback_of(rollout)
        bare = RolloutRow(
            id=rollout.id,
            model=rollout.request.model,
            release=rollout.request.digest,
            state=rollout.state.value,
            created_at=now,
            doc=b"",
            rollback_order=rollout.rollback_order,
            rollback_payload=rollback_envelope(self._desk.now, ToAll(), action, now),
        )
        return with_rollout(bare, rollout)

    def rollouts(self) -> list[RolloutView]:
        """All rollouts, oldest first."""
        with self._store.begin() as tx:
            return [rollout_view(read_rollout(row)) for row in tx.rollouts()]

    def rollout(self, rollout_id: str) -> RolloutShow:
        """One rollout with its devices.

        Raises:
            NotFoundError: `unknown_rollout`.
        """
        with self._store.begin() as tx:
            rollout = read_rollout(rollout_row(tx, rollout_id))
            devices = {device.id: device for device in tx.devices()}
            reports = tx.reports_of_order(rollout.order)
        verdict = rollout.verdict
        return RolloutShow(
            rollout=rollout_view(rollout),
            devices=device_lines(rollout, devices, reports),
            left_out=rollout.left_out,
            gate=()
            if verdict is None
            else tuple((p.name, p.decision.value, p.reason) for p in verdict.parts),
            rollback=self._ready(rollout),
        )

    def _ready(self, rollout: Rollout) -> ReadyRollback:
        url = f"/api/rollouts/{rollout.id}/rollback-payload"
        return ReadyRollback(
            order=rollout.rollback_order,
            broker=self._config.publisher_options,
            topic=command_topic(self._desk.now.topics, ToAll()),
            file=self._files.path(rollout.id),
            url=url,
            url_per_device=f"{url}?device=DEVICE",
        )

    def rollback_payload(
        self, rollout_id: str, device: str | None, by: By = NOBODY_SAID
    ) -> tuple[str, bytes]:
        """Topic and ready bytes that take a rollout back, for the whole fleet or one device.

        Whoever has them may send them at any time, so giving them out is a change, and has its entry.

        Raises:
            NotFoundError: `unknown_rollout` or `unknown_device`.
            ConflictError: `unsigned_refused`.
        """
        self.require_authority()
        with self._store.begin() as tx:
            row = rollout_row(tx, rollout_id)
            self._record(tx, by, "rollout.rollback-payload", rollout_id, device=device)
            if device is None:
                return command_topic(self._desk.now.topics, ToAll()), row.rollback_payload
            scope = ToDevice(device=_device(tx, device).id)
            require_welcome(tx, [device])
            action = rollback_of(read_rollout(row))
            envelope = rollback_envelope(self._desk.now, scope, action, self._clock.now())
            return command_topic(self._desk.now.topics, scope), envelope

    def pause(self, rollout_id: str, by: By = NOBODY_SAID) -> RolloutView:
        """Opens no further wave until resumed.

        Raises:
            NotFoundError: `unknown_rollout`.
            RolloutError: `illegal_transition`.
        """
        with self._store.begin() as tx:
            row = rollout_row(tx, rollout_id)
            rollout = pause(read_rollout(row), by.why)
            tx.save_rollout(with_rollout(row, rollout))
            self._record(tx, by, "rollout.pause", rollout_id)
            return rollout_view(rollout)

    def resume(self, rollout_id: str, by: By = NOBODY_SAID) -> RolloutView:
        """Goes on.

        Raises:
            NotFoundError: `unknown_rollout`.
            ConflictError: `release_barred`.
            RolloutError: `illegal_transition`.
        """
        with self._store.begin() as tx:
            row = rollout_row(tx, rollout_id)
            require_not_barred(tx, row.release)
            rollout = resume(read_rollout(row), self._clock.now())
            tx.save_rollout(with_rollout(row, rollout))
            self._record(tx, by, "rollout.resume", rollout_id)
            return rollout_view(rollout)

    def abort(self, rollout_id: str, action: FailureAction, by: By = NOBODY_SAID) -> RolloutView:
        """Ends it, with what `action` says for the devices that it reached.

        Raises:
            NotFoundError: `unknown_rollout`.
            RolloutError: `illegal_transition`.
        """
        now = self._clock.now()
        with self._store.begin() as tx:
            row = rollout_row(tx, rollout_id)
            facts = facts_of(tx, row.model, row.release)
            rollout, orders = abort(read_rollout(row), action, facts, now)
            tx.save_rollout(replace(with_rollout(row, rollout), cleared=False))
            give(tx, self._desk.now, orders, rollout.id, now)
            taken_back = [order.device for order in orders]
            self._record(tx, by, "rollout.abort", rollout_id, action=action, taken_back=taken_back)
            return rollout_view(rollout)

    # --- rollbacks ------------------------------------------------------------------------------------

    def roll_back(self, ask: RollbackAsk, by: By = NOBODY_SAID) -> RollbackShow:
        """Takes a model back on devices, by command first.

        Raises:
            RegistryError: `rollback_scope`: not exactly one of devices, group and all.
            NotFoundError: `unknown_device` or `nothing_to_roll_back`.
            ConflictError: `unsigned_refused`.
        """
        self.require_authority()
        if [bool(ask.devices), ask.group is not None, ask.all].count(True) != 1:
            raise RegistryError("rollback_scope", "say exactly one of: devices, a group, all")
        scope: ToGroup | ToAll | None
        with self._store.begin() as tx:
            if ask.devices:
                devices, scope = [_device(tx, device) for device in ask.devices], None
                require_welcome(tx, ask.devices)
            elif ask.group is not None:
                devices = [device for device in tx.devices() if ask.group in device.groups]
                scope = ToGroup(group=ask.group)
            else:
                devices, scope = tx.devices(), ToAll()
            shut_out = tx.revocations()
            devices = [device for device in devices if device.id not in shut_out]
            rollback_id = rollbacks.ask(tx, self._desk.now, ask.model, devices, scope, self._clock.now())
            show = rollback_show(tx.rollback_rows(rollback_id))
            orders = {line.device: line.order for line in show.devices}
            self._record(tx, by, "rollback.start", rollback_id, **msgspec.to_builtins(ask), orders=orders)
            return show

    def rollback(self, rollback_id: str) -> RollbackShow:
        """How far a rollback is.

        Raises:
            NotFoundError: `unknown_rollback`.
        """
        with self._store.begin() as tx:
            rows = tx.rollback_rows(rollback_id)
        if not rows:
            raise NotFoundError("unknown_rollback", f"there is no rollback {rollback_id[:64]}")
        return rollback_show(rows)

    def _record(self, tx: Tx, by: By, what: str, subject: str, **details: object) -> None:
        """Writes the verb's entry."""
        now = self._clock.now()
        tx.audit(at=now, who=by.who, what=what, subject=subject, why=by.why, details=details)


def _device(tx: Tx, device: str) -> Device:
    view = tx.device(device)
    if view is None:
        raise NotFoundError(
            "unknown_device", f"there is no device {device[:64]!r}; `shallop-fleet devices` lists them"
        )
    return view


def rollout_row(tx: Tx, rollout_id: str) -> RolloutRow:
    """The row of a rollout.

    Raises:
        NotFoundError: `unknown_rollout`.
    """
    row = tx.rollout(rollout_id)
    if row is None:
        raise NotFoundError("unknown_rollout", f"there is no rollout {rollout_id[:64]!r}; see `rollout list`")
    return row
