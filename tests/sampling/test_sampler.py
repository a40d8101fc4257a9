import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.core.precision import keep_weights_in
from cartok.layers import TransformerConfig
from cartok.prior.model import Prior, PriorConfig
from cartok.sampling.drawing import codes_at
from cartok.sampling.guidance import guided
from cartok.sampling.sampler import Sampler, balanced_labels, uniforms


class PaintingTokenizer:
    """Stands in for a tokenizer: a picture's red channel is its grid of tokens."""

    digest = "painter"

    def __init__(self):
        self.batches = []

    def image_of(self, tokens):
        self.batches.append(len(tokens))
        return (tokens.float() / 10 - 1)[:, None].repeat(1, 3, 1, 1)


def small_prior(grid=(2, 3), num_classes=4, spread=0.3) -> Prior:
    torch.manual_seed(0)
    net = TransformerConfig(width=32, depth=2, heads=2, hidden_multiple=16, dropout=0.2)
    config = PriorConfig(transformer=net, codebook_size=11, grid=grid, num_classes=num_classes)
    prior = Prior(config, tokenizer_digest="painter")
    with torch.no_grad():
        for weight in prior.parameters():
            weight.add_(spread * torch.randn_like(weight))
    return prior


def small_sampler(**changes) -> Sampler:
    return Sampler(small_prior(**changes), PaintingTokenizer())


def test_a_sample_does_not_depend_on_its_batch():
    sampler, labels = small_sampler(), [0, 1, 2, 3, 4, 0, 1]
    whole = sampler.sample_tokens(labels, 5, 2.0, batch=64)
    for batch in (1, 2, 3):
        assert torch.equal(sampler.sample_tokens(labels, 5, 2.0, batch=batch), whole)


def test_a_sample_does_not_depend_on_its_neighbours_or_on_order():
    sampler, labels = small_sampler(), [0, 1, 2, 3, 4, 0, 1]
    whole = sampler.sample_tokens(labels, 5)
    for index in reversed(range(7)):
        alone = sampler.sample_tokens(labels[index : index + 1], 5, first_index=index)
        assert torch.equal(alone[0], whole[index])


def test_a_prior_kept_in_bfloat16_draws_nearly_the_same_and_caches_half_the_bytes():
    sampler, labels = small_sampler(), [0, 1, 2, 3] * 50
    full = sampler.sample_tokens(labels, 5, 2.0)
    keep_weights_in("bf16", sampler.prior)
    rounded = sampler.sample_tokens(labels, 5, 2.0)
    assert sampler.prior.empty_cache(1).layers[0].key.dtype == torch.bfloat16
    assert sampler.prior.rotary.dtype == torch.float32
    first = (full == rounded)[:, 0].float().mean()
    assert 0.9 < first < 1  # some draws lie at the edge between two codes


def test_seed_and_index_both_change_a_sample():
    sampler = small_sampler(grid=(4, 4))
    first = sampler.sample_tokens([0, 0], 1)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, sampler.sample_tokens([0, 0], 2))


def test_sampling_moves_no_global_generator_and_no_mode():
    sampler = small_sampler()
    sampler.prior.train()
    before = torch.get_rng_state()
    tokens = sampler.sample_tokens([0, 1], 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert sampler.prior.training
    sampler.prior.eval()
    assert torch.equal(tokens, sampler.sample_tokens([0, 1], 1))


def test_drawn_tokens_can_be_trained_on():
    sampler = small_sampler()
    tokens = sampler.sample_tokens([0, 1], 1)
    sampler.prior.nats(tokens, torch.tensor([0, 1])).mean().backward()
    assert not tokens.is_inference()
    assert not sampler.sample([0], 1).is_inference()


@pytest.mark.parametrize(("guidance", "grid"), [(1.0, (2, 3)), (2.5, (2, 3)), (2.0, (3, 2))])
def test_tokens_are_those_of_uncached_ancestral_sampling(guidance, grid):
    sampler = small_sampler(grid=grid)
    prior, labels = sampler.prior.eval(), torch.tensor([0, 1, 2, 3])
    drawn = sampler.sample_tokens(labels, 9, guidance)
    noise, tokens = uniforms(9, 0, 4, 6), torch.zeros(4, 6, dtype=torch.long)
    for position in range(6):
        conditional = prior(tokens, labels)[:, position]
        unconditional = prior(tokens, torch.full((4,), 4))[:, position]
        logits = guided(conditional.double(), unconditional.double(), guidance)
        tokens[:, position] = codes_at(logits, noise[:, position])
    assert torch.equal(drawn, tokens)


def test_no_second_half_runs_without_guidance(monkeypatch):
    sampler, rows = small_sampler(), []
    plain = sampler.prior.logits_after
    monkeypatch.setattr(
        sampler.prior, "logits_after", lambda x, cache: rows.append(len(x)) or plain(x, cache)
    )
    sampler.sample_tokens([0, 1, 2], 1, 1.0)
    sampler.sample_tokens([0, 1, 2], 1, 1.5)
    assert rows == [3] * 6 + [6] * 6


@pytest.mark.parametrize(
    "options",
    [{"schedule": "linear"}, {"schedule": "cosine", "power": 2.0}, {"interval": (0.5, 1)}],
)
def test_when_guidance_comes_decides_what_is_drawn(options):
    sampler, labels = small_sampler(grid=(4, 4)), [0, 1, 2, 3]
    constant = sampler.sample_tokens(labels, 1, 4.0)
    assert not torch.equal(sampler.sample_tokens(labels, 1, 4.0, **options), constant)


def test_before_its_interval_a_sample_is_that_without_guidance():
    sampler, labels = small_sampler(grid=(4, 4)), [0, 1, 2, 3]
    late = sampler.sample_tokens(labels, 1, 4.0, interval=(0.5, 1.0))
    assert torch.equal(late[:, :8], sampler.sample_tokens(labels, 1)[:, :8])


def test_greedy_sampling_does_not_depend_on_the_seed():
    sampler = small_sampler()
    first = sampler.sample_tokens([0, 1], 1, temperature=0.0)
    assert torch.equal(first, sampler.sample_tokens([0, 1], 2, temperature=0.0))
    assert torch.equal(first, sampler.sample_tokens([0, 1], 3, top_k=1))
    assert torch.equal(first, sampler.sample_tokens([0, 1], 3, top_p=1e-9))
    assert torch.equal(first, sampler.sample_tokens([0, 1], 4, min_p=1.0))


def test_pictures_are_the_tokenizers_and_lie_on_its_grid():
    sampler = small_sampler(grid=(2, 3))
    tokens = sampler.sample_tokens([0, 1, 2], 3)
    pictures = sampler.sample([0, 1, 2], 3, batch=2)
    assert pictures.shape == (3, 3, 2, 3)
    assert torch.equal(pictures[:, 0], tokens.view(3, 2, 3).float() / 10 - 1)
    assert sampler.tokenizer.batches == [2, 1]


def test_progress_counts_finished_samples():
    finished = []
    small_sampler().sample([0] * 5, 1, batch=2, progress=finished.append)
    assert finished == [2, 4, 5]


def test_an_unconditional_prior_is_sampled():
    sampler = small_sampler(num_classes=0)
    assert sampler.sample_tokens(balanced_labels(3, 0), 1).shape == (3, 6)


def test_codes_come_as_often_as_the_softmax_says():
    chance = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03, 0.0], dtype=torch.float64)
    num = 40_000
    codes = codes_at(chance.log().expand(num, -1), uniforms(3, 0, num // 8, 8).flatten())
    counts = codes.bincount(minlength=6)
    assert counts[5] == 0
    expected = chance[:5] * num
    # Chi-square of 4 degrees of freedom exceeds 23.5 with odds 1e-4; the seed is fixed.
    assert ((counts[:5] - expected) ** 2 / expected).sum() < 23.5


def test_the_first_token_of_many_samples_follows_the_priors_softmax():
    sampler, num = small_sampler(grid=(1, 1), spread=0.1), 4000
    tokens = sampler.sample_tokens([2] * num, 7, batch=1000)
    chance = sampler.prior.eval()(tokens[:1], torch.tensor([2])).softmax(-1)[0, 0]
    expected = chance * num
    # Chi-square of 10 degrees of freedom exceeds 35.6 with odds 1e-4; the seed is fixed.
    assert ((tokens[:, 0].bincount(minlength=11) - expected) ** 2 / expected).sum() < 35.6


@settings(deadline=None)
@given(
    logits=st.lists(st.one_of(st.floats(-50, 50), st.just(-float("inf"))), min_size=1, max_size=9)
)
def test_a_code_without_probability_is_never_drawn(logits):
    row = torch.tensor([[*logits, 0.0, -float("inf")]], dtype=torch.float64)
    for uniform in (0.0, 0.5, 1 - 2.0**-53):
        code = codes_at(row, torch.tensor([uniform], dtype=torch.float64))
        assert row.softmax(-1)[0, code] > 0


def test_codes_split_the_unit_interval_in_order():
    logits = torch.tensor([0.25, 0.5, 0.25]).log().expand(5, -1)
    uniform = torch.tensor([0.0, 0.2, 0.3, 0.7, 0.8], dtype=torch.float64)
    assert codes_at(logits, uniform).tolist() == [0, 0, 1, 1, 2]


@given(seed=st.integers(0, 2**64 - 1), index=st.integers(0, 2**64 - 9))
def test_noise_is_a_function_of_seed_and_index(seed, index):
    rows = uniforms(seed, index, 4, 5)
    assert torch.equal(rows[2:], uniforms(seed, index + 2, 2, 5))
    assert torch.equal(rows[:, :3], uniforms(seed, index, 4, 3))
    assert 0 <= rows.min() <= rows.max() < 1
    assert len(set(rows.flatten().tolist())) == 20


def test_noise_never_changes_with_versions():
    expected = [0.4821286018761155, 0.7241355726248441, 0.05025403948627161]
    assert uniforms(7, 3, 1, 3)[0].tolist() == expected


@given(num=st.integers(1, 50), num_classes=st.integers(1, 12))
def test_balanced_labels_favour_the_first_classes_by_one(num, num_classes):
    counts = balanced_labels(num, num_classes).bincount(minlength=num_classes).tolist()
    assert counts == [num // num_classes + (c < num % num_classes) for c in range(num_classes)]


@given(data=st.data(), num=st.integers(1, 50), num_classes=st.integers(2, 12))
def test_balanced_labels_are_of_classes_that_were_trained_on(data, num, num_classes):
    labels = st.integers(0, num_classes - 1)
    unseen = data.draw(st.sets(labels, max_size=num_classes - 1))
    drawn = balanced_labels(num, num_classes, unseen)
    assert len(drawn) == num
    counts = drawn.bincount(minlength=num_classes)
    assert all(counts[label] == 0 for label in unseen)
    seen = [int(counts[label]) for label in range(num_classes) if label not in unseen]
    assert max(seen) - min(seen) <= 1


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"labels": [0, 5]}, r"labels lie in \[0, 4\]"),
        ({"labels": [-1]}, r"labels lie in \[0, 4\]"),
        ({"labels": []}, "one label for each picture"),
        ({"temperature": -1.0}, "temperature is 0"),
        ({"guidance": float("nan")}, "guidance"),
        ({"schedule": "liner"}, "did you mean 'linear'"),
        ({"top_k": -1}, "top_k is 0"),
        ({"top_p": 0.0}, r"top_p lies in \(0, 1\]"),
        ({"min_p": 1.5}, "min_p is a share"),
        ({"power": 0.0}, "power is above 0"),
        ({"interval": (0.5, 0.5)}, "the first below the second"),
        ({"temprature": 1.0}, "did you mean 'temperature'"),
        ({"batch": 0}, "batch is at least 1"),
        ({"seed": -1}, "seed and first_index"),
    ],
)
def test_wrong_input_is_refused_in_one_line(wrong, rule):
    with pytest.raises(UserError, match=rule) as caught:
        small_sampler().sample_tokens(**{"labels": [0], "seed": 0, **wrong})
    assert "\n" not in str(caught.value)


def test_guidance_of_an_unconditional_prior_is_refused():
    with pytest.raises(UserError, match="unconditional and guidance is 2"):
        small_sampler(num_classes=0).sample([0], 1, 2.0)


def test_another_tokenizer_is_refused():
    tokenizer = PaintingTokenizer()
    tokenizer.digest = "stranger"
    with pytest.raises(UserError, match="tokens made by another tokenizer"):
        Sampler(small_prior(), tokenizer)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(value):
    sampler = small_sampler()
    with torch.no_grad():
        sampler.prior.token_embedding.weight[:] = value
    with pytest.raises(UserError, match="not finite"):
        sampler.sample([0, 1], 1, 2.0)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.full((2, 1, 5), float("nan")), r"of finite numbers, but got float \[2, 1, 5\]"),
        (torch.zeros(2, 1, 5), "this prior takes no prefixes"),
    ],
)
def test_labels_that_are_no_labels_are_refused_for_what_they_are(labels, said):
    with pytest.raises(UserError, match=said):
        small_sampler().sample_tokens(labels, 1)
