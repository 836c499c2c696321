"""What a sweep says: what to train, how sure that is, what it cost, what to do next.

conclusion   Verdict, and how it follows from a leaderboard and its study
rivals       what the chosen configuration is better than, by how much, how sure
bounds       which bounds of the space it touches
spending     what the sweep has cost, and what pruning saved
sentences    all of that in plain words
"""

from sweeps.results.verdict.bounds import Bound
from sweeps.results.verdict.conclusion import Choice, Verdict, verdict_of
from sweeps.results.verdict.rivals import Comparison
from sweeps.results.verdict.spending import Spending

__all__ = ["Bound", "Choice", "Comparison", "Spending", "Verdict", "verdict_of"]
