"""The page in a browser: a script drives a copy of it and writes what it saw into the page, which Chromium prints."""

import html
import json
import re
import shutil
import subprocess
from typing import Any

import pytest
from support.page_run import write_mmvet, write_run
from support.score_rows import built, row

from tinyvlm_cli.report.page import page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CATCH = """<script>
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
console.error = (...words) => errors.push(words.join(" "));
</script>"""
DRIVE = """<script>
const saw = {errors};
const all = (selector) => [...document.querySelectorAll(selector)];
const change = (element, value) => {
  element.value = value;
  for (const kind of ["input", "change"]) element.dispatchEvent(new Event(kind, {bubbles: true}));
};
const names = () => all("table.sortable tbody").filter((block) => block.checkVisibility())
  .map((block) => block.rows[0].cells[0].textContent);
const gqa = all("button.sort").find((button) => button.textContent === "GQA");
gqa.click();
saw.descending = names();
gqa.click();
saw.ascending = names();
const [words, [llm, vision]] = [document.querySelector(".filters input"), all(".filters select")];
change(llm, "phi2");
saw.of_llm = names();
change(vision, "siglip");
saw.of_groups = names();
change(vision, "all");
change(words, "small");
saw.of_both = names();
saw.shown = document.querySelector(".shown").textContent;
change(llm, "all");
saw.of_words = names();
change(document.getElementById("a"), "three");
change(document.getElementById("b"), "one");
saw.settings = all("#settings tr").map((line) => [...line.cells].map((cell) => cell.textContent));
saw.questions = all("#questions tr").map((line) => [...line.cells].map((cell) => cell.textContent));
const image = document.querySelector("#questions img");
(image ? image.decode() : Promise.reject("no image")).catch((error) => errors.push(String(error))).finally(() => {
  saw.image = image && [image.naturalWidth, image.naturalHeight, image.alt];
  document.body.append(Object.assign(document.createElement("pre"), {id: "saw", textContent: JSON.stringify(saw)}));
});
</script>"""


@pytest.fixture(scope="module")
def saw(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what the script found in a page of three runs."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium, which is not installed here")
    folder = tmp_path_factory.mktemp("page")
    node = write_mmvet(folder / "mm-vet", {"v1_0": "a.png"}, there=["a.png"])
    runs = [
        write_run(folder, name, {"v1_0": score}, says=f"{name} says </script>", benchmark="mmvet", node=node)
        for name, score in (("one", 1.0), ("two", 1.0), ("three", 0.25))
    ]
    rows = [
        row(run="one", llm="phi2", vision="clip", name="phi2-small", value=50.0),
        row(run="two", llm="phi2", vision="siglip", name="phi2-large", value=70.0),
        row(run="three", llm="tinyllama", vision="siglip", name="tinyllama-small", value=60.0),
    ]
    text = page([built("variants", rows, published=[])], runs, charts=[])
    driven = folder / "page.html"
    driven.write_text(text.replace("<head>", f"<head>{CATCH}").replace("</body>", f"{DRIVE}</body>"), encoding="utf-8")
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [CHROMIUM, *words, profile, driven.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    found = re.search(r'<pre id="saw">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    return json.loads(html.unescape(found[1]))


@pytest.mark.e2e
def test_a_click_sorts_and_another_reverses_the_order(saw: Any) -> None:
    order = ["phi2-large", "tinyllama-small", "phi2-small"]
    assert (saw["descending"], saw["ascending"]) == (order, order[::-1])


@pytest.mark.e2e
def test_a_row_is_shown_where_filters_and_words_agree(saw: Any) -> None:
    assert set(saw["of_llm"]) == {"phi2-small", "phi2-large"}
    assert saw["of_groups"] == ["phi2-large"]
    assert saw["of_both"] == ["phi2-small"] and saw["shown"] == "1 of 3 shown"
    assert set(saw["of_words"]) == {"phi2-small", "tinyllama-small"}


@pytest.mark.e2e
def test_two_runs_have_their_settings_and_a_disagreement_with_its_image(saw: Any) -> None:
    assert saw["settings"] == [["llm.name", "three", "one"]]
    assert saw["questions"] == [["", "What is v1_0?", "0.25", "three says </script>", "1", "one says </script>"]]
    assert saw["image"] == [112, 84, "image of question v1_0"]
    assert saw["errors"] == []
