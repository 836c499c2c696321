"""The files of an attempt: reports as data, and in words in its log."""

import logging
import threading
from pathlib import Path

import pytest

from peft_jobs import Progress
from peft_jobs.training import attempt_files


def progress(step: int, **metrics: float) -> Progress:
    return Progress(step=step, samples=8 * step, tokens=64 * step, metrics=metrics)


def test_a_report_is_a_line_of_data_and_one_in_words(tmp_path: Path) -> None:
    with attempt_files.logged(tmp_path):
        for report in (progress(1, loss=2.5), progress(200, loss=1 / 3, accuracy=0.75)):
            attempt_files.append(tmp_path, report)
        attempt_files.append(tmp_path, progress(201))
    data = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [Progress.model_validate_json(line).step for line in data] == [1, 200, 201]
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.partition(" INFO ")[2] for line in lines] == [
        "step 1, 8 samples: loss 2.5",
        "step 200, 1,600 samples: loss 0.333333, accuracy 0.75",
        "step 201, 1,608 samples: a checkpoint",
    ]


def test_a_file_that_cannot_be_written_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    attempt_files.append(tmp_path, progress(3, loss=1.0))
    assert "lacks the report of step 3" in caplog.text


def test_blocks_of_two_threads_that_overlap_keep_their_lines_and_leave_the_level(
    tmp_path: Path,
) -> None:
    """The writer's thread logs while the one that trains does: the first to begin ends first."""
    ours, entered, left = logging.getLogger("peft_jobs"), threading.Event(), threading.Event()
    before = ours.level

    def write() -> None:
        with attempt_files.logged(tmp_path / "writer"):
            entered.set()
            assert left.wait(60)
            ours.info("written")

    writer = threading.Thread(target=write)
    with attempt_files.logged(tmp_path / "trainer"):
        writer.start()
        assert entered.wait(60)
        ours.info("trained")
    left.set()
    writer.join()
    lines = {
        name: (tmp_path / name / "log.txt").read_text().split(": ")[1:]
        for name in ("writer", "trainer")
    }
    assert lines == {"writer": ["written\n"], "trainer": ["trained\n"]}
    assert ours.level == before
