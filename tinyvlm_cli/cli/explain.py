"""Check the arguments of a command, and explain each error from Hydra and OmegaConf in one sentence.

The sentence states the setting, what was found and what is allowed.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from tinyvlm_cli.config.build import conf_dir
from tinyvlm_cli.errors import UserError, suggest

SEVERAL = ("benchmark", "table")  # groups of which several members can be chosen, as in benchmark=[pope,gqa]
# Mappings of a report table to which users may add keys.
OWN_KEYS = re.compile(r"table\.[^.=]+\.(runs|headers|against)[.=]")
# Hydra flags that take an argument.
TAKE_ARGUMENT = frozenset(
    {"-c", "-p", "-i", "-cn", "-cp", "-cd", "-sc", "--cfg", "--package", "--info"}
    | {"--config-name", "--config-path", "--config-dir", "--shell-completion"}
)

# OmegaConf's errors about a value, and how they are reported.
VALUE_ERRORS = {
    r"Value ('.*') of type 'str' could not be converted to Integer": r"found \1; use an integer",
    r"Value '(.*)' of type '\w+' could not be converted to Integer": r"found \1; use an integer",
    r"Value ('.*') of type 'str' could not be converted to Float": r"found \1; use a number",
    r"Value '(.*)' of type '\w+' could not be converted to Float": r"found \1; use a number",
    r"Value ('.*') is not a valid bool.*": r"found \1; use true or false",
    r"Cannot convert '\w+' to string: '(.*)'": r"found \1; use text",
    r"Invalid value ('.*'), expected one of \[(.*)\]": r"found \1; choose from \2",
    r"field '.*' is not Optional|Incompatible value 'None' for field.*": "found null; use a value",
    r"Interpolation key '(.*)' not found": r"found ${\1}, but there is no such setting; use another one",
    r".*\"Environment variable '(.*)' not found\"": r"found ${oc.env:\1}, but this variable is not set; set it",
    r"Unsupported interpolation type (\S+)": r"found ${\1:...}; use ${oc.env:NAME} or ${NAME.OF.A.SETTING}",
}


def read_arguments(arguments: list[str], schema: type) -> tuple[list[str], list[str]]:
    """Split a command's arguments into Hydra flags (with their arguments) and settings in Hydra's override grammar.

    Hydra requires flags before settings. Texts that its grammar does not allow are quoted: those of free-text settings,
    such as a question with commas, and paths and names with "=", "&", "~", quotes or letters other than ASCII. Settings
    that may add a new key to a mapping get Hydra's prefix `++`.
    Raises UserError for an argument that is not of the form `key=value` or whose key the command does not have.
    """
    flags: list[str] = []
    settings: list[str] = []
    for previous, argument in zip(["", *arguments], arguments, strict=False):
        (flags if argument.startswith("-") or previous in TAKE_ARGUMENT else settings).append(argument)
    allowed = {field.name: field for field in fields(schema)}
    for index, setting in enumerate(settings):
        group = re.split(r"[=.@/]", setting.lstrip("+~"), maxsplit=1)[0]
        if group not in (*allowed, "hydra", "sweep"):
            raise UserError(f"{setting}: unknown setting '{group}'; {suggest(group, [*allowed, 'trust'])}")
        if "=" not in setting and not setting.startswith("~"):
            raise UserError(f"{setting}: missing value; write {setting}=VALUE")
        if group == "sweep" and re.search(r"[,\[]", setting):
            # Hydra would run a single job per sweep file and ignore the grids in the files.
            raise UserError(f"{setting}: only one sweep per command is supported; run the command once for each sweep")
        key, _, value = setting.partition("=")
        no_name = r"(null|\{.*)$" if group in SEVERAL else r"(null|[\[{].*)$"
        is_whole = key.lstrip("+~") == group
        if is_whole and (setting[0] == "~" or re.match(no_name, value)) and (options := group_options(group)):
            raise UserError(f"{setting}: expected one name; choose from {', '.join(options)}")
        if key in allowed and allowed[key].metadata.get("text"):
            is_plain = value in ("", "null") or (len(value) > 1 and value[0] + value[-1] in ("''", '""', "[]"))
            value = value if is_plain else _quoted(value)
        else:
            values = value.split(",") if re.search(r"[\"'\[({]", value) is None else []
            if repeated := [one for one in dict.fromkeys(values) if values.count(one) > 1]:
                raise UserError(f"{setting}: {repeated[0]} is given {values.count(repeated[0])} times; give it once")
            value = _in_grammar(value, is_text=_is_text(schema, key.lstrip("+~")))
        settings[index] = f"{'++' if OWN_KEYS.match(setting) else ''}{key}={value}" if "=" in setting else setting
    return flags, settings


def _in_grammar(value: str, *, is_text: bool) -> str:
    """Return a value in Hydra's grammar, in which texts with special characters are quoted, such as a path with "&".

    is_text: the setting is a text, so a value such as 1e3 is not a number.
    """
    has_structure = re.search(r"[\"'\[({]", value) is not None
    if _parsed(value) is not _UNREADABLE and has_structure:
        return value
    pieces = [value] if value[:1] in ("[", "{") else value.split(",")  # the values of a sweep

    def is_plain(piece: str) -> bool:
        found = _parsed(piece)
        is_changed = is_text and isinstance(found, bool | int | float)
        return not piece or (found is not _UNREADABLE and "=" not in piece and not is_changed)

    return ",".join(piece if is_plain(piece) else _quoted(piece) for piece in pieces)


_UNREADABLE = object()


def _parsed(value: str) -> Any:
    """Return the value that Hydra reads, or _UNREADABLE."""
    try:
        return _parser().parse_override(f"x={value}").value()
    except (HydraException, ValueError, RecursionError):  # integers of thousands of digits, deep nesting
        return _UNREADABLE


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.double).with_quotes()


def _is_text(schema: Any, key: str) -> bool:
    """Return whether a setting is a text. Keys of mappings, such as names of stages, are not in the schema."""
    hint: Any = schema
    for name in key.split("."):
        kinds = [one for one in (hint, *get_args(hint)) if is_dataclass(one)]
        if not kinds:
            return False
        is_mapping = kinds[0] is not hint and get_origin(hint) is dict
        hint = kinds[0] if is_mapping else get_type_hints(kinds[0]).get(name)
    return hint is str or (str in get_args(hint) and get_origin(hint) in (Union, UnionType))


def group_options(group: str) -> list[str]:
    """Return the options of a configuration group, those of the user included; none if `group` is no group."""
    return sorted({path.stem for folder in (conf_dir(), Path("conf")) for path in (folder / group).glob("*.yaml")})


def trusted_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the modules and folders named by `trust=A,B` arguments, and the other arguments.

    Only the command line can name them: `trust` is not a setting, so no file can change it.
    """
    given = [argument for argument in arguments if argument.startswith("trust=")]
    given_names = [name.strip(" '\"[]") for argument in given for name in argument.removeprefix("trust=").split(",")]
    names = [str(Path(name).expanduser()) if name[:2] == "~/" else name for name in given_names]
    for name in names:
        if not re.fullmatch(r"\w+(\.\w+)*|/.+", name):
            raise UserError(f"trust={name}: expected the name of a module or the absolute path of a folder")
    return names, [argument for argument in arguments if argument not in given]


def explain(error: Exception, schema: type, settings: list[str]) -> str:  # noqa: PLR0911, PLR0912 - one per kind of error
    """Return a one-sentence explanation of an error that Hydra or OmegaConf raised while composing `settings`."""
    if isinstance(error, OverrideParseException):
        return f"{error.override}: invalid override; put the value in quotes, as in 'KEY=\"VALUE\"'"
    if isinstance(error, MissingConfigException) and "/" in (path := error.missing_cfg_file or ""):
        group, _, name = path.rpartition("/")
        return (
            f"{group}={name}: '{name}' does not exist; {suggest(name, sorted(error.options or group_options(group)))}"
        )
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__ or cause.__context__  # Hydra wraps OmegaConf's errors, some without `from`
    if cause is None:
        # Hydra raises a generic error for several values without -m.
        for override in OverridesParser.create().parse_overrides(settings):
            if override.is_sweep_override():
                return f"{override.input_line}: several values without -m; add -m to run one job for each value"
        return _first_line(error)
    key = cause.full_key or str(cause.key)
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return f"{key}: unknown setting; {_similar(key, cause, schema)}"
    if cause.parent_node is None:  # a key of a missing entry, as in ++table.NAME.runs.seed=1
        for setting in settings:
            group, *entry = setting.lstrip("+").partition("=")[0].split(".")
            if entry[:1] == [key]:
                if group_options(group):
                    return f"{group}.{key}: '{key}' is not selected; add {group}={key}"
                return f"{group}.{key}: not an entry; add it in a copy of conf/{group}.yaml in ./conf"
    text = re.sub(r"While dereferencing interpolation '.*?': ", "", _first_line(cause))
    if match := re.match(r"MissingMandatoryValue .*: Missing mandatory value: (\S+)", text):
        return f"{match[1]}: not set; add {match[1]}=..."
    if match := re.match(r"Cannot merge DictConfig|Invalid (type|value) assigned: \w+ is not a", text):
        is_list = match[1] == "value" or any(re.match(rf"\W*{re.escape(key)}=\{{", setting) for setting in settings)
        return f"{key}: expected {'a list, as in [A,B]' if is_list else 'a mapping, as in {KEY: VALUE}'}"
    for pattern, sentence in VALUE_ERRORS.items():
        if match := re.fullmatch(pattern, text):
            return f"{key}: {match.expand(sentence)}"
    return f"{key}: {text}"


def _similar(key: str, error: OmegaConfBaseException, schema: type) -> str:
    """Return a hint: the most similar sibling of an unknown key, or a similar setting elsewhere, or all siblings."""
    prefix, _, last = key.rpartition(".")
    neighbours = [str(name) for name in error.parent_node] if isinstance(error.parent_node, Mapping) else []
    if near := get_close_matches(last, neighbours, n=1):
        return f"did you mean {prefix and prefix + '.'}{near[0]}?"
    paths = list(_paths(schema))
    ends = get_close_matches(last, {path.rpartition(".")[2] for path in paths}, n=1, cutoff=0.75)
    close = get_close_matches(key, [path for path in paths if path.rpartition(".")[2] in ends], n=1, cutoff=0.0)
    if close:
        return f"did you mean {close[0]}?"
    return f"choose from {', '.join(neighbours)}" if neighbours else "use `--cfg job` to show all settings"


def _paths(schema: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted paths of all settings, with NAME in place of a mapping's keys."""
    for name, hint in get_type_hints(schema).items():
        yield (path := f"{prefix}{name}")
        for inner in (hint, *get_args(hint)):
            if is_dataclass(inner):
                is_mapping = inner is not hint and get_args(hint)[0] is str
                yield from _paths(inner, f"{path}.NAME." if is_mapping else f"{path}.")


def _first_line(error: object) -> str:
    return str(error).strip().splitlines()[0]
