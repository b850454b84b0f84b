"use strict";
// Sorting: a button in each header of a table of class "sortable"; a cell's data-sort, where it has one, is what counts.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const down = header.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[column];
        const text = cell.dataset.sort ?? cell.textContent.trim();
        return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
      };
      const compare = (a, b) => {
        // what is absent comes last, whichever way
        if (a === "" || b === "") return (a === "") - (b === "") || 0;
        const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
        return down ? -order : order;
      };
      const rows = [...body.rows].map((row) => [key(row), row]);
      rows.sort(([a], [b]) => compare(a, b));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
// A filter above the table of candidates.
for (const field of document.querySelectorAll("input[data-filter]")) {
  const table = document.getElementById(field.dataset.filter);
  const said = document.getElementById(field.getAttribute("aria-describedby"));
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
      shown += !row.hidden;
    }
    said.textContent = wanted ? `${shown} of ${table.tBodies[0].rows.length} shown` : "";
  });
}
// A candidate's page gets the focus when it is opened, so that a screen reader begins there.
const focusPage = () => {
  const page = location.hash.startsWith("#candidate-") && document.getElementById(location.hash.slice(1));
  if (page) page.focus();
  else window.dispatchEvent(new Event("resize"));
};
window.addEventListener("hashchange", focusPage);
focusPage();
// Paper has no summary to click.
let opened = [];
window.addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  opened.forEach((d) => (d.open = true));
});
window.addEventListener("afterprint", () => opened.forEach((d) => (d.open = false)));
