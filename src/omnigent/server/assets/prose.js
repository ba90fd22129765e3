// A small, safe part of Markdown: fences, headings, bullets, bold and code. Only text nodes, never markup.

import { element } from "./api.js";

export function prose(text) {
  const nodes = [];
  text.split(/^```/m).forEach((part, index) => {
    if (index % 2) {
      const body = part.slice(part.indexOf("\n") + 1);
      nodes.push(element("pre", {}, part.includes("\n") ? body.replace(/\n$/, "") : part));
    } else nodes.push(...blocks(part));
  });
  return nodes;
}

function blocks(text) {
  return text.split(/\n\s*\n/).map((block) => block.replace(/^\n+|\s+$/g, "")).filter(Boolean).flatMap(block);
}

function block(text) {
  const lines = text.split("\n");
  const heading = /^#{1,6}\s+(.*)$/.exec(lines[0]);
  if (heading) {
    const rest = lines.slice(1).join("\n");
    return [element("h2", {}, ...inline(heading[1])), ...(rest ? block(rest) : [])];
  }
  if (lines.every((line) => /^\s*[-*]\s+/.test(line))) {
    return [element("ul", {}, ...lines.map((line) => element("li", {}, ...inline(line.replace(/^\s*[-*]\s+/, "")))))];
  }
  return [element("p", {}, ...inline(text))];
}

function inline(text) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).filter(Boolean).map((piece) => {
    if (piece.length > 2 && piece.startsWith("`") && piece.endsWith("`")) return element("code", {}, piece.slice(1, -1));
    if (piece.length > 4 && piece.startsWith("**") && piece.endsWith("**")) return element("strong", {}, piece.slice(2, -2));
    return document.createTextNode(piece);
  });
}
