"""Power of a planned grid: which true differences the tables of the report would find, and what more seeds would cost.

The comparisons, the tests and their correction are those of the report. Nothing here depends on how costs are computed.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tinyvlm_cli.config.commands import Column, Table
from tinyvlm_cli.config.commands import Noise as Assumed
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.report.differences import reference_pairs
from tinyvlm_cli.report.scores import CHOICES, OURS, SCORE, fits, typed
from tinyvlm_cli.report.sheet import SIGNIFICANCE
from tinyvlm_cli.report.tables import fitting, with_rows
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import HIGHEST, REAL, ScoreRow
from tinyvlm_cli.statistics.intervals import PAIRED, SEEDS
from tinyvlm_cli.statistics.power import (
    MAX_SEEDS,
    TARGET,
    Noise,
    Shape,
    assumed_noise,
    detectable,
    false_alarms,
    measure,
    seeds_needed,
)
from tinyvlm_cli.statistics.questions import FILE, Formula, Questions

MAX_SETTINGS, MAX_REPEATS = 8, 4  # of earlier results: settings, and seeds of each
SAME_SIZE = 0.1  # relative difference between numbers of questions of the same benchmark


@dataclass(frozen=True)
class GridCell:
    """A run of the grid and its costs."""

    folder: str
    name: str
    choices: dict[str, str]
    seed: int
    stage: str  # the last one
    hours: dict[str, float | None]  # stage folder -> GPU-hours; None if unknown
    evaluation_hours: float | None


@dataclass(frozen=True)
class Comparisons:
    """The differences that one table of the report tests."""

    name: str  # of the table, or of a group that no table of the report compares
    against: dict[str, str]
    pairs: list[tuple[str, str]]  # displayed names of a reference and of another row
    benchmarks: list[str]
    num_seeds: int  # of the row with the fewest
    cells: list[GridCell]  # in any pair

    @property
    def level(self) -> float:
        """Level below which the smallest p value of the table is significant after Holm's correction."""
        return SIGNIFICANCE / (len(self.pairs) * len(self.benchmarks))

    def hours_per_seed(self) -> tuple[float, bool]:
        """Return the GPU-hours of all rows for one seed, with shared stages counted once, and whether all are known."""
        stages = {folder: hours for cell in self.cells for folder, hours in cell.hours.items()}
        evaluations = sum(cell.evaluation_hours or 0 for cell in self.cells)
        num_seeds = len({cell.seed for cell in self.cells})
        return (sum(hours or 0 for hours in stages.values()) + evaluations) / num_seeds, None not in stages.values()


def power_rows(  # noqa: PLR0917
    cells: Sequence[GridCell], chosen: Sequence[str], points: float, assumed: Assumed, tables: Mapping[str, Table],
    results: Results,
) -> Iterator[list[str]]:  # fmt: skip
    """Yield rows of text on the power of each comparison of the grid; a row with a single cell is a line of its own.

    chosen: benchmarks; empty: those of `assumed` that are scored without a judge. points: the difference to find, in
    percent of a benchmark's highest score.
    """
    benchmarks = list(chosen) or [name for name in assumed.benchmarks if name != "mmvet"]
    compared = list(comparisons(cells, benchmarks, tables))
    if not compared:
        yield ["power: no two cells of the grid differ in exactly one group, so the report would compare none"]
        return
    noises: dict[str, tuple[Noise, float]] = {}
    for benchmark in benchmarks:
        if (found := noise_of(benchmark, cells, assumed, results)) is not None:
            noises[benchmark] = found
    for one in compared:
        settings = " ".join(f"{choice}={value}" for choice, value in one.against.items())
        num_tests = len(one.pairs) * len(one.benchmarks)
        hours, is_known = one.hours_per_seed()
        yield [""]
        yield [
            f"{one.name}: {len(one.pairs)} difference{'s' * (len(one.pairs) > 1)} from rows with {settings} on "
            f"{len(one.benchmarks)} benchmarks; "
            f"{num_tests} tests, so a difference that alone is real needs p < {SIGNIFICANCE} / {num_tests}"
        ]
        yield [f"  {'; '.join(f'{b} - {a}' for a, b in one.pairs)}"]
        seeds = "1 seed" if one.num_seeds == 1 else f"{one.num_seeds} seeds"
        yield [
            "each difference on",
            f"{seeds} find",
            f"{MAX_SEEDS} seeds find",
            "to find",
            "seeds",
            "GPU-hours",
            "noise",
        ]
        for benchmark in one.benchmarks:
            if benchmark not in noises:
                yield [benchmark, "-", "-", "-", "-", "-", "no earlier results, and no assumption"]
                continue
            noise, highest = noises[benchmark]
            change = points * highest / 100
            needed = seeds_needed(noise, change, one.level)
            total = (needed or 0) * hours
            figure = f"{total:,.0f}" if total >= 100 else f"{total:.3g}"
            cost = "-" if needed is None else figure if is_known else f">= {figure}"
            finds = [f"{detectable(noise, number, one.level):.3g}" for number in (one.num_seeds, MAX_SEEDS)]
            yield [
                benchmark, *finds, f"{change:.3g}", str(needed or f"> {MAX_SEEDS}"), cost, _source(noise),
            ]  # fmt: skip
    yield [""]
    yield from ([line] for line in _notes(compared, noises, assumed))


def comparisons(
    cells: Sequence[GridCell], benchmarks: Sequence[str], tables: Mapping[str, Table]
) -> Iterator[Comparisons]:
    """Yield what the report compares: in the tables that would suit the runs, then in groups that no table compares."""
    frame = typed(
        (
            {
                "origin": OURS, "name": cell.name, **cell.choices, "run": cell.folder, "seed": cell.seed,
                "stage": cell.stage, "images": REAL, "benchmark": benchmark, "value": 0.0,
            }
            for cell in cells
            for benchmark in benchmarks
        ),
        SCORE,
    )  # fmt: skip
    by_folder = {cell.folder: cell for cell in cells}
    done: set[tuple[str, str]] = set()
    suiting = {name: tables[name] for name in fitting(tables, frame) if tables[name].against}
    base = Table(runs={}, columns=[Column(name, name) for name in benchmarks], blind=False)
    groups = {
        group: replace(base, against={group: frame[group].iloc[0]}) for group in CHOICES if frame[group].nunique() > 1
    }
    for name, table in (*suiting.items(), *groups.items()):
        own = with_rows(frame[fits(table, frame)])
        shown = own.drop_duplicates("row").set_index("row")["shown"]
        numbers = reference_pairs(table, own)
        pairs = [(shown[reference], shown[other]) for reference, other in numbers]
        if not pairs or (table in groups.values() and done & set(pairs)):
            continue
        done |= set(pairs)
        rows = own[own["row"].isin({row for pair in numbers for row in pair})]
        yield Comparisons(
            name=name,
            against=table.against,
            pairs=pairs,
            benchmarks=list(dict.fromkeys(rows["benchmark"])),
            num_seeds=int(rows.groupby("row")["seed"].nunique().min()),
            cells=[by_folder[folder] for folder in rows["run"].unique()],
        )


def noise_of(
    benchmark: str, cells: Sequence[GridCell], assumed: Assumed, results: Results
) -> tuple[Noise, float] | None:
    """Return a benchmark's noise and highest score, from earlier results if there are any, else as assumed.

    Returns None if there are neither earlier results nor assumptions. Earlier results are those of runs on the grid's
    training data, or else those on about as many questions as assumed: the demo's benchmarks are much smaller.
    """
    expected = assumed.benchmarks.get(benchmark)
    questions = sum(expected.groups.values()) if expected else 0
    rows = [
        row for row in results.scores()
        if row.benchmark == benchmark and row.value is not None and row.limit is None and row.images == REAL
    ]  # fmt: skip
    data = {cell.choices["data"] for cell in cells}
    rows = [row for row in rows if row.data in data] or [
        row for row in rows if questions and abs(row.n / questions - 1) < SAME_SIZE
    ]
    between = {"between_settings": assumed.between_settings, "between_seeds": assumed.between_seeds}
    if measured := _measured(rows, cells, (expected.seeds if expected else 0.0) ** 2, results, **between):
        return measured
    if expected is None:
        return None
    if expected.formula not in ("mean", "f1", "pairs"):
        raise UserError(
            f"noise.benchmarks.{benchmark}.formula: '{expected.formula}' is not supported; choose from mean, f1, pairs"
        )
    shape = Shape(Formula(expected.formula), expected.groups, expected.images)
    highest = 200.0 * len(expected.groups) if shape.formula is Formula.pairs else 100.0
    noise = assumed_noise(
        shape, expected.accuracy, **between, within_image=assumed.within_image, seeds=expected.seeds
    )  # fmt: skip
    return noise, highest


def _measured(
    rows: Sequence[ScoreRow], cells: Sequence[GridCell], seeds: float, results: Results, *,
    between_settings: float, between_seeds: float,
) -> tuple[Noise, float] | None:  # fmt: skip
    """Return the noise of earlier scores and their highest value, or None if none of them can be used.

    seeds: assumed variance between seeds, for runs without a second seed. Scores by another rule than most are left
    out. Settings are compared if they differ in one group, as in the report; if none do, all are compared.
    """
    stages = {cell.stage for cell in cells}
    rules = [(row.follows, row.version, row.split, row.judge) for row in rows]
    groups: dict[tuple[str, ...], list[Questions]] = defaultdict(list)
    for row, rule in zip(rows, rules, strict=True):
        settings = (row.stage, row.name, *(getattr(row, choice) for choice in CHOICES))
        is_full = len(groups.get(settings, ())) >= MAX_REPEATS or (
            settings not in groups and len(groups) >= MAX_SETTINGS
        )
        if is_full or row.stage not in stages or rule != Counter(rules).most_common(1)[0][0]:
            continue
        try:
            questions = Questions.read(
                results.answers_dir(results.run_dir(row.run), row.stage, row.benchmark) / FILE
            )  # fmt: skip
        except UserError:
            continue
        groups[settings].append(questions)
    if not groups:
        return None
    names = [settings[2:] for settings in groups]
    pairs = [
        (a, b) for b in range(len(names)) for a in range(b)
        if sum(one != other for one, other in zip(names[a], names[b], strict=True)) == 1
    ]  # fmt: skip
    correlated = Noise(1, 2 * (1 - between_settings), 1 - between_seeds, seeds, 0)
    try:
        noise = measure(list(groups.values()), correlated, pairs)
    except UserError:  # no questions in common
        return None
    return (noise, float(HIGHEST.get(rows[0].metric, 100))) if noise.num_images > 1 and noise.run else None


def _source(noise: Noise) -> str:
    """Return where the noise comes from."""
    if not noise.num_runs:
        return "assumed"
    counted = {"run": noise.num_runs, "pair": noise.num_pairs, "repeated seed": noise.num_seeds}
    texts = [f"{number} {noun}{'' if number == 1 else 's'}" for noun, number in counted.items() if number]
    assumed = {"pairs": noise.num_pairs, "seeds": noise.num_seeds}
    absent = " and ".join(noun for noun, number in assumed.items() if not number)
    return f"measured: {', '.join(texts)}" + (f"; {absent} assumed" if absent else "")


def _notes(compared: Sequence[Comparisons], noises: Mapping[str, tuple[Noise, float]], assumed: Assumed) -> list[str]:
    """Return lines on the test, its correction, and the source of the noise."""
    has_one, has_several = (
        any(is_one == (one.num_seeds == 1) for one in compared) for is_one in (True, False)
    )  # fmt: skip
    lines = [
        f"find: the true difference, in points of the score, that the report marks with probability {TARGET:.0%}, "
        "after Holm's correction (1979) over its table, if no other difference is real; if others are, power is higher",
        *([PAIRED] if has_one else []),
        *([SEEDS] if has_several else [f"{SEEDS}: for two or more seeds"]),
    ]
    if has_one and noises:
        rates = [false_alarms(noise, SIGNIFICANCE) for noise, _ in noises.values()]
        lines.append(
            "One seed compares two trained models, not their settings: as seeds differ, equal settings would "
            f"differ with p < {SIGNIFICANCE} in {min(rates):.0%} to {max(rates):.0%} of uncorrected tests, not in "
            f"{SIGNIFICANCE:.0%}; use seed=0,1,2"
        )
    if any(not noise.num_pairs or not noise.num_seeds for noise, _ in noises.values()):
        lines.append(
            f"assumed (conf/noise.yaml): scores of a question correlate by {assumed.between_settings:g} between models "
            f"and {assumed.between_seeds:g} between seeds; accuracies and deviations between seeds in noise.benchmarks"
        )
    if any(noise.num_runs for noise, _ in noises.values()):
        lines.append("measured: from questions.json of earlier runs in results_dir")
    lines.append(
        "GPU-hours: all rows of the table with the needed seeds, shared stages counted once, with evaluations if "
        "`tinyvlm bench eval` has measured them"
    )
    return lines
