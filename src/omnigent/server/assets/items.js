// One transcript item → one list element. Text of agents and people only ever becomes text nodes.

import { approval, ruled } from "./approval.js";
import { clock, element, usd } from "./api.js";
import { prose } from "./prose.js";

export function renderItem(record, actions) {
  const render = RENDERERS[record.data.type];
  return render ? render(record, actions) : other(record.data);
}

const RENDERERS = { message, reasoning, tool_call: tool, approval: asking, question, notice, plan, turn, switch: switched, fork, file, budget, policies, unknown: other };

const MARKS = {
  queued: "queued", submitted: "", cancelled: "cancelled", failed: "not delivered", interrupted: "interrupted", lost: "cut off",
};

function message({ data, text, node }, actions) {
  const user = data.role === "user";
  const mark = MARKS[data.status];
  const body = element("div", { class: "prose" }, ...prose(text));
  if (!text && data.status === "open") body.append(element("p", {}, "…"));
  const steered = data.delivered_as === "steer" ? "steered in" : "";
  const who = element("span", { class: "who" }, user ? (data.actor?.id === "local" ? "You" : data.actor?.id || "You") : "Agent",
    mark || steered ? element("span", { class: "mark" }, [mark, steered, data.detail].filter(Boolean).join(" · ")) : null);
  const found = element("li", { class: user ? "user" : "agent", "data-status": data.status, "data-id": data.id }, who, body);
  const pictures = (data.content || []).filter((part) => part.type === "image");
  if (pictures.length) {
    const kept = node?.querySelector(".images");
    found.append(kept || images(pictures, actions));
  }
  return keep(found, data);
}

function images(parts, actions) {
  const box = element("div", { class: "images" });
  for (const part of parts) {
    const picture = element("img", { alt: "Attached image" });
    box.append(picture);
    actions.image(part.blob, part.media_type).then((url) => { picture.src = url; }, () => { picture.alt = "This image can’t be shown."; });
  }
  return box;
}

const keep = (node, data) => {
  node.dataset.pos = data.pos;
  return node;
};

function reasoning({ data, text, node }) {
  const open = node?.querySelector("details")?.open || false;
  const summary = data.status === "open" ? "Thinking …" : "Thought";
  const details = element("details", { open }, element("summary", {}, summary), element("div", { class: "prose" }, ...prose(text)));
  return keep(element("li", { class: "reasoning", "data-status": data.status, "data-id": data.id }, details), data);
}

const OUTCOMES = {
  requested: "asked", held: "waiting for approval", running: "running", ok: "done", error: "failed",
  denied: "denied", cancelled: "cancelled", unknown: "outcome unknown",
};

function tool({ data, text, node }, actions) {
  const exit = data.exit_code ? ` (exit ${data.exit_code})` : "";
  const box = element("div", { class: "tool", "data-status": data.status },
    element("div", { class: "head" },
      element("span", { class: "name" }, data.tool || "tool"),
      element("span", { class: "command" }, data.title || ""),
      element("span", { class: "outcome" }, (OUTCOMES[data.status] || data.status) + exit)));
  if (data.status === "denied" || data.verdict === "deny") box.append(refused(data));
  const output = data.output || {};
  if (text || output.tail) {
    const known = node?.querySelector("pre");
    const bottom = !known || known.scrollTop + known.clientHeight >= known.scrollHeight - 24;
    const pre = element("pre", { tabindex: "0", "aria-label": "Output" }, plain(text));
    if (output.truncated && output.tail) pre.append(`\n⋯\n${plain(output.tail)}`);
    box.append(pre);
    requestAnimationFrame(() => { pre.scrollTop = data.status === "running" && bottom ? pre.scrollHeight : known?.scrollTop || 0; });
    if (output.blob) box.append(whole(output, pre, actions));
  }
  return keep(element("li", { "data-id": data.id, "aria-label": `${data.tool}: ${OUTCOMES[data.status] || data.status}` }, box), data);
}

// Which rule refused it, and what the agent was told.
function refused(data) {
  const rules = data.verdict === "deny" ? ruled(data.rule_ids) : "";
  return element("div", { class: "reason" }, data.reason ? element("p", {}, data.reason) : "", rules);
}

function asking(record, actions) {
  return keep(approval(record, actions), record.data);
}

function whole(output, pre, actions) {
  const button = element("button", { type: "button", class: "quiet" }, `Show all ${Math.ceil(output.size / 1024)} KiB`);
  const box = element("p", { class: "more" }, button);
  button.onclick = async () => {
    button.disabled = true;
    try {
      pre.textContent = plain(await actions.output(output.blob));
      box.remove();
    } catch {
      button.disabled = false;
    }
  };
  return box;
}

// Terminal colours and moves have no place here.
const plain = (text) => text.replace(/\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07/g, "").replace(/[^\n]*\r(?!\n)/g, "");

function question({ data, node }, actions) {
  if (data.status !== "open") {
    const values = (data.values || []).flat().join(", ");
    const asked = data.questions.map((one) => one.question).join(" ");
    return keep(element("li", { class: "question settled", "data-id": data.id }, `${asked} ${values || data.status}`), data);
  }
  if (node) return node;
  const form = element("form", {});
  data.questions.forEach((one, index) => form.append(field(data.id, one, index)));
  const send = element("button", { type: "submit", class: "primary" }, "Answer");
  form.append(element("div", { class: "choices" }, send));
  form.onsubmit = async (event) => {
    event.preventDefault();
    const values = data.questions.map((_, index) => answers(form, `${data.id}-${index}`));
    if (values.some((chosen) => !chosen.length)) return;
    send.disabled = true;
    try {
      await actions.tell({ type: "answer", question_id: data.id, values });
    } catch {
      send.disabled = false;
    }
  };
  return keep(element("li", { class: "question open", "data-id": data.id, role: "group", "aria-label": "Question" },
    element("p", { class: "ask" }, "The agent asks"), form), data);
}

function field(questionId, one, index) {
  const name = `${questionId}-${index}`;
  const box = element("fieldset", {}, element("legend", {}, one.question));
  for (const option of one.options) {
    const input = element("input", { type: one.multiple ? "checkbox" : "radio", name, value: option.label });
    const text = element("span", {}, option.label, option.description ? element("small", {}, option.description) : null);
    box.append(element("label", { class: "choice" }, input, text));
  }
  box.append(element("input", { type: "text", name: `${name}-text`, placeholder: one.options.length ? "Something else" : "Your answer", "aria-label": `${one.question} In your own words` }));
  return box;
}

function answers(form, name) {
  const chosen = Array.from(form.querySelectorAll("input:checked")).filter((input) => input.name === name).map((input) => input.value);
  const own = form.elements[`${name}-text`].value.trim();
  return own ? [...chosen, own] : chosen;
}

function notice({ data }) {
  const until = data.until ? ` Until ${clock(data.until)}.` : "";
  return line(data, `${data.detail}${until}`, data.level);
}

function budget({ data }) {
  const cap = data.cap_nanousd;
  return line(data, `${cap === null ? "The budget’s cap was lifted" : `The budget’s cap is now ${usd(cap / 1e9)}`}${authored(data)}.`, "info");
}

function policies({ data }) {
  const changes = ["added", "removed", "changed"].filter((what) => data[what]?.length).map((what) => `${what} ${data[what].join(", ")}`);
  return line(data, `Policies: ${changes.join("; ") || "set"}${authored(data)}${data.loosens ? ". Some of this loosens what was in force" : ""}.`, data.loosens ? "warning" : "info");
}

const authored = (data) => (data.actor?.kind === "person" ? ` by ${data.actor.id}` : "");

function turn({ data }) {
  if (data.outcome === "paused") return line(data, `The turn paused: ${data.detail || data.reason}`, "warning");
  if (data.outcome === "interrupted") return line(data, "The turn was interrupted.", "info");
  return line(data, `The turn failed: ${data.detail || data.code}`, "error");
}

function switched({ data }) {
  const dropped = data.carried?.dropped?.length ? ` Left behind: ${data.carried.dropped.join("; ")}.` : "";
  return line(data, `Now with ${data.to}, before with ${data.from}.${dropped}`, "info");
}

function fork({ data }) {
  return line(data, `Forked here, from ${data.parent_id} at ${data.at_seq}.`, "info");
}

function file({ data }) {
  const summary = element("summary", {}, `${data.path} ${data.change}`);
  return keep(element("li", { class: "raw", "data-id": data.id }, data.diff ? element("details", {}, summary, element("pre", {}, data.diff)) : summary.textContent), data);
}

function plan({ data }) {
  const entries = data.entries.map((entry) => element("li", { "data-status": entry.status }, `${entry.status === "completed" ? "✓" : entry.status === "in_progress" ? "▸" : "○"} ${entry.text}`));
  return keep(element("li", { class: "plan", "data-id": data.id }, element("span", { class: "who" }, "Plan"), element("ol", {}, ...entries)), data);
}

function line(data, text, level) {
  return keep(element("li", { class: "notice", "data-level": level, "data-id": data.id }, text), data);
}

function other(data) {
  const summary = element("summary", {}, data.kind || data.type);
  return keep(element("li", { class: "raw", "data-id": data.id }, element("details", {}, summary, element("pre", {}, JSON.stringify(data.raw || data, null, 1)))), data);
}
