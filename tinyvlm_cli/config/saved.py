"""Configurations saved as YAML files in the results folder, with all values resolved."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.untrusted import interpolation_in, read_yaml

C = TypeVar("C")


def to_yaml(config: Any) -> str:
    """Return a configuration object as YAML. Its values are resolved already.

    Raises UserError for a text with ${...}, which could not be read again.
    """
    if (text := interpolation_in(asdict(config))) is not None:
        raise UserError(f"settings cannot contain ${{...}}, but found {text!a:.80}; rename the file or setting")
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def from_yaml(kind: type[C], path: Path) -> C:
    """Load a configuration object written with `to_yaml` by this or an earlier version.

    The file may come from another person, so it is read without interpolation, which could reveal the environment.
    Raises UserError if the file contains settings that this version does not support.
    """
    advice = "restore the file, or train the run again"
    content = read_yaml(path, advice, loader=get_yaml_loader())
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a configuration; {advice}")
    if (text := interpolation_in(content)) is not None:
        raise UserError(f"{path}: contains {text!a:.80}, but saved configurations are not interpolated; {advice}")
    try:
        written = OmegaConf.create(content)
        if isinstance(data := OmegaConf.select(written, "data"), DictConfig):
            data.pop("label", None)  # written by earlier versions, as is `image_sources`
            data.pop("image_sources", None)
        loaded = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), written))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        text = f"{path}: not supported by this version of tinyvlm ({reason}); train the run again"
        raise UserError(text) from None
    assert isinstance(loaded, kind)
    return loaded
