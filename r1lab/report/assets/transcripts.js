"use strict";
// The browser of samples: filters, the list of groups, and the group that is read. What is filtered
// and sorted by is in samples.js; the texts of a group are unpacked when it is opened.
const PAGE = 50;

R1.Transcripts = class {
  constructor(runs, place) {
    Object.assign(this, { runs, place, page: 0, open: null, search: 0, hits: null });
    this.indices = new Map();
    this.unfolded = false;
    this.all = false;
    this.build();
    document.addEventListener("keydown", (event) => this.key(event));
  }

  build() {
    const { el } = R1;
    const change = () => this.apply();
    const choice = (entries) => el("select", { onchange: change },
      entries.map(([value, name]) => el("option", { value }, name)));
    this.inputs = {
      run: el("select", { onchange: () => this.load(+this.inputs.run.value) },
        this.runs.map((run, number) => el("option", { value: number }, run.facts.label))),
      kind: choice([]),
      step: choice([]),
      source: choice([]),
      verdict: choice(Object.entries(VERDICTS).map(([key, [name]]) => [key, name])),
      order: choice(Object.entries(ORDERS)),
      problem: el("input", { type: "text", placeholder: "id or its start", oninput: change, spellcheck: "false" }),
      query: el("input", { type: "search", placeholder: "in questions, responses, reasons  ( / )", oninput: () => this.later() }),
    };
    for (const [name, input] of Object.entries(this.inputs)) input.setAttribute("name", name);
    const labelled = (name, key, grow) => el("label", { class: grow ? "grow" : null }, name, this.inputs[key]);
    this.counted = el("span", { role: "status", "aria-live": "polite" });
    this.leftOut = el("span", {});
    this.list = el("div", { class: "list", id: "groups" });
    this.detail = el("div", { class: "detail", id: "group" });
    this.back = el("button", { type: "button", class: "plain", onclick: () => this.turn(-1) }, "‹ back");
    this.on = el("button", { type: "button", class: "plain", onclick: () => this.turn(1) }, "on ›");
    this.paged = el("span", {});
    const key = (name, what) => [el("kbd", {}, name), ` ${what}  `];
    this.place.append(
      el("div", { class: "filters" },
        this.runs.length > 1 ? labelled("run", "run") : null, labelled("from", "kind"), labelled("step", "step"),
        labelled("source", "source"), labelled("verdict", "verdict"), labelled("order", "order"),
        labelled("problem", "problem"), labelled("search", "query", true)),
      el("div", { class: "counts" }, this.counted, this.leftOut),
      el("div", { class: "split" },
        el("div", { class: "side" }, this.list, el("div", { class: "pager" }, this.back, this.paged, this.on)),
        this.detail),
      el("p", { class: "hint keys wide" }, key("j", "/"), key("k", "next, previous sample"), key("n", "/"),
        key("p", "next, previous group"), key("t", "unfold all thinking"), key("/", "search"), key("Esc", "clear it")),
    );
  }

  // ------------------------------------------------------------------------------- the index

  async load(run) {
    if (!this.indices.has(run)) this.indices.set(run, await R1.Samples.of(run));
    this.index = this.indices.get(run);
    this.hits = null;
    this.search += 1; // a search through the other run ends here
    this.fill();
    if (this.inputs.query.value) await this.seek();
    else this.apply();
  }

  fill() {
    const { groups, problems, left_out: leftOut } = this.index;
    const options = (select, any, values) => {
      const chosen = select.value;
      select.replaceChildren(R1.el("option", { value: "any" }, any),
        ...values.map(([value, name]) => R1.el("option", { value }, String(name))));
      select.value = values.some(([value]) => String(value) === chosen) ? chosen : "any";
    };
    const plain = (values) => values.map((value) => [value, value]);
    options(this.inputs.kind, "everywhere", [[TRAINING, "training"], [HELD_OUT, "held out"],
      ...this.index.suites.map((name, i) => [SUITE + i, name])]);
    options(this.inputs.step, "every step", plain([...new Set(groups.step)].sort((a, b) => a - b)));
    options(this.inputs.source, "every source", plain([...new Set(problems.map(([, source]) => source))].sort()));
    this.leftOut.textContent = leftOut.length
      ? `${R1.plural(leftOut.length, "step or evaluation")} left out to keep this file small; r1lab report --samples N keeps more`
      : "";
  }

  apply() {
    const { index } = this;
    if (!index) return;
    const filters = Object.fromEntries(Object.entries(this.inputs).map(([name, input]) => [name, input.value]));
    this.wanted = index.wanted(filters, this.hits);
    const { found, matching } = index.groupsWith(this.wanted);
    this.gains = filters.order === "improved" ? index.improved(found) : null;
    this.found = this.gains ? [...this.gains.keys()] : index.sorted(found, filters.order, this.wanted);
    this.page = 0;
    this.counted.textContent = `${R1.plural(this.found.length, "group")}, ${R1.plural(matching, "sample")} of ${R1.count(index.starts[index.num])}`;
    this.show();
    this.choose(this.found[0] ?? null);
  }

  // -------------------------------------------------------------------------------- searching

  later() {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.seek(), 200);
  }

  async seek() {
    const ticket = ++this.search;
    const query = this.inputs.query.value.trim().toLowerCase();
    if (!query) {
      this.hits = null;
      this.apply();
      return;
    }
    let shownAt = performance.now();
    const hits = await this.index.search(query, async (share) => {
      // Now and then the page gets its turn.
      if (performance.now() - shownAt > 150) {
        this.counted.textContent = `searching: ${Math.round(100 * share)}%`;
        await new Promise((resolve) => setTimeout(resolve));
        shownAt = performance.now();
      }
      return ticket === this.search;
    });
    if (!hits) return;
    this.hits = hits;
    this.apply();
  }

  // ------------------------------------------------------------------------------- the list

  show() {
    const from = this.page * PAGE;
    const shown = this.found.slice(from, from + PAGE);
    this.list.replaceChildren(...shown.map((g) => this.row(g)));
    this.list.scrollTop = 0;
    if (!shown.length) this.list.append(R1.el("p", { class: "soft" }, "\u00a0 Nothing matches."));
    this.back.disabled = this.page === 0;
    this.on.disabled = from + PAGE >= this.found.length;
    this.paged.textContent = shown.length ? `${R1.count(from + 1)}–${R1.count(from + shown.length)} of ${R1.count(this.found.length)}` : "";
  }

  row(g) {
    const { groups, problems } = this.index;
    const [id, source, question] = problems[groups.problem[g]];
    const where = `${this.index.origin(g)} · ${source || id}`;
    const gain = this.gains?.get(g);
    const button = R1.el("button", { type: "button", "data-group": g, onclick: () => this.choose(g, true) },
      R1.el("span", { class: "question" }, question || id),
      R1.el("span", { class: "about" }, R1.el("span", {}, where),
        gain ? R1.el("span", { class: "strip" }, R1.el("b", {}, `${gain[0].toFixed(2)} → ${gain[1].toFixed(2)}`)) : this.strip(g)));
    return button;
  }

  strip(g) {
    const { starts, samples } = this.index;
    let right = 0;
    const marks = [];
    for (let s = starts[g]; s < starts[g + 1]; s++) {
      const flags = samples.flags[s];
      if (flags & GREEDY) continue;
      right += flags & RIGHT ? 1 : 0;
      marks.push(R1.el("i", { class: verdictOf(flags) }));
    }
    const words = `${right} of ${marks.length} right`;
    return R1.el("span", { class: "strip", title: words }, ...(marks.length <= 16 ? marks : []),
      R1.el("b", {}, `${right}/${marks.length}`));
  }

  turn(by) {
    this.page += by;
    this.show();
    this.mark();
  }

  mark() {
    for (const button of this.list.querySelectorAll("button")) {
      const current = +button.dataset.group === this.open;
      button.setAttribute("aria-current", String(current));
      if (current) this.reveal(button);
    }
  }

  // Scroll the list alone, never the page.
  reveal(button) {
    const { list } = this;
    const top = button.offsetTop;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + button.offsetHeight > list.scrollTop + list.clientHeight) {
      list.scrollTop = top + button.offsetHeight - list.clientHeight;
    }
  }

  // ------------------------------------------------------------------------------ the group

  async choose(g, scroll) {
    this.open = g;
    this.all = false;
    if (g === null) {
      this.detail.replaceChildren();
      return;
    }
    const texts = await this.index.texts(g);
    if (this.open !== g) return;
    this.draw(g, texts);
    const page = Math.floor(this.found.indexOf(g) / PAGE);
    if (page >= 0 && page !== this.page) {
      this.page = page;
      this.show();
    }
    this.mark();
    if (scroll && matchMedia("(max-width: 860px)").matches) this.detail.scrollIntoView();
    else if (scroll && this.detail.getBoundingClientRect().top < 0) this.place.scrollIntoView();
  }

  draw(g, [question, gold, samples]) {
    const { el } = R1;
    const { starts } = this.index;
    const numbers = samples.map((_, i) => i);
    const matching = numbers.filter((i) => this.wanted[starts[g] + i]);
    const shown = this.index.within(g, this.all ? numbers : matching, this.inputs.order.value);
    const hidden = samples.length - shown.length;
    const more = hidden
      ? el("button", { type: "button", class: "plain", onclick: () => { this.all = true; this.draw(g, [question, gold, samples]); } },
        `show all ${samples.length} responses`)
      : null;
    this.detail.replaceChildren(
      this.asked(g, question, gold, samples.length, matching.length),
      ...this.merged(g, shown, samples).map(([i, times]) => this.sample(g, i, samples[i], gold, times)),
      ...(more ? [more] : []),
    );
  }

  // Responses of one text and verdict are shown once, with their number: [first, how many].
  merged(g, numbers, samples) {
    const { starts, samples: columns } = this.index;
    const times = new Map();
    for (const i of numbers) {
      const s = starts[g] + i;
      const [text, answer, reason] = samples[i];
      const key = JSON.stringify([text, answer, reason, columns.flags[s], columns.score[s]]);
      const before = times.get(key);
      if (before) before[1] += 1;
      else times.set(key, [i, 1]);
    }
    return [...times.values()];
  }

  asked(g, question, gold, num, matching) {
    const { el } = R1;
    const { groups, problems } = this.index;
    const [id, source] = problems[groups.problem[g]];
    const others = this.index.again(g);
    const steps = others.length > 1
      ? el("div", { class: "chips" }, "the same problem at step", others.map((other) => {
        const share = this.index.share(other);
        return el("button", { type: "button", class: "plain", "aria-current": String(other === g),
          title: share === null ? "" : `${(100 * share).toFixed(0)}% right`, onclick: () => this.visit(other) },
        String(groups.step[other]));
      }))
      : null;
    const kind = { [TRAINING]: "training, ", [HELD_OUT]: "held out, " }[groups.kind[g]] || "";
    const count = matching < num ? `${matching} of ${num} responses match` : R1.plural(num, "response");
    return el("div", { class: "asked" },
      el("div", { class: "hint" }, [`${kind}${this.index.origin(g)}`, source, id, count].filter(Boolean).join(" · ")),
      el("div", { class: "question" }, this.marked(question)),
      el("div", {}, el("span", { class: "soft" }, "gold  "), el("span", { class: "mono" }, this.marked(gold))), steps);
  }

  // Another group of the same problem, whether or not the filters want it.
  async visit(g) {
    const { starts } = this.index;
    if (!this.wanted.subarray(starts[g], starts[g + 1]).includes(1)) {
      this.wanted.fill(1, starts[g], starts[g + 1]);
    }
    await this.choose(g);
  }

  sample(g, i, [text, answer, reason, parts, fault, advantage, ended, prefix], gold, times) {
    const { el } = R1;
    const s = this.index.starts[g] + i;
    const flags = this.index.samples.flags[s];
    const kind = verdictOf(flags);
    const name = { right: "✓ right", wrong: "✗ wrong", fault: "! fault", unjudged: "– not judged" }[kind];
    const score = this.index.samples.score[s];
    const facts = [
      score === null ? null : el("span", {}, `reward ${R1.number(score, "small")}`),
      ...Object.entries(parts || {}).map(([part, value]) => el("span", { class: "tag" }, `${part} ${R1.number(value, "small")}`)),
      el("span", {}, R1.plural(this.index.samples.length[s], "token")),
      ended === "stop" ? null : el("span", { class: "tag" }, ended === "length" ? "cut off" : ended),
      advantage === null ? null : el("span", {}, `advantage ${advantage > 0 ? "+" : ""}${advantage.toFixed(2)}`),
      flags & GREEDY ? el("span", { class: "tag" }, "greedy") : null,
    ];
    const whole = (this.index.prefixes[prefix] || "") + text;
    const [thinking, rest, open] = parted(whole);
    const query = this.inputs.query.value.trim().toLowerCase();
    const length = Math.max(0, thinking.length - "<think></think>".length);
    const folded = thinking
      ? el("details", { class: "thinking", open: this.unfolded || holds(query, thinking) },
        el("summary", {}, `thinking${open ? ", never closed" : ""}, ${R1.plural(length, "character")}`),
        el("div", { class: "text mono" }, this.marked(thinking)))
      : null;
    return el("article", { class: `sample ${kind}`, tabindex: "-1", "data-sample": i, "aria-label": `sample ${i + 1}, ${kind}` },
      el("header", {}, el("span", { class: "verdict" }, name),
        times > 1 ? el("span", { class: "times" }, `× ${times}`) : null, facts),
      fault ? el("p", { class: "reason" }, this.marked(fault)) : null,
      reason ? el("p", { class: "reason" }, this.marked(reason)) : null,
      el("div", { class: "pair" },
        el("div", {}, el("div", { class: "name" }, "answer"),
          answer === null ? el("div", { class: "none" }, "no answer") : el("div", { class: "mono" }, this.marked(answer))),
        el("div", {}, el("div", { class: "name" }, "gold"), el("div", { class: "mono" }, this.marked(gold)))),
      folded, el("div", { class: "text mono" }, this.marked(rest.trimStart())));
  }

  // Text with what was searched for marked. Text nodes only: nothing in it is ever markup.
  marked(text) {
    const query = this.inputs.query.value.trim().toLowerCase();
    const fragment = document.createDocumentFragment();
    const low = query ? text.toLowerCase() : "";
    // Where lower case has another length, positions do not carry over.
    if (!query || low.length !== text.length) {
      fragment.append(text);
      return fragment;
    }
    let from = 0;
    for (let at = low.indexOf(query); at >= 0; at = low.indexOf(query, from)) {
      fragment.append(text.slice(from, at), R1.el("mark", {}, text.slice(at, at + query.length)));
      from = at + query.length;
    }
    fragment.append(text.slice(from));
    return fragment;
  }

  // -------------------------------------------------------------------------------- keyboard

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (typing) {
      if (event.key === "Escape" && event.target === this.inputs.query) {
        this.inputs.query.value = "";
        this.inputs.query.blur();
        this.seek();
      }
      return;
    }
    const box = this.place.getBoundingClientRect();
    const inView = box.top < innerHeight && box.bottom > 0;
    const actions = {
      j: () => this.step(1), k: () => this.step(-1), n: () => this.next(1), p: () => this.next(-1),
      t: () => this.unfold(), "/": () => this.inputs.query.focus(),
    };
    const action = actions[event.key];
    if (!action || !this.index || (!inView && event.key !== "/")) return;
    event.preventDefault();
    action();
  }

  step(by) {
    const samples = [...this.detail.querySelectorAll(".sample")];
    if (!samples.length) return;
    const at = samples.indexOf(document.activeElement);
    const to = at < 0 ? (by > 0 ? 0 : samples.length - 1) : at + by;
    if (to < 0 || to >= samples.length) {
      this.next(by);
      return;
    }
    samples[to].focus({ preventScroll: true });
    samples[to].scrollIntoView({ block: "start" });
  }

  next(by) {
    const at = this.found.indexOf(this.open) + by;
    if (at >= 0 && at < this.found.length) this.choose(this.found[at], true);
  }

  unfold() {
    this.unfolded = !this.unfolded;
    for (const details of this.detail.querySelectorAll("details.thinking")) details.open = this.unfolded;
  }
};

// A response as [thinking, rest, whether the thinking was never closed]: the thinking reaches to the
// last </think>, as the library reads it. Without one a short response is shown as it is.
function parted(whole) {
  const at = whole.lastIndexOf("</think>");
  if (at >= 0) return [whole.slice(0, at + 8), whole.slice(at + 8), false];
  return whole.includes("<think>") && whole.length > 600 ? [whole, "", true] : ["", whole, false];
}
