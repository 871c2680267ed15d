"""Name the members of a configuration: by their files, and by what differs from the packaged member of that name.

Runs are reported under these names, so only the paper's own components may carry the paper's names. `llm=phi2` is named
phi2 and shown as Phi; `llm=phi2 llm.path=mydir` is named phi2+path=mydir and shown as Phi+path=mydir.
"""

import hashlib
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass, replace
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from tinyvlm_cli.config.build import conf_dir, sweeps_dir
from tinyvlm_cli.config.schema import LLM, Data, Recipe, Vision
from tinyvlm_cli.errors import UserError

# Group -> the class of its members.
GROUPS: dict[str, type] = {"llm": LLM, "vision": Vision, "connector": dict, "data": Data, "recipe": Recipe}
LABELLED = ("llm", "vision")  # groups whose members have a short name for run names
# Settings that determine neither the weights nor the answers. Of a training set, the names of the annotation files
# count: each machine has its own folders.
NOT_COMPARED = re.compile(
    r"(\w+\.)*architecture\b.*|prepare\b.*|name|label|partial_from_layer|paper_data"
    r"|image_sources\b.*|splits\.[^.]+\.(images|count|source)"
)
UNNAMED = ("???", *(f"${{hydra:runtime.choices.{group}}}" for group in GROUPS))  # no file states a name
MAX_SHOWN = 2  # differing settings in a name
MAX_CHARACTERS = 24  # of a value in a name


def name_members(composed: DictConfig, hydra: Any) -> None:
    """Set each chosen member's `name`, and the `label` of one that states none, from the name of its file.

    hydra: the node of that name in the same composition: it holds the choices, the overrides and the search path.
    Raises UserError when the settings state another name, or the label of another packaged member.
    """
    findings = []
    overridden = {word.partition("=")[0].lstrip("+") for word in hydra.overrides.task}
    for group in GROUPS:
        if not isinstance(member := composed.get(group), DictConfig):
            continue
        choice = hydra.runtime.choices.get(group)
        if choice is None:  # the primary configuration states the member itself
            continue
        choice = posixpath.normpath(choice.removesuffix(".yaml"))
        name = choice.replace("/", "-")
        paths = [Path(source.path) / group / f"{choice}.yaml" for source in hydra.runtime.config_sources]
        file = next(path for path in paths if path.is_file())  # the first one on Hydra's search path
        stated = OmegaConf.to_container(member, resolve=False, throw_on_missing=False)
        assert isinstance(stated, dict)
        if stated.get("name", UNNAMED[0]) not in (*UNNAMED, name):
            findings.append(
                f"{group}.name: found '{stated['name']}', but a member has the name of its file, {file}; remove the "
                "setting `name`, also from a file that it inherits from, or rename the file"
            )
        OmegaConf.update(composed, f"{group}.name", name, force_add=True)
        if group not in LABELLED:
            continue
        is_own = f"{group}.label" in overridden or "label" in (yaml.safe_load(file.read_text(encoding="utf-8")) or {})
        label = str(stated["label"]) if is_own else name
        OmegaConf.update(composed, f"{group}.label", label)
        for path in sorted((conf_dir() / group).glob("*.yaml")):
            if path.stem != name and packaged(group, path.stem)[group].label == label:
                findings.append(
                    f"{group}.label: '{label}' is the label of {group}={path.stem}, under which the report would show "
                    f"this {group}; give {group}={name} another label"
                )
    if findings:
        raise UserError("\n".join(findings))


def with_differences(config: Any, hydra: Any) -> Any:
    """Return `config` with names that show how its members differ from the packaged members of those names."""
    shipped = {str(conf_dir()), str(sweeps_dir()), "hydra.conf", ""}
    keys = [word.partition("=")[0].lstrip("+~") for word in hydra.overrides.task]
    if all(source.path in shipped for source in hydra.runtime.config_sources) and not any(
        re.match(rf"({'|'.join(GROUPS)})[./@]", key) for key in keys
    ):
        return config  # nothing but shipped files and choices among them, as in most grids
    named = {group: member for group in GROUPS if (member := getattr(config, group, None)) is not None}
    compared = {group for group, member in named.items() if (conf_dir() / group / f"{_name(member)}.yaml").is_file()}
    # Packaged members refer to each other (${vision.partial_from_layer}) and to the folders of the command.
    folders = {key: getattr(config, key) for key in ("data_dir", "results_dir") if hasattr(config, key)}
    own = {group: OmegaConf.structured(member) if is_dataclass(member) else member for group, member in named.items()}
    published = OmegaConf.create({**folders, **{group: node for group, node in own.items() if group not in compared}})
    for group in GROUPS:  # in the order of training.yaml: a recipe may change the settings of the other groups
        if group in compared:
            published.merge_with(packaged(group, _name(named[group])))
    resolved = OmegaConf.to_container(published, resolve=True)
    assert isinstance(resolved, dict)
    changes: dict[str, Any] = {}
    for group in compared:
        member, schema = named[group], GROUPS[group]
        expected: Any = {**resolved[group], "name": ""}
        if is_dataclass(schema):
            expected = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), expected))
        suffix = _suffix(dict(_settings(member)), dict(_settings(expected)))
        if suffix and isinstance(member, dict):
            changes[group] = {**member, "name": member["name"] + suffix}
        elif suffix:
            label = {"label": member.label + suffix} if group in LABELLED else {}
            changes[group] = replace(member, name=member.name + suffix, **label)
    return replace(config, **changes)


@cache
def packaged(group: str, name: str) -> DictConfig:
    """Return the settings of a member that comes with tinyvlm as {group: settings}, whatever the user's ./conf holds.

    This is Hydra's composition for what the shipped files use of it: a test compares the two for each member. Hydra's
    own takes 0.1 s, which a grid of a hundred points would pay a hundred times.
    """
    text = (conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8")
    node = OmegaConf.create(text)
    assert isinstance(node, DictConfig)
    composed = OmegaConf.create()
    is_global = text.startswith("# @package _global_")
    for entry in node.pop("defaults", ["_self_"]):
        if entry == "_self_":
            composed.merge_with(node if is_global else {group: node})
        elif isinstance(entry, str):
            composed.merge_with(packaged(group, entry.partition("@")[0]))
        else:
            ((key, choice),) = entry.items()
            if not key.startswith("override "):
                composed.merge_with({group: {key: packaged(f"{group}/{key}", choice)[f"{group}/{key}"]}})
    return composed


def _name(member: Any) -> str:
    return str(member["name"] if isinstance(member, Mapping) else member.name)


def _settings(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of the settings of a member that are compared."""
    for key, value in (asdict(node) if is_dataclass(node) and not isinstance(node, type) else node).items():
        path = f"{prefix}{key}"
        if NOT_COMPARED.fullmatch(path):
            continue
        if isinstance(value, Mapping):
            yield from _settings(value, f"{path}.")
        elif isinstance(value, Enum):
            yield path, value.value
        else:
            yield path, Path(value).name if path.endswith(".annotations") else value


def _suffix(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Return "+setting=value" for each difference, safe in file names; "" when there is none."""
    paths = [path for path in {**found, **expected} if found.get(path) != expected.get(path)]
    if len(paths) > MAX_SHOWN:
        values = repr([(path, found.get(path)) for path in paths])
        return f"+{len(paths)}-settings.{hashlib.sha256(values.encode()).hexdigest()[:4]}"
    suffix = ""
    for path in paths:
        value = found.get(path)
        text = f"{value:g}" if isinstance(value, float) else str(value)
        # The last part of a path or class, with a hash where that leaves something out.
        last = text.rstrip("/").rpartition("." if path == "_target_" else "/")[2]
        safe = re.sub(r"[^\w.-]+", "_", last).strip("_")[:MAX_CHARACTERS]
        shown = safe if safe == text else f"{safe}.{hashlib.sha256(text.encode()).hexdigest()[:4]}"
        suffix += f"+{re.sub(r'^(stages|splits)[.]|[.]annotations$|^_|_$', '', path)}={shown}"
    return suffix
