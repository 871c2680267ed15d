"""The command lines that reproduce a table: those that trained its runs, evaluated them and printed it.

Records may come from someone else, so only `tinyvlm` commands are shown, and each argument is quoted for a shell.
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tinyvlm_cli.config.build import conf_dir
from tinyvlm_cli.console import printable
from tinyvlm_cli.report.scores import OURS
from tinyvlm_cli.report.sheet import Sheet
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import SHUFFLED, Run, ScoreRow
from tinyvlm_cli.untrusted import read_yaml

OF_FOLDER = re.compile(r"results_dir=[^$]*")  # unless it depends on other settings


def command_lines(sheet: Sheet, runs: Iterable[Run], scores: Iterable[ScoreRow], root: Path, report: str) -> list[str]:
    """Return comments with the versions that trained the runs, then the commands in order.

    runs, scores: may include others than those of the table. root: the results folder, which all commands use because
    it may have been moved. report: the command that makes the page.
    """
    members = {run.folder.name: run for run in runs if run.folder.name in sheet.runs}
    trained = {run.folder: run for run in (*members.values(), *_continued(members.values(), root))}
    made = sorted((run.made_with for run in trained.values()), key=lambda one: str(one.get("time")))
    versions: dict[str, None] = {}
    for one in made:
        packages, commit = one.get("packages"), str(one.get("commit") or "")
        version = str(packages.get("tinyvlm") or "") if isinstance(packages, dict) else ""
        if commit or version:
            parts = [f"# tinyvlm {version}".rstrip(), f"commit {commit.rstrip('+')}" if commit else ""]
            parts += ["uncommitted changes"] if commit.endswith("+") else []
            versions[printable(" ".join(", ".join(filter(None, parts)).split()))] = None

    shown = sheet.records[sheet.records["origin"] == OURS]
    scored = set(zip(shown["run"], shown["stage"], shown["benchmark"], strict=True))
    rows = [row for row in scores if (row.run, row.stage, row.benchmark) in scored and row.limit is None]
    commands = [str(one.get("command") or "") for one in made]
    commands += [row.command for row in sorted(rows, key=lambda row: row.created)]
    commands += _evaluations([row for row in rows if not row.command], members)

    words = [word for word in shlex.split(report)[2:] if not re.match(r"(format|output)=", word)]
    if any((folder / "table" / f"{sheet.name}.yaml").is_file() for folder in (Path("conf"), conf_dir())):
        others = re.compile(rf"[+~]*table(=|\.(?!{re.escape(sheet.name)}[.=]))")
        words = [f"table={sheet.name}", *(word for word in words if not others.match(word))]
    lines: dict[str, None] = {}
    for command in [*commands, shlex.join(["tinyvlm", "report", *words])]:
        try:
            words = [word for word in shlex.split(command) if not OF_FOLDER.fullmatch(word)]
        except ValueError:  # an earlier version recorded it without quotes
            continue
        if words[:1] == ["tinyvlm"] and command == printable(command):  # a terminal would obey control characters
            is_set = any(word.startswith("results_dir=") for word in words) or root == Path("results")
            lines[shlex.join([*words, *([] if is_set else [f"results_dir={root}"])])] = None
    return [*versions, *lines]


def _continued(runs: Iterable[Run], root: Path) -> Iterator[Run]:
    """Yield the runs that these runs continue (start=RUN), which must be trained first."""
    continuing = [run for run in runs if run.before]
    known = [run for run in Results(root).runs() if run.stages] if continuing else []
    for run in continuing:
        first: Run | None = run
        while first is not None and first.before:
            first = next((one for one in known if [*one.before, *one.stages.values()] == first.before), None)
            if first is not None:
                yield first


def _evaluations(rows: Iterable[ScoreRow], runs: Mapping[str, Run]) -> list[str]:
    """Return commands for scores of earlier versions, which did not record them, as far as their settings are known."""
    rows = list(rows)
    blind = {(row.run, row.stage, row.benchmark) for row in rows if row.images == SHUFFLED}
    groups: dict[tuple[str, ...], list[str]] = {}
    places: dict[tuple[str, str], Any] = {}
    for row in rows:
        if row.images == SHUFFLED or row.run not in runs:
            continue
        run, key = runs[row.run], (row.run, row.stage)
        if key not in places:  # one file of many, all of which are usually in the same folder
            path = Results.answers_dir(run.folder, row.stage, row.benchmark) / "benchmark.yaml"
            node = read_yaml(path, "evaluate the run again") if path.is_file() else None
            places[key] = Path(str(node["data_dir"])).parent if isinstance(node, dict) and "data_dir" in node else None
        words = ["tinyvlm", "eval", f"run={row.run}"]
        words += [f"stage={row.stage}"] if row.stage in list(run.stages)[:-1] else []
        words += [f"judge.model={row.judge}"] if row.judge else []
        words += ["blind=true"] if (*key, row.benchmark) in blind else []
        words += [f"eval_dir={places[key]}"] if places[key] is not None else []
        groups.setdefault(tuple(words), []).append(row.benchmark)
    lists = {words: names[0] if len(names) == 1 else f"[{','.join(names)}]" for words, names in groups.items()}
    return [shlex.join([*words, f"benchmark={names}"]) for words, names in lists.items()]
