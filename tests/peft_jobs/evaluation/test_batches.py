"""Examples are evaluated among those of like lengths, longest first."""

import random

from datasets import Dataset

from peft_jobs.evaluation.scoring import batches, longest_first


def rows(lengths: list[tuple[int, int]]) -> Dataset:
    return Dataset.from_dict(
        {"input_ids": [[5] * i for i, _ in lengths], "labels": [[5] * t for _, t in lengths]}
    )


def test_inputs_count_first_then_targets_then_the_order_of_the_rows() -> None:
    data = rows([(2, 1), (3, 1), (3, 4), (2, 1), (3, 1)])
    assert longest_first(data) == [2, 1, 4, 0, 3]
    assert longest_first(data.select([3, 2, 1])) == [1, 2, 0]


def test_a_row_has_one_label_where_the_task_is_no_text() -> None:
    data = Dataset.from_dict({"input_ids": [[5], [5, 5], [5]], "label": [9, 0, 9]})
    assert longest_first(data) == [1, 0, 2]


def test_targets_of_like_lengths_are_decoded_together() -> None:
    source = random.Random(0)
    lengths = [(source.randint(4, 8), source.randint(1, 40)) for _ in range(200)]
    found = list(batches(rows(lengths), 8))
    assert sorted(len(e["input_ids"]) for b in found for e in b) == sorted(i for i, _ in lengths)
    for part, most in (("input_ids", 1.05), ("labels", 1.4)):
        padded = sum(len(batch) * max(len(e[part]) for e in batch) for batch in found)
        assert padded <= most * sum(len(e[part]) for batch in found for e in batch)
