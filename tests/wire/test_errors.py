"""An error quotes what was sent, but nothing that a terminal obeys or that forges a line of a log."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wire.errors import MESSAGE_CHARS_MAX, ShallopError, one_line


@given(st.text())
def test_an_error_is_one_line_of_what_can_be_printed(said: str) -> None:
    error = ShallopError("malformed", f"not a message: {said}")
    assert str(error).isprintable()
    assert len(str(error)) <= MESSAGE_CHARS_MAX + len(" ... [malformed]")


@given(st.text())
def test_what_can_be_printed_stays_as_it_is(said: str) -> None:
    kept = one_line(said)
    assert len(kept) == len(said)
    assert all(a == b for a, b in zip(said, kept, strict=True) if a.isprintable())
    assert one_line(kept) == kept


def test_nothing_of_an_error_is_lost_but_what_cannot_be_printed() -> None:
    assert (
        str(ShallopError("bad", "a\x1b[2J b\nc\u202e\ud800 \u00fc\u4e2d")) == "a [2J b c   \u00fc\u4e2d [bad]"
    )
