"""What would be trained, as a person reads it: numbers by split, classes, examples, warnings.

What is supervised in an example is green; where there are no colours it stands in marks.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

OPEN, CLOSE = "\u27e6", "\u27e7"
"""Around what is supervised, where there are no colours."""
_MAX_CLASSES = 12
_MAX_CHARACTERS = 400
"""Of a part of an example; a longer one has its middle left out."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

Summary = Mapping[str, Any]


def print_summary(summary: Summary, console: Console) -> None:
    """Print a summary of data, without its mistakes, which are an error's words."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("split", "rows", "format", "source"):
        table.add_column(title, justify="right" if title == "rows" else "left", overflow="fold")
    for name, split in summary["splits"].items():
        table.add_row(name, f"{split['num_rows']:,}", split["format"], _source(split))
    console.print(table)
    for name, split in summary["splits"].items():
        lines = split_lines(split)
        if lines:
            console.print(f"\n{name}", style="bold")
        for line in lines:
            console.print(f"  {line}", markup=False, soft_wrap=True)
    train = next(iter(summary["splits"].values()), None)
    if train is not None and train["classes"]:
        console.print()
        console.print(_classes(summary["splits"]))
    colours = console.color_system is not None and not console.no_color
    for example in summary["examples"]:
        console.print(f"\nrow {example['row']:,} of train", style="dim")
        console.print(_example(example, colours), soft_wrap=True)
    if summary["varied"]:
        names = ", ".join(summary["varied"])
        _tell(console, f"The space varies {names}; this is the trial with the most training rows.")
    for text in (*summary["unread"], *summary["warnings"]):
        _tell(console, text)
    for leak in summary["leaks"]:
        _tell(console, leak["message"])


def _tell(console: Console, text: str) -> None:
    console.print()
    console.print(text, style="yellow", markup=False, soft_wrap=True)


def _source(split: Summary) -> str:
    if split["held_out"] is None and split["num_rows"] == split["num_source_rows"]:
        return str(split["source"])
    notes = [f"of {split['num_source_rows']:,}"]
    if split["held_out"] is not None:
        notes.append(f"{_percent(split['held_out'])} held out")
    return f"{split['source']} ({', '.join(notes)})"


def split_lines(split: Summary) -> list[str]:
    """What a split holds, a line each, without the number of its rows."""
    lines, num_measured = [], split["num_measured"]
    if split["sampled"]:
        lines.append(f"tokenized: {num_measured:,} rows, drawn by data.seed (--rows 0: all)")
    for mistake, rows in split["left_out"].items():
        lines.append(f"left out: {_count(len(rows), 'row')} ({_named(rows)}): {mistake}")
    if not num_measured:
        return lines
    for what, lengths in (("tokens", split["lengths"]), ("of targets", split["target_lengths"])):
        if lengths is not None:
            lines.append(
                f"{what}: median {lengths['median']:,}, 95 % up to {lengths['percentile_95']:,}, "
                f"longest {lengths['longest']:,}"
            )
            lines.append(limit_sentence(lengths, num_measured))
    if (targets := split["targets"]) is not None:
        names = {
            "minimum": "least",
            "median": "median",
            "mean": "mean",
            "maximum": "most",
            "sd": "sd",
        }
        told = ", ".join(f"{name} {targets[key]:.4g}" for key, name in names.items())
        lines.append(f"numbers to predict: {told}")
    if (supervised := split["num_supervised_tokens"]) is not None:
        share = _percent(supervised / max(1, split["num_tokens"]))
        lines.append(f"supervised: {supervised:,} of {split['num_tokens']:,} tokens ({share})")
    if split["num_examples"] > num_measured:
        lines.append(f"examples: {split['num_examples']:,}")
    if rows := split["unsupervised"]:
        left = "is" if len(rows) == 1 else "are"
        told = f"{_count(len(rows), 'row')} ({_named(rows)})"
        lines.append(f"no supervised token in {told}, which {left} left out")
    return lines


def limit_sentence(lengths: Summary, num_rows: int) -> str:
    """What becomes of the rows above a limit, and the limit that would keep more of them."""
    name, limit, longer = lengths["limit_name"], lengths["limit"], lengths["num_longer"]
    if not longer:
        return f"no row is longer than {name} {limit:,}"
    fates = {
        "cut": lengths["num_cut"],
        "left out": lengths["num_left_out"],
        "continued in further examples": lengths["num_continued"],
    }
    there = {words: count for words, count in fates.items() if count}
    verb = "is" if longer == 1 else "are"
    told = f" and {verb} {''.join(there)}"
    if len(there) > 1:
        told = ": " + ", ".join(f"{count:,} {words}" for words, count in there.items())
    proposed, keeps = lengths["limit_for_95_percent"], "95 %"
    if proposed <= limit:
        proposed, keeps = lengths["longest"], "all"
    return (
        f"{longer:,} of {num_rows:,} rows ({_percent(longer / num_rows)}) {verb} longer than "
        f"{name} {limit:,}{told}; {proposed:,} would keep {keeps} whole"
    )


def _classes(splits: Mapping[str, Summary]) -> Table:
    """Counts and shares by class and split, the most frequent of the training rows first."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("class", overflow="fold")
    for name in splits:
        table.add_column(name, justify="right")
        table.add_column("", justify="right")
    train, *_ = splits.values()
    order = sorted(range(len(train["classes"])), key=lambda n: -train["classes"][n]["count"])
    for number in order[:_MAX_CLASSES]:
        cells = []
        for split in splits.values():
            found = split["classes"][number] if split["classes"] else None
            cells += [f"{found['count']:,}", _percent(found["share"])] if found else ["", ""]
        table.add_row(Text(_visible(train["classes"][number]["name"])), *cells)
    if rest := order[_MAX_CLASSES:]:
        counts = [train["classes"][number]["count"] for number in rest]
        least, most = f"{min(counts):,}", f"{max(counts):,}"
        table.add_row(
            f"{len(rest):,} more", f"{least if least == most else f'{least}-{most}'} each"
        )
    return table


def _example(example: Summary, colours: bool) -> Text:
    text = Text()
    for part in example["input"]:
        _add(text, part, colours)
    if example["target"]:
        text.append("\n-> ", style="dim")
    for part in example["target"]:
        _add(text, part, colours)
    return text


def _add(text: Text, part: Summary, colours: bool) -> None:
    words = _shortened(_visible(part["text"]))
    if not part["supervised"]:
        text.append(words)
        return
    label = "" if part["label"] is None else f"{_visible(part['label'])}:"
    if label:  # the tag stands at the word
        text.append(words[: len(words) - len(words.lstrip())])
        words = words.lstrip()
    if colours:
        text.append(label, style="cyan")
        text.append(words, style="bold green")
    else:
        text.append(f"{OPEN}{label}{words}{CLOSE}")


def _visible(text: str) -> str:
    """Without what a terminal would obey."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", text)


def _shortened(text: str) -> str:
    if len(text) <= _MAX_CHARACTERS:
        return text
    half = _MAX_CHARACTERS // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"


def _named(rows: Sequence[int]) -> str:
    more = ", ..." if len(rows) > 5 else ""
    return ", ".join(f"{row:,}" for row in rows[:5]) + more


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _percent(share: float) -> str:
    percent = 100 * share
    if 0 < percent < 1:
        return f"{percent:.1g} %"
    return f"{percent:.0f} %" if percent < 99.5 or share == 1 else f"{percent:.2f} %"
