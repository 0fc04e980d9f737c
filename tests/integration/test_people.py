"""People at a real fleet: tokens, a second person, a barred release that even the order key cannot bring."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from examples.demo.house import House, HouseError, wait_for
from fleet.adapters import key_files
from tests.integration.bundles import make_bundle
from tests.integration.hand import Hand
from tests.integration.test_trust import DEVICES, MODEL, TOPICS, Signed, forged
from wire import topics as wt
from wire.messages import OrderRefused

pytestmark = [pytest.mark.broker, pytest.mark.slow]


class People:
    """A signed house in which everybody needs a token."""

    def __init__(self, signed: Signed) -> None:
        self.signed, self.house = signed, signed.house
        self.tokens: dict[str, str] = {}
        data = str(self.house.folder / "registry")
        for name, scopes in (("ada", ("administer",)), ("bob", ("operate",)), ("eve", ("view",))):
            wanted = [word for scope in scopes for word in ("--scope", scope)]
            made = self.house.fleet("tokens", "create", name, *wanted, "--data", data)
            self.tokens[name] = made["token"]

    def fleet(self, who: str, *arguments: str) -> object:
        self.house.token = self.tokens[who]
        return self.house.fleet(*arguments)

    def ask(self, who: str, *arguments: str) -> dict[str, object]:
        found = self.fleet(who, *arguments)
        assert isinstance(found, dict)
        return found

    def state(self, rollout: str) -> str:
        shown = self.ask("eve", "rollout", "show", rollout)["rollout"]
        assert isinstance(shown, dict)
        return str(shown["state"])


@pytest.fixture
def people(bare_house: House, tmp_path: Path) -> People:
    signed = Signed(bare_house, tmp_path / "offline")
    bare_house.start()
    made = People(signed)
    for device in DEVICES:
        signed.join(device)
    wait_for(
        "both devices",
        lambda: {v["device"] for v in made.fleet("eve", "devices") if v["online"]} == set(DEVICES),  # type: ignore[attr-defined]
    )
    return made


def refused_orders(hand: Hand) -> set[str]:
    return {r.event.reason.code for r in hand.reports if isinstance(r.event, OrderRefused)}


def release(people: People, folder: Path, name: str) -> str:
    make_bundle(folder / name, release=name, seed=int(name))
    return str(people.ask("ada", "publish", str(folder / name), "--why", f"release {name}")["digest"])


def test_two_people_roll_out_and_bar_a_release(people: People, tmp_path: Path, hand: Hand) -> None:
    one = release(people, tmp_path, "1")
    options = ["--waves", "1,100%", "--deadline", "120", "--soak", "0"]
    with pytest.raises(HouseError, match="scope_missing"):
        people.fleet("eve", "rollout", "start", f"{MODEL}@1", *options)
    first = str(people.ask("ada", "rollout", "start", f"{MODEL}@1", *options)["id"])
    wait_for("the rollout of 1", lambda: people.state(first) == "completed", 120)

    # A second person lets the second release beyond its first device; who started it cannot.
    two = release(people, tmp_path, "2")
    held = str(people.ask("ada", "rollout", "start", f"{MODEL}@2", *options, "--approval")["id"])
    wait_for("the rollout of 2 waiting", lambda: people.state(held) == "unapproved", 120)
    assert sum(people.signed.running(device, two) for device in DEVICES) == 1
    with pytest.raises(HouseError, match="same_person"):
        people.fleet("ada", "rollout", "approve", held, "--why", "me too")
    people.fleet("bob", "rollout", "approve", held, "--why", "ran well")
    wait_for("the rollout of 2", lambda: people.state(held) == "completed", 120)
    assert all(people.signed.running(device, two) for device in DEVICES)

    # Release 1 is barred; whoever holds the order key and the broker cannot bring it back.
    assert people.ask("ada", "bar", f"{MODEL}@1", "--why", "a hole")["number"] == 1
    wait_for("the list on both devices", lambda: all(one in people.signed.barred(d) for d in DEVICES))
    stolen = key_files.load(next(people.signed.keys.glob("order-*.pem")))
    topic = TOPICS.topic(wt.DESIRED, device="roof-1")
    hand.raw(topic, forged("roof-1", one, 900, stolen), retain=True)
    wait_for("the refusal of the barred release", lambda: "release_barred" in refused_orders(hand))
    assert people.signed.running("roof-1", two)
    with pytest.raises(HouseError, match="release_barred"):
        people.fleet("ada", "rollout", "start", f"{MODEL}@1", *options)

    # All of it stands in the log, which is whole, by the fleet's own keys.
    entries = people.fleet("eve", "audit", "list", "--newest", "1000")
    assert isinstance(entries, list)
    verbs = [(e["who"], e["what"]) for e in entries]
    machine = f"local:{pwd.getpwuid(os.getuid()).pw_name}"
    for who, what in (
        ("ada", "rollout.start"), ("registry", "rollout.unapproved"), ("bob", "rollout.approve"),
        ("registry", "rollout.completed"), ("ada", "release.bar"), (machine, "token.create"),
    ):  # fmt: skip
        assert (who, what) in verbs
    whole = people.ask("eve", "audit", "verify", "--keys", str(people.signed.keys))
    assert (whole["whole"], whole["entries"], whole["signatures"]) == (True, len(entries), "checked")
