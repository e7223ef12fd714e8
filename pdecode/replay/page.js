"use strict";
// One clock drives every method; each card draws itself for the step that clock says.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const many = data.runs.length > 1;
  const FONT = 15, LINE = 23, OPEN = "\u00b7", DEPTH = 120, BARS = 56;
  const MONO = `${FONT}px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace`;
  const state = { prompt: 0, time: 0, unit: "calls", playing: false, speed: 1, picture: true };

  const make = (tag, props = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), props);
    node.append(...children);
    return node;
  };
  const theme = () => {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    // Early to late: the ink stays readable on each of them.
    const stops = dark
      ? [[37, 74, 138], [22, 100, 107], [44, 108, 62], [128, 98, 22], [148, 62, 40]]
      : [[176, 208, 255], [168, 226, 226], [190, 232, 180], [250, 224, 140], [255, 194, 166]];
    return { dark, stops, ink: of("--ink"), dim: of("--dim"), open: of("--open"),
             line: of("--line"), accent: of("--accent"), card: of("--card") };
  };
  let look = theme();
  const shade = (part) => {
    const stops = look.stops, at = Math.max(0, Math.min(1, part)) * (stops.length - 1);
    const i = Math.min(Math.floor(at), stops.length - 2), f = at - i;
    return `rgb(${stops[i].map((v, k) => Math.round(v + (stops[i + 1][k] - v) * f)).join()})`;
  };
  const sharp = (canvas, width, height) => {
    const ratio = window.devicePixelRatio || 1;
    canvas.style.height = `${height}px`;
    canvas.width = Math.max(1, Math.round(width * ratio));
    canvas.height = Math.max(1, Math.round(height * ratio));
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    return pen;
  };

  // ---- one method on one prompt ------------------------------------------------
  class Track {
    constructor(trace) {
      this.trace = trace;
      const n = this.size = trace.pieces.length;
      let last = 0;
      for (const step of trace.steps) last = Math.max(last, step);
      for (const event of trace.events || []) last = Math.max(last, event[0]);
      this.turns = last + 1;
      this.perStep = new Float64Array(this.turns);
      for (const step of trace.steps) if (step >= 0) this.perStep[step] += 1;
      this.now = new Array(n);
      this.at = new Int32Array(n);
      this.revised = new Uint8Array(n);
      // Where every step has one token, there is no draft to tell it from.
      this.drafts = trace.kinds.includes("accepted");
      this.events = trace.events && [...trace.events].sort((a, b) => a[0] - b[0]);
      this.reset();
    }
    reset() {
      this.step = 0; this.next = 0; this.filled = 0;
      this.now.fill(null); this.at.fill(-1); this.revised.fill(0);
      if (!this.order) {
        this.order = Array.from(this.trace.steps.keys())
          .filter((i) => this.trace.steps[i] >= 0)
          .sort((a, b) => this.trace.steps[a] - this.trace.steps[b]);
      }
    }
    // What stands after `step` steps. Forward is incremental, back begins anew.
    seek(step) {
      step = Math.max(0, Math.min(step, this.turns));
      if (step < this.step) this.reset();
      this.step = step;
      if (this.events) {
        for (; this.next < this.events.length && this.events[this.next][0] < step; this.next++) {
          const [when, place, piece, prob, kind] = this.events[this.next];
          if (place >= this.size) continue;
          if (kind === "reopened") {
            if (this.now[place] !== null) this.filled--;
            this.now[place] = null; this.revised[place] = 1; continue;
          }
          if (this.now[place] === null) this.filled++;
          if (kind === "revised") this.revised[place] = 1;
          this.now[place] = [piece, prob]; this.at[place] = when;
        }
        return;
      }
      const { steps, pieces, probs } = this.trace;
      for (; this.next < this.order.length && steps[this.order[this.next]] < step; this.next++) {
        const i = this.order[this.next];
        this.now[i] = [pieces[i], probs[i]]; this.at[i] = steps[i]; this.filled++;
      }
    }
    unit(kind) { return (kind === "calls" ? this.trace.calls : this.trace.seconds) / this.turns; }
    stepAt(time, kind) { return Math.floor(time / Math.max(this.unit(kind), 1e-12) + 1e-6); }
    tell(i) {
      const has = this.now[i], trace = this.trace, lines = [];
      if (!has) return this.revised[i] ? "open again" : "open";
      lines.push(JSON.stringify(has[0]));
      lines.push(`position ${i + 1}, step ${this.at[i] + 1} of ${this.turns}`);
      if (has[1] !== null && has[1] !== undefined) lines.push(`probability ${has[1].toFixed(3)}`);
      const words = { accepted: "a draft, accepted", own: "the target's own token", filled: "filled" };
      const proposed = trace.proposed && trace.proposed[this.at[i]];
      let kind = words[trace.kinds[i]] || trace.kinds[i];
      if (trace.kinds[i] === "own" && proposed) {
        const kept = this.perStep[this.at[i]] - 1;
        kind += kept < proposed ? `, corrects the draft (${kept} of ${proposed} accepted)`
                                : ` after ${kept} accepted`;
      }
      lines.push(this.revised[i] ? `${kind}; revised` : kind);
      return lines.join("\n");
    }
  }

  // ---- a card ------------------------------------------------------------------
  class Card {
    constructor(run) {
      this.run = run;
      this.tracks = run.traces.map((trace) => new Track(trace));
      this.count = make("p", { className: "count" });
      this.canvas = make("canvas", { tabIndex: 0 });
      this.canvas.setAttribute("role", "img");
      this.spacer = make("div");
      this.box = make("div", { className: "text" }, this.canvas, this.spacer);
      this.bars = make("canvas"); this.depth = make("canvas");
      this.depthNote = make("p");
      this.node = make("section", {}, make("h2", { textContent: run.name }),
        make("p", { className: "about", textContent: run.about }), this.count, this.box,
        make("div", { className: "picture" },
          make("p", { textContent: "tokens by step" }), this.bars),
        make("div", { className: "picture deep" }, this.depthNote, this.depth));
      this.box.addEventListener("scroll", () => this.paint());
      for (const kind of ["pointermove", "pointerdown"]) {
        this.canvas.addEventListener(kind, (event) => this.hover(event));
      }
      this.canvas.addEventListener("pointerleave", hideTip);
    }
    get track() { return this.tracks.find((t) => t.trace.prompt === state.prompt) || this.tracks[0]; }
    get shown() { return !this.node.hidden; }

    // Every letter gets a line and an x once; painting then only walks what is visible.
    lay() {
      const track = this.track, trace = track.trace;
      this.width = Math.max(120, this.box.clientWidth);
      const pen = this.canvas.getContext("2d");
      pen.font = MONO;
      const cell = this.cell = pen.measureText("M").width;
      const letters = [], owner = [], lines = [0];
      const xs = [], row = [];
      let x = 0, line = 0;
      const put = (text, who) => {
        for (const letter of text) {
          if (letter === "\n") {
            letters.push("\u23ce"); owner.push(who); xs.push(x); row.push(line);
            x = 0; line++; lines[line] = letters.length; continue;
          }
          const wide = letter === "\t" ? 4 : letter.codePointAt(0) > 0x2e7f ? 2 : 1;
          if (x + wide * cell > this.width - 2) { x = 0; line++; lines[line] = letters.length; }
          letters.push(letter === "\t" ? " " : letter);
          owner.push(who); xs.push(x); row.push(line);
          x += wide * cell;
        }
      };
      if (!trace.grid) {
        put(data.prompts[trace.prompt] || "", -1);
        trace.pieces.forEach((piece, i) => put(piece, i));
      }
      Object.assign(this, { letters, owner, lines, xs, row });
      this.firstLetter = new Int32Array(track.size).fill(-1);
      owner.forEach((who, i) => {
        if (who >= 0 && this.firstLetter[who] < 0) this.firstLetter[who] = i;
      });
      const height = trace.grid ? this.gridSide() * trace.grid[0] : (line + 1) * LINE + 4;
      this.canvas.style.height = "0";  // so that the box is as high as its content
      this.spacer.style.height = `${height}px`;
      this.view = Math.min(height, this.box.clientHeight || height);
      this.spacer.style.height = `${Math.max(0, height - this.view)}px`;
      this.pen = sharp(this.canvas, this.width, this.view);
      this.layBars(); this.layDepth();
    }
    gridSide() { return Math.max(2, Math.min(28, Math.floor(this.width / this.track.trace.grid[1]))); }

    layBars() {
      const track = this.track, wide = this.width, pen = sharp(this.bars, wide, BARS);
      const most = track.perStep.reduce((a, b) => Math.max(a, b), 1);
      const columns = Math.min(track.turns, Math.max(1, Math.floor(wide / 2)));
      const slot = wide / columns;
      for (let c = 0; c < columns; c++) {
        const from = Math.floor(c * track.turns / columns);
        const to = Math.max(from + 1, Math.floor((c + 1) * track.turns / columns));
        let sum = 0;
        for (let s = from; s < to; s++) sum += track.perStep[s];
        const high = (BARS - 16) * sum / (to - from) / most;
        pen.fillStyle = shade(from / Math.max(track.turns - 1, 1));
        pen.fillRect(c * slot, BARS - high, Math.max(1, slot - (slot > 4 ? 1 : 0)), high);
      }
      const mean = track.order.length / Math.max(track.trace.calls, 1);
      pen.fillStyle = look.dim; pen.font = "11.5px system-ui, sans-serif";
      pen.fillText(`${mean.toFixed(2)} tokens a call on average, at most ${most} in a step`, 0, 11);
      this.barsImage = this.keep(this.bars);
    }
    // Column: a position; down: steps. Filled from the step on that committed it.
    layDepth() {
      const track = this.track, wide = this.width, pen = sharp(this.depth, wide, DEPTH);
      const n = Math.max(track.size, 1), down = DEPTH / track.turns, across = wide / n;
      pen.fillStyle = look.open; pen.fillRect(0, 0, wide, DEPTH);
      track.trace.steps.forEach((step, i) => {
        if (step < 0) return;
        pen.fillStyle = shade(step / Math.max(track.turns - 1, 1));
        pen.fillRect(i * across, step * down, Math.max(across, 0.5) + 0.3, DEPTH - step * down);
      });
      for (const [step, place, , , kind] of track.events || []) {
        if (kind === "filled" || place >= n) continue;
        pen.fillStyle = look.ink;
        pen.fillRect(place * across, step * down, Math.max(across, 1.5), Math.max(2, down * .5));
      }
      this.depthNote.textContent = `what was final when: ${n} positions across, ${track.turns} steps down`;
      this.depthImage = this.keep(this.depth);
    }
    keep(canvas) {
      const copy = make("canvas", { width: canvas.width, height: canvas.height });
      copy.getContext("2d").drawImage(canvas, 0, 0);
      return copy;
    }
    restore(canvas, image) {
      const pen = canvas.getContext("2d");
      pen.save(); pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.clearRect(0, 0, canvas.width, canvas.height); pen.drawImage(image, 0, 0);
      pen.restore();
      return pen;
    }

    paint() {
      if (!this.shown || !this.pen) return;
      const track = this.track;
      track.seek(track.stepAt(state.time, state.unit));
      const calls = Math.round(track.step * track.unit("calls"));
      const done = track.step >= track.turns ? ", done" : "";
      this.count.textContent = `${track.filled} of ${track.size} tokens, ${calls} calls, ` +
        `${(track.step * track.unit("seconds")).toFixed(3)} s${done}`;
      this.canvas.setAttribute("aria-label", this.count.textContent);
      if (track.trace.grid) this.paintGrid(); else this.paintText();
      const cursor = (canvas, image, high, vertical) => {
        const pen = this.restore(canvas, image), part = track.step / track.turns;
        pen.fillStyle = look.accent;
        if (vertical) pen.fillRect(Math.min(part * this.width, this.width - 2), 0, 2, high);
        else pen.fillRect(0, Math.min(part * high, high - 2), this.width, 2);
      };
      cursor(this.bars, this.barsImage, BARS, true);
      if (state.picture) cursor(this.depth, this.depthImage, DEPTH, false);
    }
    paintText() {
      const { pen, track, cell } = this, top = this.box.scrollTop;
      pen.clearRect(0, 0, this.width, this.view);
      pen.font = MONO; pen.textBaseline = "middle";
      const span = Math.max(track.turns - 1, 1);
      const from = this.lines[Math.max(0, Math.floor(top / LINE) - 1)] || 0;
      const last = Math.floor((top + this.view) / LINE) + 1;
      const to = last < this.lines.length ? this.lines[last] : this.letters.length;
      for (let i = from; i < to; i++) {
        const who = this.owner[i], x = this.xs[i], y = this.row[i] * LINE - top;
        if (who < 0) {
          pen.fillStyle = look.dim;
          pen.fillText(this.letters[i], x, y + LINE / 2); continue;
        }
        const has = track.now[who];
        const next = i + 1 < to && this.row[i + 1] === this.row[i] ? this.xs[i + 1] - x : cell;
        const wide = Math.max(next, cell);
        if (has === null) {
          pen.fillStyle = look.open; pen.fillRect(x + .5, y + 3, wide - 1, LINE - 6);
          pen.fillStyle = look.dim; pen.fillText(OPEN, x, y + LINE / 2); continue;
        }
        pen.fillStyle = shade(track.at[who] / span);
        pen.fillRect(x, y + 1.5, wide + .4, LINE - 3);
        if (track.at[who] === track.step - 1 && track.step < track.turns) {
          pen.fillStyle = look.accent; pen.fillRect(x, y + 1.5, wide + .4, 2);
        }
        pen.fillStyle = look.ink;
        const nth = i - this.firstLetter[who], letter = has[0] === track.trace.pieces[who]
          ? this.letters[i] : [...has[0]][nth] || "";
        pen.globalAlpha = letter === "\u23ce" ? .35 : 1;
        pen.fillText(letter, x, y + LINE / 2);
        pen.globalAlpha = 1;
        if (track.revised[who] || (track.drafts && track.trace.kinds[who] === "own")) {
          pen.setLineDash(track.revised[who] ? [3, 2] : []);
          pen.strokeStyle = look.ink; pen.lineWidth = 1.4; pen.beginPath();
          pen.moveTo(x + 1, y + LINE - 3); pen.lineTo(x + wide - 1, y + LINE - 3); pen.stroke();
        }
      }
    }
    paintGrid() {
      const { pen, track } = this, [, columns] = track.trace.grid, side = this.gridSide();
      const top = this.box.scrollTop, span = Math.max(track.turns - 1, 1);
      pen.clearRect(0, 0, this.width, this.view);
      for (let i = 0; i < track.size; i++) {
        const x = (i % columns) * side, y = Math.floor(i / columns) * side - top;
        if (track.now[i] === null) { pen.fillStyle = look.open; pen.fillRect(x, y, side - 1, side - 1); continue; }
        const grey = Math.round(255 * track.trace.values[i]);
        pen.fillStyle = shade(track.at[i] / span); pen.fillRect(x, y, side - 1, side - 1);
        pen.fillStyle = `rgb(${grey},${grey},${grey})`;
        const edge = Math.max(1, side * .16);
        pen.fillRect(x + edge, y + edge, side - 1 - 2 * edge, side - 1 - 2 * edge);
      }
    }
    tokenAt(event) {
      const box = this.canvas.getBoundingClientRect(), top = this.box.scrollTop;
      const x = event.clientX - box.left, y = event.clientY - box.top + top;
      const grid = this.track.trace.grid;
      if (grid) {
        const side = this.gridSide(), column = Math.floor(x / side);
        const i = Math.floor(y / side) * grid[1] + column;
        return column < grid[1] && i < this.track.size ? i : -1;
      }
      const line = Math.floor(y / LINE);
      for (let i = this.lines[line] ?? 1e9; i < this.letters.length && this.row[i] === line; i++) {
        const end = this.row[i + 1] === line ? this.xs[i + 1] : this.xs[i] + this.cell;
        if (x >= this.xs[i] && x < end) return this.owner[i];
      }
      return -1;
    }
    hover(event) {
      const i = this.tokenAt(event);
      if (i < 0) { hideTip(); return; }
      tip.textContent = this.track.tell(i);
      tip.hidden = false;
      const wide = tip.offsetWidth, high = tip.offsetHeight;
      tip.style.left = `${Math.max(6, Math.min(event.clientX + 12, innerWidth - wide - 6))}px`;
      const below = event.clientY + 18;
      tip.style.top = `${below + high > innerHeight ? event.clientY - high - 12 : below}px`;
    }
  }

  // ---- the page ----------------------------------------------------------------
  const tip = make("div", { id: "tip", hidden: true });
  function hideTip() { tip.hidden = true; }
  const cards = data.runs.map((run) => new Card(run));
  const slider = make("input", { type: "range", min: 0, max: 1000, value: 0, step: "any", id: "time" });
  slider.setAttribute("aria-label", "time");
  const play = make("button", { className: "play", id: "play", textContent: "\u25b6" });
  play.setAttribute("aria-label", "play or pause");
  const back = make("button", { textContent: "\u2039", id: "back", title: "a step back" });
  const forth = make("button", { textContent: "\u203a", id: "forth", title: "a step on" });
  const clock = make("span", { className: "clock", id: "clock" });
  const pick = (id, label, options, apply) => {
    const node = make("select", { id });
    node.setAttribute("aria-label", label);
    options.forEach(([value, text]) => node.append(make("option", { value, textContent: text })));
    node.addEventListener("change", () => apply(node.value));
    return node;
  };
  const unit = pick("unit", "clock", [["calls", "in calls"], ["seconds", "in seconds"]], (value) => {
    const part = state.time / Math.max(longest(), 1e-12);
    state.unit = value; state.time = part * longest(); refresh();
  });
  const speed = pick("speed", "speed", [["0.25", "\u00bc\u00d7"], ["1", "1\u00d7"], ["4", "4\u00d7"], ["16", "16\u00d7"]],
    (value) => { state.speed = Number(value); });
  speed.value = "1";
  const short = (text) => text.replace(/\s+/g, " ").slice(0, 40) || "(empty)";
  const prompt = pick("prompt", "prompt", data.prompts.map((text, i) => [String(i), `${i + 1}: ${short(text)}`]),
    (value) => { state.prompt = Number(value); lay(); });
  const deep = make("button", { id: "deep", textContent: "order" });
  deep.title = "which position was final at which step";
  deep.setAttribute("aria-pressed", "true");
  deep.addEventListener("click", () => {
    state.picture = !state.picture;
    deep.setAttribute("aria-pressed", String(state.picture));
    document.querySelectorAll(".deep").forEach((node) => { node.hidden = !state.picture; });
    refresh();
  });
  const shownCards = () => cards.filter((card) => card.shown);
  const longest = () => Math.max(...shownCards().map((c) => c.track.turns * c.track.unit(state.unit)), 1e-9);
  // A step of the method that moves most often.
  const aStep = () => Math.min(...shownCards().map((c) => c.track.unit(state.unit)));

  function refresh() {
    const most = longest();
    state.time = Math.max(0, Math.min(state.time, most));
    slider.max = most; slider.value = state.time;
    clock.textContent = state.unit === "calls"
      ? `${Math.floor(state.time + 1e-6)} of ${Math.round(most)} calls`
      : `${state.time.toFixed(3)} of ${most.toFixed(3)} s`;
    cards.forEach((card) => card.paint());
    play.textContent = state.playing ? "\u275a\u275a" : "\u25b6";
    document.body.dataset.time = state.time;
  }
  function lay() { look = theme(); cards.forEach((card) => card.shown && card.lay()); ramp(); refresh(); }
  function move(steps) {
    state.playing = false;
    // To a whole step, so that rounding never sticks.
    const one = aStep(), at = Math.round(state.time / one * 1e6) / 1e6;
    state.time = (steps > 0 ? Math.floor(at) + steps : Math.ceil(at) + steps) * one;
    refresh();
  }
  let before = 0;
  function frame(now) {
    if (!state.playing) return;
    const most = longest();
    // The slowest method takes about ten seconds at 1x.
    state.time += (now - before) / 10000 * most * state.speed;
    before = now;
    if (state.time >= most) { state.time = most; state.playing = false; }
    refresh();
    requestAnimationFrame(frame);
  }
  function toggle() {
    state.playing = !state.playing;
    if (state.playing) {
      if (state.time >= longest() - 1e-9) state.time = 0;
      before = performance.now();
      requestAnimationFrame(frame);
    }
    refresh();
  }
  play.addEventListener("click", toggle);
  back.addEventListener("click", () => move(-1));
  forth.addEventListener("click", () => move(1));
  slider.addEventListener("input", () => { state.playing = false; state.time = Number(slider.value); refresh(); });
  document.addEventListener("keydown", (event) => {
    if (["SELECT", "TEXTAREA"].includes(event.target.tagName)) return;
    const acts = { " ": toggle, ArrowRight: () => move(1), ArrowLeft: () => move(-1),
      Home: () => { state.time = 0; refresh(); }, End: () => { state.time = longest(); refresh(); } };
    if (event.key === " " && event.target.tagName === "BUTTON" && event.target !== play) return;
    if (acts[event.key]) { event.preventDefault(); acts[event.key](); }
  });

  const chips = make("div", { className: "chips" });
  cards.forEach((card) => {
    const chip = make("button", { className: "chip", textContent: card.run.name });
    chip.setAttribute("aria-pressed", "true");
    chip.addEventListener("click", () => {
      if (card.shown && shownCards().length === 1) return;
      card.node.hidden = card.shown;
      chip.setAttribute("aria-pressed", String(card.shown));
      lay();
    });
    chips.append(chip);
  });
  const colours = make("span", { className: "ramp" });
  function ramp() {
    colours.style.background = `linear-gradient(90deg, ${[0, .25, .5, .75, 1].map(shade).join(", ")})`;
  }
  const kinds = new Set(data.runs.flatMap((run) => run.traces.flatMap((t) => t.kinds)));
  const legend = make("div", { className: "legend" },
    make("span", {}, "first step", colours, "last step"),
    make("span", {}, make("span", { className: "mark open", textContent: OPEN }), " open"));
  const explain = (kind, text) => legend.append(make("span", {},
    make("span", { className: `mark ${kind}`, textContent: "a" }), ` ${text}`));
  if (kinds.has("own")) explain("own", "the target's own token (correction or bonus); others of a step: drafts accepted");
  if (data.runs.some((run) => run.traces.some((t) => (t.events || []).some((e) => e[4] !== "filled")))) {
    explain("revised", "revised or reopened");
  }
  legend.append(make("span", { className: "keys" }, make("kbd", { textContent: "space" }), " play ",
    make("kbd", { textContent: "\u2190 \u2192" }), " step ", make("kbd", { textContent: "Home End" }), " ends"));

  const tokens = data.runs.reduce((sum, run) => sum + run.traces.reduce((s, t) => s + t.pieces.length, 0), 0);
  document.body.append(
    make("header", {}, make("h1", { textContent: data.title }),
      make("p", { className: "sub", textContent: `${data.runs.length} method${many ? "s" : ""}, ` +
        `${data.prompts.length} prompt${data.prompts.length > 1 ? "s" : ""}, ${tokens} tokens` })),
    make("div", { className: "bar" }, play, back, forth, slider, clock, unit, speed,
      ...(data.prompts.length > 1 ? [prompt] : []), deep));
  if (many) document.body.append(chips);
  const plain = make("details", {}, make("summary", { textContent: "the texts" }));
  plain.addEventListener("toggle", () => {
    plain.querySelectorAll("pre").forEach((node) => node.remove());
    if (plain.open) cards.forEach((card) => plain.append(make("pre", {
      textContent: `${card.run.name}\n${card.track.trace.pieces.join("")}` })));
  });
  const main = make("main", {}, ...cards.map((card) => card.node));
  document.body.append(main, legend, plain, tip);
  if (innerWidth < 520 && many) {  // a phone begins with two of them
    cards.slice(2).forEach((card, i) => { card.node.hidden = true; chips.children[i + 2].setAttribute("aria-pressed", "false"); });
  }
  let pending = 0;
  addEventListener("resize", () => { cancelAnimationFrame(pending); pending = requestAnimationFrame(lay); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", lay);
  state.time = longest();
  lay();
  window.replay = { state, cards, refresh, move, toggle, longest, shade };
})();
