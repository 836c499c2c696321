"""The plan of a sweep as it was printed, kept in the storage's cache for the sweep's report."""

import json
import logging
import time
from collections.abc import Mapping

from peft_jobs.storage.files import write_whole
from sweeps.records.layout import SweepFolder
from sweeps.spec import SweepSpec
from sweeps.spec.identity import planned_key

log = logging.getLogger(__name__)


def keep_plan(spec: SweepSpec, words: Mapping[str, str]) -> None:
    """Write what was told of a sweep; one in a store has no such file. What goes wrong is logged:
    a plan can be made where nothing can be written."""
    folder = SweepFolder.of(spec)
    if folder.in_store:
        return
    kept = {"key": planned_key(spec), "at": time.time(), "words": dict(words)}
    try:
        folder.plan.parent.mkdir(parents=True, exist_ok=True)
        write_whole(folder.plan, json.dumps(kept, indent=2))
    except OSError as error:
        log.warning("the plan is not kept for the report: %s", error)
