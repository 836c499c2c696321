"""Special tokens stand once, whatever templates and data hold of what is put around a text."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from peft_jobs.errors import DataError, SpecError
from peft_jobs.spec import (
    CausalLMSpec,
    QuestionAnsweringSpec,
    SequenceClassificationSpec,
    TokenClassificationSpec,
)
from peft_jobs.tasks import IGNORED, TASKS

SPECIAL = ["<s>", "</s>", "<pad>", "[gMASK]", "<sop>"]
ROW = {"q": "Where is Zoë?", "a": "In Köln."}
ANSWER = "In Köln."


def built(bos: str | None, eos: str | None, opening: str) -> Any:
    """A tokenizer of bytes that puts `opening` before a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: number for number, word in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(words, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    if opening:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{opening} $A", special_tokens=[(word, words[word]) for word in opening.split()]
        )
    names = {"bos_token": bos, "eos_token": eos, "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{name: word for name, word in names.items() if word}
    )


KINDS = {
    "Llama": ("<s>", "</s>", "<s>"),
    "bos that is not put": ("<s>", "</s>", ""),
    "Qwen": (None, "</s>", ""),
    "GPT-2": ("</s>", "</s>", ""),
    "OPT": ("</s>", "</s>", "</s>"),
    "GLM": (None, "</s>", "[gMASK] <sop>"),
}
PROMPTS = ["{q} ", "<bos>{q} ", "<bos><bos>{q} ", " \n<bos> <bos>{q} "]
RESPONSES = ["{a}", "{a}<eos>", "{a}<eos><eos>", "{a}<eos>\n", "{a}<eos> <eos> \n", "<bos>{a}<eos>"]


def whole(example: Any, tokenizer: Any) -> str:
    return str(tokenizer.decode(example["input_ids"]))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[Any, str, str, str]:
    """(tokenizer, what opens its texts, bos, eos)"""
    bos, eos, opening = KINDS[request.param]
    tokenizer = built(bos, eos, opening)
    opening = opening.replace(" ", "")
    return tokenizer, opening, opening or bos or "", eos


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("response", RESPONSES)
def test_a_prompt_and_its_response_are_framed_once(
    kind: tuple[Any, str, str, str], prompt: str, response: str
) -> None:
    tokenizer, opening, bos, eos = kind
    if "<bos>" in prompt + response and not bos:
        pytest.skip("there is no bos")
    if response.startswith("<bos>") and (bos == eos or (not opening and "<bos>" not in prompt)):
        pytest.skip("what stands between prompt and response alone was put there to part them")

    def marked(template: str) -> str:
        return template.replace("<bos>", bos).replace("<eos>", eos)

    for written in (True, False):  # in the templates, or in the data
        columns = {"prompt": marked(prompt), "response": marked(response)}
        row: dict[str, str] = dict(ROW)
        if not written:
            row |= {name: text.format(**ROW) for name, text in columns.items()}
            columns = {"prompt": "{prompt}", "response": "{response}"}
        encode = TASKS["causal_lm"].encoder(tokenizer, CausalLMSpec(**columns), 128, ())
        example: Any = encode(row)
        first = opening or (bos if "<bos>" in prompt else "")
        assert whole(example, tokenizer) == f"{first}{ROW['q']} {ANSWER}{eos}"
        supervised = [label for label in example["labels"] if label != IGNORED]
        assert tokenizer.decode(supervised) == f"{ANSWER}{eos}"
        assert example["num_bytes"] == len(ANSWER.encode())


@pytest.mark.parametrize("text", ["{a}", "<bos>{a}", "{a}<eos>", " <bos>\n<bos>{a}<eos> <eos>\n"])
def test_a_plain_text_is_framed_once(kind: tuple[Any, str, str, str], text: str) -> None:
    tokenizer, opening, bos, eos = kind
    if "<bos>" in text and not bos:
        pytest.skip("there is no bos")
    template = text.replace("<bos>", bos).replace("<eos>", eos)
    for spec in (CausalLMSpec(text=template), CausalLMSpec(response=template)):
        found: Any = TASKS["causal_lm"].encoder(tokenizer, spec, 128, ())(ROW)
        example = found[0] if isinstance(found, list) else found
        first = opening or (bos if "<bos>" in text else "")
        assert whole(example, tokenizer) == f"{first}{ANSWER}{eos}"
        unscored = 0 if first else len("I")
        assert example["num_bytes"] == len(ANSWER.encode()) - unscored
    parts: Any = TASKS["causal_lm"].encoder(tokenizer, CausalLMSpec(text=template), 3, ())(ROW)
    assert sum(part["num_bytes"] for part in parts) == len(ANSWER.encode()) - unscored


def test_marks_within_a_text_stay_as_they_were_written() -> None:
    tokenizer = built("<s>", "</s>", "<s>")
    turns = CausalLMSpec(prompt="<s>[INST] a [/INST] b </s><s>[INST] {q} [/INST]", response=" {a} ")
    example: Any = TASKS["causal_lm"].encoder(tokenizer, turns, 128, ())(ROW)
    first = "<s>[INST] a [/INST] b </s><s>[INST] "
    assert whole(example, tokenizer) == f"{first}{ROW['q']} [/INST] {ANSWER} </s>"
    parted = CausalLMSpec(prompt="{q}</s>", response="{a}")
    example = TASKS["causal_lm"].encoder(tokenizer, parted, 128, ())(ROW)
    assert whole(example, tokenizer) == f"<s>{ROW['q']}</s>{ANSWER}</s>"
    both = CausalLMSpec(text="{a}</s>{a} </s></s> {a}")
    (part,) = TASKS["causal_lm"].encoder(tokenizer, both, 128, ())(ROW)  # type: ignore[misc]
    assert whole(part, tokenizer) == f"<s>{ANSWER}</s>{ANSWER} </s> {ANSWER}</s>"
    assert part["num_bytes"] == len(f"{ANSWER}{ANSWER}  {ANSWER}".encode())


@pytest.mark.parametrize("name", ["response", "text"])
@pytest.mark.parametrize("empty", ["", " ", "</s>", "<s> </s>"])
def test_a_text_of_nothing_but_marks_is_empty(name: str, empty: str) -> None:
    spec = CausalLMSpec(**{name: "<s>{a}</s>"})
    encode = TASKS["causal_lm"].encoder(built("<s>", "</s>", "<s>"), spec, 128, ())
    with pytest.raises(DataError, match=rf"the {name} is empty \(column 'a'\)"):
        encode({"a": empty})


def test_answers_need_an_end() -> None:
    tokenizer = built("<s>", None, "<s>")
    assert TASKS["causal_lm"].encoder(tokenizer, CausalLMSpec(text="{a}"), 128, ())(ROW)
    with pytest.raises(SpecError, match=r"nothing ends an answer.* add an eos_token to"):
        TASKS["causal_lm"].encoder(tokenizer, CausalLMSpec(response="{a}"), 128, ())


@pytest.fixture
def bert(tiny_bert_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_bert_path)


def marked(name: str, text: str) -> dict[str, str]:
    """A row whose text is written as BERT's tokenizer frames it, white space and all."""
    return {name: f" [CLS] {text} [SEP] [SEP]\n"}


@pytest.mark.parametrize("pair", [None, "{other}"])
def test_a_text_to_classify_is_framed_once(bert: Any, pair: str | None) -> None:
    spec = SequenceClassificationSpec(
        type="sequence_classification", text="{text}", text_pair=pair, label="label"
    )
    encode = TASKS["sequence_classification"].encoder(bert, spec, 32, ("a", "b"))
    plain = {"text": "the red cat", "other": "a dog", "label": "a"}
    rows = marked("text", plain["text"]) | marked("other", plain["other"])
    expected = bert(plain["text"], plain["other"] if pair else None)["input_ids"]
    assert encode(plain | rows)["input_ids"] == encode(plain)["input_ids"] == expected
    within = encode(plain | {"text": "the [SEP] cat"})["input_ids"]
    assert within.count(bert.sep_token_id) == expected.count(bert.sep_token_id) + 1
    with pytest.raises(DataError, match="the text is empty"):
        encode(plain | {"text": "[CLS] [SEP]"})


def test_words_to_tag_are_framed_once(bert: Any) -> None:
    spec = TokenClassificationSpec(type="token_classification", tokens="tokens", tags="tags")
    encode = TASKS["token_classification"].encoder(bert, spec, 32, ("B-X", "O"))
    plain = {"tokens": ["the", "red", "cat"], "tags": ["O", "O", "B-X"]}
    tags = [None, *plain["tags"], "O", None]
    framed = {"tokens": ["[CLS]", *plain["tokens"], "[SEP]", "[SEP]"], "tags": tags}
    assert encode(framed) == encode(plain)
    assert encode(plain)["labels"] == [IGNORED, 1, 1, 0, IGNORED]
    assert encode({"tokens": ["[CLS]", "[SEP]"], "tags": ["O", "O"]}) is None


def test_a_question_and_its_context_are_framed_once(bert: Any) -> None:
    encode = TASKS["question_answering"].encoder(
        bert, QuestionAnsweringSpec(type="question_answering"), 32, ()
    )
    context = "the cat sees a red bird"
    plain = {
        "question": "who sees ?",
        "context": context,
        "answers": {"text": ["red bird"], "answer_start": [context.index("red bird")]},
    }
    framed = plain | marked("question", plain["question"]) | marked("context", context)
    start = framed["context"].index("red bird")
    framed["answers"] = {"text": ["red bird"], "answer_start": [start]}
    (example,), (expected,) = encode(framed), encode(plain)
    assert {**example, "row": None} == {**expected, "row": None}
    answer = example["input_ids"][example["start"] : example["end"] + 1]
    assert bert.decode(answer) == "red bird"
    with pytest.raises(DataError, match="nothing but special tokens"):
        encode(framed | {"context": "[CLS]", "answers": []})
