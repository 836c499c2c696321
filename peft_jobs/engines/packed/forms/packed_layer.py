"""PackedLayer: a layer in the place of one of the base's, for the rows of all slots at work."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from peft_jobs.base.quantization import QUANTIZED

if TYPE_CHECKING:
    from peft_jobs.engines.packed.pack import Pack


class PackedLayer(nn.Module):
    """What layers of every form have. They may lie in one another: each leaves the rows of slots
    that do not have its form as they are."""

    def __init__(self, base_layer: nn.Module, name: str, pack: "Pack") -> None:
        """`base_layer` is the base's own, or a PackedLayer around it; `name` is the module's."""
        super().__init__()
        self.base_layer, self.name, self.pack = base_layer, name, pack
        self.is_quantized: bool = (
            base_layer.is_quantized
            if isinstance(base_layer, PackedLayer)
            else isinstance(base_layer, QUANTIZED)
        )
        self.train(base_layer.training)

    @property
    def weight(self) -> Any:
        """The base's, at whose type some architectures look."""
        return self.base_layer.weight

    def by_slot(self, x: Tensor) -> Tensor:
        """[rows, ..., I] -> [K, T, I]."""
        return x.reshape(self.pack.num_at_work, -1, x.shape[-1])
