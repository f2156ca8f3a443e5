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
  const rows = [...document.querySelectorAll("#answers tbody tr")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const row of rows) row.hidden = !row.dataset.filters.split(" ").includes(button.dataset.show);
      document.getElementById("none").hidden = rows.some((row) => !row.hidden);
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    });
  }
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const text = button.nextElementSibling;
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "copied";
      } catch {
        // Browsers refuse the clipboard to some pages; the selected text can be copied by keyboard.
        getSelection().selectAllChildren(text);
        button.textContent = "selected";
      }
    });
  }
  // The contents mark the first section in sight.
  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const parts = [...links.keys()].map((id) => document.getElementById(id));
  const inSight = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) inSight[isIntersecting ? "add" : "delete"](target);
    const first = parts.find((part) => inSight.has(part));
    for (const [id, link] of links) {
      if (first && first.id === id) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  });
  for (const part of parts) watcher.observe(part);
})();
