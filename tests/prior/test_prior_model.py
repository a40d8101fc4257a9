import json

import pytest
import torch

from cartok.core.config import ConfigError, config_of
from cartok.core.errors import UserError
from cartok.layers import TransformerConfig, rotate
from cartok.prior.model import (
    Prior,
    PriorConfig,
    flops_per_token,
    kaplan_flops_per_token,
    paper_flops,
    parameter_census,
)

# (width, depth, heads) -> parameters in millions as the paper prints them (Table 2, Fig 6)
PUBLISHED = {
    (576, 3, 9): "31.4",
    (640, 6, 10): "52.1",
    (704, 9, 11): "80.6",
    (768, 12, 12): "111",
    (896, 18, 14): "212",
    (1024, 24, 16): "343",
    (1152, 30, 18): "517",
    (1280, 36, 20): "775",
}


def small_config(grid=(3, 4), num_classes=5, **changes) -> PriorConfig:
    net = TransformerConfig(width=32, depth=2, heads=2, hidden_multiple=16, dropout=0.1)
    return PriorConfig(
        transformer=net, codebook_size=11, grid=grid, num_classes=num_classes, **changes
    )


def small_prior(**changes) -> Prior:
    """A prior far from its small initialisation, so that context matters to its logits."""
    torch.manual_seed(0)
    prior = Prior(small_config(**changes))
    with torch.no_grad():
        for weight in prior.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return prior.eval()


def some_tokens(prior: Prior, num: int = 3) -> torch.Tensor:
    return torch.randint(prior.config.codebook_size, (num, prior.config.num_tokens))


def test_later_tokens_never_change_earlier_logits():
    prior = small_prior()
    tokens, labels = some_tokens(prior), torch.tensor([0, 1, 5])
    before = prior(tokens, labels)
    for changed in range(prior.config.num_tokens):
        other = tokens.clone()
        other[:, changed] = (other[:, changed] + 1) % prior.config.codebook_size
        after = prior(other, labels)
        # A token is no input to its own logits either.
        seen = changed + 1
        torch.testing.assert_close(after[:, :seen], before[:, :seen], rtol=0, atol=1e-6)
        assert seen == before.shape[1] or not torch.allclose(after[:, seen:], before[:, seen:])


def test_the_class_reaches_every_position():
    prior = small_prior()
    tokens = some_tokens(prior, 1).repeat(2, 1)
    first, second = prior(tokens, torch.tensor([0, 1]))
    assert (first - second).abs().amax(dim=-1).min() > 1e-4


@pytest.mark.parametrize("grid", [(1, 1), (3, 4), (5, 2), (1, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cached_logits_equal_uncached_ones(grid, dtype):
    prior = small_prior(grid=grid).to(dtype)
    tokens, labels = some_tokens(prior), torch.tensor([0, 4, 5])
    cache = prior.empty_cache(3)
    inputs = [labels, *tokens.unbind(1)[:-1]]
    stepped = torch.stack([prior.step(previous, cache) for previous in inputs], dim=1)
    torch.testing.assert_close(stepped, prior(tokens, labels), rtol=0, atol=1e-5)


@pytest.mark.parametrize("left_out", [{"query_key_norm": False}, {"class_has_key": False}])
def test_what_published_priors_lack_can_be_left_out(left_out):
    prior, without = small_prior(), small_prior(**left_out)
    without.load_state_dict(prior.state_dict(), strict="class_has_key" in left_out)
    tokens, labels = some_tokens(prior), torch.tensor([0, 4, 5])
    logits = without(tokens, labels)
    torch.testing.assert_close(logits[:, 0], prior(tokens, labels)[:, 0])  # it sees itself alone
    assert not torch.allclose(logits[:, 1:], prior(tokens, labels)[:, 1:], atol=1e-3)
    cache = without.empty_cache(3)
    inputs = [labels, *tokens.unbind(1)[:-1]]
    stepped = torch.stack([without.step(previous, cache) for previous in inputs], dim=1)
    torch.testing.assert_close(stepped, logits, rtol=0, atol=1e-5)
    counted = sum(parameter_census(without.config).values())
    assert counted == sum(weight.numel() for weight in without.parameters())


def test_a_key_of_zero_gives_the_class_a_score_of_zero():
    prior = small_prior(class_has_key=False)
    x = torch.randn(1, 2, 1, prior.config.transformer.head_dim)
    assert torch.equal(rotate(x, prior.rotary[:1]), torch.zeros_like(x))
    torch.testing.assert_close(prior.rotary[1:], small_prior().rotary[1:])


def test_every_parameter_gets_a_gradient():
    prior = Prior(small_config(class_dropout=0.5)).train()
    torch.manual_seed(0)
    labels = torch.arange(64) % 5
    prior.nats(some_tokens(prior, 64), labels).mean().backward()
    assert all(weight.grad.abs().max() > 0 for weight in prior.parameters())


def test_nats_are_minus_the_log_of_the_softmax():
    prior = small_prior()
    tokens, labels = some_tokens(prior), torch.tensor([0, 1, 2])
    chance = prior(tokens, labels).softmax(dim=-1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(prior.nats(tokens, labels), -chance.log())


def test_an_untrained_prior_knows_nothing():
    prior = Prior(PriorConfig(transformer=small_config().transformer, codebook_size=256)).eval()
    nats = prior.nats(some_tokens(prior, 8), torch.zeros(8, dtype=torch.long))
    assert nats.mean().item() == pytest.approx(torch.tensor(256.0).log().item(), abs=0.05)


def hidden_by(prior, labels, generator):
    """Which labels' vectors have become that of no class; the others are their own."""
    before = prior.vectors_of(labels)
    found = prior._dropped(before, generator)
    hidden = (found == prior.class_embedding.weight[-1]).all(-1)[:, 0]
    assert torch.equal(found[~hidden], before[~hidden])
    return hidden


def test_class_dropout_hides_its_share_of_labels_in_training_alone():
    prior = small_prior(class_dropout=0.3)
    labels = torch.arange(10_000) % 5
    generator = torch.Generator().manual_seed(0)
    assert not hidden_by(prior, labels, generator).any()
    hidden = hidden_by(prior.train(), labels, generator)
    # Standard error 0.0046: a right rate fails with odds below 1e-5, and the seed is fixed.
    assert hidden.float().mean().item() == pytest.approx(0.3, abs=0.02)


def test_the_generator_alone_decides_which_classes_are_hidden():
    prior = small_prior(class_dropout=0.5).train()
    labels = torch.arange(100) % 5
    first, again, other = (
        hidden_by(prior, labels, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_dropout_acts_in_training_alone():
    prior = small_prior(class_dropout=0.0, token_dropout=0.5)
    tokens, labels = some_tokens(prior), torch.tensor([0, 1, 2])
    assert torch.equal(prior(tokens, labels), prior(tokens, labels))
    prior.train()
    assert not torch.equal(prior(tokens, labels), prior(tokens, labels))


def test_an_unconditional_prior_ignores_labels():
    prior = small_prior(num_classes=0)
    tokens = some_tokens(prior)
    ignored = prior(tokens, torch.tensor([0, 3, 7]))
    assert torch.equal(ignored, prior(tokens, torch.zeros(3, dtype=torch.long)))
    assert prior.class_embedding.weight.shape[0] == 1
    assert torch.equal(
        prior.step(torch.tensor([2, 2, 2]), prior.empty_cache(3)),
        prior.step(torch.tensor([0, 0, 0]), prior.empty_cache(3)),
    )


def test_rows_and_columns_of_the_grid_are_told_apart():
    torch.manual_seed(0)
    wide, tall = small_prior(grid=(2, 6)), small_prior(grid=(6, 2))
    tokens, labels = some_tokens(wide), torch.tensor([0, 1, 2])
    assert not torch.allclose(wide(tokens, labels), tall(tokens, labels))


@pytest.mark.parametrize(("shape", "millions"), PUBLISHED.items())
def test_census_gives_the_published_counts(shape, millions):
    width, depth, heads = shape
    net = TransformerConfig(width=width, depth=depth, heads=heads)
    census = parameter_census(PriorConfig(transformer=net))
    total = sum(census.values()) / 1e6
    assert f"{total:.3g}" == millions
    without_query_key_norm = total - census["query_key_norms"] / 1e6
    assert f"{without_query_key_norm:.3g}" == millions


def test_flops_of_a_hand_counted_prior():
    net = TransformerConfig(width=8, depth=1, heads=1, hidden_multiple=8)
    config = PriorConfig(transformer=net, codebook_size=10, grid=(1, 3), num_classes=0)
    # qkv and out 4*64, SwiGLU 3*8*24, head 80 multiply-adds; keys seen: 1, 2, 3, 2 on average.
    assert flops_per_token(config) == 2 * (256 + 576 + 80) + 2 * (2 * 8 * 2)


def test_flops_match_what_torch_counts_outside_attention():
    from torch.utils.flop_counter import FlopCounterMode

    config = small_config()
    prior = Prior(config).eval()
    with FlopCounterMode(display=False) as counter:
        prior(some_tokens(prior, 1), torch.tensor([0]))
    by_matrices = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    net = config.transformer
    attention = net.depth * 2 * net.width * (config.num_tokens + 1)
    assert by_matrices == config.num_tokens * (flops_per_token(config) - attention)


def test_the_kaplan_convention_is_six_times_all_parameters():
    config = small_config()
    num = sum(weight.numel() for weight in Prior(config).parameters())
    assert kaplan_flops_per_token(config) == 6 * num
    assert paper_flops(config, 100) == 6 * num * 100 * config.num_tokens / 256


def test_a_saved_prior_comes_back_the_same(tmp_path):
    prior = small_prior(num_classes=2)
    named = Prior(prior.config, tokenizer_digest="abc", classes=["cat", "dog"])
    named.load_state_dict(prior.state_dict())
    named.save(tmp_path / "model")
    back = Prior.from_pretrained(tmp_path / "model")
    assert (back.tokenizer_digest, back.classes) == ("abc", ["cat", "dog"])
    assert back.config == prior.config
    tokens, labels = some_tokens(prior), torch.tensor([0, 1, 2])
    assert torch.equal(back(tokens, labels), prior(tokens, labels))


def test_a_folder_of_a_version_that_lacked_a_field_reads_as_of_its_default(tmp_path):
    prior = small_prior()
    prior.save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    stored = json.loads(path.read_text())
    for field in ("query_key_norm", "class_has_key"):
        assert stored["config"].pop(field) is True
    path.write_text(json.dumps(stored))
    assert Prior.from_pretrained(tmp_path / "model").config == prior.config


def test_class_names_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="needs as many names, but got 1"):
        Prior(small_config(), classes=["cat"])


@pytest.mark.parametrize(
    "wrong",
    [{"codebook_size": 0}, {"grid": (0, 4)}, {"num_classes": -1}, {"token_dropout": 1.0}],
)
def test_impossible_priors_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        config_of(PriorConfig, wrong)
