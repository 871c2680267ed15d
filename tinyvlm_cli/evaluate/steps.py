"""Scores of benchmarks while a stage is trained, computed by the processes that train it.

The training must not notice: the model's mode, its attention, all random states and the memory are restored.
"""

import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from tinyvlm_cli.config.schema import LLM, Stage, Vision
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Benchmark
from tinyvlm_cli.evaluate.run_answerer import RunAnswerer
from tinyvlm_cli.evaluate.runner import answer_share
from tinyvlm_cli.heartbeat import end_progress, note_progress
from tinyvlm_cli.model.vlm import VLM
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import HIGHEST, Answer, StepScore
from tinyvlm_cli.results.stops import step_questions
from tinyvlm_cli.statistics.questions import Questions
from tinyvlm_cli.statistics.stopping import Verdict, verdict

log = logging.getLogger(__name__)

WAIT = timedelta(hours=1)  # for the answers of the slowest rank


@dataclass
class StepScorer:
    """Scores the model of a stage every few steps. All ranks call it together and share the questions."""

    name: str  # of the stage
    folder: Path  # of the stage, in which the scores are recorded
    every: int  # steps
    limit: int | None  # number of questions per benchmark
    benchmarks: Sequence[Benchmark]
    llm: LLM
    vision: Vision
    stage: Stage
    upright: bool  # whether images are turned as their Exif orientation states
    stop: float | None = None  # see `Evaluate`
    stop_alpha: float = 0.05
    _answerer: RunAnswerer | None = None

    def __call__(self, model: VLM, step: int, *, stops: Callable[[], bool]) -> dict[str, float] | None:
        """Return the headline of each benchmark after a step, or None if training is to stop, on all ranks.

        Scores that are already recorded are not computed again. stops: returns whether this rank was asked to stop.
        """
        if step % self.every:
            return {}
        store = PrefixStore(f"scores {self.folder.name} {step}", _get_default_store())
        is_main = dist.get_rank() == 0
        known = {score.cell: score for score in Results.step_scores(self.folder)} if is_main else {}
        cells = [(step, one.name, one.version, one.split, self.limit) for one in self.benchmarks]
        if is_main:
            store.set("due", json.dumps([cell not in known for cell in cells]))
        due = [one for one, is_due in zip(self.benchmarks, json.loads(store.get("due")), strict=True) if is_due]
        if due:
            self._answerer = self._answerer or RunAnswerer(
                model, self.llm, self.vision, self.stage, upright=self.upright, is_trained=True
            )
            with undisturbed(model):
                scores = self._scores(self._answerer, due, step, store, stops)
            if scores is None:
                return None
            known |= {score.cell: score for score in scores}
        values = {cell[1]: known[cell].value for cell in cells if cell in known}
        return {f"score/{name}": value for name, value in values.items() if value is not None}

    def should_end(self, step: int, steps: int) -> dict[str, Any] | None:
        """Return the comparison with the stage of another run that stops this one after `step` of `steps`, or None."""
        if self.stop is None or step % self.every or step >= steps:
            return None
        store = PrefixStore(f"end {self.folder.name} {step}", _get_default_store())
        if dist.get_rank() == 0:
            found = self._verdict(step, self.stop, num_looks=(steps - 1) // self.every)
            shown = {"step": step, "steps": steps, "margin": self.stop, "alpha": self.stop_alpha}
            store.set("verdict", json.dumps(found and {**asdict(found), "lead": round(found.lead, 2), **shown}))
        reason: dict[str, Any] | None = json.loads(store.get("verdict"))
        return reason

    def _verdict(self, step: int, margin: float, *, num_looks: int) -> Verdict | None:
        """Compare with the same stage of other runs with the same seed, which were evaluated in the same way."""

        def read(folder: Path) -> tuple[dict[str, Questions], dict[str, float]]:
            wanted = {(step, one.name, one.version, one.split, self.limit) for one in self.benchmarks}
            scores = [score for score in Results.step_scores(folder) if score.cell in wanted]
            paths = {score.benchmark: step_questions(folder, score.benchmark, step) for score in scores}
            if len(paths) < len(self.benchmarks):
                raise UserError(f"{folder}: not evaluated after step {step}")
            highest = {score.benchmark: float(HIGHEST.get(score.metric, 100)) for score in scores}
            return {name: Questions.read(path) for name, path in paths.items()}, highest

        record, others = Results.read_stage(self.folder), {}
        assert record is not None
        try:
            own, highest = read(self.folder)
        except UserError:  # of an evaluation without evaluate.stop
            return None
        for folder in sorted(self.folder.parent.glob(f"{self.name}-*")):
            try:
                other = Results.read_stage(folder)
                is_same = other and other.stage == self.name and other.identity.get("seed") == record.identity["seed"]
                if is_same and folder != self.folder:
                    others[folder.name] = read(folder)[0]
            except UserError:  # an unreadable folder, or a stage that is not that far
                continue
        return verdict(own, others, highest, margin=margin, alpha=self.stop_alpha, num_looks=num_looks)

    def _scores(
        self, answerer: RunAnswerer, due: Sequence[Benchmark], step: int, store: Store, stops: Callable[[], bool]
    ) -> list[StepScore] | None:
        """Return new scores on rank 0 and an empty list on other ranks; None if questions are left, because of a stop.

        Each rank puts its answers into the store. Rank 0 scores them and puts there whether all questions are answered.
        """
        rank, ranks = dist.get_rank(), dist.get_world_size()
        scores: list[StepScore] = []
        is_complete = True
        try:
            for benchmark in due:
                began = time.perf_counter()
                questions = benchmark.questions[: self.limit]
                given = answer_share(
                    answerer, questions, partial(store.add, f"claimed {benchmark.name}"),
                    max_new_tokens=benchmark.max_new_tokens, stops=stops,
                )  # fmt: skip
                mine = [(question.key, text) for question, text in given]
                store.set(f"{benchmark.name} {rank}", json.dumps(mine))
                if rank == 0 and is_complete:
                    end_progress()
                    keys = [f"{benchmark.name} {other}" for other in range(ranks)]
                    store.wait(keys, WAIT)
                    texts = {key: text for other in keys for key, text in json.loads(store.get(other))}
                    for other in keys:
                        store.delete_key(other)
                    answers = [Answer(q.question_id, q.text, texts[q.key], q.key) for q in questions if q.key in texts]
                    is_complete = len(answers) == len(questions)
                    if is_complete:
                        scores.append(self._score(benchmark, answers, step, began))
                        Results.append_step_score(self.folder, scores[-1])
                note_progress()
        finally:
            answerer.free()
        if rank == 0:
            store.set("complete", json.dumps(is_complete))
        end_progress()
        store.wait(["complete"], WAIT)
        note_progress()
        return scores if json.loads(store.get("complete")) else None

    def _score(self, benchmark: Benchmark, answers: Sequence[Answer], step: int, began: float) -> StepScore:
        """Return the score of the answers. began: time at which answering began."""
        value, metric, n, valid = None, benchmark.metric, 0, 0.0
        try:
            score = benchmark.score(answers, {answer.key for answer in answers}, partial=True)
            value, metric, n, valid = score.value, score.metric, score.n, score.valid
            if self.stop is not None:
                questions = Questions.of(score.formula, score.tallies)
                questions.write(step_questions(self.folder, benchmark.name, step))
        except UserError as error:  # of a training that has run for hours
            log.warning("%s, step %d: %s is not scored: %s", self.name, step, benchmark.label, error)
        seconds = time.perf_counter() - began
        shown = "-" if value is None else f"{value:.1f}"
        log.info(
            "%s, step %d: %s %s (%d questions, %.1f s)",
            self.name, step, benchmark.label, shown, len(answers), seconds,
        )  # fmt: skip
        return StepScore(
            step, benchmark.name, metric, value, n, valid, benchmark.version, benchmark.split, self.limit,
            round(seconds, 3),
        )  # fmt: skip


@contextmanager
def undisturbed(model: VLM) -> Iterator[None]:
    """Set the model to evaluation mode inside the block, and afterwards restore its mode and all random states."""
    trained = [module for module in model.modules() if module.training]
    states: tuple[Any, Any] = random.getstate(), np.random.get_state()
    device = model.llm.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        model.eval()
        try:
            yield
        finally:
            for module in trained:
                module.training = True
            random.setstate(states[0])
            np.random.set_state(states[1])
