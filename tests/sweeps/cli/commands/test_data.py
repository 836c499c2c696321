"""`data`: what would be trained, for people and as JSON; `validate` and `run` look at it first."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import Result

from peft_jobs.demo import DATA
from sweeps.cli.display.data_summary import limit_sentence, print_summary
from sweeps.cli.preflight import check_data, largest_trial
from sweeps.spec.loading import load_sweep
from sweeps.spec.yaml_file import SweepFileError
from tests.support.repository import REPOSITORY

Cli = Callable[..., Result]
SOLO = "resources.engine=solo"
ASK = 'task={type: causal_lm, prompt: "{q} ", response: "{a}"}'


def rows(path: Path, *pairs: tuple[str, str]) -> Path:
    path.write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in pairs))
    return path


@pytest.fixture
def questions(folder: Path) -> str:
    """A file of ten questions, of which the last two are one."""
    pairs = [(f"question {min(n, 8)}", f"answer {n}") for n in range(10)]
    return f"data.train={rows(folder / 'questions.jsonl', *pairs)}"


def test_the_summary_is_one_json_object(cli: Cli) -> None:
    result = cli("data", "waves.yaml", "--json")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    counts = {name: split["num_rows"] for name, split in summary["splits"].items()}
    lines = {name: len(DATA[name].read_text().splitlines()) for name in ("train", "validation")}
    assert counts == lines
    assert cli("data", "waves.yaml", "--json").stdout == result.stdout


def test_every_key_of_the_json_is_documented(cli: Cli) -> None:
    page = (REPOSITORY / "infra" / "docs" / "data.md").read_text(encoding="utf-8")
    keys: set[str] = set()

    def gather(value: Any, named: bool) -> None:
        """Keys of objects whose keys are no names of splits."""
        if isinstance(value, list):
            for item in value:
                gather(item, named)
        elif isinstance(value, dict):
            keys.update(value if named else ())
            for key, item in value.items():
                gather(item, key not in ("splits", "left_out"))

    gather(json.loads(cli("data", "waves.yaml", "data.test=demo", "--json").stdout), True)
    assert len(keys) > 25
    assert [key for key in sorted(keys) if f"`{key}`" not in page] == []


def test_people_read_it_in_marks_where_there_are_no_colours(cli: Cli, questions: str) -> None:
    words = (questions, "data.validation=0.5", ASK, "data.max_length=24")
    said = cli("data", "waves.yaml", *words).stdout
    assert "<s>question 0 \u27e6answer 0</s>\u27e7" in said
    assert "questions.jsonl (of 10, 50 % held out)" in said
    assert "\x1b[" not in said


def test_colours_take_the_place_of_marks_on_a_terminal(
    cli: Cli, questions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (questions, "data.validation=0.5", ASK, "--json")
    summary = json.loads(cli("data", "waves.yaml", *words).stdout)

    def shown(**environment: str) -> str:
        file = io.StringIO()
        console = Console(
            file=file, force_terminal=True, width=200, _environ={"TERM": "xterm", **environment}
        )
        print_summary(summary, console)
        return file.getvalue()

    assert "\u27e6" not in shown()
    assert "\x1b[1;32manswer 0" in shown()
    assert "\u27e6answer 0</s>\u27e7" in shown(NO_COLOR="1")


def test_the_tag_of_a_word_stands_at_its_first_piece(cli: Cli, folder: Path) -> None:
    path = folder / "tagged.jsonl"
    path.write_text((json.dumps({"w": ["Quay", "is"], "t": ["B-x", "O"]}) + "\n") * 4)
    task = "task={type: token_classification, tokens: w, tags: t}"
    said = cli("data", "waves.yaml", f"data.train={path}", "data.validation=0.5", task).stdout
    assert "\u27e6B-x:" in said
    assert " \u27e6O:" in said


def test_texts_of_the_data_do_not_steer_the_terminal(cli: Cli, folder: Path) -> None:
    path = rows(folder / "odd.jsonl", *[(f"\x1b[31m[bold]{n}", "a\x07") for n in range(4)])
    said = cli("data", "waves.yaml", f"data.train={path}", "data.validation=0.5", ASK).stdout
    assert "\x1b" not in said
    assert "\x07" not in said
    assert "\\x1b[31m[bold]" in said


def test_mistakes_are_told_at_once_behind_what_can_be_told(cli: Cli, questions: str) -> None:
    words = (questions, ASK.replace("{a}", "{b}"), "data.validation=demo", "--json")
    result = cli("data", "waves.yaml", *words)
    assert result.exit_code == 2
    mistakes = json.loads(result.stdout)["mistakes"]
    assert len(mistakes) == 3
    for line in mistakes:
        assert line in result.stderr
    assert "waves.yaml: 3 mistakes" in result.stderr


@pytest.mark.parametrize("command", ["data", "validate", "run"])
def test_unusable_rows_are_mistakes_unless_they_are_left_out(
    cli: Cli, folder: Path, command: str
) -> None:
    pairs = [(f"question {n}", "answer" if n < 8 else "") for n in range(10)]
    train = f"data.train={rows(folder / 'gaps.jsonl', *pairs)}"
    words = (train, "data.validation=0.5", ASK, SOLO)
    refused = cli(command, "waves.yaml", *words)
    assert refused.exit_code == 2
    assert "gaps.jsonl, rows 9, 10: the response is empty (column 'a')" in refused.stderr
    summary = json.loads(cli("data", "waves.yaml", *words, "data.on_bad_row=drop", "--json").stdout)
    splits = summary["splits"].values()
    assert sorted(n for s in splits for held in s["left_out"].values() for n in held) == [9, 10]


@pytest.mark.parametrize("command", ["validate", "run"])
def test_nothing_is_loaded_or_run_where_the_data_are_wrong(
    cli: Cli, folder: Path, questions: str, command: str
) -> None:
    words = (questions, ASK.replace("{a}", "{b}"), "data.validation=demo", SOLO)
    result = cli(command, "waves.yaml", *words)
    assert result.exit_code == 2
    assert "waves.yaml: 3 mistakes" in result.stderr
    assert result.stdout == ""
    assert not (folder / "runs" / "optuna.db").exists()


@pytest.mark.parametrize("command", ["data", "validate", "run"])
def test_mistakes_of_the_file_and_of_the_data_are_one_list(
    cli: Cli, questions: str, command: str
) -> None:
    words = (questions, ASK.replace("{a}", "{b}"), "data.validation=demo", SOLO)
    wrong = ("samplr=tpe", "budget.n_trials=0")
    result = cli(command, "waves.yaml", *words, *wrong)
    assert result.exit_code == 2
    assert "waves.yaml: 5 mistakes" in result.stderr
    assert "did you mean 'sampler'?" in result.stderr
    assert "'b'" in result.stderr
    assert (
        "waves.yaml: 2 mistakes"
        in cli(command, "waves.yaml", SOLO, *words[3:], *("samplr=tpe", "budget.n_trials=0")).stderr
    )


def test_validate_has_the_summary_at_its_head(cli: Cli, questions: str) -> None:
    words = (questions, "data.validation=0.5", ASK, SOLO)
    plan = json.loads(cli("validate", "waves.yaml", *words, "--json").stdout)
    assert plan["data"] == json.loads(cli("data", "waves.yaml", *words, "--json").stdout)
    assert plan["train_rows"] == plan["data"]["splits"]["train"]["num_rows"] == 5


def test_a_leak_is_told_with_its_remedy(cli: Cli, questions: str) -> None:
    words = (questions, f"data.validation={questions.partition('=')[2]}", ASK)
    said = cli("data", "waves.yaml", *words, "data.on_leak=warn")
    assert said.exit_code == 0
    told = "10 of 10 validation rows have an input that is trained on too"
    assert told in said.stdout
    refused = cli("data", "waves.yaml", *words)
    assert refused.exit_code == 2
    assert f"data.validation: {told}" in refused.stderr
    assert "data.on_leak: warn" in refused.stderr


def test_a_sample_is_asked_for_by_the_number_of_rows(cli: Cli) -> None:
    summary = json.loads(cli("data", "waves.yaml", "--rows", "50", "--json").stdout)
    assert summary["splits"]["train"]["num_measured"] == 50
    summary = json.loads(cli("data", "waves.yaml", "--rows", "0", "--json").stdout)
    assert not summary["splits"]["train"]["sampled"]


def test_what_the_space_varies_is_said(cli: Cli, folder: Path) -> None:
    varied = "space.parameters.data.subset={choices: [10, 300, 0.1]}"
    assert largest_trial(load_sweep(folder / "waves.yaml", [varied])).data.subset == 300
    result = cli("data", "waves.yaml", varied)
    assert "The space varies data.subset" in result.stdout
    fixed = "space.parameters.data.subset=20"
    summary = json.loads(cli("data", "waves.yaml", fixed, "--json").stdout)
    assert summary["splits"]["train"]["num_rows"] == 20
    assert summary["varied"] == []


def test_a_sweep_on_ray_is_looked_at_in_a_process_of_its_own(folder: Path, questions: str) -> None:
    words = [questions, "data.validation=demo", ASK, SOLO, "resources.backend=ray"]
    with pytest.raises(SweepFileError, match=r"uses column 'q', which .*validation\.jsonl"):
        check_data(load_sweep(folder / "waves.yaml", words), "waves.yaml")


def test_what_only_a_cluster_reaches_is_no_mistake_here(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far = ["data.train=s3://nowhere/rows.jsonl", "data.validation=0.1"]
    cluster = [SOLO, "resources.backend=ray", "resources.address=auto"]
    check_data(load_sweep(folder / "waves.yaml", [*far, *cluster]), "waves.yaml")
    check_data(load_sweep(folder / "waves.yaml", ["model=some/base", *cluster]), "waves.yaml")
    assert "some/base is neither a folder here nor a model" in capsys.readouterr().err
    here = load_sweep(folder / "waves.yaml", ["model=some/base", SOLO])
    with pytest.raises(SweepFileError, match="some/base"):
        check_data(here, "waves.yaml")


def test_the_sentence_of_a_limit() -> None:
    lengths = {
        "limit_name": "data.max_length",
        "limit": 512,
        "longest": 1323,
        "num_longer": 390,
        "num_cut": 390,
        "num_left_out": 0,
        "num_continued": 0,
        "limit_for_95_percent": 1088,
    }
    assert limit_sentence(lengths, 999) == (
        "390 of 999 rows (39 %) are longer than data.max_length 512 and are cut; "
        "1,088 would keep 95 % whole"
    )
    some = {**lengths, "num_cut": 380, "num_left_out": 10, "limit_for_95_percent": 512}
    assert limit_sentence(some, 9990) == (
        "390 of 9,990 rows (4 %) are longer than data.max_length 512: 380 cut, 10 left out; "
        "1,323 would keep all whole"
    )
    one = {**lengths, "num_longer": 1, "num_cut": 1, "limit_for_95_percent": 64}
    assert limit_sentence(one, 999).startswith("1 of 999 rows (0.1 %) is longer than")
    assert limit_sentence({**lengths, "num_longer": 0}, 9) == (
        "no row is longer than data.max_length 512"
    )
