/* How the sampler's coin came to its token: pyllama2c/serve/choice.py, where everything is explained, in JavaScript. The
   choice is the module's; Math.fround makes these the sampler's own float32 steps. */

const N_TOP = 20;
const f32 = Math.fround;
const UINT64 = (value) => BigInt.asUintN(64, value);

function coinOf(state) {
  return Number(UINT64(state * 0x2545f4914f6cdd1dn) >> 40n) / 2 ** 24;
}

function tossed(before, after) {
  if (before === after) return false;
  let state = before;
  state ^= state >> 12n;
  state ^= UINT64(state << 25n);
  state ^= state >> 27n;
  if (state !== after) throw new Error(`the sampler's state went from ${before} to ${after}`);
  return true;
}

/* The running sums, each rounded to float32. */
function runningSums(values) {
  const sums = new Float32Array(values.length);
  let sum = 0;
  for (let i = 0; i < values.length; i++) sums[i] = sum = f32(sum + values[i]);
  return sums;
}

/* The sum of a row as the kernels have it: in 16 lanes, by blocks of 64. */
function total(exps) {
  const [lanes, block] = [new Float32Array(16), new Float32Array(16)];
  for (let start = 0; start < exps.length; start += 64) {
    block.fill(0);
    for (let i = start; i < Math.min(start + 64, exps.length); i++) block[i % 16] += exps[i];
    for (let i = 0; i < 16; i++) lanes[i] += block[i];
  }
  for (let half = 8; half > 0; half >>= 1) for (let i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}

/* Kept tokens side by side, each as long as it is probable. */
class Line {
  constructor(order, p, ids, ends, target) {
    Object.assign(this, { order, p, ids, ends, target });
    this.largest = p.reduce((a, b) => Math.max(a, b));
    this.places = new Map(Array.from(ids, (id, i) => [id, i]));
  }

  /* The largest logit was taken. */
  static none(vocabSize, token) {
    const p = new Float32Array(vocabSize);
    p[token] = 1;
    return new Line("greedy", p, [token], [1], null);
  }

  static drawn(exps, { top_p, top_k, min_p }, coin) {
    const sum = total(exps);
    const p = exps.map((value) => value / sum);
    const largest = p.reduce((a, b) => Math.max(a, b));
    let floor = f32(min_p * largest);
    const nucleus = top_p > 0 && top_p < 1;
    const above = () => {
      const found = [];
      for (let id = 0; id < p.length; id++) if (p[id] >= floor && p[id] > 0) found.push(id);
      return found;
    };
    if (!nucleus && top_k === 0) return Line.#of("id", p, above(), coin, min_p === 0);
    if (nucleus && top_k === 0 && p.length > 1) floor = Math.max(floor, f32(f32(1 - top_p) / f32(p.length - 1)));
    let kept = above().sort((a, b) => p[b] - p[a] || a - b);
    let mass = 1;
    if (top_k > 0) {
      kept = kept.slice(0, top_k);
      mass = runningSums(kept.map((id) => p[id])).at(-1);
    }
    if (nucleus) {
      const limit = f32(top_p * mass);
      const beyond = runningSums(kept.map((id) => p[id])).findIndex((reached) => reached > limit);
      if (beyond >= 0) kept = kept.slice(0, beyond + 1);
    }
    return Line.#of("probability", p, kept, coin, false);
  }

  static #of(order, p, kept, coin, whole) {
    const ids = kept.length > 0 ? kept : [p.indexOf(p.reduce((a, b) => Math.max(a, b)))];
    const ends = runningSums(ids.map((id) => p[id]));
    return new Line(order, p, ids, ends, whole ? coin : f32(coin * ends.at(-1)));
  }

  get sum() {
    return this.target === null ? null : this.ends.at(-1);
  }

  get taken() {
    if (this.target === null) return this.ids[0];
    const at = this.ends.findIndex((end) => end > this.target);
    return this.ids.at(at); // by rounding, the coin may pass the end: the last
  }

  interval(id) {
    const i = this.places.get(id);
    if (this.target === null || i === undefined) return { low: null, high: null };
    return { low: i > 0 ? this.ends[i - 1] : 0, high: this.ends[i] };
  }

  cutBy(id, { top_k, min_p }) {
    if (this.target === null || this.places.has(id)) return null;
    const p = this.p[id];
    if (p === 0) return "zero";
    if (p < f32(min_p * this.largest)) return "min_p";
    const before = this.p.reduce((n, other, i) => n + (other > p || (other === p && i < id)), 0);
    return top_k > 0 && top_k <= before ? "top_k" : "top_p";
  }
}

/* The likeliest tokens after temperature, likeliest first, and those of `always`. */
function topTokens(line, logits, sampler, always, shown) {
  const { p } = line;
  const n = Math.min(N_TOP, p.length);
  const least = p.toSorted().at(-n);
  let ids = [];
  for (let id = 0; id < p.length; id++) if (p[id] >= least) ids.push(id);
  ids = ids.sort((a, b) => p[b] - p[a] || logits[b] - logits[a] || a - b).slice(0, n);
  const missing = [...new Set(always)].filter((id) => !ids.includes(id));
  ids = [...ids.slice(0, n - missing.length), ...missing];
  const largest = logits.reduce((a, b) => Math.max(a, b));
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - largest);
  return ids.map((id) => ({
    ...shown(id),
    logit: logits[id],
    p_before: Math.exp(logits[id] - largest) / sum,
    p_after: p[id],
    cut_by: line.cutBy(id, sampler),
    ...line.interval(id),
  }));
}
