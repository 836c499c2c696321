"""Every method's step is predicted, with the number of parameters that was counted by hand."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from peft_jobs.host.gpus import GPUS
from peft_jobs.host.prediction import Lengths
from peft_jobs.prediction.fake_base import meta_base
from peft_jobs.prediction.predict import predict
from peft_jobs.prediction.solo_steps import trainee_of
from peft_jobs.spec import TrialSpec
from tests.support.fake_bases import spec_on
from tests.support.method_examples import EXAMPLES, Example

IDS = [f"{index}-{example.method}" for index, example in enumerate(EXAMPLES)]
FIRST = {example.method: example for example in reversed(EXAMPLES)}
L4, LENGTHS = GPUS["L4"], Lengths.of(16)
VALUED = ("adamss", "frod", "shira", "vblora", "waveft", "hira")
"""Methods that look at values, or at a weight's class, on the way."""


def spec_of(example: Example, base: Path, scheme: str = "none") -> TrialSpec:
    if example.fields.get("init_lora_weights") == "loftq":
        scheme = "nf4"
    return spec_on(base, quantization={"scheme": scheme}).with_params(example.params)


@pytest.mark.parametrize("example", EXAMPLES, ids=IDS)
def test_the_adapter_without_values_has_its_parameters(
    example: Example, tiny_llama_path: Path
) -> None:
    spec = spec_of(example, tiny_llama_path)
    model = trainee_of(spec, meta_base(spec, "cuda", 2, None)).model
    assert model.get_nb_trainable_parameters()[0] == example.count


@pytest.mark.parametrize("method", VALUED)
def test_steps_that_look_at_values_are_predicted(method: str, tiny_llama_path: Path) -> None:
    check(spec_of(FIRST[method], tiny_llama_path), FIRST[method].count)


@pytest.mark.parametrize(
    "params", [{"adapter.use_dora": True}, {"adapter.method": "hira"}], ids=str
)
def test_quantized_weights_that_are_read_are_predicted(
    params: dict[str, object], tiny_llama_path: Path
) -> None:
    spec = spec_on(tiny_llama_path, quantization={"scheme": "nf4"}).with_params(params)
    plain = spec.with_params({"quantization.scheme": "none"})
    check(spec, predict([plain], L4, LENGTHS)[0].trainable_parameters)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["none", "nf4", "int8"])
@pytest.mark.parametrize("method", list(FIRST))
def test_every_method_s_steps_are_predicted(
    method: str, scheme: str, tiny_llama_path: Path
) -> None:
    try:
        spec = spec_of(FIRST[method], tiny_llama_path, scheme)
    except ValidationError:
        pytest.skip(f"{method} takes no {scheme}")
    check(spec, FIRST[method].count)


def check(spec: TrialSpec, count: int) -> None:
    [found] = predict([spec], L4, LENGTHS)
    assert found.trainable_parameters == count
    assert found.memory["optimizer"] >= 8 * count, "two moments"
    assert found.flops > 0
    assert found.fits
