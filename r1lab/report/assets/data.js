"use strict";
// The blocks of data in the page, and the few helpers that every part uses.
const R1 = {};

// An element. Text is always set as text, so that nothing a model wrote is ever read as markup.
R1.el = function (name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "color") element.style.background = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
};

R1.bytesOf = function (base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const raw = atob(base64);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
};

// A block by its name: JSON under zlib under base64. Rejects where there is none.
R1.unpack = async function (name) {
  const block = document.getElementById(name);
  if (!block) throw new Error(`the page has no block ${name}`);
  const stream = new Blob([R1.bytesOf(block.textContent)]).stream();
  return new Response(stream.pipeThrough(new DecompressionStream("deflate"))).json();
};

// The chunks of texts that were read last.
R1.Chunks = class {
  constructor(run, kept) {
    this.run = run;
    this.kept = kept;
    this.read = new Map();
  }

  async get(number) {
    let chunk = this.read.get(number);
    if (chunk === undefined) {
      chunk = await R1.unpack(`chunk-${this.run}-${number}`);
    } else {
      this.read.delete(number);
    }
    this.read.set(number, chunk);
    if (this.read.size > this.kept) this.read.delete(this.read.keys().next().value);
    return chunk;
  }
};

// ------------------------------------------------------------------------------- numbers

R1.number = function (value, form) {
  if (value === null || value === undefined) return "none";
  if (form === "share") return value.toFixed(3);
  if (form === "count") return R1.count(value);
  if (form === "seconds") return `${value.toPrecision(3)} s`;
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(1);
  if (form === "small") return String(+value.toPrecision(3));
  return size >= 100 ? value.toFixed(0) : size >= 10 ? value.toFixed(1) : value.toFixed(2);
};

R1.count = function (value) {
  return Math.round(value).toLocaleString("en");
};

// 1,234,567 as 1.23 M.
R1.large = function (value) {
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= size) return `${(value / size).toPrecision(3)} ${unit}`;
  }
  return R1.count(value);
};

R1.hours = function (hours) {
  if (hours < 1 / 60) return `${(hours * 3600).toFixed(1)} s`;
  if (hours < 1) return `${(hours * 60).toFixed(hours < 0.1 ? 1 : 0)} min`;
  return `${hours.toFixed(hours < 10 ? 2 : 1)} h`;
};

R1.plural = (num, word) => `${R1.count(num)} ${word}${num === 1 ? "" : "s"}`;

R1.interval = function (estimate, form) {
  if (!estimate) return "none";
  return `${R1.number(estimate.value, form)} [${R1.number(estimate.low, form)}, ${R1.number(estimate.high, form)}]`;
};

R1.color = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// The colours of runs laid over each other, in turn. Runs that differ by their seed only share that
// of their group; a group is numbered behind the runs.
R1.runColors = ["blue", "orange", "green", "purple", "red", "sky", "grey"];
R1.tones = [];
R1.numTones = 0;
R1.giveTones = function (runs, groups) {
  const groupOf = (number) => groups.findIndex((group) => group.runs.includes(number));
  R1.tones = [];
  R1.numTones = 0;
  runs.forEach((_, number) => {
    const group = groupOf(number);
    const mates = group < 0 ? number : groups[group].runs[0];
    R1.tones.push(mates < number ? R1.tones[mates] : R1.numTones++);
  });
  for (const group of groups) R1.tones.push(R1.tones[group.runs[0]]);
};
R1.runColor = (number) => R1.runColors[R1.tones[number] % R1.runColors.length];
