import pytest

from cartok.core.config import ConfigError
from cartok.recipes.yardstick import Yardstick


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"samples": 100}, "512 pictures or more, but samples is 100"),
        ({"held": 511}, "but held is 511"),
        ({"guidances": ()}, "at least one"),
        ({"guidances": (1.5, 0.0)}, "above 0"),
        ({"guidances": (2.0, 2.0)}, "tried once"),
        ({"size": 128}, "96 or 224 pixels, but size is 128"),
    ],
)
def test_what_measures_nothing_is_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        Yardstick(**fields)
