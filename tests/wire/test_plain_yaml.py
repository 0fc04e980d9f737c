"""YAML within bounds: what PyYAML's safe loader reads is read the same, what stands for too much is not."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wire import plain_yaml
from wire.errors import WireError

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner, max_size=5),
    max_leaves=30,
)


@given(trees)
def test_plain_values_are_read_as_the_safe_loader_reads_them(tree: object) -> None:
    for text in (yaml.safe_dump(tree), yaml.safe_dump(tree, default_flow_style=True).encode()):
        assert plain_yaml.read(yaml, text) == yaml.safe_load(text)


def code(text: str | bytes) -> str:
    with pytest.raises(WireError) as raised:
        plain_yaml.read(yaml, text)
    assert len(str(raised.value)) < 700
    return raised.value.code


def test_an_empty_document_is_nothing() -> None:
    assert plain_yaml.read(yaml, "") is None
    assert plain_yaml.read(yaml, "# words only\n") is None


def test_anchors_and_merges_of_a_persons_size_are_read() -> None:
    text = "base: &b {a: 1, n: [1, 2]}\nmore: {<<: *b, c: 3}\nagain: *b\n"
    assert plain_yaml.read(yaml, text) == {
        "base": {"a": 1, "n": [1, 2]}, "more": {"a": 1, "n": [1, 2], "c": 3}, "again": {"a": 1, "n": [1, 2]},
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "a: !!bool maybe", "a: !!int ''", "a: !!float ''", "a: !!timestamp x", "a: 2026-13-45",
        "a: !!python/name:os.x", "a: [", "a: 1\n---\nb: 2", "a: &a [*a]", "&a {x: {y: *a}}", "a: *b",
        "? [1]\n: 2", "\0", b"\xff\xfe\xff", "a: " + "9" * 5000, "%YAML 9.9\n--- a", "a: !other x",
        'a: "\\ud800"',
    ],
)  # fmt: skip
def test_what_is_no_plain_yaml_is_named(text: str | bytes) -> None:
    assert code(text) == "yaml_malformed"


def laughs(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


def merges(levels: int) -> str:
    lines = ["a0: &a0 {x: 1}"]
    return "\n".join(lines + [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, levels)])


def test_aliases_that_stand_for_too_many_values() -> None:
    assert plain_yaml.read(yaml, laughs(3))
    assert code(laughs(6)) == "yaml_too_large"
    assert plain_yaml.read(yaml, merges(8))
    assert code(merges(30)) == "yaml_too_large"


def test_the_bounds_are_where_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of n scalars is n + 1 values; brackets in brackets, and blocks, up to the same depth."""
    most = 1000
    monkeypatch.setattr(plain_yaml, "VALUES_MAX", most)
    listed = f"[{'1,' * (most - 1)}]"
    found = plain_yaml.read(yaml, listed)
    assert isinstance(found, list)
    assert len(found) == most - 1
    assert code(f"[{'1,' * most}]") == "yaml_too_large"
    deep = plain_yaml.DEPTH_MAX
    for opening, closing in (("[", "]"), ("{a: ", "}")):
        assert plain_yaml.read(yaml, opening * deep + "1" + closing * deep)
        assert code(opening * (deep + 1) + "1" + closing * (deep + 1)) == "yaml_too_large"
    assert plain_yaml.read(yaml, "- " * deep + "1")
    assert code("- " * (deep + 1) + "1") == "yaml_too_large"
    assert code("[" * 100_000) == "yaml_too_large"
    assert code("- " * 100_000) == "yaml_too_large"
    assert code(" " * (plain_yaml.TEXT_BYTES_MAX + 1)) == "yaml_too_large"
