"""The selector language, waves, places, shards and allowed variants."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.inventory import Device, fold
from fleet.selection import (
    DEPTH_MAX,
    And,
    Everything,
    Not,
    Or,
    Selector,
    SelectorError,
    Term,
    VariantNeeds,
    WaveCount,
    WaveOf,
    WavePercent,
    allowed_variants,
    in_order,
    matches,
    parse_selector,
    parse_waves,
    runs_on,
    shards_for,
    wave_size,
)
from wire.bundle import Requirements
from wire.messages import Hardware, Identity, RuntimeInfo

HARDWARE = Hardware(
    arch="aarch64", cpu="Cortex-A76", board="Raspberry Pi 5 Model B", cpu_features=("asimd", "asimddp")
)


def device(name: str = "roof-17", **labels: str) -> Device:
    identity = Identity(
        device=name,
        install_id="0" * 32,
        number=1,
        hardware=HARDWARE,
        runtimes=(RuntimeInfo(name="onnxruntime", version="1.31"),),
        agent_version="0.1",
        os="Debian 12",
        labels={"site": "berlin", "ring": "early"},
    )
    start = Device(id=name, groups=("north",), labels_own=labels)
    return fold(start, identity, 0.0)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("all", True),
        ("device=roof-17", True),
        ("device!=roof-17", False),
        ("device~ROOF", True),
        ("group=north", True),
        ("group=south", False),
        ("label.site=berlin", True),
        ("label.ring=canary", True),
        ("label.none=x", False),
        ("label.none!=x", True),
        ("arch=aarch64 and not board~jetson", True),
        ('board~"pi 5"', True),
        ("feature=asimddp", True),
        ("runtime=onnxruntime and os~debian and agent=0.1", True),
        ("group=south or group=north and arch=armv7l", False),
        ("(group=south or group=north) and arch=aarch64", True),
        ("not not all", True),
        ("not (all)", False),
        ('device="all"', False),
    ],
)
def test_selectors_mean_what_they_say(text: str, holds: bool) -> None:
    assert matches(parse_selector(text), device(ring="canary")) is holds


@pytest.mark.parametrize(
    ("text", "position", "hint"),
    [
        ("", 0, "write `all`"),
        ("label.site", 10, "label.site=VALUE"),
        ("label.=x", 0, "label.NAME"),
        ("label.site=", 11, "quotes"),
        ("colour=red", 0, "FIELD one of device"),
        ("all all", 4, "join terms"),
        ("all and", 7, "write `all`"),
        ("(all", 0, "add `)`"),
        ("all)", 3, "join terms"),
        ("group=a;drop", 7, "quote it"),
        ("board~Raspberry Pi", 16, "join terms"),
        ("and", 0, "write `all`"),
        ('group="open', 6, "quote it"),
    ],
)
def test_errors_name_position_and_hint(text: str, position: int, hint: str) -> None:
    with pytest.raises(SelectorError) as caught:
        parse_selector(text)
    assert (caught.value.position, caught.value.code) == (position, "selector_malformed")
    assert hint in str(caught.value)


def test_limits_on_what_is_parsed() -> None:
    with pytest.raises(SelectorError, match="too long"):
        parse_selector("all or " * 500 + "all")
    deep = "(" * (DEPTH_MAX + 2) + "all" + ")" * (DEPTH_MAX + 2)
    with pytest.raises(SelectorError, match="nested too deeply"):
        parse_selector(deep)
    with pytest.raises(SelectorError, match="nested too deeply"):
        parse_selector("not " * (DEPTH_MAX + 2) + "all")


words = st.from_regex(r"[A-Za-z0-9._:/+@-]{1,8}|[a-z (),=~]{1,8}", fullmatch=True)
terms = st.builds(
    Term, st.sampled_from(["device", "arch", "label.site"]), st.sampled_from(["=", "!=", "~"]), words
)


def _joined(parts: st.SearchStrategy[Selector]) -> st.SearchStrategy[Selector]:
    several = st.lists(parts, min_size=2, max_size=3).map(tuple)
    return st.one_of(st.builds(Not, parts), st.builds(And, several), st.builds(Or, several))


trees: st.SearchStrategy[Selector] = st.recursive(
    st.one_of(st.just(Everything()), terms), _joined, max_leaves=6
)


@settings(max_examples=150)
@given(tree=trees)
def test_a_printed_selector_is_read_back_alike(tree: Selector) -> None:
    again = parse_selector(str(tree))
    assert again == tree
    assert matches(again, device()) == matches(tree, device())


@settings(max_examples=200)
@given(text=st.text(alphabet="al andort()=!~\"'.gup-1,", max_size=24))
def test_any_text_is_read_or_refused_by_name(text: str) -> None:
    try:
        parse_selector(text)
    except SelectorError as error:
        assert 0 <= error.position <= len(text)  # noqa: PT017 - whether it raises depends on the text


def test_waves_are_read() -> None:
    assert parse_waves("1,50%,100%") == (WaveCount(1), WavePercent("50"), WavePercent("100"))
    first, *rest = parse_waves('label.ring="a,b", 12.5%, 100%')
    assert first == WaveOf(Term("label.ring", "=", "a,b"))
    assert rest == [WavePercent("12.5"), WavePercent("100")]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "an empty wave"),
        ("1,,100%", "an empty wave"),
        ("0,100%", "no device"),
        ("1,1,100%", "does not grow"),
        ("50%,20%,100%", "does not grow"),
        ("50%,60,100%", "does not grow"),
        ("0%,100%", "no share"),
        ("101%", "no share"),
        ("1,5", "leaves devices out"),
        ("1,50%", "leaves devices out"),
        ("100%,100%", "does not grow"),
        ("1,label.a=b,100%", "neither a count nor a percentage"),
        ("label.a,100%", "no count, percentage or selector"),
        (",".join(str(i) for i in range(1, 40)) + ",100%", "more than 32 waves"),
    ],
)
def test_waves_that_cannot_be_kept_are_refused(text: str, what: str) -> None:
    with pytest.raises(SelectorError, match=what) as caught:
        parse_waves(text)
    assert caught.value.code == "waves_malformed"


lists = st.sampled_from(["1,50%,100%", "1,2,5,100%", "10%,33.3%,100%", "label.ring=canary,20%,100%", "100%"])
fleets = st.lists(st.sampled_from(["canary", "early"]), min_size=0, max_size=25).map(
    lambda rings: [device(f"d{i}", ring=ring) for i, ring in enumerate(rings)]
)


@settings(max_examples=60)
@given(text=lists, fleet=fleets, salt=st.text(max_size=4))
def test_larger_waves_contain_smaller_ones_and_the_last_everything(
    text: str, fleet: list[Device], salt: str
) -> None:
    waves = parse_waves(text)
    order = [d.id for d in in_order(waves, salt, fleet)]
    sizes = [wave_size(waves, index, fleet) for index in range(len(waves))]
    assert sizes == sorted(sizes)
    assert sizes[-1] == len(fleet) == len(set(order))
    assert order == [d.id for d in in_order(waves, salt, reversed(fleet))]
    if isinstance(waves[0], WaveOf):
        canaries = {d.id for d in fleet if d.labels["ring"] == "canary"}
        assert set(order[: sizes[0]]) == canaries


@settings(max_examples=60)
@given(fleet=fleets, text=lists)
def test_a_new_device_does_not_reorder_the_others(fleet: list[Device], text: str) -> None:
    waves = parse_waves(text)
    before = [d.id for d in in_order(waves, "s", fleet)]
    after = [d.id for d in in_order(waves, "s", [*fleet, device("newcomer", ring="early")])]
    assert [name for name in after if name != "newcomer"] == before


@given(percent=st.integers(1, 99), n=st.integers(0, 500))
def test_shares_are_rounded_up(percent: int, n: int) -> None:
    fleet = [Device(id=f"d{i}") for i in range(n)]
    expected = math.ceil(n * percent / 100 - 1e-9)
    assert wave_size(parse_waves(f"{percent}%,100%"), 0, fleet) == expected


def test_places_depend_on_the_salt() -> None:
    fleet = [Device(id=f"d{i}") for i in range(30)]
    waves = parse_waves("1,100%")
    firsts = {in_order(waves, f"rollout-{i}", fleet)[0].id for i in range(20)}
    assert len(firsts) > 5


def test_shards_go_round() -> None:
    assert [shards_for(rank, 3) for rank in range(4)] == [(0,), (1,), (2,), (0,)]
    assert shards_for(1, 5, 2) == (2, 3)
    assert shards_for(2, 5, 2) == (0, 4)
    assert shards_for(3, 2, 9) == (0, 1)
    assert shards_for(0, 0) == ()


@pytest.mark.parametrize(
    ("requires", "runs"),
    [
        (Requirements(), True),
        (Requirements(arch=("x86_64", "aarch64")), True),
        (Requirements(arch=("x86_64",)), False),
        (Requirements(cpu_any=("i8mm", "asimddp")), True),
        (Requirements(cpu_any=("i8mm",)), False),
        (Requirements(cpu_none=("asimddp",)), False),
        (Requirements(cpu_none=("avx512_vnni",)), True),
        (Requirements(arch=("aarch64",), cpu_any=("asimddp",), cpu_none=("sve",)), True),
    ],
)
def test_what_a_variant_requires(requires: Requirements, runs: bool) -> None:
    assert runs_on(requires, HARDWARE) is runs


def test_allowed_variants_keep_the_manifest_order() -> None:
    needs = (
        VariantNeeds(id="onnxruntime/c"),
        VariantNeeds(id="onnxruntime/a", requires=Requirements(cpu_any=("i8mm",))),
        VariantNeeds(id="onnxruntime/b", requires=Requirements(arch=("aarch64",))),
    )
    assert allowed_variants(needs, HARDWARE) == ("onnxruntime/c", "onnxruntime/b")


def test_a_device_is_given_only_variants_of_runtimes_that_it_has() -> None:
    """So that one with another runtime than the first variant's is not degraded: it runs its own first."""
    needs = (
        VariantNeeds(id="ai_edge_litert/a", runtime="ai-edge-litert"),
        VariantNeeds(id="onnxruntime/b", runtime="onnxruntime"),
        VariantNeeds(id="any/c"),
    )
    everything = ("ai_edge_litert/a", "onnxruntime/b", "any/c")
    assert allowed_variants(needs, HARDWARE, ("onnxruntime",)) == ("onnxruntime/b", "any/c")
    assert allowed_variants(needs, HARDWARE, ("ai-edge-litert", "onnxruntime")) == everything
    assert allowed_variants(needs, HARDWARE, ()) == everything
    assert allowed_variants(needs[:1], HARDWARE, ("tflite-runtime",)) == ()
