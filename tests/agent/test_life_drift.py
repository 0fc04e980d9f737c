"""Live figures through time on the agent's side: when drift is told, and the whole way to the registry."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from msgspec.structs import replace

from agent import drift
from agent.adapters.live_files import LiveFiles
from agent.config import parse as parse_config
from agent.drift import DriftRules, Moment, Track
from agent.errors import ConfigError
from agent.live import Counts, LiveFile
from agent.live_watch import LiveWatch
from agent.outbox import Outbox
from shallop_client import Live, Release
from tests.agent import twins
from tests.agent.rig import DEVICE, TWO, Rig, deploy, running
from tests.agent.test_life_live import counted
from tests.agent.twins import until
from wire.messages import LiveMeasured, OrderEnded, OrderOutcome, Report

# --- through time -----------------------------------------------------------------------------------

RULES = DriftRules(n_min=200, report_s=900.0, flip_s=300.0)


class Application:
    """One process that counts; `look()` is what its file says."""

    def __init__(self, release: str | None = "one", epoch: int = 1, name: str = "1") -> None:
        self.name = f"digits@{name}-0.json"
        self.counts = Counts()
        self.release = release
        self.epoch = epoch

    def infer(self, n: int, latency_ms: float = 5.0, confidence: float = 0.9) -> None:
        self.counts = self.counts.plus(counted([latency_ms] * n, [confidence] * n))

    def file(self) -> LiveFile:
        return LiveFile(
            version=1, model="digits", epoch=self.epoch, release=self.release,
            latency=tuple(self.counts.latency.items()), confidence=tuple(self.counts.confidence.items()),
        )  # fmt: skip


class Device:
    """A track and the events that it told."""

    def __init__(self, module: ModuleType = drift, rules: DriftRules = RULES) -> None:
        self.module = module
        self.rules = rules
        self.track: Track | None = None
        self.told: list[LiveMeasured] = []
        self.moment = Moment(slot="one", variant="onnxruntime/x", soaking=False, elapsed_s=30.0)

    def look(
        self, *applications: Application, elapsed_s: float = 30.0, **fields: object
    ) -> LiveMeasured | None:
        files = {app.name: app.file() for app in applications}
        self.moment = replace(self.moment, elapsed_s=elapsed_s, **fields)
        event: LiveMeasured | None
        self.track, event = self.module.observe(self.track, files, self.moment, self.rules)
        if event is not None:
            self.told.append(event)
        return event


def soaked(app: Application, n: int = 300, module: ModuleType = drift) -> Device:
    """A device whose soak is over, with `n` inferences in it."""
    device = Device(module)
    device.look(app, soaking=True, elapsed_s=0.0)
    app.infer(n)
    device.look(app, soaking=True)
    device.look(app, soaking=False)
    return device


def quiet(module: ModuleType) -> None:
    """Nothing changes: one report in each period, without drift."""
    app = Application()
    device = soaked(app, module=module)
    for _ in range(100):
        app.infer(10)
        device.look(app)
    assert [told.drift for told in device.told] == [False] * 3
    assert device.told[0].window_s == 870.0, "the window begins with the end of the soak"
    told = device.told[-1]
    assert (told.latency_n, told.confidence_n, told.window_s, told.reference_n) == (300, 300, 900.0, 300)
    assert told.latency_ms_p95 == pytest.approx(5.0, rel=0.13)
    assert told.latency_ratio == pytest.approx(1.0, rel=0.05)
    assert told.confidence_psi is not None
    assert told.confidence_psi < 0.01


def slower(module: ModuleType) -> None:
    """Twice as slow: told sooner than the period, once; told again when it is over."""
    app = Application()
    device = soaked(app, module=module)
    looks = 0
    while not device.told:
        app.infer(50, latency_ms=10.0)
        device.look(app)
        looks += 1
        assert looks < 12, "a drift waited for the period's end"
    assert looks * 30 >= 240
    assert (device.told[0].drift, device.told[0].drifted) == (True, ("latency",))
    assert device.told[0].latency_ratio == pytest.approx(2.0, rel=0.15)
    for _ in range(30):
        app.infer(50, latency_ms=10.0)
        device.look(app)
    assert [told.drift for told in device.told] == [True, True]
    for _ in range(31):
        app.infer(50)
        device.look(app)
    assert device.told[-1].drift is False


def unsure(module: ModuleType) -> None:
    """As quick, and less sure."""
    app = Application()
    device = soaked(app, module=module)
    for _ in range(10):
        app.infer(50, confidence=0.55)
        device.look(app)
    assert [told.drifted for told in device.told] == [("confidence",)]
    assert device.told[0].confidence_mean == pytest.approx(0.555)


def few(module: ModuleType) -> None:
    """Too few to say anything about drift are told all the same, and go on being collected."""
    app = Application()
    device = soaked(app, module=module)
    for _ in range(60):
        app.infer(3, latency_ms=50.0)
        device.look(app)
    assert [told.drift for told in device.told] == [None, None]
    assert [told.latency_n for told in device.told] == [84, 174]
    for _ in range(9):
        app.infer(3, latency_ms=50.0)
        device.look(app)
    assert [told.drift for told in device.told] == [None, None, True]


def first_counts(module: ModuleType) -> None:
    """A soak without inferences: the first ones after it are the reference."""
    app = Application()
    device = soaked(app, n=0, module=module)
    for _ in range(29):
        app.infer(10)
        device.look(app)
    assert device.told[-1].drift is None
    assert device.track is not None
    assert device.track.reference.n == 200
    for _ in range(60):
        app.infer(10)
        device.look(app)
    assert device.told[-1].drift is False


def long_soak(module: ModuleType) -> None:
    """The whole soak is the reference, however much it counts."""
    app = Application()
    device = Device(module)
    device.look(app, soaking=True)
    for _ in range(5):
        app.infer(300)
        device.look(app, soaking=True)
    assert device.track is not None
    assert (device.track.closed, device.track.reference.n) == (False, 1500)
    app.infer(300)
    device.look(app, soaking=False)
    assert (device.track.closed, device.track.reference.n, device.track.window.n) == (True, 1500, 300)


def edges(module: ModuleType) -> None:
    """Just at the limits."""
    app = Application()
    device = soaked(app, n=199, module=module)
    assert device.track is not None
    assert device.track.reference.n == 199
    app.infer(1)
    device.look(app)
    device.look(app)
    assert replace(device.track).closed
    app.infer(199, latency_ms=50.0)
    device.look(app, elapsed_s=1000.0)
    assert device.told[-1].drift is None
    app.infer(1, latency_ms=50.0)
    device.look(app, elapsed_s=300.0)
    assert device.told[-1].drift is True


def own_release(module: ModuleType) -> None:
    """Counts of another release, and of before the switch, do not count."""
    old, app = Application("zero"), Application("one", name="2")
    unnamed = Application(None, name="3")
    device = Device(module)
    device.look(unnamed, old, slot="zero")
    unnamed.infer(500, latency_ms=99.0)
    old.infer(500, latency_ms=99.0)
    device.look(unnamed, old, slot="zero")
    app.infer(30)
    device.look(unnamed, old, app, slot="one", soaking=True)
    assert device.track is not None
    assert device.track.reference.n == 30
    old.infer(500, latency_ms=99.0)
    unnamed.infer(20)
    device.look(unnamed, old, app, slot="one")
    assert device.track.reference.n == 50


def restarted(module: ModuleType) -> None:
    """A new process counts from nothing, a new epoch too; a restart of the daemon counts nothing twice."""
    app, more = Application(), Application(name="2")
    device = Device(module)
    app.infer(100)
    device.look(app)
    assert device.track is not None
    assert device.track.reference.n == 0, "nobody knows since when these are"
    app.infer(5)
    more.infer(7)
    device.look(app, more)
    assert device.track.reference.n == 12
    again = Application(epoch=2)
    again.infer(150)
    device.look(again, more)
    assert device.track.reference.n == 162
    device.look(more)
    device.look(again, more)
    assert device.track.reference.n == 162, "a file that was away for a moment was counted twice"
    device.track = replace(device.track, seen=None)
    again.infer(9)
    device.look(again, more)
    assert device.track.reference.n == 162
    again.infer(2)
    device.look(again, more)
    assert device.track.reference.n == 164


def fallen(module: ModuleType) -> None:
    """A count that falls adds nothing, and is where the next look begins."""
    app = Application()
    device = Device(module)
    device.look(app)
    app.infer(50)
    device.look(app)
    app.counts = counted([5.0] * 10, [0.9] * 10)
    device.look(app)
    assert device.track is not None
    assert device.track.reference.n == 50
    app.infer(4)
    device.look(app)
    assert device.track.reference.n == 54


def silent(module: ModuleType) -> None:
    """Without a connection nothing is told, and the window goes on."""
    app = Application()
    device = soaked(app, module=module)
    for _ in range(100):
        app.infer(10)
        device.look(app, may_tell=False)
    assert device.told == []
    app.infer(10)
    told = device.look(app, may_tell=True, trial_ms_p95=2.5)
    assert told is not None
    assert told.latency_n == 1010
    assert told.latency_ratio_to_trial == pytest.approx(2.0, rel=0.13)
    for _ in range(60):
        device.look(app)
    assert len(device.told) == 1, "an application that does nothing is reported again and again"


SCENARIOS = (
    quiet, slower, unsure, few, first_counts, long_soak, edges, own_release, restarted, fallen, silent,
)  # fmt: skip


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_figures_through_time(scenario: Callable[[ModuleType], None]) -> None:
    scenario(drift)


def test_the_memory_of_files_is_bounded() -> None:
    device = Device()
    for number in range(drift.SEEN_MAX + 50):
        files = {f"digits@{number}-0.json": Application().file()}
        device.track, _ = drift.observe(device.track, files, device.moment, RULES)
    assert device.track is not None
    assert device.track.seen is not None
    assert len(device.track.seen) == drift.SEEN_MAX
    assert f"digits@{drift.SEEN_MAX + 49}-0.json" in device.track.seen


MUTANTS = [
    ("track.slot != moment.slot", "False"),
    ("Track(slot=moment.slot, seen=track.seen)", "Track(slot=moment.slot)"),
    ("Track(slot=moment.slot, seen=track.seen)", "Track(slot=moment.slot, seen={})"),
    ("track.reference.n >= rules.n_min", "track.reference.n > rules.n_min"),
    ("track.reference.n >= rules.n_min", "True"),
    ("not moment.soaking and", ""),
    ("closed=True, window_s=0.0", "closed=True"),
    ("    if track.closed:\n", "    if not track.closed:\n"),
    ("min(track.window_s + moment.elapsed_s", "min(moment.elapsed_s"),
    ("quiet_s=track.quiet_s + moment.elapsed_s", "quiet_s=track.quiet_s"),
    ("if track.seen is None:\n        return total", "if False:\n        return total"),
    ("not in {None, track.slot}", "not in {track.slot}"),
    ("not in {None, track.slot}", "in {}"),
    ("== (file.epoch, file.release)", "!= (file.epoch, file.release)"),
    ("(before.epoch, before.release) == (file.epoch, file.release)", "True"),
    ("new or Counts()", "new or file.counts()"),
    ("{**gone, **now}", "now"),
    ("not moment.may_tell or", ""),
    (" or not shown.n", ""),
    ("told.drift != bool(track.drift)", "False"),
    ("told.drift != bool(track.drift)", "told.drift"),
    ("(rules.flip_s if flips else rules.report_s)", "rules.report_s"),
    ("(rules.flip_s if flips else rules.report_s)", "rules.flip_s"),
    ("quiet_s=0.0, drift=", "drift="),
    ("track.drift if told.drift is None else told.drift", "track.drift"),
    ("if told.drift is not None:\n        track", "if True:\n        track"),
    ("if told.drift is not None:\n        track", "if False:\n        track"),
    ("reference.latency_n) >= rules.n_min", "reference.latency_n) > rules.n_min"),
    ("ratio > rules.latency_ratio_max", "ratio > 99"),
    ("index > index_limit(n, m, groups, rules.index_max)", "False"),
    ("index > index_limit(n, m, groups, rules.index_max)", "index >= 0"),
    ("ratio is not None or index is not None", "True"),
    ("bool(drifted) if known else None", "bool(drifted)"),
    ("p95 / moment.trial_ms_p95", "moment.trial_ms_p95"),
    ("track.window if track.closed else track.reference\n    p95", "track.reference\n    p95"),
]  # fmt: skip


def mutant(old: str, new: str) -> ModuleType:
    source = inspect.getsource(drift)
    assert old in source, f"there is nothing to mutate: {old}"
    made = ModuleType("agent.drift_mutant")
    exec(compile(source.replace(old, new), "mutant", "exec"), made.__dict__)
    return made


def survives(old: str, new: str) -> bool:
    module = mutant(old, new)
    for scenario in SCENARIOS:
        try:
            scenario(module)
        except (AssertionError, AttributeError, TypeError, IndexError):
            return False
    return True


def test_every_mutant_of_the_fold_is_caught(record_property: Callable[[str, object], None]) -> None:
    assert [pair for pair in MUTANTS if survives(*pair)] == []
    record_property("mutants", len(MUTANTS))


# --- the whole way ----------------------------------------------------------------------------------


def watching(rig: Rig, folder: Path, rules: DriftRules) -> LiveWatch:
    """A watch over the rig's runner, looking as fast as a test wants."""
    watch = LiveWatch(
        source=LiveFiles(folder), path=rig.root / "live.json", clock=rig.clock, rules=rules, look_s=0.05
    )
    watch.start(rig.runner, lambda: rig.broker.up)
    return watch


def figures(rig: Rig) -> list[LiveMeasured]:
    return [report.event for report in rig.reports() if isinstance(report.event, LiveMeasured)]


QUICK = DriftRules(n_min=50, report_s=0.4, flip_s=0.2)


def test_an_application_that_slows_down_is_reported_and_the_reference_survives_a_restart(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "live"
    folder.mkdir()
    with running(tmp_path / "state") as rig:
        deploy(rig)
        watch = watching(rig, folder, QUICK)
        counter = Live("digits", folder)
        counter.use(Release(directory=rig.current.resolve(), info={}))

        def infer(latency_ms: float) -> None:
            for _ in range(100):
                counter.record(latency_ms=latency_ms, confidence=0.9)
            counter.flush()

        def drifts(flag: bool, latency_ms: float) -> bool:
            infer(latency_ms)
            return any(told.drift is flag for told in figures(rig))

        until(lambda: drifts(False, 5.0), "figures without drift")
        assert watch.close(10)
        watch = watching(rig, folder, QUICK)
        until(lambda: drifts(True, 20.0), "the drift")
        assert watch.close(10)
        told = figures(rig)[-1]
        state = rig.reported()
        assert state is not None
        assert state.active is not None
        assert told.variant == state.active.variant
        assert told.latency_ms_p95 == pytest.approx(20.0, rel=0.13)
        assert told.latency_ratio_to_trial == pytest.approx(20.0 / 1.5, rel=0.13)
        assert (state.outcome, rig.running) == (OrderOutcome.ACTIVE, state.active.digest), "it reverted"
        report = next(report for report in rig.reports() if report.event == told)
        assert (report.model, report.digest, report.order) == ("digits", state.active.digest, 1)


@pytest.mark.parametrize("content", [b"", b"{", b'{"kind":"agent-live","version":9}', b'{"kind":"x"}'])
def test_a_damaged_reference_begins_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "live.json").write_bytes(content)
    with running(tmp_path) as rig:
        watch = LiveWatch(
            source=LiveFiles(tmp_path), path=tmp_path / "live.json", clock=rig.clock, rules=QUICK, look_s=1
        )
        assert watch.latency("digits", "x") == (None, 0)


def test_a_directory_that_does_not_answer_holds_the_loop_up_for_nothing(tmp_path: Path) -> None:
    class Stuck(LiveFiles):
        def __init__(self) -> None:
            super().__init__(tmp_path)
            self.asked = 0

        def read(self, _models: object) -> dict[str, dict[str, LiveFile]]:
            self.asked += 1
            until(lambda: stuck_over, "the end of the test")
            return {}

    stuck_over: list[bool] = []
    with running(tmp_path) as rig:
        deploy(rig)
        source = Stuck()
        watch = LiveWatch(
            source=source, path=tmp_path / "live.json", clock=rig.clock, rules=QUICK, look_s=0.02
        )
        watch.start(rig.runner, lambda: True)
        until(lambda: source.asked, "the first look")
        deploy(rig, TWO, 2)
        assert source.asked == 1, "looks pile up"
        stuck_over.append(True)
        assert watch.close(10)


def test_the_soak_may_end_at_the_applications_own_latency(tmp_path: Path) -> None:
    """Off unless it is asked for; then the release's limit times the factor counts."""
    limited = release_limited_to(10.0)
    with running(tmp_path) as rig:
        deploy(rig)
        rig.live_latency = (39.0, 1000)
        rig.broker.hold(limited)
        rig.broker.desire(DEVICE, {"digits": limited.order(2)})
        rig.wait(2, OrderOutcome.ACTIVE)
    with running(tmp_path / "other", prepare=demanding) as rig:
        deploy(rig)
        rig.broker.hold(limited)
        rig.broker.desire(DEVICE, {"digits": limited.order(2)})
        state = rig.wait(2, OrderOutcome.FELL_BACK)
        assert state.reason is not None
        assert state.reason.code == "live_latency_above_limit"
        assert "39 ms of 1000" in state.reason.detail
        assert "30 ms" in state.reason.detail


def demanding(rig: Rig) -> None:
    rig.live_latency, rig.live_latency_factor_max = (39.0, 1000), 3.0


def release_limited_to(latency_ms: float) -> twins.Release:
    """Release 2 with a limit of latency."""
    sla = replace(TWO.manifest.sla, latency_ms_p95_max=latency_ms)
    return twins.Release(replace(TWO.manifest, sla=sla), TWO.blobs)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("live: {n_min: 10}", "n_min"),
        ("live: {look_s: 0}", "look_s"),
        ("live: {latency_ratio_max: 1}", "latency_ratio_max"),
        ("live: {revert: true}", "revert"),
        ("soak: {live_latency_factor_max: 0.5}", "live_latency_factor_max"),
        ("soak: {restarts_max: -1}", "restarts_max"),
        ("live_dir: [x]", "live_dir"),
    ],
)
def test_keys_that_cannot_be_kept_are_refused(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse_config(text)


def test_the_defaults_are_what_the_docs_say() -> None:
    config = parse_config("")
    assert config.live_dir == "/run/shallop/live"
    assert config.live.rules() == DriftRules()
    assert config.soak.live_latency_factor_max is None


def test_live_figures_are_the_first_to_go_from_a_full_outbox(tmp_path: Path) -> None:
    def report(number: int, event: LiveMeasured | OrderEnded) -> Report:
        return Report(device="d", install_id="1" * 32, number=number, model="m", event=event)

    figures = LiveMeasured(variant="a/b", window_s=1.0)
    ended = OrderEnded(outcome=OrderOutcome.ACTIVE)
    outbox = Outbox(tmp_path, 3)
    for event in (ended, figures, ended, figures, ended, figures):
        outbox.add(report(outbox.next_number(), event))
    kept = [type(kept.event).__name__ for kept in Outbox(tmp_path, 3).pending(10)]
    assert kept == ["OrderEnded"] * 3
