"""The layer of a bottleneck adapter, around the linear layer after which it stands."""

from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peft_jobs.spec.adapters import BottleneckSpec

_ACTIVATIONS: dict[str, Any] = {
    "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh,
}  # fmt: skip
_STD = 1e-2
"""Houlsby et al., section 3.6: normal with this standard deviation, truncated at two of them."""


class Adapted(nn.Module):
    """y + up(f(down(dropout(y)))) for the output y of `base_layer`; the network is in float32."""

    def __init__(self, base_layer: nn.Module, adapter: BottleneckSpec) -> None:
        super().__init__()
        self.base_layer = base_layer
        width = width_of(base_layer)
        size = max(1, width // adapter.reduction_factor)
        self.adapter_dropout = nn.Dropout(adapter.adapter_dropout)
        self.adapter_down = nn.Linear(width, size)
        self.activation = _ACTIVATIONS[adapter.non_linearity]()
        self.adapter_up = nn.Linear(size, width)
        for linear in (self.adapter_down, self.adapter_up):
            nn.init.trunc_normal_(linear.weight, std=_STD, a=-2 * _STD, b=2 * _STD)
            nn.init.zeros_(linear.bias)
        device = next(base_layer.parameters()).device
        for part in (self.adapter_down, self.adapter_up):
            part.to(device)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = self.base_layer(*args, **kwargs)
        x = self.adapter_dropout(output.to(self.adapter_down.weight.dtype))
        added: Tensor = self.adapter_up(self.activation(self.adapter_down(x)))
        return output + added.to(output.dtype)

    @property
    def weight(self) -> Any:
        """The base layer's: some models look at its dtype."""
        return self.base_layer.weight


def width_of(layer: nn.Module) -> int:
    """Width of a linear layer's output."""
    return int(layer.nf if isinstance(layer, Conv1D) else layer.out_features)  # type: ignore[arg-type]
