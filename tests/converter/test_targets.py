"""Targets as data, and telling which one a machine is."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from converter.errors import InputError
from converter.recipe import parse
from converter.targets.detect import Machine, detect_machine, detect_target, meets
from converter.targets.loader import Rule, Target, all_targets, broken_rule, find_target
from wire.bundle import Requirements

_INTEL = """processor\t: 0
model name\t: {model}
flags\t\t: fpu sse2 {flags}

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
_PI = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 {features}
CPU part\t: 0xd08

Hardware\t: BCM2835
Model\t\t: {model}
"""


def _tree(root: Path, cpuinfo: str) -> Path:
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text(cpuinfo)
    return root


@pytest.mark.parametrize(
    ("arch", "cpuinfo", "expected"),
    [
        ("x86_64", _INTEL.format(model="Xeon", flags="avx2 avx512f avx512_vnni"), "x86_vnni"),
        ("x86_64", _INTEL.format(model="Core Ultra", flags="avx2 avx_vnni"), "x86_vnni"),
        ("x86_64", _INTEL.format(model="Xeon 5118 with VNNI in its name", flags="avx2 avx512f"), "x86_avx2"),
        ("aarch64", _PI.format(model="Raspberry Pi 4 Model B", features=""), "arm64_v8_0"),
        ("aarch64", _PI.format(model="Raspberry Pi 5 Model B", features="asimdhp asimddp"), "arm64_dotprod"),
        ("aarch64", _PI.format(model="a server", features="asimddp i8mm"), "arm64_i8mm"),
    ],
)
def test_a_machine_is_told_by_its_features(tmp_path: Path, arch: str, cpuinfo: str, expected: str) -> None:
    assert detect_target(detect_machine(_tree(tmp_path, cpuinfo), arch)).id == expected


@pytest.mark.parametrize(
    ("arch", "cpuinfo"), [("riscv64", "isa\t: rv64imafdc\n"), ("x86_64", "flags\t: sse2\n"), ("x86_64", "")]
)
def test_an_unknown_machine_is_refused_with_advice(tmp_path: Path, arch: str, cpuinfo: str) -> None:
    with pytest.raises(InputError, match="name one with --target") as caught:
        detect_target(detect_machine(_tree(tmp_path, cpuinfo), arch))
    assert caught.value.code == "host_unknown"


def test_without_cpuinfo_the_message_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shallop-convert targets") as caught:
        detect_machine(tmp_path)
    assert caught.value.code == "host_unreadable"


def test_the_processor_is_named(tmp_path: Path) -> None:
    machine = detect_machine(_tree(tmp_path, _PI.format(model="Raspberry Pi 4", features="")), "aarch64")
    assert machine.cpu == "Raspberry Pi 4"
    assert "asimd" in machine.features


def test_requirements() -> None:
    machine = Machine(arch="x86_64", features=frozenset({"avx2"}), cpu="one")
    assert meets(machine, Requirements())
    assert meets(machine, Requirements(arch=("x86_64", "amd64"), cpu_any=("avx2", "avx512f")))
    assert not meets(machine, Requirements(arch=("aarch64",)))
    assert not meets(machine, Requirements(cpu_any=("avx512f",)))
    assert not meets(machine, Requirements(cpu_none=("avx2",)))


@pytest.mark.parametrize(
    ("name", "identifier"),
    [("x86-64-vnni", "x86_vnni"), ("x86-64", "x86_avx2"), ("rpi4", "arm64_v8_0"), ("rpi5", "arm64_dotprod")],
)
def test_aliases(name: str, identifier: str) -> None:
    assert find_target(name) is find_target(identifier)


def test_an_unknown_target_is_refused_with_the_list() -> None:
    with pytest.raises(InputError, match="arm64_v8_0 = rpi4") as caught:
        find_target("toaster")
    assert caught.value.code == "unknown_target"


def test_every_rule_has_a_source_and_names_are_unique() -> None:
    names = [name for target in all_targets() for name in (target.id, *target.aliases)]
    assert len(set(names)) == len(names) > 16
    for target in all_targets():
        for field in structs.fields(target.rules):
            rule = getattr(target.rules, field.name)
            assert rule.source.strip(), f"{target.id}.{field.name}"


def test_arm_gets_signed_activations_and_x86_unsigned_ones() -> None:
    for target in all_targets():
        if target.accelerated:
            continue
        wanted = "i8" if "aarch64" in target.requires.value.arch else "u8"
        assert {r.activation for r in target.recipes if r.kind in {"static", "mixed"}} == {wanted}


def test_full_range_weights_are_guarded_without_vnni() -> None:
    target = find_target("x86-64")
    guard = {"session.x64quantprecision": "1"}
    assert target.session_config(parse("static_wi8_au8_pc_minmax")) == guard
    assert target.session_config(parse("dynamic_wi8_af32")) == guard
    assert target.session_config(parse("static_wi8_au8_pc_minmax_rr")) == {}
    assert target.session_config(parse("float_wf32_af32")) == {}


def _with_recipes(target: Target, *names: str) -> Target:
    rule: Rule[tuple[str, ...]] = Rule(value=names, confidence="V", source="a test")
    return structs.replace(target, rules=structs.replace(target.rules, recipes=rule))


@pytest.mark.parametrize(
    ("recipe", "fault"),
    [
        ("static_wi8_ai8_pc_minmax", "activations other than u8"),
        ("static_wu8_au8_pc_minmax", "weights other than i8"),
        ("static_wi8_au8_pc_minmax_rr", "reduced range"),
    ],
)
def test_a_recipe_that_breaks_its_targets_rules_is_found(recipe: str, fault: str) -> None:
    broken = broken_rule(_with_recipes(find_target("x86_vnni"), recipe))
    assert broken is not None
    assert fault in broken


def test_an_unknown_key_in_a_target_is_refused() -> None:
    plain = msgspec.to_builtins(find_target("rpi4"))
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert(plain | {"colour": "red"}, Target)
