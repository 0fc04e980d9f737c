"""The tests of `verify` bite: each hand-made mutant of what decides changes a row of some case.

A mutant is a module's source with one text replaced; the chain of modules that decide is executed anew around
it, and the same cases are looked at: releases, honest and spoilt, each with what was asked for.
"""

# ruff: noqa: E501 - a mutant is one line, however long the text that it replaces

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from msgspec import structs
from onnx import TensorProto

from fleet.adapters.key_files import verify as check
from fleet.publish.directory import DirectoryHolder
from fleet.verification import Asked
from tests.fleet import test_verify_origin as origin
from tests.fleet import test_verify_rows as rows
from tests.fleet.verifying import INGREDIENTS, PLACES, Release, alter, blob_of, have_no_envelope, onnx_file
from tests.keys import RELEASE, RELEASE_2, ROOT_1, ROOT_2, root_of, root_sha256, sealed_root
from wire.bundle import Chunk, Provenance
from wire.chunks import digest
from wire.deltas import DeltaIndex
from wire.errors import ShallopError

FLEET = Path(__file__).parents[2] / "fleet"
CHAIN = ("verify", "verify_content", "verify_origin", "given_files", "verification")

Case = Callable[[Release], Asked]
PLAIN = Asked(subject="s")


def then(*spoils: Callable[[Release], object], asked: Asked = PLAIN) -> Case:
    def case(release: Release) -> Asked:
        for spoil in spoils:
            spoil(release)
        return asked

    return case


def given(*kinds: str, spoil: Callable[[Release], object] = lambda _: None) -> Case:
    def case(release: Release) -> Asked:
        spoil(release)
        return Asked(subject="s", given={kind: release.given[kind] for kind in kinds})

    return case


def other(kind: str) -> Case:
    def case(release: Release) -> Asked:
        release.given[kind].write_bytes(b"another")
        return Asked(subject="s", given={kind: release.given[kind]})

    return case


def provenance(release: Release, **fields: object) -> None:
    changed = structs.replace(release.value.provenance, **fields)
    release.value = structs.replace(release.value, provenance=changed)
    release.hold()


def bare(release: Release) -> None:
    release.value = structs.replace(
        release.value,
        provenance=Provenance(source_model_sha256=release.value.provenance.source_model_sha256),
    )
    release.hold()


def named(release: Release, model: str = "net", to: str = "v1") -> None:
    release.named = structs.replace(release.named, model=model, release=to)


def link_out(paths: list[Path]) -> None:
    """Its content is the right one, and lies outside."""
    outside = paths[1].parents[2] / "outside.bin"
    outside.write_bytes(paths[1].read_bytes())
    paths[1].unlink()
    paths[1].symlink_to(outside)


def alter_file(release: Release, path: str) -> None:
    alter(release, blob_of(release, path))


def threshold(release: Release) -> None:
    root = root_of(release=[RELEASE, RELEASE_2])
    release.chain = [structs.replace(root, release=structs.replace(root.release, threshold=2))]
    release.hold()


def without(release: Release, kind: str) -> None:
    provenance(release, files=tuple(one for one in release.value.provenance.files if one.kind != kind))


def contradicting(release: Release, kind: str) -> None:
    files = release.value.provenance.files
    provenance(
        release,
        files=tuple(structs.replace(one, sha256="ab" * 32) if one.kind == kind else one for one in files),
    )


def resized(release: Release) -> None:
    """A file of right chunks and hash whose size is said otherwise cannot be coherent; its shard's hash can."""
    shard = release.value.validation[0]
    file = structs.replace(shard.file, sha256="ab" * 32)
    release.value = structs.replace(release.value, validation=(structs.replace(shard, file=file),))
    release.hold()


def outputs_named(release: Release) -> None:
    variants = tuple(structs.replace(one, axes={}) for one in release.value.variants)
    output = structs.replace(release.value.outputs[0], name="q")
    release.value = structs.replace(release.value, outputs=(output,), variants=variants)
    release.hold()


def untransposed(release: Release) -> None:
    lite = structs.replace(release.value.variants[1], axes={"y": (0, 2, 3, 1)})
    release.value = structs.replace(release.value, variants=(release.value.variants[0], lite))
    release.hold()


def weights(release: Release, *, spoil: Callable[[list[Path]], object] = lambda _: None) -> Asked:
    spoil(origin.with_weights_outside(release))
    return Asked(subject="s", given={"model": release.given["model"]})


def weights_of_another_sum(release: Release) -> Asked:
    asked = weights(release)
    provenance(release, source_model_sha256="ab" * 32)
    return asked


def some_weights(release: Release, *, spoil: Callable[[Path], object]) -> Asked:
    """More files than are listed, and of those that are, one is another."""
    paths = origin.with_weights_outside(release)
    provenance(release, options={"model_data_files": "9"})
    spoil(paths[0])
    return Asked(subject="s", given={"model": release.given["model"]})


def skipping(release: Release) -> None:
    release.sealed_roots = [sealed_root(root_of(1)), sealed_root(root_of(3))]


def unsigned_by_itself(release: Release) -> None:
    release.sealed_roots = [sealed_root(root_of(1)), sealed_root(root_of(2, root=[ROOT_2]), ROOT_1)]


def unlisted_weights(release: Release) -> Asked:
    asked = weights(release)
    without(release, "model_data")
    return asked


def retaining(release: Release, spoil: Callable[[dict[str, str]], object] = lambda _: None) -> Asked:
    return origin.retaining(release, lambda held: (spoil(held), None)[1])


def _of(held: dict[str, str], kind: str) -> str:
    return next(one for one in sorted(held) if f"/{kind}/" in one)


def delta_of_another_release(release: Release) -> None:
    origin.with_delta(release)
    assert release.hints is not None
    release.hints = [structs.replace(release.hints[0], to_file_sha256="cd" * 32)]


def delta_of_another_sum(release: Release) -> None:
    chunk = origin.with_delta(release)
    content = release.blobs[chunk]
    index = DeltaIndex(
        algorithm="t", delta_bytes=len(content), delta_sha256="ab" * 32,
        chunks=(Chunk(sha256=chunk, size_bytes=len(content)),),
    )  # fmt: skip
    origin.hold_delta(release, index)


def pinned(release: Release) -> Asked:
    release.sealed_roots = rows.CHAIN
    return Asked(subject="s", root_sha256=digest(rows.PAYLOADS[1]))


CASES: dict[str, Case] = {
    "honest": lambda release: Asked(
        subject="s", given=release.given, root_sha256=root_sha256(release.chain[0])
    ),
    "pinned in the middle": pinned,
    "foreign pin": then(asked=Asked(subject="s", root_sha256="ab" * 32)),
    "pin without roots": then(
        lambda r: setattr(r, "sealed_roots", []), asked=Asked(subject="s", root_sha256="ab" * 32)
    ),
    "no roots": then(lambda r: setattr(r, "sealed_roots", []), rows.sign_not),
    "signed without roots": then(lambda r: setattr(r, "sealed_roots", [])),
    **{
        spoil.__name__: then(spoil)
        for spoil in (
            rows.break_chain, rows.leave_a_root_out, rows.damage_a_root, rows.sign_with_order,
            rows.sign_with_retired, rows.sign_with_stranger, rows.sign_another_kind, rows.sign_another_manifest,
            rows.sign_not, rows.garble, have_no_envelope, threshold, bare, resized, outputs_named, untransposed,
            origin.with_delta, delta_of_another_release, delta_of_another_sum,
        )
    },
    "other bytes": then(lambda r: setattr(r, "data", r.data + b" ")),
    "under another model": then(lambda r: named(r, model="other")),
    "under another name": then(lambda r: named(r, to="v2")),
    **{f"altered {path}": then(partial(alter_file, path=path)) for path in PLACES},
    "no model": then(lambda r: r.replace_file("a/model.onnx", b"junk")),
    "other input": then(lambda r: r.replace_file("a/model.onnx", onnx_file("z"))),
    "other type": then(lambda r: r.replace_file("a/model.onnx", onnx_file(dtype=TensorProto.INT8))),
    "other shape": then(lambda r: r.replace_file("a/model.onnx", onnx_file(channels=5))),
    **{f"other {kind}": other(kind) for kind in INGREDIENTS},
    **{f"bare and {kind}": given(kind, spoil=bare) for kind in INGREDIENTS},
    **{f"without {kind}": given(kind, spoil=partial(without, kind=kind)) for kind in ("search", "dataset")},
    **{f"contradicting {kind}": then(partial(contradicting, kind=kind)) for kind in INGREDIENTS},
    "weights": weights,
    "weights, one altered": partial(weights, spoil=lambda paths: paths[1].write_bytes(b"other")),
    "weights, one gone": partial(weights, spoil=lambda paths: paths[1].unlink()),
    "weights, one a link": partial(weights, spoil=link_out),
    "weights of another sum": weights_of_another_sum,
    "weights that are not listed": unlisted_weights,
    "broker": retaining,
    "broker of other content": partial(
        retaining, spoil=lambda held: held.update({_of(held, "blob"): "ab" * 32})
    ),
    "broker lacks a chunk": partial(retaining, spoil=lambda held: held.pop(_of(held, "blob"))),
    "broker lacks the release": partial(retaining, spoil=lambda held: held.pop(_of(held, "release"))),
    "empty broker": partial(retaining, spoil=lambda held: held.clear()),
    "directory": then(),
    "directory with a pin": then(asked=Asked(subject="s", root_sha256="ab" * 32)),
    "a root left out, signed all the same": then(skipping),
    "a root that did not sign itself": then(unsigned_by_itself),
    "weights, some not listed, one altered": partial(some_weights, spoil=lambda path: path.write_bytes(b"x")),
    "weights, some not listed, one gone": partial(some_weights, spoil=Path.unlink),
}  # fmt: skip


def refusal(act: Callable[[], object]) -> str:
    """The code of the error that an act ends in; empty where it ends well."""
    try:
        act()
    except ShallopError as error:
        return error.code
    return ""


Seen = Iterator[tuple[str, object]]


def observed(modules: dict[str, ModuleType], folder: Path) -> Seen:
    """What becomes of every case, by name."""
    verification, blob = modules["verification"], Chunk(sha256=digest(b"blob"), size_bytes=4)
    yield "nothing", verification.holds([])
    files = list(Release(folder).value.all_files())
    yield "not looked at", verification.content_row("c", files, {}).outcome.value
    true_blob = modules["verify_content"].true_blob
    longer = structs.replace(blob, size_bytes=5)
    for name, chunk, content in (
        ("true", blob, b"blob"),
        ("bulb", blob, b"bulb"),
        ("longer", longer, b"blob"),
    ):
        yield name, refusal(partial(true_blob, chunk, content))
    for number, (name, case) in enumerate(CASES.items()):
        place = folder / str(number)
        place.mkdir(parents=True)
        yield name, outcome(verification, case, place, in_directory=name.startswith("directory"))


def outcome(verification: ModuleType, case: Case, place: Path, *, in_directory: bool) -> object:
    """The rows of one case, with the codes in their reasons."""
    release = Release(place)
    asked = case(release)
    holder = DirectoryHolder(release.write(place / "bundle")) if in_directory else release
    try:
        done = verification.verify(holder, asked, check)
    except Exception as error:  # noqa: BLE001 - a mutant may do anything
        return type(error).__name__
    rows = [(row.check, row.outcome.value, re.findall(r"\[\w+\]", row.reason)) for row in done.rows]
    return done.holds, rows


def mutant(module: str, old: str, new: str) -> dict[str, ModuleType]:
    """The deciding modules as they would be if `old` in `module` read `new`."""
    before = {name: sys.modules[name] for name in sys.modules if name.startswith("fleet")}
    try:
        modules = {}
        for name in CHAIN:
            source = (FLEET / f"{name}.py").read_text()
            if name == module:
                assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {module}"
                source = source.replace(old, new)
            made = modules[name] = ModuleType(f"fleet.{name}")
            sys.modules[made.__name__] = made
            exec(compile(source, f"{name}.py", "exec"), made.__dict__)
        return modules
    finally:
        sys.modules.update(before)


MUTANTS: dict[str, tuple[str, str, str]] = {
    "a failure is passed over": ("verify", "Outcome.FAILED not in outcomes and", ""),
    "nothing checked counts": ("verify", " and Outcome.OK in outcomes", ""),
    "any pin will do": ("verify", "if start is None:", "if start is None and False:"),
    "the pin is not looked for": ("verify", "if _payload_sha256(one) == pin), None", "), 0"),
    "no roots under a pin is fine": ("verify", "    if pin is None:\n        return not_checked", "    if True:\n        return not_checked"),
    "roots need not follow": ("verify", "        require_successor(before, root)\n", ""),
    "the root before need not sign": (
        "verify", "        require_signatures(before, Role.ROOT, message, signatures, verify)\n", "",
    ),
    "a root need not sign itself": (
        "verify", "    require_signatures(root, Role.ROOT, message, signatures, verify)\n", "",
    ),
    "the chain goes on after a break": ("verify", '            return Chain(row=failed("roots", f"the chain breaks', '            break\n            return Chain(row=failed("roots", f"the chain breaks'),
    "the first root counts": ("verify", "require_signatures(roots[-1], Role.RELEASE", "require_signatures(roots[0], Role.RELEASE"),
    "an order key may sign": ("verify", "require_signatures(roots[-1], Role.RELEASE", "require_signatures(roots[-1], Role.ORDER"),
    "another manifest may be signed": ("verify", "    if payload != manifest:\n", "    if False:\n"),
    "unsigned is signed": ("verify", "return (payload, signatures) if signatures else", "return (payload, signatures) if True else"),
    "nobody is believed, all are": ("verify", "    if not roots:\n        return failed(", "    if not roots:\n        return ok("),
    "the digest is not compared": ("verify", "if named.digest is not None and found != named.digest:", "if False:"),
    "the model's name is not compared": ("verify", "named.model not in {None, manifest.model} or", ""),
    "the release's name is not compared": ("verify", " or named.release not in {None, manifest.release}", ""),
    "chunks are believed by name": ("verify_content", "if digest(content) != chunk.sha256:", "if False:"),
    "a file's hash is not compared": ("verify_content", "if found.sha256 != file.sha256:", "if False:"),
    "faults are no failure": ("verify_content", '    if isinstance(found, Fault):\n        return f"cannot be rebuilt', '    if False:\n        return f"cannot be rebuilt'),
    "a file without findings is whole": ("verify_content", '    if found is None:\n        return "was not looked at"', '    if found is None:\n        return ""'),
    "an unreadable model is fine": ("verify_content", '        return failed(check, f"{variant.model_path} is no', '        return ok(check, f"{variant.model_path} is no'),
    "inputs are not compared": ("verify_content", 'faults = _edges(manifest.inputs, found.inputs, variant, found.format, "takes")', "faults = []"),
    "outputs are not compared": ("verify_content", '    faults += _edges(manifest.outputs, found.outputs, variant, found.format, "gives")\n', ""),
    "types are not compared": ("verify_content", "return said == held or", "return True or"),
    "shapes are not compared": ("verify_content", "if not fits(spec.shape, one.shape, variant.axes.get(spec.name), form):", "if False:"),
    "axes are passed over": ("verify_content", "variant.axes.get(spec.name)", "None"),
    "a delta may make anything": ("verify_content", "if hint.to_file_sha256 not in files:", "if False:"),
    "a delta's faults are passed over": ("verify_content", "elif fault is not None:", "elif False:"),
    "the broker may retain anything": ("verify_content", "held.get(topic) not in {None, want}", "False"),
    "the broker may lack anything": ("verify_content", "absent = [topic for topic in expected if held.get(topic) is None]", "absent = []"),
    "a cleared release is a failure": ("verify_content", "if release in absent:", "if False:"),
    "an empty broker holds": ("verify_content", "if not any(held.get(topic) for topic in expected):", "if False:"),
    "nothing recorded is ok": ("verify_origin", "not_recorded(check, _EARLIER) if value is None else", ""),
    "no files is ok": ("verify_origin", "if not provenance.files:", "if False:"),
    "a list may contradict": ("verify_origin", "any(one.sha256 != value for one in same_kind)", "False"),
    "weights outside contradict": ("verify_origin", 'if kind == "model" and outside:', "if False:"),
    "given files are believed": ("verify_origin", "    if found != wanted:\n        return failed", "    if False:\n        return failed"),
    "a file that was not read is fine": ("verify_origin", "if kind in _OPTIONAL and provenance.files:\n            return failed", "if False:\n            return failed"),
    "weights are not compared": ("verify_origin", "    if wrong:\n", "    if False:\n"),
    "missing weights are fine": ("verify_origin", '    if found is None:\n        return f"{one.name} is not beside', '    if found is None:\n        return ""\n        return f"{one.name} is not beside'),
    "unlisted weights are fine": ("verify_origin", "    if _unlisted(provenance):\n", "    if False:\n"),
    "the sum is not compared": ("verify_origin", "if listed and given.whole != sum_of_all:", "if False:"),
    "links are followed out": ("given_files", "if not place.is_relative_to(folder.resolve()):", "if False:"),
    "an altered delta is whole": ("verification", "if (size, whole.hexdigest()) != (index.delta_bytes, index.delta_sha256):", "if False:"),
    "a damaged model is read all the same": ("verification", "        if not whole:\n", "        if False:\n"),
    "a directory's pin is passed over": ("verification", "    if asked.root_sha256 is None:\n        return [row]", "    if True:\n        return [row]"),
}  # fmt: skip


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return dict(observed(mutant("none", "", ""), tmp_path_factory.mktemp("original")))


def test_the_original_answers_in_every_case(expected: dict[str, object]) -> None:
    assert [name for name in CASES if not isinstance(expected[name], tuple)] == []


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_told_from_the_original(name: str, expected: dict[str, object], tmp_path: Path) -> None:
    seen = observed(mutant(*MUTANTS[name]), tmp_path)
    assert any(expected[case] != found for case, found in seen)
