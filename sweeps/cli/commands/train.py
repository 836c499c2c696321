"""`train`: the recommended configuration on all the data, under fresh seeds, and exported."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peft_jobs import SpecError, State
from sweeps.cli.commands.export import tell_export
from sweeps.cli.commands.run import Options, drive, supervise_again, supervises
from sweeps.cli.exit_codes import ExitCode
from sweeps.cli.screen import print_json, say
from sweeps.confirmation.rounds import fresh_seeds
from sweeps.driver.results_told import tell_again
from sweeps.exporters.export import write_export
from sweeps.records.reader import read_record, recorded_names, recorded_spec
from sweeps.results.recorded_sweep import open_sweep
from sweeps.spec import SweepSpec
from sweeps.spec.final import epochs_of_search, final_sweep

if TYPE_CHECKING:
    from sweeps.results.recorded_sweep import RecordedSweep


@dataclass(frozen=True)
class Wanted:
    """What is to be trained."""

    trial: int | None = None
    """By default the one that a confirmation recommends, or the winner."""
    epochs: float | None = None
    """By default as many as in the sweep, one at least."""
    seeds: int = 3
    with_validation: bool = False
    to: Sequence[str] = ("peft",)

    def words(self, trial: int) -> list[str]:
        """As words of the driver's command line, which must mean the same trial later."""
        found = ["--trial", str(trial), "--seeds", str(self.seeds), "--to", ",".join(self.to)]
        if self.epochs is not None:
            found += ["--epochs", repr(self.epochs)]
        return [*found, "--with-validation"] if self.with_validation else found


def train(storage: Path, name: str, wanted: Wanted, options: Options) -> int:
    """Train, or go on, and export the median seed; SpecError if there is nothing to train."""
    sweep = open_sweep(storage, name, options.study_url)
    number = _number(sweep, wanted.trial)
    final = _final(storage, sweep, number, wanted, options)
    command = ["train", name, *wanted.words(number), *options.words(), "--storage"]
    command.append(sweep.folder.location)
    if supervises(final, options):
        return supervise_again(options, command, command)
    if not _is_trained(storage, final, options):
        say(_told(final, number, name, wanted.with_validation))
        again = f"peft-sweep train {name} --trial {number}{sweep.folder.option}"
        code = drive(final, options, again=again, shows=not options.json)
        if code != ExitCode.DONE:
            return code
    return _export(storage, final, wanted, options)


def _number(sweep: "RecordedSweep", number: int | None) -> int:
    """The trial whose configuration is to be trained."""
    if sweep.spec.final_of is not None:
        raise SpecError(f"{sweep.name} is a final training: give the sweep that it is of")
    board = sweep.leaderboard()
    if number is None:
        if board.chosen is None:
            raise SpecError(f"the sweep {sweep.name!r} has no winner yet: no trial completed")
        return board.chosen.number
    if all(row.number != number for row in board.rows):
        raise SpecError(f"the sweep {sweep.name!r} has no trial {number}")
    return number


def _final(
    storage: Path, sweep: "RecordedSweep", number: int, wanted: Wanted, options: Options
) -> SweepSpec:
    spec = recorded_spec(storage, sweep.name, [], options.study_url)
    params = next(t for t in sweep.study.launched() if t.number == number).user_attrs["params"]
    rows = read_record(storage, sweep.name)["prepared"]["train_rows"]
    epochs = epochs_of_search(spec, rows) if wanted.epochs is None else wanted.epochs
    seeds = fresh_seeds(sweep.study, wanted.seeds, "final training")
    overrides = [*options.as_overrides()]
    return final_sweep(spec, number, params, seeds, epochs, wanted.with_validation, overrides)


def _is_trained(storage: Path, final: SweepSpec, options: Options) -> bool:
    """Whether all seeds are complete, of this very training: then there is nothing to start."""
    if final.name not in recorded_names(storage):
        return False
    found = open_sweep(storage, final.name, options.study_url)
    complete = [t for t in found.leaderboard().rows if t.state == State.COMPLETE]
    budget, points = found.spec.budget, found.spec.space.points_to_evaluate
    return (
        len(complete) >= final.budget.n_trials
        and budget.num_train_epochs == final.budget.num_train_epochs
        and found.spec.trial.data == final.trial.data
        and len(points) >= len(final.space.points_to_evaluate)
    )


def _told(final: SweepSpec, number: int, name: str, with_validation: bool) -> str:
    rows = "all training rows"
    if with_validation:
        rows = "all training and validation rows (measured on the test rows)"
    return (
        f"Trial {number:04d} of {name}: {final.budget.num_train_epochs:.3g} epochs of {rows}, "
        f"under {final.budget.n_trials} seeds"
    )


def _export(storage: Path, final: SweepSpec, wanted: Wanted, options: Options) -> int:
    trained = open_sweep(storage, final.name, options.study_url)
    board = trained.leaderboard()
    assert board.final is not None
    exported = write_export(trained, board.final.median, None, wanted.to, test=True)
    tell_again(trained)
    if options.json:
        record = {"sweep": final.name, "final": board.to_json()["final"]}
        print_json({**record, "median": board.final.median, "exported": str(exported.path)})
        return ExitCode.DONE
    for sentence in board.final.words():
        say(sentence)
    tell_export(exported, final.name)
    return ExitCode.DONE
