// The page: one user, the list that is next for the user, and what the user does with it.

import { cover, make, percent } from "/page/draw.js";
import { explanation } from "/page/why.js";

const K = 12;
const $ = (id) => document.getElementById(id);
const state = { config: {}, user: "", order: [], answer: null, asked: 0 };

// -- what this browser remembers ----------------------------------------------------------------------------------

function remembered(name, otherwise) {
  try { return JSON.parse(localStorage.getItem(name)) ?? otherwise; } catch { return otherwise; }
}

function remember(name, value) {
  try { localStorage.setItem(name, JSON.stringify(value)); } catch { /* private window: forgotten with the tab */ }
}

const past = () => remembered(`past ${state.user}`, []); // newest first: item, title, what, time, feedback
const skipped = () => remembered(`skipped ${state.user}`, []);

// -- the server -----------------------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function ask(path, body) {
  const headers = { "Content-Type": "application/json" }, key = sessionStorage.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) });
  } catch {
    throw new Refused(0, "The server does not answer.");
  }
  const text = await answer.text();
  let said = {};
  try { said = JSON.parse(text); } catch { /* no JSON: the status says enough */ }
  if (answer.ok) return said;
  const detail = said.error ?? said.detail ?? text;
  throw new Refused(answer.status, typeof detail === "string" && detail ? detail : `answered ${answer.status}`);
}

async function attempt(action) {
  try {
    const done = await action();
    $("message").hidden = true;
    return done;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    $("message").textContent = error.message;
    $("message").hidden = false;
    $("key-form").hidden = error.status !== 401 && error.status !== 403;
    if (!$("key-form").hidden) $("key").focus();
    return null;
  }
}

// Who is asked for: a user of the store, or, without one, the history that this browser remembers.
function person() {
  if (state.config.store) return { user: state.user };
  const events = past().filter((event) => event.counts).reverse();
  const feedback = Object.fromEntries(state.config.columns.map((name) => [name, events.map((event) => event.feedback[name])]));
  return {
    history: events.map((event) => event.item),
    ...(state.config.columns.length && events.length ? { feedback, times: events.map((event) => event.time) } : {}),
  };
}

// What a click, a like or a skip is in the columns that this model was trained with.
function feedbackOf(what) {
  const seconds = { click: 40, like: 60, skip: 1 }[what];
  const value = (name) => {
    if (name === "watch_time") return seconds;
    if (name === "duration") return 60;
    if (name === "rating") return { click: 4, like: 5, skip: 1 }[what];
    if (/^(like|favou?rite)/.test(name)) return what === "like" ? 1 : 0;
    if (name === state.config.positive || /click|view|play|open/.test(name)) return what === "skip" ? 0 : 1;
    return 0; // shares, comments, dislikes: nobody said so
  };
  return Object.fromEntries(state.config.columns.map((name) => [name, value(name)]));
}

// -- the list -----------------------------------------------------------------------------------------------------

async function refresh(focused = null) {
  const asked = (state.asked += 1), seen = $("seen").value;
  $("feed").setAttribute("aria-busy", "true");
  const answer = await attempt(() => ask("/v1/recommend", {
    ...person(), k: K, exclude: skipped(), ...(seen ? { filter_seen: seen === "filter" } : {}),
  }));
  if (asked !== state.asked) return; // a later question has been asked meanwhile
  $("feed").removeAttribute("aria-busy");
  if (answer === null) return;
  const before = state.order;
  state.answer = answer;
  state.order = answer.items.map((one) => one.item);
  $("feed-title").textContent = `Next for ${state.user}`;
  $("summary").textContent = summary(answer);
  $("feed").replaceChildren(...answer.items.map((one, place) => card(one, place, before, answer)));
  showPast();
  if (focused !== null) focusCard(focused);
}

function summary(answer) {
  const parts = [`${answer.items.length} items in ${answer.milliseconds.toFixed(1)} ms`];
  if (answer.cold_start) parts.push("nothing is known of this user yet: the most popular items");
  else if (answer.filtered_seen) parts.push("without seen ones");
  parts.push(`catalogue version ${answer.items_version}`);
  return parts.join(" · ");
}

function card(one, place, before, answer) {
  const title = one.title || one.item, was = before.indexOf(one.item);
  const likely = state.config.generates && !answer.cold_start ? percent(Math.exp(one.score)) : "";
  const button = (text, what, action) => make("button", {
    type: "button", tabindex: -1, class: what, "aria-label": `${text}: ${title}`, onclick: action }, text);
  return make("li", {}, make("article", {
    tabindex: 0, "data-item": one.item, "aria-label": `${place + 1}: ${title}`, class: before.length && was < 0 ? "new" : "" },
    make("div", { class: "picture" }, cover(one.item, one.title), make("span", { class: "rank" }, place + 1), moved(place, was, before)),
    make("h2", {}, title),
    make("p", { class: "quiet" }, make("span", {}, one.item), likely ? make("span", { title: "probability" }, likely) : null),
    make("div", { class: "actions" },
      button("Click", "primary", () => act("click", one, place)),
      button("Like", "", () => act("like", one, place)),
      button("Skip", "", () => act("skip", one, place)),
      button("Why?", "", () => why(one)))));
}

function moved(place, was, before) {
  if (!before.length || was === place) return null;
  if (was < 0) return make("span", { class: "moved fresh" }, "new");
  return make("span", { class: `moved ${was > place ? "up" : "down"}` }, `${was > place ? "▲" : "▼"} ${Math.abs(was - place)}`);
}

function showPast() {
  const events = past();
  $("past-box").hidden = !events.length;
  $("past").replaceChildren(...events.slice(0, 14).map((event) => make("li", { class: event.what },
    cover(event.item, event.title), make("span", {}, `${{ click: "clicked", like: "liked", skip: "skipped" }[event.what]} `),
    make("strong", {}, event.title || event.item))));
}

// -- what the user does --------------------------------------------------------------------------------------------

async function act(what, one, place) {
  const time = Math.floor(Date.now() / 1000), feedback = feedbackOf(what), reads = state.config.columns.length > 0;
  const counts = what !== "skip" || reads; // a model that reads chosen items alone has no place for a skip
  if (what === "skip") remember(`skipped ${state.user}`, [...new Set([...skipped(), one.item])]);
  if (counts && state.config.store) {
    const columns = Object.fromEntries(Object.entries(feedback).map(([name, value]) => [name, [value]]));
    const shown = place >= 0 && reads && state.answer?.request ? { request: state.answer.request, slots: [place] } : {};
    const kept = await attempt(() => ask("/v1/events", {
      user: state.user, items: [one.item], times: [time], ...(reads ? { feedback: columns } : {}), ...shown }));
    if (kept === null) return;
  }
  remember(`past ${state.user}`, [{ item: one.item, title: one.title, what, time, feedback, counts }, ...past()].slice(0, 200));
  await refresh(place >= 0 ? place : null);
}

async function why(one) {
  $("why").hidden = false;
  document.body.classList.add("explaining");
  $("why-body").replaceChildren(make("p", { class: "quiet" }, "Asking …"));
  $("why-title").focus();
  if (state.answer?.cold_start) {
    $("why-body").replaceChildren(make("p", {}, "Nothing is known of this user, so the most popular items are answered."));
    return;
  }
  try {
    const found = await ask("/v1/explain", { ...person(), item: one.item });
    $("why-body").replaceChildren(...explanation(found));
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    $("why-body").replaceChildren(make("p", {}, error.message));
    $("key-form").hidden = error.status !== 401 && error.status !== 403;
  }
}

function closeWhy() {
  const item = document.activeElement?.closest("#why") ? state.explained : null;
  $("why").hidden = true;
  document.body.classList.remove("explaining");
  if (item !== null) focusCard(state.order.indexOf(item));
}

// -- finding, adding and removing items -----------------------------------------------------------------------------

async function search() {
  const found = await attempt(() => ask(`/v1/search?k=12&text=${encodeURIComponent($("search").value)}`));
  if (found === null) return;
  $("found").replaceChildren(...found.map((one) => make("li", {}, cover(one.item, one.title),
    make("span", { class: "name" }, one.title || one.item, make("br"), make("span", { class: "quiet" }, one.item)),
    make("button", { type: "button", onclick: () => act("click", one, -1) }, "Click"),
    make("button", { type: "button", onclick: () => explainItem(one) }, "Why?"),
    state.config.items_change ? make("button", { type: "button", class: "danger", onclick: () => removeItem(one) }, "Remove") : null)));
  if (!found.length) $("found").replaceChildren(make("li", { class: "quiet" }, "No item has this in its title or id."));
}

function explainItem(one) {
  state.explained = one.item;
  return why(one);
}

async function change(body) {
  if ((await attempt(() => ask("/v1/items", body))) === null) return;
  await search();
  await refresh();
}

const removeItem = (one) => change({ removed: [one.item] });

// -- keys of the keyboard --------------------------------------------------------------------------------------------

const cards = () => [...document.querySelectorAll("#feed article")];

function focusCard(place) {
  const all = cards();
  all[Math.max(0, Math.min(all.length - 1, place))]?.focus();
}

function columnsOfGrid(all) {
  const first = all[0]?.getBoundingClientRect().top;
  return Math.max(1, all.filter((one) => one.getBoundingClientRect().top === first).length);
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") { closeWhy(); return; }
  if (event.target.closest("input, select, textarea, dialog")) return;
  const focused = event.target.closest("#feed article"), all = cards(), place = all.indexOf(focused);
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columnsOfGrid(all), ArrowUp: -columnsOfGrid(all) };
  if (event.key === "u") $("user").select();
  else if (event.key === "f") { $("find").open = true; $("search").focus(); }
  else if (event.key === "?") $("help").showModal();
  else if (event.key in steps && (focused || event.target === document.body)) focusCard(focused ? place + steps[event.key] : 0);
  else if (focused && event.target === focused) {
    const buttons = focused.querySelectorAll("button"), which = { Enter: 0, l: 1, s: 2, w: 3 }[event.key];
    if (which === undefined) return;
    buttons[which].click();
  } else return;
  event.preventDefault();
}

// -- beginning ---------------------------------------------------------------------------------------------------------

function show(user) {
  if (user !== state.user) state.order = [];
  state.user = user;
  $("user").value = user;
  const recent = [user, ...remembered("recent", []).filter((one) => one !== user)].slice(0, 6);
  remember("recent", recent);
  $("recent").replaceChildren(...recent.slice(1).map((one) => make("button", { type: "button", onclick: () => show(one) }, one)));
  closeWhy();
  return refresh();
}

function newUser() {
  const letters = [...crypto.getRandomValues(new Uint8Array(4))].map((byte) => (byte % 36).toString(36)).join("");
  return show(`guest-${letters}`);
}

function theme(chosen) {
  if (chosen) document.documentElement.dataset.theme = chosen;
}

function listen() {
  $("who").addEventListener("submit", (event) => { event.preventDefault(); show($("user").value.trim() || state.user); $("feed").focus(); });
  $("new-user").addEventListener("click", newUser);
  $("seen").addEventListener("change", () => refresh());
  $("why-close").addEventListener("click", closeWhy);
  $("help-button").addEventListener("click", () => $("help").showModal());
  $("theme").addEventListener("click", () => {
    const dark = getComputedStyle(document.documentElement).getPropertyValue("--is-dark").trim() === "1";
    remember("theme", dark ? "light" : "dark");
    theme(dark ? "light" : "dark");
  });
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("key", $("key").value);
    $("key").value = "";
    $("key-form").hidden = true;
    refresh();
  });
  $("find").addEventListener("toggle", () => { if ($("find").open) search(); });
  let typed = 0;
  $("search").addEventListener("input", () => { clearTimeout(typed); typed = setTimeout(search, 150); });
  $("search-form").addEventListener("submit", (event) => { event.preventDefault(); search(); });
  $("add-form").addEventListener("submit", (event) => {
    event.preventDefault();
    change({ items: [{ item: $("add-key").value, title: $("add-title").value }] });
    event.target.reset();
  });
  document.addEventListener("keydown", pressed);
  document.addEventListener("focusin", (event) => {
    const focused = event.target.closest("#feed article");
    if (focused) state.explained = focused.dataset.item;
  });
}

async function begin() {
  theme(remembered("theme", ""));
  listen();
  const config = await attempt(() => ask("/page/config.json"));
  if (config === null) return;
  state.config = config;
  $("served").textContent = config.model;
  $("add-form").hidden = !config.items_change;
  const wanted = new URLSearchParams(location.search).get("user") ?? remembered("recent", [])[0];
  await (wanted ? show(wanted) : newUser());
}

begin();
