"""`python -m peft_jobs run trial.json [key=value ...]`: one trial alone; `predict`: what it takes.

No Ray, no Optuna, no MLflow: the same host and engine that a sweep uses, in this process.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from peft_jobs.errors import DataError, DeviceLost, SpecError
from peft_jobs.host.gpus import find_gpu
from peft_jobs.host.job import Engine
from peft_jobs.host.messages import Assignment, End, Message, Report
from peft_jobs.host.prediction import Lengths
from peft_jobs.host.result import Kind, Progress, State, TrialResult
from peft_jobs.host.trial_host import TrialHost
from peft_jobs.phases import Phases
from peft_jobs.spec import TrialSpec
from peft_jobs.spec.mistakes import mistakes
from peft_jobs.storage.attempt_folder import ATTEMPTS_FOLDER, LOG_FILE, RESULT_FILE, TRIAL_FILE
from peft_jobs.storage.files import write_json

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
EXAMPLE = """example:
  python -m peft_jobs run runs/demo/trials/0007/trial.json adapter.r=16 seed=1 --out runs/again"""


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 done, 1 the trial failed, 2 bad input, 130 interrupted."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        spec = read_spec(options.trial, options.overrides)
        if options.command == "predict":
            print(predicted(spec, options))
            return DONE
        out = options.out or Path("runs") / "alone" / spec.fingerprint()[:12]
        if (out / RESULT_FILE).exists():
            raise SpecError(f"{out} already holds a result: give another folder with --out")
        result = run(spec, out, options)
    except (SpecError, DataError, DeviceLost) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED if isinstance(error, DeviceLost) else BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    if result.state is not State.COMPLETE:
        print(f"error: {result.kind}: {result.error}", file=sys.stderr)
        print(f"log: {out / ATTEMPTS_FOLDER / '1' / LOG_FILE}", file=sys.stderr)
    if options.json:
        print(json.dumps({"state": result.state, "metrics": result.metrics, "out": str(out)}))
    elif result.state is State.COMPLETE:
        print(f"done: {_metrics(result.metrics)}\nresult: {out / RESULT_FILE}")
    if result.kind is Kind.DATA:
        return BAD_INPUT
    return DONE if result.state is State.COMPLETE else FAILED


def read_spec(path: Path, overrides: list[str]) -> TrialSpec:
    """The trial in a JSON (or YAML) file with `key=value` set, values as YAML scalars.

    Raises SpecError, with a line for each mistake.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        params = dict(_override(text) for text in overrides)
        return TrialSpec.model_validate(content).with_params(params)
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{path} is neither JSON nor YAML: {error}") from error
    except ValidationError as error:
        lines = map(str, mistakes(error, TrialSpec))
        raise SpecError("\n".join([f"{path} is no trial:", *lines])) from error
    except (SpecError, ValueError) as error:
        raise SpecError(str(error)) from error


def predicted(spec: TrialSpec, options: argparse.Namespace) -> str:
    """What the trial will take of a device, as JSON. Raises SpecError."""
    from peft_jobs.prediction.predict import predict

    device = find_gpu(options.device)
    longest = spec.data.max_length if options.longest_tokens is None else options.longest_tokens
    [found] = predict([spec], device, Lengths.of(longest), slots=options.slots)
    return found.model_dump_json()


def run(spec: TrialSpec, out: Path, options: argparse.Namespace) -> TrialResult:
    """Run the trial on a host of its own; writes trial.json and result.json into `out`.

    Raises SpecError and DataError before training, DeviceLost in it, KeyboardInterrupt when
    interrupted.
    """
    from peft_jobs.engines.solo.solo_engine import SoloEngine

    cache_dir = options.cache or out.parent / "cache"
    engine = SoloEngine(str(cache_dir), options.threads, score_test=options.test)
    if options.test and spec.data.test is None:
        raise SpecError("--test: the trial gives no test split (data.test)")
    phases = Phases()
    engine.check(spec, phases=phases)
    write_json(out / TRIAL_FILE, spec.model_dump(mode="json"))
    result = _result(engine, spec, out / ATTEMPTS_FOLDER / "1")
    result = result.model_copy(update={"seconds": result.seconds | phases.seconds})
    write_json(out / RESULT_FILE, result.model_dump(mode="json"))
    return result


def _result(engine: Engine, spec: TrialSpec, directory: Path) -> TrialResult:
    host = TrialHost(engine)
    try:
        host.submit(Assignment(0, 1, spec.to_json(), str(directory)))
        for message in _messages(host):
            match message:
                case Report(progress=progress):
                    print(_line(progress), file=sys.stderr)
                case End(result=result):
                    return result
        raise KeyboardInterrupt
    finally:
        host.close()


def _messages(host: TrialHost) -> Iterator[Message]:
    """What the host tells of its one trial, until it has ended."""
    seen = 0
    while True:
        message = host.next_report(0, 1, seen)
        if message is None:
            continue
        yield message
        if not isinstance(message, Report):
            return
        seen = message.seq


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m peft_jobs", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command", metavar="run|predict")
    run = commands.add_parser(
        "run",
        help="run one trial alone",
        description="Run one trial alone, as a sweep would.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    predict = commands.add_parser("predict", help="what a trial will take of a GPU, as JSON")
    predict.add_argument("--device", required=True, help='e.g. "RTX 4090", or its memory: 24GB')
    predict.add_argument("--slots", type=int, default=1, help="trials that share a step (1)")
    predict.add_argument("--longest-tokens", type=int, help="of the longest row (data.max_length)")
    for command in (run, predict):
        command.add_argument("trial", type=Path, help="trial.json of a sweep or an export")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. adapter.r=16")
    run.add_argument("--out", type=Path, help="folder for the result (runs/alone/<fingerprint>)")
    run.add_argument("--cache", type=Path, help="folder of tokenised data (beside --out)")
    run.add_argument("--threads", type=int, help="CPU threads (torch's choice)")
    run.add_argument("--test", action="store_true", help="also score the test split, at the end")
    run.add_argument("--json", action="store_true", help="print the final metrics as JSON")
    return parser


def _override(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise SpecError(f"an override is written key=value, got {text!r}")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise SpecError(f"{name}: {value!r} is no YAML value") from error


def _line(progress: Progress) -> str:
    place = f"rung {progress.rung}" if progress.rung is not None else f"step {progress.step}"
    return f"{place}, {progress.samples} samples: {_metrics(progress.metrics)}"


def _metrics(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


if __name__ == "__main__":
    sys.exit(main())
