"""Where in a conversation the assistant's turns are, for templates of many habits.

The second opinion is the same template with generation marks put by hand around what the assistant
writes (from `[[` to `]]` here), as transformers reads them.
"""

import re
from typing import Any, ClassVar

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from peft_jobs.errors import DataError
from peft_jobs.spec import CausalLMSpec
from peft_jobs.tasks.chat.conversation import conversation_of
from peft_jobs.tasks.chat.template import ChatTemplate
from peft_jobs.tasks.chat.turns import written_turns
from tests.peft_jobs.tasks.chat.test_templates_of_trl import Message, assistant, user
from tests.support.chat_tokenizers import tokenizer_for

SPEC = CausalLMSpec(messages="messages")
SPECIAL = re.compile(r"</?s>|<\|\w+\|>")
MARKS = ("{% generation %}", "{% endgeneration %}")
PROMPT = "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
PLAIN_PROMPT = "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
INLINE_PROMPT = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
BETWEEN = "{% if not loop.last %}{{ '\n' }}{% endif %}"


def each(header: str, answer: str, others: str, behind: str, end: str) -> str:
    """A template that writes `header` and `answer` or `others`, and `behind` each message."""
    body = (
        "{% if m.role == 'assistant' %}" + f"[[{answer}]]" + "{% else %}" + others + "{% endif %}"
    )
    return "{% for m in messages %}" + header + body + behind + "{% endfor %}" + end


WORDS = "{{ m.content }}"
ENDED = "{{ m.content + eos_token }}"
IM = "{{ m.content + '<|im_end|>\n' }}"
NUMBERED = "{{ '<|im_start|>' ~ m.role ~ ' ' ~ loop.index ~ '\n' }}"
OF_TOTAL = "{{ '<|im_start|>' ~ m.role ~ ' ' ~ loop.index ~ '/' ~ loop.length ~ '\n' }}"
DEEPSEEK_CODER = (
    "{{ bos_token }}{%- for m in messages %}{%- if m.role == 'system' %}\n{{ m.content }}\n"
    "{%- else %}{%- if m.role == 'user' %}\n{{ '### Instruction:\n' + m.content + '\n' }}\n"
    "{%- else %}\n{{ '### Response:\n' }}[[{{ m.content + '\n<|EOT|>\n' }}]]\n"
    "{%- endif %}{%- endif %}{%- endfor %}"
)
NUMBERED_PROMPT = (
    "{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant ' ~ (messages|length + 1) ~ '\n' }}{% endif %}"
)
OF_TOTAL_PROMPT = NUMBERED_PROMPT.replace("~ '\n'", "~ '/' ~ (messages|length + 1) ~ '\n'")
IM_PROMPT = PROMPT.replace("<|assistant|>", "<|im_start|>assistant")
EOS_BETWEEN = (
    "{% for m in messages %}{{ '### ' + m.role + ':\n' }}{% if m.role == 'assistant' %}"
    "[[{{ m.content + eos_token }}]]{{ '' if loop.last else '\n' }}{% else %}"
    "{{ m.content + ('' if loop.last else eos_token + '\n') }}{% endif %}{% endfor %}"
)
ROUNDS = (
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[Round ' ~ loop.index ~ ']\nQ: ' ~ m.content ~ '\nA: ' }}"
    "{% else %}[[{{ m.content ~ eos_token ~ '\n' }}]]{% endif %}{% endfor %}"
)
BAR = "{{ '<|' + m.role + '|>\n' }}"
HASH = "{{ '### ' + m.role + ':\n' }}"
COLON = "{{ m.role + ': ' }}"
INST, SPACED = "{{ '[INST] ' + m.content + ' [/INST]' }}", "{{ ' ' + m.content + eos_token }}"
IM_HEADER = "{{ '<|im_start|>' + m.role + '\n' }}"
SEP_HEADER, SEP = "{{ '<|im_start|>' + m.role + '<|im_sep|>' }}", "{{ m.content + '<|im_end|>' }}"
ANSWER_BETWEEN = "{% if m.role == 'assistant' and not loop.last %}{{ '\n' }}{% endif %}"
TEMPLATES = {
    "olmo": each(BAR, ENDED, "{{ m.content + '\n' }}", ANSWER_BETWEEN, PROMPT),
    "line between": each(BAR, ENDED, WORDS, BETWEEN, PROMPT),
    "line between, plain": each(HASH, ENDED, WORDS, BETWEEN, PLAIN_PROMPT),
    "line between, inline": each(COLON, ENDED, WORDS, BETWEEN, INLINE_PROMPT),
    "eos between": EOS_BETWEEN + PLAIN_PROMPT,
    "numbered": each(NUMBERED, IM, IM, "", NUMBERED_PROMPT),
    "numbered of all": each(OF_TOTAL, IM, IM, "", OF_TOTAL_PROMPT),
    "numbered, but in the prompt": each(NUMBERED, IM, IM, "", IM_PROMPT),
    "rounds": ROUNDS,
    "always prompts": each(IM_HEADER, IM, IM, "", "{{ '<|im_start|>assistant\n' }}"),
    "always prompts, inline": each(
        COLON, ENDED, "{{ m.content + ' ' }}", "", "{{ 'assistant: ' }}"
    ),
    "always prompts, no lines": each(
        SEP_HEADER, SEP, SEP, "", "{{ '<|im_start|>assistant<|im_sep|>' }}"
    ),
    "deepseek-coder": DEEPSEEK_CODER
    + "\n{% if add_generation_prompt %}\n{{ '### Response:' }}\n{% endif %}",
    "deepseek-coder, first": DEEPSEEK_CODER + "\n{{ '### Response:\n' }}\n",
    "eos alone": each("", ENDED, ENDED, "", ""),
    "mistral": each("", SPACED, INST, "", ""),
}


def off(turn: Message) -> Message:
    return {**turn, "weight": 0}


TALKS: dict[str, list[Message]] = {
    "two": [user("Hi"), assistant("Hello!"), user("2+2?"), assistant("Four.")],
    "first is not learned": [user("Hi"), off(assistant("Go!")), user("2+2?"), assistant("Four.")],
    "last is not learned": [user("Hi"), assistant("Hello!"), user("2+2?"), off(assistant("Go!"))],
    "one after the other": [user("Hi"), off(assistant("Go!")), assistant("Four.")],
    "user last": [user("Hi"), assistant("Hello!"), user("2+2?"), assistant("Four."), user("Bye")],
    "one, user last": [user("Hi"), assistant("Hello!"), user("Bye")],
    "two questions": [user("Hi"), user("2+2?"), assistant("Four.")],
    "number": [user("Hi"), assistant("4"), user("2+2?"), assistant("4 of 12")],
    "many": [
        m for n in range(12) for m in (user(f"{n}?"), off(assistant("x")), assistant(f"{n}!"))
    ],
}


def by_hand(template: str, talk: list[Message], tokenizer: Any) -> list[str]:
    """What the learned turns wrote, by the marks."""
    (text,), (marks,) = render_jinja_template(
        [talk],
        chat_template=template.replace("[[", MARKS[0]).replace("]]", MARKS[1]),
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    turns = [message for message in talk if message["role"] == "assistant"]
    learned = [mark for mark, turn in zip(marks, turns, strict=True) if "weight" not in turn]
    return [text[start:end] for start, end in learned]


def by_us(
    template: str, talk: list[Message], tokenizer: Any, kind: Any = ChatTemplate
) -> list[str]:
    conversation = conversation_of({"messages": talk}, SPEC)
    written = written_turns(kind.find(tokenizer, template), conversation, SPECIAL)
    return [written.text[start:end] for start, end in written.spans]


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_headers_and_prompts_are_not_learned(name: str, talk: str) -> None:
    plain = TEMPLATES[name].replace("[[", "").replace("]]", "")
    tokenizer = tokenizer_for(plain + "<|user|><|assistant|>")
    ours = by_us(plain, TALKS[talk], tokenizer)
    assert ours == by_hand(TEMPLATES[name], TALKS[talk], tokenizer)


class Counted(ChatTemplate):
    """Counts the messages that it renders."""

    num_rendered: ClassVar[int] = 0

    def marked(self, messages: Any, add_generation_prompt: bool = False) -> Any:
        Counted.num_rendered += len(messages)
        return super().marked(messages, add_generation_prompt)


@pytest.mark.parametrize(("name", "num_times"), [("olmo", 12), ("always prompts", 12)])
def test_many_turns_are_rendered_a_few_times(name: str, num_times: int) -> None:
    plain = TEMPLATES[name].replace("[[", "").replace("]]", "")
    talk = [m for n in range(400) for m in (user(f"What is {n}?"), assistant(f"It is {n}."))]
    tokenizer = tokenizer_for(plain + "<|user|><|assistant|>")
    Counted.num_rendered = 0
    ours = by_us(plain, talk, tokenizer, Counted)
    assert Counted.num_rendered <= num_times * len(talk)
    assert ours == by_hand(TEMPLATES[name], talk, tokenizer)


LOOKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% if m.content|length > 9 %}{{ '(long) ' }}{% endif %}[[{{ m.content + '<|im_end|>' }}]]"
    "{% if '!' in m.content[-1:] %}[[{{ '\n<|im_sep|>' }}]]{% endif %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)
MARKED = LOOKS.replace("[[", MARKS[0]).replace("]]", MARKS[1])


def test_marks_are_found_where_a_template_looks_at_the_words() -> None:
    talk = [
        *(user("Hi"), assistant("Hello!"), user("Name?"), assistant("I have no name.")),
        *(user("2+2?"), off(assistant("Go!")), user("2+2?"), assistant("Four.")),
    ]
    expected = ["Hello!<|im_end|>", "\n<|im_sep|>", "I have no name.<|im_end|>", "Four.<|im_end|>"]
    assert by_us(MARKED, talk, tokenizer_for(LOOKS)) == expected
    short = MARKED.replace("{{ '(long) ' }}", "{{ raise_exception('too long') }}")
    talk = [user("Hi"), assistant("Four five")]
    assert by_us(short, talk, tokenizer_for(LOOKS)) == ["Four five<|im_end|>"]


def test_marks_that_no_message_can_be_found_for_are_told() -> None:
    unsteady = MARKED.replace("'!' in m.content[-1:]", "loop.last")
    talk = [user("Hi"), assistant("Hello, you!"), user("2+2?"), assistant("Fourteen")]
    with pytest.raises(DataError, match=r"marks are those of message 2 cannot be told"):
        by_us(unsteady, talk, tokenizer_for(LOOKS))
