"""What frozen networks are made of: no parameters, nothing saved, channels last in memory."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

FeatureMap = Float[Tensor, "batch _ _ _"]
"""Feature vectors of pictures on a grid; channels first, both changing from layer to layer."""


class Frozen(nn.Module):
    """A network that stays as it was published: ``train()`` changes nothing."""

    def train(self, mode: bool = True) -> "Frozen":
        """Stays in evaluation mode, so a training loop may call it on everything it holds."""
        return super().train(False)


def freeze(network: nn.Module) -> None:
    """Turns parameters into buffers that are not saved, so nothing can train or store them."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach(), persistent=False)


class FrozenConv(nn.Module):
    """A convolution and its activation, padded as TensorFlow's "same", any size."""

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        activation: Callable[[Tensor], Tensor] | None,
        stride: int = 1,
        groups: int = 1,
    ):
        super().__init__()
        weight = weight.contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.activation, self.stride, self.groups = activation, stride, groups

    def forward(self, features: FeatureMap) -> FeatureMap:
        """The convolution, then the activation if there is one."""
        height, width = features.shape[2:]
        padding = [*self._padding(width), *self._padding(height)]
        even = len(set(padding)) == 1
        features = F.conv2d(
            features if even else F.pad(features, padding),
            self.weight,
            self.bias,
            self.stride,
            padding[0] if even else 0,
            groups=self.groups,
        )
        return self.activation(features) if self.activation else features

    def _padding(self, length: int) -> tuple[int, int]:
        """Before and after, so that ceil(length / stride) outputs come; the odd one goes after."""
        outputs = -(-length // self.stride)
        total = max((outputs - 1) * self.stride + self.weight.shape[-1] - length, 0)
        return total // 2, total - total // 2
