"""The order in which a trial sees its rows: epochs laid end to end, each shuffled by the seed."""

from collections.abc import Iterator
from itertools import count, islice

from torch.utils.data import Sampler

from peft_jobs.randomness import epoch_order


class SampleOrder(Sampler[int]):
    """Row numbers for a whole trial: the epochs' orders, one after the other."""

    def __init__(self, seed: int, num_rows: int, num_samples: int, first: int = 0) -> None:
        """`first` of the `num_samples` are left out: they were seen."""
        self.seed, self.num_rows, self.num_samples = seed, num_rows, num_samples
        self.first = min(first, num_samples)

    def __iter__(self) -> Iterator[int]:
        epoch, skipped = divmod(self.first, self.num_rows)
        epochs = (epoch_order(self.seed, epoch, self.num_rows).tolist() for epoch in count(epoch))
        rows = (row for order in epochs for row in order)
        return islice(rows, skipped, skipped + len(self))

    def __len__(self) -> int:
        return self.num_samples - self.first
