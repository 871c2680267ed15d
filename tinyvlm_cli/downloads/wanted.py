"""The files that a data set, a benchmark or a model consists of, as its YAML file states them."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tinyvlm_cli.config.commands import DataCommand
from tinyvlm_cli.config.download import Download
from tinyvlm_cli.config.schema import LLM, Data, Vision
from tinyvlm_cli.errors import UserError, collected, raise_findings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """A file or folder that a data set, benchmark or model consists of."""

    where: str  # the setting that requires it, as in "data=llava15"
    target: Path
    spec: Download
    is_model: bool = False  # a model goes to the hub's cache, and `target` only names its record
    folder: Path | None = None  # for an archive that is read in place: the folder that would be used instead

    @property
    def address(self) -> str:
        """The URL, or the name of the repository."""
        return self.spec.url or self.spec.hub or ""

    @property
    def exists(self) -> bool:
        """Return whether the file or folder exists, or the folder that is used instead."""
        return self.target.exists() or (self.folder is not None and self.folder.is_dir())


def wanted_by(config: DataCommand) -> list[Wanted]:
    """Return all files of the selected groups. Raises a UserError that lists all mistakes in their YAML files."""
    findings: list[str] = []
    wanted: list[Wanted] = []
    root = Path(config.data_dir)
    if config.data is not None:
        findings += _faults(f"data={config.data.name}", config.data.downloads, config.data.prepare)
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
    """Return the downloads that a YAML node states. Raises UserError for unknown keys and wrong types."""
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
        for split in data.splits.values()
        for folder, archive in split.archives.items()
        if split.images is not None
    }
    return [
        Wanted(f"data={data.name}", root / key, spec, folder=folders.get(root / key))
        for key, spec in data.downloads.items()
        if spec is not None
    ]


def _faults(where: str, downloads: Mapping[str, Download | None], prepare: dict[str, Any] | None) -> list[str]:
    """Return a message for each mistake in the downloads of a data set or benchmark."""
    specs = {key: spec for key, spec in downloads.items() if spec is not None}
    if not specs:
        how = f"run `tinyvlm data prepare {where}`, which creates it" if prepare else "add `downloads` to its YAML file"
        return [f"{where}: no addresses are known; {how}"]
    return [f"{where}: downloads.{key}: {fault}" for key, spec in specs.items() if (fault := _fault(spec))]


def _of_model(group: str, part: LLM | Vision, root: Path, findings: list[str]) -> list[Wanted]:
    """Return the repositories of a model. Their records are in the folder `models` of data_dir."""
    wanted = []
    second = part.second if isinstance(part, Vision) else None
    for path in (part.path, *([second.path] if second else [])):
        if Path(path).is_dir():
            log.info("%s=%s: already exists at %s", group, part.name, path)
        elif part.prepare is not None:
            findings.append(f"{group}={part.name}: run `tinyvlm data prepare {group}={part.name}`, which creates it")
        else:
            spec = Download(name=path, hub=path, page=f"huggingface.co/{path}")
            wanted.append(
                Wanted(f"{group}={part.name}", root / "models" / path.replace("/", "--"), spec, is_model=True)
            )
    return wanted


def _fault(spec: Download) -> str | None:
    """Return what is wrong with the settings of a download, or None."""
    stated = [name for name in ("hub", "url", "by_hand") if getattr(spec, name)]
    if len(stated) != 1:
        return f"found {' and '.join(stated) or 'no address'}; state one of hub, url and by_hand"
    if spec.hub and bool(spec.file) == bool(spec.files):
        return "state either `file` or `files` of the hub repository"
    if not spec.hub and (spec.file or spec.files or spec.revision):
        return "`file`, `files` and `revision` are settings of a hub repository"
    if spec.unpack and (spec.files or spec.by_hand):
        return "`unpack` requires a single file"
    if spec.url and not spec.url.startswith(("http://", "https://")):
        return f"url: '{spec.url}' is not an address; start it with https:// or http://"
    return None
