"""Measures one candidate: its answers, its memory, its latency beside the incumbent's, its energy.

For: the order of a trial. The candidate comes first and alone, so that the peak memory is its own; then
the incumbent joins for the timing by turns.
Not for: judging; the figures go back and `wire.sla.judge` decides in the daemon.
"""

from __future__ import annotations

import time
from pathlib import Path

from msgspec.structs import asdict

from agent import hardware
from agent.adapters.thermal import temperature_c, throttled_between, throttling
from agent.errors import AgentError, FinalError
from agent.measure import cpu_class
from agent.worker import answers, energy, runtimes, shards, timing
from agent.worker.job import ModelRun, TrialJob
from agent.worker.runtimes import Session
from agent.worker.shards import Arrays, Samples
from wire.measures import TrialResult


def run_trial(job: TrialJob) -> TrialResult:
    """Measures the candidate of `job`.

    Raises:
        FinalError: it cannot be measured; the code says what stood in the way.
    """
    root = Path(job.system_root)
    before, warm_before = throttling(root), temperature_c(root)
    samples = shards.read_samples(job)
    candidate, load_ms = _load(job.candidate, job)
    _check(candidate, job)
    outputs = timing.all_outputs(candidate, samples)
    memory_bytes_peak = peak_memory_bytes()
    incumbent, theirs, notes = _incumbent(job, samples)
    sessions = [candidate] if incumbent is None else [candidate, incumbent]
    took_ms = timing.interleaved(sessions, samples, job.settings)
    power = energy.measure(root, job.settings, lambda i: candidate.run(timing.one(samples, i % samples.n)))
    said = answers.answers_of({spec.name: outputs[spec.name] for spec in job.outputs}, samples, theirs)
    machine = hardware.detect(root)
    return TrialResult(
        variant=job.candidate.variant,
        runtime=job.candidate.runtime,
        runtime_version=candidate.version,
        shards=job.shard_indices,
        n_samples=samples.n,
        latency=timing.latency_of(took_ms[0], load_ms),
        incumbent_latency=timing.latency_of(took_ms[1], None) if incumbent else None,
        latency_ratio_to_incumbent=timing.ratio_of(*took_ms) if incumbent else None,
        memory_bytes_peak=memory_bytes_peak,
        cpu=cpu_class(machine.arch, machine.cpu_features),
        throttled=throttled_between(before, throttling(root)),
        temperature_c_before=warm_before,
        temperature_c_after=temperature_c(root),
        incumbent=job.incumbent.digest if job.incumbent and incumbent else None,
        notes=notes,
        **asdict(said),
        **asdict(power),
    )


def _load(run: ModelRun, job: TrialJob) -> tuple[Session, float]:
    started = time.perf_counter()
    session = runtimes.load(run.runtime, run.model_path, job.settings.threads, run.session_config)
    return session, (time.perf_counter() - started) * 1000


def _check(session: Session, job: TrialJob) -> None:
    """The model takes and gives what the manifest says."""
    takes, gives = {spec.name for spec in job.inputs}, {spec.name for spec in job.outputs}
    if set(session.input_names) != takes:
        raise FinalError(
            "output_mismatch",
            f"the model takes {sorted(session.input_names)}, the release says {sorted(takes)}",
        )
    if not gives <= set(session.output_names):
        raise FinalError(
            "output_mismatch",
            f"the model gives {sorted(session.output_names)}, the release says {sorted(gives)}",
        )


def _incumbent(job: TrialJob, samples: Samples) -> tuple[Session | None, Arrays | None, tuple[str, ...]]:
    """The incumbent with its outputs; one that cannot be compared is a note, never the candidate's fault."""
    if job.incumbent is None:
        return None, None, ()
    try:
        session, _ = _load(job.incumbent, job)
        if set(session.input_names) != set(samples.inputs):
            raise FinalError("output_mismatch", "it takes other inputs")
        return session, timing.all_outputs(session, samples), ()
    except AgentError as error:
        return None, None, (f"the incumbent was not compared: {error}",)


def peak_memory_bytes() -> int | None:
    """This process's largest resident set so far (VmHWM of proc(5)), runtime and interpreter included."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
