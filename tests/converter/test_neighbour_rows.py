"""A conversion whose .tflite files are answered by the runtime of another environment as well.

This environment's own Python plays the other: the pipes are the same, and the answers must be LiteRT's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from converter.attempts import LITERT, ONNXRUNTIME, TFLITE_RUNTIME, Attempt, with_neighbour
from converter.candidates import Candidate, choose
from converter.errors import InputError
from converter.inputs import Options
from converter.pipeline import Conversion, run
from converter.recipe import FLOAT32, parse
from tests.converter.builders import Workshop
from wire.bundle import host_key
from wire.sla import Limits

_TWIN = "static_wi8_au8_pc_minmax_twin"
_OLD = f"tflite_runtime/{_TWIN}"


def _options(workshop: Workshop, **changed: object) -> Options:
    return structs.replace(workshop.options(), **({"tflite_runtime": Path(sys.executable)} | changed))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    return run(_options(Workshop(tmp_path_factory.mktemp("three")), candidates=(_TWIN,)))


def test_its_row_has_figures_of_its_own_and_no_latency(made: Conversion) -> None:
    rows = {row.id: row for row in made.report.candidates}
    assert list(rows) == [
        "onnxruntime/float_wf32_af32",
        f"onnxruntime/{_TWIN}",
        f"ai_edge_litert/{_TWIN}",
        _OLD,
    ]
    old, new = rows[_OLD], rows[f"ai_edge_litert/{_TWIN}"]
    assert (old.status, old.format, old.runtime) == ("pass", "tflite", "tflite-runtime")
    assert (old.sha256, old.accuracy, old.agreement) == (new.sha256, new.accuracy, new.agreement)
    assert (old.latency_ms_p50, old.latency_ratio, old.cold_load_ms) == (None, None, None)
    assert any("asked over a pipe" in said for said in old.decisions)
    assert old.runtime_version


def test_the_bundle_carries_one_file_for_both_with_reference_outputs_of_each(made: Conversion) -> None:
    assert made.manifest is not None
    variants = {one.id: one for one in made.manifest.variants}
    old = variants[_OLD]
    assert made.manifest.variants[-1] == old
    assert old.runtime == "tflite-runtime"
    assert old.model_path == f"variants/ai_edge_litert/{_TWIN}/model.tflite"
    assert old.axes
    assert len(list((made.directory / "variants").rglob("model.tflite"))) == 1
    shard = np.load(made.directory / made.manifest.validation[0].file.path)
    assert host_key(_OLD, "logits") in shard.files


def test_a_python_without_the_runtime_is_named_before_any_work(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    with pytest.raises(InputError) as caught:
        run(_options(workshop, tflite_runtime=Path("/bin/true")))
    assert caught.value.code == "neighbour_missing"
    assert not workshop.output.exists()


def test_where_no_tflite_is_written_it_is_not_wanted(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        run(_options(Workshop(tmp_path), format="onnx"))
    assert caught.value.code == "neighbour_unwanted"


def test_a_candidate_for_it_needs_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--tflite-runtime") as caught:
        run(_options(Workshop(tmp_path), tflite_runtime=None, candidates=(_OLD,)))
    assert caught.value.code == "neighbour_unnamed"


def test_what_is_for_litert_is_asked_of_it_and_nothing_else() -> None:
    twin = parse(_TWIN)
    plain, alone = Attempt(FLOAT32), Attempt(twin, (TFLITE_RUNTIME,))
    both, all_three = (Attempt(twin, (ONNXRUNTIME, LITERT, *more)) for more in ((), (TFLITE_RUNTIME,)))
    assert with_neighbour((plain, both, alone)) == (plain, all_three, alone)


def _row(key: str, **more: object) -> Candidate:
    runtime, recipe = key.split("/")
    base = Candidate(id=key, recipe=recipe, runtime=runtime, precision="int8", status="pass", size_bytes=10)
    return structs.replace(base, **more)


def test_untimed_rows_are_carried_last_and_never_chosen() -> None:
    fp32 = _row("onnxruntime/float", latency_ratio=1.0)
    quick = _row("onnxruntime/int8", latency_ratio=0.5)
    fails, old, later = _row("old/a", status="fail"), _row("old/b"), _row("old/c")
    limits = Limits()
    choice = choose(fp32, [quick], limits, host_of_target_class=True, untimed=[fails, old, later])
    assert (choice.chosen, choice.carried) == (quick.id, (quick.id, fp32.id, old.id))
    alone = choose(fp32, [], limits, host_of_target_class=True, untimed=[old])
    assert (alone.chosen, alone.carried) == (fp32.id, (fp32.id, old.id))
    failed = structs.replace(fp32, status="fail")
    nothing = choose(failed, [], limits, host_of_target_class=True, untimed=[old])
    assert (nothing.chosen, nothing.carried) == (None, ())
