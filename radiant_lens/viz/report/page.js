"use strict";
(() => {
  const read = (element) => JSON.parse(element.textContent);
  const templates = ["light", "dark"].map((id) => read(document.getElementById(id)).layout.template);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const template = () => templates[dark.matches ? 1 : 0];
  const drawings = [...document.querySelectorAll(".plot")].map((figure) => {
    const drawing = figure.querySelector(".drawing");
    const { data, layout } = read(figure.querySelector("script"));
    // Two buttons only: the whole bar would cover the title where it always shows, as on touch screens.
    const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] };
    Plotly.newPlot(drawing, data, { ...layout, template: template() }, config);
    return drawing;
  });
  dark.addEventListener("change", () => {
    for (const drawing of drawings) Plotly.relayout(drawing, { template: template() });
  });
  // A hint shows above a table only while the table is wider than its wrapper.
  const hints = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      target.previousElementSibling.hidden = target.scrollWidth <= target.clientWidth;
    }
  });
  for (const wrapper of document.querySelectorAll(".scroll")) hints.observe(wrapper);
  const buttons = [...document.querySelectorAll(".switch button")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      document.getElementById("answers").dataset.show = button.dataset.show;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    });
  }
})();
