"""Every method on the tiny Llama: its fields, what they may be changed to, and hand-made counts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SHAPES = {
    **dict.fromkeys(("q_proj", "o_proj"), (64, 64)),
    **dict.fromkeys(("k_proj", "v_proj"), (64, 32)),
    **dict.fromkeys(("gate_proj", "up_proj"), (64, 128)),
    "down_proj": (128, 64),
}
"""(in, out) features of a layer's linear modules."""
LAYERS, HIDDEN, KEYS = 2, 64, 32


def each(count: Callable[[int, int], float], *modules: str) -> int:
    """The sum of `count(in, out)` over all layers' modules, all of them if none is named."""
    return LAYERS * int(sum(count(*SHAPES[name]) for name in modules or SHAPES))


@dataclass
class Example:
    """`fields` of the adapter, its number of trainable parameters, and for each field another value
    that must make a difference."""

    method: str
    count: int
    fields: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)
    starts_as_base: bool = True
    """Whether the fresh adapter changes nothing yet."""

    @property
    def params(self) -> dict[str, Any]:
        named = {f"adapter.{name}": value for name, value in self.fields.items()}
        return {"adapter.method": self.method, **named}


def lora(count: int, **fields: Any) -> Example:
    return Example("lora", count, fields)


def low_rank(r: int, *modules: str) -> int:
    return each(lambda i, o: r * (i + o), *modules)


EXAMPLES = [
    Example(
        "lora",
        low_rank(4, "q_proj", "v_proj"),
        {"r": 4, "lora_dropout": 0.1, "target_modules": "attention-qv"},
        {
            "r": 2,
            "lora_alpha": 32,
            "lora_dropout": 0.3,
            "use_rslora": True,
            "use_dora": True,
            "init_lora_weights": "gaussian",
            "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"q_proj": 2},
            "layers_to_transform": [1],
            "target_modules": ["q_proj"],
            "modules_to_save": ["lm_head"],
        },
    ),
    lora(low_rank(3, "up_proj"), r=3, use_rslora=True, target_modules=["up_proj"]),
    lora(
        low_rank(2, "down_proj") + 64 * 128,
        r=2,
        target_modules=["down_proj"],
        modules_to_save=["lm_head"],
    ),
    lora(low_rank(4) + each(lambda i, o: o), r=4, use_dora=True),
    lora(low_rank(4), r=4, init_lora_weights="orthogonal"),
    lora(low_rank(4), r=4, init_lora_weights="pissa"),
    lora(low_rank(4), r=4, init_lora_weights="pissa_niter_4", lora_dropout=0.1),
    lora(
        low_rank(4) + 64 * 128,
        r=4,
        init_lora_weights="olora",
        use_rslora=True,
        modules_to_save=["lm_head"],
    ),
    lora(low_rank(4), r=4, init_lora_weights="corda"),
    lora(low_rank(4), r=4, init_lora_weights="eva", eva_config={"rho": 1.0}),
    Example(
        "lora",
        low_rank(4),
        {"r": 4, "init_lora_weights": "loftq"},
        starts_as_base=False,
    ),
    lora(
        LAYERS * (2 * (64 + 64) + 4 * (64 + 32)) // 2,
        target_modules=["q_proj", "k_proj"],
        r=4,
        rank_pattern={"q_proj": 2},
        alpha_pattern={"k_proj": 1},
        layers_to_transform=[0],
    ),
    Example(
        "adalora",
        each(lambda i, o: 4 * (i + o + 1)),
        {"init_r": 4, "target_r": 3, "tinit": 0, "tfinal": 1},
        {
            "init_r": 5,
            "target_r": 1,
            "lora_alpha": 8,
            "lora_dropout": 0.3,
            "tinit": 3,
            "tfinal": 5,
            "deltaT": 2,
            "orth_reg_weight": 5.0,
            "layers_to_transform": [1],
            "target_modules": "attention",
        },
    ),
    Example(
        "ia3",
        LAYERS * (32 + 32 + 128),
        {},
        {"target_modules": "all-linear", "feedforward_modules": []},
    ),
    Example("ln_tuning", HIDDEN * (2 * LAYERS + 1), {}, {"target_modules": ["input_layernorm"]}),
    Example(
        "prompt_tuning",
        5 * HIDDEN,
        {"num_virtual_tokens": 5},
        {
            "num_virtual_tokens": 3,
            "prompt_tuning_init": "SAMPLE_VOCAB",
            "modules_to_save": ["lm_head"],
        },
        starts_as_base=False,
    ),
    Example(
        "prompt_tuning",
        4 * HIDDEN,
        {
            "num_virtual_tokens": 4,
            "prompt_tuning_init": "TEXT",
            "prompt_tuning_init_text": "the cat sees",
        },
        {"prompt_tuning_init_text": "a dog"},
        starts_as_base=False,
    ),
    Example(
        "p_tuning",
        5 * HIDDEN + (HIDDEN + 1) * 16 + (16 + 1) * 16 + (16 + 1) * HIDDEN,
        {"num_virtual_tokens": 5, "encoder_hidden_size": 16},
        {
            "num_virtual_tokens": 3,
            "encoder_hidden_size": 8,
            "encoder_reparameterization_type": "LSTM",
        },
        starts_as_base=False,
    ),
    Example(
        "p_tuning",
        # Two directions of one layer: four gates with two biases each; then two linear layers.
        5 * HIDDEN + 2 * 4 * 8 * (HIDDEN + 8 + 2) + (16 + 1) * 16 + (16 + 1) * HIDDEN,
        {
            "num_virtual_tokens": 5,
            "encoder_hidden_size": 8,
            "encoder_reparameterization_type": "LSTM",
            "encoder_num_layers": 1,
        },
        {"encoder_num_layers": 2},
        starts_as_base=False,
    ),
    Example(
        "p_tuning",
        5 * HIDDEN
        + 2 * 4 * 8 * (HIDDEN + 8 + 2)
        + 2 * 4 * 8 * (16 + 8 + 2)
        + (16 + 1) * 16
        + (16 + 1) * HIDDEN,
        {
            "num_virtual_tokens": 5,
            "encoder_hidden_size": 8,
            "encoder_reparameterization_type": "LSTM",
            "encoder_dropout": 0.1,
        },
        {"encoder_dropout": 0.5},
        starts_as_base=False,
    ),
    Example(
        "prefix_tuning",
        5 * KEYS + (KEYS + 1) * 16 + (16 + 1) * LAYERS * 2 * KEYS,
        {"num_virtual_tokens": 5, "encoder_hidden_size": 16},
        {"num_virtual_tokens": 3, "encoder_hidden_size": 8, "prefix_projection": False},
        starts_as_base=False,
    ),
    Example(
        "p_tuning_v2",
        5 * LAYERS * 2 * KEYS,
        {"num_virtual_tokens": 5},
        {"num_virtual_tokens": 3},
        starts_as_base=False,
    ),
    Example(
        "bottleneck",
        LAYERS * 2 * ((HIDDEN + 1) * 8 + (8 + 1) * HIDDEN),
        {"reduction_factor": 8, "placement": "houlsby", "adapter_dropout": 0.1},
        {
            "reduction_factor": 4,
            "placement": "pfeiffer",
            "adapter_dropout": 0.5,
            "non_linearity": "tanh",
            "modules_to_save": ["lm_head"],
        },
        starts_as_base=False,
    ),
    Example(
        "loha",
        2 * low_rank(4),
        {"r": 4},
        {
            "r": 2,
            "alpha": 16,
            "rank_dropout": 0.5,
            "module_dropout": 0.5,
            "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"q_proj": 2},
            "layers_to_transform": [1],
        },
    ),
    Example(
        "lokr",
        # 64 is 8 x 8, 32 is 4 x 8, 128 is 8 x 16; a factor of more than twice the rank is split.
        LAYERS * (2 * (64 + 2 * 16) + 2 * (32 + 2 * 16) + 2 * (64 + 2 * 24) + (64 + 2 * 24)),
        {"r": 2},
        {
            "r": 1,
            "alpha": 16,
            "rank_dropout": 0.5,
            "module_dropout": 0.5,
            "rank_pattern": {"q_proj": 1},
            "alpha_pattern": {"q_proj": 2},
            "decompose_both": True,
            "decompose_factor": 4,
            "layers_to_transform": [1],
        },
    ),
    Example(
        "lokr",
        LAYERS * (2 * (64 + 2 * 16) + 2 * (32 + 2 * 16) + 2 * (64 + 2 * 24) + (64 + 2 * 24)),
        {"r": 2, "rank_dropout": 0.5},
        {"rank_dropout_scale": True},
    ),
    Example(
        "oft",
        each(lambda i, o: i / 16 * 16 * 15 / 2),
        {"oft_block_size": 16},
        {
            "oft_block_size": 8,
            "coft": True,
            "block_share": True,
            "use_cayley_neumann": False,
            "num_cayley_neumann_terms": 2,
            "layers_to_transform": [1],
        },
    ),
    Example(
        "oft",
        each(lambda i, o: i / 16 * 16 * 15 / 2),
        {"oft_block_size": 16, "coft": True},
        {"eps": 1e-2},
    ),
    Example(
        "vera",
        each(lambda i, o: o + 8),
        {"r": 8, "vera_dropout": 0.1},
        {
            "r": 4,
            "vera_dropout": 0.5,
            "d_initial": 0.5,
            "projection_prng_key": 3,
            "layers_to_transform": [1],
        },
    ),
    Example(
        "miss",
        each(lambda i, o: 8 * o),
        {"r": 8},
        {"r": 4, "miss_dropout": 0.5, "init_weights": "bat", "layers_to_transform": [1]},
    ),
    Example(
        "miss",
        each(lambda i, o: 8 * 4),
        {"r": 8, "init_weights": "mini", "mini_r": 4},
        {"mini_r": 2},
    ),
    Example(
        "full",
        2 * 128 * 64 + HIDDEN * (2 * LAYERS + 1) + each(lambda i, o: i * o),
        {},
        {"train_embeddings": False},
    ),
    Example(
        "adamss",
        each(lambda i, o: 3 * 2 * 16 + 2 * o),
        {"r": 16, "num_subspaces": 3, "subspace_rank": 2},
        {"r": 8, "num_subspaces": 2, "subspace_rank": 1},
    ),
    Example("beft", each(lambda i, o: o)),
    Example(
        "boft",
        each(lambda i, o: i * 8 + o),
        {"boft_block_size": 8},
        {"boft_block_size": 4, "boft_dropout": 0.5},
    ),
    Example("c3a", each(lambda i, o: i * o / 32), {"block_size": 32}, {"block_size": 16}, False),
    Example(
        "deft",
        low_rank(4),
        {"r": 4},
        {"r": 2, "decomposition_method": "qr", "para": True, "deft_dropout": 0.5},
    ),
    Example(
        "delora",
        low_rank(4) + each(lambda i, o: 1),
        {"r": 4},
        {"r": 2, "delora_lambda": 3, "module_dropout": 0.5},
    ),
    Example(
        "fourierft",
        each(lambda i, o: 50),
        {"n_frequency": 50},
        {"n_frequency": 40, "scaling": 50.0, "random_loc_seed": 1},
        False,
    ),
    Example(
        "frod",
        each(lambda i, o: i + int(0.01 * i * i)),
        {},
        {"frod_dropout": 0.5, "sparse_rate": 0.02},
    ),
    Example("glora", 2 * low_rank(4), {"r": 4}, {"r": 2}),
    Example(
        "gralora",
        low_rank(8),
        {"r": 8},
        {"r": 4, "hybrid_r": 4, "alpha": 16, "gralora_dropout": 0.5, "gralora_k": 4},
    ),
    Example("hira", low_rank(4), {"r": 4}, {"r": 2, "hira_dropout": 0.5}),
    Example("hra", each(lambda i, o: 4 * i), {"r": 4}, {"r": 2, "apply_GS": True}),
    Example("osf", each(lambda i, o: min(i, o) / 2 * (i + o + 1))),
    Example(
        "peanut", low_rank(4), {"r": 4}, {"r": 2, "depth": 1, "act_fn": "gelu", "scaling": 3.0}
    ),
    Example(
        "psoft", each(lambda i, o: 8 * 7 / 2 + 2 * 8), {"r": 8}, {"r": 4, "psoft_dropout": 0.5}
    ),
    Example(
        "pvera",
        each(lambda i, o: o + 2 * 8),
        {"r": 8},
        {"r": 4, "pvera_dropout": 0.5, "d_initial": 0.5, "projection_prng_key": 3},
    ),
    Example(
        "randlora",
        each(lambda i, o: min(i, o) / 4 * (4 + min(i, o))),
        {"r": 4},
        {"r": 8, "randlora_alpha": 64, "randlora_dropout": 0.5, "sparse": True},
    ),
    Example(
        "road", each(lambda i, o: o), {"group_size": 32}, {"variant": "road_2", "group_size": 16}
    ),
    Example("shira", low_rank(4), {"r": 4}, {"r": 2}),
    Example(
        "supertuning",
        each(lambda i, o: 0.5 * i * o),
        {"sparsity": 0.5},
        {"sparsity": 0.25, "select_top": False},
    ),
    Example(
        "tinylora",
        each(lambda i, o: 8),
        {"u": 8},
        {"u": 4, "r": 4, "weight_tying": 1.0, "tinylora_dropout": 0.5},
    ),
    Example(
        "vblora",
        16 * 32 + each(lambda i, o: 4 * (i + o) / 32 * 16),
        {"num_vectors": 16, "vector_length": 32},
        {"num_vectors": 8, "vector_length": 16, "r": 2, "topk": 1, "vblora_dropout": 0.5},
        False,
    ),
    Example(
        "waveft",
        each(lambda i, o: 50),
        {"n_frequency": 50},
        {"n_frequency": 40, "scaling": 50.0, "random_loc_seed": 1},
    ),
]
