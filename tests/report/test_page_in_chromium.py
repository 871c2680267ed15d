"""The page in a browser: a script drives a copy of it and writes what it saw into the page, which Chromium prints."""

import base64
import hashlib
import html
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.answered_runs import write_run as write_answered
from support.page_run import write_mmvet, write_run
from support.score_rows import PAPER, table

from tinyvlm_cli.report.curves import CURVES, Line
from tinyvlm_cli.report.page import Content, page
from tinyvlm_cli.report.scatter import estimates
from tinyvlm_cli.report.scores import all_scores
from tinyvlm_cli.report.tables import build
from tinyvlm_cli.results.folder import Results

pytestmark = pytest.mark.e2e
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = Path(__file__).parents[1] / "support/page_driver.js"
CATCH = """const errors = [];
addEventListener("error", (event) => errors.push(event.message));
addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
console.error = (...words) => errors.push(words.join(" "));"""
HOSTILE = "<img src=x onerror='hacked=1'></script><script>hacked=2</script>"


def content(folder: Path) -> Content:
    """Return the content of a page with three runs, of which one has a hostile name and all have hostile answers."""
    node = write_mmvet(folder / "mm-vet", {f"v1_{number}": "a.png" for number in range(4)}, there=["a.png"])
    file = folder / "mm-vet/mm-vet.json"
    items = json.loads(file.read_text("utf-8"))
    items["v1_3"]["capability"] = ["ocr"]
    file.write_text(json.dumps(items), encoding="utf-8")
    results = Results(folder / "results")
    groups = {
        "one": ("phi2", "clip", "small"),
        "two": ("phi2", "siglip", f"large{HOSTILE}"),
        "three": ("tinyllama", "siglip", "small"),
    }
    levels = {"one": 0.5, "two": 0.7, "three": 0.6}
    runs = []
    for name, (llm, vision, size) in groups.items():
        fixed = {"connector": "mlp", "data": "llava15", "recipe": "base", "name": f"{llm}-{size}"}
        write_answered(results.root, name, {"gqa": levels[name]}, llm=llm, vision=vision, **fixed)
        scores = {"v1_0": float(name != "three"), "v1_1": 1.0, "v1_2": 0.0, "v1_3": float(name == "three")}
        write_run(results.root / "runs", name, scores, says=f"{name} {HOSTILE}", benchmark="mmvet", node=node)
        made = {"command": f"tinyvlm train llm={llm}", "commit": "abc+", "time": "2026-11-01"}
        runs.append(replace(results.read_run(results.run_dir(name)), made_with=made))
    sheet = build(
        "variants", table("variants", published=[], against={"llm": "tinyllama"}),
        all_scores(results.scores(), PAPER), results,
    )  # fmt: skip
    costs = {name: {"gpu_hours": 10.0 * level} for name, level in levels.items()}
    lines = [Line((name,), list(range(1, 11)), [3.0 - 0.1 * step for step in range(10)]) for name in levels]
    return Content(
        sheets=[sheet], runs=runs, results=results, labels={"gqa": "GQA", "mmvet": "MM-Vet"},
        models=estimates(sheet.records, runs, results, costs),
        curves={CURVES[0]: {"finetune": lines}},
    )  # fmt: skip


@pytest.fixture(scope="module")
def saw(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what the script found in the page."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium, which is not installed here")
    folder = tmp_path_factory.mktemp("page")
    text = page(content(folder))
    driver = DRIVER.read_text("utf-8")
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in (CATCH, driver)]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    text = text.replace("script-src ", f"script-src {allowed} ", 1)
    text = text.replace("<title>", f"<script>{CATCH}</script><title>", 1)
    driven = folder / "page.html"
    driven.write_text(text.replace("</body>", f"<script>{driver}</script></body>"), encoding="utf-8")
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
    profile = [f"--user-data-dir={folder / 'profile'}", "--window-size=1300,1000"]
    done = subprocess.run(
        [CHROMIUM, *words, *profile, driven.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    found = re.search(r'<pre id="saw">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    return {**json.loads(html.unescape(found[1])), "folder": folder}


def test_a_click_sorts_and_another_reverses_the_order(saw: Any) -> None:
    order = [f"phi2-large{HOSTILE}", "tinyllama-small", "phi2-small"]
    assert (saw["descending"], saw["ascending"]) == (order, order[::-1])


def test_a_row_is_shown_where_filters_and_words_agree(saw: Any) -> None:
    assert set(saw["ofLlm"]) == {"phi2-small", f"phi2-large{HOSTILE}"}
    assert saw["ofGroups"] == [f"phi2-large{HOSTILE}"]
    assert saw["ofBoth"] == ["phi2-small"] and saw["shown"] == "1 of 3 rows shown"
    assert set(saw["ofWords"]) == {"phi2-small", "tinyllama-small"}


def test_hovering_shows_values_and_numbers_of_questions(saw: Any) -> None:
    assert "n = 800" in saw["cellTip"]
    assert saw["panels"] == ["GQA n = 800"] and saw["numbers"] == ["phi2 - tinyllama"]
    for text in ("n = 800 questions", "95% interval", "Holm", "percentage points"):
        assert text in saw["forestTip"]
    for text in ("training GPU-hours", "n = 800", "the Pareto front"):
        assert text in saw["scatterTip"]
    assert re.search(r"step \d", saw["curveTip"])


def test_a_click_in_the_legend_hides_a_model(saw: Any) -> None:
    assert saw["points"] == [3, 2, "false"]


def test_the_answer_browser_filters_by_result_category_and_words(saw: Any) -> None:
    assert saw["cards"] == ["v1_0", "v1_1", "v1_2", "v1_3"]
    for text in ("What is v1_0?", f"three {HOSTILE}", f"one {HOSTILE}", "a truth", "category rec"):
        assert text in saw["card"]
    assert saw["kinds"] == {
        "right": ["v1_1", "v1_3"], "wrong": ["v1_0", "v1_2"], "differ": ["v1_0", "v1_3"], "gained": ["v1_0"],
        "lost": ["v1_3"], "both": ["v1_2"],
    }  # fmt: skip
    assert (saw["ofCategory"], saw["ofSearch"]) == (["v1_3"], ["v1_1"])
    assert saw["ofOneRun"] == 1 and saw["show"] == ["all", "right", "wrong"]
    assert saw["image"] == [160, 120, saw["image"][2]] and saw["image"][2].startswith("image of question v1_")


def test_keys_move_between_questions_with_a_visible_focus(saw: Any) -> None:
    assert saw["focus"] == [0, 1, 0, 0, 1]
    assert saw["outline"] == "solid" and saw["search"] == "words"


def test_two_runs_have_their_different_settings(saw: Any) -> None:
    assert ["llm.name", "three", "one"] in saw["settings"]
    assert saw["allSettings"] > len(saw["settings"])


def test_provenance_has_the_commands_of_a_table(saw: Any) -> None:
    root = shlex.quote(f"results_dir={saw['folder']}/results")
    assert saw["commands"].splitlines() == [
        "# tinyvlm, commit abc, uncommitted changes",
        *(f"tinyvlm train llm={llm} {root}" for llm in ("phi2", "tinyllama")),
        *(f"tinyvlm eval run={run} benchmark=gqa {root}" for run in ("one", "three", "two")),
        f"tinyvlm report table=variants {root}",
    ]
    assert "2026-11-01" in saw["origins"]


def test_the_button_changes_the_theme_and_no_text_is_small(saw: Any) -> None:
    assert saw["themes"] == ["rgb(255, 255, 255)", "rgb(22, 24, 28)"]
    assert saw["small"] == []


def test_nothing_is_loaded_and_no_foreign_script_runs(saw: Any) -> None:
    assert (saw["errors"], saw["loaded"], saw["hacked"]) == ([], [], None)
    assert saw["fetched"] == "refused" and saw["violations"] == 1  # only that of the test
