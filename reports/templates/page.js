"use strict";
// One selection for the whole page. Names of layouts are whatever a run says: they go into the page as text only.
const layouts = JSON.parse(document.getElementById("layouts").textContent);
const state = {chosen: []};
const views = new Map();
const dark = matchMedia("(prefers-color-scheme: dark)");

// --- Charts ---

const signals = () => ({chosen: state.chosen, dark: dark.matches});

function setSignals(view) {
  for (const [name, value] of Object.entries(signals())) view.signal(name, value);
  return view.runAsync();
}

async function embed(chart) {
  const spec = JSON.parse(document.getElementById(chart.dataset.spec).textContent);
  for (const parameter of spec.params) if (parameter.name in signals()) parameter.value = signals()[parameter.name];
  const live = document.createElement("div");
  chart.append(live);
  const actions = {export: true, source: false, compiled: false, editor: false};
  try {
    const options = {renderer: "svg", actions, downloadFileName: chart.dataset.spec.slice(5)};
    views.set(chart, (await vegaEmbed(live, spec, options)).view);
    chart.querySelector("img").remove();
    performance.mark("first chart");
  } catch (error) {
    live.remove();
    console.error(chart.dataset.spec, error);
  }
}

// --- The selection ---

function toggle(layout) {
  const others = state.chosen.filter((name) => name !== layout);
  state.chosen = others.length < state.chosen.length ? others : [...others, layout];
  show();
}

function show() {
  for (const view of views.values()) setSignals(view);
}

// The layout that a mark, a legend entry or a label of an axis stands for; Vega keeps the datum at the element.
function layoutOfMark(element) {
  const datum = element.__data__?.datum;
  const named = [datum?.full, datum?.layout, datum?.value].find((name) => layouts.includes(name));
  return element.closest(".chart") ? named : undefined;
}

document.addEventListener("click", (event) => {
  const layout = layoutOfMark(event.target);
  if (layout !== undefined) toggle(layout);
});
dark.addEventListener("change", show);
for (const chart of document.querySelectorAll(".chart")) embed(chart);
