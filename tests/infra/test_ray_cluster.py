"""The cluster launcher's file, held against Ray's own schema and defaults."""

from typing import Any

import pytest
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.support.documents import INFRA, documents

AWS = INFRA / "ray" / "aws.yaml"


@pytest.fixture
def config() -> dict[str, Any]:
    (document,) = documents(AWS)
    return document


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    validate_config(prepare_config(config))


def test_ray_would_say_what_is_wrong(config: dict[str, Any]) -> None:
    config["idle_timeout_minuts"] = 5
    with pytest.raises(ValidationError, match="idle_timeout_minuts"):
        validate_config(prepare_config(config))


def test_no_trial_lands_on_the_head(config: dict[str, Any]) -> None:
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert any("--head" in c and "--num-cpus=0 " in c for c in config["head_start_ray_commands"])


def test_workers_are_started_for_sweeps_on_demand_and_on_the_spot_market(
    config: dict[str, Any],
) -> None:
    workers = dict(config["available_node_types"])
    del workers[config["head_node_type"]]
    markets = [
        w["node_config"].get("InstanceMarketOptions", {}).get("MarketType")
        for w in workers.values()
    ]
    assert sorted(map(str, markets)) == ["None", "spot"]
    assert all(0 == w["min_workers"] < w["max_workers"] for w in workers.values())
    assert sum(w["max_workers"] for w in workers.values()) <= config["max_workers"]


def test_nodes_want_the_token_and_listen_on_no_public_address(config: dict[str, Any]) -> None:
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "0.0.0.0" not in AWS.read_text()
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
