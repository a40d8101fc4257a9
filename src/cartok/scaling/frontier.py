"""The Pareto frontier of runs: no other had a better score for as little compute (section 3.3)."""

import numpy as np

from cartok.scaling.bands import Numbers, positive


def frontier_of(compute: Numbers, scores: Numbers) -> list[int]:
    """Places of the runs that are on the frontier, by rising compute; lower scores are better.

    Along it compute rises and scores fall, both strictly. Of runs that tie in both the first stays.
    Where scores are noisy, what is on the frontier is there partly by luck, so a law fitted to it
    lies too low; ``joint.fit_joint`` fits all runs and has no such bias.

    Raises:
        UserError: a compute or score is not above 0, or their numbers differ.
    """
    costs = positive("compute", compute, len(compute))
    values = positive("score", scores, len(compute))
    found: list[int] = []
    for place in np.lexsort((np.arange(len(costs)), values, costs)).tolist():
        if not found or values[place] < values[found[-1]]:
            found.append(place)
    return found
