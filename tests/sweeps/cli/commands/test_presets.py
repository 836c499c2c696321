"""`presets`: every preset with what it is for, and the file of one."""

import json
from collections.abc import Callable

import yaml
from typer.testing import Result

from search_spaces import PRESETS, load_space

Cli = Callable[..., Result]


def test_all_are_listed_with_their_purpose_and_size(cli: Cli) -> None:
    listed = json.loads(cli("presets", "--json").stdout)
    assert [each["name"] for each in listed] == list(PRESETS)
    for each in listed:
        text = PRESETS[each["name"]].read_text(encoding="utf-8")
        assert f"# Use this for {each['use_for']}." == text.splitlines()[0]
        assert each["num_parameters"] == len(load_space({"preset": each["name"]}).names())
    assert {each["by"] for each in listed} == {"question", "method"}
    shown = cli("presets").stdout
    assert shown.index("By question") < shown.index("qlora-24gb") < shown.index("By method")
    assert shown.index("By method") < shown.index("lycoris")


def test_one_is_printed_as_it_is(cli: Cli) -> None:
    text = PRESETS["qlora"].read_text(encoding="utf-8")
    assert cli("presets", "qlora").stdout == text
    assert json.loads(cli("presets", "qlora", "--json").stdout)["space"] == yaml.safe_load(text)


def test_an_unknown_one_is_answered_with_the_known_ones(cli: Cli) -> None:
    result = cli("presets", "qlroa")
    assert result.exit_code == 2
    assert "unknown preset 'qlroa'; did you mean 'qlora'" in result.stderr
