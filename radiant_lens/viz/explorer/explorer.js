// The front end of the explorer, for anywidget and for the page of the local server.
//
// It holds no state of its own but what is looked at (the selected head, the colouring): settings, answers and heads
// come as messages, and every control sends the change that it asks for. `model` is anywidget's, or `serverModel`.

const DELAY = 160; // milliseconds that a slider rests before its value is sent
const KL_STEPS = 60, KL_LEAST = 0.002, KL_MOST = 2;
const GATE_WORDS = {
  none: "every token", head: "heads that flag", vote: "heads that flag in layers that flag", layer: "layers that flag",
  joint: "layers whose joint score flags",
};
const FORM_WORDS = { text: "Plain text", chat: "Chat message", rendered: "Rendered chat" };
const ENDED = { end: "ended by the model", stop: "ended at a stop string", limit: "ended at the limit" };

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key.startsWith("aria-") && value != null) node.setAttribute(key, String(value));
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

const number = (value, digits = 3) => (value == null ? "–" : Number(value.toPrecision(digits)).toString());
// The end of a prompt, from a whole word on: earlier questions come first, and the one to answer last.
const lastWords = (prompt, n = 44) => {
  const text = prompt.replace(/\s+/g, " ").trim();
  return text.length <= n ? text : `… ${text.slice(-n).replace(/^\S*\s/, "")}`;
};
const siteName = (layer, head) => `L${layer}H${head}`;
const klOf = (step) => Number((KL_LEAST * (KL_MOST / KL_LEAST) ** (step / KL_STEPS)).toPrecision(2));
const stepOf = (kl) => Math.round((KL_STEPS * Math.log(kl / KL_LEAST)) / Math.log(KL_MOST / KL_LEAST));

function delayed(action) {
  let timer;
  const later = (...values) => {
    clearTimeout(timer);
    later.pending = true;
    timer = setTimeout(() => { later.pending = false; action(...values); }, DELAY);
  };
  later.pending = false;
  return later;
}

const STREAMED = new Set(["token", "kl", "answer"]);

let lastId = 0;
const newId = (name) => `rl-${name}-${++lastId}`;

class View {
  constructor(model, el) {
    this.model = model;
    this.state = model.get("snapshot");
    this.colours = { heads: null, tokens: "kl" };
    this.selected = null;
    this.answers = { plain: this.noAnswer(), steered: this.noAnswer() };
    // The run whose answers are shown, by its number.
    this.shownRun = null;
    // The keys of the explorer are its own: a notebook would take them as commands on its cells.
    this.root = element("section", { class: "rl-explorer", "aria-label": "Explorer of a steering", "data-lm-suppress-shortcuts": true,
      onkeydown: (event) => {
        event.stopPropagation();
        if (event.key === "Escape" && this.root.classList.contains("busy")) this.send({ kind: "stop" });
      } });
    this.build();
    el.append(this.root);
    this.show();
    this.onMessage = (message) => this.receive(message);
    model.on("msg:custom", this.onMessage);
    this.send({ kind: "hello" });
  }

  remove() {
    this.model.off("msg:custom", this.onMessage);
    this.root.remove();
  }

  noAnswer() {
    return { tokens: [], end: null, stale: false };
  }

  send(message) {
    this.model.send(message);
  }

  set(changes) {
    this.status("Waiting for Python …", true);
    this.send({ kind: "set", changes });
  }

  // ---- building -------------------------------------------------------------------------------------------------

  build() {
    const s = this.state;
    this.statusLine = element("p", { class: "status", role: "status", "aria-live": "polite" });
    this.copyButton = element("button", { type: "button", class: "copy", onclick: () => this.copy() }, "Copy as code");
    this.root.append(element("div", { class: "layout" },
      element("header", {},
        element("div", { class: "title" },
          element("h2", {}, "Explorer"), element("p", { class: "what", title: s.steering }, `${s.model} · ${s.steering}`)),
        this.statusLine, this.copyButton),
      this.buildPrompt(), this.buildControls(), this.buildAnswers(), this.buildHeads(), this.buildCode()));
  }

  buildPrompt() {
    const id = newId("prompt");
    this.prompt = element("textarea", {
      id, rows: 3, spellcheck: "false", placeholder: "A text to continue",
      onkeydown: (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
          event.preventDefault();
          this.run();
        }
      },
    });
    this.examples = element("select", { class: "examples", "aria-label": "Examples from the data", onchange: () => {
      const example = this.state.examples[this.examples.value];
      if (example) this.set({ prompt: example.prompt, form: example.form });
    } });
    this.form = element("select", { class: "form", "aria-label": "How the prompt is read" });
    this.length = element("input", { type: "number", min: 1, max: 400, class: "length", "aria-label": "Tokens of an answer at most",
      onchange: () => this.length.value && this.set({ max_new_tokens: Number(this.length.value) }) });
    this.runButton = element("button", { type: "button", class: "run", onclick: () => this.run() }, "Answer");
    return element("section", { class: "ask panel" },
      element("div", { class: "head-line" }, element("label", { for: id }, "Prompt"), this.examples),
      this.prompt,
      element("div", { class: "row" }, this.form,
        element("label", { class: "inline" }, "up to", this.length, "tokens"),
        element("span", { class: "spring" }), element("kbd", {}, "Ctrl ↵"), this.runButton));
  }

  run() {
    this.set({ prompt: this.prompt.value, form: this.form.value });
  }

  buildControls() {
    const strength = newId("strength"), budget = newId("budget");
    this.setStrength = delayed((value) => this.set({ strength: value }));
    this.strength = element("input", { id: strength, type: "range", min: 0, max: 4, step: 0.05, class: "strength",
      oninput: () => {
        this.strengthNumber.value = this.strength.value;
        this.setStrength(Number(this.strength.value));
      } });
    this.strengthNumber = element("input", { type: "number", step: "any", class: "value", "aria-label": "Strength, as a number",
      onchange: () => this.strengthNumber.value !== "" && this.set({ strength: Number(this.strengthNumber.value) }) });
    this.budget = element("input", { id: budget, type: "range", min: 0, max: KL_STEPS, step: 1, class: "budget",
      oninput: () => {
        this.budgetValue.textContent = klOf(Number(this.budget.value));
        this.budget.setAttribute("aria-valuetext", `${this.budgetValue.textContent} nats a token`);
      },
      onchange: () => this.set({ budget: klOf(Number(this.budget.value)) }) });
    this.budgetValue = element("output", { class: "value", for: budget });
    this.budgetNote = element("p", { class: "note budget-note" });
    this.strengthNote = element("p", { class: "note strength-note" });
    this.gates = element("div", { class: "gates", role: "radiogroup", "aria-label": "Gate" });
    this.gateNote = element("p", { class: "note gate-note" });
    return element("section", { class: "controls panel" },
      element("div", { class: "slider by-strength" }, element("label", { for: strength }, "Strength"), this.strength, this.strengthNumber),
      this.strengthNote,
      element("div", { class: "slider by-budget" }, element("label", { for: budget }, "KL budget"), this.budget, this.budgetValue),
      this.budgetNote,
      element("div", { class: "slider" }, element("span", { class: "label" }, "Gate"), this.gates), this.gateNote);
  }

  buildAnswers() {
    this.columns = {};
    const column = (side, title, words) => {
      const tokens = element("div", { class: "tokens", role: "listbox", "aria-orientation": "horizontal", "aria-label": title,
        onkeydown: (event) => this.moveToken(event, side),
        onpointerleave: () => this.pointAt(null) });
      const foot = element("p", { class: "foot" });
      this.columns[side] = { tokens, foot };
      return element("article", { class: `answer ${side}` }, element("h3", {}, title, element("span", {}, words)), tokens, foot);
    };
    this.tokenLine = element("p", { class: "token-line", "aria-live": "polite" });
    this.tokenColour = element("select", { class: "token-colour", "aria-label": "Colour of tokens", onchange: () => {
      this.colours.tokens = this.tokenColour.value;
      this.paintTokens();
    } },
      element("option", { value: "kl" }, "KL from the plain model"), element("option", { value: "displacement" }, "displacement of heads"));
    this.tokenScale = element("span", { class: "scale", "aria-hidden": "true" });
    this.right = element("p", { class: "right" });
    return element("section", { class: "answers panel" },
      element("div", { class: "pair" }, column("plain", "Plain", "the model as it is"), column("steered", "Steered", "with the edits")),
      this.right,
      element("div", { class: "legend" }, element("label", { class: "inline" }, "Tokens by", this.tokenColour), this.tokenScale),
      this.tokenLine);
  }

  buildHeads() {
    this.headColour = element("select", { class: "head-colour", "aria-label": "Colour of heads", onchange: () => {
      this.colours.heads = this.headColour.value;
      this.paintHeads();
    } });
    this.grid = element("div", { class: "grid", role: "grid", "aria-label": "Heads: rows are layers, columns are heads",
      onkeydown: (event) => this.moveHead(event) });
    this.headScale = element("span", { class: "scale", "aria-hidden": "true" });
    this.panel = element("div", { class: "head-panel", "aria-live": "polite" });
    return element("section", { class: "heads panel" },
      element("div", { class: "head-line" }, element("h3", {}, "Heads"),
        element("label", { class: "inline" }, "by", this.headColour)),
      element("div", { class: "grid-frame" }, this.grid),
      element("div", { class: "legend" }, this.headScale,
        element("span", { class: "key" }, element("i", { class: "edited" }), "steered"),
        element("span", { class: "key" }, element("i", { class: "off" }), "taken out"),
        element("span", { class: "key" }, element("i", { class: "votes" }), "votes at the token")),
      this.panel);
  }

  buildCode() {
    this.code = element("pre", { class: "source", tabindex: "0", "aria-label": "Code of this state" });
    return element("details", { class: "code panel", open: true }, element("summary", {}, "Code of this state"), this.code);
  }

  // ---- messages -------------------------------------------------------------------------------------------------

  receive(message) {
    // A view may come while an answer is under way: its tokens begin with the greeting, which repeats them from the first.
    if (STREAMED.has(message.kind) && message.run !== this.shownRun) return;
    const act = {
      snapshot: () => { this.state = { ...this.state, ...message }; this.show(); },
      settings: () => { Object.assign(this.state, { settings: message.settings, code: message.code }); this.showSettings(); },
      measuring: () => this.status("Measuring the KL at several strengths … Esc stops.", true),
      begin: () => {
        this.shownRun = message.run;
        for (const answer of Object.values(this.answers)) answer.stale = true;
        this.status("Answering … Esc stops.", true);
        this.paintTokens();
      },
      token: () => this.addToken(message),
      kl: () => {
        message.values.forEach((value, i) => { this.answers.steered.tokens[message.first + i].kl = value; });
        this.paintTokens();
      },
      answer: () => {
        this.answers[message.side].end = message;
        if (message.side === "steered") this.status("");
        this.paintTokens();
        this.paintHeads();
        if (this.head) this.showHead();
      },
      head: () => { this.head = message.head; this.showHead(); },
      stopped: () => this.status("Stopped."),
      idle: () => this.status("Type a text to continue."),
      error: () => this.status(message.message, false, true),
    }[message.kind];
    if (act) act();
  }

  status(text, busy = false, error = false) {
    this.statusLine.textContent = text;
    this.statusLine.classList.toggle("error", error);
    this.root.classList.toggle("busy", busy);
    this.root.setAttribute("aria-busy", busy);
  }

  addToken(message) {
    const answer = this.answers[message.side];
    if (answer.stale || message.index === 0) this.answers[message.side] = this.noAnswer();
    this.answers[message.side].tokens[message.index] = { ...message, kl: null };
    this.paintTokens();
  }

  // ---- showing --------------------------------------------------------------------------------------------------

  show() {
    const s = this.state;
    this.examples.hidden = s.examples.length === 0;
    this.examples.replaceChildren(element("option", { value: "" }, "Examples …"),
      ...s.examples.map((e, i) => element("option", { value: i }, lastWords(e.prompt))));
    this.form.replaceChildren(...s.forms.map((form) => element("option", { value: form }, FORM_WORDS[form])));
    this.form.hidden = s.forms.length < 2;
    this.showGates();
    this.showHeadColours();
    this.buildGrid();
    this.showSettings();
    this.paintTokens();
    this.showHead();
  }

  showGates() {
    const name = newId("gate");
    this.gates.replaceChildren(...Object.entries(this.state.gates).map(([gate, reason]) =>
      element("label", { class: "gate", title: reason || `Edits ${GATE_WORDS[gate]}` },
        element("input", { type: "radio", name, value: gate, disabled: Boolean(reason), onchange: () => this.set({ gate }) }),
        element("span", {}, gate))));
  }

  showHeadColours() {
    const s = this.state;
    const known = { risk: s.risk.values.some((row) => row.some((v) => v != null)), effect: Object.values(s.effect).some(Boolean) };
    const options = [
      known.risk && ["risk", "risk"], known.effect && ["effect", "effect"],
      ["moved", "votes in the answer"], ["edits", "edits in the answer"],
    ].filter(Boolean);
    if (!options.some(([value]) => value === this.colours.heads)) this.colours.heads = options[0][0];
    this.headColour.replaceChildren(...options.map(([value, words]) => element("option", { value }, words)));
    this.headColour.value = this.colours.heads;
  }

  showSettings() {
    const { settings, refusals, code, gates } = this.state;
    if (this.prompt !== this.prompt.getRootNode().activeElement || this.prompt.value.trim() === "") this.prompt.value = settings.prompt;
    this.form.value = settings.form;
    this.length.value = settings.max_new_tokens;
    this.strength.max = Math.max(4, Math.ceil(settings.strength));
    // A slider that is being moved is ahead of the settings.
    if (!this.setStrength.pending && !this.strength.matches(":active")) {
      this.strength.value = settings.strength;
      this.strengthNumber.value = Number(settings.strength.toPrecision(4));
    }
    this.strength.disabled = this.strengthNumber.disabled = Boolean(refusals.strength);
    this.strengthNote.textContent = refusals.strength ? `Disabled: ${refusals.strength}.` : "";
    this.budget.disabled = Boolean(refusals.budget);
    const budget = settings.budget;
    if (!this.budget.matches(":active")) this.budget.value = stepOf(budget ?? 0.05);
    this.budgetValue.textContent = refusals.budget ? "–" : budget ?? "off";
    this.budget.setAttribute("aria-valuetext", budget == null ? "off" : `${budget} nats a token`);
    this.budgetNote.textContent = refusals.budget ? `Disabled: ${refusals.budget}.`
      : budget == null ? "Sets the strength by nats a token on desirable text." : `The strength is set so that desirable text moves by ${budget} nats a token.`;
    this.root.classList.toggle("by-kl", budget != null);
    for (const input of this.gates.querySelectorAll("input")) input.checked = input.value === settings.gate;
    const others = Object.entries(gates).filter(([gate]) => gate !== settings.gate);
    const alone = others.every(([, reason]) => reason);
    this.gateNote.textContent = `Edits ${GATE_WORDS[settings.gate]}.` + (alone ? ` No other gate: ${others[0][1]}.` : "");
    this.code.textContent = code;
    const example = this.state.examples.find((e) => e.prompt === settings.prompt && e.form === settings.form);
    this.examples.value = example ? this.state.examples.indexOf(example) : "";
    this.right.replaceChildren(...(example?.right_answer ? [element("span", {}, "Right answer"), ` ${example.right_answer}`] : []));
    this.paintHeads();
    this.showHead();
  }

  // ---- tokens ---------------------------------------------------------------------------------------------------

  paintTokens() {
    const by = this.colours.tokens;
    const values = this.answers.steered.tokens.map((t) => t[by] ?? 0);
    const most = Math.max(...values, by === "kl" ? 0.01 : 1e-6);
    for (const [side, { tokens, foot }] of Object.entries(this.columns)) {
      const answer = this.answers[side];
      const hadFocus = tokens.contains(tokens.getRootNode().activeElement);
      while (tokens.children.length > answer.tokens.length) tokens.lastChild.remove();
      answer.tokens.forEach((token, i) => {
        const node = tokens.children[i] ?? tokens.appendChild(this.tokenNode(side, i));
        if (node.textContent !== token.text) node.textContent = token.text;
        node.style.setProperty("--heat", side === "steered" ? ((token[by] ?? 0) / most).toFixed(3) : 0);
        node.classList.toggle("beyond", answer.end != null && i >= answer.end.n_tokens);
        node.setAttribute("aria-label", this.tokenWords(side, token));
      });
      if (!hadFocus) [...tokens.children].forEach((node, i) => { node.tabIndex = i === 0 ? 0 : -1; });
      tokens.classList.toggle("stale", answer.stale);
      foot.textContent = answer.end && !answer.stale
        ? `${answer.tokens.length} tokens, ${ENDED[answer.end.ended]}; ${number(answer.end.seconds)} s` : "";
    }
    const unit = by === "kl" ? " nats" : "";
    this.tokenScale.replaceChildren("0", element("i", { class: "ramp" }), `${number(most)}${unit}`);
    this.tokenLine.textContent ||= "Point at a token, or move with the arrow keys, for its votes.";
  }

  tokenNode(side, i) {
    return element("span", { class: "token", role: "option", tabindex: -1, "data-index": i,
      onpointerenter: () => this.pointAt(side, i), onfocus: () => this.pointAt(side, i), onblur: () => this.pointAt(null) });
  }

  tokenWords(side, token) {
    const steered = this.state.settings.off.length ? this.state.sites.length - this.state.settings.off.length : this.state.sites.length;
    const n = side === "plain" ? this.state.sites.length : steered;
    const names = token.votes.slice(0, 8).join(" ") + (token.votes.length > 8 ? " …" : "");
    const votes = `${token.votes.length} of ${n} heads vote${names && `: ${names}`}`;
    const text = JSON.stringify(token.text);
    if (side === "plain") return `${text} — ${votes}`;
    return `${text} — KL ${token.kl == null ? "…" : `${number(token.kl)} nats`}; ${token.edited.length} heads edited, moved by ${number(token.displacement)}; ${votes}`;
  }

  pointAt(side, i) {
    const token = side && this.answers[side].tokens[i];
    this.pointed = token ? new Set(token.votes) : null;
    if (token) this.tokenLine.textContent = this.tokenWords(side, token);
    for (const cell of this.grid.querySelectorAll(".cell")) cell.classList.toggle("voting", Boolean(this.pointed?.has(cell.dataset.site)));
  }

  moveToken(event, side) {
    const nodes = [...this.columns[side].tokens.children];
    const at = nodes.indexOf(event.target);
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: nodes.length - 1 }[event.key];
    if (to === undefined || !nodes[to]) return;
    event.preventDefault();
    nodes[at].tabIndex = -1;
    nodes[to].tabIndex = 0;
    nodes[to].focus();
  }

  // ---- heads ----------------------------------------------------------------------------------------------------

  buildGrid() {
    const { n_layers, n_heads } = this.state;
    if (this.cells) return;
    this.cells = new Map();
    this.grid.style.setProperty("--heads", n_heads);
    const every = (n) => Math.ceil(n / 16);
    const rows = [element("div", { class: "row-of-names", "aria-hidden": "true" }, element("span", { class: "corner" }, "layer / head"),
      ...Array.from({ length: n_heads }, (_, head) => element("span", {}, head % every(n_heads) ? "" : head)))];
    for (let layer = 0; layer < n_layers; layer++) {
      const row = element("div", { class: "row-of-heads", role: "row" },
        element("span", { class: "name", role: "rowheader", "aria-label": `Layer ${layer}` }, layer % every(n_layers) ? "" : layer));
      for (let head = 0; head < n_heads; head++) {
        const cell = element("div", { class: "cell", role: "gridcell", tabindex: -1, "data-site": siteName(layer, head),
          onclick: () => this.select(layer, head) });
        this.cells.set(siteName(layer, head), { cell, layer, head });
        row.append(cell);
      }
      rows.push(row);
    }
    this.grid.replaceChildren(...rows);
    const first = this.state.sites[0] ?? siteName(0, 0);
    this.cells.get(first).cell.tabIndex = 0;
  }

  headValues() {
    const s = this.state, values = new Map();
    const count = (kind) => {
      for (const token of this.answers.steered.tokens) for (const site of token[kind] ?? []) values.set(site, (values.get(site) ?? 0) + 1);
    };
    if (this.colours.heads === "risk") s.risk.values.forEach((row, l) => row.forEach((v, h) => v != null && values.set(siteName(l, h), v)));
    else if (this.colours.heads === "effect") for (const [site, effect] of Object.entries(s.effect)) effect && values.set(site, effect[0]);
    else count(this.colours.heads === "moved" ? "votes" : "edited");
    return values;
  }

  paintHeads() {
    if (!this.cells) return;
    const values = this.headValues(), { settings } = this.state;
    const sites = new Set(this.state.sites), off = new Set(settings.off);
    const most = Math.max(...[...values.values()].map(Math.abs), 1e-9);
    for (const [site, { cell, layer, head }] of this.cells) {
      const value = values.get(site);
      cell.style.setProperty("--heat", value == null ? 0 : (Math.abs(value) / most).toFixed(3));
      cell.classList.toggle("negative", value < 0);
      cell.classList.toggle("unknown", value == null);
      cell.classList.toggle("edited", sites.has(site) && !off.has(site));
      cell.classList.toggle("off", off.has(site));
      cell.classList.toggle("selected", site === this.selected);
      cell.setAttribute("aria-selected", site === this.selected);
      const words = off.has(site) ? "taken out of the steering" : sites.has(site) ? "steered" : "not steered";
      const colour = this.headColour.selectedOptions[0]?.textContent;
      cell.title = `${site}: ${words}${value == null ? "" : `; ${colour} ${number(value)}`}`;
      cell.setAttribute("aria-label", `Layer ${layer}, head ${head}: ${words}${value == null ? "" : `, ${colour} ${number(value)}`}`);
    }
    const where = this.colours.heads === "risk" ? this.state.risk.on : "";
    this.headScale.replaceChildren("0", element("i", { class: "ramp" }), values.size ? number(most) : "–");
    this.headScale.title = where && `Risk on ${where}`;
  }

  select(layer, head) {
    this.selected = siteName(layer, head);
    for (const { cell } of this.cells.values()) cell.tabIndex = -1;
    this.cells.get(this.selected).cell.tabIndex = 0;
    this.paintHeads();
    this.send({ kind: "head", site: [layer, head] });
  }

  moveHead(event) {
    const at = this.cells.get(event.target.dataset?.site);
    if (!at) return;
    const { n_layers, n_heads } = this.state;
    const clamp = (value, most) => Math.min(Math.max(value, 0), most - 1);
    const move = {
      ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0],
      Home: [0, -n_heads], End: [0, n_heads], PageUp: [-n_layers, 0], PageDown: [n_layers, 0],
    }[event.key];
    if (event.key === "Enter") this.select(at.layer, at.head);
    else if (event.key === " ") this.toggle(siteName(at.layer, at.head));
    else if (move) {
      at.cell.tabIndex = -1;
      const { cell } = this.cells.get(siteName(clamp(at.layer + move[0], n_layers), clamp(at.head + move[1], n_heads)));
      cell.tabIndex = 0;
      cell.focus();
    } else return;
    event.preventDefault();
  }

  toggle(site) {
    if (!this.state.sites.includes(site)) return;
    const off = new Set(this.state.settings.off);
    if (!off.delete(site)) off.add(site);
    this.set({ off: [...off] });
  }

  showHead() {
    const h = this.head;
    if (!h) {
      const texts = this.state.texts ? ` Tokens come from ${this.state.texts}.` : "";
      this.panel.replaceChildren(element("p", { class: "note" }, `Choose a head for its numbers. Space takes a head out or puts it back.${texts}`));
      return;
    }
    const off = this.state.settings.off.includes(h.site);
    const rates = (r) => r && `${number(r.risk)} (false alarms ${number(r.fpr)}, misses ${number(r.fnr)})`;
    const share = (side) => {
      const tokens = this.answers[side].tokens;
      return `${tokens.filter((t) => t.votes.includes(h.site)).length} of ${tokens.length}`;
    };
    const lines = [
      ["Risk", rates(h.risk) ?? "not recorded", "On the detector's validation data: share of desirable tokens flagged, plus the weighted share of undesirable ones missed"],
      h.data_risk && ["Risk on these texts", rates(h.data_risk), this.state.texts],
      ["Effect", h.effect ? `${number(h.effect[0])} nats [${number(h.effect[1])}, ${number(h.effect[2])}]` : "not measured: --effects 40, or effects=rl.head_effects(…)",
        "Of editing this head alone, on the log-odds of correct answers"],
      h.edited && ["Votes", `plain ${share("plain")}, steered ${share("steered")} tokens`, "Tokens of the answers at which the head flags"],
    ].filter(Boolean);
    const toggle = element("button", { type: "button", class: "switch", role: "switch", "aria-checked": h.edited && !off, disabled: !h.edited,
      "aria-label": `${h.site} in the steering`, onclick: () => this.toggle(h.site) },
      element("i", {}), h.edited ? (off ? "taken out" : "in the steering") : "not one of the steering's heads");
    const hadFocus = this.panel.querySelector(".switch") === this.panel.getRootNode().activeElement && this.panel.querySelector(".switch");
    this.panel.replaceChildren(
      element("div", { class: "head-line" }, element("h4", {}, h.site), toggle),
      element("dl", {}, ...lines.flatMap(([term, words, title]) => [element("dt", { title }, term), element("dd", {}, words)])),
      element("h5", {}, "Tokens with its largest scores"),
      h.no_tokens ? element("p", { class: "note" }, h.no_tokens) : element("ol", { class: "top" }, ...h.top_tokens.map((t) =>
        element("li", {}, element("span", { class: "score" }, number(t.score, 2)),
          element("span", { class: t.label ? "context undesirable" : "context", title: t.label ? "of an undesirable text" : "of a desirable text" },
            `${t.before.length < 2 ? "" : "…"}${t.before}`, element("mark", {}, t.token), t.after)))));
    if (hadFocus) toggle.focus();
  }

  // ---- code -----------------------------------------------------------------------------------------------------

  async copy() {
    const text = this.state.code;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Pages of other hosts without TLS have no clipboard; a selection can be copied there.
      const area = this.root.appendChild(element("textarea", { class: "hidden-copy", "aria-hidden": "true" }));
      area.value = text;
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    this.copyButton.textContent = "Copied";
    setTimeout(() => { this.copyButton.textContent = "Copy as code"; }, 1500);
  }
}

/** The model of the local server: messages come as server-sent events and go as requests. */
export function serverModel(token, snapshot) {
  const handlers = new Set(), query = `?token=${encodeURIComponent(token)}`;
  const post = (message) => fetch(`message${query}`, { method: "POST", body: JSON.stringify(message) }).catch(lost);
  const tell = (message) => handlers.forEach((handler) => handler(message));
  const lost = () => tell({ kind: "error", message: "The server does not answer: it was stopped, or is about to be." });
  let events = null;
  const listen = () => {
    events = new EventSource(`events${query}`);
    // Also after a connection that was lost: all there is to show is asked for again.
    events.onopen = () => post({ kind: "hello" });
    events.onmessage = (event) => tell(JSON.parse(event.data));
    events.onerror = lost;
  };
  return {
    get: (name) => (name === "snapshot" ? snapshot : undefined),
    on: (name, handler) => handlers.add(handler),
    off: (name, handler) => handlers.delete(handler),
    send: (message) => { if (message.kind !== "hello") post(message); else if (!events) listen(); },
  };
}

function render({ model, el }) {
  const view = new View(model, el);
  return () => view.remove();
}

export default { render };
