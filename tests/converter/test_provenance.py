"""What a conversion says about where its bundle comes from is complete and true."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from msgspec import structs

from converter import provenance
from converter.cli import command
from converter.errors import InputError
from converter.inputs import Inputs, Options, read_inputs, utc_now
from converter.pipeline import run
from converter.report import read_report
from converter.runtime import VERSION
from fleet.adapters import key_files
from fleet.publish.directory import DirectoryHolder
from fleet.verification import Asked, verify
from fleet.verify import Outcome
from tests.converter.builders import Workshop
from wire.bundle import INGREDIENTS_MAX, MANIFEST_BYTES_MAX, Ingredient, Manifest, Provenance
from wire.codec import decode


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read(options: Options) -> tuple[Inputs, dict[str, Ingredient]]:
    inputs = read_inputs(options, utc_now())
    return inputs, {one.kind: one for one in provenance.ingredients_of(options, inputs)}


def test_every_option_is_recorded_or_said_to_have_no_effect(workshop: Workshop) -> None:
    """Whoever adds an option decides here how it is recorded."""
    options = workshop.options()
    recorded = set(provenance.options_of(options, read_inputs(options, utc_now()), []))
    ways = (
        provenance.AS_FILES, set(provenance.AS_TOOLS), provenance.AS_NAMES, provenance.WITHOUT_EFFECT,
        recorded & set(Options.__struct_fields__),
    )  # fmt: skip
    assert set().union(*ways) == set(Options.__struct_fields__)
    assert sum(map(len, ways)) == len(Options.__struct_fields__), "one option is recorded in two ways"


def test_a_bundle_names_every_file_that_was_read(workshop: Workshop) -> None:
    described = workshop.folder / "dataset.yaml"
    described.write_text("{}\n")
    result = CliRunner().invoke(
        command, ["convert", *(word for word in workshop.arguments() if word != "--quiet")]
    )
    assert result.exit_code == 0, result.output
    manifest = decode((workshop.output / "manifest.json").read_bytes(), Manifest, MANIFEST_BYTES_MAX)
    said = manifest.provenance
    found = {one.kind: (one.name, one.size_bytes, one.sha256) for one in said.files}
    target = Path(provenance.__file__).parent / "targets" / "x86_vnni.yaml"
    for kind, path in {
        "model": workshop.model, "calibration": workshop.calibration, "validation": workshop.validation,
        "sla": workshop.sla, "dataset": described, "target": target,
    }.items():  # fmt: skip
        assert found.pop(kind) == (path.name, path.stat().st_size, sha256(path))
    assert found == {}
    assert said.source_model_sha256 == sha256(workshop.model)
    assert said.options["target"] == "x86_vnni"
    assert said.options["calibration_samples"] == "40"
    assert manifest.variants[0].id in said.options["tried"].split(", ")
    assert said.tools["onnxruntime"] == VERSION
    assert len(said.tools["shallop-source"]) == 64
    report, _ = read_report(workshop.output)
    assert msgspec.convert(report.provenance, Provenance) == said
    line = f"provenance: 6 files, {len(said.tools)} tools, {len(said.options)} options recorded"
    assert line in result.output
    assert f"shallop-fleet verify {workshop.output}" in result.output
    page = (workshop.output / "report.html").read_text()
    assert f"<dt>file: sla</dt><dd><code>{sha256(workshop.sla)} sla.yaml</code></dd>" in page


@pytest.mark.parametrize("target", ["rpi5", "coral"])
def test_what_is_written_holds_when_it_is_verified(workshop: Workshop, target: str) -> None:
    """ONNX and TFLite, float and integers at the edge; `coral` takes TFLite only."""
    options = structs.replace(workshop.options(target), format=None, candidates=())
    assert run(options).passed
    kinds = ("model", "calibration", "validation", "sla")
    asked = Asked(subject="bundle", given={kind: getattr(options, kind) for kind in kinds})
    found = verify(DirectoryHolder(options.output), asked, key_files.verify)
    outcomes = {row.check: row.outcome for row in found.rows}
    assert found.holds
    assert {outcomes[f"same {kind}"] for kind in kinds} == {Outcome.OK}
    models = [row.reason.partition(",")[0] for row in found.rows if row.check.startswith("model ")]
    assert set(models) == ({"tflite"} if target == "coral" else {"onnx", "tflite"})
    assert Outcome.NOT_RECORDED not in outcomes.values()


def test_weights_outside_of_the_model_are_listed_by_their_names(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    proto = onnx.load(shop.model)
    outside = {"all_tensors_to_one_file": False, "size_threshold": 0, "convert_attribute": False}
    onnx.save_model(proto, str(shop.model), save_as_external_data=True, **outside)
    options = shop.options()
    inputs = read_inputs(options, utc_now())
    files = provenance.ingredients_of(options, inputs)
    listed = {one.name: one for one in files if one.kind == "model_data"}
    assert tuple(listed) == inputs.source.external
    assert len(listed) > 1
    whole = hashlib.sha256(shop.model.read_bytes())
    for name, one in listed.items():
        assert (one.sha256, one.size_bytes) == (sha256(tmp_path / name), (tmp_path / name).stat().st_size)
        whole.update((tmp_path / name).read_bytes())
    assert whole.hexdigest() == inputs.source.sha256, "one after the other they are the source model's digest"
    assert provenance.options_of(options, inputs, [])["model_data_files"] == str(len(listed))


def test_too_many_files_of_weights_are_counted_and_not_listed(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "INGREDIENTS_MAX", 5)
    options = workshop.options()
    inputs = read_inputs(options, utc_now())
    (workshop.folder / "w").write_bytes(b"w")
    both = hashlib.sha256(workshop.model.read_bytes() + b"w").hexdigest()
    source = structs.replace(inputs.source, external=("w",), sha256=both)
    kinds = [one.kind for one in provenance.ingredients_of(options, structs.replace(inputs, source=source))]
    assert kinds == ["model", "calibration", "validation", "sla", "target"]
    assert INGREDIENTS_MAX > 100


@pytest.mark.parametrize("kind", ["model", "calibration", "validation", "sla"])
def test_a_file_that_is_changed_meanwhile_is_refused(workshop: Workshop, kind: str) -> None:
    options = workshop.options()
    inputs = read_inputs(options, utc_now())
    path: Path = getattr(options, kind)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(InputError, match="changed while it was converted") as refused:
        provenance.ingredients_of(options, inputs)
    assert refused.value.code == "input_changed"
    path.unlink()
    with pytest.raises(InputError, match="cannot be read any more"):
        provenance.ingredients_of(options, inputs)


def test_other_samples_and_a_custom_metric_are_files_too(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = workshop.folder / "search.npz"
    arrays = dict(np.load(workshop.validation))
    np.savez(search, **{name: array[:50] for name, array in arrays.items()})
    metric = workshop.folder / "own_metric_of_provenance.py"
    metric.write_text("def score(outputs, labels):\n    return 0.5\n")
    monkeypatch.syspath_prepend(str(workshop.folder))
    options = structs.replace(
        workshop.options(), search=search, task="custom", metric="own_metric_of_provenance:score"
    )
    inputs, found = read(options)
    assert found["search"].sha256 == sha256(search)
    assert (found["metric"].name, found["metric"].sha256) == (metric.name, sha256(metric))
    assert provenance.options_of(options, inputs, [])["search_samples"] == "50"


def test_tools_are_those_that_were_used(workshop: Workshop) -> None:
    inputs = read_inputs(workshop.options(), utc_now())
    plain = provenance.tools_of(structs.replace(inputs, form="onnx"), [])
    assert "ai-edge-litert" not in plain
    assert set(provenance.tools_of(structs.replace(inputs, form="both"), [])) == {*plain, "ai-edge-litert"}


def test_names_of_any_kind_stay_readable() -> None:
    odd = os.fsdecode(b"\xff\xfe" + b"n" * 250)
    name = provenance.clipped(odd, last=True)
    assert len(name) == 200
    assert msgspec.json.decode(msgspec.json.encode(Ingredient(
        kind="model", name=provenance.clipped(os.fsdecode(b"\xff")), size_bytes=0, sha256="0" * 64
    )), type=Ingredient).name == "?"  # fmt: skip
    assert provenance.clipped("") == "unknown"


def test_a_manifest_without_the_new_fields_is_read_as_not_recorded() -> None:
    old = msgspec.json.decode(b'{"source_model_sha256": "%s"}' % (b"0" * 64), type=Provenance)
    assert (old.files, old.tools, old.options, old.sla_sha256) == ((), {}, {}, None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("files", [{"kind": "model", "name": "m", "size_bytes": 1, "sha256": "0" * 64}] * 257),
        ("files", [{"kind": "model", "name": "", "size_bytes": 1, "sha256": "0" * 64}]),
        ("files", [{"kind": "No Kind", "name": "m", "size_bytes": 1, "sha256": "0" * 64}]),
        ("files", [{"kind": "model", "name": "m", "size_bytes": -1, "sha256": "0" * 64}]),
        ("tools", {f"t{i}": "1" for i in range(65)}),
        ("options", {"o": "x" * 2001}),
        ("options", {f"o{i}": "1" for i in range(129)}),
        ("host", {"h" * 201: "1"}),
    ],
)
def test_every_field_is_capped(field: str, value: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"source_model_sha256": "0" * 64, field: value}, Provenance)
