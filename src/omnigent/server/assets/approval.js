// An approval. While it is open it is one card that stays the same element, so that what is half written and
// where the keyboard is are kept; once settled it is a line that says who, how far and through which face.

import { clock, element, keyed, Problem, remaining } from "./api.js";

const cards = new WeakMap(); // card → its update
const late = new Map(); // approval → why an answer from here didn't count

// `actions.send(command)` raises Problem; `actions.refresh(id)` reads the item anew.
export function approval({ data, node }, actions) {
  if (data.status !== "open") return settled(data);
  if (!cards.has(node)) node = card(data, actions);
  cards.get(node)(data);
  return node;
}

// Settled.

const ENDS = { allowed: "Allowed", denied: "Denied", expired: "Expired unanswered, so denied", cancelled: "No longer asked" };
const FACES = { cli: "the command line", tui: "the terminal", web: "the web page", mobile: "a phone", api: "the API", mcp: "MCP", acp: "an editor" };

function settled(data) {
  const person = data.by?.kind === "person";
  const reach = data.status === "allowed" ? reached(data.grant) : "";
  const why = data.cancelled_by ? ` (${data.cancelled_by})` : data.status === "denied" && data.reason ? `: ${data.reason}` : "";
  const where = [person && FACES[data.by.via] && `through ${FACES[data.by.via]}`, data.updated_at && clock(data.updated_at)];
  const note = late.get(data.id);
  return element("li", { class: "approval settled", "data-status": data.status, "data-id": data.id },
    element("span", { class: "end" }, `${ENDS[data.status] || data.status}${reach}${person ? ` by ${data.by.id}` : ""}${why}`),
    element("span", { class: "where" }, where.filter(Boolean).join(", ")),
    data.title ? element("code", { class: "what" }, data.title) : null,
    data.edited ? element("p", {}, "Changed to ", element("code", {}, data.edited)) : null,
    note ? element("p", { class: "trouble", role: "alert" }, `Your answer came too late. ${note}`) : null);
}

function reached(grant) {
  if (!grant || grant.scope === "once") return "";
  const until = grant.until ? ` until ${clock(grant.until)}` : "";
  return grant.scope === "pattern" ? ` for “${grant.pattern}”${until}` : ` for the session${until}`;
}

// Open.

function card(data, actions) {
  const trouble = element("p", { class: "trouble", role: "alert", hidden: true });
  const detached = element("p", { class: "flagged", hidden: true }, "Its agent is gone; answering starts it again.");
  const expires = element("span", { class: "expires" });
  const box = element("li", { class: "approval open", "data-id": data.id, role: "group", "aria-label": "Approval needed" });
  const send = sender(data.id, box, trouble, actions);
  const paused = data.hold === "pause";
  const options = data.options || ["allow", "deny"];
  box.append(
    element("p", { class: "ask" }, paused ? "A rule paused the turn at this call" : heading(data)),
    paused ? element("p", { class: "flagged" }, "It waits until somebody allows or denies it, or changes the budget or the rules.") : "",
    ...asked(data),
    data.reason ? element("p", { class: "why" }, data.reason) : "",
    ruled(data.rule_ids),
    detached,
    element("p", { class: "terms" }, `May be answered by: ${(data.may_answer || ["owner"]).join(", ")}. `, expires),
    allow(options, paused, send),
    !paused && data.patterns?.length && options.includes("allow") ? pattern(data.patterns, send) : "",
    data.edit && options.includes("allow") ? edit(data.edit, send) : "",
    options.includes("deny") ? deny(send) : "",
    trouble,
  );
  cards.set(box, (now) => {
    detached.hidden = !now.detached;
    expires.dataset.at = now.expires_at || "";
    showExpiry(expires);
  });
  return box;
}

// Most approvals are of a tool call; some of a model call that the gateway holds, or of who is billed for a turn.
function heading(data) {
  if (data.call_id?.startsWith("call_")) return "May this model call be made?";
  if (data.call_id?.startsWith("turn_")) return "May this be billed from now on?";
  return "May the agent do this?";
}

// Sends one answer at a time. A control keeps the keyboard meanwhile: it is marked as disabled, not made so.
function sender(id, box, trouble, actions) {
  let busy = false;
  const mark = (now) => {
    busy = now;
    box.setAttribute("aria-busy", now);
    box.querySelectorAll("button").forEach((button) => button.setAttribute("aria-disabled", now));
  };
  return async (body) => {
    if (busy) return;
    mark(true);
    trouble.hidden = true;
    try {
      await actions.send(keyed({ type: "resolve", approval_id: id, ...body }));
      await actions.refresh(id).catch(() => {}); // the stream tells it too
    } catch (error) {
      mark(false);
      trouble.textContent = error instanceof Problem ? error.message : "The server doesn’t answer. Try again: the same answer counts once.";
      trouble.hidden = false;
      if (error.status !== 409) return;
      late.set(id, error.message);
      await actions.refresh(id).catch(() => {});
    }
  };
}

const button = (text, onclick, kind) => element("button", { type: "button", class: kind, onclick }, text);

function allow(options, paused, send) {
  const box = element("div", { class: "choices" });
  if (options.includes("allow")) box.append(button("Allow once", () => send({ decision: "allow" }), "primary"));
  if (options.includes("allow_session") && !paused) { // a grant silences an ask, not a pause
    box.append(button("Allow for the session", () => send({ decision: "allow", grant: { scope: "session" } })));
  }
  return box;
}

const HOURS = [["", "as long as the session"], ["1", "for 1 hour"], ["8", "for 8 hours"], ["24", "for 24 hours"]];

function pattern(patterns, send) {
  const text = element("input", { type: "text", "aria-label": "Pattern", value: patterns[0], spellcheck: "false", autocapitalize: "off" });
  const choose = element("select", { "aria-label": "Suggested patterns", onchange: () => { text.value = choose.value; } },
    ...patterns.map((one) => element("option", { value: one }, one)));
  const until = element("select", { "aria-label": "How long" }, ...HOURS.map(([value, name]) => element("option", { value }, name)));
  let stamp = { hours: "", at: null }; // the moment is taken once per choice, so that a repeated click is the same answer
  const form = element("form", { class: "choices" }, patterns.length > 1 ? choose : "", text, until, element("button", { type: "submit" }, "Allow pattern"));
  form.onsubmit = (event) => {
    event.preventDefault();
    if (!text.value.trim()) return text.focus();
    if (until.value !== stamp.hours) stamp = { hours: until.value, at: until.value ? Date.now() + Number(until.value) * 3600000 : null };
    const grant = { scope: "pattern", pattern: text.value.trim() };
    send({ decision: "allow", grant: stamp.at ? { ...grant, until: stamp.at } : grant });
  };
  return element("details", { class: "way" }, element("summary", {}, "Allow by a pattern"),
    element("p", { class: "why" }, "What matches isn’t asked again. The pattern may be changed before it is sent."), form);
}

function edit(command, send) {
  const text = element("textarea", { "aria-label": "Command to run instead", rows: "3", spellcheck: "false", autocapitalize: "off" });
  text.value = command;
  const form = element("form", {}, text, element("div", { class: "choices" }, element("button", { type: "submit" }, "Allow as edited")));
  form.onsubmit = (event) => {
    event.preventDefault();
    if (!text.value.trim()) return text.focus();
    send(text.value === command ? { decision: "allow" } : { decision: "allow", edited: text.value });
  };
  return element("details", { class: "way" }, element("summary", {}, "Edit before allowing"), form);
}

function deny(send) {
  const reason = element("input", { type: "text", placeholder: "Reason, for the agent", "aria-label": "Reason for a denial" });
  const form = element("form", { class: "choices deny" }, element("button", { type: "submit" }, "Deny"), reason);
  form.onsubmit = (event) => {
    event.preventDefault();
    send({ decision: "deny", reason: reason.value.trim() });
  };
  return form;
}

// What is asked: the whole call, then its parts, each with whether it is what asks.

function asked(data) {
  const actions = data.actions || [];
  const whole = data.edit || data.title || actions[0]?.command || "";
  const shell = actions.some((action) => action.type === "exec");
  const shown = whole ? [element("pre", { tabindex: "0", "aria-label": "The call" }, shell ? `$ ${whole}` : whole)] : [];
  const plain = actions.length === 1 && actions[0].type === "exec" && actions[0].command === whole;
  if (plain && !actions[0].doubt && !actions[0].background) return shown;
  const asks = new Set(data.asked || []);
  return [...shown, element("ol", { class: "parts", "aria-label": "Parts of the call" }, ...actions.map((action, at) => part(action, asks, at)))];
}

function part(action, asks, at) {
  const [kind, text] = acted(action);
  const mark = asks.has(at) ? element("span", { class: "asks" }, "asks") : asks.size ? element("span", { class: "passes" }, "passes") : "";
  return element("li", {}, element("span", { class: "kind" }, kind), element("code", {}, text), mark,
    action.doubt ? element("small", { class: "doubt" }, action.doubt) : "");
}

function acted(action) {
  const outside = action.in_workspace === false ? " (outside the workspace)" : "";
  const below = action.recursive ? " and all below" : "";
  const path = `${action.real_path || action.path}${below}${outside}`;
  switch (action.type) {
    case "exec": return [action.background ? "runs in the background" : "runs", `${action.command}${action.stdin ? `\n← ${action.stdin}` : ""}`];
    case "file.read": return ["reads", path];
    case "file.write": return [action.change === "delete" ? "deletes" : "writes", path];
    case "net": return ["connects", [action.method, action.url || action.host].filter(Boolean).join(" ")];
    case "mcp": return ["MCP tool", `${action.server} ${action.tool} ${action.arguments || ""}`];
    case "model": return ["model call", [action.model, ...(action.hosted || [])].join(", ")];
    case "spawn": return ["sub-agent", action.description];
    case "message": return ["message", action.description];
    case "unknown": return ["unknown tool", action.tool];
    default: return [action.type, JSON.stringify(action)];
  }
}

export function ruled(ids) {
  return ids?.length ? element("p", { class: "rules" }, ids.length > 1 ? "Rules: " : "Rule: ", ...ids.map((id) => element("code", {}, id))) : "";
}

function showExpiry(node) {
  node.textContent = node.dataset.at ? `Expires in ${remaining(Number(node.dataset.at))}, then it is denied.` : "";
}

setInterval(() => document.querySelectorAll(".expires").forEach(showExpiry), 15000);
