"""`tinyvlm data check`: is everything there and readable? `tinyvlm data prepare`: make what can be made here."""

import json
import logging
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from rich.console import Console
from rich.table import Column, Table

from tinyvlm_cli.command_config import DataCommand
from tinyvlm_cli.components import build
from tinyvlm_cli.config import Data, Split
from tinyvlm_cli.errors import FAILED, UserError
from tinyvlm_cli.results import write_text

if TYPE_CHECKING:
    from tinyvlm_cli.data.check import Finding
    from tinyvlm_cli.evaluate.benchmark import Benchmark

log = logging.getLogger(__name__)


def run(config: DataCommand) -> int:
    """Check or prepare. Returns the exit code."""
    if config.action == "prepare":
        return _prepare(config)
    if config.action == "check":
        return _check(config)
    raise UserError(f"action={config.action}: choose check or prepare")


def _check(config: DataCommand) -> int:
    """Look at the data group and the benchmarks that are named."""
    if config.data is None and not config.benchmark:
        raise UserError("nothing to check; add data=NAME or benchmark=NAME")
    codes = []
    if config.data is not None:
        codes.append(_check_data(config.data, Path(config.results_dir)))
    if config.benchmark:
        codes.append(_check_benchmarks(config.benchmark))
    return max(codes)


def _check_benchmarks(nodes: dict[str, Any]) -> int:
    """A table of what is there, and a line for each thing that is not."""
    from tinyvlm_cli.evaluate.inventory import take_inventory

    benchmarks: list[Benchmark] = [build(node) for node in nodes.values()]
    inventories = [take_inventory(benchmark) for benchmark in benchmarks]
    table = Table("benchmark", "split", Column("questions", justify="right"), Column("images", justify="right"), "")
    for benchmark, found in zip(benchmarks, inventories, strict=True):
        there = f"{found.images - found.absent:,} of {found.images:,}"
        state = "not complete" if found.findings else "complete"
        table.add_row(benchmark.label, benchmark.split, f"{found.questions:,}", there, state)
    console = Console(markup=False, highlight=False)
    console.print(table)
    for benchmark, found in zip(benchmarks, inventories, strict=True):
        for finding in found.findings:
            console.print(f"{benchmark.label}: {finding}", soft_wrap=True)
        for file in benchmark.wanted():
            console.print(f"{benchmark.label}, for the official judging: {file}", soft_wrap=True)
    return FAILED if any(found.findings for found in inventories) else 0


def _check_data(data: Data, results_dir: Path) -> int:
    """Every split of the data group: findings as a table, and as files in results/index/skip/."""
    absent = [
        f"data.splits.{name}.{what}: no {getattr(split, what)}; get it from {split.source}"
        for name, split in data.splits.items()
        for what, there in (("annotations", Path(split.annotations).is_file()), ("images", Path(split.images).is_dir()))
        if not there
    ]
    if absent:
        raise UserError("\n".join(absent))
    bad = 0
    done: set[tuple[str, str]] = set()  # two splits can be the same files
    for name, split in data.splits.items():
        if (split.annotations, split.images) not in done:
            done.add((split.annotations, split.images))
            bad += _check_split(name, split, results_dir)
    return FAILED if bad else 0


def _check_split(name: str, split: Split, results_dir: Path) -> int:
    """Look at one split and show what was found. Returns how many records are left out."""
    from tinyvlm_cli.data.check import SKIPPED, check_split
    from tinyvlm_cli.data.fingerprint import file_hash
    from tinyvlm_cli.data.skips import write_skips

    number, findings = check_split(split)
    # The index leaves out broken records by itself. On this list they would only make trained stages look like others.
    skips = {finding.number: finding.says for finding in findings if finding.kind in SKIPPED}
    left_out = {finding.number for finding in findings if finding.leaves_out}
    path = write_skips(file_hash(Path(split.annotations), results_dir), results_dir, skips)
    everything = "".join(json.dumps(asdict(finding)) + "\n" for finding in findings)
    write_text(path.with_suffix(".findings.jsonl"), everything)
    console = Console(markup=False, highlight=False)
    published = "" if number == split.count else f" (published: {split.count:,})"
    console.print(f"{name}: {number:,} records{published}, {number - len(left_out):,} usable", soft_wrap=True)
    if findings:
        console.print(_table(findings))
        console.print(f"all of them: {path.with_suffix('.findings.jsonl')}", soft_wrap=True)
    return len(left_out)


def _table(findings: list["Finding"]) -> Table:
    table = Table("finding", "records", "training", "the first")
    kinds = Counter(finding.kind for finding in findings)
    for kind, count in kinds.most_common():
        first = next(finding for finding in findings if finding.kind == kind)
        table.add_row(kind, f"{count:,}", first.training, first.says)
    return table


def _prepare(config: DataCommand) -> int:
    groups = {"data": config.data, "llm": config.llm, "vision": config.vision}
    chosen = {f"{key}={group.name}": group.prepare for key, group in groups.items() if group is not None}
    findings = [
        f"{word}: cannot be made here; get the files, or set its path" for word, node in chosen.items() if not node
    ]
    if findings or not chosen:
        raise UserError("\n".join(findings) or "nothing to prepare; add data=NAME, llm=NAME or vision=NAME")
    for word, node in chosen.items():
        assert node is not None
        make(word, node)
    return 0


def make(word: str, node: dict[str, Any]) -> None:
    """Make the folder that a `prepare` node describes, whole or not at all; another process may want it too."""
    folder = Path(node["folder"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.exists():
            log.info("%s: is there already, in %s", word, folder)
            return
        draft = folder.with_name(f".{folder.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)  # of a killed process
        draft.mkdir()
        try:
            build({**node, "folder": draft})
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    log.info("%s: made in %s", word, folder)
