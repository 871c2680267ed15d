"""Lets Hydra find the files of a `sweeps` folder as the configuration group `sweep`."""

from pathlib import Path, PurePosixPath

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult

GROUP = "sweep"


class SweepSource(FileConfigSource):
    """A folder that stands for the group itself rather than for a tree of groups."""

    @staticmethod
    def scheme() -> str:
        """The beginning of a search path entry."""
        return "sweeps"

    def load_config(self, config_path: str) -> ConfigResult:
        """The file of `sweep/NAME`."""
        return super().load_config(PurePosixPath(config_path).name)

    def available(self) -> bool:
        """Whether the folder is there."""
        return super().is_group("")

    def is_group(self, config_path: str) -> bool:
        """The root and `sweep` are all the groups there are."""
        return config_path in ("", GROUP)

    def is_config(self, config_path: str) -> bool:
        """Whether `sweep/NAME` is a file."""
        path = PurePosixPath(config_path)
        return str(path.parent) == GROUP and super().is_config(path.name)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """The names in a group."""
        if config_path == "":
            return [GROUP] if results_filter in (None, ObjectType.GROUP) else []
        if config_path != GROUP or results_filter is ObjectType.GROUP:
            return []
        return sorted(path.stem for path in Path(self.path).glob("*.yaml"))
