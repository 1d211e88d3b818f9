"use strict";
// One state for the whole page: which layouts stand out, and what the filters leave. It stands in the address behind a
// question mark, so that a view can be sent to somebody. Names are whatever a run says: they become text, never markup.
const about = JSON.parse(document.getElementById("about").textContent);
const layouts = new Set(about.layouts);
const state = {chosen: [], family: "", section: "", longest: 0};
const views = new Map();
const dark = matchMedia("(prefers-color-scheme: dark)");
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// --- The state, and everything that follows it ---

function change(changes) {
  Object.assign(state, changes);
  const address = new URLSearchParams(state.chosen.map((layout) => ["layout", layout]));
  for (const name of ["family", "section", "longest"]) if (state[name]) address.set(name, state[name]);
  const [anchor] = location.hash.split("?");
  history.replaceState(null, "", `${anchor || "#"}${address.size ? "?" + address : ""}`);
  show();
}

function toggle(layout) {
  const others = state.chosen.filter((name) => name !== layout);
  change({chosen: others.length < state.chosen.length ? others : [...others, layout]});
}

function restore() {
  const address = new URLSearchParams(location.hash.split("?")[1] ?? "");
  const offered = (name, value) => all(`#filter-${name} option`).some((option) => option.value === value) ? value : "";
  state.chosen = address.getAll("layout").filter((layout) => layouts.has(layout));
  state.family = offered("family", address.get("family") ?? "");
  state.section = offered("section", address.get("section") ?? "");
  state.longest = Number(offered("longest", address.get("longest") ?? ""));
  show();
}

const hidden = () => state.family ? about.layouts.filter((name) => !about.families[name]?.includes(state.family)) : [];

function show() {
  const gone = new Set(hidden()), chosen = new Set(state.chosen);
  for (const chip of all(".chip")) {
    chip.setAttribute("aria-pressed", chosen.has(chip.dataset.layout));
    chip.hidden = gone.has(chip.dataset.layout);
  }
  for (const [row, layout] of rows) {
    row.classList.toggle("chosen", chosen.has(layout));
    row.hidden = gone.has(layout);
  }
  for (const element of all("main [data-section], nav [data-section]")) {
    element.hidden = state.section !== "" && element.dataset.section !== state.section;
  }
  for (const [cell, length] of cells) cell.hidden = state.longest > 0 && length > state.longest;
  for (const name of ["family", "section", "longest"]) {
    const select = document.getElementById(`filter-${name}`);
    if (select) select.value = state[name] || "";
  }
  for (const view of views.values()) draw(view);
  document.getElementById("said").textContent = chosen.size ? `Highlighted: ${state.chosen.join(", ")}` : "";
}

// --- Charts ---

const signals = () => ({chosen: state.chosen, hidden: hidden(), longest: state.longest, dark: dark.matches});

function draw(view) {
  for (const [name, value] of Object.entries(signals())) view.signal(name, value);
  return view.runAsync();
}

async function embed(chart) {
  const spec = JSON.parse(document.getElementById(chart.dataset.spec).textContent), live = document.createElement("div");
  for (const parameter of spec.params) if (parameter.name in signals()) parameter.value = signals()[parameter.name];
  chart.append(live);
  const actions = {export: true, source: false, compiled: false, editor: false};
  try {
    // of errors alone: an empty panel is worth no warning
    const options = {renderer: "svg", actions, downloadFileName: chart.dataset.spec.slice(5), logLevel: 1};
    const {view} = await vegaEmbed(live, spec, options);
    views.set(chart, view);
    chart.querySelector("img").remove();
    live.querySelector("summary").setAttribute("aria-label", "Save this chart");
    live.querySelector("svg.marks > g").setAttribute("aria-hidden", "true");  // it is told in words as a whole
    if (!performance.getEntriesByName("first chart").length) performance.mark("first chart");
    await draw(view);  // what was chosen in the meantime
  } catch (error) {
    live.remove();
    console.error(chart.dataset.spec, error);
  }
}

// Until a chart comes near the window, its picture stands there.
const near = new IntersectionObserver((entries) => {
  for (const {target} of entries.filter((entry) => entry.isIntersecting)) {
    near.unobserve(target);
    embed(target);
  }
}, {rootMargin: "800px"});

// --- Tables ---

// Rows that are about one layout: its name is one of their first cells.
const rows = new Map();
for (const row of all("tbody tr")) {
  const head = [...row.cells].slice(0, 3).find((cell) => layouts.has(cell.textContent));
  if (head) {
    rows.set(row, head.textContent);
    head.classList.add("pick");
  }
}

// Cells below a heading that is a length, in tables that have lengths across.
const cells = new Map();
for (const table of all("table")) {
  const heads = table.tHead ? [...table.tHead.rows[0].cells] : [];
  if (!/, (tokens|position)$/.test(heads[0]?.textContent ?? "")) continue;
  heads.forEach((head, column) => {
    const length = Number(/^(?:up to )?([\d,]+)$/.exec(head.textContent)?.[1].replaceAll(",", ""));
    if (length) for (const row of table.rows) cells.set(row.cells[column], length);
  });
}

function sort(table, column) {
  const head = table.tHead.rows[0].cells[column], was = head.getAttribute("aria-sort");
  const best = head.dataset.better === "more" ? "descending" : "ascending";
  const order = was === best ? (best === "ascending" ? "descending" : "ascending") : best;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1, body = table.tBodies[0];
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");  // without a number last, whichever way
    return sign * (row_numbers.test(x) && row_numbers.test(y) ? x - y : x.localeCompare(y));
  };
  body.append(...[...body.rows].sort(compare));
}
const row_numbers = /^-?[\d.]+(e[-+]?\d+)?$/i;

for (const table of all("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(table, column));
  });
}

// A region that need not scroll is no stop on the way of the Tab key.
const sizes = new ResizeObserver((entries) => {
  for (const {target} of entries) target.tabIndex = target.scrollWidth > target.clientWidth || target.scrollHeight > target.clientHeight ? 0 : -1;
});

// --- What people do ---

// The layout that a mark, a legend entry or a label of an axis stands for; Vega keeps the datum at the element.
function layoutAt(element) {
  const datum = element.closest(".chart") ? element.__data__?.datum : undefined;
  return [datum?.full, datum?.layout, datum?.value, element.closest(".chip")?.dataset.layout,
    rows.get(element.closest(".pick")?.parentElement)].find((name) => layouts.has(name));
}

document.addEventListener("click", (event) => {
  const layout = layoutAt(event.target);
  if (layout !== undefined) toggle(layout);
});
for (const select of all("#bar select")) {
  const name = select.id.replace("filter-", "");
  select.addEventListener("change", () => change({[name]: name === "longest" ? Number(select.value) : select.value}));
}
const bar = document.getElementById("bar");
bar.addEventListener("submit", (event) => event.preventDefault());
bar.addEventListener("reset", (event) => {
  event.preventDefault();
  change({chosen: [], family: "", section: "", longest: 0});
});
dark.addEventListener("change", show);

// A link within the page keeps the view; an address with one brings its own.
addEventListener("hashchange", () => location.hash.includes("?") ? restore() : change({}));

bar.hidden = false;
restore();
all(".chart").forEach((chart, number) => {
  if (number) near.observe(chart);
  else embed(chart);
});
for (const region of all(".scroll, .card")) sizes.observe(region);
const target = document.getElementById(location.hash.slice(1).split("?")[0]);
if (target && location.hash.includes("?")) target.scrollIntoView();
