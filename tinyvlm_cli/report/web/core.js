// Data of the page, helpers for elements, and what the charts share: colours, symbols and the legend.
// Texts from the results folder are only ever set as text, never as HTML.
"use strict";

const byId = (id) => document.getElementById(id);
const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const short = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}\u2026` : text);

/** Return an element. content: texts and elements. */
function element(name, attributes = {}, ...content) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else made.setAttribute(key, value);
  }
  made.append(...content);
  return made;
}

/** Return a table row. cells: pairs of content and class. */
const row = (...cells) => element("tr", {}, ...cells.map(([content, kind]) => element("td", { class: kind }, content)));

/** Fill a select element with [value, text] pairs. */
function options(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) => new Option(text, value, false, value === chosen)));
}

/** Return the data of the page: base64 of compressed JSON. */
async function readData() {
  const bytes = Uint8Array.from(atob(byId("data").textContent), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

/** The theme of the system, until the button chooses the other one. */
function startTheme() {
  const [root, button] = [document.documentElement, byId("theme")];
  const system = matchMedia("(prefers-color-scheme: dark)");
  const current = () => root.dataset.theme ?? (system.matches ? "dark" : "light");
  const name = () => { button.textContent = current() === "dark" ? "light mode" : "dark mode"; };
  button.addEventListener("click", () => {
    root.dataset.theme = current() === "dark" ? "light" : "dark";
    name();
  });
  system.addEventListener("change", name);
  name();
}

/** The looks of the models: a colour and a symbol that are the same in all charts. */
class Looks {
  constructor(data) {
    Object.assign(this, { models: data.models, modelOf: data.model_of, symbols: data.symbols, dashes: data.dashes });
    this.hidden = new Set();
    this.listeners = [];
  }

  colour(model) {
    const look = Object.hasOwn(this.models, model) ? this.models[model] : null;
    return look ? `var(--c${look[0]})` : "var(--quiet)";
  }

  symbol(model) { return this.symbols[this.style(model)]; }

  style(model) { return Object.hasOwn(this.models, model) ? this.models[model][1] : 0; }

  /** Return the model of these runs, or "" if several models share them. */
  ofRuns(runs) {
    const models = new Set(runs.map((run) => this.modelOf[run]));
    return models.size === 1 ? [...models][0] : "";
  }

  /** Return whether a chart shows these models, of which at least one must not be hidden. */
  isShown(models) { return models.some((model) => !this.hidden.has(model)); }

  /** Return a small drawing of a model's line and symbol. */
  key(model) {
    const svg = d3.create("svg").attr("width", 26).attr("height", 12).attr("viewBox", "-13 -6 26 12").attr("aria-hidden", "true");
    svg.append("line").attr("x1", -13).attr("x2", 13).attr("stroke-width", 2).attr("stroke-dasharray", this.dashes[this.style(model)])
      .style("stroke", this.colour(model));
    const shape = d3[`symbol${this.symbol(model)[0].toUpperCase()}${this.symbol(model).slice(1)}`];
    svg.append("path").attr("d", d3.symbol(shape, 45)()).style("fill", this.colour(model));
    return svg.node();
  }

  /** Fill an element with a button for each model that hides and shows it in all charts. */
  legend(host) {
    const buttons = Object.keys(this.models).map((model) => {
      const button = element("button", { type: "button", "aria-pressed": "true" }, this.key(model), model);
      button.addEventListener("click", () => {
        if (!this.hidden.delete(model)) this.hidden.add(model);
        for (const listener of this.listeners) listener();
      });
      this.listeners.push(() => button.setAttribute("aria-pressed", String(!this.hidden.has(model))));
      return button;
    });
    host.replaceChildren(...buttons);
  }
}
