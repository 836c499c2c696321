"""Tag sets of all common schemes: what is read, what is refused, and spans as seqeval has them."""

import random
from typing import Any

import pytest

from peft_jobs.errors import DataError
from peft_jobs.tasks.spans import precision_recall_f1, spans
from peft_jobs.tasks.tag_schemes import Tag, is_plain, read_tags

KINDS = ("PER", "LOC")
LETTERS = {
    "IO": "I",
    "IOB1": "IB",
    "IOB2": "BI",
    "IOE1": "IE",
    "IOE2": "IE",
    "IOBES": "BIES",
    "BILOU": "BILU",
    "BMES": "BMES",
    "BMEWO": "BMEW",
    "BIOS": "BIS",
}
Spans = list[tuple[int, int, str]]


def tag_set(letters: str, kinds: tuple[str, ...] = KINDS) -> list[str]:
    return ["O", *(f"{letter}-{kind}" for letter in letters for kind in kinds)]


def random_spans(source: random.Random, length: int) -> Spans:
    """Spans of a sentence, some side by side."""
    found, start = [], source.randint(0, 2)
    while start < length:
        end = min(length, start + source.choice([1, 1, 2, 3, 4]))
        found.append((start, end, source.choice(KINDS)))
        start = end + source.choice([0, 0, 1, 2])
    return found


def tagged(scheme: str, wanted: Spans, length: int) -> list[str]:
    """The tags of a sentence, by the scheme's definition."""
    tags = ["O"] * length
    kinds_at = {start: kind for start, _, kind in wanted}
    kinds_to = {end: kind for _, end, kind in wanted}
    for start, end, kind in wanted:
        if scheme == "IOB1":  # B- only behind a span of the same kind
            inner = ["B" if kinds_to.get(start) == kind else "I", *"I" * (end - start - 1)]
        elif scheme == "IOE1":  # E- only in front of a span of the same kind
            inner = [*"I" * (end - start - 1), "E" if kinds_at.get(end) == kind else "I"]
        elif scheme == "IOE2":
            inner = [*"I" * (end - start - 1), "E"]
        elif scheme == "IOB2":
            inner = ["B", *"I" * (end - start - 1)]
        elif scheme == "BIOS":
            inner = ["B", *"I" * (end - start - 1)] if end - start > 1 else ["S"]
        else:
            begin, inside, last, single = LETTERS[scheme]
            inner = [begin, *inside * (end - start - 2), last] if end - start > 1 else [single]
        tags[start:end] = [f"{letter}-{kind}" for letter in inner]
    return tags


@pytest.mark.parametrize("scheme", [name for name in LETTERS if name != "IO"])
def test_what_a_scheme_writes_is_read_back(scheme: str) -> None:
    source, meaning = random.Random(0), read_tags(tag_set(LETTERS[scheme]))
    for _ in range(500):
        length = source.randint(1, 12)
        wanted = random_spans(source, length)
        tags = tagged(scheme, wanted, length)
        assert spans(tags, meaning) == set(wanted), tags


# Not IOE1: seqeval 1.2.2 says of its own that it cannot handle some cases.
@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "IOE2", "IOBES", "BILOU"])
def test_well_formed_sequences_have_the_spans_of_seqevals_strict_mode(scheme: str) -> None:
    from seqeval import scheme as schemes

    source, meaning = random.Random(1), read_tags(tag_set(LETTERS[scheme]))
    strict = getattr(schemes, scheme)
    for _ in range(200):
        length = source.randint(1, 10)
        tags = tagged(scheme, random_spans(source, length), length)
        theirs = {(e.start, e.end, e.tag) for e in schemes.Entities([tags], strict).entities[0]}
        assert spans(tags, meaning) == theirs, tags


@pytest.mark.parametrize("letters", ["BI", "I", "IE", "BIES", "BIE", "BIS"])
def test_any_sequence_has_the_spans_of_seqevals_default_mode(letters: str) -> None:
    from seqeval.metrics.sequence_labeling import get_entities

    source = random.Random(2)
    before = tag_set(letters)
    after = [tag if tag == "O" else f"{tag[2:]}-{tag[0]}" for tag in before]
    for tags, suffix in ((before, False), (after, True)):
        meaning = read_tags(tags)
        for _ in range(1000):
            row = [source.choice(tags) for _ in range(source.randint(1, 10))]
            theirs = {(s, e + 1, kind) for kind, s, e in get_entities(row, suffix=suffix)}
            assert spans(row, meaning) == theirs, row


@pytest.mark.parametrize(
    ("letters", "as_seqeval"), [("BMES", "BIES"), ("BILU", "BIES"), ("BMEW", "BIES")]
)
@pytest.mark.parametrize("write", ["{}-{}", "{}_{}", "{}|{}", "{}:{}", "{}.{}", "{} {}"])
@pytest.mark.parametrize("turn", [False, True])
def test_the_f1_does_not_depend_on_how_a_scheme_is_written(
    letters: str, as_seqeval: str, write: str, turn: bool
) -> None:
    from seqeval.metrics import f1_score

    source = random.Random(3)

    def spelled(tag: str) -> str:
        if tag == "O":
            return "o"
        letter = tag[0].translate(str.maketrans(as_seqeval, letters)).lower()
        return write.format(*((tag[2:], letter) if turn else (letter, tag[2:])))

    plain = tag_set("BIES")
    true = [tagged("IOBES", random_spans(source, 9), 9) for _ in range(60)]
    found = [[t if source.random() < 0.8 else source.choice(plain) for t in row] for row in true]
    meaning = read_tags(map(spelled, plain))
    pairs = [
        (spans([*map(spelled, t)], meaning), spans([*map(spelled, f)], meaning))
        for t, f in zip(true, found, strict=True)
    ]
    counts = (sum(len(t & f) for t, f in pairs), sum(len(f) for _, f in pairs))
    f1 = precision_recall_f1(*counts, sum(len(t) for t, _ in pairs))[2]
    assert 0.2 < f1 < 0.95
    assert f1 == pytest.approx(f1_score(true, found))


@pytest.mark.parametrize(
    ("names", "row", "wanted"),
    [
        ("B M E S", "S B E B M M E B S", {(0, 1), (1, 3), (3, 7), (7, 8), (8, 9)}),
        ("B I O", "I I O B B I o", {(0, 2), (3, 4), (4, 6)}),
        ("O B-x M-x E-x W-x", "W-x W-x B-x M-x E-x O M-x", {(0, 1), (1, 2), (2, 5), (6, 7)}),
        ("O B-x I-x L-x U-x", "L-x B-x B-x O U-x U-x", {(0, 1), (1, 2), (2, 3), (4, 5), (5, 6)}),
    ],
)
def test_spans_by_hand(names: str, row: str, wanted: set[Any]) -> None:
    meaning = read_tags([*names.split(), "o"])
    assert {(start, end) for start, end, _ in spans(row.split(), meaning)} == wanted


def test_letters_of_a_kinds_name_are_no_letters_of_a_scheme() -> None:
    meaning = read_tags(["O", "B-E-mail", "I-E-mail", "B-S-bahn"])
    assert meaning["I-E-mail"] == Tag("I", "E-mail")
    assert spans(["B-E-mail", "I-E-mail", "B-S-bahn"], meaning) == {
        (0, 2, "E-mail"), (2, 3, "S-bahn"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [
        *("NN VB PRP-S O", "N V I S B", "O hepatitis-B hepatitis-C flu", "i-adj na-adj"),
        *("NP-TL NN-HL", "person-actor art-music O", "N-S N-M V-S V-M", "S-x S-y O", "L-x O"),
    ],
)
def test_tags_without_a_scheme_are_a_span_each(names: str) -> None:
    tags = names.split()
    meaning = read_tags(tags)
    assert is_plain(meaning)
    named = [tag for tag in tags if tag != "O"]
    assert spans(named * 2, meaning) == {
        (place, place + 1, tag) for place, tag in enumerate(named * 2)
    }


@pytest.mark.parametrize(
    ("names", "offending"),
    [
        ("(PER* * *) (LOC*)", "'(PER*', '*)', '(LOC*)' are brackets"),
        ("(S(NP* * *) *))", "'(S(NP*', '*)', '*))' are brackets"),
        ("(ORG*) *", "'(ORG*)' are brackets"),
        ("O B-PER I-PER X [CLS]", "'X', '[CLS]' have none of the letters"),
        ("O B-PER I-PER B", "'B' have none"),
        ("NN B-x E-x", "'NN' have none"),
        ("PER-B PER-I misc O", "'misc' have none"),
        ("B I X O", "'X' have none"),
        ("B-x I-x M-x E-x", "'I-x', 'M-x' have I and M, which are of two schemes"),
        ("B-x I-x E-x L-x", "'E-x', 'L-x' have E and L"),
        ("B-x I-x S-x U-x", "'S-x', 'U-x' have S and U"),
        ("B-x I-x E-mail O", "'E-mail' end a kind that no tag begins"),
        ("B-PER I-per O", "'B-PER', 'I-per' have one kind in two spellings"),
    ],
)
def test_half_a_scheme_is_refused_with_its_tags(names: str, offending: str) -> None:
    with pytest.raises(DataError, match=r"spans cannot be scored") as raised:
        read_tags(names.split())
    assert offending in str(raised.value)


def test_an_empty_tag_is_refused() -> None:
    with pytest.raises(DataError, match="a tag is empty"):
        read_tags(["B-x", "", "O"])


def test_nothing_divided_by_nothing_is_nothing() -> None:
    assert precision_recall_f1(0, 0, 0) == (0.0, 0.0, 0.0)
