"use strict";
(() => {
  const PAGE = 50;
  const IDENTITY = new Set(["id", "source", "row", "status", "turns", "reason", "rank", "best_target", "nearest",
    "others", "scores", "text"]);
  const NAMES = { captured_energy: "captured energy", n_tokens: "tokens", n_supervised: "supervised tokens",
    n_cut: "tokens cut", gradient_norm: "gradient norm" };
  const at = (id) => document.getElementById(id);
  const state = { rows: [], queries: [], links: [], found: [], page: 0, link: null };

  function make(tag, className, text, ...children) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined && text !== null) element.textContent = text;
    element.append(...children);
    return element;
  }

  function passes(row, [field, how, value]) {
    const own = row[field];
    if (own === undefined) return false;
    return how === "=" ? own === value : how === ">" ? own > value : how === "<" ? own < value : own >= value;
  }

  function select() {
    const words = at("words").value.toLowerCase().split(/\s+/).filter(Boolean);
    const status = at("status").value;
    const field = at("sort").value;
    const sign = at("down").checked ? -1 : 1;
    const conditions = state.link ? state.link[0] : [];
    state.found = state.rows.filter((row) => (!status || row.status === status) &&
      conditions.every((one) => passes(row, one)) && words.every((word) => row.text.includes(word)));
    const key = (row) => row[field] === undefined ? null : row[field];
    state.found.sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === null || y === null) return (x === null) - (y === null);
      return sign * (x < y ? -1 : x > y ? 1 : 0);
    });
    state.page = 0;
    const where = state.link && state.link[1] ? `; all such rows: ${state.link[1]}` : "";
    at("found").textContent = `${state.found.length.toLocaleString("en")} of the ${state.rows.length.toLocaleString("en")} rows in this page${where}`;
    draw();
  }

  function conversation(turns) {
    return turns.map(([role, said]) => {
      const text = make("p", "text", said);
      text.dir = "auto";
      return make("div", "turn", null, make("span", "role", role), text);
    });
  }

  function reasons(row) {
    const facts = make("dl");
    const tell = (name, value) => facts.append(make("div", "", null, make("dt", "", name), make("dd", "", value)));
    if (row.reason) tell("reason", row.reason);
    if (row.rank !== undefined) tell("rank", `${row.rank.toLocaleString("en")} of ${state.nScored.toLocaleString("en")}`);
    if (row.best_target) tell("best target", row.best_target);
    for (const [name, value] of Object.entries(row)) {
      if (!IDENTITY.has(name)) tell(NAMES[name] || name.replace(/_/g, " "), value.toLocaleString("en", { maximumSignificantDigits: 4 }));
    }
    for (const [name, value] of row.scores || []) tell(`score for ${name}`, String(value));
    for (const [name, rank] of row.others || []) tell(`rank by ${name}`, rank.toLocaleString("en"));
    const own = make("div", "side", null, make("h3", "", "The row"), ...conversation(row.turns));
    const sides = make("div", "sides", null, own);
    if (row.nearest) {
      const [index, value, how] = row.nearest;
      const query = state.queries[index];
      sides.append(make("div", "side", null, make("h3", "", `Nearest query (${query.group})`),
        make("p", "how", `${how}: ${value}; ${query.id}`), ...conversation(query.turns)));
    }
    return make("div", "why", null, facts, sides);
  }

  function entry(row, number) {
    const button = make("button", "row");
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    button.setAttribute("aria-controls", `why-${number}`);
    const said = row.turns.map(([, text]) => text).join(" ") || row.reason || "";
    const start = make("bdi", "start", said.slice(0, 160));
    start.dir = "auto";
    button.append(make("span", `kind ${row.status}`, row.status),
      make("span", "num", row.score === undefined ? "no score" : row.score.toFixed(4)),
      make("bdi", "source", row.source), start);
    const why = make("div");
    why.id = `why-${number}`;
    why.hidden = true;
    button.addEventListener("click", () => {
      const open = why.hidden;
      if (open && !why.firstChild) why.append(reasons(row));
      why.hidden = !open;
      // What scrolls must be reached by the keyboard; whether it scrolls is known once it is shown.
      if (open) for (const text of why.querySelectorAll(".text")) if (text.scrollHeight > text.clientHeight) text.tabIndex = 0;
      button.setAttribute("aria-expanded", String(open));
    });
    return make("li", "", null, button, why);
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(state.found.length / PAGE));
    const shown = state.found.slice(state.page * PAGE, (state.page + 1) * PAGE);
    at("list").replaceChildren(...shown.map((row, index) => entry(row, index)));
    at("list").start = state.page * PAGE + 1;
    at("page").textContent = `page ${state.page + 1} of ${pages}`;
    at("before").disabled = state.page === 0;
    at("after").disabled = state.page >= pages - 1;
  }

  async function load() {
    const packed = Uint8Array.from(atob(at("data").textContent), (one) => one.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const data = await new Response(stream).json();
    for (const row of data.rows) {
      row.text = [row.id, row.source, row.reason || "", ...row.turns.map(([, said]) => said)].join(" ").toLowerCase();
    }
    Object.assign(state, { rows: data.rows, queries: data.queries, links: data.links, nScored: data.n_scored });
    const numbers = new Set(data.rows.flatMap((row) => Object.keys(row).filter((name) => !IDENTITY.has(name))));
    for (const name of numbers) {
      const option = make("option", "", NAMES[name] || name.replace(/_/g, " "));
      option.value = name;
      at("sort").append(option);
    }
    for (const id of ["status", "sort", "down"]) at(id).addEventListener("change", select);
    at("words").addEventListener("input", select);
    at("search").addEventListener("submit", (event) => event.preventDefault());
    at("all").addEventListener("click", () => { state.link = null; at("search").reset(); select(); });
    at("before").addEventListener("click", () => { state.page -= 1; draw(); at("found").scrollIntoView(); });
    at("after").addEventListener("click", () => { state.page += 1; draw(); at("found").scrollIntoView(); });
    document.addEventListener("click", (event) => {
      const number = event.target.closest ? event.target.closest("[data-rows]") : null;
      if (!number) return;
      at("search").reset();
      state.link = state.links[Number(number.dataset.rows)];
      select();
    });
    select();
    document.body.dataset.ready = "yes";
  }

  load().catch((error) => { at("found").textContent = `The rows could not be read: ${error}`; });
})();
