"""PURE. Which devices a rollout means, in which wave each is, and which variants it may run.

For: the selector language, the wave list, the deterministic order of devices, validation shards and the
variants that a device's hardware allows.
Not for: whether a device is there or a wave may open (`fleet.rollout`).

The language: `all`, or terms joined by `and`, `or`, `not` and parentheses; `not` binds closest, then
`and`, then `or`. A term is FIELD OP VALUE; OP is `=` (equal), `!=` (exactly `not` equal, so it also
holds where nothing is known) or `~` (contains, upper and lower case alike). FIELD is one of `device`,
`group`, `arch`, `cpu`, `board`, `feature`, `runtime`, `os`, `agent` or `label.NAME`. A value with other
characters than letters, digits and `._:/+@-` stands in double quotes.

>>> str(parse_selector("group=north and not (arch=armv7l or label.ring=lab)"))
'group=north and not (arch=armv7l or label.ring=lab)'
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from msgspec import Struct

from fleet.inventory import Device
from wire.bundle import Requirements
from wire.errors import ShallopError
from wire.messages import Hardware

SELECTOR_CHARS_MAX = 2000
DEPTH_MAX = 32
"""Of parentheses and `not`; deeper nesting is refused before it is parsed."""
WAVES_MAX = 32

FIELDS = ("device", "group", "arch", "cpu", "board", "feature", "runtime", "os", "agent")
"""And `label.NAME`."""


class SelectorError(ShallopError):
    """A selector or wave list cannot be read.

    Attributes:
        position: index of the character at which it went wrong.
        hint: what to write instead.
    """

    def __init__(self, code: str, what: str, text: str, position: int, hint: str) -> None:
        super().__init__(code, f"{what} at position {position + 1} of {text[:200]!r}; {hint}")
        self.position = position
        self.hint = hint


class Everything(Struct, frozen=True, tag="all"):
    """Every device."""

    def __str__(self) -> str:
        return "all"


class Term(Struct, frozen=True, tag="term"):
    """One comparison; `field` is one of FIELDS or `label.NAME`."""

    field: str
    operator: Literal["=", "!=", "~"]
    value: str

    def __str__(self) -> str:
        plain = _WORD.fullmatch(self.value) and self.value not in _KEYWORDS
        return f"{self.field}{self.operator}{self.value}" if plain else self._quoted()

    def _quoted(self) -> str:
        return f'{self.field}{self.operator}"{self.value}"'


class Not(Struct, frozen=True, tag="not"):
    """The opposite."""

    of: Selector

    def __str__(self) -> str:
        return f"not {_bracketed(self.of)}"


class And(Struct, frozen=True, tag="and"):
    """All of them."""

    of: tuple[Selector, ...]

    def __str__(self) -> str:
        return " and ".join(_bracketed(part) for part in self.of)


class Or(Struct, frozen=True, tag="or"):
    """Any of them."""

    of: tuple[Selector, ...]

    def __str__(self) -> str:
        return " or ".join(_bracketed(part) for part in self.of)


Selector = Everything | Term | Not | And | Or


def _bracketed(selector: Selector) -> str:
    return f"({selector})" if isinstance(selector, And | Or) else str(selector)


_KEYWORDS = frozenset({"and", "or", "not", "all"})
_WORD = re.compile(r"[A-Za-z0-9._:/+@-]+")
_TOKEN = re.compile(r'\s*(?:(?P<quoted>"[^"]*")|(?P<symbol>!=|[=~()])|(?P<word>[A-Za-z0-9._:/+@-]+))')
_LABEL = re.compile(r"label\.[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")


class _Token(Struct, frozen=True):
    kind: str
    text: str
    position: int


@lru_cache(maxsize=1024)
def parse_selector(text: str) -> Selector:
    """The selector as a typed tree.

    Raises:
        SelectorError: `selector_malformed`, with the position and a hint.
    """
    if len(text) > SELECTOR_CHARS_MAX:
        hint = "give the devices a label or a group and select that"
        raise SelectorError("selector_malformed", "too long", text, SELECTOR_CHARS_MAX, hint)
    parser = _Parser(text)
    selector = parser.disjunction(0)
    parser.end()
    return selector


class _Parser:
    """Recursive descent over the tokens; one method per rule of the grammar."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(self._tokens())
        self.at = 0

    def _tokens(self) -> Iterable[_Token]:
        position = 0
        while self.text[position:].strip():
            match = _TOKEN.match(self.text, position)
            if match is None:
                start = position + len(self.text[position:]) - len(self.text[position:].lstrip())
                raise self._error("a character that has no meaning here", start, 'quote it: board~"a b"')
            kind = match.lastgroup or ""
            yield _Token(kind, match.group(kind), match.start(kind))
            position = match.end()

    def _error(self, what: str, position: int, hint: str) -> SelectorError:
        return SelectorError("selector_malformed", what, self.text, position, hint)

    def _peek(self) -> _Token:
        if self.at < len(self.tokens):
            return self.tokens[self.at]
        return _Token("end", "", len(self.text))

    def _take(self, *words: str) -> bool:
        token = self._peek()
        if token.kind != "quoted" and token.text in words:
            self.at += 1
            return True
        return False

    def end(self) -> None:
        token = self._peek()
        if token.kind != "end":
            raise self._error(f"unexpected {token.text!r}", token.position, "join terms by `and` or `or`")

    def disjunction(self, depth: int) -> Selector:
        parts = [self.conjunction(depth)]
        while self._take("or"):
            parts.append(self.conjunction(depth))
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def conjunction(self, depth: int) -> Selector:
        parts = [self.negation(depth)]
        while self._take("and"):
            parts.append(self.negation(depth))
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def negation(self, depth: int) -> Selector:
        if depth > DEPTH_MAX:
            raise self._error("nested too deeply", self._peek().position, "use a group or a label instead")
        if self._take("not"):
            return Not(self.negation(depth + 1))
        opening = self._peek().position
        if self._take("("):
            inner = self.disjunction(depth + 1)
            if not self._take(")"):
                raise self._error("a parenthesis is never closed", opening, "add `)`")
            return inner
        return Everything() if self._take("all") else self.term()

    def term(self) -> Selector:
        field = self._peek()
        if field.kind != "word" or field.text in _KEYWORDS:
            found = repr(field.text) if field.text else "the end"
            raise self._error(f"{found} where a term is expected", field.position, _FIELDS_HINT)
        if field.text not in FIELDS and not _LABEL.fullmatch(field.text):
            raise self._error(f"unknown field {field.text!r}", field.position, _FIELDS_HINT)
        self.at += 1
        operator = self._peek()
        if operator.text not in {"=", "!=", "~"} or operator.kind != "symbol":
            hint = f"write {field.text}=VALUE, {field.text}!=VALUE or {field.text}~PART"
            raise self._error(f"no comparison after {field.text!r}", operator.position, hint)
        self.at += 1
        value = self._peek()
        if value.kind not in {"word", "quoted"}:
            hint = f'write {field.text}{operator.text}VALUE, in "quotes" if it has blanks'
            raise self._error("a value is missing", value.position, hint)
        self.at += 1
        text = value.text[1:-1] if value.kind == "quoted" else value.text
        return Term(field.text, _OPERATORS[operator.text], text)


_OPERATORS: dict[str, Literal["=", "!=", "~"]] = {"=": "=", "!=": "!=", "~": "~"}
_FIELDS_HINT = f"write `all` or FIELD=VALUE, FIELD one of {', '.join(FIELDS)} or label.NAME"


def matches(selector: Selector, device: Device) -> bool:
    """Whether the device is meant."""
    match selector:
        case Everything():
            return True
        case Term():
            return _term_holds(selector, device)
        case Not():
            return not matches(selector.of, device)
        case And():
            return all(matches(part, device) for part in selector.of)
        case Or():
            return any(matches(part, device) for part in selector.of)


def _term_holds(term: Term, device: Device) -> bool:
    values = _values(term.field, device)
    if term.operator == "~":
        part = term.value.lower()
        return any(part in value.lower() for value in values)
    return (term.value in values) == (term.operator == "=")


def _values(field: str, device: Device) -> tuple[str, ...]:
    """What the device has under that name; nothing where it is unknown."""
    if field.startswith("label."):
        value = device.labels.get(field.removeprefix("label."))
        return () if value is None else (value,)
    if field == "device":
        return (device.id,)
    if field == "group":
        return device.groups
    identity = device.identity
    if identity is None:
        return ()
    machine = identity.hardware
    return {
        "arch": (machine.arch,),
        "cpu": (machine.cpu,),
        "board": (machine.board,),
        "feature": machine.cpu_features,
        "runtime": tuple(runtime.name for runtime in identity.runtimes),
        "os": (identity.os,),
        "agent": (identity.agent_version,),
    }[field]


# --- waves --------------------------------------------------------------------------------------------


class WaveOf(Struct, frozen=True, tag="selector"):
    """The devices that a selector means; only as the first wave."""

    selector: Selector

    def __str__(self) -> str:
        return str(self.selector)


class WaveCount(Struct, frozen=True, tag="count"):
    """So many devices, those of earlier waves included."""

    count: int

    def __str__(self) -> str:
        return str(self.count)


class WavePercent(Struct, frozen=True, tag="percent"):
    """A share of all devices of the rollout, rounded up, those of earlier waves included."""

    percent: str

    def __str__(self) -> str:
        return f"{self.percent}%"


Wave = WaveOf | WaveCount | WavePercent

_COUNT = re.compile(r"[0-9]{1,9}")
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,4})?)\s*%")


@lru_cache(maxsize=1024)
def parse_waves(text: str) -> tuple[Wave, ...]:
    """The waves of `1,50%,100%` or `label.ring=canary,10%,100%`.

    Counts and percentages are cumulative and grow strictly; the last wave is `100%`, so that a rollout
    which is complete has reached all that its selector says.

    Raises:
        SelectorError: `waves_malformed`, with the position and a hint.
    """
    waves: list[Wave] = []
    for position, part in _split(text):
        wave = _wave(text, part, position, first=not waves)
        if waves and not _grows(waves[-1], wave):
            hint = "counts first, then percentages, each larger than the one before"
            raise _waves_error(f"wave {part!r} does not grow", text, position, hint)
        waves.append(wave)
    if not isinstance(waves[-1], WavePercent) or Fraction(waves[-1].percent) != 100:
        hint = "end with `,100%`; to reach fewer devices narrow the selector"
        raise _waves_error("the last wave leaves devices out", text, len(text), hint)
    if len(waves) > WAVES_MAX:
        raise _waves_error(f"more than {WAVES_MAX} waves", text, len(text), "use fewer, larger steps")
    return tuple(waves)


def _waves_error(what: str, text: str, position: int, hint: str) -> SelectorError:
    return SelectorError("waves_malformed", what, text, position, hint)


def _split(text: str) -> list[tuple[int, str]]:
    """Parts between commas that stand outside quotes, each with its position."""
    parts, start, quoted = [], 0, False
    for index, character in enumerate(text):
        quoted ^= character == '"'
        if character == "," and not quoted:
            parts.append((start, text[start:index].strip()))
            start = index + 1
    parts.append((start, text[start:].strip()))
    return parts


def _wave(text: str, part: str, position: int, *, first: bool) -> Wave:
    if not part:
        raise _waves_error("an empty wave", text, position, "write for example 1,50%,100%")
    if _COUNT.fullmatch(part):
        if int(part) == 0:
            raise _waves_error("a wave of no device", text, position, "begin with 1")
        return WaveCount(int(part))
    percent = _PERCENT.fullmatch(part)
    if percent:
        if not 0 < Fraction(percent.group(1)) <= 100:
            raise _waves_error(f"{part} is no share", text, position, "percentages are above 0, up to 100")
        return WavePercent(percent.group(1))
    if not first:
        hint = "only the first wave may be a selector; then counts, then percentages"
        raise _waves_error(f"{part!r} is neither a count nor a percentage", text, position, hint)
    try:
        return WaveOf(parse_selector(part))
    except SelectorError as error:
        what = f"{part!r} is no count, percentage or selector"
        raise _waves_error(what, text, position + error.position, error.hint) from None


def _grows(before: Wave, after: Wave) -> bool:
    match before, after:
        case WaveCount(), WaveCount():
            return after.count > before.count
        case WavePercent(), WavePercent():
            return Fraction(after.percent) > Fraction(before.percent)
        case WavePercent(), WaveCount():
            return False
        case _:
            return True


def wave_size(waves: Sequence[Wave], index: int, devices: Sequence[Device]) -> int:
    """How many of the rollout's `devices` wave `index` reaches; never fewer than an earlier wave.

    Requires: the devices are all that count, the ones already reached included.
    """
    return max(_size(wave, devices) for wave in waves[: index + 1])


def _size(wave: Wave, devices: Sequence[Device]) -> int:
    match wave:
        case WaveOf():
            return sum(matches(wave.selector, device) for device in devices)
        case WaveCount():
            return min(wave.count, len(devices))
        case WavePercent():
            return math.ceil(Fraction(wave.percent) * len(devices) / 100)


def place(salt: str, device_id: str) -> str:
    """The device's place in the order of a rollout: a hash, the same whenever and wherever computed."""
    return hashlib.sha256(f"{salt}\0{device_id}".encode()).hexdigest()


def in_order(waves: Sequence[Wave], salt: str, devices: Iterable[Device]) -> list[Device]:
    """The devices in the order in which waves reach them.

    Those of a first wave that is a selector come first, then by `place`. Each wave takes a prefix, so a
    larger wave contains the smaller, and a device that appears later does not reorder the others.
    """
    first = waves[0]

    def key(device: Device) -> tuple[bool, str]:
        later = isinstance(first, WaveOf) and not matches(first.selector, device)
        return later, place(salt, device.id)

    return sorted(devices, key=key)


def shards_for(rank: int, n_shards: int, shards_per_device: int = 1) -> tuple[int, ...]:
    """The validation shards of the device of that rank, round robin; empty if there are none.

    Args:
        rank: 0 for the first device that the rollout reached.
        n_shards: in the manifest.
        shards_per_device: at most that many, all different.
    """
    if n_shards == 0:
        return ()
    count = min(shards_per_device, n_shards)
    return tuple(sorted({(rank * count + i) % n_shards for i in range(count)}))


class VariantNeeds(Struct, frozen=True, kw_only=True):
    """What of a manifest's variant decides where it may run; without a runtime it asks for none."""

    id: str
    runtime: str = ""
    requires: Requirements = Requirements()
    size_bytes: int = 0


def runs_on(requires: Requirements, hardware: Hardware) -> bool:
    """Whether a machine has what a variant requires; the agent judges by the same rule.

    Any of `arch`, at least one of `cpu_any`, none of `cpu_none`; an empty list asks for nothing.
    """
    features = set(hardware.cpu_features)
    return (
        (not requires.arch or hardware.arch in requires.arch)
        and (not requires.cpu_any or bool(features & set(requires.cpu_any)))
        and not features & set(requires.cpu_none)
    )


def allowed_variants(
    variants: Iterable[VariantNeeds], hardware: Hardware, runtimes: Collection[str] = ()
) -> tuple[str, ...]:
    """Ids of the variants that the machine may run, in the manifest's order; empty if none may.

    Args:
        variants: of the release.
        hardware: of the machine.
        runtimes: that it said it has; where it said none, the agent itself finds out which it lacks.
    """
    return tuple(
        variant.id
        for variant in variants
        if runs_on(variant.requires, hardware)
        and (not runtimes or not variant.runtime or variant.runtime in runtimes)
    )
