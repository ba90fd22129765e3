// What waits for a person, over all sessions: answered where it stands. An entry stays the same element while it
// is open; once it is answered, here or elsewhere, its line says how, until the page is left.

import { command, element, getJson, Problem, swap } from "./api.js";
import { renderItem } from "./items.js";

const box = document.getElementById("inbox");
const list = document.getElementById("waiting");
const entries = new Map(); // item → {session, data, node, row, text}

// Reads the inbox; how many wait. Raises what `getJson` raises.
export async function readInbox() {
  const found = (await getJson("/v1/inbox")).items;
  const open = new Set(found.map((one) => one.item.id));
  for (const one of found) show(one.session_id, one.session_title, one.item);
  const gone = [...entries.values()].filter((entry) => entry.data.status === "open" && !open.has(entry.data.id));
  await Promise.all(gone.map((entry) => reread(entry).catch(() => {}))); // tried again at the next reading
  box.hidden = !entries.size;
  return found.length;
}

function show(session, title, data) {
  const known = entries.get(data.id);
  const entry = known || { session, data, text: "", node: null, row: null };
  if (known && data.view_seq < known.data.view_seq) return;
  entry.data = data;
  const node = renderItem(entry, actionsOf(entry));
  if (!known) {
    entries.set(data.id, entry);
    const from = element("a", { class: "from", href: `/s/${encodeURIComponent(session)}` }, title || "Untitled");
    entry.row = element("li", {}, from, element("ol", {}, node));
    list.append(entry.row);
  } else if (node !== entry.node) swap(entry.node, node);
  entry.node = node;
}

async function reread(entry) {
  const page = await getJson(`/v1/sessions/${encodeURIComponent(entry.session)}/items?limit=200`).catch((error) => {
    if (error instanceof Problem && error.status === 404) return { items: [] };
    throw error;
  });
  const now = page.items.find((item) => item.id === entry.data.id);
  if (now) return show(entry.session, "", now);
  entry.row.remove(); // its session is gone, or it lies far back
  entries.delete(entry.data.id);
}

function actionsOf(entry) {
  const send = (body) => command(entry.session, body);
  const refresh = () => reread(entry);
  const tell = async (body) => {
    try {
      return await send(body);
    } catch (error) {
      await refresh().catch(() => {});
      throw error;
    }
  };
  return { send, tell, refresh };
}
