"""How many slots fit a GPU: what all share is counted once, and what each takes for each."""

import pytest

from peft_jobs.device.slot_room import SlotRoom

GIGABYTE = 10**9


def test_nothing_is_known_before_a_step() -> None:
    room = SlotRoom(resident_bytes=1000)
    assert room.slots(10_000, state_bytes=100) == 1
    assert room.takes(10_000, num_slots=1, state_bytes=100)
    assert not room.takes(10_000, num_slots=2, state_bytes=200)


def test_what_is_predicted_holds_until_steps_are_measured() -> None:
    """Steps are predicted to take 300 together and 50 each; one took 400."""
    room = SlotRoom(resident_bytes=1000, predicted={2: 400, 4: 500})
    assert room.slots(10_000, state_bytes=100) == 58
    assert room.takes(10_000, 58, state_bytes=5800)
    assert not room.takes(10_000, 59, state_bytes=5900)
    room.saw(1500, num_slots=1, state_bytes=100)
    assert room.parts() == (0, 400)
    assert room.slots(10_000, state_bytes=100) == 18


def test_of_one_number_of_slots_all_is_theirs() -> None:
    room = SlotRoom(resident_bytes=1000)
    room.saw(1500, num_slots=1, state_bytes=100)
    assert room.parts() == (0, 400)
    assert room.slots(10_000, state_bytes=100) == 18
    assert room.slots(1500, state_bytes=100) == 1
    assert room.slots(1100, state_bytes=100) == 1, "one may always try"


def test_what_all_share_is_counted_once() -> None:
    """Steps take 300 together and 50 each; a slot's state is 100."""
    room = SlotRoom(resident_bytes=1000)
    for slots in (1, 2, 4):
        room.saw(1000 + 300 + slots * (50 + 100), slots, slots * 100)
    assert room.parts() == pytest.approx((300, 50))
    assert room.slots(10_000, state_bytes=100) == 58  # (10,000 - 1,300) / 150
    assert room.takes(10_000, 58, state_bytes=5800)
    assert not room.takes(10_000, 59, state_bytes=5900)
    assert not room.takes(10_000, 58, state_bytes=64 * 100), "rows that are free count too"


def test_the_line_is_the_best_one_that_no_peak_lies_above() -> None:
    """Least squares by hand: slots 1, 2, 4 took 360, 400, 500. Their means are 7/3 and 420, so the
    slope is 220 / (14/3) = 330/7; of the intercepts the first one, 360 - 330/7, is the largest."""
    room = SlotRoom(resident_bytes=0)
    for slots, beside in ((1, 360), (2, 400), (4, 500)):
        room.saw(beside, slots, 0)
        room.saw(beside - 100, slots, 0)  # a step of shorter rows
    shared, each = room.parts()
    assert each == pytest.approx(330 / 7)
    assert shared == pytest.approx(360 - 330 / 7)
    assert all(shared + k * each >= b - 1e-9 for k, b in ((1, 360), (2, 400), (4, 500)))


def test_where_more_slots_took_no_more_their_share_is_taken() -> None:
    """The longest rows came when there was one slot."""
    room = SlotRoom(resident_bytes=0)
    room.saw(900, 1, 0)
    room.saw(800, 4, 0)
    assert room.parts() == (700, 200)
    assert room.slots(2700, state_bytes=0) == 10


def test_room_for_larger_slots_is_known_before_there_is_one() -> None:
    room = SlotRoom(resident_bytes=6 * GIGABYTE)
    state = 16 * 20_000_000  # rank 8 on all linear layers of a model of 7B
    room.saw(6 * GIGABYTE + 4 * (state + GIGABYTE), 4, 4 * state)
    assert room.slots(76 * GIGABYTE, state) == 53
    assert room.slots(76 * GIGABYTE, 16 * state) == 11
    room.saw(6 * GIGABYTE + 4 * (16 * state + GIGABYTE), 4, 64 * state)
    assert room.slots(76 * GIGABYTE, state) == 53, "what a step needs has not changed"


def test_a_seven_billion_model_on_a_card_of_24_gigabytes() -> None:
    """Dequantized weights and logits take 1.2 GB whatever the number; a slot takes 0.9 GB in its
    step and 1.3 GB of state. Counted for each, as it is of the first slot alone, five would fit."""
    room, state = SlotRoom(resident_bytes=5 * GIGABYTE), int(1.3 * GIGABYTE)
    room.saw(5 * GIGABYTE + state + int(2.1 * GIGABYTE), 1, state)
    assert room.slots(22 * GIGABYTE, state) == 5
    room.saw(5 * GIGABYTE + 5 * state + int(5.7 * GIGABYTE), 5, 5 * state)
    assert room.slots(22 * GIGABYTE, state) == 7  # (22 - 5 - 1.2) / 2.2
