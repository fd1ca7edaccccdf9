"use strict";
// Text from nodes, models and logs reaches the page by textContent alone.
(() => {
  const SILENT_MS = 5000, AGAIN_MS = 2000;
  const byId = (id) => document.getElementById(id);
  const drawn = new Map();
  let source = null, lastEventMs = 0, snapshotMs = 0, state = "", timer = 0;

  function make(tag, text, kind) {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (kind) node.className = kind;
    return node;
  }
  const isSet = (value) => value !== null && value !== undefined;
  const gib = (bytes) => isSet(bytes) ? (bytes / 2 ** 30).toFixed(bytes < 2 ** 30 ? 2 : 1) + " GiB" : "not known";
  const seconds = (s) => !isSet(s) ? "" : s < 90 ? s.toFixed(s < 10 ? 1 : 0) + " s" : Math.round(s / 60) + " min";
  const clock = (ms) => new Date(ms).toLocaleTimeString();

  function table(id, columns, rows, empty) {
    const box = byId(id);
    if (!rows.length) { box.replaceChildren(make("p", empty, "muted")); return; }
    const head = make("tr"), body = make("tbody"), made = make("table"), top = make("thead");
    for (const [name, , number] of columns) {
      const cell = make("th", name, number ? "number" : "");
      cell.scope = "col";
      head.append(cell);
    }
    for (const row of rows) {
      const line = make("tr");
      for (const [name, value, number] of columns) {
        const cell = make("td", value(row), number ? "number" : "");
        cell.dataset.name = name;
        line.append(cell);
      }
      body.append(line);
    }
    top.append(head);
    made.append(top, body);
    box.replaceChildren(made);
  }

  function bar(card, label, used, total) {
    card.append(make("p", label + ": " + gib(used) + " of " + gib(total)));
    if (!isSet(used) || !total) return;
    const made = make("progress");
    made.max = total;
    made.value = used;
    made.setAttribute("aria-label", label);
    card.append(made);
  }

  const STATES = ["idle", "busy", "starting", "down", "silent", "unknown", "drained"];
  function backend(row) {
    const card = make("li"), name = make("p");
    name.append(make("strong", row.node), " ", make("span", row.state, "state " + (STATES.includes(row.state) ? row.state : "")));
    card.append(name, make("p", row.reason, "muted"), make("p", row.endpoint, "muted"));
    if (isSet(row.layers)) card.append(make("p", row.layers + " layers of the coordinator's model"));
    if (row.memory) {
      bar(card, "Memory", row.memory.used_bytes, row.memory.total_bytes);
      bar(card, "Swap", row.memory.swap_used_bytes, row.memory.swap_total_bytes);
    } else card.append(make("p", "Memory and swap: not known, no sample", "muted"));
    for (const gpu of row.gpus) {
      card.append(make("p", "GPU " + gpu.index + ": " + gpu.name));
      if (gpu.problem) card.append(make("p", gpu.problem, "bad"));
      bar(card, "GPU memory", gpu.memory_used_bytes, gpu.memory_total_bytes);
      if (isSet(gpu.use_percent)) card.append(make("p", "in use " + gpu.use_percent.toFixed(0) + " %"));
      if (isSet(gpu.temperature_c)) card.append(make("p", gpu.temperature_c.toFixed(0) + " °C"));
    }
    return card;
  }
  function failure(row) {
    const card = make("li"), name = make("p");
    name.append(make("strong", row.class, "bad"), " ", row.model + ", " + clock(row.time_ms));
    card.append(name, make("p", row.message));
    for (const line of row.evidence) card.append(make("p", line, "muted"));
    if (row.advice && row.advice !== row.message) card.append(make("p", row.advice));
    card.append(make("p", row.outcome, "outcome"));
    return card;
  }
  function cards(id, rows, build, empty) {
    byId(id).replaceChildren(...(rows.length ? rows.map(build) : [make("li", empty, "muted")]));
  }

  const SECTIONS = {
    coordinator: (c) => { byId("coordinator").textContent = [c.phase, c.model, c.start && "start " + c.start,
      c.pid && "pid " + c.pid, c.in_flight + " in flight"].filter(Boolean).join(" · "); },
    backends: (rows) => cards("backends", rows, backend, "no backend is configured"),
    requests_in_flight: (n) => { byId("requests-count").textContent = n + " in flight"; },
    requests: (rows) => table("requests", [["Request", (r) => r.id], ["Model", (r) => r.model || "not read yet"],
      ["API", (r) => r.api], ["Route", (r) => r.route || "waits for its answer"], ["Age", (r) => seconds(r.age_s), 1],
      ["Tokens", (r) => r.tokens, 1], ["Tokens/s", (r) => isSet(r.tokens_per_s) ? r.tokens_per_s : "–", 1]],
      rows, "nothing is being answered"),
    queue_length: (n) => { byId("queue-count").textContent = n + " waiting"; },
    queue: (rows) => table("queue", [["Place", (r) => r.position, 1], ["Model", (r) => r.model],
      ["Waits for", (r) => seconds(r.age_s), 1]], rows, "nobody waits"),
    models: (rows) => table("models", [["Model", (r) => r.name], ["File", (r) => gib(r.file_bytes), 1],
      ["Where", (r) => r.where.join("; ")], ["Route", (r) => r.route || "none"], ["Why", (r) => r.reason]],
      rows, "there is no model"),
    pool: (rows) => table("pool", [["Node", (r) => r.node], ["Server", (r) => r.url], ["In flight", (r) => r.in_flight, 1],
      ["In memory", (r) => r.in_memory.join(", ") || "nothing known"],
      ["Seen", (r) => r.set_aside_s > 0 ? "set aside for " + seconds(r.set_aside_s) + ": " + r.last_failure
        : r.seen ? "answers" : "not seen yet"]], rows, "no pool server is configured"),
    decisions: (rows) => table("decisions", [["Time", (r) => clock(r.time_ms)], ["Model", (r) => r.model],
      ["Route", (r) => r.route || "refused"], ["Reason", (r) => r.reason]], rows, "none yet"),
    failures: (rows) => cards("failures", rows, failure, "none"),
    log: (log) => {
      const box = byId("log"), below = box.scrollHeight - box.scrollTop - box.clientHeight < 20;
      byId("log-name").textContent = log.start ? "start " + log.start : "no start yet";
      box.textContent = log.lines.join("\n");
      if (below) box.scrollTop = box.scrollHeight;
    },
  };
  function show(snapshot) {
    for (const [name, draw] of Object.entries(SECTIONS)) {
      const text = JSON.stringify(snapshot[name]);
      if (drawn.get(name) === text) continue;
      draw(snapshot[name]);
      drawn.set(name, text);
    }
  }

  function setStatus(kind, text) {
    if (state === text) return;  // a screen reader hears changes, not every second
    state = text;
    byId("connection").textContent = text;
    byId("connection").className = "state " + kind;
  }
  function showAge() {
    const old = snapshotMs ? Math.round((performance.now() - snapshotMs) / 1000) : 0;
    byId("age").textContent = !snapshotMs ? "nothing seen yet" : "what is shown is " + old + " s old";
  }
  function open() {
    clearTimeout(timer);
    timer = 0;
    if (source) source.close();
    lastEventMs = performance.now();
    source = new EventSource("/dashboard/events");
    source.onmessage = (event) => {
      show(JSON.parse(event.data));
      lastEventMs = snapshotMs = performance.now();
      setStatus("live", "Live");
      showAge();
    };
    source.onerror = lost;
  }
  function lost() {
    if (source) source.close();
    source = null;
    setStatus("lost", "Connection lost; trying again");
    if (!timer) timer = setTimeout(reconnect, AGAIN_MS);
  }
  async function reconnect() {
    timer = 0;
    try {
      const answer = await fetch("/dashboard/session", { cache: "no-store", signal: AbortSignal.timeout(SILENT_MS) });
      if (answer.status === 401) { location.reload(); return; }
      open();
    } catch { lost(); }
  }
  setInterval(() => {
    showAge();
    if (source && performance.now() - lastEventMs > SILENT_MS) lost();
  }, 1000);
  open();
})();
