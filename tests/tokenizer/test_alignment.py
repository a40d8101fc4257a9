import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from cartok.core.config import ConfigError
from cartok.core.loop import fit
from cartok.core.parallel import World
from cartok.core.run import Run, read_log
from cartok.frozen import Frozen, TokenFeatures
from cartok.recipes.tokenizer import aligned_16k, causal_toy, dino_critic_16k
from cartok.tokenizer.alignment import AlignmentConfig, AlignmentHead, on_grid
from cartok.tokenizer.train import TokenizerJob

WIDTH = 6


class ToyFeatures(Frozen):
    """Six sums of each 4 x 4 patch of a picture, in two layers of which the first misleads."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(WIDTH, 3, 4, 4, generator=generator)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, image):
        grid = nn.functional.conv2d(image.float(), self.weight, stride=4)
        tokens = grid.flatten(2).transpose(1, 2)
        return TokenFeatures((-tokens, tokens), *grid.shape[2:])


def head(channels=WIDTH, **changes) -> AlignmentHead:
    torch.manual_seed(0)
    return AlignmentHead(AlignmentConfig(weight=0.5, **changes), ToyFeatures(), channels, WIDTH)


def transparent_head(**changes) -> AlignmentHead:
    """One whose projector answers what it is given."""
    made = head(**changes)
    made.project = nn.Identity()
    return made


def some_pictures(height=16, width=16) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def seen_in(image: torch.Tensor) -> torch.Tensor:
    return on_grid(ToyFeatures()(image), image.shape[2] // 4, image.shape[3] // 4)


# ------------------------------------------------------------------ the loss


@pytest.mark.parametrize(
    ("scale", "margin", "loss"),
    [(1, 0, 0), (7, 0, 0), (-1, 0, 2), (-3, 0.5, 1.5), (1, 0.5, 0)],
)
def test_the_loss_is_one_less_the_cosine_less_the_margin(scale, margin, loss):
    image = some_pictures()
    found = transparent_head(margin=margin)(scale * seen_in(image), image)
    assert found.item() == pytest.approx(loss, abs=1e-6)


def test_cells_at_right_angles_cost_1():
    image = some_pictures()
    wanted = seen_in(image)
    other = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2))
    along = (other * wanted).sum(1, keepdim=True) / wanted.square().sum(1, keepdim=True)
    assert transparent_head()(other - along * wanted, image).item() == pytest.approx(1, abs=1e-6)


def test_cells_within_the_margin_are_let_be():
    image = some_pictures()
    wanted = seen_in(image)
    near = (wanted + 0.3 * torch.randn_like(wanted)).requires_grad_()
    cosine = nn.functional.cosine_similarity(near, wanted)
    assert (cosine > 0.5).all()
    transparent_head(margin=0.5)(near, image).backward()
    assert torch.equal(near.grad, torch.zeros_like(near))
    transparent_head()(near, image).backward()
    assert near.grad.abs().max() > 0


@pytest.mark.parametrize("hidden", [0, 16])
def test_encoder_and_projector_learn_while_features_and_picture_do_not(hidden):
    made = head(channels=5, hidden=hidden)
    latents, image = torch.randn(2, 5, 4, 4, requires_grad=True), some_pictures().requires_grad_()
    made(latents, image).backward()
    assert image.grad is None
    assert latents.grad.abs().max() > 0
    assert list(made.state_dict()) == [name for name, _ in made.named_parameters()]
    assert all(name.startswith("project.") for name in made.state_dict())
    for name, parameter in made.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_a_projector_learns_to_say_what_the_network_sees():
    made, image = head(channels=2 * WIDTH), some_pictures()
    latents = torch.randn(2, 2 * WIDTH, 4, 4, requires_grad=True)
    optimizer = torch.optim.Adam([latents, *made.parameters()], lr=0.05)
    before = made(latents, image).item()
    for _ in range(60):
        loss = made(latents, image)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 < 0.7 < before


def test_vectors_of_length_0_have_a_finite_gradient():
    latents, image = torch.zeros(2, WIDTH, 4, 4, requires_grad=True), some_pictures()
    loss = transparent_head()(latents, image)
    assert loss == 1
    loss.backward()
    assert latents.grad.isfinite().all()
    assert transparent_head()(latents, torch.zeros_like(image)).isfinite()


def test_under_bf16_the_loss_is_float32_and_that_of_float32_but_for_the_projector():
    made, image = head(channels=5), some_pictures()
    latents = torch.randn(2, 5, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(latents.bfloat16(), image)
        assert made.project(latents).dtype == torch.bfloat16
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(made(latents, image).item(), abs=0.01)


def test_features_with_something_to_save_are_refused():
    with pytest.raises(AssertionError, match="nothing that is saved"):
        AlignmentHead(AlignmentConfig(), nn.Linear(2, 2), 4, 2)


# ------------------------------------------------------------------ recipes


@pytest.fixture(scope="module")
def dino_weights(tmp_path_factory):
    """A file of DINOv2's shapes and of random numbers."""
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
    path = tmp_path_factory.mktemp("dino") / "model.safetensors"
    save_file(network.state_dict(), path)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "learns", "terms"),
    [
        (aligned_16k, "alignment", {"codec/alignment", "gradient/alignment"}),
        (dino_critic_16k, "critic", {"codec/critic", "critic/hinge", "critic/lecam"}),
    ],
)
def test_the_recipes_that_look_through_dino_train(
    recipe, learns, terms, dino_weights, pictures, tmp_path
):
    toy, wanted = causal_toy(), recipe().losses
    critic = replace(wanted.critic, channels=8, layers=2, start=1, ramp=0, warm=1)
    losses = replace(wanted, perceptual=0.0, critic=critic, dino_weights=dino_weights)
    loop = replace(toy.loop, steps=3, precision="bf16")
    run = replace(toy, losses=losses, loop=loop, equal_compute=False)
    job = TokenizerJob(run, pictures, World())
    start = {key: value.clone() for key, value in job.modules[learns].state_dict().items()}
    assert not any("features" in key for key in start)  # DINO is neither saved nor moved
    outcome = fit(job, loop, Run.open(tmp_path / "run", run, kind="tokenizer"))
    assert outcome.finished
    now = job.modules[learns].state_dict()
    assert not any(torch.equal(start[key], now[key]) for key in start if key.endswith("weight"))
    last = read_log(tmp_path / "run")[-1]
    assert all(math.isfinite(last[term]) and last[term] != 0 for term in terms)
    plain = TokenizerJob(replace(toy, equal_compute=False), pictures, World())
    counted = {"alignment": "codec", "critic": "critic"}[learns]
    assert getattr(job.flops, counted) > 10 * getattr(plain.flops, counted)


# ------------------------------------------------------------------ grids


def test_on_their_own_grid_features_keep_their_place():
    tokens = torch.arange(12.0).view(1, 6, 2)
    grid = on_grid(TokenFeatures((-tokens, tokens), 2, 3), 2, 3)  # the last layer counts
    assert torch.equal(grid[0, 0], torch.tensor([[0.0, 2, 4], [6, 8, 10]]))
    assert torch.equal(grid[0, 1], grid[0, 0] + 1)


@given(rows=st.integers(1, 9), cols=st.integers(1, 9))
def test_features_that_are_alike_everywhere_stay_so_on_any_grid(rows, cols):
    tokens = torch.tensor([3.0, -1.0]).expand(1, 20, 2)
    grid = on_grid(TokenFeatures((tokens,), 4, 5), rows, cols)
    assert grid.shape == (1, 2, rows, cols)
    torch.testing.assert_close(grid, torch.tensor([3.0, -1.0]).view(1, 2, 1, 1).expand_as(grid))


def test_on_a_coarser_grid_no_cell_is_passed_over():
    for place in range(64):
        tokens = torch.zeros(1, 64, 1)
        tokens[0, place] = 1
        grid = on_grid(TokenFeatures((tokens,), 8, 8), 2, 2)
        row, col = place // 8 // 4, place % 8 // 4
        assert grid[0, 0, row, col] == grid.max() > 0


def test_pictures_need_not_be_square():
    image = some_pictures(16, 32)
    assert transparent_head()(seen_in(image), image).item() == pytest.approx(0, abs=1e-6)
    assert head(channels=5)(torch.randn(2, 5, 8, 16), image).isfinite()


@pytest.mark.parametrize(
    "change",
    [{"weight": -1.0}, {"hidden": -1}, {"margin": -0.1}, {"margin": 2.0}, {"network": "clip"}],
)
def test_senseless_alignments_are_refused(change):
    with pytest.raises(ConfigError):
        AlignmentConfig(**change)
