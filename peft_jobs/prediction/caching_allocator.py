"""What CUDA's caching allocator reserves for a sequence of allocations: fragments and all.

Sizes and rules are those of c10/cuda/CUDACachingAllocator.cpp (torch 2.13) by default settings:
blocks are rounded to 512 bytes; up to 1 MiB they are cut from segments of 2 MiB, below 10 MiB from
segments of 20 MiB, and larger ones get a segment of their own, rounded to 2 MiB; the smallest free
block that is large enough is taken, and what is left of it is cut off; neighbours that are free
become one again. Nothing goes back to the device but by `empty_cache`.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass

MIB = 1 << 20
BLOCK_BYTES = 512
SMALL_BYTES, SMALL_SEGMENT_BYTES = MIB, 2 * MIB
LARGE_FROM_BYTES, LARGE_SEGMENT_BYTES, ROUND_LARGE_BYTES = 10 * MIB, 20 * MIB, 2 * MIB


def rounded(size: int, to: int = BLOCK_BYTES) -> int:
    return -(-size // to) * to


@dataclass(eq=False)
class Block:
    """A part of a segment."""

    address: int
    size: int
    pool: int
    before: "Block | None" = None
    after: "Block | None" = None
    is_free: bool = False


class CachingAllocator:
    """Grows `reserved` by what is asked of it."""

    def __init__(self) -> None:
        self.reserved = 0
        self._next_address = 0
        self._free: tuple[list[tuple[int, int, Block]], ...] = ([], [])
        """Free blocks of small and large segments, by size, then address."""

    def allocate(self, size: int) -> Block:
        """A block of `size` bytes, at least one."""
        size = rounded(max(1, size))
        pool = int(size > SMALL_BYTES)
        free = self._free[pool]
        at = bisect_left(free, (size, -1), key=lambda entry: entry[:2])
        if at < len(free):
            block = free.pop(at)[2]
        else:
            block = Block(self._next_address, _segment(size), pool)
            self.reserved += block.size
            self._next_address += block.size
        block.is_free = False
        left = block.size - size
        if left > SMALL_BYTES if pool else left >= BLOCK_BYTES:
            rest = Block(block.address + size, left, pool, block, block.after, is_free=True)
            if block.after is not None:
                block.after.before = rest
            block.size, block.after = size, rest
            self._put(rest)
        return block

    def free(self, block: Block) -> None:
        """Give a block back."""
        block.is_free = True
        for other in (block.before, block.after):
            if other is not None and other.is_free:
                self._take(other)
                first, second = (other, block) if other is block.before else (block, other)
                first.size += second.size
                first.after = second.after
                if second.after is not None:
                    second.after.before = first
                block = first
        self._put(block)

    def empty_cache(self) -> None:
        """Give the segments back of which nothing is in use."""
        for free in self._free:
            kept = []
            for entry in free:
                block = entry[2]
                if block.before is None and block.after is None:
                    self.reserved -= block.size
                else:
                    kept.append(entry)
            free[:] = kept

    def _put(self, block: Block) -> None:
        insort(self._free[block.pool], (block.size, block.address, block), key=lambda e: e[:2])

    def _take(self, block: Block) -> None:
        free = self._free[block.pool]
        at = bisect_left(free, (block.size, block.address), key=lambda entry: entry[:2])
        free.pop(at)


def _segment(size: int) -> int:
    if size <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if size < LARGE_FROM_BYTES:
        return LARGE_SEGMENT_BYTES
    return rounded(size, ROUND_LARGE_BYTES)
