"use strict";
// The curves: panels as the library wrote them (r1lab/report/panels.py), drawn by uPlot.
//
// One run: each line has its own colour. Several: a run has one colour in every panel, and the lines
// of a panel differ in their dashes. Held-out figures are drawn with points and their interval as a
// band; figures of steps as a faint line under their running mean. Of runs that differ by their seed
// only (a group, numbered behind the runs) the mean is drawn like that of one run, each seed faint.
R1.Charts = class {
  constructor(runs, groups) {
    this.runs = runs;
    this.groups = groups;
    this.several = R1.numTones > 1;
    this.smoothing = 5;
    this.hiddenRuns = new Set();
    this.drawn = [];
    this.sync = uPlot.sync("step");
    const several = this.several;
    this.panels = merged();
    this.observer = new ResizeObserver((entries) => {
      for (const { target } of entries) {
        const one = this.drawn.find((drawn) => drawn.place === target);
        if (one && target.clientWidth) one.plot.setSize(sizeOf(target));
      }
    });

    // Panels of one id become one panel with the lines of every run and, over them, of every group.
    function merged() {
      const byId = new Map();
      const take = (panels, number, faint) => {
        for (const panel of panels) {
          if (!byId.has(panel.id)) byId.set(panel.id, { ...panel, series: [] });
          for (const line of panel.series) {
            if (line.x.length) byId.get(panel.id).series.push({ ...line, run: number, faint });
          }
        }
      };
      const grouped = new Set(groups.flatMap((group) => group.runs));
      runs.forEach((run, number) => take(run.panels, number, grouped.has(number)));
      groups.forEach((group, i) => {
        take(group.panels, runs.length + i, false);
        for (const panel of group.panels) byId.get(panel.id).note = panel.note;
      });
      return [...byId.values()].map(prepared);
    }

    function prepared(panel) {
      panel.labels = [...new Set(panel.series.map((line) => line.label))];
      // Where many runs share a panel, held-out figures speak first.
      const heldOut = panel.series.some((line) => line.held_out);
      panel.hidden = new Set(
        several
          ? panel.labels.filter((label) => heldOut && !panel.series.find((l) => l.label === label).held_out)
          : [],
      );
      return panel;
    }
  }

  draw(place, extra) {
    for (const panel of this.panels) {
      if (panel.extra === extra) place.append(this.frame(panel));
    }
  }

  // Draw all anew: after the theme or the smoothing changed.
  redraw() {
    for (const one of this.drawn) {
      one.plot.destroy();
      one.plot = this.plot(one.panel, one.place, one);
      this.legend(one);
    }
  }

  showRun(number, shown) {
    if (shown) this.hiddenRuns.delete(number);
    else this.hiddenRuns.add(number);
    this.redraw();
  }

  frame(panel) {
    const at = R1.el("span", { class: "at" });
    const place = R1.el("div", { class: "chart", role: "img", "aria-label": this.described(panel) });
    const legend = R1.el("ul", { class: "legend" });
    const frame = R1.el("article", { class: "panel", "data-panel": panel.id },
      R1.el("header", {}, R1.el("h3", {}, panel.title), at),
      R1.el("p", { class: "note" }, panel.note || "\u00a0"), legend, place);
    const one = { panel, place, at, legendPlace: legend, plot: null };
    // The chart is drawn once its place has a width.
    requestAnimationFrame(() => {
      one.plot = this.plot(panel, place, one);
      this.drawn.push(one);
      this.legend(one);
      this.observer.observe(place);
    });
    return frame;
  }

  shown(panel, line) {
    return !panel.hidden.has(line.label) && !this.hiddenRuns.has(line.run);
  }

  color(line) {
    return R1.color(this.several ? R1.runColor(line.run) : line.color);
  }

  dash(panel, line) {
    const patterns = [[], [6, 4], [2, 3], [9, 3, 2, 3], [12, 4], [4, 2]];
    if (this.several) return patterns[panel.labels.indexOf(line.label) % patterns.length];
    return line.dash ? patterns[1] : [];
  }

  plot(panel, place, one) {
    const lines = panel.series.filter((line) => this.shown(panel, line));
    const xs = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    const row = new Map(xs.map((x, i) => [x, i]));
    const aligned = (line, values) => {
      const column = new Array(xs.length).fill(null);
      line.x.forEach((x, i) => (column[row.get(x)] = values[i]));
      return column;
    };
    const data = [xs];
    const series = [{}];
    const bands = [];
    const add = (values, settings) => {
      data.push(values);
      series.push({ spanGaps: true, points: { show: false }, ...settings });
      return series.length - 1;
    };
    const stacked = panel.stacked && !this.several;
    let below = null;
    for (const line of lines) {
      const color = this.color(line);
      if (line.faint) {
        if (stacked) continue;
        const own = line.held_out ? line.y : smooth(line.y, this.smoothing);
        add(aligned(line, own), {
          stroke: line.line ? faded(color, 0.4) : undefined, width: line.line ? 1 : 0, dash: this.dash(panel, line),
          points: line.line ? { show: false } : { show: true, size: 4, width: 1, stroke: faded(color, 0.4), fill: R1.color("card") },
        });
      } else if (stacked) {
        const own = aligned(line, smooth(line.y, this.smoothing));
        const top = own.map((value, i) => (value ?? 0) + (below ? data[below][i] : 0));
        const index = add(top, { stroke: color, width: 1 });
        if (below === null) below = add(xs.map(() => 0), { width: 0 });
        bands.push({ series: [index, below], fill: faded(color, 0.55) });
        below = index;
      } else if (line.held_out) {
        if (line.line) {
          const low = add(aligned(line, line.low), { width: 0 });
          const high = add(aligned(line, line.high), { width: 0 });
          bands.push({ series: [high, low], fill: faded(color, 0.16) });
        }
        add(aligned(line, line.y), {
          stroke: line.line ? color : undefined, width: line.line ? 2 : 0, dash: this.dash(panel, line),
          points: { show: true, size: 6, width: line.line ? 1 : 2, stroke: color, fill: line.line ? color : R1.color("card") },
        });
      } else {
        const few = line.y.length < 2;
        const smoothed = this.smoothing > 1 && line.y.length > this.smoothing;
        if (line.low.length) {
          const [low, high] = [line.low, line.high].map((end) =>
            add(aligned(line, smoothed ? smooth(end, this.smoothing) : end), { width: 0 }));
          bands.push({ series: [high, low], fill: faded(color, 0.16) });
        } else if (smoothed) add(aligned(line, line.y), { stroke: faded(color, 0.28), width: 1 });
        add(aligned(line, smoothed ? smooth(line.y, this.smoothing) : line.y), {
          stroke: color, width: smoothed ? 1.8 : 1.4, dash: this.dash(panel, line), points: { show: few, size: 5 },
        });
      }
    }
    return new uPlot(this.settings(panel, place, one, series, bands), data, place);
  }

  settings(panel, place, one, series, bands) {
    const soft = R1.color("soft");
    const grid = { stroke: R1.color("grid"), width: 1 };
    const axis = { stroke: soft, grid, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    const sync = panel.x === "step" ? { sync: { key: this.sync.key, scales: ["x", null] } } : {};
    return {
      ...sizeOf(place),
      series,
      bands,
      legend: { show: false },
      padding: [10, 12, 0, 0],
      cursor: { points: { show: false }, drag: { x: true, y: false }, y: false, ...sync },
      scales: {
        x: panel.x === "k" ? { time: false, distr: 3, log: 2 } : { time: false },
        y: panel.log ? { distr: 3 } : { range: (_, low, high) => ends(panel, low, high) },
      },
      axes: [
        { ...axis, size: 24, values: (_, ticks) => ticks.map((x) => (x === null ? "" : String(x))) },
        { ...axis, size: 52, values: (_, ticks) => ticks.map((y) => (y === null ? "" : tick(panel, y))) },
      ],
      hooks: { setCursor: [(plot) => this.follow(one, plot)] },
    };
  }

  legend(one) {
    const { panel } = one;
    one.values = [];
    one.legendPlace.replaceChildren(
      ...panel.labels.map((label) => {
        const lines = panel.series.filter((line) => line.label === label && !line.faint);
        const numbers = lines.filter((line) => !this.hiddenRuns.has(line.run)).map((line) => {
          const now = R1.el("span", { class: "now" });
          if (this.several) now.style.color = this.color(line);
          one.values.push({ line, now });
          return now;
        });
        const toggle = () => {
          if (panel.hidden.has(label)) panel.hidden.delete(label);
          else panel.hidden.add(label);
          one.plot.destroy();
          one.plot = this.plot(panel, one.place, one);
          this.legend(one);
        };
        const pressed = String(!panel.hidden.has(label));
        return R1.el("li", {}, R1.el("button", { type: "button", "aria-pressed": pressed, onclick: toggle },
          this.swatch(panel, lines[0] || panel.series.find((line) => line.label === label)), label, ...numbers));
      }),
    );
    this.follow(one, one.plot);
  }

  // A chart in words, for who cannot see it.
  described(panel) {
    const spoken = panel.series.filter((line) => !line.faint);
    const several = this.runs.length > 1;
    const lines = spoken.map((line) => {
      const run = this.runs[line.run];
      const owner = run ? run.facts.label : this.groups[line.run - this.runs.length].label;
      const name = several ? `${owner}, ${line.label}` : line.label;
      return `${name} from ${R1.number(line.y[0], panel.form)} to ${R1.number(line.y[line.y.length - 1], panel.form)}`;
    });
    return `${panel.title}: ${lines.join("; ")}`;
  }

  swatch(panel, line) {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    const dot = line.held_out && !line.line;
    const stroke = document.createElementNS(space, dot ? "circle" : "line");
    const set = (element, values) => Object.entries(values).forEach(([key, value]) => element.setAttribute(key, value));
    const color = this.several ? R1.color("soft") : this.color(line);
    set(svg, { width: 18, height: 8, "aria-hidden": "true" });
    set(stroke, { stroke: color, fill: "none" });
    if (dot) set(stroke, { cx: 9, cy: 4, r: 2.6, "stroke-width": 2 });
    else {
      set(stroke, { x1: 0, x2: 18, y1: 4, y2: 4, "stroke-width": line.held_out ? 3 : 2,
        "stroke-dasharray": this.dash(panel, line).join(" ") || "none" });
    }
    svg.append(stroke);
    return svg;
  }

  // The values under the cursor; without one, the last of each line.
  follow(one, plot) {
    const index = plot ? plot.cursor.idx : null;
    const at = index === null || index === undefined ? null : plot.data[0][index];
    one.at.textContent = at === null ? "" : `${one.panel.x} ${at}`;
    for (const { line, now } of one.values || []) {
      const i = at === null ? line.x.length - 1 : nearest(line.x, at);
      now.textContent = R1.number(line.y[i], one.panel.form);
      now.title = line.low.length
        ? R1.interval({ value: line.y[i], low: line.low[i], high: line.high[i] }, one.panel.form)
        : "";
    }
  }
};

function sizeOf(place) {
  return { width: Math.max(place.clientWidth, 120), height: place.clientHeight };
}

// The ends of the y axis: those that were asked for, else the data's with a little room.
function ends(panel, low, high) {
  if (low === null || high === null) return [panel.low ?? 0, panel.high ?? 1];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  const bottom = panel.low === null ? low - room : Math.min(panel.low, low);
  const top = panel.high === null ? high + room : Math.max(panel.high, high);
  const air = panel.high === null ? 0 : 0.02 * (top - bottom);
  return [bottom - (panel.low === null ? 0 : air), top + air];
}

function tick(panel, value) {
  if (panel.log) return value.toExponential(0);
  if (panel.form === "count") return value >= 1000 ? `${+(value / 1000).toPrecision(3)}k` : String(value);
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(0);
  return String(+value.toPrecision(4));
}

function nearest(xs, x) {
  let best = 0;
  for (let i = 1; i < xs.length; i++) if (Math.abs(xs[i] - x) <= Math.abs(xs[best] - x)) best = i;
  return best;
}

// Each value's mean with its neighbours, `width` in all, fewer at the ends.
function smooth(values, width) {
  if (width <= 1) return values;
  const half = Math.floor(width / 2);
  return values.map((_, i) => {
    const near = values.slice(Math.max(0, i - half), i + half + 1);
    return near.reduce((sum, value) => sum + value, 0) / near.length;
  });
}

// #rrggbb with an opacity.
function faded(color, share) {
  const [red, green, blue] = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  return `rgba(${red}, ${green}, ${blue}, ${share})`;
}
