"""Examples, losses and metrics of the tasks, against values worked out by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_jobs.errors import DataError, SpecError
from peft_jobs.evaluation.scoring import evaluate
from peft_jobs.spec import CausalLMSpec, SequenceClassificationSpec
from peft_jobs.tasks import IGNORED, TASKS, Score
from peft_jobs.tasks.chat.template import ChatTemplate

CAUSAL = CausalLMSpec(prompt="{question}", response="{answer}")
ROWS = [
    {"question": "the cat sees", "answer": "a dog ."},
    {"question": "the bird", "answer": "likes the green tree ."},
    {"question": "a", "answer": "house"},
    {"question": "the big dog chases the cat , the", "answer": "bird sees a red house ."},
    {"question": "very good ?", "answer": "very very bad ."},
]
CHATML = (
    "{% for message in messages %}{{ '<s>' + message['role'] + ' : ' }}"
    "BODY{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant : ' }}{% endif %}"
)
PLAIN = CHATML.replace("BODY", "{{ message['content'] + ' </s>' }}")
MARKED = CHATML.replace(
    "BODY",
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + ' </s>' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + ' </s>' }}{% endif %}",
)
REWRITING = CHATML.replace(  # like Qwen3: only the last turn shows its (empty) thoughts
    "BODY",
    "{% if message['role'] == 'assistant' and loop.last %}{{ '? ? ' }}{% endif %}"
    "{{ message['content'] + ' </s>' }}",
)
TALK = [
    {"role": "user", "content": "the cat sees", "tool_calls": None},
    {"role": "assistant", "content": "a dog .", "tool_calls": None},
    {"role": "user", "content": "good ?", "tool_calls": None},
    {"role": "assistant", "content": "good bad .", "tool_calls": None},
]


@pytest.fixture
def tokenizer(tiny_llama_path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama_path)


@pytest.fixture(scope="module")
def model(tiny_llama_path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_llama_path, dtype=torch.float32).eval()


def encode(tokenizer: Any, row: dict[str, Any], spec: Any = CAUSAL, max_length: int = 64) -> Any:
    return TASKS["causal_lm"].encoder(tokenizer, spec, max_length, ())(row)


def supervised_text(tokenizer: Any, example: Any) -> str:
    kept = [token for token in example["labels"] if token != IGNORED]
    return " ".join(tokenizer.convert_ids_to_tokens(kept))


def dataset_of(examples: list[Any]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(examples)


def test_an_example_is_the_prompt_as_at_inference_then_the_response(tokenizer: Any) -> None:
    example = encode(tokenizer, ROWS[0])
    prompt = tokenizer("the cat sees")["input_ids"]
    assert prompt[0] == tokenizer.bos_token_id
    assert example["input_ids"][: len(prompt)] == prompt
    assert example["labels"][: len(prompt)] == [IGNORED] * len(prompt)
    assert supervised_text(tokenizer, example) == "a dog . </s>"
    assert example["num_bytes"] == len("a dog .")


def test_the_cut_takes_the_end_and_only_kept_bytes_count(tokenizer: Any) -> None:
    example = encode(
        tokenizer, {"question": "the", "answer": "cat \N{BLACK HEART SUIT} x"}, max_length=4
    )
    assert len(example["input_ids"]) == 4
    assert example["num_bytes"] == len("cat \N{BLACK HEART SUIT}".encode())
    assert encode(tokenizer, ROWS[0], max_length=4) is None


def test_a_text_without_context_does_not_supervise_its_first_token(tiny_bert_path: Path) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    whole = CausalLMSpec(response="{answer}")
    bare = AutoTokenizer.from_pretrained(tiny_bert_path)
    plain = PreTrainedTokenizerFast(tokenizer_object=bare.backend_tokenizer, eos_token="</s>")
    plain.backend_tokenizer.post_processor = None
    example = encode(plain, {"answer": "bird sees red"}, whole)
    assert supervised_text(plain, example) == "sees red </s>"
    assert example["num_bytes"] == len(" sees red")


def test_prompt_tokens_do_not_contribute_to_loss(tokenizer: Any, model: Any) -> None:
    task = TASKS["causal_lm"]
    examples = [encode(tokenizer, row) for row in ROWS]
    expected, tokens = 0.0, 0
    for row in ROWS:
        prompt = tokenizer(row["question"])["input_ids"]
        answer = tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
        text = [*prompt, *answer, tokenizer.eos_token_id]
        with torch.no_grad():
            likelihoods = model(torch.tensor([text])).logits[0].log_softmax(-1)
        for position in range(len(prompt), len(text)):
            expected -= likelihoods[position - 1, text[position]].item()
            tokens += 1
    batch = task.collate(examples, pad_token_id=0)
    assert task.count(batch) == tokens
    assert task.losses(model, batch).sum().item() == pytest.approx(expected, rel=1e-5)
    scores = task.scores(model, batch)
    assert [score.num_bytes for score in scores] == [len(row["answer"]) for row in ROWS]
    assert sum(score.count for score in scores) == tokens
    for score, example in zip(scores, examples, strict=True):
        alone = task.losses(model, task.collate([example], pad_token_id=0))
        assert score.loss_sum == pytest.approx(alone.item(), rel=1e-5)
        assert score.count == task.count(task.collate([example], pad_token_id=0))


def test_our_loss_is_the_loss_of_transformers(tokenizer: Any, model: Any) -> None:
    task = TASKS["causal_lm"]
    batch = task.collate([encode(tokenizer, row) for row in ROWS], pad_token_id=0)
    theirs = model(batch["input_ids"], batch["attention_mask"], labels=batch["labels"]).loss
    ours = task.losses(model, batch).sum() / task.count(batch)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_metrics_do_not_depend_on_the_batch_size(tokenizer: Any, model: Any) -> None:
    rows = dataset_of([encode(tokenizer, row) for row in ROWS * 3])
    model.train()
    found = [
        evaluate(
            model,
            TASKS["causal_lm"],
            rows,
            batch_size=batch_size,
            pad_token_id=0,
            device=torch.device("cpu"),
        )
        for batch_size in (1, 4, 100)
    ]
    assert model.training
    model.eval()
    assert set(found[0]) == {
        "validation/loss",
        "validation/perplexity",
        "validation/bits_per_byte",
    }
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


def test_perplexity_and_bits_per_byte_by_hand() -> None:
    metrics = TASKS["causal_lm"].metrics([Score(6.0, 2, 5), Score(2.0, 2, 3)])
    assert metrics == {
        "loss": 2.0,
        "perplexity": pytest.approx(math.e**2),
        "bits_per_byte": pytest.approx(8.0 / math.log(2) / 8),
    }
    assert math.isfinite(TASKS["causal_lm"].metrics([Score(1e9, 1, 1)])["perplexity"])


@pytest.mark.parametrize("template", [PLAIN, MARKED, REWRITING])
def test_every_assistant_turn_is_supervised_and_nothing_else(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    example = encode(tokenizer, {"messages": TALK}, CausalLMSpec(messages="messages"))
    thoughts = "? ? " if template == REWRITING else ""
    assert supervised_text(tokenizer, example) == f"a dog . </s> {thoughts}good bad . </s>"
    whole = tokenizer.apply_chat_template(
        [{k: m[k] for k in ("role", "content")} for m in TALK], return_dict=True
    )
    assert example["input_ids"] == whole["input_ids"]
    assert example["num_bytes"] >= len("a dog .") + len("good bad .")


@pytest.mark.parametrize("template", [PLAIN, MARKED, REWRITING])
def test_a_template_that_prints_the_date_gives_the_same_tokens_on_any_day(
    tokenizer: Any, template: str
) -> None:
    def spelled(text: str) -> str:  # the tokenizer knows digits, and no numbers
        return "{{ " + text + " | list | join(' ') }} "

    spec = CausalLMSpec(messages="messages")
    tokenizer.chat_template = spelled("'26 Jul 2024 00:00:00 % 7/26'") + template
    written = encode(tokenizer, {"messages": TALK}, spec)
    assert supervised_text(tokenizer, written)
    asked = "(strftime_now('%d %b %Y ') ~ strftime_now(format='%H:%M:%S %% %-m/%-d'))"
    tokenizer.chat_template = spelled(asked) + template
    assert encode(tokenizer, {"messages": TALK}, spec) == written
    tokenizer.chat_template = "\n \n  {% if strftime_now is defined %}a{% endif %}\n" + template
    expected = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert ChatTemplate(tokenizer, tokenizer.chat_template).render(TALK) == expected, (
        "nothing else is printed"
    )


def test_prompt_and_response_can_go_through_the_chat_template(tokenizer: Any) -> None:
    tokenizer.chat_template = PLAIN
    spec = CausalLMSpec(prompt="{question}", response="{answer}", use_chat_template=True)
    assert supervised_text(tokenizer, encode(tokenizer, ROWS[0], spec)) == "a dog . </s>"
    cut = encode(tokenizer, {"messages": TALK}, CausalLMSpec(messages="messages"), max_length=11)
    assert supervised_text(tokenizer, cut) == "a dog . </s>"[: len(supervised_text(tokenizer, cut))]
    assert len(cut["input_ids"]) == 11


def test_a_tokenizer_without_a_chat_template_is_refused(tokenizer: Any) -> None:
    with pytest.raises(SpecError, match=r"task\.messages needs a tokenizer with a chat template"):
        encode(tokenizer, {"messages": TALK}, CausalLMSpec(messages="messages"))


def test_a_template_that_hides_what_the_assistant_said_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages | length }}"
    with pytest.raises(DataError, match="drops the words of message 1"):
        encode(tokenizer, {"messages": TALK}, CausalLMSpec(messages="messages"))
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="roles must alternate"):
        encode(tokenizer, {"messages": TALK}, CausalLMSpec(messages="messages"))


@pytest.mark.parametrize(
    ("messages", "mistake"),
    [
        (None, "must hold a list of messages"),
        ([], "must hold a list of messages"),
        ([{"content": "a"}], "a role and a content"),
        ([{"role": "user", "content": "a"}], "no assistant turn"),
        ([{"role": "assistant", "content": " "}], "the response is empty"),
    ],
)
def test_cells_that_hold_no_conversation_are_named(messages: Any, mistake: str) -> None:
    found = TASKS["causal_lm"].mistake({"m": messages}, CausalLMSpec(messages="m"))
    assert found is not None
    assert mistake in found


PAIRS = SequenceClassificationSpec(
    type="sequence_classification", text="{a}", text_pair="{b}", label="label"
)


def test_pairs_carry_their_token_types(tiny_bert_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_path)
    task = TASKS["sequence_classification"]
    assert "token_type_ids" not in task.features(tokenizer, PAIRS)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    assert "token_type_ids" in task.features(tokenizer, PAIRS)
    encoder = task.encoder(tokenizer, PAIRS, 8, ("bad", "good"))
    short = encoder({"a": "cat", "b": "dog", "label": "good"})
    long = encoder({"a": "the red cat sees", "b": "a dog", "label": "bad"})
    assert short is not None
    assert long is not None
    assert short == {"input_ids": short["input_ids"], "label": 1, "token_type_ids": [0, 0, 0, 1, 1]}
    assert len(long["input_ids"]) == 8
    batch = task.collate([short, long], pad_token_id=5)
    assert batch["labels"].tolist() == [1, 0]
    assert batch["input_ids"][0].tolist() == short["input_ids"] + [5] * 3
    assert batch["attention_mask"].sum(dim=1).tolist() == [5, 8]
    with pytest.raises(DataError, match=r"label 'fine' .* not among the 2 classes"):
        encoder({"a": "cat", "b": "dog", "label": "fine"})


def test_accuracy_and_macro_f1_by_hand() -> None:
    scores = [
        Score(1.0, 3, predicted=(0, 0, 1), actual=(0, 1, 1)),
        Score(3.0, 1, predicted=(2,), actual=(1,)),
    ]
    metrics = TASKS["sequence_classification"].metrics(scores)
    # class 0: precision 1/2, recall 1, F1 2/3; class 1: 1, 1/3, 1/2; class 2: F1 0
    assert metrics == {
        "loss": 1.0,
        "accuracy": 0.5,
        "macro_f1": pytest.approx((2 / 3 + 1 / 2 + 0) / 3),
    }


def test_classification_loss_is_that_of_transformers(tiny_bert_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    task = TASKS["sequence_classification"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_path)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert_path, num_labels=3).eval()
    spec = SequenceClassificationSpec(type="sequence_classification", text="{answer}", label="n")
    encoder = task.encoder(tokenizer, spec, 64, (0, 1, 2))
    examples = [encoder(row | {"n": i % 3}) for i, row in enumerate(ROWS)]
    batch = task.collate([e for e in examples if e is not None], pad_token_id=5)
    theirs = model(**batch).loss
    assert (task.losses(model, batch).sum() / task.count(batch)).item() == pytest.approx(
        theirs.item()
    )
    scores = task.scores(model, batch)
    assert [score.actual for score in scores] == [(0,), (1,), (2,), (0,), (1,)]
    assert [score.count for score in scores] == [1] * 5
    assert sum(score.loss_sum for score in scores) / 5 == pytest.approx(theirs.item())
    for score, row in zip(scores, model(**batch).logits, strict=True):
        assert score.predicted == (row.argmax().item(),)
