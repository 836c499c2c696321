"""What the last evaluation of a trial has found of each validation row, as a pandas frame."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from peft_jobs import SpecError
from peft_jobs.storage.attempt_folder import ROWS_FILE
from peft_jobs.storage.object_store import local_copy
from sweeps.errors import Unavailable
from sweeps.records.layout import SweepFolder
from sweeps.study.study import SweepStudy

if TYPE_CHECKING:
    import pandas

log = logging.getLogger(__name__)


def rows_reader(
    study: SweepStudy, folder: SweepFolder
) -> "Callable[[int], pandas.DataFrame | None]":
    """`read_rows` by a trial's number; None also for what cannot be read now, which is logged."""
    attempts = {t.number: int(t.user_attrs.get("attempt", 0)) for t in study.trials()}

    def read(number: int) -> "pandas.DataFrame | None":
        try:
            return read_rows(folder, number, attempts[number])
        except (SpecError, Unavailable) as error:
            log.warning("no interval for trial %d: %s", number, error)
            return None

    return read


def read_rows(folder: SweepFolder, number: int, attempt: int) -> "pandas.DataFrame | None":
    """One row per example, in the columns of `peft_jobs.evaluation.row_scores`, with the index
    that examples have in every trial on the same data.

    `attempt` is the trial's last; one that was stopped as it was taken up has measured nothing, and
    its forerunner counts. None if no evaluation left any. Raises Unavailable if a store does not
    answer, and SpecError for a file that cannot be read.
    """
    import pandas

    for each in range(attempt, 0, -1):
        path = folder.attempt(number, each) / ROWS_FILE
        try:
            with local_copy(path) as file:
                return pandas.read_parquet(file)
        except FileNotFoundError:
            continue
        except ValueError as error:  # pyarrow's for what is no Parquet file
            raise SpecError(f"{folder.location_of(path)} cannot be read: {error}") from error
        except OSError as error:
            raise Unavailable(f"{folder.location_of(path)} cannot be read: {error}") from error
    return None
