"""Measures one candidate: its answers, its memory, its latency beside the incumbent's, its energy.

For: the order of a trial. The candidate comes first and alone, so that the peak memory is its own; then
the incumbent joins for the timing by turns.
Not for: judging; the figures go back and `wire.sla.judge` decides in the daemon.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import asdict

from agent import hardware
from agent.adapters.thermal import cpu_mhz, temperature_c
from agent.errors import AgentError, FinalError
from agent.measure import cpu_class
from agent.worker import energy, model_file, runtimes, shards
from agent.worker.answers import Classes, answers_of, classes
from agent.worker.conditions import Watch, settle
from agent.worker.job import ModelRun, TrialJob, TrialSettings
from agent.worker.runtimes import Session
from agent.worker.shards import Arrays, Samples
from agent.worker.timing import Runner, all_outputs, interleaved, latency_of, ratio_of, warm_up
from wire.bundle import InputData
from wire.measures import TrialResult

NOTE_CHARS_MAX = 1000


class Incumbent(Struct, frozen=True, kw_only=True):
    """What is active now, ready to be compared with; by its answers only where those are classes."""

    runner: Runner
    answers: Classes | None


def run_trial(job: TrialJob) -> TrialResult:
    """Measures the candidate of `job`.

    Raises:
        FinalError: it cannot be measured; the code says what stood in the way.
        MemoryError: it needs more than this process may use.
    """
    began_s, root = time.monotonic(), Path(job.system_root)
    samples = shards.read_samples(job)
    session, load_ms = _load(job.candidate, job)
    _check(session, job)
    candidate = _runner(session, samples.inputs, job.data, job.candidate)
    outputs = all_outputs(candidate, [spec.name for spec in job.outputs])
    memory_bytes_peak = peak_memory_bytes()
    incumbent, notes = _incumbent(job, samples)
    answers = answers_of(job, outputs, samples, incumbent.answers if incumbent else None)
    runners = [candidate, incumbent.runner] if incumbent else [candidate]
    settled = settle(root, job.settings, began_s, lambda: _run(runners, job.settings, root))
    run, took_ms = settled.run, settled.run.took_ms
    if settled.gave_up:
        notes = (*notes, f"the machine was held back in every run, and {settled.gave_up}"[:NOTE_CHARS_MAX])
    machine = hardware.detect(root)
    return TrialResult(
        variant=job.candidate.variant,
        runtime=job.candidate.runtime,
        runtime_version=session.version,
        shards=job.shard_indices,
        n_samples=samples.n,
        latency=latency_of(took_ms[0], load_ms),
        incumbent_latency=latency_of(took_ms[1], None) if incumbent else None,
        latency_ratio_to_incumbent=ratio_of(*took_ms) if incumbent else None,
        memory_bytes_peak=memory_bytes_peak,
        cpu=cpu_class(machine.arch, machine.cpu_features),
        throttled=settled.throttled,
        runs_void=settled.void,
        temperature_c_before=run.temperature_c_before,
        temperature_c_after=run.temperature_c_after,
        cpu_mhz_before=run.cpu_mhz_before,
        cpu_mhz_after=run.cpu_mhz_after,
        incumbent=job.incumbent.digest if job.incumbent and incumbent else None,
        notes=(*notes, *run.power.remarks),
        energy_mj=run.power.energy_mj,
        energy_mj_gross=run.power.energy_mj_gross,
        power_watts_idle=run.power.power_watts_idle,
        power_watts_load=run.power.power_watts_load,
        power_sensor=run.power.power_sensor,
        **asdict(answers),
    )


class Run(Struct, frozen=True, kw_only=True):
    """Latency and energy, measured once, and under what conditions."""

    took_ms: list[list[float]]
    power: energy.Power
    temperature_c_before: float | None
    temperature_c_after: float | None
    cpu_mhz_before: float | None
    cpu_mhz_after: float | None


def _run(runners: Sequence[Runner], settings: TrialSettings, root: Path) -> tuple[Run, bool | None]:
    """One run of all that heat and supply have a part in, and whether they held the machine back."""
    watch, temperature_c_before = Watch(root), temperature_c(root)
    warm_up(runners, settings)
    cpu_mhz_before = cpu_mhz(root)
    took_ms = interleaved(runners, settings, watch.glance)
    cpu_mhz_after = cpu_mhz(root)
    power = energy.measure(root, settings, runners[0].infer, watch.glance)
    run = Run(
        took_ms=took_ms,
        power=power,
        temperature_c_before=temperature_c_before,
        temperature_c_after=temperature_c(root),
        cpu_mhz_before=cpu_mhz_before,
        cpu_mhz_after=cpu_mhz_after,
    )
    return run, watch.ended()


def _load(run: ModelRun, job: TrialJob) -> tuple[Session, float]:
    """The model and the milliseconds of loading it from the disk; importing the runtime is left out."""
    # An incumbent may have been made for other inputs than the candidate's release.
    promised = (job.inputs, job.outputs) if run is job.candidate else ((), ())
    model_file.require(Path(run.model_path), run.runtime, *promised, run.axes)
    runtime = runtimes.find(run.runtime)
    forget(Path(run.model_path).parent)
    started = time.perf_counter()
    session = runtime.load(run.model_path, job.settings.threads, run.session_config)
    return session, (time.perf_counter() - started) * 1000


def forget(folder: Path) -> None:
    """Asks the kernel to drop its copy of the files in a folder, so that loading is as cold as after a start.

    They were written a moment ago; what another process has mapped, or a file system in memory holds, stays
    (posix_fadvise(2)).
    """
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.is_file():
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(file)


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


def _incumbent(job: TrialJob, samples: Samples) -> tuple[Incumbent | None, tuple[str, ...]]:
    """The incumbent with its answers; one that cannot be compared is a note, never the candidate's fault."""
    run = job.incumbent
    if run is None:
        return None, ()
    try:
        session, _ = _load(run, job)
        if set(session.input_names) != set(samples.inputs):
            raise FinalError("output_mismatch", f"it takes other inputs, {', '.join(session.input_names)}")
        # Its own preprocessing, or it would be blamed for samples that it was never made for.
        data = job.data if run.data is None else run.data
        alike = data == job.data and run.axes == job.candidate.axes
        own = samples.inputs if alike else shards.model_inputs(samples.stored, job.inputs, data, run.axes)
        runner = _runner(session, own, data, run)
        answers = None
        if job.task == "classification":
            wanted = job.answer.output or job.outputs[0].name
            name = wanted if wanted in session.output_names else session.output_names[0]
            answers = classes(all_outputs(runner, [name])[name], samples.n, job.answer)
    except (AgentError, MemoryError) as error:
        return None, (f"the incumbent was not compared: {error}"[:NOTE_CHARS_MAX],)
    return Incumbent(runner=runner, answers=answers), ()


def _runner(session: Session, inputs: Arrays, data: Mapping[str, InputData], run: ModelRun) -> Runner:
    """The model with its samples as it takes them, so that nothing is left to do while it is timed."""
    whole = frozenset(name for name, one in data.items() if one.whole)
    return Runner(
        session=session,
        inputs=session.prepare(inputs),
        whole=whole | run.axes.keys(),
        axes=run.axes,
        stacked=bool(whole),
    )


def peak_memory_bytes() -> int | None:
    """This process's largest resident set so far (VmHWM of proc(5)), runtime and interpreter included."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
