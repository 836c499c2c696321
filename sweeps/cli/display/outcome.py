"""What came of a launch: the leaderboard, the winner, what to do next, what went wrong."""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape

from peft_jobs import State
from sweeps.cli.display.table import print_board, print_sentences
from sweeps.cli.exit_codes import ExitCode
from sweeps.cli.screen import out, say
from sweeps.records.layout import SweepFolder
from sweeps.results.reports import to_json
from sweeps.run import Outcome
from sweeps.spec import SweepSpec


def record(spec: SweepSpec, outcome: Outcome, interrupted: Sequence[int]) -> dict[str, Any]:
    """The outcome as plain JSON values."""
    folder, best = SweepFolder.of(spec), outcome.leaderboard.chosen
    return {
        "sweep": spec.name,
        "folder": folder.location_of(folder.path),
        "status": outcome.status,
        "reason": outcome.reason,
        "interrupted": sorted(interrupted),
        "undelivered": outcome.undelivered,
        "adapter": _adapter(folder, best.adapter) if best and best.adapter else None,
        "leaderboard": to_json(outcome.leaderboard, outcome.verdict),
    }


def tell(spec: SweepSpec, outcome: Outcome) -> None:
    """The leaderboard, where the winner lies, what to do next."""
    board, folder = outcome.leaderboard, SweepFolder.of(spec)
    out.print(f"\nSweep {spec.name}: {outcome.verdict.headline}\n", markup=False)
    if board.rows:
        print_board(board, out)
        print_sentences(outcome.verdict.sentences(with_steps=False)[1:], out)
        out.print()
    if board.chosen is None or outcome.status != "complete" or board.final is not None:
        return
    if board.chosen.adapter is not None:
        adapter = _adapter(folder, board.chosen.adapter)
        out.print(f"The winner's adapter is in [bold]{escape(adapter)}[/]\n", soft_wrap=True)
    where = folder.option
    told = "train that configuration on all the data, under three seeds; export the median"
    train = {f"peft-sweep train {spec.name}{where}": told}
    steps = {f"peft-sweep export {spec.name}{where}": "write the winner, scored again as written"}
    if board.confirmation is None:
        told = "train the best ones again, under fresh seeds: is that the winner?"
        steps = {f"peft-sweep confirm {spec.name}{where}": told} | steps
    steps |= train
    if spec.tracking.enabled and spec.tracking.uri is None:
        steps = {f"peft-sweep ui{where}": "browse the trials in MLflow"} | steps
    width = max(map(len, steps))
    out.print("Next:")
    for command, what in steps.items():
        out.print(f"  {escape(f'{command:{width}}')}  [dim]{what}[/]", soft_wrap=True)


def _adapter(folder: SweepFolder, relative: str) -> str:
    return folder.location_of(folder.path / relative)


def tell_status(
    spec: SweepSpec, again: str, outcome: Outcome, interrupted: Sequence[int]
) -> ExitCode:
    """Whatever is not as hoped, in a line each, and the exit code."""
    if outcome.undelivered:
        say(
            f"{outcome.undelivered} records could not be delivered to the tracking server; they "
            f"are kept, and `{again}` delivers them.",
            style="yellow",
        )
    if outcome.status == "interrupted":
        names = ", ".join(f"{number:04d}" for number in sorted(interrupted)) or "none"
        say(f"Interrupted; trials left unfinished: {names}.", style="yellow")
        say(f"`{again}` takes the sweep up again.")
        return ExitCode.INTERRUPTED
    failed = [row for row in outcome.leaderboard.rows if row.state == State.FAIL]
    if outcome.status == "failed":
        say(f"The sweep failed: {outcome.reason}.", style="red")
        for row in failed[:3]:
            first = (row.error or "").partition("\n")[0]
            say(f"  trial {row.number:04d} ({row.kind}): {first}")
            say(f"    peft-sweep show {spec.name} {row.number}{SweepFolder.of(spec).option}")
    elif outcome.reason is not None:
        say(f"It ended early: {outcome.reason}.")
    if failed:
        count = f"{len(failed)} trial{'s' if len(failed) > 1 else ''}"
        say(
            f"{count} failed; `peft-sweep retry {spec.name} --failed{SweepFolder.of(spec).option}` "
            "runs them again."
        )
    return ExitCode.FAILED if outcome.status == "failed" else ExitCode.DONE
