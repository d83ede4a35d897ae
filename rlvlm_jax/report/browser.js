// The rollout browser. Text from models and data sets enters the page as text nodes only.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("responses").textContent);
  const byId = (id) => document.getElementById(id);
  const PAGE = 20;
  const filters = ["run", "kind", "step", "correct", "truncated", "reflective", "text", "colour"];
  const escaped = data.words.map((w) => w.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const words = new RegExp("(" + escaped.join("|") + ")", "gi");
  let matching = [];
  let drawn = 0;

  const make = (tag, text, name) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (name) element.className = name;
    return element;
  };

  const fill = (id, values) => {
    byId(id).append(new Option("all", ""));
    for (const value of values) byId(id).append(new Option(String(value), String(value)));
  };
  const distinct = (key) => [...new Set(data.groups.map((group) => group[key]))];
  fill("run", distinct("run"));
  fill("kind", distinct("kind"));
  fill("step", distinct("step").sort((a, b) => a - b));

  const agrees = (choice, value) => choice === "" || (choice === "yes") === value;

  const chosen = () => {
    const choices = Object.fromEntries(filters.map((id) => [id, byId(id).value]));
    const part = choices.text.toLowerCase();
    const matches = [];
    for (const group of data.groups) {
      if (choices.run && group.run !== choices.run) continue;
      if (choices.kind && group.kind !== choices.kind) continue;
      if (choices.step && String(group.step) !== choices.step) continue;
      const responses = group.responses.filter((response) =>
        agrees(choices.correct, response.correct) &&
        agrees(choices.truncated, response.truncated) &&
        agrees(choices.reflective, response.reflective) &&
        (!part || response.response.toLowerCase().includes(part) ||
          group.question.toLowerCase().includes(part)));
      if (responses.length) matches.push([group, responses]);
    }
    return matches;
  };

  const marked = (text) => {
    const line = make("p");
    for (const [number, piece] of text.split(words).entries()) {
      line.append(number % 2 ? make("mark", piece) : document.createTextNode(piece));
    }
    return line;
  };

  const shade = (kind, value, scale) => {
    if (value === null) return "transparent";
    if (kind === "logprobs") return `rgba(192, 57, 43, ${Math.min(1, -value / 4).toFixed(2)})`;
    const strength = Math.min(1, Math.abs(value) / scale).toFixed(2);
    return value < 0 ? `rgba(192, 57, 43, ${strength})` : `rgba(31, 111, 178, ${strength})`;
  };

  const coloured = (response, kind) => {
    const line = make("p");
    const scale = Math.max(1e-6, ...response[kind].map((value) => Math.abs(value)));
    for (const [number, piece] of response.pieces.entries()) {
      const token = make("span", piece);
      token.style.backgroundColor = shade(kind, response[kind][number], scale);
      const value = response[kind][number];
      token.title = value === null ? "not finite" : value.toFixed(3);
      line.append(token);
    }
    return line;
  };

  const sample = (response, kind) => {
    const box = make("div", undefined, "sample" + (response.correct ? " correct" : ""));
    const facts = [response.correct ? "correct" : "wrong", `${response.length} tokens`];
    if (response.judge !== "ok") facts.push(response.judge.replace("_", " "));
    if (response.truncated) facts.push("truncated");
    if (response.reflective) facts.push("reflective");
    for (const [name, value] of Object.entries(response.rewards)) facts.push(`${name} ${+value.toFixed(3)}`);
    box.append(make("div", facts.join(" · "), "facts"));
    box.append(kind && response.pieces && response[kind] ? coloured(response, kind) : marked(response.response));
    return box;
  };

  const draw = ([group, responses], kind) => {
    const box = make("article", undefined, "group");
    box.append(make("div", `${group.run} · ${group.kind} · step ${group.step} · ${group.id}`, "where"));
    const images = make("div", undefined, "images");
    for (const number of group.images) {
      if (number === null) {
        images.append(make("span", "(an image that is not in this page)", "where"));
        continue;
      }
      const image = make("img");
      image.src = data.images[number];
      image.alt = "image of the question";
      image.loading = "lazy";
      images.append(image);
    }
    box.append(images, make("p", group.question));
    box.append(make("div", `reference: ${group.solution}`, "where"));
    if (responses.length < group.responses.length) {
      box.append(make("div", `${responses.length} of ${group.responses.length} responses`, "where"));
    }
    const samples = make("div", undefined, "samples");
    samples.append(...responses.map((response) => sample(response, kind)));
    box.append(samples);
    return box;
  };

  const more = () => {
    const kind = byId("colour").value;
    const next = matching.slice(drawn, drawn + PAGE);
    byId("groups").append(...next.map((match) => draw(match, kind)));
    drawn += next.length;
    byId("more").hidden = drawn >= matching.length;
  };

  const update = () => {
    matching = chosen();
    drawn = 0;
    byId("groups").replaceChildren();
    const responses = matching.reduce((sum, [, responses]) => sum + responses.length, 0);
    byId("count").textContent =
      `${responses} responses to ${matching.length} prompts; the page holds ${data.shown} of ${data.total}`;
    more();
  };

  for (const id of filters) byId(id).addEventListener(id === "text" ? "input" : "change", update);
  byId("more").addEventListener("click", more);
  update();
})();
