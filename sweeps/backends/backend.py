"""The protocol of a backend, and the one that a sweep names."""

from collections.abc import Callable, Sequence
from typing import Protocol

from peft_jobs import TrialSpec
from peft_jobs.host.job import Prepared
from sweeps.backends.inline import InlineBackend
from sweeps.driver.driver import Driver
from sweeps.records.inputs import functions, modules
from sweeps.records.layout import SweepFolder
from sweeps.spec import SweepSpec
from sweeps.spec.plan import trials_at_once


class Backend(Protocol):
    """What executes trials: inline or Ray."""

    def prepare(
        self,
        spec: TrialSpec,
        variants: Sequence[TrialSpec],
        on_tick: Callable[[], object] = lambda: None,
        on_stage: Callable[[str], object] = lambda _: None,
    ) -> Prepared: ...
    def run(self, driver: Driver) -> None: ...
    def close(self) -> None: ...


def make_backend(spec: SweepSpec, folder: SweepFolder) -> Backend:
    """The backend that the sweep names; Ray is imported only if it is that one."""
    options = dict(spec.resources.engine_options)
    resources = spec.resources
    if resources.engine == "packed" and resources.spreads_base:
        resources = resources.model_copy(update={"engine": "solo"})
    if resources.engine in ("solo", "packed"):
        options.setdefault("cache_dir", folder.location_of(folder.cache))
        options.setdefault("checkpoint_seconds", spec.checkpoints.every_seconds)
        options.setdefault("yield_threads", resources.chooses_threads)
    if resources.engine == "packed" and resources.slots_per_gpu != "auto":
        options.setdefault("num_slots", resources.slots)
    if resources.backend == "inline":
        if resources.engine in ("solo", "packed") and resources.threads_per_host != "auto":
            options.setdefault("threads", resources.threads_per_host)
        return InlineBackend(resources.engine, options)
    from sweeps.backends.ray.ray_backend import RayBackend

    marker = None if resources.address is None else folder.write_shared_marker()
    at_once = trials_at_once(spec, 0)
    return RayBackend(resources, options, modules(functions(spec)), marker, at_once)
