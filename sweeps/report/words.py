"""The verdict on a sweep in sentences, as the board has them too."""

from sweeps.results.leaderboard import Leaderboard
from sweeps.results.reports import summary


def sentences(board: Leaderboard) -> list[str]:
    """What to believe of the sweep, the most important sentence first."""
    told = [summary(board)]
    if board.confirmation is not None:
        told += board.confirmation.words()[1:]
    return told
