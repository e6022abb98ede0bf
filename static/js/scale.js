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
  scale.ticks = (count) => linearTicks(low, high, count);
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

function linearTicks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1);
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) {
    ticks.push(Math.abs(tick) < step * 1e-9 ? 0 : tick);
  }
  return ticks;
}

const units = [[1e9, "G"], [1e6, "M"], [1e4, "k"]];

export function short(value) {
  const size = Math.abs(value);
  for (const [unit, letter] of units) {
    if (size >= unit) return `${trimmed(value / (letter === "k" ? 1e3 : unit))}${letter}`;
  }
  return size && size < 1e-3 ? value.toExponential(0) : trimmed(value);
}

function trimmed(value) {
  return String(Number(value.toPrecision(4)));
}

export function exact(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1e-4 && size < 1e6 ? String(Number(value.toPrecision(5))) : value.toExponential(3);
}
