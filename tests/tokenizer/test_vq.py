import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cartok.core.config import ConfigError
from cartok.tokenizer.quantize import Statistics, codebook, rows
from cartok.tokenizer.quantize.rows import unit
from cartok.tokenizer.quantize.vq import VectorQuantizer, VQConfig


def quantizer(codebook_size=32, dim=4, seed=0, **changes) -> VectorQuantizer:
    torch.manual_seed(seed)
    return VectorQuantizer(VQConfig(codebook_size=codebook_size, dim=dim, **changes))


def some_latents(dim=4, batch=3, rows=2, cols=5, seed=0, size=1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(batch, dim, rows, cols, generator=generator)


def directions(latents: torch.Tensor, dim: int) -> torch.Tensor:
    return latents.double() / latents.double().norm(dim=dim, keepdim=True)


BOTH = pytest.mark.parametrize("normalise", [True, False])


# ------------------------------------------------------------------ the look-up


@settings(max_examples=40, deadline=None)
@given(
    codebook_size=st.integers(2, 70),
    dim=st.integers(1, 9),
    batch=st.integers(1, 3),
    rows=st.integers(1, 4),
    cols=st.integers(1, 4),
    normalise=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_code_is_the_nearest_one(codebook_size, dim, batch, rows, cols, normalise, seed):
    net = quantizer(codebook_size, dim, seed, normalise=normalise)
    size = 1.0 if normalise else 1.0 / codebook_size  # where the codes are, off the sphere
    latents = some_latents(dim, batch, rows, cols, seed, size)
    table = net.table.detach().double()
    wanted = latents.double()
    if normalise:
        table, wanted = directions(table, 1), directions(wanted, 1)
    distances = torch.cdist(wanted.movedim(1, -1).reshape(-1, dim), table)
    tokens = net.tokens_of(latents)
    assert tokens.shape == (batch, rows, cols)
    chosen = distances.gather(1, tokens.reshape(-1, 1))[:, 0]
    least = distances.min(1).values
    # Two codes within float32's reach of each other are both right.
    assert (chosen - least <= 1e-3 * size).all()
    assert torch.equal(net(latents).tokens, tokens)


def test_on_the_sphere_the_nearest_code_is_the_most_aligned_whatever_the_length():
    net = quantizer()
    latents = some_latents()
    cosines = torch.einsum("bdrc,kd->brck", directions(latents, 1), directions(net.table, 1))
    for size in (1.0, 100.0):
        assert torch.equal(net.tokens_of(size * latents), cosines.argmax(-1))


def test_off_the_sphere_length_decides_too():
    net = quantizer(codebook_size=2, dim=2, normalise=False)
    with torch.no_grad():
        net.table.copy_(torch.tensor([[1.0, 0.0], [10.0, 1.0]]))
    latents = torch.tensor([[1.0, 0.2], [9.0, 0.2]]).T[None, :, None]
    assert net.tokens_of(latents).flatten().tolist() == [0, 1]


@settings(max_examples=25, deadline=None)
@given(
    codebook_size=st.integers(2, 64),
    dim=st.integers(4, 9),
    normalise=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_tokens_of_codes_are_the_tokens(codebook_size, dim, normalise, seed):
    net = quantizer(codebook_size, dim, seed, normalise=normalise)
    tokens = torch.randperm(codebook_size).view(1, 1, -1)
    assert torch.equal(net.tokens_of(net.codes_of(tokens)), tokens)


@BOTH
def test_codes_are_the_tables_rows_at_the_tokens_places(normalise):
    net = quantizer(normalise=normalise)
    tokens = torch.randint(32, (2, 3, 4))
    codes = net.codes_of(tokens)
    for place in ((0, 0, 0), (1, 2, 3), (0, 1, 2)):
        batch, row, col = place
        torch.testing.assert_close(codes[batch, :, row, col], net.book()[tokens[place]])


@BOTH
def test_tokens_do_not_depend_on_the_batch_or_on_the_rows_searched_at_once(normalise, monkeypatch):
    net = quantizer(normalise=normalise)
    latents = some_latents(batch=8, size=1.0 if normalise else 0.03)
    together = net.tokens_of(latents)
    assert torch.equal(torch.cat([net.tokens_of(one) for one in latents.split(3)]), together)
    monkeypatch.setattr(rows, "_SCORES_AT_ONCE", 7 * 32)
    assert torch.equal(net.tokens_of(latents), together)


def test_the_table_starts_as_the_recipes_say():
    on, off = quantizer(256), quantizer(256, normalise=False)
    assert 0.95 < on.table.abs().max() <= 1
    assert 0.95 / 256 < off.table.abs().max() <= 1 / 256  # LlamaGen's 1/K


# ------------------------------------------------------------------ gradients


@BOTH
def test_the_gradient_of_the_codes_passes_straight_to_the_entering_latents(normalise):
    net = quantizer(normalise=normalise)
    quantized = net(some_latents().requires_grad_())
    gradient = torch.randn_like(quantized.codes)
    found = torch.autograd.grad(
        quantized.codes, [quantized.latents, net.table], gradient, allow_unused=True
    )
    assert torch.equal(found[0], gradient)
    assert found[1] is None
    torch.testing.assert_close(quantized.codes, net.codes_of(quantized.tokens))


@BOTH
def test_each_loss_is_the_mean_squared_distance_and_moves_one_side_only(normalise):
    net = quantizer(normalise=normalise)
    latents = some_latents().requires_grad_()
    quantized = net(latents)
    codes = net.codes_of(quantized.tokens)
    distance = (codes - quantized.latents).square().mean()
    torch.testing.assert_close(quantized.losses["codebook"], distance)
    torch.testing.assert_close(quantized.losses["commitment"], distance)

    def moved_by(loss):
        return torch.autograd.grad(loss, [latents, net.table], retain_graph=True, allow_unused=True)

    to_latents, to_table = moved_by(quantized.losses["codebook"])
    assert to_latents is None
    used = quantized.statistics.counts > 0
    assert 0 < used.sum() < len(used)
    assert torch.equal(to_table.abs().sum(1) > 0, used)
    to_latents, to_table = moved_by(quantized.losses["commitment"])
    assert to_table is None
    assert (to_latents.abs().sum(1) > 0).all()


def test_off_the_sphere_the_losses_have_the_gradients_of_a_squared_distance():
    net = quantizer(normalise=False)
    latents = some_latents().requires_grad_()
    quantized = net(latents)
    gap = (latents - net.codes_of(quantized.tokens)).detach()
    (found,) = torch.autograd.grad(quantized.losses["commitment"], latents)
    torch.testing.assert_close(found, 2 * gap / gap.numel())
    (found,) = torch.autograd.grad(quantized.losses["codebook"], net.table)
    wanted = torch.zeros_like(net.table)
    wanted.index_add_(0, quantized.tokens.flatten(), -2 * gap.movedim(1, -1).reshape(-1, 4))
    torch.testing.assert_close(found, wanted / gap.numel())


def test_descending_the_codebook_loss_brings_codes_to_their_latents():
    net, latents = quantizer(4), some_latents(batch=16)
    losses = []
    for _ in range(60):
        loss = net(latents).losses["codebook"]
        (gradient,) = torch.autograd.grad(loss, net.table)
        with torch.no_grad():
            net.table -= 2.0 * gradient
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@BOTH
@pytest.mark.parametrize("autocast", [False, True])
def test_zero_latents_give_finite_gradients(normalise, autocast):
    net = quantizer(normalise=normalise)
    encoder = torch.nn.Conv2d(3, 4, 1)
    torch.nn.init.zeros_(encoder.weight)
    torch.nn.init.zeros_(encoder.bias)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        latents = encoder(torch.ones(2, 3, 4, 4))
        assert latents.dtype == (torch.bfloat16 if autocast else torch.float32)
        quantized = net(latents)
    loss = quantized.codes.sum() + quantized.losses["codebook"] + quantized.losses["commitment"]
    loss.backward()
    assert quantized.latents.abs().max() == 0
    assert encoder.weight.grad.isfinite().all()
    assert net.table.grad.isfinite().all()


@BOTH
def test_under_autocast_everything_is_computed_in_float32(normalise):
    net, latents = quantizer(512, 8, normalise=normalise), some_latents(8, batch=16)
    plain = net(latents)
    with torch.autocast("cpu", torch.bfloat16):
        quantized = net(latents)
        tokens = net.tokens_of(latents)
    assert torch.equal(tokens, plain.tokens)
    assert torch.equal(quantized.tokens, plain.tokens)
    assert torch.equal(quantized.codes, plain.codes)
    assert quantized.losses["codebook"] == plain.losses["codebook"]
    assert quantized.codes.dtype == quantized.latents.dtype == torch.float32


def test_unit_vectors_have_unit_length_and_zero_stays_zero():
    vectors = some_latents(size=3.0)
    torch.testing.assert_close(unit(vectors, dim=1).norm(dim=1), torch.ones(3, 2, 5))
    assert unit(torch.zeros(1, 4), dim=1).abs().max() == 0
    net = quantizer()
    assert net(vectors).on_sphere
    torch.testing.assert_close(net(vectors).latents.norm(dim=1), torch.ones(3, 2, 5))
    off = quantizer(normalise=False)
    assert not off(vectors).on_sphere
    assert torch.equal(off(vectors).latents, vectors)


# ------------------------------------------------------------------ statistics and revival


def test_statistics_count_tokens_and_keep_latents_in_raster_order():
    net, latents = quantizer(), some_latents()
    quantized = net(latents)
    counted = torch.bincount(quantized.tokens.flatten(), minlength=32)
    assert torch.equal(quantized.statistics.counts, counted.float())
    rows = quantized.statistics.candidates
    assert rows.shape == (3 * 2 * 5, 4)
    torch.testing.assert_close(rows[1 * 10 + 1 * 5 + 2], quantized.latents[1, :, 1, 2])
    assert not rows.requires_grad


def step_of(counts: list[float], seed: int = 0) -> Statistics:
    generator = torch.Generator().manual_seed(seed)
    return Statistics(torch.tensor(counts).float(), torch.randn(20, 4, generator=generator))


@pytest.mark.parametrize("patience", [1, 3, 5])
def test_a_code_is_revived_after_exactly_so_many_steps_without_use(patience):
    net = quantizer(4, revive_after=patience)
    before = net.table.detach().clone()
    for step in range(patience - 1):
        net.update(step_of([1, 1, 0, 1]), step)
        assert torch.equal(net.table, before)
    last = step_of([1, 1, 0, 1], seed=9)
    net.update(last, patience - 1)
    assert torch.equal(net.table[[0, 1, 3]], before[[0, 1, 3]])
    assert (last.candidates == net.table[2]).all(1).any()  # a latent of this very step
    assert net.idle.tolist() == [0, 0, 0, 0]


def test_use_starts_the_count_anew():
    net = quantizer(4, revive_after=3)
    before = net.table.detach().clone()
    for step, third in enumerate([0, 0, 1, 0, 0]):
        net.update(step_of([1, 1, third, 1]), step)
    assert torch.equal(net.table, before)
    net.update(step_of([1, 1, 0, 1]), 5)
    assert not torch.equal(net.table[2], before[2])


def test_revival_depends_on_the_step_and_the_statistics_alone():
    tables = []
    for seed in (0, 1):
        net = quantizer(16, revive_after=1)
        torch.manual_seed(seed)  # the global generator must not matter
        net.update(step_of([0.0] * 16), 7)
        tables.append(net.table.detach().clone())
    assert torch.equal(*tables)
    other = quantizer(16, revive_after=1)
    other.update(step_of([0.0] * 16), 8)
    assert not torch.equal(other.table, tables[0])


def test_no_code_is_ever_revived_at_zero():
    net = quantizer(4, revive_after=0)
    before = net.table.detach().clone()
    for step in range(50):
        net.update(step_of([1, 0, 0, 0]), step)
    assert torch.equal(net.table, before)


@BOTH
def test_a_revived_code_is_the_nearest_of_the_latent_it_was_born_on(normalise):
    net = quantizer(3, normalise=normalise, revive_after=1)
    latents = some_latents(batch=1, rows=1, cols=1, size=50.0)
    first = net(latents)
    net.update(first.statistics, 0)  # two codes are dead; one moves to the one latent there is
    again = net(latents)
    assert again.tokens.item() != first.tokens.item()
    assert again.losses["commitment"] < 1e-9


def test_idle_counts_travel_with_the_weights():
    net, other = quantizer(4, revive_after=3), quantizer(4, revive_after=3, seed=1)
    for step in range(2):
        net.update(step_of([1, 1, 0, 1]), step)
    other.load_state_dict(net.state_dict())
    other.update(step_of([1, 1, 0, 1]), 2)
    net.update(step_of([1, 1, 0, 1]), 2)
    assert torch.equal(net.table, other.table)


def test_every_dead_code_is_born_on_a_latent_of_its_own_while_there_are_any():
    net = quantizer(8, revive_after=1)
    net.update(step_of([0, 1, 0, 0, 1, 0, 0, 0]), 3)
    born = net.table[[0, 2, 3, 5, 6, 7]]
    assert len(born.unique(dim=0)) == 6


def test_where_latents_are_fewer_than_dead_codes_the_rest_wait_for_the_next_step():
    net = quantizer(8, revive_after=1)
    before = net.table.detach().clone()
    for step, num_moved in enumerate([3, 6, 8, 8]):
        few = some_latents(batch=1, rows=1, cols=3, seed=step)[0, :, 0].T
        net.update(Statistics((torch.arange(8) < 3 * step).float(), few), step)
        assert (net.table != before).any(1).sum() == num_moved
        assert len(net.table.unique(dim=0)) == 8


# ------------------------------------------------------------------ running means


def test_running_means_follow_the_closed_form():
    net = quantizer(4, codebook="ema", decay=0.75, normalise=False)
    share, total = torch.full((4,), 0.25), 0.25 * net.table.clone()
    for step in range(3):
        seen = net(some_latents(seed=step)).statistics
        share = 0.75 * share + 0.25 * seen.counts / 30
        total = 0.75 * total + 0.25 * seen.sums / 30
        net.update(seen, step)
        torch.testing.assert_close(net.table, total / share[:, None], rtol=1e-4, atol=1e-6)


@BOTH
def test_running_means_settle_on_the_means_of_their_latents(normalise):
    net = quantizer(4, codebook="ema", decay=0.5, normalise=normalise, revive_after=5)
    latents = some_latents(batch=40)
    for step in range(60):
        net.update(net(latents).statistics, step)
    quantized = net(latents)
    rows, index = quantized.statistics.candidates, quantized.tokens.flatten()
    for code in range(4):
        mean = rows[index == code].mean(0)
        wanted = mean / mean.norm() if normalise else mean
        torch.testing.assert_close(net.book()[code], wanted, rtol=1e-3, atol=1e-3)


def test_running_means_do_not_depend_on_the_number_of_ranks_that_share_the_counts():
    one, many = (quantizer(8, codebook="ema") for _ in range(2))
    for step in range(3):
        seen = one(some_latents(seed=step)).statistics
        one.update(seen, step)
        many.update(Statistics(seen.counts / 4, seen.candidates, seen.sums / 4), step)
    torch.testing.assert_close(one.table, many.table)


def test_a_code_that_nothing_takes_stays_where_it_is_on_the_sphere():
    net = quantizer(4, codebook="ema", decay=0.5)
    before = net.table[2].clone()
    sums = torch.tensor([1.0, 1, 0, 1])[:, None] * some_latents(batch=1)[0, :, 0, :4].T
    for step in range(300):
        net.update(Statistics(torch.tensor([1.0, 1, 0, 1]), sums, sums), step)
    torch.testing.assert_close(net.table[2], before)
    torch.testing.assert_close(net.book()[0], unit(sums[0], dim=0))


def test_a_revived_code_starts_where_it_was_born_and_not_from_old_means():
    net = quantizer(4, codebook="ema", decay=0.9, revive_after=1)
    first = Statistics(torch.tensor([9.0, 9, 0, 9]), some_latents(batch=1)[0].flatten(1).T,
                       torch.ones(4, 4) * torch.tensor([9.0, 9, 0, 9])[:, None])  # fmt: skip
    net.update(first, 0)
    born = net.table[2].clone()
    assert (first.candidates == born).all(1).any()
    net.update(first, 1)  # unused again: the old means are forgotten, and it is born elsewhere
    share = net.shares.clone()
    assert share[2] == 0.25
    torch.testing.assert_close(net.sums[2], 0.25 * net.table[2])


def test_running_means_leave_no_parameter_and_no_codebook_loss():
    net = quantizer(codebook="ema")
    assert not list(net.parameters())
    assert set(net(some_latents()).losses) == {"commitment"}


# ------------------------------------------------------------------ k-means


def clusters(num=6, each=20, dim=4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = 5 * torch.randn(num, 1, dim, generator=generator)
    points = centres + 0.01 * torch.randn(num, each, dim, generator=generator)
    return points.flatten(0, 1).T[None, :, None]


@BOTH
def test_codes_start_at_the_centres_of_the_first_steps_latents(normalise):
    net = quantizer(24, init="kmeans", normalise=normalise)
    latents = clusters()
    first = net(latents)
    net.update(first.statistics, 0)
    again = net(latents)
    assert again.error < 1e-3 * first.error
    rows, index = again.statistics.candidates, again.tokens.flatten()
    for code in index.unique():
        mean = rows[index == code].mean(0)
        wanted = unit(mean, dim=0) if normalise else mean
        torch.testing.assert_close(net.book()[code], wanted, rtol=1e-2, atol=1e-2)


def test_codes_start_once_also_after_a_break():
    net, other = (quantizer(8, init="kmeans", seed=seed) for seed in (0, 1))
    net.update(net(some_latents(seed=0)).statistics, 5)
    started = net.table.detach().clone()
    other.load_state_dict(net.state_dict())
    for one in (net, other):
        one.update(one(some_latents(seed=1)).statistics, 6)
        assert torch.equal(one.table, started)
        assert not one.learns_by_update  # the ranks need not talk any longer


def test_with_fewer_latents_than_codes_each_is_a_code_and_the_rest_stay():
    net = quantizer(32, init="kmeans")
    before = net.book().detach().clone()
    latents = some_latents(batch=1, rows=1, cols=5)
    net.update(net(latents).statistics, 0)
    assert net(latents).error < 1e-9
    torch.testing.assert_close(net.book()[5:], before[5:])


def test_a_centre_that_no_latent_is_nearest_to_stays_and_others_are_directions_on_the_sphere():
    generator = torch.Generator().manual_seed(0)
    points = torch.tensor([[3.0, 0.0], [3.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    centres = codebook.centres_of(points, torch.zeros(4, 2), False, generator)
    assert torch.equal(centres.sort(0).values, points.sort(0).values)
    spread = unit(torch.randn(50, 3, generator=generator), dim=1)
    centres = codebook.centres_of(spread, torch.zeros(4, 3), True, generator)
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(4))


def test_sums_of_k_means_do_not_depend_on_the_order():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(4000, 3, generator=generator) * 10.0 ** torch.arange(-3, 0)
    index = torch.randint(7, (4000,), generator=generator)
    sums = codebook._exact_sums(points, index, 7)
    order = torch.randperm(4000, generator=generator)
    assert torch.equal(codebook._exact_sums(points[order], index[order], 7), sums)
    exact = torch.zeros(7, 3, dtype=torch.float64).index_add_(0, index, points.double())
    torch.testing.assert_close(sums, exact.float(), rtol=1e-6, atol=1e-6)
    assert codebook._exact_sums(torch.zeros(2, 3), torch.zeros(2).long(), 2).abs().max() == 0


# ------------------------------------------------------------------ rotation


@BOTH
def test_a_rotated_gradient_stands_to_the_latent_as_the_plain_one_to_the_code(normalise):
    """Angles and, but for the stretch, lengths are kept."""
    net = quantizer(normalise=normalise, gradient="rotation")
    quantized = net(some_latents().requires_grad_())
    gradient = some_latents(seed=1)
    (found,) = torch.autograd.grad(quantized.codes, quantized.latents, gradient)
    latents, codes = quantized.latents.detach(), net.codes_of(quantized.tokens).detach()
    stretch = codes.norm(dim=1) / latents.norm(dim=1)
    torch.testing.assert_close(found.norm(dim=1), stretch * gradient.norm(dim=1))
    before = (gradient * codes).sum(1) / codes.norm(dim=1)
    after = (found * latents).sum(1) / latents.norm(dim=1)
    torch.testing.assert_close(after, stretch * before, rtol=1e-4, atol=1e-5)


def test_a_latent_on_its_code_has_the_plain_gradient_and_an_opposite_one_a_finite_one():
    codes = some_latents()
    for factor in (1.0, -1.0, 0.0):
        latents = (factor * codes).requires_grad_()
        passed = rows.turned(latents, codes)
        (found,) = torch.autograd.grad(passed, latents, torch.ones_like(codes))
        assert found.isfinite().all()
        torch.testing.assert_close(passed, abs(factor) * codes)
        if factor == 1:
            torch.testing.assert_close(found, torch.ones_like(codes))


# ------------------------------------------------------------------ drawn codes


@BOTH
def test_codes_are_drawn_as_often_as_their_softmax_says(normalise):
    net = quantizer(4, normalise=normalise, temperature=0.5)
    if not normalise:
        torch.nn.init.normal_(net.table)
    one = some_latents(batch=1, rows=1, cols=1)
    torch.manual_seed(0)
    index = net(one.expand(1, -1, 100, 200)).tokens.flatten()
    found = torch.bincount(index, minlength=4) / len(index)
    entering = net.entering(one).flatten()
    logits = -0.5 * (net.book() - entering).square().sum(1) / 0.5
    torch.testing.assert_close(found, logits.softmax(0).detach(), rtol=0, atol=0.02)


def test_only_training_draws():
    net = quantizer(temperature=1.0)
    latents = some_latents()
    drawn = [net(latents).tokens for _ in range(2)]
    assert not torch.equal(*drawn)
    assert torch.equal(net.eval()(latents).tokens, net.tokens_of(latents))
    assert torch.equal(net.train().tokens_of(latents), net.tokens_of(latents))


def test_the_colder_the_draw_the_nearer_it_is():
    latents = some_latents(batch=20)
    shares = []
    for temperature in (1.0, 0.1, 0.001):
        net = quantizer(temperature=temperature)
        shares.append((net(latents).tokens == net.tokens_of(latents)).float().mean().item())
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.95


# ------------------------------------------------------------------ configs


@pytest.mark.parametrize("change", [{"decay": 1.0}, {"decay": -0.1}, {"temperature": -1.0}])
def test_impossible_ways_of_learning_are_refused(change):
    with pytest.raises(ConfigError, match="decay is at least 0 and below 1") as caught:
        VQConfig(**change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"codebook_size": 1}, {"dim": 0}, {"revive_after": -1}, {"codebook_size": 0}]
)
def test_impossible_codebooks_are_refused(change):
    with pytest.raises(ConfigError, match="a codebook has at least 2 codes") as caught:
        VQConfig(**change)
    assert "\n" not in str(caught.value)


def test_the_defaults_are_the_papers_codebook():
    config = VQConfig()
    assert (config.codebook_size, config.dim, config.normalise) == (16_384, 8, True)
    assert config.revive_after == 0
    ways = (config.codebook, config.init, config.gradient, config.temperature)
    assert ways == ("gradient", "uniform", "straight-through", 0.0)
