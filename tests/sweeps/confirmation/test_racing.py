"""Who is repeated next."""

from sweeps.confirmation.racing import Race

RACE = Race([4, 7, 9], seeds=[101, 102, 103], max_repeats=20)


def test_all_candidates_have_the_first_two_seeds_first_seed_by_seed() -> None:
    assert RACE.next({}) == [(4, 101), (7, 101), (9, 101), (4, 102), (7, 102), (9, 102)]
    half = {4: {101: 1.0}, 7: {101: 1.0}}
    assert RACE.next(half) == [(9, 101), (4, 102), (7, 102), (9, 102)]


def test_then_only_those_that_are_not_told_apart() -> None:
    two = {4: {101: 1.0, 102: 1.01}, 7: {101: 1.005, 102: 1.0}, 9: {101: 3.0, 102: 3.01}}
    assert RACE.next(two) == [(4, 103), (7, 103)]
    three = {4: two[4] | {103: 1.0}, 7: two[7] | {103: 1.0}, 9: two[9]}
    assert RACE.next(three) == [], "the seeds are used up"


def test_a_race_that_is_decided_ends() -> None:
    two = {4: {101: 1.0, 102: 1.01}, 7: {101: 2.0, 102: 2.01}, 9: {101: 3.0, 102: 3.01}}
    assert RACE.next(two) == []


def test_no_seed_is_given_to_some_of_the_tied_only() -> None:
    short = Race([4, 7, 9], seeds=[101, 102, 103], max_repeats=8)
    even = {number: {101: 1.0, 102: 1.1} for number in (4, 7, 9)}
    assert short.next(even) == [], "eight repeats hold no third round of three"


def test_a_candidate_that_fails_is_out() -> None:
    assert RACE.next({4: {101: 1.0}}, failed=[7]) == [(9, 101), (4, 102), (9, 102)]
