// The page's side of the API: the token, calls, and a stream that mends itself.

const KEY = "omnigent-token";

// The token comes once, in the fragment; from then on it lives in this origin's storage.
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    localStorage.setItem(KEY, given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return localStorage.getItem(KEY) || "";
}

// A link opened in a page that is there already changes only the fragment.
window.addEventListener("hashchange", () => {
  if (location.hash.includes("token=")) location.reload();
});

export class Problem extends Error {
  constructor(body, status) {
    super([body.detail || `The server answered ${status}.`, body.hint].filter(Boolean).join(" "));
    this.status = status;
    this.body = body;
  }
}

export async function call(path, options = {}) {
  const headers = { Authorization: `Bearer ${takeToken()}`, "X-Omnigent-Via": "web", ...options.headers };
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (!response.ok) throw new Problem(await response.json().catch(() => ({})), response.status);
  return response;
}

export async function getJson(path) {
  return (await call(path)).json();
}

export const randomKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (n) => n.toString(16).padStart(2, "0")).join("");

// A command is repeated with its key while the network fails, so that it happens once.
export async function command(session, body) {
  const text = JSON.stringify({ idempotency_key: randomKey(), ...body });
  for (let attempt = 0; ; attempt++) {
    try {
      const options = { method: "POST", body: text, headers: { "Content-Type": "application/json" } };
      return await (await call(`/v1/sessions/${session}/commands`, options)).json();
    } catch (error) {
      if (error instanceof Problem || attempt >= 5) throw error;
      await pause(300 * 2 ** attempt);
    }
  }
}

export const pause = (ms) => new Promise((done) => setTimeout(done, ms));

// Follows a stream for ever: `cursor()` says where to go on, `take(event, data, id)` gets each message,
// `state(word)` hears live, lost or ended. A link without a byte for 40 s is dead (comments come every 15 s).
export async function follow(path, cursor, take, state) {
  for (let attempt = 0; ; attempt++) {
    const silence = new AbortController();
    let timer = 0;
    const alive = () => {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), 40000);
    };
    try {
      alive();
      const headers = { Accept: "text/event-stream" };
      const response = await call(`${path}?after=${cursor()}`, { headers, signal: silence.signal });
      state("live");
      for await (const message of messages(response.body, alive)) {
        attempt = 0;
        if (message.event === "end" && ["deleted", "revoked"].includes(JSON.parse(message.data).reason)) {
          state(JSON.parse(message.data).reason);
          return;
        }
        take(message.event, message.data ? JSON.parse(message.data) : null, message.id);
      }
    } catch (error) {
      if (error instanceof Problem && error.body.code === "bad_cursor") take("reset", null, null);
      else if (error instanceof Problem && error.status < 500) {
        state(error.status === 401 ? "revoked" : "gone", error);
        return;
      }
    } finally {
      clearTimeout(timer);
    }
    state("lost");
    await pause(Math.min(5000, 200 * 2 ** Math.min(attempt, 5)) * (0.5 + Math.random() / 2));
  }
}

async function* messages(body, alive) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    alive();
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) yield parsed(block);
  }
}

function parsed(block) {
  const message = { event: "comment", data: "", id: null };
  for (const line of block.split("\n")) {
    const at = line.indexOf(": ");
    if (at > 0) message[line.slice(0, at)] = line.slice(at + 2);
  }
  return message;
}

export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node[name] = value;
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function showGate(title, text, line) {
  const gate = document.getElementById("gate");
  gate.replaceChildren(element("h2", {}, title), element("p", {}, text), line ? element("code", {}, line) : "");
  gate.hidden = false;
}

export function ago(at) {
  const seconds = Math.max(0, (Date.now() - at) / 1000);
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

// In cents; `exact`, or under a dollar, in hundredths of a cent, so that little isn't shown as nothing.
export const usd = (amount, exact) => `$${amount.toFixed(amount && (exact || amount < 1) && !Number.isInteger(amount) ? 4 : 2)}`;

// A time of day, with the date where it isn't today's.
export function clock(at) {
  const time = new Date(at);
  const hour = time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return time.toDateString() === new Date().toDateString() ? hour : `${time.toLocaleDateString([], { month: "short", day: "numeric" })}, ${hour}`;
}

export function remaining(at) {
  const minutes = Math.ceil((at - Date.now()) / 60000);
  if (minutes <= 0) return "a moment";
  if (minutes < 60) return `${minutes} min`;
  if (minutes < 2880) return `${Math.floor(minutes / 60)} h${minutes % 60 && minutes < 600 ? ` ${minutes % 60} min` : ""}`;
  return `${Math.floor(minutes / 1440)} d`;
}

// Answers by what they say: the same one keeps its key, so that it counts once however often it is sent.
const keys = new Map();

export function keyed(body) {
  const text = JSON.stringify(body);
  if (!keys.has(text)) keys.set(text, randomKey());
  return { idempotency_key: keys.get(text), ...body };
}

// Puts `fresh` where `old` was; the keyboard stays where it was.
export function swap(old, fresh) {
  const active = document.activeElement;
  const place = old.contains(active) ? reachable(old).indexOf(active) : null;
  old.replaceWith(fresh);
  if (place === null) return;
  const next = reachable(fresh)[place];
  if (!next) fresh.tabIndex = -1;
  (next || fresh).focus({ preventScroll: true });
}

const reachable = (node) => Array.from(node.querySelectorAll("a, button, summary, input, select, textarea, [tabindex]"));

const LINKS = { live: "live", lost: "reconnecting", revoked: "signed out", deleted: "deleted", gone: "ended", connecting: "connecting" };

export function showLink(word) {
  const link = document.getElementById("link");
  link.textContent = LINKS[word] || word;
  link.dataset.link = word === "live" ? "live" : word === "connecting" ? "" : "lost";
}
