import torch
from torch import nn

from cartok.core.recompute import recompute_in_place


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 64), nn.Dropout(0.5), nn.Tanh(), nn.Linear(64, 8), nn.Dropout(0.5)
        )
        self.calls = 0

    def forward(self, x, scale):
        self.calls += 1
        return x + scale * self.net(x)


def trained(recomputes):
    """Loss, gradients and next noise of a step, bytes kept for going back, calls of a layer."""
    torch.manual_seed(0)
    layers = nn.ModuleList(Layer() for _ in range(3))
    if recomputes:
        recompute_in_place(layers)
    kept = {}
    weights = {weight.untyped_storage().data_ptr() for weight in layers.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(16, 8)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for layer in layers:
            x = layer(x, 0.5)
        loss = x.square().mean()
    noise = torch.rand(3)
    loss.backward()
    found = [loss.detach(), noise, *(weight.grad for weight in layers.parameters())]
    return found, sum(kept.values()), layers


def test_what_is_computed_again_has_the_same_loss_gradients_and_noise():
    (mine, _, layers), (wanted, _, plain) = trained(True), trained(False)
    assert all(torch.equal(one, other) for one, other in zip(mine, wanted, strict=True))
    assert [layer.calls for layer in layers] == [2, 2, 2]
    assert [layer.calls for layer in plain] == [1, 1, 1]
    assert layers.state_dict().keys() == plain.state_dict().keys()


def test_it_is_not_kept():
    (_, mine, _), (_, plain, _) = trained(True), trained(False)
    assert 0 < mine < plain / 8  # an input of 8 in place of activations of 64


def test_without_gradients_nothing_is_computed_twice():
    _, _, layers = trained(True)
    with torch.no_grad():
        layers[0].eval()(torch.zeros(1, 8), 0.5)
    assert layers[0].calls == 3
