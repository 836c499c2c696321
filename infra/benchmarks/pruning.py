"""Is the demo's pruning deserved? Every pruned trial is run again to its end, over several seeds.

    .venv/bin/python infra/benchmarks/pruning.py [--seeds 5] [--storage DIR]

For each sweep seed: run the demo sweep; then run each trial that the pruner stopped alone, to its
full budget. The regret is the best final loss among all trials minus that of the sweep's winner:
what pruning lost. It is compared with the spread of the winner over training seeds. Writes
`pruning.json` and `pruning.md` beside this file.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from peft_jobs import Kind, State, TrialResult, TrialSpec
from peft_jobs.engines import load_engine
from peft_jobs.host.messages import Assignment, End, Report
from peft_jobs.host.trial_host import TrialHost
from peft_jobs.provenance import environment
from sweeps import load_sweep
from sweeps.records.layout import SweepFolder
from sweeps.results.leaderboard import Leaderboard
from sweeps.run import launch

HERE = Path(__file__).parent
DEMO = HERE.parents[1] / "sweeps" / "examples" / "demo.yaml"
SPREAD_SEEDS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--storage", type=Path, default=Path(tempfile.mkdtemp()))
    options = parser.parse_args()
    host = TrialHost(load_engine("solo", {"cache_dir": str(options.storage / "cache")}))
    sweeps = [one_seed(seed, options.storage, host) for seed in range(options.seeds)]
    winner = min(sweeps, key=lambda sweep: float(sweep["winner_loss"]))
    spec = TrialSpec.model_validate(winner["winner_spec"])
    scratch = options.storage / "spread"
    spread = [
        run_alone(spec.with_params({"seed": 1000 + i}), scratch / str(i), host)
        for i in range(SPREAD_SEEDS)
    ]
    record = {
        "environment": environment(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "date": time.strftime("%Y-%m-%d"),
        "sweeps": sweeps,
        "winner_over_seeds": [result.metrics["validation/loss"] for result in spread],
    }
    (HERE / "pruning.json").write_text(json.dumps(record, indent=1) + "\n")
    (HERE / "pruning.md").write_text(table(record))
    print(table(record))
    host.close()


def one_seed(seed: int, storage: Path, host: TrialHost) -> dict[str, Any]:
    """Run the demo sweep with `seed`, then what it pruned."""
    started = time.time()
    overrides = [
        f"name=demo-{seed}",
        f"seed={seed}",
        f"storage={storage}",
        "tracking=none",
        "resources.backend=inline",
    ]
    board: Leaderboard = launch(load_sweep(DEMO, overrides)).leaderboard
    seconds_pruned = time.time() - started
    folder = SweepFolder(storage, board.sweep)
    trials: list[dict[str, Any]] = []
    for row in board.rows:
        path = folder.trial(row.number) / "trial.json"
        spec = TrialSpec.model_validate_json(path.read_text())
        final, seconds = row.value, row.minutes * 60
        if row.kind == Kind.WEAK:
            again = run_alone(spec, folder.trial(row.number) / "attempts" / "full", host)
            final = again.metrics.get("validation/loss")
            seconds = sum(again.seconds.values())
        trials.append(
            {
                "number": row.number,
                "params": row.params,
                "pruned": row.kind == Kind.WEAK,
                "pruned_at_loss": row.value if row.kind == Kind.WEAK else None,
                "final_loss": final,
                "seconds_to_the_end": seconds,
            }
        )
        print(seed, trials[-1], flush=True)
    best = board.best
    assert best is not None
    winner_spec = json.loads((folder.trial(best.number) / "trial.json").read_text())
    finals = [t["final_loss"] for t in trials if t["final_loss"] is not None]
    return {
        "seed": seed,
        "baseline": board.baseline,
        "winner": best.number,
        "winner_loss": best.value,
        "winner_spec": winner_spec,
        "best_unpruned_loss": min(finals),
        "seconds": seconds_pruned,
        "trials": sorted(trials, key=lambda trial: int(trial["number"])),
    }


def run_alone(spec: TrialSpec, directory: Path, host: TrialHost) -> TrialResult:
    """The trial to its end, whatever it reports on the way."""
    trial, seq = hash(str(directory)) % 10**9, 0
    host.submit(Assignment(trial, 1, spec.to_json(), str(directory)))
    while True:
        message = host.next_report(trial, 1, seq)
        if isinstance(message, End):
            result = message.result
            assert result.state is State.COMPLETE or result.kind is Kind.DIVERGED, result.error
            return result
        seq = message.seq if isinstance(message, Report) else seq


def table(record: dict[str, Any]) -> str:
    """The result in Markdown."""
    over = record["winner_over_seeds"]
    spread = max(over) - min(over)
    lines = [
        "# What pruning costs on the demo sweep",
        "",
        f"{record['machine']}, torch {record['environment']['versions']['torch']}, "
        f"{record['date']}; `infra/benchmarks/pruning.py`. Every trial that the pruner stopped was "
        "run again to its end.",
        "",
        "| seed | trials | pruned | winner | its loss | best of all, unpruned | regret | base |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for sweep in record["sweeps"]:
        pruned = sum(trial["pruned"] for trial in sweep["trials"])
        regret = sweep["winner_loss"] - sweep["best_unpruned_loss"]
        lines.append(
            f"| {sweep['seed']} | {len(sweep['trials'])} | {pruned} | {sweep['winner']:04d} "
            f"| {sweep['winner_loss']:.3f} | {sweep['best_unpruned_loss']:.3f} | {regret:.3f} "
            f"| {sweep['baseline']:.3f} |"
        )
    lines += [
        "",
        f"The best winner's configuration over {len(over)} training seeds: "
        f"{', '.join(f'{loss:.3f}' for loss in over)}; spread {spread:.3f}.",
        "",
        "## All trials of seed 0, none pruned",
        "",
    ]
    trials = record["sweeps"][0]["trials"]
    names = list(trials[0]["params"])
    lines += [
        "| trial | final loss | stopped at | " + " | ".join(names) + " |",
        "|---" * (3 + len(names)) + "|",
    ]
    for trial in sorted(trials, key=lambda t: (t["final_loss"] is None, t["final_loss"])):
        final = "diverged" if trial["final_loss"] is None else f"{trial['final_loss']:.3f}"
        stopped = f"{trial['pruned_at_loss']:.3f}" if trial["pruned"] else ""
        values = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in trial["params"].values()]
        lines.append(
            f"| {trial['number']:04d} | {final} | {stopped} | " + " | ".join(values) + " |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
