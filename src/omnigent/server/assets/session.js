// One session, live: items as the server folds them, deltas between, commands back.

import { call, command, follow, getJson, Problem, showGate, showLink, swap, takeToken } from "./api.js";
import { openControl } from "./control.js";
import { renderItem } from "./items.js";

const id = decodeURIComponent(location.pathname.split("/")[2] || "");
const path = `/v1/sessions/${encodeURIComponent(id)}`;
const at = (name) => document.getElementById(name);
const list = at("items");

const items = new Map(); // id → {data, text, count, node}; count in code points, as offsets are
const dirty = new Set();
const showControl = openControl(path, (body) => command(id, body));
let session = null;
let cursor = 0;
let oldest = null;

async function run() {
  if (!takeToken()) {
    showGate("This browser is not signed in", "Open the link that this command prints; it brings the token along.", `omnigent show ${id}`);
    return showLink("revoked");
  }
  try {
    await load();
  } catch (error) {
    if (error instanceof Problem && error.status === 401) return ended("revoked");
    if (error instanceof Problem && error.status === 404) return ended("missing");
    showLink("lost");
    setTimeout(run, 1500);
    return;
  }
  at("composer").hidden = at("control-button").hidden = false;
  follow(`${path}/items`, () => cursor, take, ended);
}

async function load() {
  const [page, now] = await Promise.all([getJson(`${path}/items?limit=60`), getJson(path)]);
  cursor = page.view_seq;
  for (const item of page.items.reverse()) put(item);
  setOldest(page.next_before);
  showSession(now);
  draw();
  window.scrollTo(0, document.body.scrollHeight);
}

function ended(state) {
  showLink(state === "missing" ? "gone" : state);
  if (state === "live" || state === "lost") return;
  for (const name of ["composer", "working", "paused", "control", "control-button"]) at(name).hidden = true;
  if (state === "revoked") showGate("Signed out", "This browser’s access was revoked. A new link comes from:", `omnigent show ${id}`);
  if (state === "deleted") showGate("This session was deleted", "Its transcript is no longer shown.");
  if (state === "missing" || state === "gone") showGate("No such session", "It doesn’t exist here, or you may not see it.", "omnigent ls");
}

function take(event, data, seq) {
  if (event === "item") put(data);
  else if (event === "delta") say(data);
  else if (event === "session") showSession(data);
  else if (event === "reset") cursor = 0;
  else if (event === "comment" && session?.turn) getJson(path).then(showSession, () => {}); // a lost runner raises no event
  if (event === "item" && seq) cursor = Math.max(cursor, Number(seq));
}

// Items and deltas.

function put(data) {
  const known = items.get(data.id);
  if (known && data.view_seq < known.data.view_seq) return; // a page that was read before the stream told more
  const record = known || { data, text: "", count: 0, node: null };
  const text = textOf(data);
  const open = isOpen(data);
  const count = [...text].length;
  if (!open || count >= record.count) Object.assign(record, { text, count });
  record.data = data;
  items.set(data.id, record);
  mark(data.id);
}

function isOpen(data) {
  return data.status === "open" || (data.type === "tool_call" && ["requested", "held", "running"].includes(data.status));
}

function textOf(data) {
  if (data.type === "tool_call") return data.output?.text || "";
  if (data.type === "reasoning") return data.text || "";
  return (data.content || []).filter((part) => part.type === "text").map((part) => part.text).join("\n");
}

const TYPES = { text: "message", reasoning: "reasoning", output: "tool_call" };

function say(delta) {
  if (!items.has(delta.item_id)) {
    const data = { id: delta.item_id, type: TYPES[delta.stream], role: "assistant", status: "open", content: [], pos: Infinity };
    items.set(delta.item_id, { data, text: "", count: 0, node: null });
  }
  const record = items.get(delta.item_id);
  if (!isOpen(record.data)) return;
  const points = [...delta.text];
  if (delta.offset > record.count) return void reread(record);
  const fresh = points.slice(record.count - delta.offset);
  record.text += fresh.join("");
  record.count += fresh.length;
  if (fresh.length) mark(delta.item_id);
}

// A gap: what the log knows is in the item; the next snapshot brings the rest.
let rereading = false;
async function reread(record) {
  if (rereading || record.data.pos === Infinity) return;
  rereading = true;
  try {
    await refresh();
  } catch {
    // the stream's own trouble shows
  } finally {
    rereading = false;
  }
}

async function refresh() {
  const page = await getJson(`${path}/items?limit=20`);
  page.items.forEach(put);
}

function mark(itemId) {
  if (!dirty.size) requestAnimationFrame(draw);
  dirty.add(itemId);
}

function draw() {
  const follows = window.innerHeight + window.scrollY >= document.body.scrollHeight - 120;
  for (const itemId of dirty) {
    const record = items.get(itemId);
    const node = renderItem(record, actions);
    if (!node) continue;
    if (record.node === node) continue;
    if (record.node) swap(record.node, node);
    else place(node, record.data.pos);
    record.node = node;
  }
  dirty.clear();
  if (follows) window.scrollTo(0, document.body.scrollHeight);
  showLatest();
}

function place(node, pos) {
  node.dataset.pos = pos;
  let before = null;
  for (let other = list.lastElementChild; other && Number(other.dataset.pos) > pos; other = other.previousElementSibling) before = other;
  list.insertBefore(node, before);
}

// The session.

function showSession(now) {
  session = now;
  at("title").textContent = now.title || "Untitled";
  const waiting = now.pending.approvals + now.pending.questions;
  document.title = `${waiting ? `(${waiting}) ` : now.status === "paused" ? "(paused) " : ""}${now.title || "Session"} · Omnigent`;
  showControl(now);
  const status = at("status");
  if (status.textContent !== now.status) status.textContent = now.status;
  status.dataset.status = now.status;
  status.title = now.status_reason || "";
  const open = Boolean(now.turn);
  at("interrupt").hidden = !open;
  at("steer").hidden = !(open && now.capabilities.steers);
  at("send").textContent = open || now.paused ? "Queue" : "Send";
  at("working").hidden = !["running", "starting", "lost"].includes(now.status);
  at("working-text").textContent = now.status === "lost" ? now.status_reason : now.status === "starting" ? "starting the agent" : "working";
  const closed = now.status === "closed";
  at("message").placeholder = closed ? "The session is closed; a message reopens it" : `Message ${now.harness}`;
}

// Commands.

async function tell(body) {
  at("trouble").hidden = true;
  try {
    return await command(id, body);
  } catch (error) {
    if (error instanceof Problem && error.status === 409) {
      trouble(error.message);
      return null;
    }
    trouble(error instanceof Problem ? error.message : "The server doesn’t answer; nothing was sent.");
    throw error;
  }
}

function trouble(text) {
  at("trouble").textContent = text;
  at("trouble").hidden = false;
}

const actions = {
  tell,
  send: (body) => command(id, body),
  refresh,
  image: async (sha256, type) => URL.createObjectURL(new Blob([await (await call(`/v1/blobs/${sha256}`)).arrayBuffer()], { type })),
  output: async (sha256) => (await call(`/v1/blobs/${sha256}`)).text(),
};

async function submit(when) {
  const box = at("message");
  const text = box.value;
  if (!text.trim()) return box.focus();
  box.value = "";
  fit();
  try {
    if (session.status === "closed") await tell({ type: "resume" });
    if ((await tell({ type: "prompt", text, when })) === null) box.value = text;
    window.scrollTo(0, document.body.scrollHeight);
  } catch {
    box.value = text;
    fit();
  }
  box.focus();
}

function fit() {
  const box = at("message");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit("auto");
});
at("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit("auto");
  }
});
at("message").addEventListener("input", fit);
at("steer").onclick = () => submit("steer");
at("interrupt").onclick = () => tell({ type: "interrupt" }).catch(() => {});

// Earlier items, and the way back down.

function setOldest(before) {
  oldest = before;
  at("older").hidden = before === null;
}

at("older").onclick = async () => {
  const height = document.body.scrollHeight;
  try {
    const page = await getJson(`${path}/items?limit=60&before=${oldest}`);
    for (const item of page.items) if (!items.has(item.id)) put(item);
    setOldest(page.next_before);
    draw();
    window.scrollBy(0, document.body.scrollHeight - height);
  } catch {
    trouble("Earlier items can’t be had just now.");
  }
};

function showLatest() {
  at("latest").hidden = window.innerHeight + window.scrollY > document.body.scrollHeight - 400;
}

window.addEventListener("scroll", showLatest, { passive: true });
at("latest").onclick = () => window.scrollTo({ top: document.body.scrollHeight });

run();
