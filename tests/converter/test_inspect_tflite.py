"""`shallop-convert inspect` of a `.tflite` file, by itself and within a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from converter.candidates import Fusion
from converter.errors import InputError
from converter.inspect import Bundle, inspect
from converter.tflite_summary import Edge, TFLiteModel, Used
from tests.converter.builders import Workshop
from tests.converter.commands import invoke
from tests.converter.tiny_tflite import INT8, integer_conv

_WEIGHT = np.arange(-6, 6, dtype=np.int8).reshape(4, 3)


def _file(folder: Path, content: bytes, name: str = "m.tflite") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def test_a_file_is_read_with_its_operators_edges_and_scales(tmp_path: Path) -> None:
    found = inspect(_file(tmp_path, integer_conv(_WEIGHT, edge=INT8)))
    assert isinstance(found, TFLiteModel)
    assert found.operators == (Used(operator="CONV_2D", versions=(1,), integer=1, float=0),)
    scale = float(np.float32(0.05))
    assert found.inputs == (Edge(name="x", dtype="int8", shape=(1, 2, 2, 3), scale=scale, zero_point=3),)
    assert found.outputs[0].zero_point == -5
    assert found.fusion == Fusion(integer=1, float=0, qdq_left=0)
    assert found.weight_types == {"int32": 1, "int8": 1}
    assert found.runs
    assert (found.description, found.path) == ("tiny", "m.tflite")


def test_a_file_of_another_name_is_known_by_its_bytes(tmp_path: Path) -> None:
    found = inspect(_file(tmp_path, integer_conv(_WEIGHT), "model.bin"))
    assert isinstance(found, TFLiteModel)
    assert found.inputs == (Edge(name="x", dtype="float32", shape=(1, 2, 2, 3)),)


def test_what_litert_does_not_take_is_shown_with_its_reason(tmp_path: Path) -> None:
    path = _file(tmp_path, integer_conv(_WEIGHT, edge=INT8, version=99))
    found = inspect(path)
    assert isinstance(found, TFLiteModel)
    assert found.operators[0].versions == (99,)
    assert not found.runs
    assert "CONV_2D" in found.runs_note
    assert "LiteRT here cannot run it" in invoke("inspect", str(path)).stdout


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        inspect(_file(tmp_path, b"TFL3 but not there"))
    assert caught.value.code == "model_not_tflite"


def test_the_command_shows_it_to_people_and_to_programs(tmp_path: Path) -> None:
    path = _file(tmp_path, integer_conv(_WEIGHT))
    shown = invoke("inspect", str(path))
    assert shown.exit_code == 0
    for text in ("takes x float32 [1, 2, 2, 3]", "CONV_2D", "1 integer and 0 float operators"):
        assert text in shown.stdout
    told = json.loads(invoke("inspect", str(path), "--json").stdout)
    assert told["fusion"] == {"integer": 1, "float": 0, "qdq_left": 2}


def test_a_bundle_s_variants_are_looked_into_whatever_their_format(workshop: Workshop) -> None:
    names = "static_wi8_au8_pc_minmax_twin,ai_edge_litert/float_wf32_af32"
    assert invoke("convert", *workshop.arguments()[:-1], names).exit_code == 0
    found = inspect(workshop.output)
    assert isinstance(found, Bundle)
    kinds = {one.variant.runtime: type(one.model).__name__ for one in found.variants}
    assert kinds == {"onnxruntime": "Model", "ai-edge-litert": "TFLiteModel"}
