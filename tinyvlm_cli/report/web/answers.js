// The answer browser: questions with the answers of one or two runs, what the scorer read, and the ground truth.

const SHOWN = {
  all: ["all", () => true],
  right: ["a is right", (a) => a >= 0.5],
  wrong: ["a is wrong", (a) => a < 0.5],
  differ: ["a and b differ in score", (a, b) => a !== b],
  gained: ["only b is right", (a, b) => a < 0.5 && b >= 0.5],
  lost: ["only a is right", (a, b) => a >= 0.5 && b < 0.5],
  both: ["both are wrong", (a, b) => a < 0.5 && b < 0.5],
};
const OF_TWO = ["differ", "gained", "lost", "both"]; // these need a second run

/** Return the card of a question. places: of the runs whose answers are shown. */
function card(question, sample, places, data) {
  const answers = places.map((place) => {
    const [text, read] = question.texts[question.given[place]] ?? ["(no answer)", ""];
    const score = question.scores[place];
    const grade = score === null ? ["-", ""] : [d3.format(".2~f")(score), score >= 0.5 ? "right" : "wrong"];
    return row([sample.runs[place], "run"], [text, "answer"], [read, "read"], grade);
  });
  const heads = ["run", "answer", "scorer read", "score"].map((title) => element("th", { scope: "col" }, title));
  const body = element("div", {},
    element("p", { class: "quiet" }, `question ${question.key}${question.category ? `, category ${question.category}` : ""}`),
    element("p", { class: "prompt" }, question.prompt),
    element("div", { class: "wide" }, element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...answers))),
    element("p", { class: "truth" }, question.truth ? "ground truth: " : "ground truth: not available here", element("b", {}, question.truth)));
  const picture = question.picture < 0 ? [] : [element("img", { src: data.pictures[question.picture], alt: `image of question ${question.key}` })];
  return element("article", { class: picture.length ? "card" : "card bare", tabindex: "-1" }, ...picture, body);
}

function startAnswers(data) {
  if (!byId("answers")) return;
  const [a, b, benchmark, category, show, words, cards] = ["a", "b", "benchmark", "category", "show", "words", "cards"].map(byId);
  const runs = [...new Set(data.answers.flatMap((sample) => sample.runs))];
  options(a, runs.map((run) => [run, run]), runs[0]);
  options(b, [["", "none"], ...runs.map((run) => [run, run])], runs[1] ?? "");
  options(benchmark, data.answers.map((sample, place) => [String(place), sample.label]));
  const sampled = () => data.answers[Number(benchmark.value)];

  const update = () => {
    const sample = sampled();
    const places = [a.value, b.value].filter(Boolean).map((run) => sample.runs.indexOf(run));
    const wanted = words.value.toLowerCase().split(/\s+/);
    const test = SHOWN[show.value][1];
    const known = places.includes(-1) ? [] : sample.questions.filter((one) => places.some((place) => one.given[place] >= 0));
    const found = known.filter((one) => {
      const text = [one.key, one.prompt, one.truth, ...places.map((place) => (one.texts[one.given[place]] ?? [""])[0])].join(" ").toLowerCase();
      return (!category.value || one.category === category.value) && wanted.every((word) => text.includes(word))
        && (show.value === "all" || (places.every((place) => one.scores[place] !== null) && test(...places.map((place) => one.scores[place]))));
    });
    byId("count").textContent = places.includes(-1)
      ? `${sample.runs.includes(a.value) ? b.value : a.value} was not evaluated on ${sample.label}.`
      : `${found.length} of ${plural(known.length, "question")} in this page.`;
    byId("sampled").textContent = `${sample.label}: ${plural(sample.questions.length, "question")} of ${sample.num_questions.toLocaleString("en")}`
      + `, drawn at random. Runs have different scores on ${sample.num_differing.toLocaleString("en")} of all questions and `
      + `${sample.questions.filter((one) => new Set(one.scores.filter((score) => score !== null)).size > 1).length} of those in this page, `
      + "so rates of right answers in this page are not scores.";
    cards.replaceChildren(...found.map((one) => card(one, sample, places, data)));
  };
  const choose = () => { // the categories and choices that the benchmark and the runs have
    const categories = [...new Set(sampled().questions.map((one) => one.category))].filter(Boolean).sort();
    options(category, [["", "all"], ...categories.map((name) => [name, name])], category.value);
    const kinds = Object.keys(SHOWN).filter((kind) => b.value || !OF_TWO.includes(kind));
    options(show, kinds.map((kind) => [kind, SHOWN[kind][0]]), kinds.includes(show.value) ? show.value : "all");
    update();
  };
  for (const select of [a, b, benchmark]) select.addEventListener("change", choose);
  for (const select of [category, show]) select.addEventListener("change", update);
  words.addEventListener("input", update);
  choose();
  startKeys(cards, words);
}

/** Move between cards with j and k or the arrow keys, and to the search field with a slash. */
function startKeys(cards, words) {
  addEventListener("keydown", (event) => {
    const focused = document.activeElement;
    if (event.ctrlKey || event.metaKey || event.altKey || focused?.matches("input, select, textarea")) return;
    const all = [...cards.children];
    const place = all.indexOf(focused?.closest?.(".card"));
    const isArrow = event.key.startsWith("Arrow");
    const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
    if (event.key === "/") words.focus();
    else if (step && all.length && (!isArrow || place >= 0)) { // elsewhere, arrow keys scroll the page
      const next = all[place < 0 ? 0 : Math.min(Math.max(place + step, 0), all.length - 1)];
      next.focus({ preventScroll: true });
      next.scrollIntoView({ block: "nearest" });
    } else return;
    event.preventDefault();
  });
}
