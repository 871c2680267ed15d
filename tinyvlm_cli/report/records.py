"""The raw scores of a table: one record a score, for its CSV."""

from collections.abc import Iterable, Iterator

from tinyvlm_cli.config.commands import Column, Table
from tinyvlm_cli.report.ours import number
from tinyvlm_cli.report.published import PublishedScore
from tinyvlm_cli.report.sheet import Record
from tinyvlm_cli.results.records import ScoreRow
from tinyvlm_cli.statistics.intervals import Difference


def records(name: str, table: Table, published: Iterable[PublishedScore], ours: Iterable[ScoreRow]) -> Iterator[Record]:
    """Published scores, then ours, each with its values in column order. Seeds are not averaged."""
    for score in published:
        yield _published(name, score)
    for row in ours:
        for column in table.columns:
            if column.benchmark == row.benchmark:
                record = _own(name, row, column)
                # Neither: the score is there, and its details have not what the column asks for.
                if record.value is not None or record.state:
                    yield record


def difference_record(table: str, name: str, benchmark: str, one: Difference) -> Record:
    """A difference between two of our lines. name: b less a"""
    return Record(
        table, "difference", name, "", "", "", "", "",
        benchmark=benchmark, value=one.change, low=one.low, high=one.high, p=one.p, n=one.num_questions,
    )  # fmt: skip


def _published(table: str, score: PublishedScore) -> Record:
    return Record(
        table=table,
        origin="published",
        name=score.model,
        llm=score.llm,
        vision=score.vision,
        connector=score.connector,
        data=score.data,
        recipe=score.recipe,
        size=score.size,
        resolution=score.resolution,
        benchmark=score.benchmark,
        value=score.value,
        seen_in_training="yes" if score.is_seen else "",
        source=score.source,
        note=score.note,
    )


def _own(table: str, row: ScoreRow, column: Column) -> Record:
    value = number(row, column)
    low, high = row.interval if row.interval and not column.detail else (None, None)
    return Record(
        table=table,
        origin="ours",
        name=row.name,
        llm=row.llm,
        vision=row.vision,
        connector=row.connector,
        data=row.data,
        recipe=row.recipe,
        run=row.run,
        seed=row.seed,
        stage=row.stage,
        images=row.images,
        benchmark=row.benchmark,
        detail="/".join(column.detail),
        value=value,
        low=low,
        high=high,
        state="" if value is not None else row.state,
        metric=row.metric,
        n=row.n,
        split=row.split,
        follows=row.follows,
        version=row.version,
        judge=row.judge or "",
    )
