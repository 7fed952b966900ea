// Numbers in plain words.

/** Seconds as "40 s", "3 min 20 s" or "2 h 5 min"; empty for what is no number. */
export function formatSeconds(seconds) {
  if (!Number.isFinite(seconds)) return "";
  if (seconds < 10) return `${Number(seconds.toFixed(seconds < 1 ? 2 : 1))} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** A guess of seconds, no finer than it can be: "40 s", "12 min" or "1.5 h". */
export function formatRoughly(seconds) {
  if (seconds < 90) return `${Math.max(10, 10 * Math.round(seconds / 10))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** A loss or learning rate with as many digits as tell something. */
export function formatNumber(value) {
  if (!Number.isFinite(value)) return "";
  if (value === 0) return "0";
  return Math.abs(value) < 0.001 ? value.toExponential(2) : value.toFixed(4);
}
