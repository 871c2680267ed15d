"""Create training sets, model folders and indexes before training needs them: `tinyvlm data prepare`."""

import logging
from pathlib import Path
from typing import Any

import yaml
from rich.table import Column, Table

from tinyvlm_cli.config.build import build, conf_dir
from tinyvlm_cli.config.commands import DataCommand
from tinyvlm_cli.config.datasets import Data, Exif, Split
from tinyvlm_cli.config.schema import LLM, Prompt, Vision
from tinyvlm_cli.console import Screen
from tinyvlm_cli.data.image_store import open_images, record_files
from tinyvlm_cli.data.records import FaultError
from tinyvlm_cli.errors import FAILED, UserError, raise_findings
from tinyvlm_cli.files import locked, new_folder
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.untrusted import read_yaml

log = logging.getLogger(__name__)


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
    missing = [
        f"{data.setting(name)}.annotations: {split.annotations} is missing; get it from {split.source}"
        for name, split in data.all_splits.items()
        if name not in splits
    ]
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
        build_index(config, config.llm, splits)
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


def build_index(config: DataCommand, llm: LLM, splits: dict[str, Split]) -> None:
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
        prompt = prompt_of(config, name)
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
    show(table)
    data = config.data
    for name, sources in {name: sources_of(data, name) for name in data.mixtures}.items() if data is not None else ():
        if config.prompts.get(name) is None or not all(f"{name}.{key}" in splits for key in sources):
            continue
        samples = open_samples(
            sources, tokenizer=tokenizer, chat=llm.chat, prompt=config.prompts[name], results=results
        )  # fmt: skip
        for part in samples.parts if isinstance(samples, MixedIndex) else ():
            show(f"{name}.{part.name}: {len(part.numbers):,} of {len(part.index):,} samples are selected")


def prompt_of(config: DataCommand, name: str) -> Prompt | None:
    """Return the prompt of a split or of a mixture's source."""
    return config.prompts.get(name.partition(".")[0])


def show(content: str | Table) -> None:
    """Print without wrapping long lines or interpreting brackets as markup."""
    Screen().print(content, soft_wrap=isinstance(content, str))
