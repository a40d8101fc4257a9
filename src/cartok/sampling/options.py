"""How samples are drawn: guidance over positions, filters, batch."""

from cartok.core.config import config, nearest
from cartok.sampling.guidance import SCHEDULES


@config
class SamplingConfig:
    """How samples are drawn; the defaults are plain ancestral sampling (paper, A.2)."""

    seed: int
    guidance: float = 1.0
    """1: none; the paper searches 1.5 to 2.25."""
    schedule: str = "constant"
    """Of the guidance over positions: constant, linear or cosine."""
    power: float = 1.0
    """Of the share of tokens that a schedule sees; above 1, guidance comes late."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Shares of the tokens between which there is guidance."""
    temperature: float = 1.0
    """0: the likeliest code."""
    top_k: int = 0
    """0: all codes."""
    top_p: float = 1.0
    """Bars all but the fewest codes that together reach this probability."""
    min_p: float = 0.0
    """Bars codes less likely than this share of the likeliest."""
    batch: int = 64
    """Pictures at once; twice as many rows run when guided. In float32 the pictures do not depend
    on it."""
    first_index: int = 0
    """Of the first label; the others follow."""

    def __post_init__(self) -> None:
        """Refuses values that mean no distribution."""
        if not 0 <= self.seed < 2**64 or not 0 <= self.first_index < 2**64:
            raise ValueError("seed and first_index lie in [0, 2^64)")
        if self.schedule not in SCHEDULES:
            hint = nearest(self.schedule, list(SCHEDULES))
            raise ValueError(f"unknown guidance schedule '{self.schedule}'; {hint}")
        if self.temperature < 0:
            raise ValueError(
                f"temperature is 0 (the likeliest code) or more, but is {self.temperature:g}"
            )
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError("top_k is 0 (all codes) or more, and top_p lies in (0, 1]")
        if not 0 <= self.min_p <= 1:
            raise ValueError(
                f"min_p is a share from 0 (no code barred) to 1, but is {self.min_p:g}"
            )
        if self.power <= 0:
            raise ValueError(f"power is above 0, but is {self.power:g}")
        if not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise ValueError(
                f"interval is two shares of the tokens, the first below the second, from 0 to 1, "
                f"but is {self.interval}"
            )
        if self.batch < 1:
            raise ValueError("batch is at least 1")
