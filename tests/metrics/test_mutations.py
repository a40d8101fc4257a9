"""Every definition is guarded: changed in one place of its source, it fails a check it passes.

A check takes the module that defines a score. It is given the module as it is, and then the module
made from a source with one text replaced, in that file or in one that it imports.
"""

import inspect
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from cartok.metrics import (
    density_coverage,
    features,
    frechet,
    frechet_estimate,
    gaussian,
    inception_score,
    kernel,
    manifolds,
    neighbours,
    precision_recall,
    reconstruction,
    ssim,
)


def normal(count, dim, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator).double() + shift


def column(*places):
    return torch.tensor(places)[:, None].double()


def pixels(seed, size=24):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (2, 3, size, size), generator=generator, dtype=torch.uint8)


# ------------------------------------------------------------------ the checks


def the_frechet_distance(module):
    """Three and two numbers, by hand; the same far from zero, as float32."""
    a, b = column(0.0, 2.0), column(0.0, 4.0, 8.0)  # means 1 and 4, unbiased variances 2 and 16
    expected = pytest.approx(3**2 + (2**0.5 - 4) ** 2)
    assert module.frechet_distance(a, b) == expected
    a, b = ((side.repeat(500, 1) + 2**23).float() for side in (a, b))
    variances = 1000 / 999, 32 / 3 * 1500 / 1499
    expected = 3**2 + (variances[0] ** 0.5 - variances[1] ** 0.5) ** 2
    assert module.frechet_distance(a, b) == pytest.approx(expected)
    apart = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).double()
    turned = torch.tensor([[2.0, 0], [-2, 0], [0, 1], [0, -1]]).double()
    first, second = 4 / 3, (8 / 3, 2 / 3)
    expected = sum((first**0.5 - variance**0.5) ** 2 for variance in second)
    assert module.frechet_distance(apart, turned) == pytest.approx(expected)
    skewed = torch.tensor([[2.0, 1], [-2, -1], [-1, 1], [1, -1]]).double()  # 10, 2 and 4 thirds
    product = (10 * 8 + 4 * 2) / 9 + 2 * (36 * 16 / 81) ** 0.5
    expected = (14 + 10) / 3 - 2 * product**0.5
    assert module.frechet_distance(skewed, turned) == pytest.approx(expected)
    with pytest.raises(ValueError, match="more than 2 pictures"):
        module.frechet_distance(apart[:2], turned)


def the_statistics(module):
    """Batches of 1, 2 and 9 rows far from zero, against numpy on the whole."""
    rows = normal(12, 3, 0, shift=100.0)
    found = module.moments_of_batches(rows.split([1, 2, 9])).gaussian
    np.testing.assert_allclose(found.mean, rows.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.cov, np.cov(rows.numpy(), rowvar=False), rtol=1e-10)
    assert found.count == 12


def the_estimate(module):
    """What is linear in 1 / count is met exactly at 0; the error of a mean is the known one."""
    rows = normal(1200, 1, 0, shift=3.0)
    reference = module.Gaussian(torch.zeros(1).double(), torch.ones(1, 1).double(), 10**6)
    found = module.frechet_estimate(rows, reference)
    slope = 2 * (rows.mean() + rows.std() - 1).item()  # by the mean 2 m, by the spread 2 (s - 1)
    assert slope / 1200**0.5 == pytest.approx(found.standard_error, rel=0.6)
    small = [module.frechet_estimate(normal(60, 4, s), known(module, 4)) for s in range(25)]
    assert abs(np.mean([each.at_infinity for each in small])) < 0.03
    assert np.mean([each.value for each in small]) > 0.06


def known(module, dim):
    return module.Gaussian(torch.zeros(dim).double(), torch.eye(dim).double(), 10**6)


def precision_and_recall(module):
    """On a line, with edges, and a collapsed set; a set in itself, whatever its place."""
    real = column(0.0, 1.0, 2.0, 10.0)  # with k = 1 they reach 1, 1, 1 and 8
    drawn = column(-1.5, -1.0, 2.5, 18.0, 18.5)  # and these .5, .5, 3.5, .5 and .5
    found = module.precision_recall(drawn, real, k=1)
    assert (found.precision, found.recall) == (3 / 5, 3 / 4)
    found = module.precision_recall(drawn, real, k=2)  # real rows reach 2, 1, 2 and 9
    assert (found.precision, found.recall) == (1.0, 1.0)
    real = normal(60, 5, 0)
    found = module.precision_recall(real[7].expand(20, 5), real)
    assert (found.precision, found.recall) == (1.0, 1 / 60)
    many = normal(9, 5, 1, shift=0.1).repeat(4, 1)
    found = module.precision_recall(many, many.flip(0))
    assert (found.precision, found.recall) == (1.0, 1.0)
    third = torch.arange(12).double()[:, None] / 3
    assert module.precision_recall(third[::2], third[1::2], k=1).precision == 1.0


def density_and_coverage(module):
    real = column(0.0, 1.0, 2.0, 10.0)  # with k = 1 they reach 1, 1, 1 and 8, with k = 2 2, 1, 2, 9
    drawn = column(1.0, 2.5, 30.0)
    for k, density, coverage in ((1, 5 / 3, 1.0), (2, 6 / 6, 1.0)):
        found = module.density_coverage(drawn, real, k)
        assert (found.density, found.coverage) == (density, coverage)
    found = module.density_coverage(drawn[1:], real, k=1)
    assert (found.density, found.coverage) == (2 / 2, 2 / 4)


def the_four_and_their_errors(module):
    """On the line above, with copies enough to be dealt; errors those of halves made by hand."""
    real = column(*(100.0 * copy + place for copy in range(6) for place in (0, 1, 2, 10)))
    drawn = column(*(100.0 * copy + place for copy in range(6) for place in (-1.5, 1.0, 2.5, 30)))
    found = module.manifolds(drawn, real, k=1, coverage_k=2)
    # Real rows reach 1, 1, 1, 8 and 2, 1, 2, 9 in theirs; drawn ones 2.5, 1.5, 1.5 and 27.5.
    expected = {"precision": 2 / 4, "recall": 4 / 4, "density": 7 / 8, "coverage": 4 / 4}
    assert {name: getattr(found, name).value for name in expected} == pytest.approx(expected)
    ours, theirs = normal(40, 2, 0, shift=0.3), normal(36, 2, 1)
    by_class = torch.cat([ours[::2], ours[::2] + 50])  # groups by place would hold one of each
    for drawn in (ours, by_class):
        found = module.manifolds(drawn, theirs, k=2, coverage_k=3, seed=4)
        wanted = np.sqrt(np.square([*_differences(drawn, theirs, 2, 3, 4)]).mean(0)) / 2
        names = ("precision", "recall", "density", "coverage")
        errors = [getattr(found, name).standard_error for name in names]
        assert errors == pytest.approx(wanted.tolist())
        low, high = found.density.interval
        assert high - found.density.value == pytest.approx(1.795885 * errors[2])  # Student's, of 11
        assert low == pytest.approx(found.density.value - 1.795885 * errors[2])


def _differences(ours, theirs, k, coverage_k, seed):
    """Of the four, between the halves of eleven splits of rows that are dealt by a seed."""
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = (s[torch.randperm(len(s), generator=generator)] for s in (ours, theirs))
    squares = {1, 3, 4, 5, 9}  # modulo 11
    for split in range(11):
        half = torch.tensor([True, *((group - split) % 11 in squares for group in range(11))])
        sides = []
        for chosen in (half, ~half):
            a, b = (side[chosen[torch.arange(len(side)) % 12]] for side in (ours, theirs))
            apart, own_a, own_b = torch.cdist(a, b), torch.cdist(a, a), torch.cdist(b, b)
            reach_a, reach_b = own_a.sort(1).values[:, k], own_b.sort(1).values[:, k]
            wide = own_b.sort(1).values[:, coverage_k]
            sides.append([
                (apart <= reach_b).any(1).double().mean(),
                (apart <= reach_a[:, None]).any(0).double().mean(),
                (apart <= wide).sum() / (coverage_k * len(a)),
                (apart <= wide).any(0).double().mean(),
            ])  # fmt: skip
        yield np.subtract(*np.array(sides))


def the_inception_score(module):
    by_class = torch.eye(4).repeat_interleave(6, 0)
    assert module.inception_score(by_class).value == pytest.approx(4, rel=1e-12)
    assert module.inception_score(by_class, split=6).value == pytest.approx(1, rel=1e-12)
    found = module.inception_score(torch.eye(4)[[0, 1, 2, 3, 0]], split=4)
    assert (found.value, found.spread) == pytest.approx((2.5, 1.5))
    assert module.SPLIT == 5000
    logits = normal(40, 6, 0).float()
    p = logits.double().softmax(1)
    expected = (p * (p.log() - p.mean(0).log())).sum(1).mean().exp().item()
    assert module.inception_score_of_logits(logits).value == pytest.approx(expected, rel=1e-12)


def the_kernel_distance(module):
    a, b = column(0.0, 1.0), column(2.0, 3.0)
    expected = 1 + 7**3 - 2 * (1 + 1 + 3**3 + 4**3) / 4
    assert module.kernel_distance(a, b).value == expected
    a, b = (torch.cat([side, side], 1) for side in (a, b))  # two equal features change nothing
    assert module.kernel_distance(a, b).value == expected
    pairs = [(normal(20, 2, seed), normal(20, 2, 99 + seed)) for seed in range(40)]
    like = [module.kernel_distance(*pair).value for pair in pairs]
    assert abs(np.mean(like)) < 3 * np.std(like) / 40**0.5


def structural_similarities(module):
    a, b = pixels(0), (pixels(0).double() * 0.8 + 30).byte()
    options = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 255}
    expected = [
        structural_similarity(x.numpy(), y.numpy(), channel_axis=0, sigma=1.5, **options)
        for x, y in zip(a, b, strict=True)
    ]
    assert module.ssim_of_each(a, b).tolist() == pytest.approx(expected, abs=1e-12)
    dark, light = (torch.full((1, 3, 161, 161), value, dtype=torch.uint8) for value in (60, 200))
    brightness = (2 * 60 * 200 + 6.5025) / (60**2 + 200**2 + 6.5025)
    assert module.ms_ssim(dark, light) == pytest.approx(brightness**0.1333, abs=1e-12)
    fine = (128 + 20 * (-1) ** torch.arange(176)).byte().expand(1, 3, 176, 176)
    first = 58.5225 / (400 + 58.5225)  # averaged away at all scales but the first
    similarity = module.ms_ssim(fine, torch.full_like(fine, 128))
    assert similarity == pytest.approx(first**0.0448, abs=1e-6)


def the_signal_to_noise_ratio(module):
    target = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    off = target + torch.tensor([1, 10], dtype=torch.uint8)[:, None, None, None]
    expected = [20 * np.log10(255), 20 * np.log10(25.5)]
    assert module.psnr_db_of_each(off, target).tolist() == pytest.approx(expected)
    assert module.psnr_db(off, target) == pytest.approx(np.mean(expected))


CHECKS = {
    the_frechet_distance: frechet,
    the_statistics: gaussian,
    the_estimate: frechet_estimate,
    precision_and_recall: precision_recall,
    density_and_coverage: density_coverage,
    the_four_and_their_errors: manifolds,
    the_inception_score: inception_score,
    the_kernel_distance: kernel,
    structural_similarities: ssim,
    the_signal_to_noise_ratio: reconstruction,
}

# ------------------------------------------------------------------ what is changed

MUTATIONS = {
    (the_frechet_distance, frechet): [
        ("the roots count once", "- 2 * between", "- between"),
        ("no root", ".clamp(min=0).sqrt().sum(-1)", ".clamp(min=0).sum(-1)"),
        ("no square", "(a.mean - b.mean).square()", "(a.mean - b.mean).abs()"),
        ("a product that is not symmetric", "factor.mT @ b.cov @ factor", "a.cov @ b.cov"),
        ("any number of pictures", "fewest <= dim", "fewest < 2"),
    ],
    (the_frechet_distance, gaussian): [
        ("population covariance", "(self.count - 1)", "self.count"),
        ("float32 covariance", "rows = rows.double()", "rows = rows.float()"),
        (
            "covariance as a difference of squares",
            "mean, centred.T @ centred)",
            "mean, rows.T @ rows - len(rows) * mean.outer(mean))",
        ),
    ],
    (the_statistics, gaussian): [
        ("population covariance", "(self.count - 1)", "self.count"),
        ("batches about their own means", "alpha=a.count * share", "alpha=0"),
        ("a mean of means", "share = b.count / max(count, 1)", "share = 0.5"),
    ],
    (the_estimate, frechet_estimate): [
        ("the slope for the limit", "DIVISORS, means, 1)[0]", "DIVISORS, means, 1)[1]"),
        ("the mean for the limit", "DIVISORS, means, 1)[0]", "DIVISORS, means, 0)[0]"),
        ("parts of other sizes", "parts[start::divisor]", "parts[start:]"),
        ("a spread for an error", "(len(parts) - 1) * float", "float"),
        ("a variance for an error", "variance**0.5)", "variance)"),
    ],
    (precision_and_recall, precision_recall): [
        ("precision and recall swapped", "(precise.double()", "(recalled.double()"),
        ("one neighbour more for real rows", "reach_of(true, k)", "reach_of(true, k + 1)"),
        ("one neighbour more for drawn rows", "reach_of(drawn, k)", "reach_of(drawn, k + 1)"),
        ("edges outside", "squared <= true_reach", "squared < 0.99 * true_reach"),
        ("inside all balls", "reach[block.second]).any(1)", "reach[block.second]).all(1)"),
    ],
    (precision_and_recall, neighbours): [
        ("a row its own neighbour", "squared.fill_diagonal_(torch.inf)", "pass"),
        ("ties outside", "TIE = 1e-12", "TIE = -1e-12"),
        ("no distance", "alpha=-2", "alpha=-1"),
        ("the nearest alone", "k, 1).amax((1, 2))", "k, 1).amin((1, 2))"),
        ("half precision", "first.double(), second.double()", "first.half(), second.half()"),
    ],
    (density_and_coverage, density_coverage): [
        ("density not over k", "inside / (k * len(generated))", "inside / len(generated)"),
        ("density over real rows", "(k * len(generated))", "(k * len(real))"),
        ("one neighbour more", "reach_of(true, k)", "reach_of(true, k + 1)"),
        ("covered by all", "hits.any(0)", "hits.all(0)"),
    ],
    (density_and_coverage, neighbours): [
        ("a row its own neighbour", "squared.fill_diagonal_(torch.inf)", "pass"),
    ],
    (the_four_and_their_errors, manifolds): [
        ("precision and recall swapped", "precision=_estimate(precise.long(), ours)",
         "precision=_estimate(recalled.long(), theirs)"),
        ("precision in the drawn balls", "squared <= true_reach[:, j]",
         "squared <= drawn_reach[:, i]"),
        ("recall in the true balls", "squared <= drawn_reach[:, i]", "squared <= true_reach[:, j]"),
        ("one neighbour more for drawn rows", "_reaches(drawn, k)", "_reaches(drawn, k + 1)"),
        ("one neighbour more for real rows", "_reaches(true, k, cov", "_reaches(true, k + 1, cov"),
        ("one neighbour more for coverage", "(true, k, coverage_k)", "(true, k, coverage_k + 1)"),
        ("one neighbour less", "each[:, k - 1]", "each[:, max(k - 2, 0)]"),
        ("coverage to the neighbour of precision", "squared <= cover_reach[:, j]",
         "squared <= true_reach[:, j]"),
        ("density over precision's k", "ours, coverage_k, torch.inf", "ours, k, torch.inf"),
        ("density of true rows", "inside, ours,", "inside[:, : theirs.shape[1]], theirs,"),
        ("density at most 1", "coverage_k, torch.inf", "coverage_k, 1.0"),
        ("pairs out of sight", "torch.maximum(true_reach, cover_reach).amax(0)",
         "torch.minimum(true_reach, cover_reach).amin(0)"),
        ("groups by place", "rows[torch.randperm(len(rows), generator=generator).to(rows.device)]",
         "rows[torch.arange(len(rows))]"),
        ("blocks for groups", "device=rows.device) % GROUPS",
         "device=rows.device) * GROUPS // len(rows)"),
        ("one hand in all splits", "(j - i) % 11", "j % 11"),
        ("halves that see each other", "known = nearest.masked_fill(apart[..., None], torch.inf)",
         "known = nearest"),
        ("pairs of both halves", "together = ours[:, i] == theirs[:, j]",
         "together = torch.ones_like(ours[:, i])"),
        ("all of the difference", ".square().mean().item() / 4", ".square().mean().item()"),
        ("a variance for an error", "variance**0.5, highest", "variance, highest"),
        ("the normal's interval", "GROUPS - 1", "10**6"),
    ],
    (the_inception_score, inception_score): [
        ("shuffled splits", "shuffle_seed: int | None = None\n) -> InceptionScore:\n    \"\"\"exp",
         "shuffle_seed: int | None = 0\n) -> InceptionScore:\n    \"\"\"exp"),
        ("splits of another size", "SPLIT = 5000", "SPLIT = 1000"),
        ("float32", "(part.double())", "(part.float())"),
        ("exp of a mean", "scores.mean().item()", "scores.log().mean().exp().item()"),
        ("sample spread", "correction=0", "correction=1"),
        ("diversity alone", "(diverse - sure).exp()", "diverse.exp()"),
    ],
    (the_kernel_distance, kernel): [
        ("biased estimator", "within_a.sum() / (n * (n - 1))", "within_a.sum() / (n * n)"),
        ("a row with itself", "a.shape[1]) if skip_self else sums", "a.shape[1]) * 0"),
        ("another degree", ") ** 3", ") ** 2"),
        ("not over the features", "products / dim", "products"),
        ("across once", "- 2 * a_to_b.sum()", "- a_to_b.sum()"),
    ],
    (structural_similarities, ssim): [
        ("another spread", "WINDOW, SIGMA = 11, 1.5", "WINDOW, SIGMA = 11, 2.0"),
        ("a smaller window", "WINDOW, SIGMA = 11, 1.5", "WINDOW, SIGMA = 7, 1.5"),
        ("a peak of 1", "(0.01 * 255) ** 2, (0.03 * 255) ** 2", "0.01**2, 0.03**2"),
        ("constants swapped", "C1, C2 =", "C2, C1 ="),
        ("not about the mean", "local(a * b) - mean_a * mean_b", "local(a * b)"),
        ("scales reversed", "weight in SCALE_WEIGHTS[:-1]", "weight in SCALE_WEIGHTS[:0:-1]"),
        ("brightness at every scale", "(a, b).structure.clamp", "(a, b).whole.clamp"),
    ],
    (the_signal_to_noise_ratio, reconstruction): [
        ("the median", ".mean().item()", ".median().item()"),
        ("another peak", "255**2", "256**2"),
        ("one error for all", ".flatten(1).mean(1)", ".mean().expand(len(error))"),
    ],
}  # fmt: skip


def made_anew(module, monkeypatch, old="", new=""):
    """A module from its source with one text replaced; those that import it next get this one."""
    source = inspect.getsource(module)
    assert not old or source.count(old) == 1, f"{module.__name__} has '{old}' not once"
    fresh = ModuleType(module.__name__)
    exec(compile(source.replace(old, new), module.__file__, "exec"), fresh.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, fresh)


BUILT_ON = [features, gaussian, frechet, neighbours, reconstruction]
"""In the order in which they import each other."""


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_definition_passes_its_check(check):
    check(CHECKS[check])


@pytest.mark.parametrize(
    ("check", "changed", "old", "new"),
    [
        pytest.param(check, changed, old, new, id=f"{check.__name__}: {what}")
        for (check, changed), changes in MUTATIONS.items()
        for what, old, new in changes
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_changed_definition_fails_the_check_that_it_passes(monkeypatch, check, changed, old, new):
    for module in dict.fromkeys([*BUILT_ON, CHECKS[check]]):
        made_anew(module, monkeypatch, *((old, new) if module is changed else ("", "")))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(sys.modules[CHECKS[check].__name__])


def test_modules_made_anew_without_a_change_pass(monkeypatch):
    """So that a failure above is the change's."""
    for check, measured in CHECKS.items():
        for module in dict.fromkeys([*BUILT_ON, measured]):
            made_anew(module, monkeypatch)
        check(sys.modules[measured.__name__])


def test_every_check_is_tried_on_changes_of_its_own_module():
    assert {check for check, changed in MUTATIONS if changed is CHECKS[check]} == set(CHECKS)
