"""LoftQ (Li et al. 2023, arXiv 2310.08659) on a base that is quantized already.

A and B hold the largest part of what the quantization has lost: one step of the paper's algorithm
1, as in PEFT's `replace_lora_weights_loftq`, which works on a GPU alone and leaves the scale out.
The base itself stays as it is.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils.hub import cached_file

from peft_jobs.base.architecture import location
from peft_jobs.base.loading import Base
from peft_jobs.base.quantization import weight_of
from peft_jobs.errors import SpecError
from peft_jobs.randomness import key
from peft_jobs.spec import TrialSpec
from peft_jobs.spec.adapters import LoraSpec

EXACT = 1024
"""Side of a matrix up to which all of its singular values are computed, in less than a second."""
ITERATIONS = 16
"""Of subspaces (Halko et al. 2009, arXiv 0909.4061, algorithm 4.4)."""


def check_base(base: Base, adapter: LoraSpec) -> None:
    """Raise SpecError if LoftQ is asked for and the checkpoint is quantized already."""
    if adapter.init_lora_weights == "loftq" and base.quantization.get("from_checkpoint"):
        raise SpecError(
            "adapter.init_lora_weights: loftq needs the weights before quantization, and the "
            f"checkpoint is quantized already ({base.quantization['scheme']}); give the checkpoint "
            "before quantization, or another initialisation"
        )


def factors(
    base: Base, spec: TrialSpec, module: str, r: int, scale: float
) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r] with scale * B A nearest to (original - quantized) weight."""
    layer: Any = base.model.get_submodule(f"{module}.base_layer")
    kept = weight_of(layer).float()
    lost = original_weight(base, spec, module).to(kept) - kept
    left, values, right = largest(lost, r, key("loftq", spec.seed, module))
    root = (values / scale).sqrt()
    return root[:, None] * right, left * root


def largest(matrix: Tensor, r: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Its `r` largest singular values, with their vectors: [out, r], [r], [r, in].

    Those of a matrix with both sides above EXACT are found by iterations from vectors drawn with
    `seed`, as a whole decomposition would take minutes of a GPU for each such layer. What a
    quantization has lost is nearly as large in all directions: these hold 99 % of what the best do.
    """
    if min(matrix.shape) <= EXACT:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left[:, :r], values[:r], right[:r]
    with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
        torch.manual_seed(seed)
        left, values, right = torch.svd_lowrank(matrix, q=2 * r + 16, niter=ITERATIONS)
    return left[:, :r], values[:r], right[:, :r].T


def original_weight(base: Base, spec: TrialSpec, module: str) -> Tensor:
    """The weight of a module as it is in the checkpoint's safetensors files."""
    name = f"{module}.weight"
    names = (name, name.removeprefix(f"{base.model.base_model_prefix}."))
    for file in _files(spec):
        with safe_open(file, framework="pt", device="cpu") as tensors:
            found = next((name for name in names if name in tensors.keys()), None)  # noqa: SIM118
            if found is not None:
                weight: Tensor = tensors.get_tensor(found)
                return weight
    raise SpecError(
        f"adapter.init_lora_weights: loftq needs the original weight of {module}, and the "
        f"checkpoint of {spec.model.name_or_path} has none of that name"
    )


def _files(spec: TrialSpec) -> list[Path]:
    where = location(spec.model)
    for name in ("model.safetensors", "model.safetensors.index.json"):
        found = cached_file(
            where,
            name,
            revision=spec.model.revision,
            _raise_exceptions_for_missing_entries=False,
        )
        if found is not None:
            path = Path(found)
            one = path.suffix == ".safetensors"
            return [path] if one else sorted(path.parent.glob("*.safetensors"))
    raise SpecError(
        f"adapter.init_lora_weights: loftq needs safetensors of {spec.model.name_or_path}"
    )
