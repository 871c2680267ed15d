"""Fetch training sets, benchmarks and models, check that they are complete and readable, or prepare them for training.

`tinyvlm data get` downloads files. `tinyvlm data check` reports missing and invalid files and where to get them.
`tinyvlm data prepare` creates training sets, model folders and indexes before training needs them.
"""

import logging
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich.table import Column, Table

from tinyvlm_cli.config.build import build, conf_dir
from tinyvlm_cli.config.commands import DataCommand
from tinyvlm_cli.config.schema import LLM, Data, Exif, Prompt, Split, Vision
from tinyvlm_cli.console import Screen
from tinyvlm_cli.data.image_store import missing_files, open_images, record_files
from tinyvlm_cli.data.records import IMAGE_FAULTS, FaultError, Kind
from tinyvlm_cli.data.skips import findings_path, write_skips
from tinyvlm_cli.downloads.wanted import of_data, wanted_by
from tinyvlm_cli.errors import FAILED, UserError, raise_findings
from tinyvlm_cli.files import locked, new_folder, write_jsonl
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
        _print(line)
    complete = [name for name, found in missing.items() if not found]
    left_out = sum(_check_split(name, config, data, special) for name in complete)
    if config.llm:
        _build_index(config, config.llm, {name: data.all_splits[name] for name in complete if _prompt(config, name)})
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
    _print(f"{name}: {number:,} records{published}, {number - len(left_out):,} usable; {checked.num_images:,} images")
    if not checked.findings:
        return 0
    table = Table("finding", Column("records", justify="right"), "in training")
    kinds = Counter(finding.kind for finding in checked.findings).most_common()
    for kind, count in kinds:
        table.add_row(kind.value, f"{count:,}", kind.training)
    _print(table)
    for kind, count in kinds:
        for finding in [finding for finding in checked.findings if finding.kind is kind][:SHOWN]:
            _print(f"{name}[{finding.number}]: {kind.value}: {finding.says}")
        if count > SHOWN:
            _print(f"{name}: {kind.value}: {count - SHOWN:,} more")
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
        _print(f"{name}: images of {count:,} records are missing; get them from {source}")
    _print(f"{name}: all findings are listed in {everything}, and the records that training skips in {path}")
    return len(left_out)


def _check_benchmarks(nodes: dict[str, Any]) -> int:
    """Print a table of the benchmarks' files and a line for each missing file. Returns the exit code."""
    from tinyvlm_cli.evaluate.benchmark import Benchmark
    from tinyvlm_cli.evaluate.runner import take_inventory

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
    _print(table)
    for line in lines:
        _print(line)
    return 0 if is_complete else FAILED


def prepare(config: DataCommand) -> int:
    """Create folders from `prepare` nodes, convert images on request and build indexes. Returns the exit code."""
    chosen: dict[str, Data | LLM | Vision | None] = {"data": config.data, "llm": config.llm, "vision": config.vision}
    groups = {key: group for key, group in chosen.items() if group is not None}
    raise_findings(_mistakes(config, groups))
    for key, group in groups.items():
        if isinstance(group, Data):
            for name, node in group.all_prepare.items():
                make(f"data={name}", node)
        elif group.prepare:
            make(f"{key}={group.name}", group.prepare)
        elif Path(group.path).is_dir():
            log.info("%s=%s: already exists at %s", key, group.name, group.path)
    data = config.data
    if data is None or not (config.llm or config.convert_gifs):
        return 0
    splits = {name: split for name, split in data.all_splits.items() if record_files(split)}
    missing = [_missing_annotations(data, name) for name in data.all_splits if name not in splits]
    if not splits:
        raise UserError("\n".join(missing))
    for line in missing:
        log.warning("%s", line)
    if config.convert_gifs:
        from tinyvlm_cli.data.check import convert_split

        for name, split in splits.items():
            done = convert_split(split, open_images(split, Results(config.results_dir)))
            faults = [outcome for outcome in done if isinstance(outcome, FaultError)]
            again = f"; check them again with: tinyvlm data check data={data.name}" if True in done else ""
            log.info("%s: converted %s of %s images to JPEG%s", name, f"{done.count(True):,}", f"{len(done):,}", again)
            if faults:
                log.warning("%s: %s images cannot be read (first: %s)", name, f"{len(faults):,}", faults[0])
    if config.llm:
        _build_index(config, config.llm, splits)
    return FAILED if missing else 0


def _mistakes(config: DataCommand, groups: dict[str, Data | LLM | Vision]) -> list[str]:
    """Return a message for each setting that prevents preparation."""
    findings = []
    if config.convert_gifs and config.data is None:
        findings.append("convert_gifs: requires a training set; add data=NAME")
    elif not groups:
        files = {
            f"{group}={path.stem}": path
            for folder in (conf_dir(), Path("conf"))
            for group in ("data", "llm", "vision")
            for path in sorted((folder / group).glob("*.yaml"))
        }
        nodes = {choice: read_yaml(path, "correct it") for choice, path in files.items()}
        options = ", ".join(choice for choice, node in nodes.items() if isinstance(node, dict) and "prepare" in node)
        findings.append(f"nothing to prepare; choose from {options}, or add data=NAME llm=NAME to build an index")
    # For groups without a `prepare` node: whether the other settings use the group, and which setting would do so.
    uses = {"data": config.llm is not None or config.convert_gifs, "llm": config.data is not None}
    hints = {"data": "; to index existing files, add llm=NAME", "llm": "; to build an index, add data=NAME"}
    for key, group in groups.items():
        exists = not isinstance(group, Data) and Path(group.path).is_dir()
        if group.prepare and "folder" not in group.prepare:
            findings.append(f"{key}.prepare.folder: not set; add +{key}.prepare.folder=DIR, the folder to create")
        elif not (group.all_prepare if isinstance(group, Data) else group.prepare) and not uses.get(key) and not exists:
            how = f"download the files or set their path{hints.get(key, '')}"
            findings.append(f"{key}={group.name}: cannot be created by tinyvlm; {how}")
    if config.data is not None and config.llm is not None:
        shipped = yaml.safe_load((conf_dir() / "data.yaml").read_text("utf-8"))["prompts"]
        names = dict.fromkeys([*config.data.splits, *config.data.mixtures])
        splits = ", ".join(names)
        for name in names:
            if name not in config.prompts:
                findings.append(f"prompts.{name}: not set; add +prompts.{name}=plain or +prompts.{name}=chat")
        for name in config.prompts:
            if name not in names and name not in shipped:
                findings.append(f"prompts.{name}: not a split of data={config.data.name}; choose from {splits}")
    return findings


def make(choice: str, node: dict[str, Any]) -> None:
    """Create the folder of a `prepare` node atomically and under a lock, unless the folder exists."""
    folder = Path(node["folder"])
    with locked(folder):
        if folder.exists():
            log.info("%s: already exists at %s", choice, folder)
            return
        with new_folder(folder) as draft:
            build({**node, "folder": draft}, None)
    log.info("%s: written to %s", choice, folder)


def _build_index(config: DataCommand, llm: LLM, splits: dict[str, Split]) -> None:
    """Build the index that training will open for each split, and print the sizes of the splits.

    The text of a sample may already exceed the maximum length, in which case training cuts its last answers.
    """
    from tinyvlm_cli.data.check import log_irregular_images
    from tinyvlm_cli.data.index import open_index
    from tinyvlm_cli.data.mixture import MixedIndex, open_samples, sources_of
    from tinyvlm_cli.model.llm import load_tokenizer

    tokenizer = load_tokenizer(llm)
    right = [Column(header, justify="right") for header in ("samples", "skipped", "tokens", "mean", "longest")]
    table = Table("split", "prompt", *right, caption="text tokens only, without image tokens")
    results = Results(config.results_dir)
    for name, split in splits.items():
        prompt = _prompt(config, name)
        assert prompt is not None
        index = open_index(split, tokenizer=tokenizer, chat=llm.chat, prompt=prompt, results=results)
        if config.action == "check":  # and it has printed its findings already
            index.verify()
        elif config.data is not None:
            log_irregular_images(index.irregular_images, split, results, upright=config.data.exif is Exif.upright)
        tokens = index.text_tokens()
        if cut := int((tokens > llm.max_length).sum()):
            log.warning(
                "%s: the text of %s samples exceeds llm.max_length=%d tokens, without image tokens; training cuts "
                "their last answers", name, f"{cut:,}", llm.max_length,
            )  # fmt: skip
        table.add_row(
            name, prompt.value, f"{len(index):,}", f"{index.num_left_out:,}",
            f"{tokens.sum():,}", f"{tokens.mean():,.1f}", f"{tokens.max():,}",
        )  # fmt: skip
    _print(table)
    data = config.data
    for name, sources in {name: sources_of(data, name) for name in data.mixtures}.items() if data is not None else ():
        if config.prompts.get(name) is None or not all(f"{name}.{key}" in splits for key in sources):
            continue
        samples = open_samples(
            sources, tokenizer=tokenizer, chat=llm.chat, prompt=config.prompts[name], results=results
        )  # fmt: skip
        for part in samples.parts if isinstance(samples, MixedIndex) else ():
            _print(f"{name}.{part.name}: {len(part.numbers):,} of {len(part.index):,} samples are selected")


def _prompt(config: DataCommand, name: str) -> Prompt | None:
    """Return the prompt of a split or of a mixture's source."""
    return config.prompts.get(name.partition(".")[0])


def _missing_annotations(data: Data, name: str) -> str:
    split = data.all_splits[name]
    return f"{data.setting(name)}.annotations: {split.annotations} is missing; get it from {split.source}"


def _print(content: str | Table) -> None:
    """Print without wrapping long lines or interpreting brackets as markup."""
    Screen().print(content, soft_wrap=isinstance(content, str))
