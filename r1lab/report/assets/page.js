"use strict";
// Put the page together. `document.documentElement.dataset.ready` says when everything stands.
(async function () {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try {
    chosen = localStorage.getItem("r1lab-theme");
  } catch {
    chosen = null; // pages opened from disk may be refused a storage
  }
  let charts = null;
  const paint = () => {
    root.dataset.theme = chosen || (dark.matches ? "dark" : "light");
    if (charts) charts.redraw();
  };
  paint();
  dark.addEventListener("change", paint);
  document.getElementById("theme").addEventListener("click", () => {
    chosen = root.dataset.theme === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("r1lab-theme", chosen);
    } catch {
      // The choice then lasts as long as the page.
    }
    paint();
  });

  const fail = (error) => {
    const notice = document.getElementById("failed");
    notice.hidden = false;
    notice.textContent = typeof DecompressionStream === "undefined"
      ? "This page needs a browser of 2023 or newer (DecompressionStream)."
      : `The page cannot be read: ${error.message}`;
    throw error;
  };
  const { about, runs, groups } = await R1.unpack("main").catch(fail);
  R1.giveTones(runs, groups);
  charts = new R1.Charts(runs, groups);
  const tables = new R1.Tables(runs, groups);
  tables.overview(document.getElementById("overview"), (number, shown) => charts.showRun(number, shown));
  charts.draw(document.getElementById("panels"), false);
  const extra = document.getElementById("extra");
  extra.hidden = !charts.panels.some((panel) => panel.extra);
  extra.addEventListener("toggle", () => {
    const place = extra.querySelector(".panels");
    if (extra.open && !place.children.length) charts.draw(place, true);
  });
  document.getElementById("smoothing").addEventListener("change", (event) => {
    charts.smoothing = +event.target.value;
    charts.redraw();
  });
  tables.evaluations(document.getElementById("evaluation-tables"));
  tables.about(document.getElementById("run-facts"));
  document.getElementById("foot").append(
    `Written by r1lab ${about.version} from the run folder's files alone. Curves by uPlot:`,
    R1.el("details", {}, R1.el("summary", {}, "its licence"), R1.el("pre", {}, about.vendored)));
  const transcripts = new R1.Transcripts(runs, document.getElementById("browser"));
  R1.page = { charts, transcripts };
  await transcripts.load(0).catch(fail);
  await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
  performance.mark("r1lab-ready");
  root.dataset.ready = "true";
})();
