"""When the files of the keys are read, and which chain may follow: tables, any sequence of looks, mutants."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import succession
from fleet.keys import KeysError

Files = dict[str, tuple[int, ...]]
A: Files = {"root-1.json": (1,)}
B: Files = {"root-1.json": (1,), "root-2.json": (1,)}
C: Files = {"root-1.json": (2,)}

Look = tuple[Files, float, str]
"""The files, the time, and what follows; `read!` is a reading that fails."""

ROWS: dict[str, Sequence[Look]] = {
    "nothing changes": [(A, 1, "rest"), (A, 2, "rest")],
    "a change is read when it is over": [(B, 1, "wait"), (B, 2, "read"), (B, 3, "rest")],
    "a change that goes on": [(B, 1, "wait"), (C, 2, "wait"), (B, 3, "wait"), (B, 4, "read")],
    "a change that is taken back": [(B, 1, "wait"), (A, 2, "wait"), (A, 3, "rest")],
    "one more while the first is read": [(B, 1, "wait"), (B, 2, "read"), (C, 3, "wait"), (C, 4, "read")],
    "refused, and not tried at each look": [
        (B, 1, "wait"), (B, 2, "read!"), (B, 3, "rest"), (B, 31, "rest"), (B, 31.9, "rest"), (B, 32, "read!"),
        (B, 33, "rest"), (B, 62, "read"), (B, 63, "rest"), (B, 900, "rest"),
    ],
    "refused, then another": [(B, 1, "wait"), (B, 2, "read!"), (C, 3, "wait"), (C, 4, "read")],
    "refused, then as before": [(B, 1, "wait"), (B, 2, "read!"), (A, 3, "wait"), (A, 4, "rest")],
    "refused, as before, refused again at once": [
        (B, 1, "wait"), (B, 2, "read!"), (A, 3, "wait"), (A, 4, "rest"), (B, 5, "wait"), (B, 6, "read!"),
    ],
    "asked": [(A, 1, "asked"), (A, 2, "rest"), (B, 3, "asked"), (B, 4, "rest")],
    "asked, and refused": [(A, 1, "asked!"), (A, 2, "rest")],
}  # fmt: skip


def walk(module: ModuleType, looks: Sequence[Look]) -> list[str]:
    """What follows each look, where reading ends as the row says."""
    watched, seen = module.begun(A), []
    for stamps, now, wanted in looks:
        watched, step = module.looked(watched, stamps, now, asked=wanted.startswith("asked"))
        seen.append(str(step))
        if step == "read":
            failed = wanted.endswith("!")
            watched = module.refused(watched, stamps, now) if failed else module.taken_up(watched, stamps)
    return seen


def expected(looks: Sequence[Look]) -> list[str]:
    return [wanted.rstrip("!").replace("asked", "read") for _, _, wanted in looks]


@pytest.mark.parametrize("name", ROWS)
def test_when_files_are_read(name: str) -> None:
    assert walk(succession, ROWS[name]) == expected(ROWS[name])


def test_a_refusal_is_over_when_the_files_are_as_they_were() -> None:
    watched = succession.refused(succession.begun(A), B, 0.0)
    for stamps in (A, A):
        watched, _ = succession.looked(watched, stamps, 1.0)
    assert watched.refused is None
    for stamps in (B, B):
        watched, _ = succession.looked(succession.refused(watched, B, 1.0), stamps, 2.0)
    assert watched.refused == B


@given(
    looks=st.lists(st.tuples(st.sampled_from([A, B, C]), st.booleans()), max_size=30),
    last=st.sampled_from([A, B, C]),
)
def test_whatever_happens_to_the_files_the_last_state_is_taken_up(
    looks: list[tuple[Files, bool]], last: Files
) -> None:
    """And none is read of which the look before did not see the same."""
    watched, before, now = succession.begun(A), A, 0.0
    after = [(last, True)] * 2 + [(last, True)] * int(succession.AGAIN_S)
    for stamps, readable in looks + after:
        now += 1.0
        watched, step = succession.looked(watched, stamps, now)
        if step is succession.Step.READ:
            assert stamps == before
            assert stamps != watched.taken
            taken = succession.taken_up(watched, stamps)
            watched = taken if readable else succession.refused(watched, stamps, now)
        before = stamps
    assert watched.taken == last
    assert watched.refused is None


# --- chains -------------------------------------------------------------------------------------------

CHAINS = {
    "the same": ([b"1", b"2"], [b"1", b"2"], None),
    "one more": ([b"1"], [b"1", b"2"], None),
    "two more": ([b"1"], [b"1", b"2", b"3"], None),
    "one less": ([b"1", b"2"], [b"1"], "root_went_back"),
    "another first": ([b"1", b"2"], [b"x", b"2"], "another_fleet"),
    "another last": ([b"1", b"2"], [b"1", b"x"], "another_fleet"),
    "another, and longer": ([b"1"], [b"x", b"2", b"3"], "another_fleet"),
    "another, and shorter": ([b"1", b"2"], [b"x"], "another_fleet"),
}


def code(module: ModuleType, held: list[bytes], found: list[bytes]) -> tuple[str, str] | None:
    try:
        module.require_successor(held, found)
    except KeysError as error:
        return error.code, str(error.args[0]).split()[0]
    return None


@pytest.mark.parametrize("name", CHAINS)
def test_which_chain_may_follow(name: str) -> None:
    held, found, wanted = CHAINS[name]
    seen = code(succession, held, found)
    assert (None if seen is None else seen[0]) == wanted


def test_the_root_at_fault_is_named() -> None:
    assert code(succession, [b"1", b"2"], [b"1", b"x"]) == ("another_fleet", "root-2.json")
    assert code(succession, [b"1", b"2"], [b"1"]) == ("root_went_back", "root-2.json")


# --- mutants ------------------------------------------------------------------------------------------

MUTANTS = [
    ("replace(watched, seen=stamps)", "watched"),
    ("if asked:", "if False:"),
    ("if stamps != watched.seen:", "if False:"),
    ("return after, Step.WAIT", "return after, Step.REST"),
    ("if stamps == watched.taken:", "if False:"),
    ("replace(after, refused=None), Step.REST", "after, Step.REST"),
    ("stamps == watched.refused and now_s", "now_s"),
    ("stamps == watched.refused and now_s < watched.again_at", "stamps == watched.refused"),
    ("now_s < watched.again_at", "now_s <= watched.again_at"),
    ("if stamps == watched.refused and now_s < watched.again_at:", "if False:"),
    ("replace(watched, taken=stamps, refused=None)", "replace(watched, refused=None)"),
    ("replace(watched, taken=stamps, refused=None)", "replace(watched, taken=stamps)"),
    ("replace(watched, refused=stamps, again_at=now_s + AGAIN_S)", "replace(watched, refused=stamps)"),
    ("replace(watched, refused=stamps, again_at", "replace(watched, taken=stamps, again_at"),
    ("now_s + AGAIN_S", "now_s - AGAIN_S"),
    ("if ours != theirs:", "if False:"),
    ("start=1", "start=0"),
    ("if len(found) < len(held):", "if False:"),
    ("len(found) < len(held)", "len(found) <= len(held)"),
    ("len(found) < len(held)", "len(found) > len(held)"),
    ("root-{len(found) + 1}", "root-{len(held) + 1}"),
]  # fmt: skip


def answers(module: ModuleType) -> list[object]:
    over = module.refused(module.begun(A), B, 0.0)
    for stamps in (A, A):
        over, _ = module.looked(over, stamps, 1.0)
    well = module.taken_up(module.refused(module.begun(A), B, 0.0), B)
    pairs = [*((held, found) for held, found, _ in CHAINS.values()), ([b"1", b"2", b"3"], [b"1"])]
    return [
        [walk(module, looks) for looks in ROWS.values()],
        [code(module, held, found) for held, found in pairs],
        (over.refused, well.refused),
    ]


@pytest.fixture
def mutated() -> Callable[[str, str], ModuleType]:
    source = Path(succession.__file__).read_text()

    def one(old: str, new: str) -> ModuleType:
        assert source.count(old) == 1, old
        module = ModuleType("succession_mutant")
        sys.modules[module.__name__] = module
        exec(compile(source.replace(old, new), succession.__file__, "exec"), vars(module))
        return module

    return one


@pytest.mark.parametrize("mutant", MUTANTS)
def test_each_mutant_is_seen(mutant: tuple[str, str], mutated: Callable[[str, str], ModuleType]) -> None:
    assert answers(mutated(*mutant)) != answers(succession)
