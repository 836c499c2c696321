"""ENGINES: what can run trials on a host, by name; the heavy ones are imported only when chosen.

solo        one trial at a time with transformers.Trainer; the reference
packed      several trials of a host in one step
simulated   trials with an analytic loss, without torch
"""

import inspect
import os
import typing
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from peft_jobs.errors import SpecError
from peft_jobs.host.job import Engine
from peft_jobs.references import load

ENGINES: dict[str, str] = {
    "solo": "peft_jobs.engines.solo.solo_engine:SoloEngine",
    "packed": "peft_jobs.engines.packed.packed_engine:PackedEngine",
    "simulated": "peft_jobs.engines.simulated:SimulatedEngine",
}
_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Where torch 2.13 looks for the settings of its GPU allocator (`CUDAAllocatorConfig.h`)."""
_SETTINGS = (
    (_ALLOCATOR, "expandable_segments:True"),  # padded lengths change from step to step
    # Turns before a thread of OpenMP sleeps: as fast as libgomp's own 300,000 on a quiet machine,
    # and where others use the cores too, less is waited for a thread that has none.
    (("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"), "10000"),
)
"""What the first of some variables is set to if none of them is, before an engine imports torch."""


def load_engine(name: str, options: dict[str, Any]) -> Engine:
    """The engine `name`, built with its own `options`; SpecError for options it does not take."""
    for names, value in _SETTINGS:
        if not any(name in os.environ for name in names):
            os.environ[names[0]] = value
    engine = load(ENGINES[name])
    try:
        inspect.signature(engine).bind(**options)
    except TypeError as error:
        raise SpecError(f"resources.engine_options: the {name} engine {error}") from None
    kinds = typing.get_type_hints(engine.__init__)
    for key, value in options.items():
        try:
            TypeAdapter(kinds[key]).validate_python(value)
        except ValidationError as error:
            told = error.errors()[0]["msg"].removeprefix("Input should be ")
            raise SpecError(
                f"resources.engine_options.{key}: must be {told}, got {value!r}"
            ) from None
    return cast(Engine, engine(**options))
