"""Early stopping of a grid: a sequential test of whether a model is too far behind another one to catch up.

Each evaluation of a stage is a look at the data. The error rate is divided by the number of looks and of competitors
(Bonferroni), so the probability of a wrong stop in the whole stage is at most `alpha`, whatever their correlation.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.statistics.questions import Questions, summed

MIN_IMAGES = 50  # fewer images are never enough for a stop, as the test assumes a normal distribution


@dataclass(frozen=True)
class Verdict:
    """The comparison that stopped a stage."""

    behind: str  # the competitor
    lead: float  # of the competitor, in percent of the highest score, as a mean over benchmarks
    p: float  # one-sided, that the true lead exceeds the margin
    level: float  # below which p stops the stage


def verdict(
    own: Mapping[str, Questions], others: Mapping[str, Mapping[str, Questions]], highest: Mapping[str, float], *,
    margin: float, alpha: float, num_looks: int,
) -> Verdict | None:  # fmt: skip
    """Return the comparison with the competitor that is most clearly ahead by more than `margin`, or None.

    own: benchmark -> questions. others: competitor -> the same. highest: benchmark -> highest score.
    """
    best: Verdict | None = None
    level = alpha / (num_looks * max(1, len(others)))
    for name, other in others.items():
        lead = variance = 0.0
        try:
            for benchmark, questions in own.items():
                sums = summed([questions, other[benchmark]])
                if len(sums.strata) < MIN_IMAGES:
                    return None
                unit = 100 / highest[benchmark] / len(own)
                headlines, influence = sums.headlines()[:, 0], sums.influence()
                lead += unit * float(headlines[1] - headlines[0])
                variance += unit**2 * sums.variance(influence[1] - influence[0])
        except UserError:  # other questions
            continue
        z = (lead - margin) / max(variance**0.5, 1e-9)
        p = math.erfc(z / math.sqrt(2)) / 2
        if p < level and (best is None or p < best.p):
            best = Verdict(name, lead, p, level)
    return best
