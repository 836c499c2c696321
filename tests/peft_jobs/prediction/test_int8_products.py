"""Products with 8-bit weights: a GPU's operators, and their work by hand."""

from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from peft_jobs.prediction.fake_base import Kind, fake_in_place
from peft_jobs.prediction.int8_products import int8_products_of
from peft_jobs.prediction.meter import Meter
from peft_jobs.prediction.quantized_layers import quantize_by_shape
from peft_jobs.spec import QuantizationSpec

ROWS, IN, OUT = 6, 64, 128


def metered(kind: Kind) -> tuple[Meter, Any]:
    """A forward and a backward through one layer, behind which something is trained."""
    with torch.device("meta"):
        model = nn.Sequential(bnb.nn.Linear8bitLt(IN, OUT, bias=False, has_fp16_weights=False))
    quantize_by_shape(model, QuantizationSpec(scheme="int8"))
    mode, meter = FakeTensorMode(allow_non_fake_inputs=True), Meter()
    fake_in_place(model, mode)
    with mode, int8_products_of(kind), meter:
        hidden = torch.zeros(2, ROWS // 2, IN, dtype=torch.bfloat16, requires_grad=True)
        meter.is_counting = True
        out = model(hidden)
        out.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == hidden.shape
    return meter, out


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_forward_and_backward_are_a_product_each(kind: Kind) -> None:
    meter, out = metered(kind)
    assert out.shape == (2, ROWS // 2, OUT)
    products = [operation for operation in meter.operations if operation.flops]
    assert [operation.flops for operation in products] == [2 * ROWS * IN * OUT] * 2
    assert [operation.dtype for operation in products] == [
        "int8" if kind == "cuda" else "bfloat16",
        "bfloat16",
    ]
    assert (bnb.matmul.__module__) == "bitsandbytes.autograd._functions"
