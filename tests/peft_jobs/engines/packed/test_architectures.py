"""A packed trial is the trial alone on one architecture as on another: tiny ones of random weights.

Two trials of other ranks and scales, one with dropout in its adapter, take three steps on a base
that drops wherever it can; the losses of each are those of a plain loop of PEFT and torch.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from peft_jobs.engines.packed.eligibility import unpackable
from peft_jobs.engines.solo.solo_engine import SoloEngine
from tests.peft_jobs.conftest import NUM_TOKENS, save_tokenizer
from tests.peft_jobs.engines.packed.conftest import CAUSAL, CLASSES
from tests.peft_jobs.engines.packed.test_evaluations import alone, composed, together
from tests.support.packed_runs import Driven, plain_losses
from tests.support.seq2seq_families import FAMILIES, save

STEPS = 3
AT_ONCE = {
    *("Llama", "Gemma2", "Phi", "GPT2", "GPTNeoX", "OPT", "Bloom", "Falcon", "Mpt", "Qwen3"),
    *("Bert", "DistilBert", "Roberta", "DebertaV2", "T5", "BART", "Marian"),
}
"""Architectures of the quick tests; the others are slow ones, for their number."""
CLOSE = 1e-5
SIZES = {
    "vocab_size": NUM_TOKENS,
    "initializer_range": 0.1,
    "init_std": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 32,
    "n_embd": 32,
    "d_model": 32,
    "dim": 32,
    "embedding_size": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "hidden_dim": 48,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rotary_dim": 4,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "max_seq_len": 64,
}
RATES = dict.fromkeys(
    (
        *("dropout", "hidden_dropout", "hidden_dropout_prob", "attention_dropout", "resid_pdrop"),
        *("attention_probs_dropout_prob", "embd_pdrop", "attn_pdrop", "activation_dropout"),
        *("embed_dropout", "resid_dropout", "residual_dropout", "embedding_dropout", "mlp_dropout"),
        *("classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout", "dropout_rate"),
    ),
    0.2,
)
"""Of whatever the architecture drops itself."""
LAYERED = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4}
DECODERS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 4},
    "Qwen2": {},
    "Qwen3": {},
    "Gemma": {},
    "Gemma2": LAYERED,
    "Gemma3Text": LAYERED,
    "Phi": {},
    "Phi3": {},
    "GPT2": {},
    "GPTNeo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "GPTNeoX": {},
    "GPTJ": {},
    "GPTBigCode": {},
    "OPT": {"word_embed_proj_dim": 32},
    "Bloom": {},
    "Falcon": {},
    "Mpt": {},
    "StableLm": {},
    "Starcoder2": {},
    "Olmo": {},
    "Olmo2": {},
    "Olmo3": LAYERED,
    "Cohere": {},
    "Cohere2": LAYERED,
    "Granite": {},
    "Glm": {},
    "Glm4": {},
    "SmolLM3": {},
    "Helium": {},
    "Persimmon": {},
    "Nemotron": {},
    "Exaone4": LAYERED,
    "CodeGen": {},
    "BioGpt": {},
    "XGLM": {"attention_heads": 4},
    "Ernie4_5": {},
    "SeedOss": {},
    "Arcee": {},
    "Apertus": {},
    "DiffLlama": {"attention_dropout": 0.0},
}
TAGS = {"type": "token_classification"}
SPANS = {"type": "question_answering", "stride": 2, "max_answer_tokens": 3}
TRANSLATION = {"type": "seq2seq", "source": "{q}", "target": "{a}"}
WORDS = ("the", "a", "red", "green", "cat", "dog", "bird", "sees", "likes")
ENCODERS: dict[str, dict[str, Any]] = {
    "Bert": {},
    "DistilBert": {},
    "Albert": {},
    "MPNet": {},
    "Ernie": {},
    "Roberta": {},
    "XLMRoberta": {},
    "Electra": {},
    "DebertaV2": {},
    "Deberta": {},
    "Camembert": {},
    "SqueezeBert": {},
    "RoFormer": {},
}


@pytest.fixture(scope="module")
def random_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(name, own sizes, whether it reads both ways) -> a folder with a random model."""

    def build(name: str, own: dict[str, Any], is_encoder: bool) -> Path:
        folder = tmp_path_factory.mktemp(name)
        sizes = SIZES | RATES | own
        if name == "Falcon":  # says it itself
            del sizes["head_dim"]
        config = getattr(transformers, f"{name}Config")(**sizes)
        auto = transformers.AutoModel if is_encoder else transformers.AutoModelForCausalLM
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            auto.from_config(config).save_pretrained(folder)
        save_tokenizer(folder, bert=is_encoder)
        return folder

    return build


def few_at_once(names: Iterable[str]) -> list[Any]:
    slow = pytest.mark.slow
    return [pytest.param(name, marks=[] if name in AT_ONCE else [slow]) for name in sorted(names)]


def check_packed_is_alone(cache: str, specs: list[Any]) -> None:
    base, data = SoloEngine(cache, threads=1).check(specs[0])
    for spec in specs:
        assert unpackable(spec, base) is None
    expected = [plain_losses(base, data.train, spec, STEPS) for spec in specs]
    with Driven(base, data.train, specs, STEPS) as driven:
        found = driven.to_end()
    for one, other in zip(expected, found, strict=True):
        assert other == pytest.approx(one, rel=CLOSE)
        assert len(set(one)) == STEPS


def two_trials(trial: Any, common: dict[str, Any], base: Path, task: dict[str, Any]) -> list[Any]:
    first = trial({**common, "model.name_or_path": str(base), "task": task}).with_params(
        {
            "adapter.target_modules": "all-linear",
            "adapter.r": 4,
            "adapter.lora_dropout": 0.2,
            "training.learning_rate": 1e-2,
            "training.per_device_train_batch_size": 2,
            "training.max_steps": STEPS,
        }
    )
    other = {"seed": 1, "adapter.r": 10, "adapter.lora_dropout": 0.0, "adapter.use_rslora": True}
    return [first, first.with_params(other)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with words and their tags; questions, and where in a context their answers are."""
    rows = []
    for i in range(40):
        words = [WORDS[(i + 2 * j) % 9] for j in range(2 + i % 5)]
        answer = {"text": [words[1]], "answer_start": [len(words[0]) + 1]}
        row: dict[str, Any] = {
            "tokens": words,
            "tags": [("O", "B-x", "I-x")[len(word) % 3] for word in words],
        }
        row |= {"question": WORDS[i % 9], "context": " ".join(words), "answers": answer}
        rows.append(row)
    path = tmp_path_factory.mktemp("written") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("task", [TAGS, SPANS], ids=["tags", "spans"])
@pytest.mark.parametrize("name", ["Bert", "DistilBert"])
def test_tags_and_spans(
    cache: str, trial: Any, common: Any, random_base: Any, written: Path, name: str, task: Any
) -> None:
    folder = random_base(name, {}, True)
    on_rows = {**common, "data.train": {"path": str(written)}}
    check_packed_is_alone(cache, two_trials(trial, on_rows, folder, task))


@pytest.mark.parametrize("kind", ["tags", "spans", "targets"])
def test_every_task_is_evaluated_together_as_alone(
    cache: str, trial: Any, common: Any, random_base: Any, written: Path, tmp_path: Path, kind: str
) -> None:
    task = {"tags": TAGS, "spans": SPANS, "targets": TRANSLATION}[kind]
    on_rows = common if kind == "targets" else {**common, "data.train": {"path": str(written)}}
    folder = save("T5", tmp_path / "t5") if kind == "targets" else random_base("Bert", {}, True)
    specs = [
        spec.with_params({"evaluation.per_device_eval_batch_size": 4})
        for spec in two_trials(trial, on_rows, folder, task)
    ]
    base, data = SoloEngine(cache, threads=1).check(specs[0])
    with composed(base, data, specs, tmp_path) as rounds:
        slots = rounds.composition.trials
        for _ in range(2):
            rounds.make(slots)
        rounds.evaluations.make(slots, "validation")
        found = [together(slot) for slot in slots]
        for slot, metrics in zip(slots, found, strict=True):
            assert metrics == pytest.approx(alone(slot), rel=CLOSE)
    assert found[0] != found[1]


ALONE = {"Switch": "routes tokens to experts", "LED": "pads rows itself"}
"""Families that are not packed, and why."""


@pytest.mark.parametrize("family", few_at_once(FAMILIES.keys() - ALONE.keys()))
def test_encoders_with_decoders(
    cache: str, trial: Any, common: Any, tmp_path: Path, family: str
) -> None:
    folder = save(family, tmp_path / "base")
    check_packed_is_alone(
        cache, two_trials(trial, common, folder, TRANSLATION | FAMILIES[family][3])
    )


@pytest.mark.parametrize("name", few_at_once(DECODERS))
def test_decoders(cache: str, trial: Any, common: Any, random_base: Any, name: str) -> None:
    folder = random_base(name, DECODERS[name], False)
    check_packed_is_alone(cache, two_trials(trial, common, folder, CAUSAL))


@pytest.mark.parametrize("name", few_at_once(ENCODERS))
def test_encoders(cache: str, trial: Any, common: Any, random_base: Any, name: str) -> None:
    folder = random_base(name, ENCODERS[name], True)
    check_packed_is_alone(cache, two_trials(trial, common, folder, CLASSES))


@pytest.mark.parametrize("family", ALONE)
def test_families_that_are_not_packed(
    cache: str, trial: Any, common: Any, tmp_path: Path, family: str
) -> None:
    folder = save(family, tmp_path / "base")
    spec, _ = two_trials(trial, common, folder, TRANSLATION)
    base, _ = SoloEngine(cache, threads=1).check(spec)
    assert ALONE[family] in str(unpackable(spec, base))


@pytest.mark.parametrize("name", ["GPT2", "Bloom", "Bert", "T5"])
def test_other_forms(
    cache: str, trial: Any, common: Any, random_base: Any, tmp_path: Path, name: str
) -> None:
    """DoRA, (IA)3, VeRA and MiSS beside each other, on fused and transposed layers too."""
    task: dict[str, Any] = {"GPT2": CAUSAL, "Bloom": CAUSAL, "Bert": CLASSES}.get(name, TRANSLATION)
    if name == "T5":
        folder = save(name, tmp_path / "base")
    else:
        folder = random_base(name, (DECODERS | ENCODERS)[name], name in ENCODERS)
    first, second = two_trials(trial, common, folder, task)
    specs = [spec.with_params({"adapter.use_dora": True}) for spec in (first, second)]
    vera = {"method": "vera", "r": 12, "vera_dropout": 0.2, "d_initial": 0.5}
    others = [{"method": "ia3"}, vera | {"target_modules": "all-linear"}]
    if name != "GPT2":  # PEFT's MiSS takes no Conv1D
        others.append({"method": "miss", "r": 12, "target_modules": "all-linear"})
    for adapter in others:
        tree = {**first.model_dump(mode="json"), "adapter": adapter, "seed": 2}
        specs.append(type(first).model_validate(tree))
    check_packed_is_alone(cache, specs)
