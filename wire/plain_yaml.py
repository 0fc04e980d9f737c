"""PURE. YAML from a file that may be anyone's, read into plain values within bounds.

For: the one way in which all three programs read YAML: no tags but its own, no more values than a person
writes. PyYAML's safe loader makes no objects of other classes, but it follows aliases: a few lines of nested
lists stand for gigabytes ("a billion laughs"), and merges of merges (`<<`) take time and memory without end.
Its constructors also raise what they please (`!!bool maybe` is a KeyError, `!!int ''` an IndexError).
It gets the module `yaml` as an argument, for wire imports the standard library and msgspec only.
Not for: opening files, or what the values mean (`msgspec.convert` at each edge).
"""

from __future__ import annotations

from typing import Any

from wire.errors import WireError

TEXT_BYTES_MAX = 1024 * 1024
VALUES_MAX = 100_000
"""Scalars, lists and mappings together, each counted wherever an alias repeats it."""
DEPTH_MAX = 64
WORDS_MAX = 500


def read(yaml: Any, text: str | bytes) -> object:  # noqa: ANN401 - the module yaml
    """The values of the one document in `text`; None where it is empty.

    Raises:
        WireError: `yaml_malformed`: it is no YAML, has several documents, a tag that is not YAML's own, or a
            value that its tag does not fit; `yaml_too_large`: more values than are read, or too deep.
    """
    if len(text) > TEXT_BYTES_MAX:
        raise WireError("yaml_too_large", f"{len(text)} bytes of YAML, at most {TEXT_BYTES_MAX} are read")
    try:
        loader = _bounded(yaml)(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _measured(node, {}, 0)
            found: object = loader.construct_document(node)
        finally:
            loader.dispose()
    except WireError:
        raise
    except RecursionError:
        raise _too_deep() from None
    except Exception as error:  # noqa: BLE001 - PyYAML's constructors raise what Python's own do
        words = " ".join(f"{error}".split())[:WORDS_MAX]
        raise WireError("yaml_malformed", f"not YAML that can be read: {words}") from None
    return found


def _bounded(yaml: Any) -> Any:  # noqa: ANN401 - the module, and a class of it
    """The safe loader, giving up at brackets in brackets: its time grows with the square of their depth."""

    class Bounded(yaml.SafeLoader):  # type: ignore[misc]
        def fetch_flow_collection_start(self, token: Any) -> None:  # noqa: ANN401 - yaml's own
            if self.flow_level >= DEPTH_MAX:
                raise _too_deep()
            super().fetch_flow_collection_start(token)

    return Bounded


def _measured(node: Any, known: dict[int, int], depth: int) -> int:  # noqa: ANN401 - a node of yaml's
    """How many values a node stands for, its aliases written out; counted once for each node."""
    if id(node) in known:
        count = known[id(node)]
        if not count:
            raise WireError("yaml_malformed", "an alias leads back to a list or mapping that it stands in")
        return count
    if depth > DEPTH_MAX:
        raise _too_deep()
    known[id(node)] = 0
    count = 1
    for child in _children(node):
        count += _measured(child, known, depth + 1)
        if count > VALUES_MAX:
            raise _too_large(f"it stands for more than {VALUES_MAX} values")
    known[id(node)] = count
    return count


def _children(node: Any) -> list[Any]:  # noqa: ANN401 - as above
    """Of a list its entries, of a mapping keys and values, of a scalar nothing.

    Raises:
        UnicodeEncodeError: a scalar is no text.
    """
    if isinstance(node.value, str):
        node.value.encode()  # half of a surrogate pair, by an escape, is text that nothing can write again
        return []
    return [child for entry in node.value for child in (entry if isinstance(entry, tuple) else (entry,))]


def _too_deep() -> WireError:
    return _too_large(f"lists and mappings lie more than {DEPTH_MAX} deep")


def _too_large(why: str) -> WireError:
    return WireError("yaml_too_large", f"this YAML is not read: {why}")
