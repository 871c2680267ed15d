"""`tinyvlm data check`: what is there of training sets and benchmarks, what is wrong with it, and where to get it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table

from tinyvlm_cli.config.build import build
from tinyvlm_cli.config.commands import DataCommand
from tinyvlm_cli.config.schema import Data, Split
from tinyvlm_cli.errors import FAILED, UserError
from tinyvlm_cli.files import write_jsonl
from tinyvlm_cli.results.folder import Results

if TYPE_CHECKING:
    from tinyvlm_cli.data.records import Finding
    from tinyvlm_cli.evaluate.benchmark import Benchmark

SHOWN = 10  # findings of a kind on the screen; the file has all of them


def run(config: DataCommand) -> int:
    """Look at the data group and the benchmarks that are named. Returns the exit code."""
    if config.data is None and not config.benchmark:
        raise UserError("nothing to check; add data=NAME or benchmark=NAME")
    codes = []
    if config.data is not None:
        codes.append(_check_data(config.data, Results(config.results_dir)))
    if config.benchmark:
        codes.append(_check_benchmarks(config.benchmark))
    return max(codes)


def _check_benchmarks(nodes: dict[str, Any]) -> int:
    """A table of what is there, and a line for each thing that is not."""

    from tinyvlm_cli.evaluate.runner import take_inventory

    benchmarks: list[Benchmark] = [build(node) for node in nodes.values()]
    inventories = [take_inventory(benchmark) for benchmark in benchmarks]
    table = Table("benchmark", "split", Column("questions", justify="right"), Column("images", justify="right"), "")
    for benchmark, found in zip(benchmarks, inventories, strict=True):
        there = f"{found.images - found.absent:,} of {found.images:,}"
        state = "not complete" if found.findings else "complete"
        table.add_row(benchmark.label, benchmark.split, f"{found.questions:,}", there, state)
    console = _console()
    console.print(table)
    for benchmark, found in zip(benchmarks, inventories, strict=True):
        for finding in found.findings:
            console.print(f"{benchmark.label}: {finding}", soft_wrap=True)
        for file in benchmark.wanted():
            console.print(f"{benchmark.label}, for the official judging: {file}", soft_wrap=True)
    return FAILED if any(found.findings for found in inventories) else 0


def _check_data(data: Data, results: Results) -> int:
    """Every split of the data group: findings on the screen, and as files in results/index/skip/."""
    files = {(split.annotations, split.images): name for name, split in reversed(data.splits.items())}
    names = sorted(files.values(), key=list(data.splits).index)  # two splits can be the same files
    absent = {name: list(_absent_files(name, data.splits[name])) for name in names}
    lines = [line for lines in absent.values() for line in lines]
    if lines:
        lines += _absent_folders(data)
    if all(absent.values()):
        raise UserError("\n".join(lines))
    for line in lines:
        _console().print(line, soft_wrap=True)
    bad = sum(_check_split(name, data, results) for name in names if not absent[name])
    return FAILED if bad or lines else 0


def _absent_files(name: str, split: Split) -> Iterator[str]:
    """A sentence for each of the split's files that is not there."""
    for what, there in (("annotations", Path(split.annotations).is_file()), ("images", Path(split.images).is_dir())):
        if not there:
            yield f"data.splits.{name}.{what}: no {getattr(split, what)}; get it from {split.source}"


def _absent_folders(data: Data) -> Iterator[str]:
    """A sentence for each folder of images that no split's image root holds."""
    for folder, source in data.image_sources.items():
        if not any((Path(split.images) / folder).is_dir() for split in data.splits.values()):
            yield f"data.image_sources: no folder {folder}; get its images from {source}"


def _check_split(name: str, data: Data, results: Results) -> int:
    """Look at one split and show what was found. Returns how many records are left out."""
    from tinyvlm_cli.data.check import check_split
    from tinyvlm_cli.data.records import IMAGE_FAULTS, write_skips

    split = data.splits[name]
    checked = check_split(split)
    # The index leaves out broken records by itself. On this list they would only make trained stages look like others.
    skips = ((finding.number, finding.says) for finding in checked.findings if finding.kind in IMAGE_FAULTS)
    path = write_skips(split, results, skips)
    everything = path.with_suffix(".findings.jsonl")
    write_jsonl(everything, (asdict(finding) for finding in checked.findings))
    left_out = {finding.number for finding in checked.findings if finding.leaves_out}
    number = checked.num_records
    published = "" if number == split.count else f" (published: {split.count:,})"
    console = _console()
    console.print(
        f"{name}: {number:,} records{published}, {number - len(left_out):,} usable; {checked.num_images:,} images",
        soft_wrap=True,
    )
    if checked.findings:
        _show(console, name, checked.findings)
        for source, count in _absent_images(data, split, checked.findings).items():
            console.print(f"{name}: images of {count:,} records are missing; get them from {source}", soft_wrap=True)
        console.print(f"{name}: all findings in {everything}; records that training skips in {path}", soft_wrap=True)
    return len(left_out)


def _show(console: Console, name: str, findings: list["Finding"]) -> None:
    """How many there are of each kind, and the first of each."""
    table = Table("finding", Column("records", justify="right"), "training")
    kinds = Counter(finding.kind for finding in findings)
    for kind, count in kinds.most_common():
        table.add_row(kind.value, f"{count:,}", kind.training)
    console.print(table)
    for kind, count in kinds.most_common():
        first = [finding for finding in findings if finding.kind is kind][:SHOWN]
        for finding in first:
            console.print(f"{name}[{finding.number}]: {kind.value}: {finding.says}", soft_wrap=True)
        if count > SHOWN:
            console.print(f"{name}: {kind.value}: {count - SHOWN:,} more", soft_wrap=True)


def _absent_images(data: Data, split: Split, findings: list["Finding"]) -> Counter[str]:
    """Where missing images can be had -> records that need them."""
    from tinyvlm_cli.data.records import Kind

    images = [finding.image for finding in findings if finding.kind is Kind.absent and finding.image is not None]
    folders = {f"{folder}/": f"{source}, into {folder}" for folder, source in data.image_sources.items()}
    return Counter(
        next((source for folder, source in folders.items() if image.startswith(folder)), split.source)
        for image in images
    )


def _console() -> Console:
    return Console(markup=False, highlight=False)
