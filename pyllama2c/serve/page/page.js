/* How a story is chosen: the page's script. Top to bottom: elements, the engine, the tree of stories, the views.
   It computes nothing of a model and decides no word: an engine does. The one thing it draws on its own,
   what knobs would do to stored logits, is approximate and labelled so. */

/* ---- Elements ---------------------------------------------------------------------------------------- */

const byId = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

/* As read aloud: three digits, and no powers of ten. */
function percent(p) {
  if (p >= 0.9995) return "100%";
  if (p >= 0.001) return `${(100 * p).toPrecision(3)}%`;
  return p >= 1e-6 ? `${(100 * p).toFixed(4)}%` : p > 0 ? "under 0.0001%" : "0%";
}

const short = (x) => (x == null ? "–" : x.toFixed(4));
const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

/* ---- The engine ---------------------------------------------------------------------------------------
   What computes. The page knows it by these functions alone; all return promises and throw Errors that can be
   shown. A story is {ids, handle}: token ids, and what the engine called them when it last answered, if it did.

     about()                    the model: name, fingerprint, shape, bos, ends, attention
     begin(text | ids)          {story, tokens: [{id, text, bytes}]}
     next(story, {state | seed, sampling, forced})
                                {story, token, picked, ends, coin, target, order, kept, low, high, sum,
                                 before, after, top: [...], logits: Float32Array}
     attention(story, position) {layers, heads, weights: Float32Array (layers, heads, position + 1)}
     crowd(story, {seed, sampling, length}, size, place, told)
                                tells `size` stories at once; told(index, [ids]) as they grow; ours is at `place`
     excerpts()                 {step: {file, line, code}}
   Random states, seeds and fingerprints are decimal strings. HttpEngine asks a server; a page that is one file
   has WasmEngine (pyllama2c/wasm/page_engine.js). */

class HttpEngine {
  #key = null;

  useKey(key) {
    this.#key = key;
  }

  async #fetch(path, body) {
    const headers = body === undefined ? {} : { "content-type": "application/json" };
    if (this.#key !== null) headers.authorization = `Bearer ${this.#key}`;
    let answer;
    try {
      answer = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body: body && JSON.stringify(body) });
    } catch {
      throw new Error("The server cannot be reached; is pyllama2c serve still running?");
    }
    if (answer.ok) return answer;
    const text = await answer.text();
    let message = `${answer.status} ${answer.statusText}`;
    try {
      message = JSON.parse(text).error.message;
    } catch { /* not ours */ }
    throw Object.assign(new Error(message), { status: answer.status });
  }

  async #json(path, body) {
    return (await this.#fetch(path, body)).json();
  }

  /* By name where the server gave one; by ids where it has forgotten. */
  async #about(story, path, body) {
    if (story.handle) {
      try {
        return await this.#json(path, { ...body, node: story.handle });
      } catch (error) {
        if (error.status !== 400) throw error;
      }
    }
    return this.#json(path, { ...body, ids: story.ids });
  }

  about() {
    return this.#json("api/model");
  }

  async begin(from) {
    const { node, tokens } = await this.#json("api/tokens", typeof from === "string" ? { text: from } : { ids: from });
    return { story: { ids: tokens.map((token) => token.id), handle: node }, tokens };
  }

  async next(story, { state, seed, sampling, forced }) {
    const random = state === undefined ? { seed } : { rng_state: state };
    const body = forced === undefined ? { ...random, sampling } : { ...random, sampling, forced };
    const answer = await this.#about(story, "api/next", body);
    return {
      ...answer,
      story: { ids: [...story.ids, answer.token], handle: answer.node },
      before: answer.rng_before,
      after: answer.rng_after,
      logits: floats(answer.logits),
    };
  }

  async attention(story, position) {
    const answer = await this.#about(story, "api/attention", { position });
    return { ...answer, weights: floats(answer.weights) };
  }

  async crowd(story, { seed, sampling, length }, size, place, told) {
    const first = BigInt.asUintN(64, BigInt(seed) - BigInt(place));
    const answer = await this.#fetch("v1/completions", {
      prompt: Array(size).fill(story.ids),
      seed: String(first),
      max_tokens: length,
      ...sampling,
      stream: true,
      return_token_ids: true,
    });
    for await (const event of events(answer.body)) {
      if (event.error) throw new Error(event.error.message);
      for (const choice of event.choices) if (choice.token_ids?.length) told(choice.index, choice.token_ids);
    }
  }

  excerpts() {
    return this.#json("excerpts.json");
  }
}

function floats(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

/* The JSON of server-sent events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").find((line) => line.startsWith("data: "))?.slice(6);
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

/* ---- The tree of stories --------------------------------------------------------------------------------
   A step is a token with how it was chosen (`why`, none for given tokens), the step before it and those after. */

const engine = globalThis.storyEngine ?? new HttpEngine();
let model = null;
let excerpts = null;
let root = null; // the last given token
let tip = null; // where the story is told on
let selected = null; // a step of the path to tip
let shownPath = [];
let beginning = { prompt: "", seed: "1" };
let running = null; // what is under way: {stop: false}

const KNOBS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty"];
const knobs = () => Object.fromEntries(KNOBS.map((name) => [name, byId(name).valueAsNumber]));
const sameKnobs = (a, b) => KNOBS.every((name) => a[name] === b[name]);

function pathTo(step) {
  const path = [];
  for (; step; step = step.parent) path.push(step);
  return path.reverse();
}

/* Where a branch leads: the newest step of it. */
function leafOf(step) {
  while (step.children.length > 0) step = step.children[step.children.length - 1];
  return step;
}

function leaves(step = root) {
  const found = [];
  const open = [step];
  while (open.length > 0) {
    const next = open.pop();
    if (next.children.length === 0) found.push(next);
    open.push(...next.children.toReversed());
  }
  return found;
}

const isFull = (step) => step.story.ids.length > model.seq_len;
const isEnd = (step) => step.why?.ends ?? false;
const stateAfter = (step) => (step.why ? { state: step.why.after } : { seed: beginning.seed });
const lnOf = (step) => Math.log(step.why.top.find((row) => row.id === step.id).p_before);
const surpriseOf = (step) => -lnOf(step) / Math.LN2;

/* The step after `step`: asked of the engine, and kept once. */
async function grow(step, sampling, forced) {
  const why = await engine.next(step.story, { ...stateAfter(step), sampling, forced });
  const byHand = forced !== undefined && why.picked !== forced;
  const known = step.children.find((child) => child.id === why.token);
  if (known) return known;
  const row = why.top.find((each) => each.id === why.token);
  const child = { id: why.token, bytes: row.bytes, why, byHand, sampling, story: why.story, parent: step, children: [] };
  step.children.push(child);
  return child;
}

/* The text of each token of a path, where characters may be cut in pieces: the last piece has the character. */
function textsOf(path) {
  const decoder = new TextDecoder();
  return path.map((step) => decoder.decode(Uint8Array.from(step.bytes), { stream: true }));
}

const MARKS = { "\n": "⏎", "\t": "⇥", " ": "␣", "": "∅" };

/* A token's text as it can be read alone. */
function nameOf(token) {
  if (token.bytes.length === 0) {
    if (token.id === model.bos && token.why === null) return "⟨start⟩"; // where it is told, it ends the story
    return model.ends.includes(token.id) ? "⟨end⟩" : token.text || `⟨${token.id}⟩`;
  }
  const text = new TextDecoder().decode(Uint8Array.from(token.bytes));
  if (text.includes("\ufffd")) return token.bytes.map((byte) => `<${byte.toString(16).toUpperCase().padStart(2, "0")}>`).join("");
  return MARKS[text] ?? text.replaceAll("\n", "⏎");
}

const quoted = (token) => `“${nameOf(token).trim()}”`;

/* ---- Work: one thing at a time --------------------------------------------------------------------------- */

function say(text) {
  byId("status").textContent = text;
}

function complain(error) {
  byId("alert").textContent = error ? error.message : "";
  if (error?.status === 401) {
    byId("key-form").hidden = false;
    byId("key").focus();
  }
}

/* Runs work(run) unless something runs; work looks at run.stop. */
async function busy(work) {
  if (running) return;
  const run = { stop: false };
  running = run;
  complain(null);
  controls();
  try {
    await work(run);
  } catch (error) {
    complain(error);
  } finally {
    running = null;
    controls();
  }
}

function controls() {
  const told = tip !== null && tip !== root;
  byId("tell").textContent = running ? "Stop" : "Tell";
  byId("tell").disabled = !running && (!tip || isEnd(tip) || isFull(tip));
  byId("next").disabled = Boolean(running) || !tip || isEnd(tip) || isFull(tip);
  byId("back").disabled = Boolean(running) || !told;
  byId("copy").disabled = Boolean(running) || !told;
  for (const button of document.querySelectorAll("button.asks")) button.disabled = Boolean(running);
}

const knobsAreGood = () => KNOBS.every((name) => byId(name).reportValidity());

function begin(text, seed) {
  return busy(() => beginWith(text, seed));
}

async function beginWith(text, seed) {
  const { story, tokens } = await engine.begin(text);
  beginning = { prompt: text, seed };
  root = null;
  tokens.forEach((token, i) => {
    const step = { ...token, why: null, story: { ids: story.ids.slice(0, i + 1) }, parent: root, children: [] };
    root = step;
  });
  root.story.handle = story.handle;
  tip = selected = root;
  compared = null;
  showStory();
  say(`The story begins with ${count(tokens.length, "token")}. Tell it.`);
}

function tell() {
  if (running) {
    running.stop = true;
    return;
  }
  if (!knobsAreGood()) return;
  busy(async (run) => {
    const sampling = knobs();
    let n = 0;
    while (!run.stop && !isEnd(tip) && !isFull(tip)) {
      tip = selected = await grow(tip, sampling);
      showTip();
      n++;
    }
    showPanel();
    const end = isEnd(tip) ? "The story has ended" : isFull(tip) ? "The model's memory is full" : "Stopped";
    say(`${end}, ${count(n, "token")} on. ${oddsOf(tip)}`);
  });
}

function nextToken() {
  if (!knobsAreGood()) return;
  busy(async () => {
    tip = selected = await grow(tip, knobs());
    showTip();
    showPanel();
    say(isEnd(tip) ? "The story has ended." : `${nameOf(tip)}, ${percent(Math.exp(lnOf(tip)))} likely.`);
  });
}

function back() {
  busy(async () => {
    const left = tip;
    tip = selected = left.parent;
    if (left.children.length === 0) tip.children.splice(tip.children.indexOf(left), 1);
    if (compared && !leaves().includes(compared)) compared = null;
    showStory();
    say(`Took back ${nameOf(left)}.`);
  });
}

/* Another token in place of `step`: taken by hand, or by the coin with the knobs as they are now. */
function fork(step, forced) {
  if (!knobsAreGood()) return;
  busy(async () => {
    const child = await grow(step.parent, forced === undefined ? knobs() : step.sampling, forced);
    tip = leafOf(child);
    selected = child;
    showStory();
    const index = shownPath.indexOf(child);
    byId(`token-${index}`)?.focus();
    const before = child.children.length > 0 || child === step ? "This branch was there already." : "A new branch; tell it on.";
    say(`${nameOf(child)} in place of ${nameOf(step)}. ${before}`);
  });
}

function oddsOf(leaf) {
  const steps = pathTo(leaf).filter((step) => step.why);
  if (steps.length === 0) return "Nothing is told yet.";
  const ln = steps.reduce((sum, step) => sum + lnOf(step), 0);
  const digits = Math.round(-ln / Math.LN10);
  const odds = digits < 7 ? percent(Math.exp(ln)) : `1 in 10${[...String(digits)].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("")}`;
  return `The model's odds for these ${count(steps.length, "token")}: ${odds}.`;
}

/* ---- The story --------------------------------------------------------------------------------------------- */

function tokenElement(step, text, index) {
  const given = !step.why;
  const level = given ? "given" : `s${[0.5, 2, 4, 7].filter((bits) => surpriseOf(step) >= bits).length}`;
  const chance = given ? "given" : `${percent(Math.exp(lnOf(step)))}${step.byHand ? ", taken by hand" : ""}`;
  return make(
    "span",
    {
      role: "option",
      id: `token-${index}`,
      class: `token ${level}${step.byHand ? " forced" : ""}${text.trim() ? "" : " blank"}`,
      "aria-label": `${nameOf(step)}, ${chance}`,
      "aria-selected": step === selected ? "true" : "false",
      tabindex: step === selected ? "0" : "-1",
    },
    text || (step.bytes.length ? "·" : nameOf(step)),
  );
}

function showStory() {
  shownPath = tip ? pathTo(tip) : [];
  const texts = textsOf(shownPath);
  byId("story").replaceChildren(...shownPath.map((step, i) => tokenElement(step, texts[i], i)));
  controls();
  showPanel();
}

/* One more token, without making the others anew. */
function showTip() {
  const last = shownPath[shownPath.length - 1];
  if (tip.parent !== last) return showStory();
  shownPath.push(tip);
  const index = shownPath.length - 1;
  const before = byId(`token-${index - 1}`);
  for (const element of byId("story").querySelectorAll('[aria-selected="true"]')) mark(element, false);
  before.tabIndex = -1;
  const text = textsOf(shownPath.slice(-4)).pop(); // no character has more pieces
  byId("story").append(tokenElement(tip, text, index));
  controls();
}

function mark(element, on) {
  element.setAttribute("aria-selected", on ? "true" : "false");
  element.tabIndex = on ? 0 : -1;
}

function select(index, focus) {
  const step = shownPath[index];
  if (!step) return;
  for (const element of byId("story").querySelectorAll('[aria-selected="true"]')) mark(element, false);
  selected = step;
  const element = byId(`token-${index}`);
  mark(element, true);
  if (focus) element.focus();
  if (!running) showPanel();
}

const indexOfElement = (target) => [...byId("story").children].indexOf(target.closest?.(".token"));

function storyKeys(event) {
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10, Home: -1e9, End: 1e9 };
  if (!(event.key in moves) || shownPath.length === 0) return;
  event.preventDefault();
  const to = shownPath.indexOf(selected) + moves[event.key];
  select(Math.max(0, Math.min(shownPath.length - 1, to)), true);
}

/* ---- Tabs ---------------------------------------------------------------------------------------------------- */

const PANELS = { why: showWhy, branches: showBranches, attention: showAttention, steps: showSteps, crowd: showCrowd };
let panel = "why";

function showPanel() {
  byId("arcs-box").replaceChildren();
  byId("story").classList.toggle("with-arcs", panel === "attention");
  if (tip) PANELS[panel]();
  controls();
}

function openTab(name, focus) {
  panel = name;
  for (const each of Object.keys(PANELS)) {
    const tab = byId(`tab-${each}`);
    tab.setAttribute("aria-selected", each === name ? "true" : "false");
    tab.tabIndex = each === name ? 0 : -1;
    byId(each).hidden = each !== name;
  }
  if (focus) byId(`tab-${name}`).focus();
  showPanel();
}

function tabKeys(event) {
  const names = Object.keys(PANELS);
  const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -names.indexOf(panel), End: names.length - 1 - names.indexOf(panel) };
  if (!(event.key in moves)) return;
  event.preventDefault();
  openTab(names[(names.indexOf(panel) + moves[event.key] + names.length) % names.length], true);
}

/* ---- Why this word? -------------------------------------------------------------------------------------------- */

const CUTS = {
  min_p: "cut by min p",
  top_k: "cut by top k",
  top_p: "cut by top p",
  zero: "no chance left",
};
let asked = 0; // of questions to the engine about knobs; an older answer is dropped

function showWhy() {
  const step = selected;
  const box = byId("why");
  if (!step.why) {
    const hint = shownPath.length > 1 || root === tip ? " Tell the story, and choose one of its tokens." : "";
    box.replaceChildren(make("h2", {}, `Why ${quoted(step)}?`), make("p", {}, `You gave this one; nobody chose it.${hint}`));
    return;
  }
  const now = knobs();
  if (KNOBS.every((name) => byId(name).checkValidity()) && !sameKnobs(now, step.sampling)) showOtherKnobs(box, step, now);
  else box.replaceChildren(make("h2", {}, `Why ${quoted(step)}?`), ...reasons(step, step.why), ...choices(step, step.why));
}

function reasons(step, why) {
  const row = why.top.find((each) => each.id === step.id);
  const said = [make("p", {}, `The model looked at all that stands before, and gave each of its ${model.vocab_size.toLocaleString("en")} `,
    `tokens a chance. ${quoted(step)} had ${percent(row.p_before)}.`)];
  if (why.order === "greedy") {
    said.push(make("p", {}, "At this temperature the likeliest token is taken, and the coin does not matter."));
  } else {
    const order = why.order === "id" ? "in the order of their ids" : "the likeliest first";
    const kept = why.kept === 1 ? "One token was kept, and is all there is on the line. "
      : `${why.kept.toLocaleString("en")} tokens were kept. They lie side by side on a line, ${order}, each as long as it is likely. `;
    said.push(make("p", {}, kept,
      `The coin is a number between 0 and 1: ${short(why.coin)}. On the line, which is ${short(why.sum)} long, `,
      `that is ${short(why.target)}: the arrow.`));
    const picked = why.top.find((each) => each.id === why.picked);
    said.push(step.byHand
      ? make("p", {}, `The arrow points at ${quoted(picked)}, but you took ${quoted(step)} by hand. `,
        "The coin of this place is used up all the same, so the places after it keep theirs.")
      : make("p", {}, `There lies ${quoted(picked)}, from ${short(picked.low)} to ${short(picked.high)}. That is why.`));
  }
  return said;
}

function choices(step, why, approximate) {
  return [line(why), likeliest(step, why, approximate)];
}

/* The cumulative line, with the arrow. */
function line(why) {
  if (why.target == null) return null;
  const width = Math.max(280, byId("ask-part").clientWidth - 40);
  const x = (value) => (Math.min(1, value / why.sum) * (width - 20) + 10).toFixed(2);
  const rows = why.top.filter((row) => row.low != null && row.high > row.low);
  const parts = rows.map((row, i) => {
    const [left, right] = [Number(x(row.low)), Number(x(row.high))];
    const name = nameOf(row);
    const fits = right - left > 9 * name.length + 8;
    const kind = row.id === why.picked ? "picked" : `part${i % 2}`;
    return draw("g", {}, draw("rect", { class: kind, x: left, y: 26, width: Math.max(0.5, right - left).toFixed(2), height: 30 }),
      fits && draw("text", { class: kind, x: ((left + right) / 2).toFixed(2), y: 46, "text-anchor": "middle" }, name));
  });
  const at = x(why.target);
  const picked = rows.find((row) => row.id === why.picked);
  const told = `The cumulative line from 0 to ${short(why.sum)}; the arrow is at ${short(why.target)}` +
    (picked ? `, within ${nameOf(picked)}, which lies from ${short(picked.low)} to ${short(picked.high)}.` : ".");
  return draw("svg", { class: "line", role: "img", "aria-label": told, viewBox: `0 0 ${width} 78`, width, height: 78 },
    draw("rect", { class: "rest", x: 10, y: 26, width: width - 20, height: 30 }), parts,
    draw("path", { class: "arrow", d: `M${at} 24l-6 -10h4v-10h4v10h4z` }),
    draw("text", { x: 10, y: 72 }, "0"), draw("text", { x: width - 10, y: 72, "text-anchor": "end" }, short(why.sum)));
}

function likeliest(step, why, approximate) {
  const head = ["Token", "The model's own chance", "After penalty and temperature", "On the line", "Instead"];
  const bar = (p) => draw("svg", { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" }, draw("rect", { width: (100 * p).toFixed(2), height: 8 }));
  const rows = why.top.map((row) => {
    const where = row.cut_by ? CUTS[row.cut_by] : row.low == null ? "–" : `${short(row.low)} to ${short(row.high)}`;
    const isTaken = row.id === step.id;
    const name = nameOf(row);
    return make("tr", { class: [row.cut_by && "cut", isTaken && "taken"].filter(Boolean).join(" ") },
      make("th", { scope: "row" }, name, row.id === why.picked && make("span", { class: "coin" }, " ← coin")),
      make("td", {}, bar(row.p_before), percent(row.p_before)),
      make("td", {}, bar(row.p_after), percent(row.p_after)),
      make("td", { class: "where" }, where),
      make("td", {}, isTaken ? "taken" : make("button", { class: "asks", "aria-label": `Take ${name} instead`,
        onclick: () => fork(step, row.id) }, "Take")));
  });
  return make("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "The likeliest tokens" },
    make("table", {},
      make("caption", {}, `The ${why.top.length} likeliest tokens${approximate ? ", approximately" : ""}. `,
        "Those that are cut cannot be taken by the coin; by hand they can, and the story forks there."),
      make("thead", {}, make("tr", {}, head.map((text) => make("th", { scope: "col" }, text)))),
      make("tbody", {}, rows)));
}

/* Knobs turned since: drawn from the stored logits; which token the coin takes is asked of the engine. */
function showOtherKnobs(box, step, now) {
  const answer = make("strong", {}, "…");
  const guess = redraw(step, now);
  box.replaceChildren(
    make("h2", {}, `Why ${quoted(step)}, and what if?`),
    make("p", { class: "approximate" }, "You turned the knobs since this token was chosen. What you see is drawn here in your browser, from the ",
      "numbers stored then: ", make("em", {}, "approximate"), ". With these knobs, the engine says, the same coin takes ", answer, ". ",
      make("button", { class: "asks", onclick: () => fork(step) }, "Go on from here with these knobs"), " ",
      make("button", { onclick: () => turnBack(step) }, "Turn them back")),
    ...choices(step, guess, true));
  const question = ++asked;
  setTimeout(async () => {
    if (question !== asked) return; // turned again, or looked elsewhere
    try {
      const why = await engine.next(step.parent.story, { state: step.why.before, sampling: now });
      if (question !== asked) return;
      const row = why.top.find((each) => each.id === why.picked);
      answer.textContent = `${quoted(row)}${why.picked === step.why.picked ? ", as before" : ""}`;
    } catch (error) {
      complain(error);
    }
  }, 150);
}

function turnBack(step) {
  for (const name of KNOBS) byId(name).value = step.sampling[name];
  showPanel();
  byId("why").focus();
}

/* The rule of csrc/sampler.c, in JavaScript's numbers: near enough to look at, not to choose by. */
function redraw(step, sampling) {
  const { logits, coin } = step.why;
  const { temperature, top_p, top_k, min_p, repetition_penalty } = sampling;
  const changed = Float64Array.from(logits);
  for (const id of new Set(step.parent.story.ids)) changed[id] = changed[id] > 0 ? changed[id] / repetition_penalty : changed[id] * repetition_penalty;
  const own = softmax(Float64Array.from(logits), 1);
  const p = softmax(changed, temperature);
  const order = [...p.keys()].sort((a, b) => p[b] - p[a] || a - b);
  const nucleus = top_p > 0 && top_p < 1;
  const greedy = temperature === 0 || coin == null;
  const reason = new Map();
  let kept = order.filter((id) => p[id] >= min_p * p[order[0]] || !reason.set(id, "min_p"));
  if (top_k > 0) kept.splice(top_k).forEach((id) => reason.set(id, "top_k"));
  if (nucleus) {
    const mass = top_k > 0 ? kept.reduce((sum, id) => sum + p[id], 0) : 1;
    let sum = 0;
    const end = kept.findIndex((id) => (sum += p[id]) > top_p * mass);
    if (end >= 0) kept.splice(end + 1).forEach((id) => reason.set(id, "top_p"));
  }
  const byIds = !nucleus && top_k === 0;
  if (byIds) kept = kept.toSorted((a, b) => a - b);
  const place = new Map();
  let sum = 0;
  for (const id of kept) place.set(id, [sum, (sum += p[id])]);
  const target = greedy ? null : coin * sum;
  const picked = greedy ? order[0] : (kept.find((id) => target < place.get(id)[1]) ?? kept[kept.length - 1]);
  const shown = new Map(step.why.top.map((row) => [row.id, row])); // whose texts are known
  const top = [...shown.values()].sort((a, b) => p[b.id] - p[a.id]).map((row) => ({
    ...row,
    p_before: own[row.id],
    p_after: p[row.id],
    cut_by: greedy ? null : (reason.get(row.id) ?? null),
    low: greedy ? null : (place.get(row.id)?.[0] ?? null),
    high: greedy ? null : (place.get(row.id)?.[1] ?? null),
  }));
  return { order: greedy ? "greedy" : byIds ? "id" : "probability", kept: kept.length, coin, target, sum, picked, top };
}

function softmax(values, temperature) {
  const largest = values.reduce((a, b) => Math.max(a, b));
  if (temperature === 0) return values.map((value) => (value === largest ? 1 : 0));
  const exps = values.map((value) => Math.exp((value - largest) / temperature));
  const sum = exps.reduce((a, b) => a + b);
  return exps.map((value) => value / sum);
}

/* ---- Branches ------------------------------------------------------------------------------------------------------ */

let compared = null; // a leaf beside that of tip

function showBranches() {
  const all = leaves();
  const mine = leafOf(tip);
  const items = all.map((leaf, i) => {
    const start = pathTo(leaf).findLast((step) => step.parent?.children.length > 1 && step.parent.children[0] !== step);
    const depth = pathTo(leaf).filter((step) => step.parent?.children.length > 1 && step.parent.children[0] !== step).length;
    const from = start
      ? `forks at token ${start.story.ids.length - 1}: ${quoted(start)} in place of ${quoted(start.parent.children[0])}`
      : "the story as it was first told";
    return make("li", { role: "treeitem", "aria-level": depth + 1, "aria-selected": leaf === mine ? "true" : "false", class: `depth${Math.min(depth, 6)}`,
      tabindex: leaf === mine ? "0" : "-1", "data-leaf": i, "aria-label": `Branch ${i + 1}, ${from}. ${oddsOf(leaf)}` },
    make("strong", {}, `${i + 1}. ${from}`), make("br"), `${oddsOf(leaf)} Ends: “…${tailOf(leaf)}”`);
  });
  const pick = (event) => {
    const leaf = all[event.target.closest("[data-leaf]")?.dataset.leaf];
    if (leaf && !running) openBranch(leaf);
  };
  const keys = (event) => {
    const at = Number(event.target.dataset?.leaf);
    const to = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: all.length - 1 }[event.key];
    if (event.key === "Enter" || event.key === " ") pick(event);
    else if (to === undefined) return;
    else items[Math.max(0, Math.min(all.length - 1, to))].focus();
    event.preventDefault();
  };
  const others = all.filter((leaf) => leaf !== mine);
  if (!others.includes(compared)) compared = others[0] ?? null;
  const choose = make("select", { id: "beside", onchange: (event) => {
    compared = all[event.target.value];
    showBranches();
    byId("beside").focus();
  } }, others.map((leaf) => make("option", { value: all.indexOf(leaf), selected: leaf === compared }, `branch ${all.indexOf(leaf) + 1}`)));
  byId("branches").replaceChildren(
    make("h2", {}, "Branches"),
    make("p", {}, "Take another token under “Why this word?”, and the story forks there. The coins after a fork stay what they were: ",
      "what differs then differs because of that one token."),
    make("ul", { role: "tree", "aria-label": "Branches of the story", onclick: pick, onkeydown: keys }, items),
    ...(compared ? [make("p", {}, make("label", { for: "beside" }, `Branch ${all.indexOf(mine) + 1} beside `), choose), besides(mine, compared, all)] : []));
}

function openBranch(leaf) {
  tip = selected = leaf;
  showStory();
  byId("branches").querySelector('[aria-selected="true"]')?.focus();
}

function tailOf(leaf) {
  return textsOf(pathTo(leaf)).join("").trim().slice(-40);
}

function besides(a, b, all) {
  const [left, right] = [pathTo(a), pathTo(b)];
  const parted = left.findIndex((step, i) => step !== right[i]);
  const common = parted < 0 ? left.length : parted;
  const column = (path, leaf) => {
    const texts = textsOf(path);
    return make("article", { "aria-label": `Branch ${all.indexOf(leaf) + 1}` }, make("h3", {}, `Branch ${all.indexOf(leaf) + 1}`),
      make("p", { class: "text" }, make("span", { class: "common" }, texts.slice(0, common).join("")),
        make("mark", {}, texts.slice(common, common + 1).join("")), texts.slice(common + 1).join("")));
  };
  return make("div", { class: "two" }, column(left, a), column(right, b));
}

/* ---- What it looked at --------------------------------------------------------------------------------------------------- */

const MAX_ARCS = 256;
let head = null; // {layer, head}, or null: all of them, on average
let looking = 0;

async function attentionOf(step) {
  step.looks ??= engine.attention(step.story, step.story.ids.length - 1);
  try {
    return await step.looks;
  } catch (error) {
    step.looks = null;
    throw error;
  }
}

const attentionOn = () => panel === "attention" && !running;

async function showAttention(step = selected, quiet = false) {
  const box = byId("attention");
  const n = step.story.ids.length;
  const title = make("h2", {}, `What it looked at while reading ${quoted(step)}`);
  if (!model.attention) {
    box.replaceChildren(title, make("p", {}, `This model is on ${model.device}, which keeps its attention to itself. Serve it with --device cpu to see it.`));
    return;
  }
  if (n > MAX_ARCS) {
    box.replaceChildren(title, make("p", {}, `Shown for the first ${MAX_ARCS} tokens; this is number ${n}.`));
    return;
  }
  const ask = ++looking;
  let told;
  try {
    told = await attentionOf(step);
  } catch (error) {
    return complain(error);
  }
  if (ask !== looking || !attentionOn()) return;
  const weights = weightsOf(told, n);
  arcs(step, weights);
  if (quiet) return; // the pointer only passes: the panel stays
  const path = pathTo(step);
  const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, 8);
  box.replaceChildren(title,
    make("p", {}, "To choose what comes next, each ", make("dfn", {}, "head"), ` of each layer looks back at all ${count(n, "token")} up to this one and ` +
      "shares out 100% of its attention. Point at a token of the story, or move to it with the arrow keys, to see its arcs: the thicker, the more it was looked at."),
    heads(told, n),
    make("table", { class: "looks" }, make("caption", {}, head ? `Most looked at by head ${head.head + 1} of layer ${head.layer + 1}` : "Most looked at, on the average of all heads"),
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Token"), make("th", { scope: "col" }, "Place"), make("th", { scope: "col" }, "Attention"))),
      make("tbody", {}, order.map((i) => make("tr", {}, make("th", { scope: "row" }, nameOf(path[i])), make("td", {}, String(i)), make("td", {}, percent(weights[i])))))));
}

function weightsOf(told, n) {
  const one = (layer, h) => told.weights.subarray((layer * told.heads + h) * n, (layer * told.heads + h + 1) * n);
  if (head) return one(head.layer, head.head);
  const mean = new Float32Array(n);
  for (let i = 0; i < told.weights.length; i++) mean[i % n] += told.weights[i] / (told.layers * told.heads);
  return mean;
}

function heads(told, n) {
  const button = (label, pressed, chosen, content) => make("button", { class: "head", "aria-label": label, "aria-pressed": pressed ? "true" : "false",
    onclick: async () => {
      head = chosen;
      await showAttention();
      byId("attention").querySelector('[aria-pressed="true"]')?.focus();
    } }, content);
  const rows = Array.from({ length: told.layers }, (_, layer) => make("div", { role: "group", "aria-label": `Layer ${layer + 1}`, class: "heads" },
    make("span", { class: "note", "aria-hidden": "true" }, `Layer ${layer + 1}`),
    Array.from({ length: told.heads }, (_, h) => button(`Layer ${layer + 1}, head ${h + 1}`, head?.layer === layer && head?.head === h, { layer, head: h },
      thumbnail(told.weights.subarray((layer * told.heads + h) * n, (layer * told.heads + h + 1) * n))))));
  return make("div", { class: "grid" }, button("All heads, on average", head === null, null, "All heads, on average"), rows);
}

function thumbnail(weights) {
  const n = weights.length;
  const bars = Array.from({ length: Math.min(n, 32) }, (_, i) => {
    const [from, to] = [Math.floor((i * n) / Math.min(n, 32)), Math.floor(((i + 1) * n) / Math.min(n, 32))];
    const height = 20 * Math.sqrt(Math.max(...weights.subarray(from, to)));
    return `M${(i * 40) / Math.min(n, 32)} 20v-${height.toFixed(1)}h${(40 / Math.min(n, 32)).toFixed(2)}v${height.toFixed(1)}z`;
  });
  return draw("svg", { viewBox: "0 0 40 20", width: 40, height: 20, "aria-hidden": "true" }, draw("path", { d: bars.join("") }));
}

/* Over the story, from the token back to those it looked at. */
function arcs(step, weights) {
  const index = shownPath.indexOf(step);
  const box = byId("arcs-box");
  if (index < 0) return box.replaceChildren();
  const frame = box.getBoundingClientRect();
  const middle = (i) => {
    const part = byId(`token-${i}`).getClientRects();
    const at = part[part.length - 1];
    return [at.left + at.width / 2 - frame.left, at.top - frame.top + 4];
  };
  const [x, y] = middle(index);
  const story = byId("story").getBoundingClientRect();
  const paths = [...weights.keys()].filter((i) => weights[i] >= 0.02 && i !== index).map((i) => {
    const [a, b] = middle(i);
    const lift = 14 + Math.min(30, Math.abs(x - a) / 12);
    return draw("path", { d: `M${x} ${y}C${x} ${y - lift} ${a} ${b - lift} ${a} ${b}`, "stroke-width": (1 + 7 * weights[i]).toFixed(1), "stroke-opacity": (0.35 + 0.65 * weights[i]).toFixed(2) });
  });
  box.replaceChildren(draw("svg", { "aria-hidden": "true", width: story.width, height: story.height }, paths, draw("circle", { cx: x, cy: y, r: 4 })));
}

/* ---- Step by step ---------------------------------------------------------------------------------------------------------- */

let stage = 0;

/* What happens between two tokens: title, words, and the lines of C that do it. Those may look at the token that was
   read and at the one that was chosen. */
const STAGES = [
  ["Text becomes tokens", "tokens", (read, path) => ["The text is cut into pieces that the model knows, always joining the two neighbours whose joined piece is best. Each piece has a number: ",
    make("code", {}, path.slice(-8).map((step) => `${nameOf(step)} = ${step.id}`).join(", ")), "."]],
  ["A token becomes a row of numbers", "embedding", (read) => [`${quoted(read)} is token ${read.id}: row ${read.id} of a table with a row for each token. The row has ${model.dim} numbers, learned in training; `,
    "they say what the token means, as far as the model knows. All that follows adds to these numbers."]],
  ["The same loudness for everyone", "norm", () => [`Before a layer reads the ${model.dim} numbers, it scales a copy of them so that their average square is 1. Otherwise, what one layer shouts would drown what another says.`]],
  ["Question, label, content", "qkv", () => [`Three tables of learned weights turn the numbers into a query (what am I looking for?), a key (what can I be found by?) and a value (what do I tell?). `,
    `They are cut into heads: ${model.n_heads} queries of ${model.head_size} numbers, and ${model.n_kv_heads} keys and values.`]],
  ["Where was it?", "position", (read, path) => [`So far nothing knows about order. So each pair of numbers of a query or key is turned like the hand of a clock, by an angle that grows with the place in the story, here ${path.length - 1}: `,
    `the first pair by ${((((path.length - 1) * 180) / Math.PI) % 360).toFixed(0)}° in all, the others ever more slowly. Only the distance between two places is left when they meet.`]],
  ["Looking back", "attention", (read) => ["Each head compares its query with the keys of all tokens so far, shares out its attention, and takes that mixture of their values. ", make("span", { class: "looked", "data-step": "1" }),
    ` Open “What it looked at” to see every head.`]],
  ["Adding what was found", "add", () => [`What the ${model.n_heads} heads found is turned back into ${model.dim} numbers by one more table, and added to those that stand for the token. Nothing is overwritten.`]],
  ["Thinking about it", "network", () => [`A small network of its own for each layer: ${model.dim} numbers become ${model.hidden_dim}, of which a curved gate lets some through.`]],
  ["Adding what was thought", "again", () => [`They become ${model.dim} numbers again, which are added as well. That was one layer; the same happens in all ${model.n_layers}, each with weights of its own.`]],
  ["A score for every token", "logits", (read, path, chosen) => [`The last ${model.dim} numbers are held against a row for each of the ${model.vocab_size.toLocaleString("en")} tokens: the better they agree, the higher the score (logit). The highest: `,
    make("code", {}, chosen.why.top.toSorted((a, b) => b.logit - a.logit).slice(0, 5).map((row) => `${nameOf(row)} ${row.logit.toFixed(2)}`).join(", ")), "."]],
  ["The coin", "coin", (read, path, chosen) => [chosen.why.coin == null ? "At temperature 0 no coin is tossed." : `A generator of random numbers, whose state was ${chosen.why.before}, shuffles its 64 bits with three shifts. ` +
    `State ${chosen.why.after} makes the coin ${chosen.why.coin.toFixed(6)}. The same seed gives the same coins, always.`]],
  ["The choice", "line", (read, path, chosen) => [chosen.why.order === "greedy" ? `The largest score wins: ${quoted(chosen)}.`
    : `Scores become chances, tokens are laid side by side, and the coin falls at ${short(chosen.why.target)} of ${short(chosen.why.sum)}. ` +
      (chosen.byHand ? `You took ${quoted(chosen)} by hand instead.` : `There lies ${quoted(chosen)}, from ${short(chosen.why.low)} to ${short(chosen.why.high)}. It is read next, and all begins anew.`)]],
];
const LINES = { greedy: "largest", id: "by_id", probability: "by_probability" };

async function showSteps() {
  const box = byId("steps");
  const chosen = selected;
  if (!chosen.why) {
    box.replaceChildren(make("h2", {}, "Step by step"), make("p", {}, "Choose a token that the model told, and see how it was made."));
    return;
  }
  const read = chosen.parent;
  const [title, key, words] = STAGES[stage];
  try {
    excerpts ??= await engine.excerpts();
  } catch (error) {
    return complain(error);
  }
  if (panel !== "steps" || chosen !== selected) return;
  const excerpt = excerpts[key === "line" ? LINES[chosen.why.order] : key];
  const turn = (by) => () => {
    stage += by;
    showSteps().then(() => byId(by < 0 ? "stage-back" : "stage-on").focus());
  };
  box.replaceChildren(
    make("h2", {}, `From ${quoted(read)} to ${quoted(chosen)}`),
    make("div", { class: "buttons" },
      make("button", { id: "stage-back", "aria-disabled": stage === 0 ? "true" : "false", onclick: () => stage > 0 && turn(-1)() }, "Step back"),
      make("button", { id: "stage-on", "aria-disabled": stage === STAGES.length - 1 ? "true" : "false", onclick: () => stage < STAGES.length - 1 && turn(1)() }, "Step on")),
    make("div", { "aria-live": "polite" },
      make("h3", {}, `${stage + 1} of ${STAGES.length}: ${title}`),
      make("p", {}, words(read, pathTo(read), chosen))),
    make("figure", {}, make("figcaption", {}, `${excerpt.file}, line ${excerpt.line}: the C that does it`),
      make("pre", { tabindex: "0", role: "region", "aria-label": "Excerpt of the C source" }, make("code", {}, excerpt.code))));
  const looked = box.querySelector(".looked");
  if (looked && model.attention) {
    try {
      const told = await attentionOf(read);
      const path = pathTo(read);
      const mean = weightsOfAll(told, path.length);
      const most = [...mean.keys()].sort((a, b) => mean[b] - mean[a]).slice(0, 3);
      looked.textContent = `On average they looked most at ${most.map((i) => `${quoted(path[i])} (${percent(mean[i])})`).join(", ")}.`;
    } catch (error) {
      complain(error);
    }
  }
}

function weightsOfAll(told, n) {
  const mean = new Float32Array(n);
  for (let i = 0; i < told.weights.length; i++) mean[i % n] += told.weights[i] / (told.layers * told.heads);
  return mean;
}

/* ---- Among 63 others ----------------------------------------------------------------------------------------------------------- */

const CROWD = 64;
const PLACE = 31;

/* The longest end of the path that the coin alone told, with the same knobs: {from: step before it, steps}. */
function ownPart() {
  const path = pathTo(tip);
  let start = path.length;
  while (start > 1 && path[start - 1].why && !path[start - 1].byHand && sameKnobs(path[start - 1].sampling, tip.sampling)) start--;
  return { from: path[start - 1], steps: path.slice(start) };
}

function showCrowd() {
  const { steps } = tip === root ? { steps: [] } : ownPart();
  byId("crowd").replaceChildren(
    make("h2", {}, "Among 63 others"),
    make("p", {}, "A server tells many stories at once; every sweep through the weights moves each of them on by a token. Elsewhere that changes " +
      "the last digits of the numbers, and then, now and then, a word. Not here: told among 63 stories with other coins, yours has the same bytes."),
    steps.length === 0 ? make("p", {}, tip === root ? "Tell a story first." : "Tell on after the token that you took by hand.")
      : make("p", {}, make("button", { class: "asks", onclick: tellAmongOthers }, `Tell these ${count(steps.length, "token")} among 63 others`)),
    make("p", { id: "crowd-status", role: "status" }),
    make("div", { id: "crowd-stories", class: "crowd" }));
}

function tellAmongOthers() {
  busy(async () => {
    const { from, steps } = ownPart();
    const { seed, state } = stateAfter(from);
    const expected = steps.filter((step) => !isEnd(step));
    const cells = Array.from({ length: CROWD }, (_, i) => make("progress", { max: steps.length, value: 0, class: i === PLACE ? "ours" : "",
      "aria-label": i === PLACE ? "Your story" : `Story ${i + 1}` }));
    byId("crowd-stories").replaceChildren(...cells);
    const ours = [];
    let differs = -1;
    await engine.crowd(from.story, { seed: seed ?? state, sampling: tip.sampling, length: steps.length }, CROWD, PLACE, (index, ids) => {
      cells[index].value += ids.length;
      if (index !== PLACE) return;
      for (const id of ids) {
        if (differs < 0 && id !== expected[ours.length]?.id) differs = ours.length;
        ours.push(id);
      }
      byId("crowd-status").textContent = `${ours.length} of ${expected.length} tokens: ${differs < 0 ? "the same so far" : "not the same"}`;
    });
    if (differs < 0 && ours.length !== expected.length) differs = Math.min(ours.length, expected.length);
    const bytes = expected.reduce((sum, step) => sum + step.bytes.length, 0);
    cells.forEach((cell) => { cell.value = steps.length; });
    byId("crowd-status").textContent = differs < 0
      ? `Identical: ${count(ours.length, "token")}, ${count(bytes, "byte")}, told as story ${PLACE + 1} of ${CROWD}.`
      : `Different from token ${differs + 1} on. That should not be possible: please report it.`;
  });
}

/* ---- Links: a fragment that holds what was told, and replays it ---------------------------------------------------------------------
   {v, m: fingerprint, p: prompt, s: seed, g: [[knobs]...], b: [[parent, place, ids, forced places, knobs by place]...]}
   A branch starts after the step at `place` of branch `parent`; branch 0 at the end of the prompt. */

function fragment() {
  const table = [];
  const numberOf = (sampling) => {
    const row = KNOBS.map((name) => sampling[name]);
    const at = table.findIndex((each) => each.every((value, i) => value === row[i]));
    return at >= 0 ? at : table.push(row) - 1;
  };
  const branches = [];
  const put = (parent, place, first) => {
    const [ids, forced, changes] = [[], [], []];
    const number = branches.push([parent, place, ids, forced, changes]) - 1;
    const forks = [];
    let last = -1;
    for (let step = first; step; step = step.children[0]) {
      const sampling = numberOf(step.sampling);
      if (sampling !== last) changes.push([ids.length, sampling]);
      last = sampling;
      if (step.byHand) forced.push(ids.length);
      ids.push(step.id);
      for (const other of step.children.slice(1)) forks.push([number, ids.length, other]);
    }
    return forks;
  };
  const waiting = root.children.map((child) => [-1, 0, child]);
  while (waiting.length > 0) waiting.push(...put(...waiting.shift()));
  const held = { v: 1, m: model.fingerprint, p: beginning.prompt, s: beginning.seed, g: table, b: branches };
  const bytes = new TextEncoder().encode(JSON.stringify(held));
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function readFragment(text) {
  const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
  const held = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  const isIds = (list) => Array.isArray(list) && list.every((id) => Number.isInteger(id) && id >= 0);
  const good = held.v === 1 && typeof held.m === "string" && typeof held.p === "string" && /^[0-9]{1,20}$/.test(held.s) &&
    Array.isArray(held.g) && held.g.every((row) => Array.isArray(row) && row.length === KNOBS.length && row.every(Number.isFinite)) &&
    Array.isArray(held.b) && held.b.length <= 256 && held.b.every((branch, i) => Array.isArray(branch) && Number.isInteger(branch[0]) && branch[0] < i && branch[0] >= -1 &&
      Number.isInteger(branch[1]) && isIds(branch[2]) && branch[2].length > 0 && isIds(branch[3]) && Array.isArray(branch[4]) && branch[4][0]?.[0] === 0 &&
      branch[4].every((change) => isIds(change) && change.length === 2 && change[1] < held.g.length));
  if (!good) throw new Error();
  return held;
}

/* Tells what a link holds once more, and says whether it came out the same. */
function replay(text) {
  return busy(async (run) => {
    let held;
    try {
      held = readFragment(text);
    } catch {
      throw new Error("This link is damaged: what follows its # does not hold a story.");
    }
    byId("prompt").value = held.p;
    byId("seed").value = held.s;
    await beginWith(held.p, held.s);
    const told = [];
    const differences = held.m === model.fingerprint ? [] : ["it was made with another model"];
    let n = 0;
    for (const [number, [parent, place, ids, forced, changes]] of held.b.entries()) {
      const steps = [];
      let step = parent < 0 ? root : place === 0 ? null : told[parent]?.[place - 1];
      for (let i = 0; step && i < ids.length; i++) {
        if (run.stop) return say("Stopped.");
        const row = held.g[changes.findLast(([from]) => from <= i)[1]];
        const sampling = Object.fromEntries(KNOBS.map((name, k) => [name, row[k]]));
        const next = await grow(step, sampling, forced.includes(i) ? ids[i] : undefined);
        tip = selected = next;
        if (next.id !== ids[i]) {
          differences.push(`branch ${number + 1}, token ${i + 1}: this engine takes ${quoted(next)}, the link has token ${ids[i]}`);
          break;
        }
        showTip();
        steps.push((step = next));
        n++;
      }
      told.push(steps);
    }
    tip = selected = leafOf(root.children[0] ?? root);
    for (const [i, name] of KNOBS.entries()) byId(name).value = held.g[0]?.[i] ?? byId(name).value;
    showStory();
    say(differences.length === 0 ? `Replayed: identical. ${count(n, "token")} in ${count(held.b.length, "branch").replace("branchs", "branches")}, each as the link has it.`
      : `Replayed, with differences: ${differences.join("; ")}.`);
  });
}

async function copyLink() {
  const text = `#${fragment()}`;
  history.replaceState(null, "", text);
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied. Opening it tells the same again, and says whether it is identical.");
  } catch {
    say("The link is in the address bar; copy it from there.");
  }
}

/* ---- Start ------------------------------------------------------------------------------------------------------------------------ */

async function start() {
  await busy(async () => {
    model = await engine.about();
    byId("key-form").hidden = true;
    byId("model").textContent = `${model.name}, a model of ${model.n_parameters.toLocaleString("en")} learned numbers (${model.dtype}, on ${model.device}). ` +
      `It knows ${model.vocab_size.toLocaleString("en")} tokens and looks back over up to ${model.seq_len.toLocaleString("en")}.`;
  });
  if (!model) return;
  if (location.hash.length > 1) await replay(location.hash.slice(1));
  else await begin(byId("prompt").value, byId("seed").value);
}

byId("begin").addEventListener("submit", (event) => {
  event.preventDefault();
  begin(byId("prompt").value, byId("seed").value);
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  engine.useKey(byId("key").value);
  start();
});
byId("tell").addEventListener("click", tell);
byId("next").addEventListener("click", nextToken);
byId("back").addEventListener("click", back);
byId("copy").addEventListener("click", copyLink);
byId("story").addEventListener("click", (event) => select(indexOfElement(event.target), true));
byId("story").addEventListener("keydown", storyKeys);
byId("story").addEventListener("pointerover", (event) => {
  const step = shownPath[indexOfElement(event.target)];
  if (step && attentionOn()) showAttention(step, true);
});
byId("story").addEventListener("pointerleave", () => attentionOn() && tip && showAttention(selected, true));
byId("knobs").addEventListener("input", () => panel === "why" && selected?.why && !running && showWhy());
for (const name of Object.keys(PANELS)) byId(`tab-${name}`).addEventListener("click", () => openTab(name));
byId("tabs").addEventListener("keydown", tabKeys);
addEventListener("resize", () => !running && tip && showPanel());
addEventListener("hashchange", () => location.hash.length > 1 && !running && replay(location.hash.slice(1)));
start();
