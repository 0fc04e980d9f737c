"""The life of devices' trust as conversations in text files, to be read by people and reviewed as a diff.

Regenerate with `SHALLOP_GOLDEN=write python -m pytest tests/fleet/test_enrolment_golden.py` and read what
changed before committing it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fleet.audit import By
from tests.fleet.enrolment import DAY_S, Registry, enrol_word, public, renewal_word
from tests.keys import Key
from wire.certificates import CertificateRefused
from wire.enrolment import Enrolled, Token

GOLDEN = Path(__file__).parent / "golden"
START = 1_700_000_000.0
ANNA = By(who="anna", why="as the test says")


class Stage:
    """A registry on which every word is written down, with what it led to."""

    def __init__(self, folder: Path) -> None:
        self.registry = Registry(folder / "keys", START)
        self.lines: list[str] = []
        self.tokens: dict[str, Token] = {}
        self._audited = self._told = 0

    def wait(self, days: float) -> None:
        self.registry.clock.time += days * DAY_S
        self.lines.append(f"-- {days:g} days later")

    def token(self, name: str, device: str) -> None:
        self.tokens[name] = self.registry.token(device)
        self._wrote(f"anna: enrol {device} -> token {name}")

    def enrol(self, name: str, key: str, device: str | None = None) -> None:
        answer = self.registry.enrolling.enrol(enrol_word(self.tokens[name], Key(key), device))
        self._wrote(f"{device or self.tokens[name].device}: token {name}, key {key} -> {self._said(answer)}")

    def renew(self, device: str, key: str, before: str) -> None:
        answer = self.registry.enrolling.renew(renewal_word(device, Key(key), Key(before)))
        self._wrote(f"{device}: key {key} after {before} -> {self._said(answer)}")

    def revoke(self, device: str) -> None:
        done = self.registry.enrolling.revoke(device, ANNA)
        self._wrote(f"anna: revoke {device} -> {'in force' if done.in_force else 'NOT in force'}")

    def deaf(self, deaf: bool) -> None:
        self.registry.barrier.deaf = deaf
        self.lines.append(f"-- the broker {'does not read its files' if deaf else 'reads its files again'}")
        if not deaf:
            self.registry.harness.doorman.see_to_all()
            self._wrote("registry: what is not in force, once more")

    def _said(self, answer: Enrolled | CertificateRefused) -> str:
        if isinstance(answer, CertificateRefused):
            return f"refused: {answer.code}"
        found = self.registry.certificate(answer)
        keys = {public(Key(name)): name for name in NAMES}
        return f"certificate for {keys[found.public]} to {found.not_after[:10]}, {len(answer.roots)} roots"

    def _wrote(self, line: str) -> None:
        self.lines.append(line)
        whats = self.registry.audit()
        self.lines += [f"    audit {what}" for what in whats[self._audited :]]
        told = self.registry.barrier.told
        self.lines += [f"    broker {self._door(*word)}" for word in told[self._told :]]
        self._audited, self._told = len(whats), len(told)

    @staticmethod
    def _door(device: str, what: object) -> str:
        if isinstance(what, str):
            return f"lets {what} in"
        return f"cuts {device} off, {len(what) if isinstance(what, set) else 0} certificates"


NAMES = ("k1", "k2", "k3", "k4", "thief")


def a_usual_life(stage: Stage) -> None:
    stage.token("A", "roof-1")
    stage.enrol("A", "k1", device="roof-2")
    stage.enrol("A", "k1")
    stage.enrol("A", "k1")
    stage.enrol("A", "thief")
    stage.wait(60)
    stage.renew("roof-1", "k2", "k1")
    stage.renew("roof-1", "k2", "k1")
    stage.renew("roof-1", "k3", "thief")
    stage.wait(300)
    stage.renew("roof-1", "k3", "k1")
    stage.renew("roof-1", "k3", "k2")
    stage.wait(491)
    stage.renew("roof-1", "k4", "k3")
    stage.token("B", "roof-1")
    stage.enrol("B", "k4")


def a_stolen_device(stage: Stage) -> None:
    stage.token("A", "roof-1")
    stage.enrol("A", "k1")
    stage.token("B", "roof-1")
    stage.wait(0.5)
    stage.revoke("roof-1")
    stage.renew("roof-1", "thief", "k1")
    stage.enrol("B", "k2")
    stage.revoke("roof-1")
    stage.wait(30)
    stage.token("C", "roof-1")
    stage.enrol("C", "k1")
    stage.enrol("C", "k2")
    stage.renew("roof-1", "thief", "k1")


def a_broker_that_does_not_listen(stage: Stage) -> None:
    stage.token("A", "roof-1")
    stage.enrol("A", "k1")
    stage.deaf(True)
    stage.wait(1)
    stage.token("B", "roof-1")
    stage.enrol("B", "k2")
    stage.revoke("roof-1")
    stage.deaf(False)
    stage.wait(1)
    stage.token("C", "roof-1")
    stage.enrol("C", "k3")


@pytest.mark.parametrize("story", [a_usual_life, a_stolen_device, a_broker_that_does_not_listen])
def test_conversation(story: Callable[[Stage], None], tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    story(stage)
    stage.registry.harness.store.close()
    text = "\n".join(stage.lines) + "\n"
    path = GOLDEN / f"{story.__name__}.txt"
    if os.environ.get("SHALLOP_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()
