"""What can be sampled: search spaces as pure data, in Optuna's dialect, without Optuna.

`load_space` reads the mapping under `space:` of a sweep file; `SearchSpace` declares one in Python.
"""

from search_spaces.errors import SpaceError
from search_spaces.functions import FunctionSpace
from search_spaces.parameters import Categorical, Derived, Fixed, Float, Int, Parameter
from search_spaces.presets import PRESETS, ReadSpace, load_space
from search_spaces.space import SearchSpace, Space
from search_spaces.suggest import GivenSuggest, RandomSuggest, Suggest
from search_spaces.values import Params, Scalar, Value

__all__ = [
    "PRESETS",
    "Categorical",
    "Derived",
    "Fixed",
    "Float",
    "FunctionSpace",
    "GivenSuggest",
    "Int",
    "Parameter",
    "Params",
    "RandomSuggest",
    "ReadSpace",
    "Scalar",
    "SearchSpace",
    "Space",
    "SpaceError",
    "Suggest",
    "Value",
    "load_space",
]
