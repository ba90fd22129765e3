// Omnigent's gate inside Pi: no tool call runs before the host has allowed it.
//
// All goes over Pi's own RPC stream. At start the gate makes up a token and tells it; the token then marks
// everything the gate says and everything the host answers, so that nothing else can speak for either. It is
// in no environment and no argv, and the commands the model runs see neither.
//
// Fails closed: no answer, an answer that is not ours, or an exception blocks the call.

import { randomUUID } from "node:crypto";
import { readFileSync, statSync } from "node:fs";

const KEY = "omnigent-gate";
const LARGEST_OUTPUT = 32 * 1024 * 1024;
const token = randomUUID();

export default function gate(pi) {
  const expected = [];
  const landed = [];
  const files = new Map();

  const tell = (ctx, fact) => ctx.ui.setStatus(KEY, JSON.stringify({ token, ...fact }));

  pi.on("session_start", (_event, ctx) => {
    tell(ctx, { tools: pi.getActiveTools() });
  });

  pi.on("tool_call", async (event, ctx) => {
    const { toolCallId: id, toolName: tool, input } = event;
    const question = JSON.stringify({ token, id, tool, input });
    const answer = await ctx.ui.input(KEY, question, { signal: ctx.signal });
    const verdict = read(answer);
    if (verdict === undefined) return { block: true, reason: "The call was not allowed: the gate got no answer." };
    if (verdict.allow === true) {
      Object.assign(input, verdict.input);
      return undefined;
    }
    return { block: true, reason: String(verdict.reason || "The call was denied.") };
  });

  // Pi's result holds the tail of a long output and keeps the whole in a file, which only an update of the
  // running call names if the command then fails.
  pi.on("tool_execution_update", (event) => {
    const file = event.partialResult?.details?.fullOutputPath;
    if (file) files.set(event.toolCallId, file);
  });

  pi.on("tool_result", (event, ctx) => {
    const file = event.details?.fullOutputPath ?? files.get(event.toolCallId);
    files.delete(event.toolCallId);
    if (!file) return;
    try {
      if (statSync(file).size > LARGEST_OUTPUT) return;
      tell(ctx, { call: event.toolCallId, output: readFileSync(file, "utf8") });
    } catch {
      // The tail is what there is.
    }
  });

  // A prompt is sent as `<token> <message id>\n<text>`: it can't be taken for one of Pi's slash commands, and
  // its id is noted in the session file right after it.
  pi.on("input", (event) => {
    const head = `${token} `;
    if (!event.text.startsWith(head)) return undefined;
    const end = event.text.indexOf("\n");
    const text = event.text.slice(end + 1);
    expected.push({ message: event.text.slice(head.length, end), text });
    return { action: "transform", text, images: event.images };
  });

  pi.on("message_end", (event) => {
    if (event.message.role !== "user") return;
    const text = plain(event.message.content);
    const at = expected.findIndex((one) => text.startsWith(one.text));
    if (at >= 0) landed.push(...expected.splice(at, 1));
  });

  // Pi writes a message to its file after `message_end`; by the next event it is there.
  const note = (_event, ctx) => {
    for (const { message } of landed.splice(0)) {
      pi.appendEntry(KEY, { message });
      tell(ctx, { delivered: message });
    }
  };
  pi.on("context", note);
  pi.on("agent_end", note);

  // A steer, which older versions don't hand to `input`, is announced.
  pi.registerCommand("omnigent-expect", {
    description: "Used by Omnigent",
    handler: async (args) => {
      const steer = read(args);
      if (steer !== undefined) expected.push({ message: steer.message, text: steer.text });
    },
  });

  // The host is about to clear Pi's queue: what was queued will never land.
  pi.registerCommand("omnigent-forget", {
    description: "Used by Omnigent",
    handler: async (args) => {
      if (args === token) expected.length = 0;
    },
  });

  pi.registerCommand("omnigent-model", {
    description: "Used by Omnigent",
    handler: async (args, ctx) => {
      const wish = read(args);
      if (wish === undefined) return;
      try {
        pi.registerProvider(wish.provider, wish.config);
        const model = ctx.modelRegistry.find(wish.provider, wish.model);
        if (!model || !(await pi.setModel(model))) throw new Error(`Pi has no model ${wish.model}.`);
        pi.setThinkingLevel(wish.effort || "off");
        tell(ctx, { model: wish.model });
      } catch (error) {
        tell(ctx, { model: wish.model, error: String(error?.message ?? error) });
      }
    },
  });
}

function read(text) {
  try {
    const value = JSON.parse(text);
    return value !== null && typeof value === "object" && value.token === token ? value : undefined;
  } catch {
    return undefined;
  }
}

function plain(content) {
  if (typeof content === "string") return content;
  return content.map((part) => (part.type === "text" ? part.text : "")).join("");
}
