"""How inputs are bent: bytes, JSON by its structure, text by its lines.

For: seeded mutations that keep enough of an honest input to get beyond the first check.
Not for: knowing any reader; a format of its own brings its mutation along (`tests.fuzz.formats`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

BYTES_MAX = 64 * 1024
"""Longer inputs are cut: what is found in more is found in less."""

PLACES_MAX = 5000
"""In one tree: what was repeated within what was repeated is not walked to its end."""
TEXT_BYTES_MAX = 256 * 1024
"""Of one JSON text: above the size caps of most channels, so that those are met, too."""

_EDGES = (0, 1, 2, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256, 1000, 4095, 32767, 65535, 65536, 2**24)
_WIDE = (2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)

RAW = (
    "null", "true", "false", "0", "-0", "-1", "1", "1.5", "1e308", "1e999", "-1e999", "1e-400", "0.1", "NaN",
    "9007199254740991", "9007199254740992", "9223372036854775807", "9223372036854775808",
    "18446744073709551616", "1" + "0" * 400, "1" + "0" * 5000, '""', '"a"', '"\\ud800"', '"\\u0000"', '"\\n"',
    '"..\\/..\\/etc\\/passwd"', '"/etc/shadow"', '"ä\U0001f600"', '"' + "a" * 70_000 + '"', "[]", "{}",
    "[[]]",
    "[null]", "[" * 600 + "]" * 600, "[" * 20_000, '{"a":' * 600 + "1" + "}" * 600, '{"a":' * 20_000,
    '"device"', '"2026-11-21T17:00:00+00:00"', '"' + "ab" * 32 + '"', '"deflate"', "[1,2,3]", '{"":1}',
)  # fmt: skip
"""Pieces of JSON that readers stumble over: edges of numbers, depth, length, surrogates, wrong types."""

Tree = Any
"""What `json.loads` gives."""


def havoc(random: Random, data: bytes, words: Sequence[bytes] = ()) -> bytes:
    """One to eight small changes to the bytes."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 2, 4, 8))):
        _CHANGES[random.randrange(len(_CHANGES))](random, found)
        if words and random.random() < 0.3:
            at = random.randrange(len(found) + 1)
            found[at:at] = random.choice(words)
    return bytes(found[:BYTES_MAX])


def _flip(random: Random, found: bytearray) -> None:
    if found:
        found[random.randrange(len(found))] ^= 1 << random.randrange(8)


def _set(random: Random, found: bytearray) -> None:
    if found:
        found[random.randrange(len(found))] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))


def _remove(random: Random, found: bytearray) -> None:
    at = random.randrange(len(found) + 1)
    del found[at : at + random.choice((1, 1, 2, 4, 16, 256))]


def _truncate(random: Random, found: bytearray) -> None:
    del found[random.randrange(len(found) + 1) :]


def _insert(random: Random, found: bytearray) -> None:
    at = random.randrange(len(found) + 1)
    found[at:at] = random.randbytes(random.choice((1, 1, 2, 4, 16)))


def _repeat(random: Random, found: bytearray) -> None:
    at = random.randrange(len(found) + 1)
    piece = bytes(found[at : at + random.choice((1, 4, 16, 64))])
    found[at:at] = piece * random.choice((1, 2, 16, 200))


def _move(random: Random, found: bytearray) -> None:
    start, to = random.randrange(len(found) + 1), random.randrange(len(found) + 1)
    piece = found[start : start + random.choice((1, 4, 16, 64))]
    found[to : to + len(piece)] = piece


def _number(random: Random, found: bytearray) -> None:
    width = random.choice((1, 2, 4, 8))
    if len(found) < width:
        return
    at = random.randrange(len(found) - width + 1)
    value = random.choice((*_EDGES, *_WIDE)) * random.choice((1, 1, -1)) % 2 ** (8 * width)
    found[at : at + width] = value.to_bytes(width, random.choice(("little", "little", "big")))


def _nudge(random: Random, found: bytearray) -> None:
    """A little more or less at a place where a length may stand."""
    width = random.choice((1, 2, 4))
    if len(found) < width:
        return
    at = random.randrange(len(found) - width + 1)
    value = int.from_bytes(found[at : at + width], "little") + random.randint(-8, 8)
    found[at : at + width] = (value % 2 ** (8 * width)).to_bytes(width, "little")


_CHANGES: tuple[Callable[[Random, bytearray], None], ...] = (
    _flip, _set, _remove, _truncate, _insert, _repeat, _move, _number, _nudge,
)  # fmt: skip


def bent_json(random: Random, data: bytes) -> bytes:
    """The JSON with some of its values others, missing or twice; sometimes its bytes bent as well."""
    if random.random() < 0.15 or len(data) > BYTES_MAX:
        return havoc(random, data)
    try:
        tree = json.loads(data)
        marks: dict[str, str] = {}
        for _ in range(random.choice((1, 1, 1, 2, 3, 5))):
            tree = bent_tree(random, tree, marks)
        text = json.dumps(tree)
    except (ValueError, RecursionError):
        return havoc(random, data)
    for mark, raw in marks.items():
        # A piece that came to stand in many places would be a test of this program's memory.
        fits = text.count(mark) * len(raw) < TEXT_BYTES_MAX
        text = text.replace(f'"{mark}"', raw if fits else "1")
    return text.encode("utf-8", "surrogatepass")[:TEXT_BYTES_MAX]


def bent_tree(random: Random, tree: Tree, marks: dict[str, str]) -> Tree:
    """A tree with one place changed; raw pieces stand as marks, to be put in when it is text."""
    places = list(_places(tree))
    if not places:
        return _fresh(random, marks)
    holder, key = random.choice(places)
    change = random.random()
    if change < 0.45:
        holder[key] = _fresh(random, marks)
    elif change < 0.6:
        del holder[key]
    elif change < 0.75:
        other, name = random.choice(places)
        holder[key] = _copied(other, name)
    elif change < 0.85 and isinstance(holder, dict):
        holder[random.choice(("", "kind", "version", "x" * 300, "ä", str(key) + "x"))] = holder.pop(key)
    elif isinstance(holder, list):
        crowded = len(places) >= PLACES_MAX
        room = 0 if crowded else BYTES_MAX // (len(json.dumps(holder[key])) + 1)
        holder.extend([holder[key]] * min(room, random.choice((1, 2, 40, 400))))
    else:
        holder[key] = _nudged(random, holder[key])
    return tree


def _copied(holder: Tree, key: Any) -> Tree:  # noqa: ANN401 - a key or an index
    return json.loads(json.dumps(holder[key])) if key in _keys(holder) else None


def _keys(holder: Tree) -> Any:  # noqa: ANN401 - either's
    return holder if isinstance(holder, dict) else range(len(holder))


def _places(tree: Tree) -> list[tuple[Tree, Any]]:
    """Every holder with each of its keys."""
    found: list[tuple[Tree, Any]] = []
    waiting = [tree]
    while waiting and len(found) < PLACES_MAX:
        holder = waiting.pop()
        if isinstance(holder, dict | list):
            for key in _keys(holder):
                found.append((holder, key))
                waiting.append(holder[key])
    return found


def _fresh(random: Random, marks: dict[str, str]) -> Tree:
    if random.random() < 0.25:
        return random.choice((*_EDGES, *_WIDE)) * random.choice((1, -1))
    mark = f"<<{len(marks)}>>"
    marks[mark] = random.choice(RAW)
    return mark


def _nudged(random: Random, value: Tree) -> Tree:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        if abs(value) > 2**64:
            return 0
        return random.choice((value + 1, value - 1, -value, value * 2, value / 3, value * 10**6))
    if isinstance(value, str):
        bent = havoc(random, value.encode("utf-8", "surrogatepass"))
        return bent.decode("utf-8", "replace")
    return value


def text_of(*words: bytes) -> Callable[[Random, bytes], bytes]:
    """Mutations of a text of lines: lines moved, repeated and dropped, words put in, and bytes bent."""

    def bend(random: Random, data: bytes) -> bytes:
        lines = data.split(b"\n")
        for _ in range(random.choice((1, 1, 2, 3))):
            at = random.randrange(len(lines)) if lines else 0
            change = random.random()
            if change < 0.2:
                lines[at : at + 1] = []
            elif change < 0.35:
                lines[at:at] = lines[at : at + 1] * random.choice((1, 2, 30))
            elif change < 0.5:
                lines[at:at] = [random.choice((b"", b" ", b"\t", b"\0"))] * random.choice((1, 50, 5000))
            elif change < 0.85 and lines:
                lines[at] = _worded(random, lines[at], words)
            elif lines:
                lines[at] = havoc(random, lines[at], words)
        return b"\n".join(lines)[:BYTES_MAX]

    return bend


def _worded(random: Random, line: bytes, words: Sequence[bytes]) -> bytes:
    """One word of the line is another, or one more."""
    parts = line.split(b" ")
    at = random.randrange(len(parts))
    word = random.choice((*words, *(raw.encode("utf-8", "surrogatepass") for raw in RAW)))
    if random.random() < 0.5:
        parts[at] = word
    else:
        parts.insert(at, word)
    return b" ".join(parts)


def bytes_with(*words: bytes) -> Callable[[Random, bytes], bytes]:
    """`havoc` with words of the format."""

    def bend(random: Random, data: bytes) -> bytes:
        return havoc(random, data, words)

    return bend
