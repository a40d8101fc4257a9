"""Vectors in place of a class: the interface for text that conditions a prior."""

import pytest
import torch

from cartok.core.errors import UserError
from cartok.layers import TransformerConfig
from cartok.prior.model import Prior, PriorConfig, flops_per_token, parameter_census
from cartok.sampling.sampler import Sampler

NET = TransformerConfig(width=32, depth=2, heads=2, hidden_multiple=16)


class Painter:
    digest = "painter"

    def image_of(self, tokens):
        return tokens[:, None].float()


def prior_of(length=3, **changes):
    torch.manual_seed(0)
    config = PriorConfig(
        transformer=NET, codebook_size=11, grid=(2, 3), num_classes=0, prefix_length=length,
        prefix_width=5, token_dropout=0.0, **changes,
    )  # fmt: skip
    prior = Prior(config, tokenizer_digest="painter")
    with torch.no_grad():
        for weight in prior.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return prior.eval()


def prefixes_of(num, length=3):
    return torch.randn(num, length, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("length", [1, 3])
def test_steps_give_the_logits_of_one_pass(length):
    prior, prefixes = prior_of(length), prefixes_of(2, length)
    tokens = torch.randint(11, (2, 6))
    cache = prior.empty_cache(2)
    steps = [prior.step(previous, cache) for previous in (prefixes, *tokens[:, :-1].unbind(1))]
    torch.testing.assert_close(torch.stack(steps, 1), prior(tokens, prefixes))


def test_every_vector_of_a_prefix_is_seen_by_every_token():
    prior, prefixes = prior_of(), prefixes_of(1)
    tokens = torch.randint(11, (1, 6))
    plain = prior(tokens, prefixes)
    for place in range(3):
        changed = prefixes.clone()
        changed[:, place] += 1
        assert ((prior(tokens, changed) - plain).abs().amax(-1) > 1e-4).all()


def test_a_share_of_prefixes_is_hidden_in_training():
    prior, prefixes = prior_of(class_dropout=0.5).train(), prefixes_of(64)
    tokens = torch.randint(11, (1, 6)).expand(64, -1)
    nothing = prior.eval()(tokens, torch.zeros(64).long())
    seen = prior.eval()(tokens, prefixes)
    found = prior.train()(tokens, prefixes, torch.Generator().manual_seed(0))
    hidden = torch.isclose(found, nothing, atol=1e-5).all(-1).all(-1)
    assert 16 < int(hidden.sum()) < 48
    torch.testing.assert_close(found[~hidden], seen[~hidden])


def test_every_parameter_learns_from_prefixes():
    prior = prior_of(class_dropout=0.5).train()
    prior.nats(torch.randint(11, (16, 6)), prefixes_of(16)).sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in prior.parameters())


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_samples_follow_their_prefix_whatever_the_batch(guidance):
    sampler, prefixes = Sampler(prior_of(), Painter()), prefixes_of(5)
    tokens = sampler.sample_tokens(prefixes, 3, guidance)
    assert torch.equal(sampler.sample_tokens(prefixes, 3, guidance, batch=2), tokens)
    assert not torch.equal(sampler.sample_tokens(prefixes.flip(0), 3, guidance), tokens)
    alone = sampler.sample_tokens(prefixes[4:], 3, guidance, first_index=4)
    assert torch.equal(alone, tokens[4:])


def test_label_0_draws_without_a_prefix():
    sampler = Sampler(prior_of(), Painter())
    nothing = sampler.sample_tokens([0, 0], 3)
    assert torch.equal(sampler.sample_tokens([0, 0], 3, 2.0), nothing)  # guided to itself


@pytest.mark.parametrize("shape", [(2, 5), (4, 5), (3, 4)])
def test_prefixes_of_another_shape_are_refused(shape):
    sampler = Sampler(prior_of(), Painter())
    with pytest.raises(UserError, match="takes 3 vectors of 5 numbers, but got prefixes of"):
        sampler.sample_tokens(torch.zeros(2, *shape), 0)


def test_one_prefix_still_needs_its_batch():
    with pytest.raises(UserError, match="also for one picture, but their shape is \\(3, 5\\)"):
        Sampler(prior_of(), Painter()).sample_tokens(prefixes_of(1)[0], 0)


def test_where_a_class_has_no_key_no_vector_of_a_prefix_has_one():
    rotary = prior_of(class_has_key=False).rotary.abs().sum((1, 2))
    assert (rotary[:3] == 0).all()
    assert (rotary[3:] > 0).all()


def test_a_prior_of_classes_takes_no_prefix():
    prior = Prior(PriorConfig(transformer=NET, codebook_size=11, grid=(2, 3), num_classes=4))
    with pytest.raises(UserError, match="takes no prefixes"):
        prior(torch.zeros(2, 6).long(), prefixes_of(2))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prefix_length": 3}, "both 0"),
        ({"prefix_width": 3}, "both 0"),
        ({"prefix_length": 3, "prefix_width": 5, "num_classes": 2}, "in place of classes"),
    ],
)
def test_a_config_that_means_nothing_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        PriorConfig(**({"num_classes": 0} | fields))


def test_a_prefix_is_counted_in_parameters_and_flops():
    one, three = (prior_of(length).config for length in (1, 3))
    assert parameter_census(three)["prefix_projection"] == 5 * 32
    layer = 2 * 2 * (4 * 32**2 + 3 * 32 * NET.hidden) + 2 * 5 * 32
    attention = 2 * 2 * 32 * (8 * 9 - 6 * 7)
    assert flops_per_token(three) - flops_per_token(one) == round((2 * layer + attention) / 6)


def test_it_comes_back_from_its_folder(tmp_path):
    prior, tokens = prior_of(), torch.randint(11, (2, 6))
    prior.save(tmp_path)
    again = Prior.from_pretrained(tmp_path)
    assert torch.equal(again(tokens, prefixes_of(2)), prior(tokens, prefixes_of(2)))
