"""Overrides on the command line that would have no effect: each one is rejected or reported, never silently ignored.

A command receives values and does not know which of them were typed, so the check is part of composition. To add a
rule, add an entry to `_RULES`.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from tinyvlm_cli.config.schema import Loss, Train, Tune
from tinyvlm_cli.errors import UserError, raise_findings

log = logging.getLogger(__name__)

PARTS_OF_RUN = ("llm", "vision", "connector")  # groups that start=RUN sets
Rule = Callable[[Any, str, str], str | None]  # (settings, the pattern's groups) -> why there is no effect, or None


def with_effect(config: Any, command: str, overrides: Iterable[str]) -> Any:
    """Return the settings of a command after checking that each override has an effect.

    With start=RUN, the settings of that run's parts are used. Overrides that contradict them raise a UserError, and
    other overrides without an effect are reported in a warning.
    """
    overrides = list(overrides)
    if isinstance(config, Train) and config.start is not None:
        config = _continued(config, overrides)
    for finding in without_effect(config, command, overrides):
        _warn_once(finding)
    return config


def check_repeated(overrides: Iterable[str]) -> None:
    """Raise UserError if a setting is given more than once, because Hydra would use only the last value."""
    counts = Counter(map(key_of, overrides))
    raise_findings([f"{key}: given {count} times; give it once" for key, count in counts.items() if count > 1])


def key_of(override: str) -> str:
    """Return the setting of an override such as `++llm.max_length=20`."""
    return re.split(r"[=@]", override.lstrip("+~"), maxsplit=1)[0]


def _continued(config: Train, overrides: list[str]) -> Train:
    """Return the configuration with the parts of the run `start`. Raises UserError if overrides contradict them."""
    from tinyvlm_cli.train.stages import continued

    keys = {key_of(override): override for override in overrides}
    given = config
    config = continued(config, typed=keys)
    findings = []
    for group in PARTS_OF_RUN:
        typed = [
            override for key, override in keys.items() if key.partition(".")[0] == group and key != "llm.max_length"
        ]
        if typed and _compared(getattr(given, group)) != _compared(getattr(config, group)):
            findings.append(
                f"{', '.join(typed)}: has no effect with start={config.start}, which keeps the {group} of that run; "
                f"remove {'it' if len(typed) == 1 else 'them'}, or train without start"
            )
    raise_findings(findings)
    return config


def _compared(part: Any) -> dict[str, Any]:
    """Return the settings of a part that are taken from the run with start=RUN."""
    values = dict(part if isinstance(part, dict) else vars(part))
    return {key: value for key, value in values.items() if key not in ("name", "label", "max_length", "architecture")}


def without_effect(config: Any, command: str, overrides: Iterable[str]) -> list[str]:
    """Return a message for each override that has no effect on this run."""
    findings = []
    for override in overrides:
        for commands, pattern, rule in _RULES:
            match = re.fullmatch(pattern, key_of(override)) if command in commands.split() else None
            names = [*(match.groups() if match else ()), "", ""]
            if match and (reason := rule(config, names[0], names[1])):
                findings.append(f"{override}: has no effect, because {reason}")
                break
    return findings


@cache
def _warn_once(text: str) -> None:
    """Log a warning once per process, not once per cell of a grid."""
    log.warning("%s", text)


def _stage(config: Train, name: str) -> Any:
    if name not in config.recipe.stages:
        raise UserError(f"recipe.stages.{name}: no such stage; choose from {', '.join(config.recipe.stages)}")
    return config.recipe.stages[name]


def _uses(config: Train, split: str) -> bool:
    return any(stage.split == split for stage in config.recipe.stages.values())


def _bench(*actions: str) -> Rule:
    """Return a rule for settings that only some actions of `tinyvlm bench` use."""

    def rule(config: Any, _: str, __: str) -> str | None:
        only = " and ".join(f"bench {action}" for action in actions)
        return None if config.action in actions else f"only `{only}` uses it"

    return rule


def _evaluate(config: Any, name: str, _: str) -> str | None:
    settings = config.evaluate
    if not settings.benchmarks:
        return "evaluate.benchmarks is not set"
    if name.startswith("stop") and settings.stop is None:
        return None if name == "stop" else "evaluate.stop is not set"
    return "evaluate.judge.model is not set" if name == "judge" and not settings.judge.model else None


_STAGE = r"recipe\.stages\.([^.]+)\."
_TRAINING = "train plan bench"
# fmt: off
_RULES: tuple[tuple[str, str, Rule], ...] = (  # commands, settings, rule
    (
        _TRAINING, _STAGE + r"(vision|llm)_from_layer",
        lambda config, name, part: None if (tune := getattr(_stage(config, name).train, part)) is Tune.full
        else f"recipe.stages.{name}.train.{part} is {tune.value}, not full",
    ),
    (
        _TRAINING, _STAGE + r"part_lr\.(\w+)",
        lambda config, name, part: None if part in _stage(config, name).trained_parts
        else f"stage {name} does not train the {part}",
    ),
    (
        _TRAINING, _STAGE + r"lora(?:\..+)?",
        lambda config, name, _: None if _stage(config, name).adapted_parts
        else f"stage {name} trains no part with lora or qlora",
    ),
    (
        _TRAINING, _STAGE + r"samples_per_mean",
        lambda config, name, _: None if _stage(config, name).loss is Loss.mean_of_means
        else f"recipe.stages.{name}.loss is not mean_of_means",
    ),
    (
        _TRAINING, r"vision\.partial_from_layer",
        lambda config, *_: None if any(
            one.train.vision is Tune.full and one.vision_from_layer == config.vision.partial_from_layer
            for one in config.recipe.stages.values()
        ) else "no stage of the recipe trains the upper layers of the vision encoder",
    ),
    (
        _TRAINING, r"llm\.precision",
        lambda config, *_: None if config.engine.precision is config.llm.precision else "engine.precision is set",
    ),
    (
        "eval", r"data_dir",
        lambda config, *_: None if config.eval_dir == f"{config.data_dir}/eval" else "eval_dir is set",
    ),
    (
        "train plan", r"data\.splits\.([^.]+)\..+",
        lambda config, name, _: None if config.data.mixtures or _uses(config, name)
        else f"no stage of recipe={config.recipe.name} uses the split {name}",
    ),
    (
        "train plan", r"data\.mixtures\.([^.]+)\..+",
        lambda config, name, _: None if _uses(config, name)
        else f"no stage of recipe={config.recipe.name} uses the mixture {name}",
    ),
    (
        "train", r"(?:llm|vision|vision\.second)\.architecture(?:\..+)?",
        lambda *_: "training reads the architecture from the weights; it is used by `tinyvlm plan` and `tinyvlm bench`",
    ),
    ("bench", r"evaluate\..+|tracker", lambda *_: "only `train` and `plan` use it"),
    ("train plan", r"evaluate\.(every|limit|stop|stop_alpha|eval_dir|judge)(?:\..+)?", _evaluate),
    ("bench", r"steps", _bench("train")),
    ("bench", r"images|workloads(?:\..+)?", _bench("eval")),
    ("bench", r"engine\.(?:zero|micro_tokens|recompute|compile)", _bench("train")),
    ("ask", r"seed", lambda config, *_: None if config.temperature > 0 else "decoding is greedy with temperature=0"),
    ("status", r"every_s", lambda config, *_: None if config.watch else "watch is false"),
    ("eval", r"seed", lambda config, *_: None if config.blind else "it only shuffles the images of blind=true"),
    ("eval", r"judge\..+", lambda config, *_: None if config.judge.model else "judge.model is not set"),
    ("score", r"judge\..+", lambda config, *_: None if config.judge.model else "judge.model is not set"),
    ("export", r"private", lambda config, *_: "hub is not set" if config.hub is None else None),
    ("export", r"exports_dir", lambda config, *_: "output is set" if config.output is not None else None),
)
# fmt: on
