"""PURE. What a release says of where it comes from, and whether given files are the ones that went in.

For: the rows of provenance, and of `--source`, `--calibration` and their like.
Not for: hashing files (`fleet.adapters.given_files`), or recording (`converter.provenance`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from fleet.verify import SHORT, Outcome, Row, failed, not_checked, not_recorded, ok
from wire.bundle import Ingredient, Provenance

OPTIONS = {
    "model": "--source",
    "calibration": "--calibration",
    "validation": "--validation",
    "search": "--search",
    "dataset": "--dataset",
    "sla": "--sla",
}
"""By kind of file: the option that gives it."""
_OPTIONAL = frozenset({"search", "dataset"})
"""What a conversion may do without."""
_EARLIER = "an earlier converter wrote this bundle"


class Given(Struct, frozen=True, kw_only=True):
    """A file that a person holds against the release.

    Attributes:
        sha256: of the file.
        data: of a model: by name, the digests of the files of weights beside it that the release lists; None
            where one is not there.
        whole: of a model: of its file, followed by these, in the order of their names.
    """

    path: str
    sha256: str
    data: dict[str, str | None] = {}
    whole: str | None = None


def digests(provenance: Provenance) -> dict[str, str | None]:
    """By kind: the digest that the release records in its own field."""
    return {
        "model": provenance.source_model_sha256,
        "calibration": provenance.calibration_sha256,
        "validation": provenance.validation_sha256,
        "sla": provenance.sla_sha256,
    }


def recorded_rows(provenance: Provenance) -> list[Row]:
    """What is recorded, and what is not."""
    rows = []
    for kind, value in digests(provenance).items():
        check = f"recorded {kind}"
        rows.append(not_recorded(check, _EARLIER) if value is None else ok(check, f"SHA-256 {value}"))
    rows.append(_files_row(provenance))
    for name, held in (("tools", provenance.tools), ("options", provenance.options)):
        check = f"recorded {name}"
        if held:
            first = ", ".join(f"{key} {value}" for key, value in sorted(held.items())[:4])
            rows.append(ok(check, f"{len(held)}: {first}{', ...' if len(held) > 4 else ''}"[:200]))
        else:
            rows.append(not_recorded(check, _EARLIER))
    return rows


def _files_row(provenance: Provenance) -> Row:
    """The list of files, which must not contradict the digests that stand by themselves."""
    if not provenance.files:
        return not_recorded("recorded files", _EARLIER)
    outside = any(one.kind == "model_data" for one in provenance.files) or _unlisted(provenance)
    for kind, value in digests(provenance).items():
        same_kind = [one for one in provenance.files if one.kind == kind]
        # With weights in other files the model's digest is over all of them.
        if kind == "model" and outside:
            continue
        if value is not None and any(one.sha256 != value for one in same_kind):
            return failed("recorded files", f"the list names another {kind} than the release does itself")
    kinds = ", ".join(dict.fromkeys(one.kind for one in provenance.files))
    return ok("recorded files", f"{len(provenance.files)}: {kinds}")


def _unlisted(provenance: Provenance) -> int:
    """Files of weights that the converter counted and did not list, for there are too many."""
    counted = provenance.options.get("model_data_files", "0")
    listed = sum(one.kind == "model_data" for one in provenance.files)
    readable = counted.isascii() and counted.isdigit() and len(counted) < 9
    return max(0, int(counted) - listed) if readable else 0


def given_rows(provenance: Provenance, given: Mapping[str, Given]) -> list[Row]:
    """Whether the given files are the very ones, for each kind that can be given."""
    return [_given_row(kind, provenance, given.get(kind)) for kind in OPTIONS]


def _given_row(kind: str, provenance: Provenance, given: Given | None) -> Row:
    check = f"same {kind}"
    listed = [one for one in provenance.files if one.kind == kind]
    own = digests(provenance).get(kind)
    if given is None:
        if kind in _OPTIONAL and provenance.files and not listed:
            return not_checked(check, "the conversion read no such file")
        return not_checked(check, f"give {OPTIONS[kind]} FILE to hold it against the release")
    if kind == "model":
        return _model_row(check, provenance, listed, given)
    wanted = listed[0].sha256 if listed else own
    if wanted is None:
        if kind in _OPTIONAL and provenance.files:
            return failed(check, f"{given.path} is given, and the conversion read no such file")
        return not_recorded(check, _EARLIER)
    return _compared(check, given.path, given.sha256, wanted)


def _compared(check: str, path: str, found: str, wanted: str) -> Row:
    if found != wanted:
        return failed(check, f"{path} has SHA-256 {found[:SHORT]}, the release was made of {wanted[:SHORT]}")
    return ok(check, f"{path} is the very file, SHA-256 {found[:SHORT]}")


def _model_row(check: str, provenance: Provenance, listed: Sequence[Ingredient], given: Given) -> Row:
    """A model is its file and the files of its weights; an earlier converter named the sum of them alone."""
    sum_of_all = provenance.source_model_sha256
    wanted = listed[0].sha256 if listed else sum_of_all
    row = _compared(check, given.path, given.sha256, wanted)
    if row.outcome is Outcome.FAILED:
        unlisted = "" if listed else "; if its weights lie in other files, this release does not list them"
        return failed(check, row.reason + unlisted)
    outside = [one for one in provenance.files if one.kind == "model_data"]
    wrong = [fault for one in outside if (fault := _data_fault(one, given))]
    if wrong:
        return failed(check, wrong[0])
    if _unlisted(provenance):
        words = "the model's file is the very one; its weights lie in more files than a release lists"
        return not_checked(check, words)
    if listed and given.whole != sum_of_all:
        return failed(check, f"its files are those of the list, and not the model {sum_of_all[:SHORT]}")
    return row


def _data_fault(one: Ingredient, given: Given) -> str:
    """What is wrong with one file of weights; empty where it is the very one."""
    found = given.data.get(one.name)
    if found is None:
        return f"{one.name} is not beside {given.path}, and the model's weights lie in it"
    if found != one.sha256:
        return f"{one.name} has SHA-256 {found[:SHORT]}, the release was made of {one.sha256[:SHORT]}"
    return ""
