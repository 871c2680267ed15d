"""The configuration sources that Hydra searches, and how it applies overrides. Each file is parsed only once.

Hydra modifies what it reads, so each composition gets a copy. Unpickling is the fastest way to copy a configuration.
"""

import copy
import pickle
import re
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from hydra._internal.config_repository import ConfigRepository
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf._utils import get_yaml_loader, split_key

from tinyvlm_cli.cli.explain import SEVERAL, group_options
from tinyvlm_cli.config.build import conf_dir, is_results_folder, sweeps_dir
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.untrusted import MAX_YAML_BYTES, read_bytes, read_yaml

SWEEP = "sweep"  # the configuration group whose options are the files in sweeps/


class TinyvlmSearchPath(SearchPathPlugin):
    """A search path with the user's ./conf and ./sweeps before those that come with tinyvlm."""

    includes_own = True  # False while the packaged configuration is composed for comparison

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        own_conf, own_sweeps = Path("conf").resolve(), Path("sweeps").resolve()
        if is_results_folder(Path.cwd()):
            own_conf, own_sweeps = conf_dir(), sweeps_dir()  # files in a results folder are data
        if self.includes_own and own_conf.is_dir() and own_conf != conf_dir():
            search_path.prepend(provider="user", path=str(own_conf), anchor="main")
        for folder in dict.fromkeys((own_sweeps, sweeps_dir())):
            if folder.is_dir():
                search_path.append(provider="sweeps", path=f"sweeps://{folder}")
        for element in search_path.get_path():
            element.path = re.sub(r"^(file://)?/", "cached:///", element.path)


class CachedSource(FileConfigSource):
    """A folder of configuration files. A file is parsed again only if its content has changed."""

    parsed: ClassVar[dict[tuple[str, str, bytes], bytes]] = {}

    @staticmethod
    def scheme() -> str:
        return "cached"

    def load_config(self, config_path: str) -> ConfigResult:
        """Return a copy of the file's content. Raises UserError if it is not a mapping in YAML.

        A member of a group of which several can be chosen has its own name as its key, unless the file states another.
        """
        path, advice = Path(self.path, self._normalize_file_name(config_path)), "correct the file"
        key = (self.path, config_path, read_bytes(path, advice, limit=MAX_YAML_BYTES))
        if key not in self.parsed:
            content = read_yaml(path, advice, loader=get_yaml_loader())
            if content is not None and not isinstance(content, dict):
                raise UserError(f"{path}: expected settings but found a {type(content).__name__}; {advice}")
            try:
                loaded = super().load_config(config_path)
            except ValueError as error:  # an invalid "@package" line, or keys that OmegaConf does not allow
                raise UserError(f"{path}: {str(error).strip().splitlines()[0]}; {advice}") from None
            if config_path.startswith("data/") and isinstance(loaded.config, DictConfig):
                loaded.config.pop("label", None)  # a setting of earlier versions, which had no effect
                for folder, source in (loaded.config.pop("image_sources", None) or {}).items():  # of earlier versions
                    OmegaConf.update(loaded.config, "downloads", {}, force_add=True, merge=True)
                    loaded.config.downloads[folder] = {"name": source, "by_hand": "no address is given"}
            group, _, name = config_path.removesuffix(".yaml").rpartition("/")
            if group in SEVERAL and set(content or ()) - {"defaults"}:
                loaded.header["package"] = loaded.header.get("package") or f"{group}.{name}"
            self.parsed[key] = pickle.dumps(loaded)
        result: ConfigResult = pickle.loads(self.parsed[key])
        return result


class CachedRepository(ConfigRepository):
    """A repository that finds and reads each configuration file once for all cells of a grid."""

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        """Set the search path and clear the cache."""
        super().initialize_sources(config_search_path)
        self.cache: dict[str, bytes] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "CachedRepository":
        """Return a shallow copy that shares the cache, because Hydra copies the repository often."""
        return copy.copy(self)

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Return a copy of the file's content."""
        if config_path not in self.cache:
            self.cache[config_path] = pickle.dumps(super().load_config(config_path))
        result: ConfigResult | None = pickle.loads(self.cache[config_path])
        return result


class SweepSource(CachedSource):
    """A configuration source that provides the files of a folder as options of the group `sweep`."""

    @staticmethod
    def scheme() -> str:
        return "sweeps"

    def load_config(self, config_path: str) -> ConfigResult:
        """Return a file. It need not state that its package is `_global_` and, if it has a grid, Hydra's mode MULTIRUN.

        Raises UserError if it chooses members of groups in a way that Hydra does not read.
        """
        name = PurePosixPath(config_path).name
        loaded = super().load_config(name)
        config: Any = loaded.config
        where = f"{Path(self.path, self._normalize_file_name(name))}: "
        for key, value in config.items():
            if isinstance(value, str) and group_options(key):
                raise UserError(f"{where}{key}: found '{value}'; write it below hydra.sweeper.params")
        params = OmegaConf.select(config, "hydra.sweeper.params") or {}
        for key, value in params.items():
            if isinstance(value, ListConfig) and group_options(key):
                raise UserError(f"{where}hydra.sweeper.params.{key}: found a list; write it as {key}: A,B")
        if params and not config.hydra.get("mode"):
            config.hydra.mode = "MULTIRUN"
        loaded.header["package"] = loaded.header.get("package") or "_global_"
        return loaded

    def is_group(self, config_path: str) -> bool:
        return config_path in ("", SWEEP)

    def is_config(self, config_path: str) -> bool:
        path = PurePosixPath(config_path)
        return str(path.parent) == SWEEP and super().is_config(path.name)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path == "":
            return [SWEEP] if results_filter in (None, ObjectType.GROUP) else []
        if config_path != SWEEP or results_filter is ObjectType.GROUP:
            return []
        return sorted(path.stem for path in Path(self.path).glob("*.yaml"))


class Overriding(OmegaConf):
    """OmegaConf for Hydra's overrides, which may set a mapping that is null, or a key of it: `NAME.lora={rank: 8}`."""

    @staticmethod
    def update(cfg: Any, key: str, value: Any = None, *, merge: bool = True, force_add: bool = False) -> None:
        """Set `key` to `value`, or merge them if both are mappings."""
        names = split_key(key)
        node = cfg
        for depth, name in enumerate(names[:-1] if not isinstance(value, dict) else names):
            child = node._get_node(name, validate_access=False) if isinstance(node, DictConfig) else None
            if isinstance(child, DictConfig) and child._is_none():  # OmegaConf cannot merge into null itself
                if not depth:
                    raise UserError(f"{key}: no {name} is selected; add {name}=NAME")
                for inner in reversed(names[depth:]):
                    value = {inner: value}
                with open_dict(node):
                    node.merge_with(value)
                return
            node = child
        OmegaConf.update(cfg, key, value, merge=merge, force_add=force_add)
