"use strict";
// The samples of a run as its index has them (r1lab/report/transcripts.py): a few numbers of each, in
// columns, enough to filter and to sort. Nothing here touches the page.
const RIGHT = 1, WRONG = 2, FAULT = 4, CUT_OFF = 8, NO_ANSWER = 16, GREEDY = 32;
const TRAINING = 0, HELD_OUT = 1, SUITE = 2; // SUITE + i: the i-th of the index's suites
const VERDICTS = {
  any: ["any verdict", 0], right: ["right", RIGHT], wrong: ["wrong", WRONG], fault: ["faulted", FAULT],
  cut: ["cut off", CUT_OFF], none: ["no answer", NO_ANSWER], greedy: ["greedy answer", GREEDY],
};
const ORDERS = {
  newest: "newest first", oldest: "oldest first", high: "highest reward", low: "lowest reward",
  longest: "longest response", shortest: "shortest response", improved: "most improved problem",
  mixed: "most divided group",
};

// Groups are numbered as they were made, and so are samples: those of group g are the numbers from
// starts[g] to starts[g + 1].
R1.Samples = class {
  static async of(run) {
    return new R1.Samples(run, await R1.unpack(`index-${run}`));
  }

  constructor(run, index) {
    Object.assign(this, index, { run, chunks: new R1.Chunks(run, 16), starts: [0] });
    for (const size of this.groups.size) this.starts.push(this.starts[this.starts.length - 1] + size);
    this.num = this.groups.size.length;
  }

  // What a group's samples were made for: "step 40", "eval 40", the name of a suite.
  origin(g) {
    const kind = this.groups.kind[g];
    if (kind >= SUITE) return this.suites[kind - SUITE];
    return `${kind === HELD_OUT ? "eval" : "step"} ${this.groups.step[g]}`;
  }

  // [question, gold, samples] of a group.
  async texts(g) {
    const chunk = await this.chunks.get(this.groups.chunk[g]);
    return chunk[this.groups.place[g]];
  }

  // Which samples the filters want: a byte for each. `hits` are those that a search found, or null.
  wanted({ kind, step, source, verdict, problem }, hits) {
    const { groups, samples, problems, starts, num } = this;
    const flag = VERDICTS[verdict][1];
    const wanted = new Uint8Array(samples.flags.length);
    for (let g = 0; g < num; g++) {
      if (kind !== "any" && groups.kind[g] !== +kind) continue;
      if (step !== "any" && groups.step[g] !== +step) continue;
      const [id, of] = problems[groups.problem[g]];
      if (source !== "any" && of !== source) continue;
      if (problem && !id.startsWith(problem.trim())) continue;
      for (let s = starts[g]; s < starts[g + 1]; s++) {
        wanted[s] = (!flag || samples.flags[s] & flag) && (!hits || hits[s]) ? 1 : 0;
      }
    }
    return wanted;
  }

  // The groups with a wanted sample, as they were made, and the number of wanted samples.
  groupsWith(wanted) {
    const found = [];
    let matching = 0;
    for (let g = 0; g < this.num; g++) {
      let any = 0;
      for (let s = this.starts[g]; s < this.starts[g + 1]; s++) any += wanted[s];
      matching += any;
      if (any) found.push(g);
    }
    return { found, matching };
  }

  // Groups in one of the ORDERS, by their wanted samples.
  sorted(found, order, wanted) {
    const { starts, samples } = this;
    if (order === "oldest") return found;
    if (order === "newest") return [...found].reverse();
    const over = (g, column, start, fold) => {
      let value = start;
      for (let s = starts[g]; s < starts[g + 1]; s++) {
        if (wanted[s] && column[s] !== null) value = fold(value, column[s]);
      }
      return value;
    };
    const moments = (g) => over(g, samples.score, [0, 0, 0], ([sum, squares, n], x) => [sum + x, squares + x * x, n + 1]);
    const mean = (g) => {
      const [sum, , n] = moments(g);
      return n ? sum / n : null;
    };
    const value = {
      high: (g) => mean(g) ?? -Infinity,
      low: (g) => -(mean(g) ?? Infinity),
      longest: (g) => over(g, samples.length, 0, Math.max),
      shortest: (g) => -over(g, samples.length, Infinity, Math.min),
      mixed: (g) => {
        const [sum, squares, n] = moments(g);
        return n ? squares / n - (sum / n) ** 2 : -1;
      },
    }[order];
    return found.map((g) => [value(g), g]).sort(([a, g], [b, h]) => b - a || g - h).map(([, g]) => g);
  }

  // Of each problem that came again, its last group, with its share of right samples at first and
  // at last: a map in the order of what was gained.
  improved(found) {
    const { groups } = this;
    const chosen = new Set(found);
    const first = new Map();
    const last = new Map();
    groups.problem.forEach((problem, g) => {
      const key = `${groups.kind[g]} ${problem}`;
      if (!first.has(key)) first.set(key, g);
      if (chosen.has(g)) last.set(key, g);
    });
    const gains = [];
    for (const [key, g] of last) {
      const [before, after] = [this.share(first.get(key)), this.share(g)];
      if (first.get(key) !== g && before !== null && after !== null) gains.push([g, [before, after]]);
    }
    const gain = ([before, after]) => after - before;
    return new Map(gains.sort(([g, a], [h, b]) => gain(b) - gain(a) || g - h));
  }

  // The share of right samples in a group, the greedy one apart; null where none was judged.
  share(g) {
    let right = 0, judged = 0;
    for (let s = this.starts[g]; s < this.starts[g + 1]; s++) {
      const flags = this.samples.flags[s];
      if (flags & GREEDY || !(flags & (RIGHT | WRONG))) continue;
      judged += 1;
      right += flags & RIGHT ? 1 : 0;
    }
    return judged ? right / judged : null;
  }

  // The numbers of a group's samples in one of the ORDERS.
  within(g, numbers, order) {
    const at = (column) => (i) => this.samples[column][this.starts[g] + i] ?? -Infinity;
    const by = { high: [at("score"), -1], low: [at("score"), 1], longest: [at("length"), -1], shortest: [at("length"), 1] };
    const [value, sign] = by[order] || [null, 1];
    return value ? [...numbers].sort((a, b) => sign * (value(a) - value(b)) || a - b) : numbers;
  }

  // All other groups of a group's problem, and itself.
  again(g) {
    const { groups } = this;
    const found = [];
    groups.problem.forEach((problem, other) => {
      if (problem === groups.problem[g] && groups.kind[other] === groups.kind[g]) found.push(other);
    });
    return found;
  }

  // A byte for each sample: whether its texts hold the words. Null when `going` said no meanwhile;
  // it is asked after each chunk, with the share that was read.
  async search(words, going) {
    const { groups, starts, num } = this;
    const hits = new Uint8Array(starts[num]);
    for (let g = 0, chunk = null, number = -1; g < num; g++) {
      if (groups.chunk[g] !== number) {
        number = groups.chunk[g];
        // Past the cache: a search reads everything once.
        chunk = await R1.unpack(`chunk-${this.run}-${number}`);
        if (!(await going(g / num))) return null;
      }
      const [question, gold, samples] = chunk[groups.place[g]];
      const whole = holds(words, question) || holds(words, gold);
      samples.forEach(([text, answer, reason, , fault], i) => {
        hits[starts[g] + i] = whole || [text, reason, answer, fault].some((one) => holds(words, one)) ? 1 : 0;
      });
    }
    return hits;
  }
};

function verdictOf(flags) {
  if (flags & FAULT) return "fault";
  if (flags & RIGHT) return "right";
  return flags & WRONG ? "wrong" : "unjudged";
}

function holds(words, text) {
  return Boolean(words) && typeof text === "string" && text.toLowerCase().includes(words);
}
