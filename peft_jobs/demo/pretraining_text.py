"""The text that the demo's base model is pre-trained on: general, and unlike the demo's data set.

Short tales about people and animals in plain English, notes in the layout `key: value` followed by
a sentence that uses the values, lists that repeat, and numbers. The names are invented anew for
each document, so that the model learns to copy rather than to remember. None of the data set's
ships, ports, quays, layouts or sentences occur.
"""

import random
from collections.abc import Iterator


def _words(text: str, separator: str | None = None) -> list[str]:
    return text.split(separator)


_ONSETS = _words("b br c ch d dr f fl g gl h j k kr l m n p pl qu r s sh sk st t th tr v w y z")
_VOWELS = _words("a e i o u a e i o ai ea oo ee y")
_CODAS = _words("d k l m n r s t x nd rn st ck ll ng rt sk th")
_FIRST = _words(
    "Anna Ben Clara David Ellen Frank Grace Henry Iris John Kate Leo Mary Ned Olga Paul"
)
_ANIMALS = _words("cat dog horse hen fox goat mouse owl bear duck sheep crow hare otter")
_THINGS = _words(
    "book lamp basket coat letter key cup ladder drum chair rope box hammer kettle mirror"
    " blanket clock bell candle knife boat wheel crane line wind light sail fire house stone"
)
_PLACES = _words(
    "garden kitchen market forest river bridge school tower mill road field hill village"
    " station bakery library barn church square island"
)
_QUALITIES = _words(
    "old small red green heavy bright quiet broken warm strange long blue white little new"
    " round cold golden tired brave"
)
_VERBS_PAST = _words(
    "found lost carried sold painted hid dropped mended wanted kept opened closed took brought"
    " cleaned borrowed lifted needed received ordered held brought watched sent left"
)
_MOVES = _words("walked ran went came climbed hurried wandered returned travelled sailed")
_FEELINGS = _words("happy sad angry afraid proud sleepy hungry surprised glad worried")
_WEATHERS = _words("sunny windy rainy foggy cold hot stormy cloudy clear snowy")
_TIMES = _words(
    "in the morning|at night|before noon|after dinner|on Monday|on Friday|last winter|in spring"
    "|at midnight|early the next day|two hours later|that evening|once a week",
    "|",
)
_LINKS = _words("Then|After that|But|Because of this|Later|So|Soon|At last", "|")
_FOODS = _words("bread cheese apples soup honey milk rice fish eggs beans tea cake plums salt")
_UNITS = _words("pounds bags boxes jars barrels baskets bottles tons crates")
_JOBS = _words("baker teacher farmer doctor tailor painter miller guard singer smith")
_WORDS = _words("one two three four five six seven eight nine ten eleven twelve")


def documents(seed: int) -> Iterator[str]:
    """An endless stream of documents, the same for the same seed."""
    rng = random.Random(seed)
    writers = (_tale, _tale, _note, _note, _note, _note_list, _copy, _number, _clock)
    while True:
        yield rng.choice(writers)(rng)


def _name(rng: random.Random) -> str:
    syllables = (
        rng.choice(_ONSETS)
        + rng.choice(_VOWELS)
        + (rng.choice(_CODAS) if rng.random() < 0.6 else "")
        for _ in range(rng.randint(1, 3))
    )
    return "".join(syllables).capitalize()


def _person(rng: random.Random) -> str:
    return rng.choice(_FIRST) if rng.random() < 0.4 else _name(rng)


def _tale(rng: random.Random) -> str:
    who, friend = _person(rng), _person(rng)
    place, thing = rng.choice(_PLACES), rng.choice(_THINGS)
    quality = rng.choice(_QUALITIES)
    sentences = [
        f"{who} was a {rng.choice(_JOBS)} who lived near the {place}.",
        f"{rng.choice(_TIMES).capitalize()} {who} {rng.choice(_VERBS_PAST)} a {quality} {thing}.",
        f"{rng.choice(_LINKS)} {friend} {rng.choice(_MOVES)} to the {rng.choice(_PLACES)}.",
        f'"Where is the {quality} {thing}?" asked {friend}.',
        f'"It is in the {place}," said {who}.',
        f"It was {rng.choice(_WEATHERS)} and the {rng.choice(_ANIMALS)} was"
        f" {rng.choice(_FEELINGS)}.",
        f"The {rng.choice(_ANIMALS)} {rng.choice(_MOVES)} away from {friend}, over the {place}.",
        f"They both had {rng.choice(_FOODS)} and {rng.choice(_FOODS)} {rng.choice(_TIMES)}.",
        f"{who} and {friend} were {rng.choice(_FEELINGS)} until the {rng.choice(_ANIMALS)} came.",
        f"We had no word from {friend}, and nobody knew why the {quality} {thing} was free.",
        f"At {rng.randint(1, 12)} o'clock the {rng.choice(_JOBS)} took {who} to the upper gate.",
        f"The lower {rng.choice(_PLACES)} is ahead; wait behind the {thing}, both of you!",
        f"{friend} needs a {rng.choice(_THINGS)} and wants it since the {rng.choice(_JOBS)} left.",
        f"No one could open the {thing}, so {who} kept it for {rng.choice(_WORDS)} years.",
    ]
    first, *rest = sentences
    chosen = sorted(rng.sample(range(len(rest)), rng.randint(2, 5)))
    return " ".join([first, *(rest[index] for index in chosen)])


def _note(rng: random.Random) -> str:
    """A note with `key: value` fields and the sentence that says the same."""
    name, place = _name(rng), _name(rng)
    animal, quality = rng.choice(_ANIMALS), rng.choice(_QUALITIES)
    job, food = rng.choice(_JOBS), rng.choice(_FOODS)
    count, unit = str(rng.randint(2, 99)), rng.choice(_UNITS)
    age, year = str(rng.randint(3, 90)), str(rng.randint(1000, 2999))
    notes: list[tuple[dict[str, str], str]] = [
        (
            {"name": name, "animal": animal, "look": quality, "home": place},
            f"{name} is a {quality} {animal} that comes from {place}.",
        ),
        (
            {"name": name, "work": job, "town": place, "age": age},
            f"In {place} there is a {job} named {name}, who is {age} years old.",
        ),
        (
            {"shop": name, "sells": food, "stock": count, "in": unit},
            f"You can buy {food} at {name}; there are {count} {unit} left.",
        ),
        (
            {"town": place, "founded": year, "mayor": name},
            f"{place} was founded in {year} and its mayor is called {name}.",
        ),
        (
            {"from": name, "to": place, "minutes": count},
            f"The road from {name} to {place} takes {count} minutes on foot.",
        ),
    ]
    fields, sentence = rng.choice(notes)
    keys = rng.sample(list(fields), len(fields))
    return "; ".join(f"{key}: {fields[key]}" for key in keys) + f" => {sentence}"


def _note_list(rng: random.Random) -> str:
    """Several people, then a question about each: a look-up by name."""
    table = {_name(rng): rng.choice((_name(rng), rng.choice(_FOODS), str(rng.randint(2, 9999))))
             for _ in range(rng.randint(2, 4))}  # fmt: skip
    asked = rng.sample(list(table), len(table))
    listed = ", ".join(f"{key} has {value}" for key, value in table.items())
    return f"{listed}. " + " ".join(f"What has {key}? It has {table[key]}." for key in asked)


def _copy(rng: random.Random) -> str:
    """A list of odd words and numbers, said twice."""
    items = [
        rng.choice((_name(rng), _name(rng).lower(), str(rng.randint(0, 9999)), rng.choice(_THINGS)))
        for _ in range(rng.randint(3, 7))
    ]
    return "Say: " + " ".join(items) + ". Again: " + " ".join(items) + "."


def _number(rng: random.Random) -> str:
    number = rng.randint(1, 99) if rng.random() < 0.4 else rng.randint(100, 9999)
    unit, food = rng.choice(_UNITS), rng.choice(_FOODS)
    return rng.choice(
        (
            f"The sum is {number} and then {number + 1}.",
            f"We counted {number} {unit} of {food}, so the list says {food}, {number} {unit}.",
            f"{rng.choice(_WORDS).capitalize()} of the {number} {unit} were full;"
            f" {number} is enough.",
        )
    )


def _clock(rng: random.Random) -> str:
    hour, minute = rng.randint(1, 12), rng.randint(0, 59)
    who = _person(rng)
    return (
        f"The clock says {hour}:{minute:02d}. {who} {rng.choice(_MOVES)} to the"
        f" {rng.choice(_PLACES)} at {hour}:{minute:02d} {rng.choice(_TIMES)}."
    )
