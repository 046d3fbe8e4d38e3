// Small makers of elements, and covers drawn from an item's key: the same key gives the same picture everywhere.

const SVG = "http://www.w3.org/2000/svg";

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// FNV-1a, then xorshift: enough to spread keys that differ in one digit.
function dice(key) {
  let state = 2166136261;
  for (const byte of new TextEncoder().encode(key)) state = Math.imul(state ^ byte, 16777619);
  state = state || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 4294967296;
  };
}

let numCovers = 0;

export function cover(key, title) {
  const roll = dice(key);
  for (let warm = 0; warm < 4; warm += 1) roll();
  const hue = Math.floor(roll() * 360), other = (hue + 30 + Math.floor(roll() * 90)) % 360;
  const id = `sky${(numCovers += 1)}`;
  const stops = [[0, hue, 52, 58], [1, other, 58, 34]].map(([offset, h, s, l]) =>
    svg("stop", { offset, "stop-color": `hsl(${h} ${s}% ${l}%)` }));
  const shapes = [
    () => [0, 1, 2].map((step) => svg("circle", {
      cx: roll() * 160, cy: roll() * 90, r: 14 + roll() * 26, fill: `hsl(${other + 40 * step} 70% 75%)`, opacity: 0.34 })),
    () => [0, 1, 2].map((step) => {
      const top = 34 + 14 * step, peak = roll() * 160;
      return svg("path", { d: `M-10 92 L${peak} ${top} L170 92Z`, fill: `hsl(${hue} 40% ${30 - 7 * step}%)`, opacity: 0.6 });
    }),
    () => [0, 1, 2, 3].map((step) => svg("rect", {
      x: -30 + 50 * step + roll() * 18, y: -20, width: 12 + roll() * 12, height: 140, transform: "rotate(24 80 45)",
      fill: `hsl(${other + 20 * step} 70% 80%)`, opacity: 0.26 })),
    () => [0, 1, 2].map((step) => svg("path", {
      d: `M0 ${45 + 14 * step} q40 ${-26 + roll() * 52} 80 0 t80 0 V90 H0Z`, fill: `hsl(${hue + 25 * step} 55% 78%)`, opacity: 0.3 })),
  ];
  const letter = [...(title || key)][0]?.toUpperCase() ?? "";
  return svg("svg", { viewBox: "0 0 160 90", class: "cover", "aria-hidden": "true", preserveAspectRatio: "xMidYMid slice" },
    svg("defs", {}, svg("linearGradient", { id, x1: 0, y1: 0, x2: 1, y2: 1 }, ...stops)),
    svg("rect", { width: 160, height: 90, fill: `url(#${id})` }),
    ...shapes[Math.floor(roll() * shapes.length)](),
    svg("text", { x: 12, y: 78, class: "letter" }, letter));
}

export function percent(probability) {
  if (probability >= 0.995) return "100 %";
  if (probability >= 0.1) return `${Math.round(100 * probability)} %`;
  return probability >= 0.0001 ? `${Number((100 * probability).toPrecision(2))} %` : "< 0.01 %";
}

export function bar(share, kind = "") {
  const element = make("span", { class: `bar ${kind}`, "aria-hidden": "true" });
  element.style.setProperty("--share", Math.max(0, Math.min(1, share)));
  return element;
}
