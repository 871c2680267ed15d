"""The model card of an exported run: a README.md with components, data, recipe, scores, limits and provenance."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader

from tinyvlm_cli.config.datasets import Exif, Split
from tinyvlm_cli.config.schema import PARTS, Train
from tinyvlm_cli.console import printable
from tinyvlm_cli.data.mixture import sources_of
from tinyvlm_cli.files import read_jsonl
from tinyvlm_cli.report.scores import CHOICES, read_published
from tinyvlm_cli.report.sheet import DASH, markdown
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.models import TrainedModel
from tinyvlm_cli.results.records import REAL, SHUFFLED, ScoreRow, command_line
from tinyvlm_cli.results.sources import read_sources
from tinyvlm_cli.statistics.intervals import INTERVALS

CARD = "README.md"
Rows = list[tuple[str, ...]]  # of a Markdown table
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # USER/NAME
# Absolute paths, and paths in the home folder. Only their last component is published.
FOLDERS = re.compile(r"(?<![\w./:])(?:~|\.\.)?/(?:[^\s/,'\"\]}]+/)*([^\s/,'\"\]}]*)")


@dataclass(frozen=True)
class Card:
    """The content of a model card."""

    found: TrainedModel
    config: Train
    rows: list[ScoreRow]  # of all runs
    published: Path  # published_scores.csv
    place: str  # name of the repository, or of the folder
    is_llava: bool
    is_lossy: bool

    def text(self) -> str:
        """Return the card as Markdown."""
        environment = Environment(loader=PackageLoader("tinyvlm_cli.report", "."), autoescape=False)
        environment.filters["md"] = lambda value: markdown(str(value)) or DASH
        run, stages = self.found.run, self._stages()
        real = [row for row in self._own() if row.images == REAL]
        return environment.get_template("card.md.j2").render(
            metadata=self._metadata(real),
            run=run,
            config=self.config,
            stage=self.found.stage,
            place=self.place,
            is_llava=self.is_llava,
            components=self._components(),
            stages=stages,
            mixtures=self._mixtures(),
            sources=dict.fromkeys(split.source for row in stages for split in self._splits(row[0])),
            scores=self._scores(real),
            notes=self._notes(real),
            limits=self._limits(real),
            versions=self._versions(),
            commands=[_published_text(command) for command in self._commands()],
        )  # fmt: skip

    def _own(self) -> list[ScoreRow]:
        """Return the scores of this model on all questions."""
        run = self.found.run.folder.name
        return [row for row in self.rows if (row.run, row.stage, row.limit) == (run, self.found.stage, None)]

    def _metadata(self, real: list[ScoreRow]) -> str:
        """Return the YAML header, which the hub uses for search and for its results widget."""
        from huggingface_hub import EvalResult, ModelCardData

        name = " ".join(printable(self.found.run.name).split())
        paths = [self.config.llm.path, self.config.vision.path]
        if self.config.vision.second:
            paths.append(self.config.vision.second.path)
        specs = (spec for spec in self.config.data.all_downloads.values() if spec is not None)
        results = [
            EvalResult(
                task_type="visual-question-answering", dataset_type=row.benchmark,
                dataset_name=f"{row.benchmark}, {row.split}", metric_type=row.metric, metric_value=round(row.value, 2),
            )
            for row in real
            if row.value is not None
        ]  # fmt: skip
        data = ModelCardData(
            library_name="transformers" if self.is_llava else "tinyvlm",
            pipeline_tag="image-text-to-text",
            base_model=[path for path in paths if HUB_ID.fullmatch(path) and not Path(path).exists()] or None,
            datasets=list(dict.fromkeys(spec.hub for spec in specs if spec.hub)) or None,
            tags=["tinyvlm", "vision-language-model"],
            model_name=name if results else None,
            eval_results=results or None,
        )
        return str(data.to_yaml()).rstrip() + "\n"

    def _components(self) -> Rows:
        stages = [(name, self.config.recipe.stages[name]) for name in self._stage_names()]
        rows: Rows = []
        for part in PARTS:
            modes = [(name, stage.describe_training(part)) for name, stage in stages]
            training = ", ".join(f"{name}: {mode}" for name, mode in modes)
            settings = getattr(self.config, part)
            if part == "connector":
                sizes = {key: value for key, value in settings.items() if key not in ("name", "label", "_target_")}
                kind = str(settings.get("_target_", "")).rpartition(".")[2]
                text = ", ".join([kind, *(f"{key}={value}" for key, value in sizes.items())])
                rows.append((part, text, "none", training))
            else:
                paths = [settings.path, *([settings.second.path] if getattr(settings, "second", None) else [])]
                rows.append((part, settings.name, ", ".join(map(_published_text, paths)), training))
        return rows

    def _stage_names(self) -> list[str]:
        """Return the stages of the recipe up to the exported one."""
        names = list(self.config.recipe.stages)
        return names[: names.index(self.found.stage) + 1] if self.found.stage in names else []

    def _folders(self) -> dict[str, Path]:
        """Return the folder of each stage."""
        return dict(zip(reversed(self._stage_names()), reversed(self.found.stage_dirs), strict=False))

    def _stages(self) -> Rows:
        folders = self._folders()
        rows: Rows = []
        for name in self._stage_names():
            stage = self.config.recipe.stages[name]
            splits = self._splits(name)
            path = folders[name] / "train.jsonl"
            steps = f"{sum(1 for _ in read_jsonl(path)):,}" if path.is_file() else DASH
            count = sum(split.count for split in splits)
            numbers = (f"{count:,}", steps, str(stage.samples_per_step), str(stage.epochs), f"{stage.lr:g}")
            rows.append((name, " + ".join(Path(split.annotations).name for split in splits), *numbers))
        return rows

    def _mixtures(self) -> Rows:
        """Return one row per source of each stage that was trained on a mixture."""
        return [
            (
                stage,
                one.name,
                f"{one.share:.1%}",
                f"{one.samples:,}",
                f"{one.times:.3g}",
                f"{one.usable:,} of {one.records:,}",
                DASH if one.tokens is None else f"{one.tokens:,}",
            )
            for stage, folder in self._folders().items()
            for one in read_sources(folder)
        ]

    def _splits(self, stage: str) -> list[Split]:
        """Return the training sets of a stage."""
        sources = sources_of(self.config.data, self.config.recipe.stages[stage].split)
        return [source.split for source in sources.values()]

    def _scores(self, real: list[ScoreRow]) -> Rows:
        """Return one row per benchmark, with the published score of the model with the same components."""
        cited = self._cited()
        blind = {row.benchmark: row for row in self._own() if row.images == SHUFFLED}
        return [
            (
                row.benchmark,
                _number(row),
                DASH if row.interval is None else f"{row.interval[0]:.1f} to {row.interval[1]:.1f}",
                f"{cited[row.benchmark]:.1f}" if row.benchmark in cited else DASH,
                _number(blind[row.benchmark]) if row.benchmark in blind else DASH,
                f"{row.n:,}",
                f"{row.metric} on {row.split}, {row.follows}, version {row.version}",
            )
            for row in real
        ]

    def _cited(self) -> dict[str, float]:
        frame: pd.DataFrame = read_published(self.published)
        run = self.found.run
        same = (frame[CHOICES] == [getattr(run, choice) for choice in CHOICES]).all(axis=1)
        return dict(zip(frame.loc[same, "benchmark"][::-1], frame.loc[same, "value"][::-1], strict=True))

    def _notes(self, real: list[ScoreRow]) -> list[str]:
        notes = [INTERVALS] if any(row.interval for row in real) else []
        for row in real:
            if row.judge:
                notes.append(f"{row.benchmark}: judged by {row.judge}")
            if row.valid < 1:
                notes.append(f"{row.benchmark}: {row.valid:.1%} of the answers could be read")
        if self._cited():
            notes.append("published: score of the same components, data and recipe in a publication")
        return notes

    def _limits(self, real: list[ScoreRow]) -> list[str]:
        limits = [
            "The model was trained for research on small vision-language models. It was not tested for safety, and its "
            "answers can be wrong, biased or harmful.",
            "The licences of the base models and of the data apply.",
        ]
        if real:
            limits.insert(0, "Scores are of one run with one seed. Intervals do not cover the variation between seeds.")
        if self.config.data.exif is Exif.upright:
            limits.append("Training turned photos upright as their Exif metadata states; turn them before asking.")
        if self.is_lossy:
            limits.append(
                "Weights that the format cannot store were dropped, so answers can differ from the scored ones."
            )
        return limits + [f"Training: {warning}" for warning in Results.warnings(self.found.stage_dirs)]

    def _versions(self) -> Rows:
        rows: Rows = []
        for folder in self.found.stage_dirs:
            if record := Results.read_stage(folder):
                made = record.made_with
                packages = dict(made.get("packages") or {})
                others = [f"{name} {value}" for name, value in packages.items() if value and name != "tinyvlm"]
                version = f"{packages.get('tinyvlm') or ''} {str(made.get('commit') or '')[:8]}".strip()
                rows.append((record.stage, str(made.get("time", "")), version, ", ".join(others)))
        return rows

    def _commands(self) -> Iterable[str]:
        records = [record for folder in self.found.stage_dirs if (record := Results.read_stage(folder))]
        made = [*(record.made_with for record in records), self.found.run.made_with, {"command": command_line()}]
        return dict.fromkeys(str(one["command"]) for one in made if one.get("command"))


def _number(row: ScoreRow) -> str:
    partial = " (partial)" if row.details.get("partial") else ""
    return row.state if row.value is None else f"{row.value:.1f}{partial}"


def _published_text(text: str) -> str:
    """Return a path or command line without this machine's folders and without control characters."""
    return printable(FOLDERS.sub(r"\1", text)).replace("`", "'")
