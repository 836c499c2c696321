"""What a sweep is: `SweepSpec`, how it is read from a file, and what may be wrong with it.

sweep           SweepSpec and its small sections
resources       the section resources
metrics         names and natural directions of metrics
yaml_file       the text of a sweep file, and key=value overrides
loading         from a file to a SweepSpec, all mistakes at once
other_names     other tools' names for what a sweep file has
checks          contradictions between sections
space_checks    what is wrong with the space, seen from the trial
sample_points   seeded random points of a space, for checks
plan            what a sweep will ask of its trials: variants, horizon, rungs
final           a final training as a sweep: one configuration on all the data
identity        what makes two launches the same sweep
"""

from sweeps.spec.resources import ResourcesSpec
from sweeps.spec.sweep import (
    BudgetSpec,
    CheckpointsSpec,
    ObjectiveSpec,
    SweepSpec,
    TrackingSpec,
)

__all__ = [
    "BudgetSpec",
    "CheckpointsSpec",
    "ObjectiveSpec",
    "ResourcesSpec",
    "SweepSpec",
    "TrackingSpec",
]
