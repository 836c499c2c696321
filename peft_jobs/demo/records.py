"""The demo's data set: harbour records and the notices that a harbour master writes about them.

A record is one line of attributes; its notice is a pure function of it. Which sentences appear is
decided by combinations of attributes (the kind of ship with its delay, the cargo with its amount,
the sea with the rig), codes stand for names, times and amounts change their format, and names are
copied. So a model can learn to write every notice exactly, and needs capacity to do so.

`python -m peft_jobs.demo.records` writes the committed files again, byte for byte.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

SEED = 20_417
SPLIT_SIZES: Mapping[str, int] = MappingProxyType({"train": 1200, "validation": 128, "test": 160})

SHIPS = (
    "Vorlanka", "Quessa", "Iridane", "Jomfru", "Zephrine", "Okkavel", "Tyndrum", "Wyxley",
    "Abrizzo", "Fjelgar", "Kvitsoy", "Druzhna", "Umberline", "Pellucid", "Xanthe", "Gwyfaen",
    "Haldvik", "Ysolde", "Brontide", "Caldrex", "Nimbury", "Ruvenzo", "Sklaven", "Ekwator",
)  # fmt: skip
PORTS = (
    "Tessmoor", "Ylverhavn", "Quorn Sound", "Brizzak", "Ostrevik", "Kelpwick",
    "Juxmouth", "Fyrdeep", "Zwaanhoek", "Port Huxo", "Ravnsund", "Obergat",
)  # fmt: skip
QUAYS = {"N": "Northmole", "E": "Emberlyn", "S": "Saltgate", "W": "Wexham"}
RIGS = {
    "ferry": "passenger", "packet": "passenger",
    "brig": "sail", "ketch": "sail", "lugger": "sail",
    "barge": "engine", "tanker": "engine", "trawler": "engine", "collier": "engine",
}  # fmt: skip
CARGOES = {
    "naphtha": "danger", "acid": "danger", "powder": "danger",
    "eels": "fresh", "plums": "fresh", "milk": "fresh",
    "slate": "bulk", "salt": "bulk", "ore": "bulk",
    "pilgrims": "people", "miners": "people", "recruits": "people",
}  # fmt: skip
SEAS = ("calm", "swell", "storm")

OPENINGS = {
    ("engine", "early"): "{ship}, {kind} from {port}, is in before {time}: {quay}.",
    ("engine", "punctual"): "At {time} {quay} takes the {kind} {ship} of {port}.",
    ("engine", "late"): "The {port} {kind} {ship} is {delay} behind; {quay} waits from {time}.",
    ("engine", "overdue"): "No word of {ship}, {kind} of {port}, due {time}; {quay} is free.",
    ("sail", "early"): "A fair wind from {port}: {kind} {ship} at {quay} ahead of {time}.",
    ("sail", "punctual"): "{time} sharp, {ship} of {port} furls at {quay}, a {kind}.",
    ("sail", "late"): "Light airs cost {kind} {ship} of {port} {delay}; {quay}, not {time}.",
    ("sail", "overdue"): "Light the beacon: {ship}, {port} {kind}, lost since {time}; {quay}.",
    (
        "passenger",
        "early",
    ): "Friends of {ship} from {port}, hurry to {quay}! The {time} {kind} is in.",
    ("passenger", "punctual"): "Welcome the {kind} {ship} from {port} at {time}, {quay}.",
    ("passenger", "late"): "We regret {delay} on {ship}, the {time} {port} {kind}, {quay}.",
    ("passenger", "overdue"): "The {time} {kind} from {port} is cancelled; {ship} leaves {quay}.",
}
SEA_CLAUSES = {
    ("engine", "swell"): " Double lines.",
    ("engine", "storm"): " She needs a pilot.",
    ("sail", "swell"): " Strike the topsails.",
    ("sail", "storm"): " Send the tug.",
    ("passenger", "swell"): " Mind the gangway.",
    ("passenger", "storm"): " Nobody boards.",
}


@dataclass(frozen=True)
class Record:
    """One arrival. `due` is minutes after midnight, `late` minutes (negative: early)."""

    ship: str
    kind: str
    port: str
    cargo: str
    amount: int
    due: int
    late: int
    berth: str
    sea: str

    def line(self) -> str:
        """The record as the model reads it: attributes in a fixed order on one line."""
        due = f"{self.due // 60:02d}{self.due % 60:02d}"
        return (
            f"{self.ship}|{self.kind}|{self.port}|{self.cargo} {self.amount}"
            f"|{due}|{self.late:+d}|{self.berth}|{self.sea}"
        )


def notice(record: Record) -> str:
    """The notice for `record`: opening, then cargo, then sea; the same record, the same words."""
    rig = RIGS[record.kind]
    opening = OPENINGS[rig, _delay_class(record.late)].format(
        ship=record.ship,
        kind=record.kind,
        port=record.port,
        quay=f"{QUAYS[record.berth[0]]} {record.berth[1:]}",
        time=_clock(record.due),
        delay=_delay(record.late),
    )
    return opening + _cargo_clause(record) + SEA_CLAUSES.get((rig, record.sea), "")


def splits() -> dict[str, list[dict[str, str]]]:
    """The three splits as rows of `record` and `sentence`; no record is in two of them."""
    rng = random.Random(SEED)
    records: dict[Record, None] = {}
    while len(records) < sum(SPLIT_SIZES.values()):
        records[_draw(rng)] = None
    rows = ({"record": record.line(), "sentence": notice(record)} for record in records)
    return {name: [next(rows) for _ in range(size)] for name, size in SPLIT_SIZES.items()}


def write(folder: Path) -> None:
    """Write `train.jsonl`, `validation.jsonl` and `test.jsonl` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits().items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_bytes(text.encode())


def _draw(rng: random.Random) -> Record:
    delay = rng.choice(("early", "punctual", "late", "overdue"))
    late = {
        "early": -5 * rng.randint(1, 6),
        "punctual": 0,
        "late": 5 * rng.randint(1, 11),
        "overdue": 10 * rng.randint(6, 18),
    }[delay]
    kind = rng.choice(tuple(RIGS))
    carries_people = RIGS[kind] == "passenger"
    cargoes = [cargo for cargo, sort in CARGOES.items() if (sort == "people") == carries_people]
    return Record(
        ship=rng.choice(SHIPS),
        kind=kind,
        port=rng.choice(PORTS),
        cargo=rng.choice(cargoes),
        amount=50 * rng.randint(2, 50),
        due=15 * rng.randint(0, 95),
        late=late,
        berth=f"{rng.choice(tuple(QUAYS))}{rng.randint(1, 6)}",
        sea=rng.choice(SEAS),
    )


def _delay_class(late: int) -> str:
    if late < 0:
        return "early"
    if late == 0:
        return "punctual"
    return "late" if late < 60 else "overdue"


def _delay(late: int) -> str:
    return "half an hour" if late == 30 else f"{late} minutes"


def _clock(minutes: int) -> str:
    """Twelve-hour time: 855 is `2.15 pm`; 720 is `noon` and 0 is `midnight`."""
    if minutes in (0, 720):
        return "noon" if minutes else "midnight"
    hour = minutes // 60
    return f"{hour % 12 or 12}.{minutes % 60:02d} {'pm' if hour >= 12 else 'am'}"


def _cargo_clause(record: Record) -> str:
    amount = f"{record.amount:,}"
    match CARGOES[record.cargo]:
        case "danger":
            return f" No flame near {amount} kegs of {record.cargo}!"
        case "fresh":
            return f" The ice house wants {amount} crates of {record.cargo}."
        case "people":
            gate = "Upper" if int(record.berth[1:]) % 2 == 0 else "Lower"
            return f" {gate} gate for {amount} {record.cargo}."
        case _:
            cranes = "Both cranes lift" if record.amount >= 1000 else "One crane lifts"
            return f" {cranes} {amount} tons of {record.cargo}."


if __name__ == "__main__":
    write(Path(__file__).parent / "data")
