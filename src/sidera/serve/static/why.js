// Why an item is likely: the events that made it so, its codes, and the search as a tree.

import { bar, cover, make, percent } from "/page/draw.js";

const SHOWN = 8; // events

export function explanation(found) {
  return [
    make("div", { class: "explained" }, cover(found.item, found.title),
      make("p", {}, make("strong", {}, found.title || found.item), make("br"), make("span", { class: "quiet" }, found.item))),
    ...events(found),
    ...(found.codes.length ? codes(found) : [make("p", { class: "quiet" },
      `This model scores all items at once; the score is ${found.score.toFixed(3)}.`)]),
    ...(found.tree.length ? tree(found) : []),
  ];
}

function events(found) {
  const most = Math.max(1e-9, ...found.events.map((event) => Math.abs(event.weight ?? 0)));
  const rows = found.events.map((event, place) => {
    const weight = event.weight;
    const text = weight == null ? "the only event" : (weight >= 0 ? "+" : "−") + Math.abs(weight).toFixed(weight > -10 && weight < 10 ? 2 : 1);
    return make("li", { class: place >= SHOWN ? "more" : "" },
      make("span", { class: "name" }, event.title || event.item),
      make("span", { class: "number" }, text),
      bar(weight == null ? 1 : Math.abs(weight) / most, weight < 0 ? "against" : ""));
  });
  const list = make("ol", { class: "reasons" }, ...rows);
  const hidden = rows.length - SHOWN;
  const more = hidden > 0 ? make("button", { type: "button", class: "plain", onclick: (click) => {
    list.classList.add("all");
    click.target.remove();
  } }, `${hidden} more`) : null;
  return [
    make("h3", {}, "Events that mattered"),
    make("p", { class: "quiet" }, "What the item's score would lose without each event."),
    list, more,
  ].filter(Boolean);
}

function codes(found) {
  const steps = found.codes.map((one) => make("li", {}, make("span", { class: "code" }, one.code), make("span", {}, percent(one.probability))));
  const whole = found.codes.reduce((product, one) => product * one.probability, 1);
  return [
    make("h3", {}, "Its codes"),
    make("p", { class: "quiet" }, `Each after the codes before it, among those that lead to an item; together ${percent(whole)}.`),
    make("ol", { class: "codes" }, ...steps),
  ];
}

function tree(found) {
  return [
    make("h3", {}, "The search"),
    make("p", { class: "quiet" }, "Prefixes of the best items. Open one to see what follows it."),
    make("ul", { class: "tree" }, ...found.tree.map((one) => branch(one, found, 0))),
  ];
}

function branch(one, found, level) {
  const onPath = found.codes.slice(0, level + 1).every((step, place) => place < level || step.code === one.code);
  const row = [
    make("span", { class: "code" }, one.code),
    make("span", { class: "name" }, one.title || one.item || "", one.children.length && one.num_items > 1
      ? make("span", { class: "quiet" }, ` and ${one.num_items - 1} more`) : null),
    make("span", { class: "number" }, percent(one.probability)),
    bar(one.probability),
  ];
  const here = onPath ? "here" : "";
  if (!one.children.length) return make("li", { class: `leaf ${here}` }, ...row);
  const below = one.children.map((child) => branch(child, onPath ? found : { ...found, codes: [] }, level + 1));
  if (!onPath) below.forEach((element) => element.classList.remove("here"));
  return make("li", {}, make("details", { open: onPath && found.codes.length > 0 },
    make("summary", { class: here }, ...row), make("ul", {}, ...below)));
}
