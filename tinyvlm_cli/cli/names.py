"""Name the members of a configuration after their files and their differences from the packaged members.

Runs are reported under these names, so only the paper's own components may carry the paper's names. `llm=phi2` is named
phi2 and displayed as Phi; `llm=phi2 llm.path=mydir` is named phi2+path=mydir and displayed as Phi+path=mydir.
"""

import hashlib
import posixpath
import re
from collections.abc import Collection, Iterator
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from tinyvlm_cli.config.build import conf_dir, sweeps_dir
from tinyvlm_cli.errors import raise_findings
from tinyvlm_cli.untrusted import read_yaml

GROUPS = ("llm", "vision", "connector", "data", "recipe")
LABELLED = ("llm", "vision")  # groups whose members have a short label for run names
UNNAMED = ("???", *(f"${{hydra:runtime.choices.{group}}}" for group in GROUPS))  # values if no file sets `name`
# Settings that affect neither weights nor answers. Annotation files are compared by file name only, because their
# folders differ between machines.
NOT_COMPARED = re.compile(
    r"(\w+\.)*architecture\b.*|prepare\b.*|name|label|partial_from_layer|paper_data"
    r"|downloads\b.*|(splits\.[^.]+|mixtures\.[^.]+\.sources\.[^.]+\.split)\.(images|count|source|archives\b.*)"
    r"|members\b.*"  # those that are used are in the mixtures
)
MIXTURES = "mixtures."
MAX_SHOWN = 2  # settings listed in a name
MAX_CHARACTERS = 24  # of a value in a name


def name_members(composed: DictConfig, hydra: Any) -> None:
    """Set the `name` of each selected member, and its `label` if it has none, to its file name.

    hydra: the `hydra` node of the same composition, which contains the choices, the overrides and the search path.
    Raises UserError if a setting gives a member another name, or the label of another packaged member.
    """
    findings = []
    typed = overridden(hydra)
    for group in GROUPS:
        choice = hydra.runtime.choices.get(group)
        if choice is None or not isinstance(composed.get(group), DictConfig):
            continue
        choice = posixpath.normpath(choice.removesuffix(".yaml"))
        name = choice.replace("/", "-")
        paths = [Path(source.path) / group / f"{choice}.yaml" for source in hydra.runtime.config_sources]
        file = next(path for path in paths if path.is_file())  # the first match on Hydra's search path
        stated: Any = OmegaConf.to_container(composed[group], resolve=False)
        if stated.get("name", UNNAMED[0]) not in (*UNNAMED, name):
            findings.append(
                f"{group}.name: found '{stated['name']}', but the name must match the file {file}; remove `name`, also "
                "from inherited files, or rename the file"
            )
        OmegaConf.update(composed, f"{group}.name", name, force_add=True)
        if group in LABELLED:
            is_own = f"{group}.label" in typed or "label" in (read_yaml(file, "correct it") or {})
            label = str(stated["label"]) if is_own else name
            OmegaConf.update(composed, f"{group}.label", label)
            if (owner := packaged_labels(group).get(label, name)) != name:
                findings.append(
                    f"{group}.label: '{label}' is already the label of {group}={owner}; choose another label"
                )
    raise_findings(findings)


def overridden(hydra: Any) -> set[str]:
    """Return the settings on the command line and of the grid cell. hydra: see `name_members`."""
    return {override.partition("=")[0].lstrip("+") for override in task_overrides(hydra)}


def task_overrides(hydra: Any) -> list[str]:
    """Return the overrides on the command line and of the grid cell as they were typed: `${...}` is not resolved."""
    overrides: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    return list(overrides)


@cache
def packaged_labels(group: str) -> dict[str, str]:
    """Return a mapping from label to name of the group's packaged members."""
    files = sorted((conf_dir() / group).glob("*.yaml"))
    return {yaml.safe_load(file.read_text(encoding="utf-8"))["label"]: file.stem for file in files}


def packaged_overrides(config: DictConfig, hydra: Any) -> list[str]:
    """Return overrides that select the packaged members of the same names, and the same data and results folders.

    Returns an empty list if `config` contains only unchanged packaged members, as in most grids.
    """
    shipped = {str(conf_dir()), str(sweeps_dir()), "hydra.conf", ""}
    changed = re.compile(rf"[+~]*({'|'.join(GROUPS)})[./@]")
    is_shipped = all(source.path in shipped for source in hydra.runtime.config_sources)
    if not config.keys() & set(GROUPS) or (is_shipped and not any(map(changed.match, task_overrides(hydra)))):
        return []
    overrides = []
    for group in GROUPS:
        name = (config.get(group) or {}).get("name", "")
        if (conf_dir() / group / f"{name}.yaml").is_file():
            overrides += [f"{group}={name}", f"{group}.name={name}"]
        elif name and group == "vision":  # required by some recipes
            overrides.append(f"vision.partial_from_layer={config['vision']['partial_from_layer']}")
    folders = {key: str(config[key]) for key in ("data_dir", "results_dir") if key in config}
    return overrides + [f"{key}={QuotedString(value, Quote.double).with_quotes()}" for key, value in folders.items()]


def show_differences(config: dict[str, Any], packaged: dict[str, Any], overridden: Collection[str]) -> None:
    """Append the settings that differ from `packaged` to the names and labels in `config`, as "+setting=value".

    overridden: settings on the command line. Those of a user's own mixture are appended too, so that the runs of a
    sweep over its weights have different names.
    """
    for group in GROUPS:
        member = config.get(group)
        if not member:
            continue
        found = dict(_settings(member))
        if (conf_dir() / group / f"{member['name']}.yaml").is_file():
            wanted = dict(_settings(packaged[group]))
            paths = [path for path in {**found, **wanted} if found.get(path) != wanted.get(path)]
        else:
            paths = [path for path in found if path.startswith(MIXTURES) and f"{group}.{path}" in overridden]
        suffix = ""
        if len(paths) > MAX_SHOWN:
            suffix = f"+{len(paths)}-settings.{_hash(repr([(path, found.get(path)) for path in paths]))}"
            paths = []
        for path in paths:
            value = found.get(path)
            text = f"{value:g}" if isinstance(value, float) else str(value)
            # The last component of a path or class, with a hash if anything was dropped.
            last = text.rstrip("/").rpartition("." if path == "_target_" else "/")[2]
            safe = re.sub(r"[^\w.-]+", "_", last).strip("_")[:MAX_CHARACTERS]
            short = re.sub(r"^mixtures\.([^.]+)\.sources\.", r"\1.", path)
            key = re.sub(r"^(stages|splits)\.|\.annotations$|^_|_$", "", short)
            suffix += f"+{key}={safe}" if safe == text else f"+{key}={safe}.{_hash(text)}"
        for key in ("name", "label") if group in LABELLED else ("name",):
            member[key] += suffix


def _settings(node: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) for each setting of a member except those in NOT_COMPARED."""
    for key, value in node.items():
        path = f"{prefix}{key}"
        if NOT_COMPARED.fullmatch(path):
            continue
        if isinstance(value, dict):
            yield from _settings(value, f"{path}.")
        elif path.endswith(".annotations"):
            yield path, Path(value).name
        else:
            yield path, value.value if isinstance(value, Enum) else value


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:4]
