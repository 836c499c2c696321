"""The packing benchmarks: each table in seconds on the demo base, and what is written of it."""

import importlib
import json
import random
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest

FOLDER = Path(__file__).parents[1] / "infra" / "benchmarks"
SMALL = ["--repeats", "1", "--threads", "1"]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """name -> a module of the folder, which is no package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def measurements(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["measurements"]
    return found


def test_arguments_of_each_table(benchmarks: Any) -> None:
    parse = benchmarks("packing").parse
    steps = parse(["steps", "--slots", "1,4", "--prompt", r"{a}\n", "--model", "some/where"])
    assert steps.slots == [1, 4]
    assert steps.prompt == "{a}\n"
    assert steps.model_name == "where"
    assert parse(["sweep"]).model_name == "demo"
    assert parse(["sweep"]).arms[0] == "B0"
    assert set(parse(["gpu"]).shape) == {"0.5B", "1.5B", "7B"}
    with pytest.raises(SystemExit):
        parse(["weeks"])


def test_steps_measures_each_arm_and_compares_its_losses(benchmarks: Any, tmp_path: Path) -> None:
    out = tmp_path / "packing.json"
    few = ["--tokens", "32", "--slots", "1,2", "--quantization", "nf4", "--arm-seconds", "0.1"]
    arms = ["--arms", "B1,B4@2,B5"]
    assert benchmarks("packing").main(["steps", *few, *arms, *SMALL, "--out", str(out)]) == 0
    found = measurements(out)
    expected = [("B1", 1), ("B4", 2), ("B5", 1), ("B5", 2)]
    assert [(one["arm"], one["slots"]) for one in found] == expected
    for one in found:
        assert one["trial_steps"] >= 9 * one["slots"]
        assert one["seconds"] > 0
        assert one["real_tokens"] <= one["padded_tokens"] <= 32
    for one in found[1:]:
        assert 0 <= one["loss_difference_mean"] <= one["loss_difference_max"] < 1e-4
    assert "| tokens (real) | B1 steps/s | arm | K=1 | K=2 |" in out.with_suffix(".md").read_text()


@pytest.mark.slow
def test_the_search_for_a_number_of_slots_is_part_of_its_arm(
    benchmarks: Any, tmp_path: Path
) -> None:
    out = tmp_path / "packing.json"
    few = ["--tokens", "32", "--slots", "2", "--quantization", "none", "--arms", "B1,B5-auto"]
    assert benchmarks("packing").main(["steps", *few, *SMALL, "--out", str(out)]) == 0
    assert measurements(out)[1]["trial_steps"] >= 2 * 99


def test_a_cell_that_takes_too_long_or_comes_too_late_says_so(
    benchmarks: Any, tmp_path: Path
) -> None:
    out = tmp_path / "packing.json"
    few = ["--tokens", "32", "--slots", "2", "--quantization", "none", "--arm-seconds", "0.1"]
    short = ["--arms", "B1,B5", "--run-seconds", "0.001"]
    main = benchmarks("packing").main
    assert main(["steps", *few, *short, *SMALL, "--out", str(out)]) == 0
    assert [one["arm"] for one in measurements(out)] == ["B1", "B5"]
    assert all("steps would take" in one["failed"] for one in measurements(out))
    late = ["--arms", "B1,B5", "--seconds", "0", "--forget"]
    assert main(["steps", *few, *late, *SMALL, "--out", str(out)]) == 0
    assert [one["failed"] for one in measurements(out)] == ["not reached"] * 2


def test_dequantized_base_has_the_same_values(benchmarks: Any) -> None:
    import torch

    base = benchmarks("random_base").make_base("tiny", torch.device("cpu"))
    plain = benchmarks("dequantized").dequantized(base)
    ids = torch.arange(1, 33).view(2, 16)
    same = torch.allclose(base.model(ids).logits, plain.model(ids).logits, atol=1e-5)
    assert same
    kinds = {type(module).__name__ for module in plain.model.modules()}
    assert "Linear4bit" not in kinds
    assert "Linear4bit" in {type(module).__name__ for module in base.model.modules()}


def test_a_graphed_trial_is_the_solo_engines(benchmarks: Any, tmp_path: Path) -> None:
    out = tmp_path / "packing.json"
    few = ["--shape", "tiny", "--tokens", "32", "--slots", "2", "--arm-seconds", "0.1"]
    arms = ["--arms", "B1,B1-graphed,B2-graphed"]
    assert benchmarks("packing").main(["gpu", *few, *arms, *SMALL, "--out", str(out)]) == 0
    found = measurements(out)
    assert [(one["arm"], one["slots"]) for one in found] == [(a, 1) for a in arms[1].split(",")]
    for one in found[1:]:
        assert one["loss_difference_max"] < 1e-4
    assert found[1]["supervised_tokens"] == 8


def test_looped_adapters_give_the_gradients_of_batched_ones(
    benchmarks: Any, tmp_path: Path
) -> None:
    arms, runs, table = benchmarks("arms"), benchmarks("runs"), benchmarks("steps")
    from peft_jobs.engines.solo.solo_engine import SoloEngine
    from peft_jobs.spec import TrialSpec

    options = benchmarks("packing").parse(["steps"])
    spec = TrialSpec.model_validate(table.trial(options, "none", 2, 32))
    engine = SoloEngine(str(tmp_path), threads=1)
    trials = [
        spec.with_params(
            {"seed": seed, "training.max_steps": 6, "training.logging_steps": 1}
            | {"training.learning_rate": 1e-2}
        )
        for seed in range(3)
    ]
    kinds = {"looped": arms.looped, "packed": arms.packed}
    ran = {name: runs.run(make(engine, 3), trials) for name, make in kinds.items()}
    losses = {name: [job.losses for job in one.jobs] for name, one in ran.items()}
    assert losses["looped"][0] == pytest.approx(losses["packed"][0], abs=1e-5)
    assert losses["looped"][2] == pytest.approx(losses["packed"][2], abs=1e-5)
    assert losses["looped"][0][-1] < losses["looped"][0][0]  # they do learn


def test_gpu_table_refuses_in_one_line_without_a_gpu(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    out = tmp_path / "packing.json"
    command = [sys.executable, str(FOLDER / "packing.py"), "gpu", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "needs a CUDA device" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Not run: no GPU was at hand." in out.with_suffix(".md").read_text()


def test_gpu_table_on_a_tiny_shape(benchmarks: Any, tmp_path: Path) -> None:
    out = tmp_path / "packing.json"
    few = ["--shape", "tiny", "--tokens", "64", "--slots", "2", "--r", "8", "--arm-seconds", "0.1"]
    arms = ["--arms", "B1,B4,B5"]
    assert benchmarks("packing").main(["gpu", *few, *arms, *SMALL, "--out", str(out)]) == 0
    found = measurements(out)
    assert [one["arm"] for one in found] == ["B1", "B4", "B5"]
    assert {one["padded_tokens"] for one in found} == {64}
    assert found[2]["loss_difference_max"] < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "arm",
    ["B0", "B1", "B2", "B3-2", "B4", "B5", "B5-inline", "B5-ray", "B6", "B7", "B9", "B9-ray"],
)
def test_each_arm_of_a_small_sweep(benchmarks: Any, tmp_path: Path, arm: str) -> None:
    out = tmp_path / "packing.json"
    few = ["--trials", "4", "--steps", "8", "--slots", "2", "--arms", arm]
    assert benchmarks("packing").main(["sweep", *few, *SMALL, "--out", str(out)]) == 0
    (one,) = measurements(out)
    assert 0 < one["startup_seconds"] < one["seconds"]
    assert 1 <= one["completed"] <= 4
    assert one["steps_done"] <= 32
    assert 1 < one["best_loss"] < 8


def test_tables_name_gains_losses_and_what_was_not_run(benchmarks: Any) -> None:
    def one(arm: str, repeat: int, seconds: float, **more: Any) -> dict[str, Any]:
        cell = {"table": "steps", "run": "1", "model": "m", "parameters": 10**6, "slots": 2}
        cell |= {"quantization": "none", "tokens": 64, "real_tokens": 60.0, "padded_tokens": 64.0}
        cell |= {"supervised_tokens": 10.0, "peak_bytes": 10**6, "load": 0.5}
        cell |= {"slots": 1} if arm == "B1" else {}
        clocks = {"seconds": seconds, "processor_seconds": seconds, "trial_steps": 10}
        return cell | clocks | {"arm": arm, "repeat": repeat} | more

    versions = dict.fromkeys(("torch", "transformers", "peft"), "1.0")
    run = {"machine": "2 cores", "date": "today", "command": "packing.py steps"}
    away = {"loss_difference_max": 2e-6, "loss_difference_mean": 1e-7}
    measured = [one("B1", 0, 1.0), one("B1", 1, 2.0), one("B1", 2, 1.0)]
    measured += [one("B5", 0, 2.0, **away), one("B5", 1, 2.0, **away), one("B5", 2, 1.25, **away)]
    content = {
        "runs": {"1": {**run, "environment": {"versions": versions}}},
        "measurements": measured,
    }
    tables = benchmarks("tables")
    assert benchmarks("figures").gains(measured[3:], measured[:3]) == [0.5, 0.8, 1.0]
    text = tables.markdown(content)
    assert "| 64 (60) | 10.0 | B5 | **0.80** (0.50 to 1.00), 2e-06 |" in text
    assert "Cells where packing is slower than B1: B5, m none, 64 tokens, K=2: 0.80." in text
    assert "Not run: no GPU was at hand." in text
    again = [one("B5", 0, 0.5, **away) | {"run": "2"}, one("B1", 0, 1.0) | {"run": "2"}]
    content["runs"]["2"] = content["runs"]["1"]
    content["measurements"] = [*measured, *again]
    assert "**4.00** (4.00 to 4.00), 2e-06, once" not in tables.markdown(content)
    assert "**2.00** (2.00 to 2.00), 2e-06, once" in tables.markdown(content)
    empty = tables.markdown({"runs": {}, "measurements": []})
    assert empty.count("Not run") == 4


def test_sweeps_tell_each_factor_and_what_pruning_lost(benchmarks: Any) -> None:
    def one(arm: str, seconds: float, best: float, **more: Any) -> dict[str, Any]:
        setting = {"model": "m", "quantization": "nf4", "trials": 4, "steps": 8, "tokens": 64}
        ends = {"completed": 4, "steps_done": 32, "where": {"train": 1.0}, "best_loss": best}
        times = {"seconds": seconds, "startup_seconds": 1.0, "repeat": 0, "slots": 2}
        return {**setting, **ends, **times, "arm": arm, **more}

    measured = [
        one("B0", 40.0, 2.0, extrapolated=True),
        one("B1", 20.0, 2.0, losses=[2.0, 3.0]),
        one("B5", 5.0, 2.0, losses=[2.0, 3.001]),
        one("B7", 30.0, 2.0),
        one("B9", 2.0, 2.0, pruned=3, pruned_best_loss=1.75),
    ]
    text = "\n".join(benchmarks("sweep_report").sweeps(measured))
    assert "40.0 (40.0 to 40.0) (extrapolated)" in text
    assert "B0 to B1 2.00, B1 to B5 4.00, B5 to B9 2.50" in text
    assert "1e-03, 5e-04" in text
    assert "1 of 1, by 0.250 at most" in text
    assert "Where the product loses: nowhere in this table." in text
    slow = [one("B0", 3.0, 2.0), one("B5", 6.0, 2.0)]
    text = "\n".join(benchmarks("sweep_report").sweeps(slow))
    assert "Where the product loses: B5 against B0 (0.50)." in text


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_cores_compares_hosts_by_threads(benchmarks: Any, tmp_path: Path) -> None:
    out = tmp_path / "packing.json"
    few = ["--trials", "4", "--steps", "6", "--slots", "4", "--arms", "packed-1x2,packed-2x1"]
    command = [sys.executable, str(FOLDER / "packing.py"), "cores", *few, "--repeats", "1"]
    subprocess.run([*command, "--out", str(out)], check=True, timeout=280)
    assert [one["trial_steps"] for one in measurements(out)] == [24, 24]
    assert "| packed | 2 | 1 |" in out.with_suffix(".md").read_text()


def test_record_keeps_what_earlier_calls_measured(benchmarks: Any, tmp_path: Path) -> None:
    record_of = benchmarks("record").Record
    path = tmp_path / "packing.json"
    for number in ("1", "2"):
        record = record_of(path)
        assert record.begin("steps", "packing.py steps") == number
        record.add(number, {"tokens": 64}, {"arm": "B1"})
    record = record_of(path)
    assert [one["run"] for one in record.content["measurements"]] == ["1", "2"]
    record.forget("sweep")
    record.forget("steps", ["B5"])
    assert len(record.content["measurements"]) == 2
    record.forget("steps")
    assert record.content == {"runs": {}, "measurements": []}


def test_scale_of_a_small_inline_sweep(tmp_path: Path) -> None:
    out = tmp_path / "scale.json"
    few = ["--trials", "40", "--slots", "8", "--samplers", "tpe", "--out", str(out)]
    command = [sys.executable, str(FOLDER / "scale.py"), "inline", *few]
    subprocess.run(command, check=True, timeout=120)
    (one,) = measurements(out)
    assert one["complete"] >= 1
    assert one["reports"] >= 40
    assert len(one["quarters"]) == 4
    for quarter in one["quarters"]:
        assert 0 < quarter["cpu_ms_per_report"] < quarter["cpu_ms_per_trial"]
        assert quarter["database_bytes_per_trial"] >= 0
    assert "| 40 | 8 | tpe |" in out.with_suffix(".md").read_text()


@pytest.mark.slow
def test_scale_of_two_proxies_on_ray(tmp_path: Path) -> None:
    out = tmp_path / "scale.json"
    few = ["--proxies", "2", "--seconds", "10", "--out", str(out)]
    subprocess.run(
        [sys.executable, str(FOLDER / "scale.py"), "proxies", *few], check=True, timeout=250
    )
    (one,) = measurements(out)
    assert (one["complete"], one["proxy_processes"]) == (2, 2)
    assert one["first_report_seconds"] < one["all_report_seconds"] < one["seconds"]
    assert 2e7 < one["uss_bytes_per_proxy"] <= one["pss_bytes_per_proxy"]


def test_growth_is_told_from_the_first_and_the_last_quarter(benchmarks: Any) -> None:
    growth = benchmarks("scale_tables").growth

    def said(*costs: float) -> str:
        return str(growth([{"cost": cost} for cost in costs], "cost", 10_000))

    assert said(2.0, 2.5, 2.5, 2.2) == "flat"
    assert said(7.0, 8.0, 8.5, 9.0) == "logarithmic"  # as ln(1250) is to ln(8750)
    assert said(1.0, 3.0, 5.0, 7.0) == "growing 7.0x"


def test_a_replay_decides_as_a_study_does(benchmarks: Any) -> None:
    regret = benchmarks("regret")
    curves = regret.simulated(random.Random(3), 40)
    study = optuna.create_study(pruner=regret.product().make())
    shares = []
    for curve in curves:
        trial, share = study.ask(), 1.0
        for part in regret.product().parts:
            trial.report(curve.rungs[part], regret.SAMPLES // part)
            if trial.should_prune():
                share = 1 / part
                break
        shares.append(share)
    assert regret.shares(regret.product(), curves) == shares
    assert 5 < shares.count(1.0) < 30


@pytest.mark.parametrize("size", [8, 12, 20])
def test_the_default_pruner_rarely_stops_the_best_trial(benchmarks: Any, size: int) -> None:
    """At most 8 % of sweeps at 12 trials; of 400 orders at most 45 (binomial, 99 %)."""
    regret = benchmarks("regret")
    found = regret.replayed(regret.product(), regret.simulated, size, 400)
    assert found.lost <= 0.1125
    assert found.samples < 0.72
    if size == 12:
        assert found.lost <= 0.08
        before = regret.replayed(regret.OPTUNAS_OWN, regret.simulated, size, 400)
        assert before.lost > 0.12
        assert before.samples < found.samples


def test_the_default_pruner_across_methods(benchmarks: Any) -> None:
    """At most 15 % of sweeps of twelve trials, where Optuna's own loses it in a third."""
    regret = benchmarks("regret")
    found, before = (
        regret.replayed(rule, regret.across_methods, 12, 300)
        for rule in (regret.product(), regret.OPTUNAS_OWN)
    )
    assert found.lost <= 0.15
    assert before.lost > 0.25


@pytest.mark.parametrize(("space", "most"), [("lora", 0.08), ("methods", 0.15)])
def test_the_default_pruner_on_curves_that_were_trained(
    benchmarks: Any, space: str, most: float
) -> None:
    """The goals at twelve trials. Of six methods few have five trials then, so all go on."""
    regret = benchmarks("regret")
    curves = regret.recorded()[space]
    assert len({curve.method for curve in curves}) == {"lora": 1, "methods": 6}[space]
    pool = partial(drawn_from, curves)
    found = regret.replayed(regret.product(), pool, 12, 300)
    assert found.lost <= most
    if space == "lora":
        assert found.samples < 0.7
    else:
        assert regret.replayed(regret.OPTUNAS_OWN, pool, 12, 300).lost > found.lost + 0.03


def drawn_from(curves: list[Any], rng: random.Random, size: int) -> list[Any]:
    return rng.sample(curves, size)


def test_what_a_confirmation_names_is_worth_what_it_is_said_to_be(benchmarks: Any) -> None:
    """Of 80 simulated studies with a known truth: it is right more often than one run of each; its
    first is about as often as the best of three with ten seeds each, which cost more. The smallest
    of all that are tied is no such choice."""
    recommend = benchmarks("recommend")
    found = {
        name: recommend.tried(way, recommend.simulated, 80)
        for name, way in recommend.WAYS.items()
        if name != "the best three, five seeds each"
    }
    one_run, race = found["nothing"], found["the race: what is recommended"]
    assert race.right > one_run.right + 0.05
    assert found["the race: the first"].right > found["the best three, ten seeds each"].right - 0.05
    assert race.right > found["the race: the smallest of all that are tied"].right + 0.2
    assert race.cost < 25 < found["the best three, ten seeds each"].cost
    assert abs(race.flattery) < 0.015
    assert one_run.flattery > 0.025
    assert found["more trials"].flattery > 0.04


def test_worlds_of_recorded_trials_scatter_as_they_should(benchmarks: Any) -> None:
    recommend = benchmarks("recommend")
    finals = [1.0, 2.0, 3.0]
    rng = random.Random(0)
    worlds = [recommend.drawn_from(finals)(rng) for _ in range(400)]
    assert all(sorted(world.means) == finals for world in worlds)
    errors = [world.losses[0][4] - world.means[0] for world in worlds]
    others = [world.losses[1][4] - world.means[1] for world in worlds]
    assert statistics.stdev(errors) == pytest.approx(recommend.SEED_SD, rel=0.1)
    shared = recommend.COMMON_SD**2 / recommend.SEED_SD**2
    assert statistics.correlation(errors, others) == pytest.approx(shared, abs=0.1)
    named = recommend.WAYS["the race: what is recommended"](worlds[0])
    assert worlds[0].means[named.number] == 1.0
    assert named.cost == 6, "two seeds of the three best tell them apart"
