"""What the allocator reserves, against hand-made sequences."""

from peft_jobs.prediction.caching_allocator import MIB, CachingAllocator


def test_segments_have_the_sizes_of_cuda_s_allocator() -> None:
    allocator = CachingAllocator()
    expected = 0
    for size, segment in ((1, 2 * MIB), (2 * MIB, 20 * MIB), (21 * MIB, 22 * MIB)):
        allocator.allocate(size)
        expected += segment
        assert allocator.reserved == expected


def test_a_free_block_is_taken_again_and_neighbours_become_one() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.allocate(6 * MIB) for _ in range(3)]
    assert allocator.reserved == 20 * MIB
    for block in (blocks[1], blocks[0]):
        allocator.free(block)
    allocator.allocate(12 * MIB)
    assert allocator.reserved == 20 * MIB
    allocator.allocate(6 * MIB)
    assert allocator.reserved == 40 * MIB, "only 2 MiB are left of the first segment"


def test_only_segments_without_a_block_go_back() -> None:
    allocator = CachingAllocator()
    whole, part = allocator.allocate(30 * MIB), allocator.allocate(6 * MIB)
    other = allocator.allocate(6 * MIB)
    for block in (whole, part):
        allocator.free(block)
    allocator.empty_cache()
    assert allocator.reserved == 20 * MIB
    allocator.free(other)
    allocator.empty_cache()
    assert allocator.reserved == 0
