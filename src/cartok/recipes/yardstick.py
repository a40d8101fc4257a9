"""How the arms of a comparison are scored: counts, guidance, and the judge's input."""

from cartok.core.config import config
from cartok.core.precision import Precision
from cartok.metrics.frechet import MIN_PICTURES


@config
class Yardstick:
    """Equal for all arms; numbers of two yardsticks do not compare. The defaults are the demo's."""

    samples: int = 576
    """Drawn from each prior, with balanced labels."""
    reference: int = 1024
    """Training pictures that samples are scored against."""
    held: int = 576
    """Held-out pictures: reconstructed, probed, and scored as the floor."""
    guidances: tuple[float, ...] = (1.5,)
    """Without classes there is none. Of several, each prior takes the one whose samples, drawn with
    another seed, come nearest to as many other training pictures."""
    scan_samples: int = 1024
    """Drawn for each guidance that is tried, where there are several."""
    size: int = 96
    """Of the judge's input, in pixels: 96 for speed, 224 in full."""
    drawn_in: Precision = "fp32"
    """Of a prior's weights and cache while samples are drawn; bf16 rounds them, at a third of the
    time on a GPU."""

    def __post_init__(self):
        for name in ("samples", "reference", "held", "scan_samples"):
            if (number := getattr(self, name)) < MIN_PICTURES:
                raise ValueError(
                    f"scores need {MIN_PICTURES} pictures or more, but {name} is {number}"
                )
        if not self.guidances or min(self.guidances) <= 0:
            raise ValueError(f"guidances are above 0, at least one, but are {self.guidances}")
        if len(set(self.guidances)) < len(self.guidances):
            raise ValueError(f"a guidance is tried once, but they are {self.guidances}")
        if self.size not in (96, 224):
            raise ValueError(f"the judge looks at 96 or 224 pixels, but size is {self.size}")
