import { ago, element, getJson, pause, Problem, showGate, showLink, takeToken } from "./api.js";

const list = document.getElementById("sessions");

function row(session) {
  const pending = session.pending.approvals + session.pending.questions;
  const status = pending ? `waiting (${pending})` : session.status;
  return element("li", {}, element("a", { href: `/s/${session.id}` },
    element("span", { class: "name" }, session.title || "Untitled"),
    element("span", { class: "about" }, [session.harness, session.model, ago(session.updated_at)].filter(Boolean).join(" · ")),
    element("span", { class: "status", "data-status": session.status }, status)));
}

async function run() {
  if (!takeToken()) {
    showGate("This browser is not signed in", "Open the link that this command prints; it brings the token along.", "omnigent show");
    showLink("revoked");
    return;
  }
  let shown = "";
  for (;;) {
    try {
      const page = await getJson("/v1/sessions?limit=100");
      const text = JSON.stringify(page.items.map((s) => [s.id, s.title, s.status, s.pending, s.model, ago(s.updated_at)]));
      if (text !== shown) {
        const focused = document.activeElement?.getAttribute?.("href");
        list.replaceChildren(...page.items.map(row));
        if (!page.items.length) list.append(element("li", { class: "empty" }, "No sessions yet. Start one with “omnigent”."));
        if (focused) list.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
        shown = text;
      }
      const open = page.items.filter((s) => s.pending.approvals + s.pending.questions).length;
      document.getElementById("facts").textContent = open ? `${open} waiting for you` : "";
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
