"""Arguments and options that several commands share."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand


class NamesEntries(TyperCommand):
    """A command whose help names the entries of a table, written `{module:TABLE}`.

    Only this command's help imports it.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from peft_jobs.references import load

        def names(table: re.Match[str]) -> str:
            *others, last = load(table[1])
            return f"{', '.join(others)} or {last}" if others else str(last)

        for parameter in self.params:
            told = getattr(parameter, "help", None)
            if told:
                parameter.help = re.sub(r"\{([\w.]+:\w+)\}", names, told)  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


def listed(text: str) -> list[str]:
    """The words of an option that takes several: `A,B`."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _storage(text: str) -> Path:
    from sweeps.records.layout import storage_folder

    return storage_folder(text)


SweepFile = Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="The sweep file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Entries of the file to replace, by dotted name."),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The sweep's name; see `list`.")]
Storage = Annotated[
    Path,
    typer.Option(
        help="Folder or object store that holds the sweeps.",
        metavar="DIR|URL",
        parser=_storage,
    ),
]
StudyUrl = Annotated[
    str | None,
    typer.Option(
        envvar="PEFT_SWEEPS_STUDY_URL",
        metavar="URL",
        help="Database of the study, with its credentials; best given by the environment.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Address = Annotated[
    str | None,
    typer.Option(metavar="ADDR", help="Ray cluster to join: `auto` or HOST:PORT."),
]
JobServer = Annotated[
    str,
    typer.Option(
        envvar="RAY_API_SERVER_ADDRESS",
        metavar="URL",
        help="Ray's job server, http://HOST:8265; RAY_AUTH_TOKEN holds its token.",
    ),
]
OfJob = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Ray's job server, for a sweep that was submitted to it."),
]
Inline = Annotated[
    bool, typer.Option("--inline", help="Without Ray, in this process; debuggers work.")
]
Moved = Annotated[
    bool, typer.Option("--moved", help="The sweep's storage was elsewhere, and is here now.")
]
Plain = Annotated[bool, typer.Option("--plain", help="Plain lines instead of the live display.")]
Supervise = Annotated[
    bool,
    typer.Option(
        "--supervise/--no-supervise", help="Start the sweep's driver again when it dies or hangs."
    ),
]
_LAUNCH = {
    "address": (Address, None),
    "inline": (Inline, False),
    "plain": (Plain, False),
    "supervise": (Supervise, True),
    "moved": (Moved, False),
    "study_url": (StudyUrl, None),
    "json": (Json, False),
}


def launching(command: Callable[..., int]) -> Callable[..., None]:
    """A command that launches a sweep: it has the options of all that do, and gets them as the last
    argument, an `Options`. Its exit code is what `command` gives."""
    *own, _ = inspect.signature(command).parameters.values()
    kind = inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter(name, kind, default=default, annotation=annotation)
        for name, (annotation, default) in {"overrides": (Overrides, None), **_LAUNCH}.items()
    ]

    def launch(**given: Any) -> None:
        from sweeps.cli.commands.run import Options

        overrides = given.pop("overrides") or []
        options = Options(overrides, **{name: given.pop(name) for name in _LAUNCH})
        raise typer.Exit(command(**given, options=options))

    launch.__name__, launch.__doc__, launch.__annotations__ = command.__name__, command.__doc__, {}
    asked = inspect.Signature([*(each.replace(kind=kind) for each in own), *shared])
    launch.__signature__ = asked  # type: ignore[attr-defined]
    return launch


RUNS = Path("runs")
