"""Exit codes, and exceptions turned into plain lines: a person's mistake is no traceback."""

from enum import IntEnum
from typing import Any

import typer
from typer.core import TyperGroup

from sweeps.cli.screen import err
from sweeps.errors import LeaseLost, StudyGone, Unavailable


class ExitCode(IntEnum):
    DONE = 0
    FAILED = 1
    """The sweep failed, or `doctor` found a problem."""
    BAD_INPUT = 2
    UNAVAILABLE = 69
    """No cluster or database where they should be; EX_UNAVAILABLE of sysexits.h."""
    INTERRUPTED = 130


class Commands(TyperGroup):
    """All commands, with one place for what goes wrong in any of them."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            err.print("Interrupted.")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except Exception as error:  # the edge: what is not the person's mistake goes on
            text = bad_input(error)
            if text is None:
                raise
            err.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
            unavailable = isinstance(error, Unavailable)
            code = ExitCode.UNAVAILABLE if unavailable else ExitCode.BAD_INPUT
            raise typer.Exit(code) from error


def bad_input(error: Exception) -> str | None:
    """What to tell a person whose input caused `error`; None if it is no such error."""
    from pydantic import ValidationError

    from peft_jobs import DataError, Fenced, SpecError
    from peft_jobs.spec.mistakes import mistakes
    from search_spaces import SpaceError
    from sweeps.redact import redact

    cause = getattr(error, "cause", None)  # of Ray's errors, whose own text is a remote traceback
    if isinstance(cause, Exception):
        error = cause
    if isinstance(error, ValidationError):
        return redact("\n".join(str(m).removeprefix("file: ") for m in mistakes(error)))
    if isinstance(error, SpecError | DataError | SpaceError | Fenced | LeaseLost | StudyGone):
        return redact(str(error))
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        if error.filename is None or error.strerror is None:
            return redact(str(error))
        return f"{error.filename}: {error.strerror}"
    return None
