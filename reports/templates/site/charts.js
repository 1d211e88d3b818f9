// Every chart is drawn when it comes near the window: a suite may have a dozen.
const draw = (chart) => {
  const spec = JSON.parse(document.getElementById(chart.dataset.spec).textContent);
  const actions = {export: true, source: false, compiled: false, editor: false};
  vegaEmbed(chart, spec, {renderer: "svg", actions, downloadFileName: chart.dataset.spec.slice(5)})
    .catch((error) => console.error(chart.dataset.spec, error));
};
const seen = new IntersectionObserver((entries) => {
  for (const {isIntersecting, target} of entries) {
    if (isIntersecting) {
      seen.unobserve(target);
      draw(target);
    }
  }
}, {rootMargin: "600px"});
for (const chart of document.querySelectorAll(".chart")) seen.observe(chart);
