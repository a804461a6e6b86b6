"use strict";
// The figures that are no curve: the overview, the evaluations, and the run's cost, settings, events.
R1.Tables = class {
  constructor(runs, groups) {
    this.runs = runs;
    this.groups = groups;
    this.several = runs.length > 1;
  }

  // -------------------------------------------------------------------------------- overview

  overview(place, toggleRun) {
    const { el } = R1;
    const { facts } = this.runs[0];
    if (!this.several) {
      place.append(el("h1", {}, facts.label), el("p", { class: "lead" }, this.lead(facts)), this.tiles(facts));
      return;
    }
    place.append(
      el("h1", {}, `${this.runs.length} runs`),
      el("p", { class: "lead" }, this.groups.length
        ? "Runs whose recipes differ by the seed only are drawn as their mean with its 95% interval, by Student's t over the seeds, and faintly each; those intervals are for another seed on the same held-out problems. Press a run or a mean to hide it from the curves."
        : "Press a run to hide it from the curves."),
      el("div", { class: "runs" }, this.labels().map(([label, number]) => {
        const button = el("button", { type: "button", class: "plain", "aria-pressed": "true" },
          this.dot(number), label);
        button.addEventListener("click", () => {
          const shown = button.getAttribute("aria-pressed") !== "true";
          button.setAttribute("aria-pressed", String(shown));
          toggleRun(number, shown);
        });
        return button;
      })),
      this.comparison(),
    );
  }

  // What can be hidden: [label, number], the means before the runs.
  labels() {
    return [
      ...this.groups.map((group, i) => [group.label, this.runs.length + i]),
      ...this.runs.map((run, number) => [run.facts.label, number]),
    ];
  }

  dot(number) {
    return R1.el("span", { class: "dot", color: `var(--${R1.runColor(number)})`, "aria-hidden": "true" });
  }

  lead(facts) {
    const planned = facts.steps_planned;
    const how = facts.ended
      ? `${facts.steps_done} steps`
      : `${facts.steps_done} of ${planned ?? "?"} steps, ${facts.stopped ?? "not ended when this was written"}`;
    const last = facts.evals[facts.evals.length - 1];
    const heldOut = last
      ? ` · ${R1.plural(last.overall.num_problems, "held-out problem")}, ${last.k} samples each, ${Math.round(100 * (last.level ?? 0.95))}% intervals over problems`
      : "";
    return `${facts.model || "?"} · ${how}${heldOut}`;
  }

  tiles(facts) {
    const { el } = R1;
    const first = facts.evals[0];
    const last = facts.evals[facts.evals.length - 1];
    const tiles = [];
    const tile = (name, value, more, bad) =>
      tiles.push(el("div", { class: bad ? "tile bad" : "tile" }, el("div", { class: "name" }, name),
        el("div", { class: "value" }, value), el("div", { class: "more" }, more || "\u00a0")));
    const change = (name, before, after, form) => {
      if (!after) return;
      const value = before && last !== first
        ? [el("span", { class: "from" }, `${short(before.value, form)} → `), short(after.value, form)]
        : short(after.value, form);
      tile(name, value, `[${short(after.low, form)}, ${short(after.high, form)}]`);
    };
    if (last) {
      change("pass@1", first.overall.pass_at_1, last.overall.pass_at_1, "share");
      change(`cons@${last.k}`, first.overall.cons_at_k, last.overall.cons_at_k, "share");
      change("greedy", first.greedy?.pass_at_1, last.greedy?.pass_at_1, "share");
      change("response length", first.overall.length, last.overall.length, "length");
      change("well-formed", first.overall.format, last.overall.format, "share");
    }
    const { cost } = facts;
    tile("time", R1.hours(cost.hours), `${R1.hours(cost.hours_training)} in steps`);
    tile("sampled tokens", R1.large(cost.tokens_training + cost.tokens_held_out), `${R1.large(cost.tokens_held_out)} held out`);
    if (cost.dollars !== null) tile("cost", `$${cost.dollars.toFixed(2)}`, `at $${cost.price} an hour`);
    if (cost.kilowatt_hours !== null) tile("energy", `${+cost.kilowatt_hours.toPrecision(3)} kWh`, `at ${cost.watts} W`);
    if (facts.max_sync_kl !== null) tile("highest sync KL", facts.max_sync_kl.toExponential(1), "nats a token");
    const faults = total(facts, "faults");
    const skipped = total(facts, "skipped");
    tile("faults", R1.count(faults), skipped ? R1.plural(skipped, "skipped update") : "none skipped", faults + skipped > 0);
    return el("div", { class: "tiles" }, tiles);
  }

  comparison() {
    const { el, interval } = R1;
    const rows = this.runs.map(({ facts }, number) => {
      const last = facts.evals[facts.evals.length - 1];
      const first = facts.evals[0];
      const scores = last ? last.overall : {};
      return [
        [this.dot(number), facts.label],
        `${facts.steps_done}${facts.ended ? "" : " (goes on)"}`,
        first ? R1.number(first.overall.pass_at_1?.value, "share") : "none",
        interval(scores.pass_at_1, "share"),
        interval(scores.cons_at_k, "share"),
        interval(scores.length),
        R1.hours(facts.cost.hours),
        R1.large(facts.cost.tokens_training + facts.cost.tokens_held_out),
        ...(facts.cost.dollars === null ? [] : [`$${facts.cost.dollars.toFixed(2)}`]),
        ...(facts.cost.kilowatt_hours === null ? [] : [`${+facts.cost.kilowatt_hours.toPrecision(3)} kWh`]),
        R1.count(total(facts, "faults")),
      ];
    });
    const { cost } = this.runs[0].facts;
    this.groups.forEach((group, i) => {
      const { first, last } = group;
      const cells = [[this.dot(this.runs.length + i), group.label], "",
        first.pass_at_1 ? R1.number(first.pass_at_1.value, "share") : "none",
        interval(last.pass_at_1, "share"), interval(last.cons_at_k, "share"), interval(last.length)];
      rows.splice(i, 0, [...cells, ...new Array(rows[rows.length - 1].length - cells.length).fill("")]);
    });
    const head = ["run", "steps", "pass@1 before", "pass@1", "cons@k", "response length", "time", "tokens",
      ...(cost.dollars === null ? [] : ["cost"]), ...(cost.kilowatt_hours === null ? [] : ["energy"]), "faults"];
    return table(head, rows);
  }

  // ----------------------------------------------------------------------------- evaluations

  evaluations(place) {
    this.runs.forEach((run, number) => {
      const { facts } = run;
      for (const block of this.evaluationBlocks(facts)) {
        const title = this.several ? [this.dot(number), ` ${facts.label}: ${block.title}`] : block.title;
        place.append(R1.el("div", { class: "block" }, R1.el("h3", {}, title),
          R1.el("p", { class: "soft" }, block.note), block.body));
      }
    });
    if (!place.children.length) place.append(R1.el("p", { class: "soft" }, "No evaluation was made."));
  }

  evaluationBlocks(facts) {
    const blocks = [];
    if (facts.evals.length) {
      const last = facts.evals[facts.evals.length - 1];
      blocks.push({
        title: "Held-out problems", body: this.scores(facts.evals, (row) => `step ${row.step ?? "?"}`, true),
        note: `${last.k} samples a problem at temperature ${last.temperature}, top-p ${last.top_p ?? "?"}, at most ${last.max_tokens ?? "?"} tokens, seed ${last.seed ?? "?"}; the small figures are ${Math.round(100 * (last.level ?? 0.95))}% intervals over problems`,
      });
    }
    for (const row of facts.other_evals) {
      const { file, ...rest } = row;
      if (row.overall) {
        const model = row.model ? `${row.model}, ` : "";
        blocks.push({ title: row.suite ? `${row.suite} (${file})` : file, note: `${model}${row.k ?? "?"} samples a problem, temperature ${row.temperature ?? "?"}, seed ${row.seed ?? "?"}`, body: this.scores([row], () => "all", true) });
      } else {
        blocks.push({ title: file, note: "as it stands in the file", body: R1.el("pre", { class: "recipe" }, JSON.stringify(rest, null, 2)) });
      }
    }
    return blocks;
  }

  scores(evals, nameOf, withSources) {
    const head = ["", "problems", "pass@1", "cons@k", "greedy", "well-formed", "tokens", "right", "wrong", "cut off", "no answer", "faults"];
    const figures = (name, scores, greedy) => [
      name, R1.count(scores.num_problems ?? 0), ranged(scores.pass_at_1, "share"), ranged(scores.cons_at_k, "share"),
      greedy ? ranged(greedy.pass_at_1, "share") : "", ranged(scores.format, "share"),
      ranged(scores.length), ranged(scores.length_right), ranged(scores.length_wrong),
      scores.truncated ? R1.number(scores.truncated.value, "share") : "none",
      scores.unanswered ? R1.number(scores.unanswered.value, "share") : "none",
      R1.count(scores.num_faults ?? 0),
    ];
    const rows = [];
    evals.forEach((row, i) => {
      rows.push(figures(nameOf(row), row.overall, row.greedy));
      const sources = Object.entries(row.by_source || {});
      if (withSources && sources.length > 1 && (i === 0 || i === evals.length - 1)) {
        for (const [source, scores] of sources) rows.push(Object.assign(figures(source, scores, null), { part: true }));
      }
    });
    return table(head, rows);
  }

  // ------------------------------------------------------------------------------------- run

  about(place) {
    this.runs.forEach(({ facts, panels }, number) => {
      if (this.several) place.append(R1.el("h3", { class: "block" }, this.dot(number), ` ${facts.label}`));
      place.append(
        R1.el("div", { class: "columns" }, this.cost(facts), this.time(panels), this.trouble(facts), this.prospects(facts), this.events(facts), this.versions(facts)),
        R1.el("details", { class: "block" }, R1.el("summary", {}, "Settings: recipe.yaml, resolved"),
          R1.el("pre", { class: "recipe" }, facts.recipe || "not kept")),
      );
    });
    if (this.several) place.append(this.differences());
  }

  cost({ cost, steps_done: steps }) {
    const entries = [
      ["steps", R1.count(steps)],
      ["time", R1.hours(cost.hours)],
      ["in training steps", R1.hours(cost.hours_training)],
      ["tokens sampled to train", R1.count(cost.tokens_training)],
      ["tokens sampled held out", R1.count(cost.tokens_held_out)],
      ["energy", cost.kilowatt_hours === null ? "give --watts" : `${+cost.kilowatt_hours.toPrecision(3)} kWh`],
      ["dollars", cost.dollars === null ? "give --price" : cost.dollars.toFixed(2)],
    ];
    return card("Cost", R1.el("dl", {}, entries.flatMap(([name, value]) => [R1.el("dt", {}, name), R1.el("dd", {}, value)])));
  }

  time(panels) {
    const panel = panels.find((one) => one.id === "time");
    if (!panel) return null;
    const lines = panel.series.map((line) => ({ ...line, sum: line.y.reduce((sum, value) => sum + value, 0) }));
    const whole = lines.reduce((sum, line) => sum + line.sum, 0) || 1;
    const bar = R1.el("div", { class: "time" }, lines.map((line) => {
      const part = R1.el("span", { color: `var(--${line.color})`, title: line.label });
      part.style.flexGrow = String(line.sum / whole);
      return part;
    }));
    const entries = lines.flatMap((line) => [
      R1.el("dt", {}, R1.el("span", { class: "dot", color: `var(--${line.color})` }), ` ${line.label}`),
      R1.el("dd", {}, `${R1.hours(line.sum / 3600)}, ${((100 * line.sum) / whole).toFixed(1)}%`),
    ]);
    return card("Where the time went", bar, R1.el("dl", {}, entries));
  }

  versions({ versions }) {
    const entries = versions.map((line) => line.split(/ (.*)/s));
    if (!entries.length) return card("Versions", R1.el("p", { class: "soft" }, "not kept"));
    return card("Versions", R1.el("dl", {}, entries.flatMap(([name, value]) => [R1.el("dt", {}, name),
      R1.el("dd", { title: value }, (value || "").length > 24 ? `${value.slice(0, 12)}…` : value || "")])));
  }

  trouble(facts) {
    const lines = facts.trouble.map((row) => {
      const words = [];
      if (row.faults) words.push(R1.plural(row.faults, "response") + " faulted");
      if (row.skipped) words.push(R1.plural(row.skipped, "update") + " skipped");
      return `step ${row.step}: ${words.join(", ")}`;
    });
    if (facts.rechecked) lines.push(`the sampler's agreement was measured again at ${R1.plural(facts.rechecked, "step")}`);
    for (const name of facts.faulty) lines.push(`put aside for study: faulty/${name}`);
    const body = lines.length ? list(lines) : R1.el("p", { class: "soft" }, "No response faulted and no update was skipped.");
    return card("Faults and skipped updates", body);
  }

  prospects({ prospects }) {
    if (!prospects) return null;
    const signs = { ok: "✓", warning: "!", failed: "✗" };
    const points = (prospects.points || []).map((point) =>
      `${signs[point.level] || point.level} ${point.name}: ${point.found}${point.change ? `; ${point.change}` : ""}`);
    return card("Prospects at the start", R1.el("p", { class: "soft" }, prospects.verdict || ""), list(points));
  }

  events({ events }) {
    if (!events.length) return null;
    return card("Events", list(events.map(({ time, event, ...rest }) => {
      const told = Object.entries(rest).map(([key, value]) => (key === "text" || key === "verdict" ? value : `${key} ${value}`));
      return `${String(time ?? "").replace("T", " ").replace("+00:00", "")} ${event ?? ""}${told.length ? ": " : ""}${told.join(", ")}`;
    })));
  }

  // The settings that are not the same in every run.
  differences() {
    const flat = this.runs.map(({ facts }) => facts.settings);
    const keys = [...new Set(flat.flatMap((one) => Object.keys(one)))];
    const differing = keys.filter((key) => new Set(flat.map((one) => one[key])).size > 1);
    const rows = differing.map((key) => [key, ...flat.map((one) => one[key] ?? "")]);
    const head = ["setting", ...this.runs.map(({ facts }) => facts.label)];
    return R1.el("div", { class: "block" }, R1.el("h3", {}, "Settings that differ"),
      rows.length ? table(head, rows) : R1.el("p", { class: "soft" }, "none"));
  }
};

function card(title, ...body) {
  return R1.el("div", { class: "card" }, R1.el("h3", {}, title), ...body);
}

function list(lines) {
  return R1.el("ul", {}, lines.map((line) => R1.el("li", {}, line)));
}

function table(head, rows) {
  const { el } = R1;
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "table" }, el("table", {},
    el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, rows.map((row) => el("tr", { class: row.part ? "part" : null }, row.map((cell) => el("td", {}, cell)))))));
}

function ranged(estimate, form) {
  if (!estimate) return "none";
  const range = `${short(estimate.low, form)}–${short(estimate.high, form)}`;
  return [short(estimate.value, form), R1.el("span", { class: "range" }, range)];
}

function short(value, form) {
  if (value === null || value === undefined) return "none";
  if (form === "share") return value.toFixed(2);
  return value >= 100 ? value.toFixed(0) : value.toFixed(1);
}

function total(facts, key) {
  return facts.trouble.reduce((sum, row) => sum + (row[key] || 0), 0);
}
