"""Clean-ups ensure what they say and change no answer."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from converter.errors import InputError
from converter.passes import clean
from converter.passes.fold_batch_norm import fold_batch_norm
from converter.passes.opset import convert_opset, opset_of
from tests.converter.builders import answers, batch_norm_net, conv_net, images, model, weights


@pytest.mark.parametrize("made", [conv_net(), batch_norm_net()], ids=["conv", "batch norm"])
def test_cleaning_keeps_the_answers_and_ensures_its_promises(made: onnx.ModelProto) -> None:
    before = made.SerializeToString()
    cleaned, _ = clean(made)
    assert made.SerializeToString() == before, "the given model is not changed"
    np.testing.assert_allclose(answers(cleaned, images(6)), answers(made, images(6)), rtol=1e-4, atol=1e-4)
    onnx.checker.check_model(cleaned)
    operators = [node.op_type for node in cleaned.graph.node]
    assert "BatchNormalization" not in operators
    assert "Constant" not in operators
    assert not cleaned.metadata_props
    assert not any(node.doc_string for node in cleaned.graph.node)
    names = [node.name for node in cleaned.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    assert not {value.name for value in cleaned.graph.input} & {t.name for t in cleaned.graph.initializer}


def test_cleaning_twice_changes_nothing_more() -> None:
    once, said = clean(batch_norm_net())
    passes = {"strip", "lift_constants", "fold_batch_norm", "name_nodes"}
    assert {words.split(":")[0] for words in said} == passes
    twice, said_again = clean(once)
    assert said_again == ()
    assert twice.SerializeToString() == once.SerializeToString()


def test_a_conv_that_something_else_reads_is_not_folded() -> None:
    made = batch_norm_net()
    made.graph.output.append(helper.make_tensor_value_info("c1", onnx.TensorProto.FLOAT, None))
    assert fold_batch_norm(made) == 0


def test_a_shared_weight_is_folded_for_one_reader_only() -> None:
    rng = np.random.default_rng(5)
    constants = [weights(rng, name, 4) for name in ("gain", "offset", "mean")]
    constants += [weights(rng, "w", 4, 1, 3, 3), onnx.numpy_helper.from_array(np.ones(4, np.float32), "v")]
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "gain", "offset", "mean", "v"], ["an"]),
        helper.make_node("Conv", ["image", "w"], ["b"]),
        helper.make_node("Add", ["an", "b"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["g"]),
        helper.make_node("Flatten", ["g"], ["logits"]),
    ]
    made = model(nodes, constants, 17)
    cleaned, _ = clean(made)
    np.testing.assert_allclose(answers(cleaned, images(4)), answers(made, images(4)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("here", "expected"), [(11, 13), (13, 13), (17, 17), (22, 21)])
def test_the_opset_comes_between_the_bounds(here: int, expected: int) -> None:
    made = conv_net(opset=here)
    converted, said = convert_opset(made, 13, 21)
    assert opset_of(converted) == expected
    assert (said is None) == (here == expected)
    np.testing.assert_allclose(answers(converted, images(3)), answers(made, images(3)), rtol=1e-5, atol=1e-6)


def test_an_opset_that_cannot_be_converted_says_what_to_do() -> None:
    made = conv_net(opset=11)
    made.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(InputError, match="export it again with opset 13") as caught:
        convert_opset(made, 13, 21)
    assert caught.value.code == "model_opset"
