// All sessions, and above them what waits for a person.

import { ago, element, getJson, pause, Problem, showGate, showLink, takeToken } from "./api.js";
import { readInbox } from "./inbox.js";

const list = document.getElementById("sessions");

function row(session) {
  const pending = session.pending.approvals + session.pending.questions;
  const status = pending ? `waiting (${pending})` : session.status;
  return element("li", {}, element("a", { href: `/s/${session.id}` },
    element("span", { class: "name" }, session.title || "Untitled"),
    element("span", { class: "about" }, [session.harness, session.model, ago(session.updated_at)].filter(Boolean).join(" · ")),
    element("span", { class: "status", "data-status": session.status }, status)));
}

let shown = "";

function showSessions(sessions) {
  const text = JSON.stringify(sessions.map((s) => [s.id, s.title, s.status, s.pending, s.model, ago(s.updated_at)]));
  if (text === shown) return;
  shown = text;
  const focused = list.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  list.replaceChildren(...sessions.map(row));
  if (!sessions.length) list.append(element("li", { class: "empty" }, "No sessions yet. Start one with “omnigent”."));
  if (focused) list.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
}

// The count stands in the title, where a tab in the background shows it.
function showWaiting(count) {
  document.getElementById("facts").textContent = count ? `${count} waiting for you` : "";
  document.title = count ? `(${count}) Sessions · Omnigent` : "Sessions · Omnigent";
}

async function run() {
  if (!takeToken()) {
    showGate("This browser is not signed in", "Open the link that this command prints; it brings the token along.", "omnigent show");
    showLink("revoked");
    return;
  }
  for (;;) {
    try {
      const [page, waiting] = await Promise.all([getJson("/v1/sessions?limit=100"), readInbox()]);
      showSessions(page.items);
      showWaiting(waiting);
      showLink("live");
    } catch (error) {
      if (error instanceof Problem && error.status === 401) {
        showGate("Signed out", "This browser’s access was revoked. A new link comes from:", "omnigent show");
        showLink("revoked");
        return;
      }
      showLink("lost");
    }
    await pause(document.hidden ? 8000 : 2000);
  }
}

run();
