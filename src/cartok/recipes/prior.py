"""Recipes of stage 2: the sizes of the paper's Table 2, and small ones."""

from dataclasses import replace

from cartok.core.job import EvaluationConfig, LoopConfig
from cartok.core.optim import OptimConfig
from cartok.layers import TransformerConfig
from cartok.prior.train import PriorRun
from cartok.recipes import table_of


def demo() -> PriorRun:
    """The demo's prior: 0.5M parameters, minutes on a laptop."""
    return PriorRun(
        transformer=TransformerConfig(width=96, depth=4, heads=3, dropout=0.1, hidden_multiple=64),
        optim=OptimConfig(
            lr=3e-3, warmup_steps=30, warmup_from=3e-4, schedule="cosine", weight_decay=0.05
        ),
        loop=LoopConfig(steps=400, batch=32, log_every=10, save_every=250),
        evaluations=(EvaluationConfig(name="validation", every=100, num=256),),
    )


def toy() -> PriorRun:
    """Seconds, for tests; its samples mean nothing."""
    return PriorRun(
        transformer=TransformerConfig(width=32, depth=2, heads=2, dropout=0.1, hidden_multiple=32),
        optim=OptimConfig(lr=3e-3, warmup_steps=2, schedule="cosine", weight_decay=0.05),
        loop=LoopConfig(steps=20, batch=16, log_every=1, save_every=10, trackers=()),
        evaluations=(EvaluationConfig(name="validation", every=10, num=16),),
    )


def small() -> PriorRun:
    """5.4M parameters with 512 codes, 6k steps: that of the studies, minutes on a GPU."""
    return PriorRun(
        transformer=TransformerConfig(width=256, depth=6, heads=4, dropout=0.1),
        optim=OptimConfig(
            lr=1e-3, warmup_steps=500, warmup_from=1e-5, schedule="cosine", weight_decay=0.05
        ),
        loop=LoopConfig(
            steps=6_000, batch=128, precision="bf16", log_every=100, save_every=3_000,
            replay=True, trackers=(),
        ),
        compile=True,
        evaluations=(EvaluationConfig(name="validation", every=1_000, num=1_024),),
    )  # fmt: skip


def _31m() -> PriorRun:
    """31M parameters, 3 layers (paper, Figure 6; its shape is inferred)."""
    return _paper(width=576, depth=3, heads=9)


def _52m() -> PriorRun:
    """52M parameters, 6 layers (paper, Table 2), 375k steps of 256 pictures."""
    return _paper(width=640, depth=6, heads=10)


def _81m() -> PriorRun:
    """81M parameters, 9 layers (paper, Table 2)."""
    return _paper(width=704, depth=9, heads=11)


def _111m() -> PriorRun:
    """111M parameters, 12 layers (paper, Table 2)."""
    return _paper(width=768, depth=12, heads=12)


def _111m_muon() -> PriorRun:
    """111m with Muon for the layers' matrices; not the paper's."""
    return replace(_111m(), matrices="muon")


def _212m() -> PriorRun:
    """212M parameters, 18 layers (paper, Table 2)."""
    return _paper(width=896, depth=18, heads=14)


def _343m() -> PriorRun:
    """343M parameters, 24 layers (paper, Table 2)."""
    return _paper(width=1024, depth=24, heads=16)


def _517m() -> PriorRun:
    """517M parameters, 30 layers (paper, Table 2, where it is called 550M)."""
    return _paper(width=1152, depth=30, heads=18)


def _775m() -> PriorRun:
    """775M parameters, 36 layers (paper, Table 2)."""
    return _paper(width=1280, depth=36, heads=20)


def _1400m() -> PriorRun:
    """1.4 billion parameters, 48 layers (LlamaGen's XXL; beyond the paper)."""
    return _paper(width=1536, depth=48, heads=24)


def _3100m() -> PriorRun:
    """3.1 billion parameters, 24 layers (LlamaGen's 3B; beyond the paper), divided among GPUs."""
    run = _paper(width=3200, depth=24, heads=32)
    return replace(run, weights="divided", recompute=True)


def _paper(width: int, depth: int, heads: int) -> PriorRun:
    return PriorRun(
        transformer=TransformerConfig(width=width, depth=depth, heads=heads, dropout=0.1),
        loop=LoopConfig(
            steps=375_000, batch=256, precision="bf16", log_every=100, save_every=5_000
        ),
        evaluations=(EvaluationConfig(name="validation", every=5_000, num=5_000),),
    )


PRIORS = table_of(
    demo, toy, small, _31m, _52m, _81m, _111m, _111m_muon, _212m, _343m, _517m, _775m, _1400m,
    _3100m,
)  # fmt: skip
