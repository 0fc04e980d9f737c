"""Which variant is tried when, and the job of its trial, from a manifest and what lies on the disk.

For: the order of variants that a registry leaves open; saying which model runs beside which, on which shards,
with which settings.
Not for: running it (`agent.adapters.trial_process`), or judging it (`agent.judging`).
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from agent.slots import ReleaseInfo, placed
from agent.worker.job import ModelRun, TrialJob, TrialSettings
from wire.bundle import Manifest, Variant
from wire.types import VariantId


class Paths(Struct, frozen=True, kw_only=True):
    """Where the files are.

    Attributes:
        candidate: directory of the release on trial.
        incumbent: directory of the active release; None on a first install.
        shards: directory of validation shards, named by their SHA-256.
    """

    candidate: Path
    incumbent: Path | None
    shards: Path


FP32 = frozenset({"fp32", "float32"})
"""What variants of full precision say of theirs."""


def preferred(manifest: Manifest) -> tuple[VariantId, ...]:
    """PURE. All variants in the order to try them where an order leaves it open.

    The first is the converter's choice, be it of full precision where nothing else was worth it; after it
    come the others as listed in the manifest, full precision last: it runs where nothing else does.
    """
    first, *others = manifest.variants
    others.sort(key=lambda variant: variant.precision in FP32)
    return tuple(variant.id for variant in (first, *others))


def job_for(
    manifest: Manifest,
    variant: Variant,
    digest: str,
    shards: tuple[int, ...],
    paths: Paths,
    incumbent: ReleaseInfo | None,
    settings: TrialSettings,
) -> TrialJob:
    """The trial of `variant` on the order's shards (all of them if it names none)."""
    indices = shards or tuple(range(len(manifest.validation)))
    return TrialJob(
        candidate=ModelRun(
            model_path=str(paths.candidate / placed(variant, variant.model_path)),
            runtime=variant.runtime,
            variant=variant.id,
            digest=digest,
            session_config=variant.session_config,
            axes=variant.axes,
        ),
        incumbent=_incumbent(manifest, paths, incumbent),
        shards=tuple(str(paths.shards / manifest.validation[index].file.sha256) for index in indices),
        shard_indices=indices,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        data=manifest.data,
        task=manifest.task,
        metric=manifest.metric,
        answer=manifest.answer,
        settings=settings,
    )


def _incumbent(manifest: Manifest, paths: Paths, info: ReleaseInfo | None) -> ModelRun | None:
    """What is active now, where it takes the same inputs; an adopted file is tried as it is."""
    if info is None or info.runtime is None or paths.incumbent is None:
        return None
    if not info.adopted and info.inputs != manifest.inputs:
        return None
    return ModelRun(
        model_path=str(paths.incumbent / info.model_file),
        runtime=info.runtime,
        variant=info.variant,
        digest=info.digest,
        session_config=info.session_config,
        data=info.data,
        axes=info.axes,
    )
