"""PEFT's other methods: one table, one section for each, by the fields of PEFT's configurations.

A test holds the table against the installed PEFT: every one of its types is either one of the named
methods, in `OTHERS`, or in `REFUSED`.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, create_model

from peft_jobs.spec.adapters.section import UNQUANTIZED, Adapter, TargetedAdapter
from peft_jobs.spec.fields import NonNegative

Options = dict[str, bool | int | float | tuple[str, ...]]

OTHERS: dict[str, Options] = {
    "adamss": {"r": 100, "num_subspaces": 5, "subspace_rank": 1},
    "beft": {},
    "boft": {"boft_block_size": 4, "boft_dropout": 0.0},
    "c3a": {"block_size": 256},
    "deft": {"r": 8, "decomposition_method": ("relu", "qr"), "para": False, "deft_dropout": 0.0},
    "delora": {"r": 8, "delora_lambda": 15, "module_dropout": 0.0},
    "fourierft": {"n_frequency": 1000, "scaling": 150.0, "random_loc_seed": 777},
    "frod": {"frod_dropout": 0.0, "sparse_rate": 0.01},
    "glora": {"r": 8},
    "gralora": {"r": 32, "hybrid_r": 0, "alpha": 64, "gralora_dropout": 0.0, "gralora_k": 2},
    "hira": {"r": 32, "hira_dropout": 0.0},
    "hra": {"r": 8, "apply_GS": False},
    "osf": {},
    "peanut": {"r": 32, "depth": 0, "act_fn": ("relu", "gelu", "silu"), "scaling": 1.0},
    "psoft": {"r": 32, "psoft_dropout": 0.0},
    "pvera": {"r": 256, "pvera_dropout": 0.0, "d_initial": 0.1, "projection_prng_key": 0},
    "randlora": {"r": 32, "randlora_alpha": 640, "randlora_dropout": 0.0, "sparse": False},
    "road": {"variant": ("road_1", "road_2", "road_4"), "group_size": 64},
    "shira": {"r": 32},
    "supertuning": {"sparsity": 0.99, "select_top": True},
    "tinylora": {"r": 2, "u": 64, "weight_tying": 0.0, "tinylora_dropout": 0.0},
    "vblora": {"r": 4, "num_vectors": 256, "vector_length": 256, "topk": 2, "vblora_dropout": 0.0},
    "waveft": {"n_frequency": 2592, "scaling": 25.0, "random_loc_seed": 777},
}
"""The fields that make a difference, and PEFT's own defaults; several words are the choices, with
PEFT's default first."""
REFUSED: dict[str, str] = {
    "adaption_prompt": "it changes Llama's attention alone, and saves without its task's head",
    "cartridge": "it compresses a given context, and learns no task from rows",
    "cpt": "its context tokens are given by hand, for one prompt",
    "lily": "it shares matrices among targets of one name, and targets are named in full here",
    "multitask_prompt_tuning": "it needs a task number in every row",
    "poly": "it needs a task number in every row",
    "shadow": "PEFT 0.21 puts objects into Llama's layers that transformers 5 cannot take",
    "trainable_tokens": "it trains given tokens of the vocabulary alone",
    "unilora": "on a small model its loss does not fall (PEFT 0.21.2)",
    "xlora": "it mixes adapters that were trained before",
}
"""Why the other methods of PEFT are not offered."""
QUANTIZABLE = (
    *("beft", "boft", "c3a", "fourierft", "gralora", "hira", "pvera", "randlora", "road"),
    *("vblora", "waveft"),
)
"""Those of `OTHERS` that work on a quantized base."""
UNMERGEABLE = ("beft",)
"""Those that cannot become part of every base: it adds to biases, which some layers lack."""


def _field(value: Any) -> tuple[Any, Any]:
    """Type and default of a field, from an entry of `OTHERS`."""
    if isinstance(value, bool):
        return bool, value
    if isinstance(value, int):
        return Annotated[int, Field(ge=0, le=2**32)], value
    if isinstance(value, float):
        return NonNegative, value
    return Literal[value], value[0]


class _Other(TargetedAdapter):
    model_config = ConfigDict(use_attribute_docstrings=False)  # there is no source to read


def _section(method: str, options: Options) -> type[Adapter]:
    fields: dict[str, Any] = {"method": (Literal[method], ...)}
    fields |= {name: _field(value) for name, value in options.items()}
    words = "".join(word.capitalize() for word in method.split("_"))
    section: type[Adapter] = create_model(
        f"{words}Spec",
        __base__=_Other,
        __module__=__name__,
        __doc__=f"PEFT's `{method}`, by PEFT's own defaults.",
        SCHEMES=(ClassVar[tuple[str, ...]], TargetedAdapter.SCHEMES)
        if method in QUANTIZABLE
        else (ClassVar[tuple[str, ...]], UNQUANTIZED),
        MERGES=(ClassVar[bool], method not in UNMERGEABLE),
        **fields,
    )
    return section


SECTIONS: dict[str, type[Adapter]] = {
    method: _section(method, options) for method, options in OTHERS.items()
}
