"""Mutations of formats that have a structure of their own: zip archives of arrays, deltas, files by path.

For: bending one member, one header or one field and putting the rest together again so that it is read.
Not for: JSON, text and plain bytes (`tests.fuzz.mutate`).
"""

from __future__ import annotations

import io
import lzma
import struct
import zipfile
from random import Random
from typing import Any

import msgspec

from tests.fuzz.mutate import havoc
from wire import delta_format as df

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_DESCRIPTIONS = (
    b"'|O'", b"'<f8'", b"'<f4'", b"'|b1'", b"'<U4'", b"'<M8[s]'", b"'<c16'", b"'V8'", b"[('a', '<f4')]",
    b"'<i8'",
    b"'<i4'", b"'|i1'", b"'|u1'", b"(1, 2)", b"None", b"'>f4'", b"'<f2'", b"'<u8'", b"{'a': 1}", b"'",
)  # fmt: skip
_SHAPES = (
    b"()", b"(0,)", b"(1,)", b"(-1,)", b"(3, 8)", b"(99999999999999,)", b"(2, 2, 2)", b"(1.5,)", b"(True,)",
    b"[3]",
    b"(4, 0)", b"(" + b"1, " * 40 + b")", b"(2147483648, 2147483648)", b"(" * 300, b"{[]: 1}", b"3",
)  # fmt: skip


def bent_archive(random: Random, data: bytes) -> bytes:
    """An `.npz` with a header, a member, a name or some bytes others."""
    if random.random() < 0.25:
        return havoc(random, data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {entry.filename: archive.read(entry) for entry in archive.infolist()[:32]}
    except Exception:  # noqa: BLE001 - it was bent before
        return havoc(random, data)
    if not members:
        return havoc(random, data)
    name = random.choice(list(members))
    change = random.random()
    if change < 0.5:
        members[name] = _bent_header(random, members[name])
    elif change < 0.65:
        members[name] = havoc(random, members[name])
    elif change < 0.75:
        del members[name]
    elif change < 0.85:
        members[random.choice(list(members))] = members[name]
    else:
        members[havoc(random, name.encode()).decode("latin-1")] = members.pop(name)
    return _archive(members, random.choice(_METHODS))


def _archive(members: dict[str, bytes], method: int) -> bytes:
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w", method) as archive:
        for name, content in members.items():
            if name.partition("\0")[0] and len(name) < 500:
                archive.writestr(name, content)
    return found.getvalue()


def _bent_header(random: Random, array: bytes) -> bytes:
    """An `.npy` whose header says something else; its length fits again."""
    if array[:6] != b"\x93NUMPY" or len(array) < 10:
        return havoc(random, array)
    size = int.from_bytes(array[8:10], "little")
    header, body = array[10 : 10 + size], array[10 + size :]
    change = random.random()
    if change < 0.4:
        header = _between(header, b"'descr': ", b", 'fortran", random.choice(_DESCRIPTIONS))
    elif change < 0.8:
        header = _between(header, b"'shape': ", b", }", random.choice(_SHAPES))
    else:
        header = havoc(random, header, (b"{", b"'", b"\\", b"\n", b"(", b"#", b'"""', b"L", b"0x", b"\t"))
    version = random.choice((array[6:8], array[6:8], b"\x02\x00", b"\x03\x00", b"\x09\x00"))
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header) % 65536)
    return array[:6] + version + length + header + body


def _between(header: bytes, after: bytes, before: bytes, new: bytes) -> bytes:
    start = header.find(after) + len(after)
    end = header.find(before, start)
    return header[:start] + new + header[end:] if len(after) <= start <= end else header + new


# --- deltas


_FILTERS = [{"id": lzma.FILTER_LZMA2, "dict_size": df.DICTIONARY_BYTES}]


def bent_delta(random: Random, data: bytes) -> bytes:
    """A delta with a number of its head another, packed again; or with its bytes bent."""
    if random.random() < 0.4:
        return havoc(random, data)
    try:
        packed, _size = df.HEAD_SIZES.unpack_from(data, len(df.MAGIC))
        start = len(df.MAGIC) + df.HEAD_SIZES.size
        plain = lzma.decompress(data[start : start + packed], lzma.FORMAT_RAW, filters=_FILTERS)
        head = msgspec.msgpack.decode(plain)
    except Exception:  # noqa: BLE001 - it was bent before
        return havoc(random, data)
    for _ in range(random.choice((1, 1, 2, 4))):
        _bent_list(random, head)
    rest = data[start + packed :]
    if random.random() < 0.4:
        rest = havoc(random, rest)
    return packed_delta(head, rest)


def packed_delta(head: object, rest: bytes) -> bytes:
    """A delta of that head, well packed."""
    plain = msgspec.msgpack.encode(head)
    small = lzma.compress(plain, lzma.FORMAT_RAW, filters=_FILTERS)
    return df.MAGIC + df.HEAD_SIZES.pack(len(small), len(plain)) + small + rest


def _bent_list(random: Random, tree: Any) -> None:  # noqa: ANN401 - what msgpack gives
    while isinstance(tree, list) and tree:
        at = random.randrange(len(tree))
        if not isinstance(tree[at], list) or random.random() < 0.1:
            tree[at] = _other(random, tree[at])
            return
        tree = tree[at]


def _other(random: Random, value: Any) -> Any:  # noqa: ANN401 - as above
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return random.choice((value + 1, value - 1, value * 2, 0, 1, 3, 7, 255, -value, 2**31 - 1, value ^ 4))
    if isinstance(value, float):
        return random.choice((0.0, -value, 1e300, float("inf"), float("nan"), 1e-300))
    if isinstance(value, list):
        return value * 2 if random.random() < 0.5 else []
    return random.choice((None, 1, [1.0, 1, 1, 0, 0, False, 0]))


# --- trees of small files


def bent_tree_of_files(words: tuple[bytes, ...]) -> Any:  # noqa: ANN401 - a mutation
    """Mutations of a text that lists files: `>path`, then its content."""

    def bend(random: Random, data: bytes) -> bytes:
        parts = data.split(b"\n>")
        at = random.randrange(len(parts))
        path, newline, content = parts[at].partition(b"\n")
        change = random.random()
        if change < 0.15:
            del parts[at]
        elif change < 0.7:
            parts[at] = path + b"\n" + random.choice((*words, havoc(random, content, words)))
        elif change < 0.85:
            parts[at] = path + newline + content + random.choice(words) * random.choice((1, 2, 40))
        else:
            parts[at] = (
                path
                + b"\n"
                + random.choice((b"\n", b" ", b"\t", b"_", b"A")) * random.choice((9, 4000, 60_000))
            )
        return b"\n>".join(parts)[:80_000]

    return bend
