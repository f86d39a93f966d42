"""The study of ZO-SAM: cases, speed, budgets and paired differences."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from demo_cases import few_digits
from sparse_optim.demo import data, runner, stopwatch, study, zo_study, zo_throughput

PLAN = study.plan_of("cnn", 1)


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return few_digits(128)


def test_a_run_may_end_within_an_epoch(digits, monkeypatch):
    """7 steps of 4 an epoch: the schedule is as long, and the batches are those of longer runs."""
    seen: list[tuple[float, list[int]]] = []
    step = runner.Run.step

    def recorded(run, images, labels):
        loss = step(run, images, labels)
        seen.append((run.optimizer.param_groups[0]["lr"], labels.tolist()))
        return loss

    monkeypatch.setattr(runner.Run, "step", recorded)
    case = zo_study.method_case("SGD", "snip", 0.5)
    outcome = study.train_case(case, PLAN, digits, "auto", 0, steps=7)
    assert outcome.steps == len(seen) == 7
    rates = [0.5 * study.SPARSE_LR * (1 + math.cos(math.pi * i / 7)) for i in range(7)]
    assert [rate for rate, _ in seen] == pytest.approx(rates)
    short, seen[:] = list(seen), []
    study.train_case(case, PLAN, digits, "auto", 0, steps=12)
    assert [labels for _, labels in short] == [labels for _, labels in seen[:7]]


def test_speed_follows_the_clock(digits, monkeypatch):
    """A clock that only steps move: ratios, estimates and steps in equal time come out exactly."""
    cost = {"SGD": 1.0, "SAM": 2.5, "interval SAM (5)": 1.25, "ZO-SAM": 1.6, "random sign": 1.0}
    cost["downhill sign"] = 4.0
    now = [0.0]

    def spend(seconds: float) -> None:
        now[0] += seconds

    def step(run, images, labels):
        first = 100.0 if now[0] < 20.0 else 0.0  # in the block that is not counted
        spend(cost[run.recipe.label] + first)

    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(runner.Run, "step", step)
    monkeypatch.setattr(zo_throughput, "_forward", lambda *_: spend(0.3))
    monkeypatch.setattr(zo_throughput, "_forward_backward", lambda *_: spend(1.0))
    names = zo_study.methods(downhill=True)
    cases = [zo_study.method_case(name, "snip", 0.5) for name in names]
    speeds = zo_throughput.measure(cases, PLAN, digits, "auto", 100, 1)
    found = {s.case.method: s for s in speeds}
    assert list(found) == list(cost) == list(names)
    for name, seconds in cost.items():
        assert found[name].seconds == pytest.approx(seconds)
        assert found[name].relative == pytest.approx(1.0 / seconds)
        assert found[name].forward_share == pytest.approx(0.3)
    estimates = {
        "SGD": 1.0, "SAM": 0.5, "interval SAM (5)": 1 / 1.2, "ZO-SAM": 1 / 1.6, "random sign": 1.0,
        "downhill sign": 1 / 1.6,
    }  # fmt: skip
    assert {n: s.estimate for n, s in found.items()} == pytest.approx(estimates)
    jobs = zo_study.epoch_jobs(names, ["snip"], [0.5, 0.9], 100)
    timed = zo_study.time_jobs(jobs, {"snip": speeds})
    assert [case for case, _ in timed] == [case for case, _ in jobs]
    assert [steps for _, steps in timed] == [100, 40, 80, 62, 100, 25] * 2
    (speed,) = (s for s in speeds if s.case.method == "downhill sign")
    assert speed.steps_within(2) == 1


def test_cases_differ_in_the_method_alone():
    jobs = zo_study.epoch_jobs(zo_study.methods(downhill=True), ["snip", "rigl"], [0.9, 0.98], 44)
    assert len(jobs) == 6 * 4
    own = {"interval", "sign", "rho", "adaptive", "num_directions", "smoothing", "distribution"}
    own.add("restore")
    for at in range(0, 24, 6):
        kinds = [case.recipe.all_options() for case, _ in jobs[at : at + 6]]
        shared = [{k: v for k, v in kind.items() if k not in own} for kind in kinds]
        assert all(kind == shared[0] for kind in shared)
        assert shared[0]["lr"] == study.SPARSE_LR
        assert {kind.get("rho", 0.05) for kind in kinds} == {0.05}
    signs = [case.recipe.all_options().get("sign") for case, _ in jobs[:6]]
    assert signs == [None, None, None, "uphill", "random", "downhill"]
    assert jobs[2][0].recipe.option("interval") == zo_study.INTERVAL
    sweep = zo_study.radius_jobs((0.05, 2.0), "snip", 0.9, 44, downhill=False)
    found = [(case.method, case.recipe.all_options().get("rho")) for case, _ in sweep]
    assert found == [
        ("SGD", None), ("ZO-SAM", 0.05), ("ZO-SAM", 2.0), ("random sign", 0.05),
        ("random sign", 2.0),
    ]  # fmt: skip


def test_equal_runs_are_made_once(digits, monkeypatch):
    made = []
    train_case = study.train_case

    def counted(case, plan, data, backend, seed, *args, **kwargs):
        made.append((case.method, case.recipe.all_options().get("rho"), kwargs["steps"], seed))
        return train_case(case, plan, data, backend, seed, *args, **kwargs)

    monkeypatch.setattr(zo_study, "train_case", counted)
    names = ("SGD", "ZO-SAM")
    jobs = zo_study.epoch_jobs(names, ["snip"], [0.8], 4)
    parts = {
        zo_study.EPOCHS: jobs,
        zo_study.TIME: [jobs[0], (jobs[1][0], 2)],
        zo_study.RADIUS: zo_study.radius_jobs((0.05, 2.0), "snip", 0.8, 4, downhill=False),
    }
    epochs = []
    outcomes = zo_study.train_parts(parts, 2, PLAN, digits, "auto", lambda *at: epochs.append(at))
    wanted = [("SGD", None, 4), ("ZO-SAM", 0.05, 4), ("ZO-SAM", 0.05, 2), ("ZO-SAM", 2.0, 4)]
    wanted += [("random sign", 0.05, 4), ("random sign", 2.0, 4)]
    assert made == [(*run, seed) for run in wanted for seed in (0, 1)]
    assert len(epochs) == zo_study.epochs_to_train(parts, 2, PLAN, digits) == 12
    for part, own in parts.items():
        got = [(o.case.key, o.steps, o.seed) for o in outcomes[part]]
        assert got == [(case.key, steps, seed) for case, steps in own for seed in (0, 1)]
    again = zo_study.train_parts({"a": jobs}, 2, PLAN, digits, "auto")["a"]
    for first, second in zip(outcomes[zo_study.EPOCHS], again, strict=True):
        assert (first.accuracy, first.corrupted) == (second.accuracy, second.corrupted)


def test_differences_are_paired():
    values = {
        ("SGD", 0.5): [90.0, 80.0], ("SGD", 0.9): [70.0, 60.0],
        ("ZO-SAM", 0.5): [92.0, 79.0], ("ZO-SAM", 0.9): [70.0, 65.0],
        ("random sign", 0.5): [91.0, 81.0], ("random sign", 0.9): [70.0, 60.0],
    }  # fmt: skip
    outcomes = [
        study.Outcome(
            zo_study.method_case(name, "snip", sparsity), seed, 4, value, None, 50.0,
            corrupted={"noise": value - 10.0, "blur": value - 20.0 * (name == "ZO-SAM")},
        )
        for (name, sparsity), own in reversed(values.items())
        for seed, value in enumerate(own)
    ]  # fmt: skip
    found = zo_study.differences("equal time", outcomes)
    assert [(d.method, d.against) for d in found] == [
        ("random sign", "SGD"), ("ZO-SAM", "SGD"), ("ZO-SAM", "random sign"),
    ]  # fmt: skip
    expected = np.array([2.0, -1.0, 0.0, 5.0])
    zo = found[1]
    assert (zo.part, zo.pairs, zo.better, zo.worse) == ("equal time", 4, 2, 1)
    assert zo.clean == pytest.approx(expected.mean())
    assert zo.median == pytest.approx(1.0)
    assert zo.clean_error == pytest.approx(expected.std(ddof=1) / 2.0)
    assert zo.corrupted == pytest.approx(expected.mean() - 10.0)
    assert found[2].clean == pytest.approx(np.mean([1.0, -2.0, 0.0, 5.0]))


def test_summary_of_corrupted_accuracies():
    case = zo_study.method_case("SAM", "rigl", 0.9)
    outcomes = [
        study.Outcome(case, i, 4, 90.0, 10.0, 90.0, 1.0, {"noise": a, "blur": b})
        for i, (a, b) in enumerate([(50.0, 70.0), (56.0, 80.0)])
    ]
    (summary,) = study.summarise(outcomes)
    assert summary.corrupted == {"noise": 53.0, "blur": 75.0}
    assert summary.corrupted_mean == 64.0
    assert summary.corrupted_deviation == pytest.approx(np.std([60.0, 68.0], ddof=1))


def test_examples():
    assert doctest.testmod(study).failed == 0
