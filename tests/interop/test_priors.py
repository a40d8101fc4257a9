import pytest
import torch

from cartok.core.errors import UserError
from cartok.interop.codecs import tokenizer_of_llamagen
from cartok.interop.priors import HEADS, prior_of_llamagen
from cartok.prior.model import Prior, parameter_census
from cartok.sampling.sampler import Sampler

# Width and depth, and parameters as LlamaGen's page has them.
PUBLISHED = {
    "B": (768, 12, "111"), "L": (1024, 24, "343"), "XL": (1280, 36, "775"),
    "XXL": (1536, 48, "1.4"), "3B": (3200, 24, "3.1"),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(originals):
    """f=8, 50 codes."""
    sizes = {"channels": 32, "latent": 8, "dim": 8, "codes": 50}
    return tokenizer_of_llamagen(originals.vqgan(originals.LLAMAGEN, (1, 1, 1, 1), **sizes))


def some_tokens(num, codes=50, count=16):
    return torch.randint(codes, (num, count), generator=torch.Generator().manual_seed(3))


# A head of 100 channels is 3B's; of 16, one with more than one angle a side.
@pytest.mark.parametrize(("width", "heads"), [(32, 2), (200, 2), (48, 3)])
def test_a_prior_gives_the_originals_logits(originals, tokenizer, width, heads):
    tensors = originals.gpt(width, 3, codes=50, classes=6)
    prior = prior_of_llamagen(tensors, tokenizer, size=32, heads=heads)
    tokens, labels = some_tokens(3), torch.tensor([0, 5, 6])
    expected = originals.logits(tensors, heads, 4, tokens, labels)
    with torch.inference_mode():
        torch.testing.assert_close(prior(tokens, labels), expected, rtol=0, atol=1e-4)
        cache = prior.empty_cache(3)
        inputs = [labels, *tokens.unbind(1)[:-1]]
        stepped = torch.stack([prior.step(previous, cache) for previous in inputs], dim=1)
    torch.testing.assert_close(stepped, expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.5


def test_its_logits_depend_on_each_of_what_ours_lacks_or_orders_otherwise(originals, tokenizer):
    """So that equality says something: on heads, on the class's key, on the norm of queries."""
    tensors = originals.gpt(32, 3, codes=50, classes=6)
    tokens, labels = some_tokens(3), torch.tensor([0, 5, 6])
    prior = prior_of_llamagen(tensors, tokenizer, size=32, heads=2)
    before = prior(tokens, labels)
    others = [prior_of_llamagen(tensors, tokenizer, size=32, heads=4)]
    keyed = prior_of_llamagen(tensors, tokenizer, size=32, heads=2)
    keyed.rotary = keyed.rotary.clone()
    keyed.rotary[0, 0] = 1
    for other in (*others, keyed):
        assert (other(tokens, labels) - before).abs().max() > 1e-2


def test_an_old_files_table_of_rotations_is_not_needed(originals, tokenizer):
    tensors = originals.gpt(32, 1, codes=50, classes=6)
    plain = prior_of_llamagen(dict(tensors), tokenizer, size=32, heads=2)
    tensors["freqs_cis"] = torch.zeros(17, 8, 2)
    again = prior_of_llamagen(tensors, tokenizer, size=32, heads=2)
    assert plain.state_dict().keys() == again.state_dict().keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_prior_has_a_place_for_each_of_its_tensors(originals, name):
    width, depth, count = PUBLISHED[name]
    tokenizer = tokenizer_of_llamagen(
        originals.vqgan(
            originals.LLAMAGEN, (1, 1, 2, 2, 4), channels=32, latent=8, dim=8, codes=16384
        )
    )
    tensors = originals.gpt(width, depth, codes=16384, classes=1000, unfilled_on="meta")
    prior = prior_of_llamagen(tensors, tokenizer, size=384)
    assert prior.config.grid == (24, 24)
    assert prior.config.transformer.head_dim == (100 if name == "3B" else 64)
    assert prior.config.transformer.hidden_multiple == 256
    theirs = sum(value.numel() for value in tensors.values())
    assert sum(parameter_census(prior.config).values()) == theirs
    unit = 1e6 if theirs < 1e9 else 1e9
    assert f"{theirs / unit:.{2 if unit == 1e9 else 3}g}" == count
    assert (width, depth) in HEADS


def test_it_samples_with_its_tokenizer_alone_and_comes_back_the_same(
    originals, tokenizer, tmp_path
):
    tensors = originals.gpt(32, 2, codes=50, classes=6)
    prior = prior_of_llamagen(tensors, tokenizer, size=16, heads=2)
    prior.save(tmp_path / "prior")
    back = Prior.from_pretrained(tmp_path / "prior")
    assert back.config == prior.config
    assert back.classes == ["0", "1", "2", "3", "4", "5"]
    drawn = Sampler(back, tokenizer).sample([0, 5, 6], seed=1, guidance=2.0)
    assert drawn.shape == (3, 3, 16, 16)
    assert torch.equal(
        Sampler(back, tokenizer).sample_tokens([3], seed=1),
        Sampler(back, tokenizer).sample_tokens([3], seed=1, batch=1),
    )
    other = tokenizer_of_llamagen(
        originals.vqgan(originals.LLAMAGEN, (1, 1, 1), channels=32, latent=8, dim=8, codes=50)
    )
    with pytest.raises(UserError, match="another tokenizer"):
        Sampler(back, other)


@pytest.mark.parametrize(
    ("change", "options", "line"),
    [
        (lambda t: None, {"heads": 0}, "give --heads"),
        (lambda t: None, {"size": 20}, "multiples of 8"),
        (lambda t: t.pop("norm.weight"), {}, "transformer.norm.weight"),
        (lambda t: t.pop("layers.1.feed_forward.w3.weight"), {}, "needs a tensor named 'layers.1"),
        (lambda t: t.update({"extra.weight": torch.zeros(1)}), {}, "extra.weight"),
        (lambda t: t.update({"tok_embeddings.weight": torch.zeros(51, 32)}), {}, "of 51 codes"),
        (lambda t: t.update({"layers.0.attention.wqkv.weight": torch.zeros(64, 32)}), {},
         "as many keys as queries"),
        (lambda t: t.update({"layers.0.feed_forward.w1.weight": torch.zeros(85, 32)}), {},
         "8/3 of the width"),
        (lambda t: t.update({"tok_embeddings.weight": torch.zeros(50)}), {}, "are of none"),
        (lambda t: t.update({"layers.0.attention.wqkv.weight": torch.tensor(0.0)}), {},
         "are of none|as many keys"),
    ],
)  # fmt: skip
def test_tensors_and_facts_that_do_not_fit_are_refused(originals, tokenizer, change, options, line):
    tensors = originals.gpt(32, 2, codes=50, classes=6)
    change(tensors)
    with pytest.raises(UserError, match=line):
        prior_of_llamagen(tensors, tokenizer, **({"size": 32, "heads": 2} | options))
