"""A .tflite file read back: what was written is what is read, and bad bytes are named."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.tflite.errors import TFLiteError
from converter.tflite.reader import File, read_file
from converter.tflite.schema import schema
from tests.converter.tflite_cases import S, conv, unary
from tests.converter.tflite_files import bias, file_of, operator, plain, tensor, weights


def _two() -> bytes:
    first = operator(
        "CONV_2D", [tensor(S, scale=0.25), weights((2, 3, 3, 4), axis=0), bias(2)], [tensor((1, 4, 4, 2))],
        padding="SAME", strideW=2, strideH=2, fusedActivationFunction="RELU6",
    )  # fmt: skip
    second = operator("RESHAPE", [first.outputs[0], plain([1, 32])], [tensor((1, 32))], newShape=[1, 32])
    return file_of(first, second)


def test_operators_tensors_and_constants() -> None:
    file = read_file(_two())
    assert [(one.index, one.kind, one.version) for one in file.operators] == [
        (0, "CONV_2D", 2),
        (1, "RESHAPE", 2),
    ]
    convolution, reshape = file.operators
    assert (convolution.padding, convolution.activation) == ("SAME", "RELU6")
    assert convolution.option("strideH") == 2
    assert convolution.option("dilationHFactor", 7) == 1
    assert convolution.option("nothing", 7) == 7
    assert (reshape.padding, reshape.activation) == ("", "NONE")
    assert reshape.options["newShape"] == (1, 32)
    data, weight = file.given(convolution, 0), file.given(convolution, 1)
    assert data is not None
    assert (data.shape, data.dtype, data.fixed) == (S, "int8", True)
    assert data.quantization is not None
    assert (data.quantization.scales, data.quantization.zero_points) == ((0.25,), (0,))
    assert not data.quantization.per_axis
    assert weight is not None
    assert weight.quantization is not None
    assert weight.quantization.per_axis
    assert (weight.quantization.axis, len(weight.quantization.scales)) == (0, 2)
    values = file.values(convolution, 1)
    assert values is not None
    assert values.dtype == np.int8
    assert values.shape == (2, 3, 3, 4)
    assert (values == 3).all()
    assert file.values(convolution, 0) is None
    assert file.values(convolution, 9) is None
    assert file.given(convolution, 9) is None
    shape = file.values(reshape, 1)
    assert shape is not None
    assert shape.tolist() == [1, 32]
    assert [file.tensors[place].shape for place in (*file.inputs, *file.outputs)] == [S, (1, 32)]
    assert file.made(reshape)[0].shape == (1, 32)
    assert (file.subgraphs, file.description) == (1, "")


def test_what_is_left_out_is_none() -> None:
    file = read_file(
        file_of(operator("FULLY_CONNECTED", [tensor((1, 4)), weights((2, 4)), None], [tensor((1, 2))]))
    )
    assert file.operators[0].inputs[2] == -1
    assert file.given(file.operators[0], 2) is None
    assert file.values(file.operators[0], 2) is None


def _changed(content: bytes, change: object) -> bytes:
    """The file after a change of its object form."""
    import flatbuffers  # noqa: PLC0415 - only this test packs by hand

    model = schema.ModelT.InitFromPackedBuf(bytearray(content), 0)
    change(model)  # type: ignore[operator]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_a_custom_operator_goes_by_its_own_name() -> None:
    def custom(model: object) -> None:
        code = model.operatorCodes[0]  # type: ignore[attr-defined]
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
        code.customCode = b"ethos-u"

    assert read_file(_changed(file_of(unary("RELU")), custom)).operators[0].kind == "ethos-u"


def test_a_free_axis_is_seen() -> None:
    def free(model: object) -> None:
        model.subgraphs[0].tensors[0].shapeSignature = [-1, 8, 8, 4]  # type: ignore[attr-defined]

    file = read_file(_changed(file_of(unary("RELU")), free))
    assert [one.fixed for one in file.tensors] == [False, True]


def test_constants_behind_the_flatbuffer() -> None:
    """Large files keep them there (schema.fbs: `offset` above 1 counts from the file's start)."""
    content = file_of(conv(channels=1))
    stored = read_file(content)
    place = stored.operators[0].inputs[1]
    kept = stored.constants[place].tobytes()

    def moved(model: object) -> None:
        buffer = model.buffers[model.subgraphs[0].tensors[place].buffer]  # type: ignore[attr-defined]
        buffer.data, buffer.offset, buffer.size = None, 4096, len(kept)

    outside = _changed(content, moved)
    assert len(outside) < 4096
    found = read_file(outside.ljust(4096, b"\0") + kept)
    assert np.array_equal(found.constants[place], stored.constants[place])
    with pytest.raises(TFLiteError, match="reaches beyond the file"):
        read_file(outside.ljust(4096, b"\0") + kept[:-1])


def test_a_graph_that_contradicts_itself_is_refused() -> None:
    content = file_of(conv())

    def short(model: object) -> None:
        model.subgraphs[0].tensors[1].shape = [4, 3, 3, 5]  # type: ignore[attr-defined]

    def astray(model: object) -> None:
        model.subgraphs[0].operators[0].inputs = [0, 1, 99]  # type: ignore[attr-defined]

    def no_end(model: object) -> None:
        model.subgraphs[0].outputs = [-1]  # type: ignore[attr-defined]

    def empty(model: object) -> None:
        model.subgraphs = []  # type: ignore[attr-defined]

    for change, words in (
        (short, "its shape says 180"), (astray, "not among the 4"), (no_end, "not among the 4"),
        (empty, "holds no graph"),
    ):  # fmt: skip
        with pytest.raises(TFLiteError, match=words) as caught:
            read_file(_changed(content, change))
        assert caught.value.code == "tflite_malformed"


@pytest.mark.parametrize("content", [b"", b"TFL3", b"\x1c\0\0\0TFL3", b"\x1c\0\0\0TFL4" + bytes(64)])
def test_other_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(TFLiteError) as caught:
        read_file(content)
    assert caught.value.code == "tflite_malformed"


@settings(max_examples=150, deadline=None)
@given(place=st.integers(8, 2000), value=st.integers(0, 255), cut=st.booleans())
def test_damaged_bytes_are_refused_by_name_or_read(place: int, value: int, *, cut: bool) -> None:
    content = bytearray(_two())
    content[place % len(content)] = value
    damaged = bytes(content[: place % len(content)] if cut else content)
    with suppress(TFLiteError):
        assert isinstance(read_file(damaged), File)
