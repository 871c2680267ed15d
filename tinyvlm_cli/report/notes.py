"""What has to be said under a table for its numbers to be read rightly."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from tinyvlm_cli.config.commands import Table
from tinyvlm_cli.report.ours import Claim, Entry, clashes, entries, number
from tinyvlm_cli.report.published import PublishedScore
from tinyvlm_cli.report.sheet import PLUS_MINUS
from tinyvlm_cli.results.records import REAL, ScoreRow
from tinyvlm_cli.statistics.intervals import INTERVALS, SEEDS


def footnotes(
    name: str,
    table: Table,
    published: Sequence[PublishedScore],
    ours: Sequence[ScoreRow],
    *,
    limited: Sequence[ScoreRow],
) -> list[str]:
    """The table's own footnotes, then those on published scores, then those on ours."""
    labels: dict[str, str] = {}
    for column in table.columns:
        labels.setdefault(column.benchmark, column.label + (", ours" if published else ""))
    found = list(table.footnotes)
    found += _sources(published)
    if not published and not ours:
        found.append("No run has scores for this table: train one (tinyvlm train), then answer benchmarks with it "
                     "(tinyvlm eval)")  # fmt: skip
    if table.intervals and any(row.interval for row in ours):
        found += [INTERVALS, *([SEEDS] if any(len(line.seeds) > 1 for line in entries(ours)) else [])]
    found += _scorers(ours, labels) + _judges(ours, labels) + _unjudged(ours)
    found += _seeds(entries(ours), table)
    found += [_clash(name, claim, runs) for claim, runs in clashes(ours).items()]
    return found + _limited(limited)


def _sources(published: Sequence[PublishedScore]) -> list[str]:
    if not published:
        return []
    sources = dict.fromkeys(part for score in published for part in score.source.split("; "))
    found = [f"Published scores: {'; '.join(sources)}"]
    models: dict[str, list[str]] = defaultdict(list)
    for score in published:
        for part in score.note.split("; ") if score.note else []:
            if score.model not in models[part]:
                models[part].append(score.model)
    found += [f"{', '.join(named)}: {part}" for part, named in models.items()]
    if any(score.is_seen for score in published):
        found.append("* the publication says that training saw this benchmark's training set")
    return found


def _scorers(ours: Iterable[ScoreRow], labels: dict[str, str]) -> list[str]:
    rules: dict[str, dict[str, None]] = defaultdict(dict)
    for row in ours:
        rules[row.benchmark][f"{row.metric} on {row.split}, follows {row.follows}, version {row.version}"] = None
    found = []
    for benchmark, label in labels.items():
        if rules[benchmark]:
            warning = " (runs differ: not comparable)" if len(rules[benchmark]) > 1 else ""
            found.append(f"{label}: {' / '.join(rules[benchmark])}{warning}")
    return found


def _judges(ours: Iterable[ScoreRow], labels: dict[str, str]) -> list[str]:
    judges: dict[str, dict[str, None]] = defaultdict(dict)
    for row in ours:
        if row.judge:
            judges[row.benchmark][_judge(row)] = None
    return [f"{label}: {' / '.join(judges[name])}" for name, label in labels.items() if judges[name]]


def _judge(row: ScoreRow) -> str:
    reply: dict[str, Any] = row.details.get("judge") or {}
    served = [name for name in reply.get("served", []) if name != row.judge]
    text = f"judged by {row.judge}" + (f" (served as {', '.join(served)})" if served else "")
    if "without" in reply:
        text += f", which takes no {', '.join(reply['without'])},"
    protocol = row.details.get("protocol")
    if protocol == "tinyvlm":
        return f"{text} in tinyvlm's own words, not comparable with published scores"
    return f"{text}, {protocol} protocol" if protocol else text


def _unjudged(ours: Iterable[ScoreRow]) -> list[str]:
    states = {row.state for row in ours}
    found = []
    if "not judged" in states:
        found.append("not judged: no judge was named; repeat `tinyvlm eval` with judge.model=MODEL")
    if "pending" in states:
        found.append("pending: answers wait for the judge; repeat the same `tinyvlm eval`")
    return found


def _seeds(lines: Sequence[Entry], table: Table) -> list[str]:
    """What is averaged, of lines with the same seeds together."""
    alike: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        if len(line.seeds) > 1:
            seeds = ", ".join(map(str, line.seeds))
            text = f"mean {PLUS_MINUS} standard deviation of {len(line.seeds)} seeds ({seeds})"
            alike["; ".join([text, *_unjudged_seeds(line, table)])].append(line.shown)
    if len(alike) == 1 and len(next(iter(alike.values()))) == len(lines) > 1:
        return [f"All of ours: {next(iter(alike))}"]
    return [f"{', '.join(shown)}: {text}" for text, shown in alike.items()]


def _unjudged_seeds(line: Entry, table: Table) -> list[str]:
    """The columns in which only some of the seeds have a score."""
    fewer = []
    for column in table.columns:
        rows = [row for row in line.rows if row.benchmark == column.benchmark and row.images == REAL]
        scored = sum(number(row, column) is not None for row in rows)
        if 0 < scored < len(line.seeds):
            fewer.append(f"{column.label} of {scored}")
    return [", ".join(fewer)] if fewer else []


def _clash(table: str, claim: Claim, runs: Sequence[str]) -> str:
    name, stage, seed = claim
    return (
        f"{len(runs)} runs are {name}, {stage}, seed {seed}: {' and '.join(runs)}; each has its own line. "
        f"Compare their config.yaml, or choose one with table.{table}.runs.run={runs[0]}"
    )


def _limited(limited: Sequence[ScoreRow]) -> list[str]:
    if not limited:
        return []
    runs = ", ".join(dict.fromkeys(row.run for row in limited))
    return [f"Left out: {len(limited)} scores of the first questions only (limit) of {runs}"]
