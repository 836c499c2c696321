"""Imports an object by its reference `package.module:name`, which a light module may hold."""

import importlib
from typing import Any


def load(reference: str) -> Any:
    """The object behind `package.module:name`."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
