// Sorting and filtering of the tables of scores.

function startTables() {
  for (const table of document.querySelectorAll("table.sortable")) {
    startSorting(table);
    startFilters(table, table.closest("div").previousElementSibling);
  }
}

/** Sort the rows by a column when its header is clicked: first from high to low. */
function startSorting(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => head.querySelector("button").addEventListener("click", () => {
    const isUp = head.getAttribute("aria-sort") === "descending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", isUp ? "ascending" : "descending");
    const key = (block) => {
      const cell = block.rows[0].cells[place];
      return cell.classList.contains("head") ? cell.textContent : Number(cell.dataset.value ?? NaN);
    };
    const order = (one, other) => {
      const [x, y] = [key(one), key(other)];
      if (typeof x === "string") return x.localeCompare(y) * (isUp ? 1 : -1);
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // rows without a score come last
      return (x - y) * (isUp ? 1 : -1);
    };
    table.append(...[...table.tBodies].sort(order));
  }));
}

/** Show the rows that contain all words and have the selected values. */
function startFilters(table, filters) {
  const blocks = [...table.tBodies];
  const [words, kind] = [filters.querySelector("input"), filters.querySelector("select.kind")];
  const selects = [...filters.querySelectorAll("select[data-place]")];
  const update = () => {
    const wanted = words.value.toLowerCase().split(/\s+/);
    for (const block of blocks) {
      const text = block.textContent.toLowerCase();
      const cell = (select) => block.rows[0].cells[select.dataset.place].textContent;
      block.hidden = !(wanted.every((word) => text.includes(word))
        && (!kind?.value || kind.value === block.dataset.kind)
        && selects.every((select) => select.selectedIndex === 0 || cell(select) === select.value)); // 0: all
    }
    const shown = blocks.filter((block) => !block.hidden).length;
    filters.querySelector(".shown").textContent = `${shown} of ${blocks.length} rows shown`;
  };
  filters.addEventListener("input", update);
  update();
}
