"""The applications' services, asked of systemd by its own command.

For: `agent.soak` to see a crash loop. `systemctl show` answers without privileges.
Not for: starting or stopping a unit (`agent.adapters.hooks`), or speaking D-Bus, whose library would be one
more dependency for one question every few seconds.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Mapping

from agent.config_life import HookConfig
from agent.soak import UnitState

log = logging.getLogger(__name__)

PROPERTIES = "LoadState,ActiveState,Result,NRestarts,InvocationID"
ANSWER_CHARS_MAX = 4096
VALUE_CHARS_MAX = 200
ANSWER_S_MAX = 10.0


class SystemdUnits:
    """Fulfils `agent.ports.Units` from the configuration; a model without `unit` has none."""

    def __init__(self, hooks: Mapping[str, HookConfig]) -> None:
        self._hooks = hooks
        self._told: dict[str, str] = {}

    def state(self, model: str) -> UnitState | None:
        """Of the model's unit; None where none is named or nobody can tell, which is logged once."""
        unit = self._unit(model)
        if unit is None:
            return None
        found = _show(unit)
        problem = found if isinstance(found, str) else ""
        if problem and problem != self._told.get(model):
            log.warning("%s: a crash loop of its application would not be seen: %s", model, problem)
        self._told[model] = problem
        return None if isinstance(found, str) else found

    def problem(self, model: str) -> str | None:
        """Why the state of a unit that is named cannot be told; None if it can, or none is named."""
        unit = self._unit(model)
        found = None if unit is None else _show(unit)
        return found if isinstance(found, str) else None

    def activates(self, model: str) -> bool:
        """Whether the application is told of a switch through its unit alone."""
        hook = self._hooks.get(model)
        return hook is not None and hook.activate_unit is not None

    def _unit(self, model: str) -> str | None:
        hook = self._hooks.get(model)
        return None if hook is None else hook.unit


def _show(unit: str) -> UnitState | str:
    """The unit's state, or why it cannot be told."""
    command = ["systemctl", "--no-pager", "show", f"--property={PROPERTIES}", "--", unit]
    try:
        answer = subprocess.run(
            command, capture_output=True, timeout=ANSWER_S_MAX, check=False, stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except OSError as error:
        return f"systemctl cannot be started: {error}"
    except subprocess.TimeoutExpired:
        return f"systemctl did not answer about {unit} within {ANSWER_S_MAX:g} s"
    if answer.returncode != 0:
        said = answer.stderr[:500].decode(errors="replace").strip()
        return f"systemctl show {unit} ended with {answer.returncode}: {said}"
    return parse_show(unit, answer.stdout[:ANSWER_CHARS_MAX].decode(errors="replace"))


def parse_show(unit: str, text: str) -> UnitState | str:
    """PURE. The state from lines of `systemctl show`, or why it cannot be told."""
    pairs = (line.partition("=") for line in text.splitlines())
    values = {name: value[:VALUE_CHARS_MAX] for name, _, value in pairs}
    load, active = values.get("LoadState", ""), values.get("ActiveState", "")
    if not active:
        return f"systemctl show {unit} did not name its ActiveState"
    if load != "loaded":
        return f"systemd has no usable unit {unit}: its LoadState is {load or 'unknown'}"
    restarts = values.get("NRestarts", "")
    return UnitState(
        active=active,
        result=values.get("Result", ""),
        restarts=int(restarts) if restarts.isascii() and restarts.isdigit() else None,
        invocation=values.get("InvocationID", ""),
    )
