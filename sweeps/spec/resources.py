"""The section `resources`: where trials run, and how many at a time."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from peft_jobs.engines import ENGINES
from peft_jobs.spec.fields import Count, NonNegative, Positive, Section
from peft_jobs.spec.mistakes import suggest
from peft_jobs.spec.units import Seconds


class ResourcesSpec(Section):
    backend: Literal["ray", "inline"] = "ray"
    """`inline` runs the trials in this process, one host, without Ray (a debugger works)."""
    address: str | None = None
    """Ray cluster to join: `auto` or HOST:PORT; by default a cluster of this machine alone."""
    engine: str = "packed"
    """`packed` trains several trials of a host in one step where that can be done and pays, and
    the others alone; `solo` trains all of them alone."""
    engine_options: dict[str, Any] = Field(default_factory=dict)
    slots_per_gpu: Count | Literal["auto"] = "auto"
    """Trials at a time on a GPU, or on a node without any: what the packed engine may train in one
    step. `auto`: as many as a host finds worth it before the first trial, and on all hosts together
    at most a quarter of the trials that are left if sampler or pruner learn from trials, but one on
    each host at least."""
    gpus_per_trial: NonNegative | Literal["auto"] = "auto"
    """`auto`: a GPU's share of a slot where the cluster has GPUs, otherwise 0. Above 1, and then
    whole: the base is spread over so many GPUs of a node, which no other job may use, and trials
    are trained alone."""
    accelerator_type: str | None = None
    """Kind of GPU that trials need, in a cluster with several: `A100`, as `ray status` names it."""
    cpus_per_trial: Positive | Literal["auto"] = "auto"
    """`auto`: a slot's share of a GPU's cores, or of all cores of the smallest node without any."""
    threads_per_host: Count | Literal["auto"] = "auto"
    """Threads of a host on a node without GPUs, whose cores are shared by as many hosts as that
    makes; each holds the base. `auto`: what makes the most steps on all cores together, measured
    before the first trial: where a small base gains nothing from the second thread, hosts of one.
    `inline` is one host. On a CPU, hosts of `auto` compute with fewer threads while others use the
    cores; sums are then added in another order, so a loss may differ in its last digits."""
    stall_seconds: Seconds | None = 3600.0
    """Seconds without a step of training or a batch of an evaluation, after which a host that has
    something to do is taken to hang. It is ended, and its trials go on from their checkpoints in
    the next one. null waits for ever. A host or a proxy that does not answer is ended after a
    minute in any case."""
    max_concurrent: Count | None = None
    """Trials at a time; by default as many as the resources hold."""

    @property
    def slots(self) -> int:
        """Trials at a time on one host; 1 as long as none was asked."""
        return 1 if self.slots_per_gpu == "auto" else self.slots_per_gpu

    @property
    def chooses_threads(self) -> bool:
        """Whether how many threads a host has on a CPU is left to it."""
        return self.threads_per_host == "auto" and "threads" not in self.engine_options

    @property
    def spreads_base(self) -> bool:
        """Whether a base is divided among several GPUs."""
        return self.gpus_per_trial != "auto" and self.gpus_per_trial > 1

    @model_validator(mode="after")
    def _known_engine(self) -> Self:
        if self.engine not in ENGINES:
            raise ValueError(f"unknown engine {self.engine!r}{suggest(self.engine, ENGINES)}")
        gpus = self.gpus_per_trial
        if gpus != "auto" and gpus > 1 and gpus != int(gpus):
            raise ValueError(f"gpus_per_trial above 1 must be whole, got {gpus:g}")
        if self.address is not None and self.address.startswith("ray://"):
            raise ValueError(
                "ray:// addresses (Ray Client) would move the driver to the cluster's head: "
                "run peft-sweep on a machine of the cluster and give `auto` or HOST:PORT"
            )
        if self.address is not None and self.address.startswith(("http://", "https://")):
            raise ValueError(
                f"{self.address} is the address of a job server: `peft-sweep submit` takes it"
            )
        return self
