"""Optuna's samplers and pruners, by the names of a sweep file.

samplers             SAMPLERS, and the section sampler
pruners              PRUNERS, and the section pruner
at_random            which parameters a sampler does not model
arguments            arguments of Optuna's classes, checked
survival             how far trials get before a pruner stops them, tried beforehand
successive_halving   Optuna's successive halving at a constant cost
"""
