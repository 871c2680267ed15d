"""Fetch training sets, benchmarks and models, check that they are complete and readable, or prepare them for training.

`tinyvlm data get` downloads files. `tinyvlm data check` reports missing and invalid files and where to get them.
`tinyvlm data prepare` creates training sets, model folders and indexes before training needs them.
"""

import logging
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from tinyvlm_cli.cli.commands.data_prepare import build_index, prepare, prompt_of, show
from tinyvlm_cli.config.build import build, conf_dir
from tinyvlm_cli.config.commands import DataCommand
from tinyvlm_cli.config.datasets import Data, Exif
from tinyvlm_cli.config.schema import LLM
from tinyvlm_cli.data.image_store import missing_files, open_images
from tinyvlm_cli.data.records import IMAGE_FAULTS, Kind
from tinyvlm_cli.data.skips import findings_path, write_skips
from tinyvlm_cli.downloads.wanted import of_data, wanted_by
from tinyvlm_cli.errors import FAILED, UserError
from tinyvlm_cli.files import write_jsonl
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.untrusted import read_yaml

log = logging.getLogger(__name__)

SHOWN = 10  # findings to print per kind; the file lists all of them


def run(config: DataCommand) -> int:
    """Fetch, check or prepare the selected groups and return the exit code."""
    unused: dict[str, dict[str, object]] = {
        "get": {"convert_gifs": config.convert_gifs is True},
        "check": {
            "llm": config.llm if config.data is None else None,
            "vision": config.vision, "convert_gifs": config.convert_gifs is True,
        },
        "prepare": {"benchmark": config.benchmark},
    }  # fmt: skip
    if config.action not in unused:
        raise UserError(f"action={config.action}: unknown action; choose {', '.join(unused)}")
    for setting in (name for name, value in unused[config.action].items() if value):
        log.warning("%s: has no effect in `tinyvlm data %s`", setting, config.action)
    if config.action == "get":
        from tinyvlm_cli.downloads.get import get

        if not (config.data or config.benchmark or config.llm or config.vision):
            raise UserError("nothing to get; add data=NAME, benchmark=NAME, llm=NAME or vision=NAME")
        return get(wanted_by(config), Path(config.data_dir))
    if config.action == "prepare":
        return prepare(config)
    if config.data is None and not config.benchmark:
        raise UserError("nothing to check; add data=NAME or benchmark=NAME")
    codes = []
    if config.data is not None:
        codes.append(_check_data(config, config.data))
    if config.benchmark:
        codes.append(_check_benchmarks(config.benchmark))
    return max(codes)


def _check_data(config: DataCommand, data: Data) -> int:
    """Check each split whose files exist and report the missing files. Returns the exit code."""
    special = _special_tokens(config.llm)
    names: dict[tuple[str, str | None], str] = {}  # two splits can share files
    missing: dict[str, list[str]] = {}
    for name, split in data.all_splits.items():
        if names.setdefault((split.annotations, split.images), name) != name:
            continue
        missing[name] = [
            f"{data.setting(name)}.{setting}: {text}; get it from {split.source}"
            for setting, text in missing_files(split).items()
        ]
    lines = [line for found in missing.values() for line in found]
    if lines:
        absent = [one for one in of_data(data, Path(config.data_dir)) if not one.exists]
        lines += [f"data.downloads: {one.target} is missing; get {one.spec.describe()}" for one in absent]
        if fetched := sum(not one.spec.by_hand for one in absent):
            lines.append(f"`tinyvlm data get data={data.name}` fetches {fetched} of these {len(absent)}")
    if all(missing.values()):
        raise UserError("\n".join(lines))
    for line in lines:
        show(line)
    complete = [name for name, found in missing.items() if not found]
    left_out = sum(_check_split(name, config, data, special) for name in complete)
    if config.llm:
        build_index(config, config.llm, {name: data.all_splits[name] for name in complete if prompt_of(config, name)})
    return FAILED if left_out or lines else 0


def _special_tokens(llm: LLM | None) -> set[str]:
    """Return the special tokens of an LLM's tokenizer; without an LLM, the end tokens of all members of the group."""
    if llm is not None:
        from tinyvlm_cli.model.llm import load_tokenizer

        return {llm.chat.end, *load_tokenizer(llm).all_special_tokens}
    folders = (conf_dir() / "llm", Path("conf/llm"))
    nodes = (read_yaml(path, "correct it") for folder in folders for path in sorted(folder.glob("*.yaml")))
    chats = (node.get("chat") for node in nodes if isinstance(node, dict))
    ends = (chat.get("end") for chat in chats if isinstance(chat, dict))
    return {end for end in ends if isinstance(end, str) and end.strip()}


def _check_split(name: str, config: DataCommand, data: Data, special: set[str]) -> int:
    """Check one split, print its findings and write them to files. Returns the number of unusable records."""
    from tinyvlm_cli.data.check import check_split

    split, results = data.all_splits[name], Results(config.results_dir)
    checked = check_split(split, open_images(split, results), special=special, upright=data.exif is Exif.upright)
    # Invalid records are not in the skip list: the index skips them anyway, and adding them would change stage hashes.
    skips = ((found.number, found.says, found.image) for found in checked.findings if found.kind in IMAGE_FAULTS)
    path = write_skips(split, results, skips)
    everything = findings_path(split, results)
    write_jsonl(everything, (asdict(finding) for finding in checked.findings))
    left_out = {finding.number for finding in checked.findings if finding.leaves_out}
    number = checked.num_records
    published = "" if number == split.count else f" (published: {split.count:,})"
    show(f"{name}: {number:,} records{published}, {number - len(left_out):,} usable; {checked.num_images:,} images")
    if not checked.findings:
        return 0
    table = Table("finding", Column("records", justify="right"), "in training")
    kinds = Counter(finding.kind for finding in checked.findings).most_common()
    for kind, count in kinds:
        table.add_row(kind.value, f"{count:,}", kind.training)
    show(table)
    for kind, count in kinds:
        for finding in [finding for finding in checked.findings if finding.kind is kind][:SHOWN]:
            show(f"{name}[{finding.number}]: {kind.value}: {finding.says}")
        if count > SHOWN:
            show(f"{name}: {kind.value}: {count - SHOWN:,} more")
    missing = [finding.image for finding in checked.findings if finding.kind is Kind.absent and finding.image]
    known = {
        f"{one.folder or one.target}/": f"{one.spec.describe()}, into {one.target}"
        + ("" if one.spec.by_hand else f", with `tinyvlm data get data={data.name}`")
        for one in of_data(data, Path(config.data_dir))
    }
    root = Path(split.images or "")
    sources = Counter(
        next((text for prefix, text in known.items() if f"{root}/{image}".startswith(prefix)), split.source)
        for image in missing
    )
    for source, count in sources.items():
        show(f"{name}: images of {count:,} records are missing; get them from {source}")
    show(f"{name}: all findings are listed in {everything}, and the records that training skips in {path}")
    return len(left_out)


def _check_benchmarks(nodes: dict[str, Any]) -> int:
    """Print a table of the benchmarks' files and a line for each missing file. Returns the exit code."""
    from tinyvlm_cli.evaluate.benchmark import Benchmark
    from tinyvlm_cli.evaluate.inventory import take_inventory

    right = [Column(header, justify="right") for header in ("questions", "images")]
    table = Table("benchmark", "split", *right, "status")
    lines, is_complete = [], True
    for node in nodes.values():
        benchmark = build(node, Benchmark)
        found = take_inventory(benchmark, decoded=None)
        images = f"{found.images - found.absent:,} of {found.images:,}"
        status = "incomplete" if found.findings else "complete"
        table.add_row(benchmark.label, benchmark.split, f"{found.questions:,}", images, status)
        lines += [f"{benchmark.label}: {finding}" for finding in found.findings]
        lines += [f"{benchmark.label}, for official judging: {file}" for file in benchmark.wanted()]
        is_complete &= not found.findings
    if not is_complete and any(node.get("downloads") for node in nodes.values()):
        lines.append("`tinyvlm data get` with the same benchmarks downloads what is missing")
    show(table)
    for line in lines:
        show(line)
    return 0 if is_complete else FAILED
