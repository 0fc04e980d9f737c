"""One model as ONNX and as TFLite on one device: the two take turns, each tried beside the other.

Real Mosquitto, the real agent as a process, real trials in the runtime that each variant names.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from examples.demo.house import House
from tests.agent.models import CLASSES, scores
from tests.agent.tflite import IMAGE, ONNX_VARIANT, TFLITE_VARIANTS, Twins, answered, images, pictures
from tests.integration.bundles import SLA, digest_of, file_of, make_bundle
from tests.integration.hand import Hand
from wire import bundle, codec
from wire.messages import OrderOutcome

pytestmark = [pytest.mark.broker, pytest.mark.slow]
MODEL, DEVICE = "tiny", "roof-1"


def twin_bundle(folder: Path, twins: Twins, release: str) -> str:
    """A release of three variants, two of them one file; gives its digest.

    Host outputs of `tflite-runtime` are LiteRT's here: they differ in the last bits only.
    """
    base = make_bundle(folder, release=release)
    x = pictures()
    reference, theirs = scores(twins.onnx, x), answered(twins, x)
    arrays = {
        bundle.input_key("x"): x,
        bundle.LABELS_KEY: reference.argmax(axis=1).astype(np.int64),
        bundle.fp32_key("y"): reference,
        bundle.host_key(ONNX_VARIANT, "y"): reference,
        **{bundle.host_key(name, "y"): theirs for name in TFLITE_VARIANTS.values()},
    }
    np.savez(folder / "shard.npz", allow_pickle=False, **arrays)
    shard = file_of(folder, "validation/shard-0000.npz", (folder / "shard.npz").read_bytes())
    (folder / "shard.npz").unlink()
    model = file_of(folder, "variants/onnx/model.onnx", twins.onnx.read_bytes())
    twin = file_of(folder, "variants/twin/model.tflite", twins.tflite.read_bytes())
    first = replace(base.variants[0], model_path=model.path, files=(model,))
    others = tuple(
        replace(
            first, id=name, runtime=runtime, model_path=twin.path, files=(twin,), axes=twins.axes,
            twin_of=ONNX_VARIANT,
        )
        for runtime, name in TFLITE_VARIANTS.items()
    )  # fmt: skip
    spec = bundle.TensorSpec(name="x", dtype="float32", shape=(None, *IMAGE))
    scores_ = bundle.TensorSpec(name="y", dtype="float32", shape=(None, CLASSES))
    manifest = replace(
        base, inputs=(spec,), outputs=(scores_,), variants=(first, *others), sla=SLA,
        validation=(bundle.Shard(file=shard, n_samples=len(x)),),
    )  # fmt: skip
    (folder / "manifest.json").write_bytes(codec.encode(bundle.check(manifest)))
    return digest_of(folder)


@pytest.mark.parametrize("runtime", ["ai-edge-litert", "tflite-runtime"])
def test_onnx_and_tflite_take_turns_on_one_device(
    bare_house: House, hand: Hand, tmp_path: Path, runtime: str, request: pytest.FixtureRequest
) -> None:
    trial = {"lock_file": str(tmp_path / "trial.lock"), "latency_runs": 20}
    if runtime == "tflite-runtime":
        trial["python"] = request.getfixturevalue("tflite_runtime_python")
    twins = images(tmp_path / "model")
    bare_house.agent(DEVICE, trial=trial)
    before = None
    for order, variant in enumerate((ONNX_VARIANT, TFLITE_VARIANTS[runtime], ONNX_VARIANT), start=1):
        folder = tmp_path / str(order)
        twin_bundle(folder, twins, str(order))
        digest = hand.publish_bundle(folder)
        hand.desire(DEVICE, MODEL, digest, order=order, release=str(order), variants=(variant,))
        state = hand.wait_ended(DEVICE, MODEL, order)
        assert state.outcome is OrderOutcome.ACTIVE, state.reason
        assert state.active is not None
        assert state.active.variant == variant
        assert state.trial is not None
        result = state.trial.result
        assert result.notes == ()
        assert result.accuracy is not None
        assert result.accuracy.value == 1.0
        assert result.incumbent == before
        if before is not None:
            assert result.against_incumbent is not None
            assert result.against_incumbent.both == result.n_samples
            assert result.latency_ratio_to_incumbent is not None
        before = digest
        current = bare_house.current(DEVICE, MODEL)
        assert current is not None
        told = json.loads((current / "release.json").read_bytes())
        assert told["model_file"] == ("model.onnx" if variant == ONNX_VARIANT else "model.tflite")
        assert told["axes"] == ({} if variant == ONNX_VARIANT else {"x": [0, 2, 3, 1]})
