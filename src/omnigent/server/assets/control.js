// What is in force in a session and how to change it: sandbox, billing, budget, pause, grants, policies.

import { clock, element, getJson, Problem, remaining, usd } from "./api.js";
import { ruled } from "./approval.js";

const at = (name) => document.getElementById(name);

// Money. What isn't known is said to be unknown, never shown as nothing.

function sum(amount, partial, exact) {
  if (amount === null || amount === undefined || (partial && !amount)) return "unknown";
  return `${partial ? "≥ " : ""}${usd(amount, exact)}`;
}

export function spent(now) {
  const { budget, usage } = now;
  const used = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens + usage.output_tokens;
  if (!budget && !used) return "";
  const cap = budget?.cap_usd;
  const paid = budget ? budget.spent_usd : usage.cost_usd;
  const partial = budget ? budget.unknown_calls : usage.cost_partial;
  const amount = sum(paid, partial, typeof cap === "number" && Math.abs(cap - paid) < 0.01);
  const known = amount === "unknown" ? "spent: unknown" : amount;
  const listed = now.billing === "subscription" ? " at list price, nothing billed" : "";
  if (typeof cap === "number") return `${known} of ${usd(cap)}${listed}`;
  return `${known}${known === amount ? " spent" : ""}${listed}`;
}

export function billed(now) {
  const credential = now.run?.credential || now.credential || "";
  if (!now.billing || now.billing === "unknown") return credential ? `billing: unknown (${credential})` : "billing: unknown";
  return credential ? `${now.billing}: ${credential}` : `billing: ${now.billing}`;
}

function showMeter(meter, budget) {
  const cap = budget?.cap_usd;
  meter.hidden = typeof cap !== "number";
  if (meter.hidden) return;
  const share = (amount) => (cap > 0 ? Math.min(100, (100 * (amount || 0)) / cap) : 100);
  const full = share((budget.spent_usd || 0) + (budget.reserved_usd || 0));
  meter.dataset.level = full >= 100 ? "over" : full >= 80 ? "near" : "";
  meter.firstChild.style.width = `${share(budget.spent_usd)}%`;
  meter.lastChild.style.width = `${full - share(budget.spent_usd)}%`;
}

const meterBar = () => element("span", { class: "meter", "aria-hidden": "true", hidden: true }, element("i", {}), element("i", { class: "held" }));

// A form or button that tells the session something: once at a time, with its trouble beside it.
function telling(box, tell) {
  const trouble = element("p", { class: "trouble", role: "alert", hidden: true });
  box.append(trouble);
  let busy = false;
  return async (body) => {
    if (busy) return;
    busy = true;
    trouble.hidden = true;
    box.setAttribute("aria-busy", "true");
    try {
      await tell(body);
    } catch (error) {
      trouble.textContent = error instanceof Problem ? error.message : "The server doesn’t answer. Try again.";
      trouble.hidden = false;
    } finally {
      busy = false;
      box.removeAttribute("aria-busy");
    }
  };
}

function capForm(label, say) {
  const cap = element("input", { type: "number", min: "0", step: "any", inputmode: "decimal", required: true, "aria-label": label, placeholder: "USD" });
  const form = element("form", { class: "choices cap" }, cap, element("button", { type: "submit" }, "Set cap"));
  form.onsubmit = async (event) => {
    event.preventDefault();
    const amount = Number(cap.value);
    if (cap.value === "" || !(amount >= 0)) return cap.focus();
    await say({ type: "set_budget", cap_usd: amount });
    cap.value = "";
  };
  return form;
}

// The panel under the header.

const SANDBOXES = {
  host: "sandbox: host means that the agent runs as you, on this machine: what you can read, change or send, its commands can too. The rules and your answers decide which calls run; nothing else fences them in.",
};

export function openControl(path, tell) {
  const budget = budgetSection(tell);
  const grants = grantsSection(tell);
  const policies = policiesSection(path);
  at("control").append(budget.box, grants.box, policies.box);
  const toggle = at("control-button");
  const show = (open) => {
    at("control").hidden = !open;
    toggle.setAttribute("aria-expanded", open);
  };
  toggle.onclick = () => show(at("control").hidden);
  at("control").addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    show(false);
    toggle.focus();
  });
  const facts = factsLine();
  const paused = pausedPanel(tell);
  return (now) => [facts, budget.show, grants.show, policies.show, paused].forEach((update) => update(now));
}

function budgetSection(tell) {
  const text = element("p", { class: "amount" });
  const meter = meterBar();
  const more = element("p", { class: "terms" });
  const box = element("section", { "aria-label": "Budget" }, element("h2", {}, "Budget"), text, meter, more);
  const say = telling(box, tell);
  const off = element("button", { type: "button", class: "quiet", onclick: () => say({ type: "set_budget", cap_usd: null }) }, "Lift the cap");
  const form = capForm("Cap in USD", say);
  form.append(off);
  box.append(form);
  const show = (now) => {
    const { budget } = now;
    const capped = typeof budget?.cap_usd === "number";
    text.textContent = [spent(now) || "Nothing spent yet", capped ? "" : "no cap"].filter(Boolean).join(", ");
    showMeter(meter, budget);
    more.textContent = [
      capped ? "The cap binds this session together with its forks and children; shown is what this one spent." : "",
      budget?.reserved_usd ? `${usd(budget.reserved_usd)} reserved for calls under way.` : "",
      budget?.unknown_calls || now.usage.cost_partial ? "Not every call has a known price: this is a lower bound." : "",
      (now.run?.metering || now.metering) === "harness" ? "The agent counts its own model calls: they don’t pass our gateway." : "",
      `${now.usage.input_tokens + now.usage.cache_read_tokens + now.usage.cache_write_tokens} tokens in, ${now.usage.output_tokens} out.`,
    ].filter(Boolean).join(" ");
    off.hidden = !capped;
  };
  return { box, show };
}

function grantsSection(tell) {
  const list = element("ul", { class: "grants" });
  const none = element("p", { class: "terms" }, "None. “Allow for the session” or “Allow pattern” on an approval makes one.");
  const box = element("section", { "aria-label": "Grants" }, element("h2", {}, "Grants"), none, list);
  const say = telling(box, tell);
  const rows = new Map();
  const show = (now) => {
    const grants = now.grants || [];
    none.hidden = grants.length > 0;
    const known = new Set(grants.map((grant) => grant.grant_id));
    for (const [id, row] of rows) {
      if (known.has(id)) continue;
      const held = row.contains(document.activeElement);
      row.remove();
      rows.delete(id);
      if (held) at("control-button").focus();
    }
    for (const grant of grants) {
      if (rows.has(grant.grant_id)) continue;
      rows.set(grant.grant_id, grantRow(grant, say));
      list.append(rows.get(grant.grant_id));
    }
  };
  return { box, show };
}

const SCOPES = { once: "once", session: "for the session", pattern: "what matches" };

function grantRow(grant, say) {
  const name = grant.pattern || grant.title || grant.grant_id;
  const terms = [SCOPES[grant.scope] || grant.scope, grant.until ? `${grant.until > Date.now() ? "until" : "ran out at"} ${clock(grant.until)}` : ""].filter(Boolean).join(", ");
  const revoke = element("button", { type: "button", "aria-label": `Revoke ${name}`, onclick: () => say({ type: "revoke_grant", grant_id: grant.grant_id }) }, "Revoke");
  return element("li", {}, element("span", { class: "about" }, element("code", {}, name), element("small", {}, terms)), revoke);
}

function policiesSection(path) {
  const list = element("ul", { class: "policies" });
  const note = element("p", { class: "terms", hidden: true });
  const summary = element("summary", {}, "Policies in effect");
  const details = element("details", {}, summary, note, list);
  let shown = null;
  const load = async () => {
    note.hidden = false;
    note.textContent = "Reading …";
    try {
      const page = await getJson(`/v1/policies?session=${path.split("/").pop()}`);
      list.replaceChildren(...page.items.map(policyRow));
      note.textContent = "None.";
      note.hidden = page.items.length > 0;
    } catch (error) {
      note.textContent = error instanceof Problem ? error.message : "The server doesn’t answer.";
    }
  };
  details.ontoggle = () => details.open && load();
  const show = (now) => {
    const count = typeof now.policies === "number" ? now.policies : null;
    summary.textContent = count === null ? "Policies in effect" : `Policies in effect (${count})`;
    if (details.open && shown !== count) load();
    shown = count;
  };
  return { box: element("section", { "aria-label": "Policies" }, details), show };
}

function policyRow(policy) {
  const rule = typeof policy.rule === "string" ? policy.rule : JSON.stringify(policy.rule, null, 1);
  return element("li", {}, element("details", {},
    element("summary", {}, element("code", {}, policy.name), element("small", {}, [policy.scope, policy.description].filter(Boolean).join(": "))),
    element("pre", {}, rule || "")));
}

// The header's facts: nodes stay, so that the keyboard does too.

const short = (n) => (n < 10000 ? String(n) : n < 1e6 ? `${Math.round(n / 1000)}k` : `${(n / 1e6).toFixed(1)}M`);

function factsLine() {
  const names = ["harness", "model", "billing", "spent", "tokens", "approvals"];
  const nodes = Object.fromEntries(names.map((name) => [name, element("span", { "data-fact": name })]));
  const money = element("span", { class: "text" });
  const meter = meterBar();
  nodes.spent.append(money, meter);
  const sandbox = element("button", { type: "button", class: "fact", "aria-expanded": "false", "aria-controls": "explain" });
  sandbox.onclick = () => {
    at("explain").hidden = !at("explain").hidden;
    sandbox.setAttribute("aria-expanded", !at("explain").hidden);
  };
  at("facts").append(...Object.values(nodes), sandbox);
  const set = (node, text) => {
    if (node.textContent !== text) node.textContent = text;
    return text;
  };
  return (now) => {
    const { usage } = now;
    set(nodes.harness, now.harness);
    set(nodes.model, now.model || "default model");
    set(nodes.billing, billed(now));
    set(nodes.tokens, `${short(usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens)} in, ${short(usage.output_tokens)} out`);
    set(nodes.approvals, `approvals: ${now.approvals}`);
    nodes.approvals.className = now.approvals === "ask" ? "" : "flag";
    nodes.spent.hidden = !set(money, spent(now));
    showMeter(meter, now.budget);
    set(sandbox, `sandbox: ${now.sandbox}`);
    sandbox.className = now.sandbox === "host" ? "fact flag" : "fact";
    set(at("explain"), SANDBOXES[now.sandbox] || `The agent runs in the sandbox “${now.sandbox}”.`);
  };
}

// A paused turn: why, and what makes it go on.

const PAUSES = {
  budget: ["Paused: the budget is used up", "Raise the cap, and the turn goes on."],
  policy: ["Paused by a rule", "Change the rule, or resume if it no longer holds."],
  held: ["Paused by a rule", "A call waits: allow or deny it where it stands, or change the budget or the rules."],
  quota: ["Paused: the provider’s quota is used up", "Nothing is lost; the turn goes on in the same conversation."],
};

function pausedPanel(tell) {
  const panel = at("paused");
  const title = element("h2", {});
  const about = element("p", { class: "why" });
  const rules = element("div", {});
  const until = element("p", { class: "terms" });
  const box = element("div", {}, title, about, rules, until);
  const say = telling(box, tell);
  const cap = capForm("New cap in USD", say);
  const resume = element("button", { type: "button", class: "primary", onclick: () => say({ type: "resume" }) }, "Resume");
  cap.append(resume);
  box.append(cap);
  panel.append(box);
  const tick = (paused) => {
    until.textContent = paused.until ? `It goes on by itself at ${clock(paused.until)}, in ${remaining(paused.until)}.` : "";
  };
  let now = null;
  setInterval(() => now && tick(now), 15000);
  return (session) => {
    now = session.paused || (session.status === "paused" ? { reason: session.pending.approvals ? "held" : "" } : null);
    const held = panel.contains(document.activeElement);
    panel.hidden = !now;
    if (!now) return void (held && at("message").focus());
    const [head, hint] = PAUSES[now.reason] || ["Paused", "Resume to go on."];
    title.textContent = head;
    const ruleCap = now.reason === "budget" && now.rule_ids?.length && !now.rule_ids.includes("budget");
    about.textContent = [now.detail, hint, ruleCap ? "A cap that a rule sets is changed in that rule." : ""].filter(Boolean).join(" ");
    rules.replaceChildren(ruled(now.rule_ids));
    tick(now);
    const money = now.reason === "budget";
    cap.querySelector("input").hidden = !money;
    cap.querySelector("[type=submit]").hidden = !money;
    cap.querySelector("input").required = money;
    resume.hidden = now.reason === "held";
  };
}
