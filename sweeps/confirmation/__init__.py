"""Proof of the winner: candidates trained again under fresh seeds, and what that says.

candidates   which configurations are worth repeating
racing       which of them is repeated next
rounds       what the study says of both: the next round
seeds        means, intervals and ties over common seeds
confirmed    what to train, and how sure that is
"""
