// Axes: from values to pixels, and ticks that people can read.

const MOST = Number.MAX_VALUE;

function finite(value) {
  return Math.min(Math.max(value, -MOST), MOST);
}

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
  const room = high * share - low * share || (Math.abs(high) || 1) * share;
  return [finite(low - room), finite(high + room)];
}

export function linear([low, high], [from, to]) {
  // The distance of two numbers may be larger than any number; that of their halves never is.
  const part = Number.isFinite(high - low) ? 1 : 0.5;
  const range = high * part - low * part || 1;
  const scale = (value) => from + ((value * part - low * part) / range) * (to - from);
  scale.invert = (pixel) => finite((low * part + ((pixel - from) / (to - from || 1)) * range) / part);
  scale.ticks = (count, whole = false) => linearTicks(low, high, count, whole);
  return scale;
}

export function logarithmic([low, high], range) {
  const inner = linear([Math.log10(finite(low)), Math.log10(finite(high))], range);
  const scale = (value) => inner(Math.log10(value));
  scale.invert = (pixel) => 10 ** inner.invert(pixel);
  scale.ticks = (count) => {
    const powers = [];
    for (let power = Math.ceil(Math.log10(low)); power <= Math.log10(finite(high)); power += 1) powers.push(10 ** power);
    return powers.length > 1 ? powers : linearTicks(low, high, count);
  };
  return scale;
}

/** About `count` ticks at round values, at least two wherever there is room between the ends. */
function linearTicks(low, high, count, whole = false) {
  const rough = high / Math.max(count, 2) - low / Math.max(count, 2);
  if (!(rough > 0)) return [low];
  // So close together that counting the steps from zero would leave what a number can hold: the ends are all there is.
  if (rough <= Math.max(Math.abs(low), Math.abs(high)) * 1e-12) return [low, high];
  const power = 10 ** Math.floor(Math.log10(rough));
  const round = [10, 5, 2.5, 2, 1, 0.5, 0.25, 0.2, 0.1].map((one) => one * power).filter(Number.isFinite);
  const steps = whole ? round.filter(Number.isInteger) : round;
  if (!steps.length) steps.push(1);
  const first = Math.max(steps.findLastIndex((one) => one >= rough), 0);
  const ticks = steps.slice(first).map((step) => multiples(step, low, high));
  return ticks.find((one) => one.length > 1) ?? ticks.at(-1);
}

function multiples(step, low, high) {
  const ticks = [];
  const end = finite(high + step * 1e-9);
  for (let at = Math.ceil(low / step - 1e-9); at * step <= end; at += 1) ticks.push(at * step);
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
  if (size >= 1e15) return rounded(value, digits).toExponential();
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
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e21) return value.toLocaleString("en");
  return size >= 1e-4 && size < 1e6 ? String(Number(value.toPrecision(5))) : value.toExponential(3);
}
