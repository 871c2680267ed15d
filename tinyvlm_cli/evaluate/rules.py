"""Compare the scoring rules of a benchmark on the same answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Benchmark
from tinyvlm_cli.evaluate.items import Score
from tinyvlm_cli.results.records import Answer


@dataclass(frozen=True)
class RuleScores:
    """The scores of the same answers under each rule."""

    follows: dict[str, str]  # rule -> the scorer that it reproduces
    scores: dict[str, Score]  # rule -> score
    failures: dict[str, str]  # rule -> why the answers have no score under it
    differences: dict[str, dict[str, float]]  # Question.key -> rule -> score of the question, if rules disagree


def compare_rules(benchmark: Benchmark, answers: Sequence[Answer], *, partial: bool) -> RuleScores:
    """Score the answers under each rule of the benchmark. Raises UserError if it has only one, or none can be applied.

    A question that is missing under a rule, such as one without an image, does not count as a difference.
    """
    scores, failures, follows = {}, {}, {}
    for rule in benchmark.rules or ("all",):
        other = benchmark.under(rule)
        follows[rule] = other.follows
        try:
            scores[rule] = other.score(answers, partial=partial)
        except UserError as error:
            failures[rule] = str(error)
    if not scores:
        raise UserError("\n".join(failures.values()))
    keys = dict.fromkeys(key for score in scores.values() for key in score.per_question)
    points = {
        key: {rule: score.per_question[key] for rule, score in scores.items() if key in score.per_question}
        for key in keys
    }
    differences = {key: found for key, found in points.items() if len(set(found.values())) > 1}
    return RuleScores(follows, scores, failures, differences)
