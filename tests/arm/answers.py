"""What a model's file answers, by the agent's own runtime adapters; a script for boards and for this machine.

For: `python answers.py ASKED.json OUT.npz`: one array an entry of ASKED, in the release's axes, its model's
inputs prepared and its outputs finished exactly as in a trial.
Not for: timing; nor for comparing (`tests.arm.comparison`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from agent.worker import runtimes, shards, timing
from wire import bundle, codec


class Asked(Struct, frozen=True, kw_only=True):
    """One model to be asked.

    Attributes:
        name: of the array that comes out.
        bundle: folder of the release that it is in.
        variant: which of its variants.
        samples: how many of the first shard.
        session_config: entries beside the variant's own.
    """

    name: str
    bundle: str
    variant: str
    samples: int
    session_config: dict[str, str] = {}


def manifest_of(folder: Path) -> bundle.Manifest:
    """The manifest of a bundle."""
    content = (folder / "manifest.json").read_bytes()
    return codec.decode(content, bundle.Manifest, bundle.MANIFEST_BYTES_MAX)


def answered(asked: Asked) -> np.ndarray:
    """The first output on each sample."""
    folder = Path(asked.bundle)
    manifest = manifest_of(folder)
    variant = next(one for one in manifest.variants if one.id == asked.variant)
    with np.load(folder / manifest.validation[0].file.path, allow_pickle=False) as shard:
        stored = {s.name: shard[bundle.input_key(s.name)][: asked.samples] for s in manifest.inputs}
    inputs = shards.model_inputs(stored, manifest.inputs, manifest.data, variant.axes)
    config = {**variant.session_config, **asked.session_config}
    session = runtimes.find(variant.runtime).load(str(folder / variant.model_path), 1, config)
    runner = timing.Runner(
        session=session, inputs=session.prepare(inputs), whole=frozenset(variant.axes), axes=variant.axes
    )
    output = manifest.outputs[0].name
    return timing.all_outputs(runner, [output])[output]


def main(arguments: list[str]) -> int:
    """Answers all that is asked in the file."""
    asked = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=list[Asked])
    np.savez(arguments[1], allow_pickle=False, **{one.name: answered(one) for one in asked})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
