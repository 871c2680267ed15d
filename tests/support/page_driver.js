// Drives the page in a browser, and writes what it saw into the page as JSON: see test_page_in_chromium.py.
const saw = { errors, violations: 0 };
const all = (selector) => [...document.querySelectorAll(selector)];
const change = (element, value) => {
  element.value = value;
  for (const kind of ["input", "change"]) element.dispatchEvent(new Event(kind, { bubbles: true }));
};
const press = (key) => (document.activeElement ?? document.body).dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const names = () => all("table.sortable tbody").filter((block) => block.checkVisibility())
  .map((block) => block.rows[0].cells[0].textContent);
const cards = () => all(".card").map((card) => card.querySelector(".quiet").textContent.split(",")[0].replace("question ", ""));

/** Move the pointer to the middle of an element of a chart, and return the text of the tip that is shown. */
async function hover(host, selector) {
  const svg = host.querySelector("svg:not([aria-hidden])");
  svg.scrollIntoView();
  const box = svg.querySelector(selector).getBoundingClientRect();
  const place = { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true, pointerType: "mouse" };
  for (const kind of ["pointerenter", "pointermove"]) svg.dispatchEvent(new PointerEvent(kind, place));
  await wait(100);
  return all("svg [aria-label=tip]").map((tip) => tip.textContent).join("");
}

async function drive() {
  document.addEventListener("securitypolicyviolation", () => { saw.violations += 1; });
  while (document.documentElement.dataset.state !== "ready") await wait(20);

  const gqa = all("button.sort").find((button) => button.textContent === "GQA");
  gqa.click();
  saw.descending = names();
  gqa.click();
  saw.ascending = names();
  const words = document.querySelector(".filters input");
  const select = (title) => all(".filters label").find((label) => label.textContent.startsWith(title)).querySelector("select");
  change(select("LLM"), "phi2");
  saw.ofLlm = names();
  change(select("vision"), "siglip");
  saw.ofGroups = names();
  change(select("vision"), "all");
  change(words, "small");
  saw.ofBoth = names();
  saw.shown = document.querySelector(".shown").textContent;
  change(select("LLM"), "all");
  saw.ofWords = names();
  change(words, "");
  saw.cellTip = all("tr.ours td[title]")[0].title;

  saw.panels = all(".forest figcaption").map((caption) => caption.textContent);
  saw.forestTip = await hover(document.querySelector(".forest"), "[aria-label=dot] > *");
  saw.numbers = all("table.numbers tbody tr").map((line) => line.cells[1].textContent);
  saw.scatterTip = await hover(document.getElementById("scatter"), "[aria-label=dot] > *");
  saw.curveTip = await hover(document.querySelector(".curves"), "[aria-label=line] > *");
  const points = () => document.querySelectorAll("#scatter [aria-label=dot] > *").length;
  const key = document.querySelector("#costs .legend button");
  saw.points = [points()];
  key.click();
  saw.points.push(points(), key.getAttribute("aria-pressed"));
  key.click();

  change(document.getElementById("benchmark"), all("#benchmark option").find((option) => option.textContent === "MM-Vet").value);
  change(document.getElementById("a"), "three");
  change(document.getElementById("b"), "one");
  saw.cards = cards().sort();
  saw.card = all(".card").find((card) => card.textContent.includes("v1_0")).innerText;
  const kinds = {};
  for (const kind of ["right", "wrong", "differ", "gained", "lost", "both"]) {
    change(document.getElementById("show"), kind);
    kinds[kind] = cards().sort();
  }
  saw.kinds = kinds;
  change(document.getElementById("show"), "all");
  change(document.getElementById("category"), "ocr");
  saw.ofCategory = cards();
  change(document.getElementById("category"), "");
  change(document.getElementById("words"), "v1_1");
  saw.ofSearch = cards();
  change(document.getElementById("words"), "");
  change(document.getElementById("b"), "");
  saw.ofOneRun = all(".card")[0].querySelectorAll("tbody tr").length;
  saw.show = all("#show option").map((option) => option.value);
  const focused = () => all(".card").indexOf(document.activeElement);
  saw.focus = [];
  for (const pressed of ["j", "j", "ArrowUp", "k", "ArrowDown"]) {
    press(pressed);
    saw.focus.push(focused());
  }
  saw.outline = getComputedStyle(document.activeElement).outlineStyle;
  press("/");
  saw.search = document.activeElement.id;

  change(document.getElementById("config-a"), "three");
  change(document.getElementById("config-b"), "one");
  saw.settings = all("#settings tr").map((line) => [...line.cells].map((cell) => cell.textContent));
  document.getElementById("same").click();
  saw.allSettings = all("#settings tr").length;
  saw.commands = document.getElementById("commands").textContent;
  saw.origins = document.getElementById("origins").innerText;

  const theme = document.getElementById("theme");
  const background = () => getComputedStyle(document.body).backgroundColor;
  saw.themes = [background()];
  theme.click();
  saw.themes.push(background());
  saw.small = [...new Set(all("body *").filter((one) => one.checkVisibility() && one.textContent.trim() && !one.matches("script, style"))
    .map((one) => parseFloat(getComputedStyle(one).fontSize)).filter((size) => size < 11))];

  const image = document.querySelector(".card img");
  await image.decode();
  saw.image = [image.naturalWidth, image.naturalHeight, image.alt];
  saw.loaded = performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !name.startsWith("data:"));
  saw.hacked = window.hacked ?? null;
  saw.fetched = await fetch("https://example.org/").then(() => "loaded", () => "refused");
  await wait(100); // the violation is reported after the refusal
}

drive().catch((error) => errors.push(`${error} ${error.stack}`)).finally(() => {
  document.body.append(Object.assign(document.createElement("pre"), { id: "saw", textContent: JSON.stringify(saw) }));
});
