// Axes: from values to pixels, and ticks that people can read.

export function extent(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : [0, 1];
}

export function padded([low, high], share = 0.05) {
  const room = (high - low || Math.abs(high) || 1) * share;
  return [low - room, high + room];
}

export function linear([low, high], [from, to]) {
  const factor = (to - from) / (high - low || 1);
  const scale = (value) => from + (value - low) * factor;
  scale.invert = (pixel) => low + (pixel - from) / (factor || 1);
  scale.ticks = (count, whole = false) => linearTicks(low, high, count, whole);
  return scale;
}

export function logarithmic([low, high], range) {
  const inner = linear([Math.log10(low), Math.log10(high)], range);
  const scale = (value) => inner(Math.log10(value));
  scale.invert = (pixel) => 10 ** inner.invert(pixel);
  scale.ticks = (count) => {
    const powers = [];
    for (let power = Math.ceil(Math.log10(low)); power <= Math.log10(high); power += 1) powers.push(10 ** power);
    return powers.length > 1 ? powers : linearTicks(low, high, count);
  };
  return scale;
}

/** About `count` ticks at round values, at least two wherever there is room between the ends. */
function linearTicks(low, high, count, whole = false) {
  const rough = (high - low) / Math.max(count, 2);
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const round = [10, 5, 2.5, 2, 1, 0.5, 0.25, 0.2, 0.1].map((one) => one * power);
  const steps = whole ? round.filter(Number.isInteger) : round;
  if (!steps.length) steps.push(1);
  const first = Math.max(steps.findLastIndex((one) => one >= rough), 0);
  const ticks = steps.slice(first).map((step) => multiples(step, low, high));
  return ticks.find((one) => one.length > 1) ?? ticks.at(-1);
}

function multiples(step, low, high) {
  const ticks = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) ticks.push(at * step);
  return ticks;
}

const units = [[1e9, "G"], [1e6, "M"], [1e4, "k"]];

/** What stands beside the ticks of one axis: as few digits as tell each one as it is. */
export function labels(ticks) {
  const gap = Math.min(...ticks.slice(1).map((tick, at) => Math.abs(tick - ticks[at])), Math.abs(ticks[0]) || 1);
  let digits = 1;
  while (digits < 15 && ticks.some((tick) => Math.abs(rounded(tick, digits) - tick) > gap / 100)) digits += 1;
  return ticks.map((tick) => short(tick, digits));
}

function short(value, digits = 4) {
  const size = Math.abs(value);
  for (const [unit, letter] of units) {
    if (size >= unit) return `${rounded(value / (letter === "k" ? 1e3 : unit), digits)}${letter}`;
  }
  return size && size < 1e-3 ? rounded(value, digits).toExponential() : String(rounded(value, digits));
}

function rounded(value, digits) {
  return Number(value.toPrecision(digits));
}

export function exact(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1e-4 && size < 1e6 ? String(Number(value.toPrecision(5))) : value.toExponential(3);
}
