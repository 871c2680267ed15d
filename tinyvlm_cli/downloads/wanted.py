"""The files that data sets, benchmarks and models require, according to their YAML files."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tinyvlm_cli.config.commands import DataCommand
from tinyvlm_cli.config.datasets import Data
from tinyvlm_cli.config.download import Download
from tinyvlm_cli.config.schema import LLM, Vision
from tinyvlm_cli.errors import UserError, collected, raise_findings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """A file or folder that a data set, benchmark or model requires."""

    where: str  # the setting that requires it, as in "data=llava15"
    target: Path
    spec: Download
    is_model: bool = False  # models are stored in the hub's cache; `target` only names the record
    folder: Path | None = None  # if training reads the archive `target` in place: the folder that replaces it

    @property
    def address(self) -> str:
        """URL, or name of the repository."""
        return self.spec.url or self.spec.hub or ""

    @property
    def exists(self) -> bool:
        """Return whether the target, or the folder that replaces it, exists."""
        return self.target.exists() or (self.folder is not None and self.folder.is_dir())


def wanted_by(config: DataCommand) -> list[Wanted]:
    """Return the files of all selected groups. Raises a UserError that lists all mistakes in their YAML files."""
    findings: list[str] = []
    wanted: list[Wanted] = []
    root = Path(config.data_dir)
    if config.data is not None:
        findings += _faults(f"data={config.data.name}", config.data.all_downloads, config.data.all_prepare)
        wanted += of_data(config.data, root)
    for name, node in config.benchmark.items():
        with collected(findings):
            downloads = as_downloads(node.get("downloads") or {}, f"benchmark.{name}.downloads")
            findings += _faults(f"benchmark={name}", downloads, None)
            folder = Path(node["data_dir"])
            wanted += [Wanted(f"benchmark={name}", folder / key, spec) for key, spec in downloads.items()]
    for group, part in (("llm", config.llm), ("vision", config.vision)):
        if part is not None:
            wanted += _of_model(group, part, root, findings)
    raise_findings(findings)
    return wanted


def as_downloads(node: dict[str, Any], where: str) -> dict[str, Download]:
    """Return the downloads in a YAML node. Raises UserError for unknown keys and wrong types."""
    found: dict[str, Download] = {}
    for key, value in node.items():
        if value is None:
            continue
        try:
            spec = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Download), value))
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            raise UserError(f"{where}.{key}: {str(error).splitlines()[0]}; correct the YAML file") from None
        assert isinstance(spec, Download)
        found[key] = spec
    return found


def of_data(data: Data, root: Path) -> list[Wanted]:
    """Return the files of a data set. root: data_dir"""
    folders = {
        Path(archive): Path(split.images) / folder
        for split in (*data.splits.values(), *data.all_splits.values())
        for folder, archive in split.archives.items()
        if split.images is not None
    }
    return [
        Wanted(f"data={data.name}", root / key, spec, folder=folders.get(root / key))
        for key, spec in data.all_downloads.items()
        if spec is not None
    ]


def _faults(where: str, downloads: Mapping[str, Download | None], prepare: dict[str, Any] | None) -> list[str]:
    """Return a message for each mistake in the downloads of a data set or benchmark."""
    specs = {key: spec for key, spec in downloads.items() if spec is not None}
    if not specs:
        how = f"create it with `tinyvlm data prepare {where}`" if prepare else "add them to its YAML file"
        return [f"{where}: has no `downloads`; {how}"]
    return [f"{where}: downloads.{key}: {fault}" for key, spec in specs.items() if (fault := _fault(spec))]


def _of_model(group: str, part: LLM | Vision, root: Path, findings: list[str]) -> list[Wanted]:
    """Return the repositories of a model, whose records are in data_dir/models."""
    wanted = []
    second = part.second if isinstance(part, Vision) else None
    for path in (part.path, *([second.path] if second else [])):
        if Path(path).is_dir():
            log.info("%s=%s: already exists at %s", group, part.name, path)
        elif part.prepare is not None:
            findings.append(
                f"{group}={part.name}: not downloaded; create it with `tinyvlm data prepare {group}={part.name}`"
            )
        else:
            spec = Download(name=path, hub=path, page=f"huggingface.co/{path}")
            wanted.append(
                Wanted(f"{group}={part.name}", root / "models" / path.replace("/", "--"), spec, is_model=True)
            )
    return wanted


def _fault(spec: Download) -> str | None:
    """Return a description of the mistake in the settings of a download, or None."""
    stated = [name for name in ("hub", "url", "by_hand") if getattr(spec, name)]
    if len(stated) != 1:
        return f"found {' and '.join(stated) or 'no address'}; set exactly one of hub, url and by_hand"
    if spec.hub and bool(spec.file) == bool(spec.files):
        return "hub requires exactly one of `file` and `files`"
    if not spec.hub and (spec.file or spec.files or spec.revision):
        return "`file`, `files` and `revision` require `hub`"
    if spec.unpack and (spec.files or spec.by_hand):
        return "`unpack` requires a single file"
    if spec.url and not spec.url.startswith(("http://", "https://")):
        return f"url: '{spec.url}' is not a valid address; it must start with https:// or http://"
    return None
