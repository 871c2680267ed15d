// Charts, drawn with Observable Plot: differences (forest plots), scores against costs, and curves over steps.

const FONT = { fontSize: "12px", fontFamily: "inherit", background: "none", color: "var(--text)", overflow: "visible" };
const TIP = { fill: "var(--back)", stroke: "var(--line)", textColor: "var(--text)", fontSize: 12, lineWidth: 34, textPadding: 8 };
const signed = (value) => `${value < 0 ? "\u2212" : "+"}${Math.abs(value).toFixed(1)}`;
const compact = (value) => (value >= 10000 ? d3.format(".3~s")(value).replace("G", "B") : d3.format(".4~g")(value));
const pValue = (p) => (p < 0.001 ? "< 0.001" : p.toFixed(3));

/** Return a tip mark that shows `title` of the datum nearest to the pointer. */
const tip = (data, channels, title) => Plot.tip(data, Plot.pointer({ ...channels, ...TIP, title, maxRadius: 60 }));

/** Return a figure with a caption. */
const panel = (title, detail, chart) => element("figure", { class: "panel" },
  element("figcaption", {}, title, " ", element("span", { class: "quiet" }, detail)), chart);

/** Draw the differences of one ablation: a panel for each benchmark, with a row for each pair of models. */
function drawForest(host, found, looks) {
  const name = (one) => (one.context ? `${one.label} | ${one.context}` : one.label);
  const rows = [...new Set([...d3.group(found, (one) => one.label).values()].flat().map(name))]; // equal choices together
  const width = Math.min(host.clientWidth, 460) - 8;
  const margin = Math.min(0.48 * width, 12 + 6.4 * Math.max(...rows.map((text) => Math.min(text.length, 34))));
  const panels = d3.group(found, (one) => one.column);
  host.replaceChildren(...[...panels].map(([column, members]) => {
    const [low, high] = [Math.min(0, d3.min(members, (one) => one.low)), Math.max(0, d3.max(members, (one) => one.high))];
    const pad = 0.04 * (high - low) || 1; // small benchmarks have wide intervals, so each benchmark has its own axis
    const marks = [
      Plot.gridX({ stroke: "var(--line)", strokeOpacity: 1 }),
      Plot.ruleX([0], { stroke: "var(--text)" }),
      Plot.link(members, { x1: "low", x2: "high", y1: name, y2: name, stroke: (one) => looks.colour(one.model), strokeWidth: 2 }),
      Plot.dot(members, {
        x: "change", y: name, r: 4.5, symbol: (one) => looks.symbol(one.model), strokeWidth: 2,
        stroke: (one) => looks.colour(one.model), fill: (one) => (one.verdict ? looks.colour(one.model) : "var(--back)"),
      }),
      tip(members, { x: "change", y: name }, (one) => [
        `${one.b}`, `minus ${one.a}`,
        `${column}: ${one.from.toFixed(1)} \u2192 ${one.to.toFixed(1)}, ${signed(one.change)} ${one.unit}`,
        `95% interval ${signed(one.low)} to ${signed(one.high)}`,
        `p ${pValue(one.p)}, Holm ${pValue(one.holm)}`,
        `n = ${one.n.toLocaleString("en")} questions, ${plural(one.seeds, "seed")}`,
      ].join("\n")),
    ];
    const chart = Plot.plot({
      width, marginLeft: margin, marginTop: 4, marginBottom: 34, height: 42 + 21 * rows.length, style: FONT,
      ariaLabel: `Differences on ${column}`,
      x: { domain: [low - pad, high + pad], label: members[0].unit, labelAnchor: "center", labelArrow: "none", ticks: 5 },
      y: { domain: rows, label: null, tickSize: 0, tickFormat: (text) => short(text, Math.floor(margin / 6.2)) },
      marks,
    });
    const questions = d3.max(members, (one) => one.n).toLocaleString("en");
    return panel(column, `n = ${questions}`, chart);
  }));
}

/** Fill a table with the differences of one ablation. */
function fillDifferences(table, found) {
  const titles = ["benchmark", "difference", "a", "b", "b - a", "95% interval", "p", "Holm", "questions", "seeds"];
  const heads = titles.map((title) => element("th", { scope: "col", class: title === "benchmark" || title === "difference" ? "head" : "" }, title));
  const rows = found.map((one) => row(
    [one.column, "head"], [one.context ? `${one.label} | ${one.context}` : one.label, "head"], [one.from.toFixed(1), ""],
    [one.to.toFixed(1), ""], [signed(one.change), one.verdict], [`${signed(one.low)} to ${signed(one.high)}`, ""],
    [pValue(one.p), ""], [pValue(one.holm), ""], [one.n.toLocaleString("en"), ""], [String(one.seeds), ""],
  ));
  table.replaceChildren(element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows));
}

/**
 * Return the points from cheap to expensive with their place relative to the Pareto front, as in report/costs.py.
 * A place is beyond noise if the score differs from the best other score at the same or a lower cost by more than both
 * intervals allow.
 */
function pareto(points, higherIsBetter) {
  const sign = higherIsBetter ? -1 : 1;
  const ordered = [...points].sort((one, other) => sign * (one.x - other.x) || other.y - one.y);
  return ordered.map((one) => {
    const rivals = ordered.filter((other) => other !== one && sign * other.x <= sign * one.x);
    const rival = d3.greatest(rivals, (other) => other.y);
    const onFront = !rivals.some((other) => other.y >= one.y && (other.y !== one.y || other.x !== one.x));
    if (!rival) return { ...one, onFront, isBeyond: true };
    const [above, below] = one.y > rival.y ? [one, rival] : [rival, one];
    const isKnown = above.low !== null && below.high !== null;
    return { ...one, onFront, isBeyond: isKnown && above.y - below.y > Math.hypot(above.y - above.low, below.high - below.y) };
  });
}

/** Draw scores on one benchmark against a cost. */
function drawScatter(host, scatter, choice, looks) {
  const cost = scatter.costs[choice.cost];
  const shown = scatter.models
    .filter((one) => Object.hasOwn(one.scores, choice.score) && Object.hasOwn(one.costs, choice.cost) && looks.isShown([one.name]))
    .map((one) => ({ name: one.name, x: one.costs[choice.cost], y: one.scores[choice.score].value, ...one.scores[choice.score] }));
  const points = pareto(shown, cost.higher_is_better);
  const bounded = points.filter((one) => one.low !== null);
  const isLog = choice.log && points.every((one) => one.x > 0);
  const score = scatter.labels[choice.score] ?? choice.score;
  const strength = (one) => (one.isBeyond ? 1 : 0.5);
  host.replaceChildren(Plot.plot({
    width: Math.min(host.clientWidth, 900), height: 420, marginLeft: 52, marginBottom: 42, style: FONT, inset: 12,
    ariaLabel: `${score} against ${cost.label}`,
    x: {
      label: cost.label, labelAnchor: "center", labelArrow: "none", type: isLog ? "log" : "linear", ticks: 6,
      tickFormat: compact, reverse: cost.higher_is_better,
    },
    y: { label: score, labelArrow: "none", ticks: 6 },
    marks: [
      Plot.gridX({ stroke: "var(--line)", strokeOpacity: 1 }), Plot.gridY({ stroke: "var(--line)", strokeOpacity: 1 }),
      Plot.line(points.filter((one) => one.onFront), { x: "x", y: "y", curve: "step-after", stroke: "var(--quiet)", strokeWidth: 1.5 }),
      Plot.link(bounded, {
        x1: "x", x2: "x", y1: "low", y2: "high", stroke: (one) => looks.colour(one.name), strokeWidth: 1.5, strokeOpacity: strength,
      }),
      Plot.dot(points, {
        x: "x", y: "y", r: 5, symbol: (one) => looks.symbol(one.name), stroke: (one) => looks.colour(one.name), strokeWidth: 2,
        fill: (one) => (one.onFront ? looks.colour(one.name) : "var(--back)"), strokeOpacity: strength, fillOpacity: strength,
      }),
      tip(points, { x: "x", y: "y" }, (one) => [
        one.name, `${score}: ${one.y.toFixed(1)}${one.low === null ? "" : ` [${one.low.toFixed(1)}, ${one.high.toFixed(1)}]`}`,
        `${cost.label}: ${compact(one.x)}`, `n = ${one.n.toLocaleString("en")} questions, ${plural(one.num_seeds, "seed")}`,
        `${one.onFront ? "on" : "below"} the Pareto front, ${one.isBeyond ? "beyond noise" : "which may be noise"}`,
      ].join("\n")),
    ],
  }));
}

/** Draw a curve over the steps: a panel for each stage, with a line for each stage folder. */
function drawCurves(host, curve, looks) {
  const panels = curve.panels.map(({ title, lines }) => {
    const shown = lines.filter((line) => looks.isShown(line.runs.map((run) => looks.modelOf[run])));
    const points = shown.flatMap((line) => {
      const model = looks.ofRuns(line.runs);
      const names = line.runs.length > 3 ? [...line.runs.slice(0, 2), `and ${line.runs.length - 2} more runs`] : line.runs;
      return line.steps.map((step, place) => ({ step, value: line.values[place], id: line.runs[0], model, names, style: looks.style(model) }));
    });
    const isLog = curve.scale === "log" && points.every((one) => one.value > 0);
    const [low, high] = d3.extent(points, (one) => one.value);
    const styles = d3.group(points, (one) => one.style); // a dash is a property of a mark, not of a datum
    const isCoarse = d3.max(shown, (line) => line.steps.length) <= 30;
    return panel(title, plural(shown.length, "curve"), Plot.plot({
      width: Math.min(host.clientWidth, 720) - 8, height: 280, marginLeft: 52, marginBottom: 38, style: FONT,
      ariaLabel: `${curve.label} of ${title}`,
      x: { label: "optimizer step", labelAnchor: "center", labelArrow: "none", ticks: 5 },
      y: {
        label: curve.label, labelArrow: "none", type: isLog ? "log" : "linear", zero: curve.name === "throughput",
        domain: !isLog && low === high ? [low - 1, high + 1] : undefined, ticks: 5, tickFormat: isLog ? ".2~r" : compact,
      },
      marks: [
        Plot.gridY({ stroke: "var(--line)", strokeOpacity: 1 }),
        ...[...styles].map(([style, members]) => Plot.line(members, {
          x: "step", y: "value", z: "id", stroke: (one) => looks.colour(one.model), strokeWidth: 1.4, strokeDasharray: looks.dashes[style] || undefined,
        })),
        ...(isCoarse ? [Plot.dot(points, { x: "step", y: "value", r: 2.5, fill: (one) => looks.colour(one.model) })] : []),
        tip(points, { x: "step", y: "value" }, (one) => [...one.names, `step ${one.step.toLocaleString("en")}: ${d3.format(".4~g")(one.value)}`].join("\n")),
      ],
    }));
  });
  host.replaceChildren(...panels);
}

/** Draw all charts, and draw them again when the width of the page or the shown models change. */
function startCharts(data, looks) {
  const costs = byId("costs") && { score: byId("score"), cost: byId("cost"), log: byId("log") };
  const scatter = () => drawScatter(byId("scatter"), data.scatter,
    { score: costs.score.value, cost: costs.cost.value, log: costs.log.checked }, looks);
  if (costs) {
    const scored = Object.keys(data.scatter.labels).filter((name) => data.scatter.models.some((one) => Object.hasOwn(one.scores, name)));
    options(costs.score, scored.map((name) => [name, data.scatter.labels[name]]));
    const values = (key) => data.scatter.models.filter((one) => Object.hasOwn(one.costs, key)).map((one) => one.costs[key]);
    const known = Object.keys(data.scatter.costs).filter((key) => values(key).length);
    options(costs.cost, known.map((key) => [key, data.scatter.costs[key].label]), known.includes("gpu_hours") ? "gpu_hours" : known[0]);
    const scale = () => { costs.log.checked = d3.min(values(costs.cost.value)) > 0 && d3.max(values(costs.cost.value)) > 20 * d3.min(values(costs.cost.value)); };
    costs.cost.addEventListener("change", scale);
    scale();
    for (const input of Object.values(costs)) input.addEventListener("change", scatter);
    looks.legend(byId("costs").querySelector(".legend"));
  }
  if (byId("training")) looks.legend(byId("training").querySelector(".legend"));
  for (const table of document.querySelectorAll("table.numbers")) fillDifferences(table, data.forests[table.dataset.table]);
  const forests = () => {
    for (const host of document.querySelectorAll(".forest")) drawForest(host, data.forests[host.dataset.table], looks);
  };
  const filtered = () => {
    if (costs) scatter();
    for (const host of document.querySelectorAll(".curves")) {
      drawCurves(host, data.curves.find((curve) => curve.name === host.dataset.curve), looks);
    }
  };
  looks.listeners.push(filtered);
  let [width, timer] = [document.body.clientWidth, 0];
  addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (document.body.clientWidth === width) return;
      width = document.body.clientWidth;
      forests();
      filtered();
    }, 150);
  });
  forests();
  filtered();
}
