"""A benchmark outside the project, from its own module and configuration, in every command."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from support.page_run import data_of

from tinyvlm_cli.cli.main import main
from tinyvlm_cli.config.build import build
from tinyvlm_cli.evaluate.benchmark import Benchmark
from tinyvlm_cli.evaluate.runner import EvalJob
from tinyvlm_cli.launch import workers
from tinyvlm_cli.results.answers import append_answers
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Answer, Run, Stage

MODULE = '''
"""A benchmark of my own."""

from tinyvlm_cli.evaluate.benchmark import Item
from tinyvlm_cli.evaluate.means import MeanBenchmark
from tinyvlm_cli.evaluate.sources import read_lines


class Shapes(MeanBenchmark):
    def files(self):
        return [self.folder / "shapes.jsonl"]

    def items(self):
        for line in read_lines(self.need(self.files()[0])):
            image = self.image_dir / line["image"]
            yield Item(key=line["id"], truth=line["shape"], text=f"Which?\\n{self.suffix}", image=image)

    def read(self, text, item):
        return text.strip() if self.rule == "exact" else text.strip().lower()

    def point(self, result):
        return float(result.meaning == result.item.truth)
'''
YAML = """_target_: someones_shapes.Shapes
name: shapes
label: Shapes
data_dir: ${benchmark_dir:shapes}
parquet: "*.parquet"
split: test
images: images
suffix: Answer with a word.
max_new_tokens: 8
rule: exact
rules: {exact: exact match, any_case: match in any case}
version: 1
source: drawn by hand
downloads:
  shapes.jsonl: {name: shapes, url: "https://example.org/shapes.jsonl"}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs and the benchmark's files. The workers answer differently for each run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("TINYVLM_TRUST", "")
    (tmp_path / "conf/benchmark").mkdir(parents=True)
    (tmp_path / "conf/benchmark/shapes.yaml").write_text(YAML)
    (tmp_path / "someones_shapes.py").write_text(MODULE)
    (tmp_path / "data/eval/shapes/images").mkdir(parents=True)
    records = [{"id": f"s{n}", "image": f"{n}.png", "shape": "disc"} for n in range(2)]
    (tmp_path / "data/eval/shapes/shapes.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    for number in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"data/eval/shapes/images/{number}.png")
    given = [{"question_id": "s0", "text": "disc"}, {"question_id": "s1", "text": "Disc"}]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in given))
    results = Results(tmp_path / "results")
    results.write_stage(results.stage_dir("f"), Stage("finetune", [], {}, {}))
    results.mark_done(results.stage_dir("f"))
    for name in ("one", "two"):
        Results.write_run(Run(results.run_dir(name), name, "l", "v", "c", "d", "r", 0, {"finetune": "f"}, {}))

    def answer(_: str, job_folder: Path, **__: object) -> None:
        for task in EvalJob.read(job_folder).tasks:
            text = "disc" if "/one/" in task.folder else "cube"
            questions = build(task.benchmark, Benchmark).questions
            given = [Answer(q.question_id, q.text, text, q.key) for q in questions]
            append_answers(Path(task.folder), 0, given, model_id="r", max_new_tokens=8)

    monkeypatch.setattr(workers, "run", answer)
    return tmp_path


def run(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words.split()) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def assert_shown(path: Path, *, with_images: bool) -> None:
    """Assert that the page at `path` shows the benchmark's questions."""
    data = json.dumps(data_of(path.read_text(encoding="utf-8")))
    assert "Which?" in data and ("data:image/webp;base64," in data) is with_images


def test_it_appears_in_every_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "complete" in run("data check benchmark=shapes", capsys)
    shown = run("score benchmark=shapes data_dir=data/eval/shapes answers=answers.jsonl rule=all output=s.json", capsys)
    assert "accuracy 50.00" in shown and "the rules differ on 1 questions" in shown and "match in any case" in shown
    assert json.loads((folder / "s.json").read_text())["differences"] == {"s1": {"exact": 0, "any_case": 1}}
    shown = run("eval run=all benchmark=shapes blind=true", capsys)
    assert "100.0" in shown and "shapes" in shown
    (row, *_) = [row for row in Results(folder / "results").scores() if row.run == "one"]
    assert (row.value, row.follows, row.interval) == (100, "exact match", [100, 100])
    assert "shapes" in run("report table=runs", capsys)
    run("report table=runs format=html output=out", capsys)
    assert_shown(folder / "out/report.html", with_images=True)


def test_its_module_is_imported_only_if_it_is_trusted(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("eval run=all benchmark=shapes", capsys)
    (folder / "conf/benchmark/shapes.yaml").unlink()
    for words, is_shown in (("", False), (" trust=someones_shapes", True)):
        monkeypatch.setenv("TINYVLM_TRUST", "")
        run(f"report table=runs format=html output=out{words}", capsys)
        assert_shown(folder / "out/report.html", with_images=is_shown)
