"""`tinyvlm data prepare`: makes data sets, model folders and indexes on this machine, before training asks for them."""

import logging
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Column, Table

from tinyvlm_cli.config.build import build, conf_dir
from tinyvlm_cli.config.commands import DataCommand
from tinyvlm_cli.config.schema import LLM, Data, Split, Vision
from tinyvlm_cli.errors import FAILED, UserError
from tinyvlm_cli.files import locked, new_folder
from tinyvlm_cli.results.folder import Results

log = logging.getLogger(__name__)


def run(config: DataCommand) -> int:
    """Make what the options say how to make, then JPEGs on request, then the index. Returns the exit code."""
    _refuse(config)
    for key, group in _chosen(config).items():
        if group.prepare:
            make(f"{key}={group.name}", group.prepare)
        elif not isinstance(group, Data) and _is_here(group):
            log.info("%s=%s: is there already, in %s", key, group.name, group.path)
    if config.data is None or not (config.llm or config.convert_gifs):
        return 0
    splits = {name: split for name, split in config.data.splits.items() if Path(split.annotations).is_file()}
    absent = [
        f"data.splits.{name}.annotations: no {split.annotations}; get it from {split.source}"
        for name, split in config.data.splits.items()
        if name not in splits
    ]
    if not splits:
        raise UserError("\n".join(dict.fromkeys(absent)))
    for line in absent:
        log.warning("%s", line)
    if config.convert_gifs:
        _convert(config.data.name, splits)
    if config.llm:
        _build_index(config, config.llm, splits)
    return FAILED if absent else 0


def _chosen(config: DataCommand) -> dict[str, Data | LLM | Vision]:
    groups = {"data": config.data, "llm": config.llm, "vision": config.vision}
    return {key: group for key, group in groups.items() if group is not None}


def _is_here(group: Data | LLM | Vision) -> bool:
    return not isinstance(group, Data) and Path(group.path).is_dir()


def _refuse(config: DataCommand) -> None:
    """Raises UserError with everything that nothing can be done about."""
    findings = []
    if config.convert_gifs and config.data is None:
        findings.append("convert_gifs: of which images? Add data=NAME")
    # What an option without a `prepare` node is good for all the same.
    uses = {"data": config.llm is not None or config.convert_gifs, "llm": config.data is not None}
    other = {"data": "; add llm=NAME for the index of what is there", "llm": "; add data=NAME for that data's index"}
    for key, group in _chosen(config).items():
        if group.prepare and "folder" not in group.prepare:
            findings.append(f"{key}.prepare: says no folder that is to be made; add +{key}.prepare.folder=DIR")
        elif not group.prepare and not uses.get(key) and not _is_here(group):
            how = f"get the files, or set its path{other.get(key, '')}"
            findings.append(f"{key}={group.name}: cannot be made here; {how}")
    if not findings and not _chosen(config):
        words = ", ".join(preparable())
        findings.append(f"nothing to prepare; choose from {words}, or add data=NAME llm=NAME for that data's index")
    for name in config.data.splits if config.data and config.llm else ():
        if name not in config.prompts:
            findings.append(f"prompts.{name}: not set; add +prompts.{name}=plain or +prompts.{name}=chat")
    if findings:
        raise UserError("\n".join(findings))


def preparable() -> list[str]:
    """The options, yours and those that come with tinyvlm, that say how they are made."""
    files = {
        f"{group}={path.stem}": path
        for folder in (conf_dir(), Path("conf"))
        for group in ("data", "llm", "vision")
        for path in sorted((folder / group).glob("*.yaml"))
    }
    return [word for word, path in files.items() if "prepare" in (yaml.safe_load(path.read_text("utf-8")) or {})]


def make(word: str, node: dict[str, Any]) -> None:
    """Make the folder that a `prepare` node describes, whole or not at all; another process may want it too."""
    folder = Path(node["folder"])
    with locked(folder):
        if folder.exists():
            log.info("%s: is there already, in %s", word, folder)
            return
        with new_folder(folder) as draft:
            build({**node, "folder": draft})
    log.info("%s: made in %s", word, folder)


def _convert(name: str, splits: dict[str, Split]) -> None:
    """Images that are JPEGs by their name only become JPEGs."""
    from tinyvlm_cli.data.check import convert_split

    for split_name, split in splits.items():
        done = convert_split(split)
        log.info("%s: %s of %s images made JPEGs", split_name, f"{done.num_converted:,}", f"{done.num_images:,}")
        if done.num_converted:
            log.info("%s: look again with: tinyvlm data check data=%s", split_name, name)
        if done.faults:
            log.warning("%s: %s cannot be read (the first: %s)", split_name, f"{len(done.faults):,}", done.faults[0])


def _build_index(config: DataCommand, llm: LLM, splits: dict[str, Split]) -> None:
    """The index of each split, as training will look for it."""
    from tinyvlm_cli.data.index import open_index
    from tinyvlm_cli.model.llm import load_tokenizer

    tokenizer = load_tokenizer(llm)
    columns = [Column(head, justify="right") for head in ("samples", "left out", "tokens", "mean", "longest")]
    table = Table("split", "prompt", *columns, caption="tokens of the text, images not counted")
    for name, split in splits.items():
        prompt = config.prompts[name]
        index = open_index(
            split, tokenizer=tokenizer, chat=llm.chat, prompt=prompt, results=Results(config.results_dir)
        )
        tokens = index.text_tokens()
        table.add_row(
            name, prompt.value, f"{len(index):,}", f"{index.num_left_out:,}",
            f"{tokens.sum():,}", f"{tokens.mean():,.1f}", f"{tokens.max():,}",
        )  # fmt: skip
    Console(markup=False, highlight=False).print(table)
