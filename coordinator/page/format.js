// How numbers, durations and dates are written.
const format = (() => {
  "use strict";
  const DASH = "–";

  const missing = (value) => value === null || value === undefined;

  /** A number in `digits` significant digits: 0.095337, 1,438, 1.2e-7. */
  function number(value, digits = 5) {
    if (missing(value)) return DASH;
    const rounded = Number(value.toPrecision(digits));
    const size = Math.abs(rounded);
    if (size >= 1e9 || (size > 0 && size < 1e-5)) return rounded.toExponential().replace("e+", "e");
    return rounded.toLocaleString("en", { maximumFractionDigits: 12 });
  }

  /** A whole number: 35,950. */
  const whole = (value) => (missing(value) ? DASH : Math.round(value).toLocaleString("en"));

  /** A share as a percentage: 2.23%. */
  function percent(value) {
    if (missing(value)) return DASH;
    return `${(value * 100).toLocaleString("en", { maximumFractionDigits: 2 })}%`;
  }

  /** A short time in its unit: 120 µs, 1.23 ms, 4.5 s, 2:03 min. */
  function seconds(value) {
    if (missing(value)) return DASH;
    const size = Math.abs(value);
    if (size >= 59.95) return clock(value);
    if (size >= 0.9995) return `${number(value, 3)} s`;
    if (size >= 0.0009995) return `${number(value * 1e3, 3)} ms`;
    return size === 0 ? "0 s" : `${number(value * 1e6, 3)} µs`;
  }

  /** A long time: 0:07, 12:03, 3:04:05, 2 d 3:04:05. */
  function clock(value) {
    if (missing(value)) return DASH;
    const total = Math.max(0, Math.round(value));
    const two = (part) => String(part).padStart(2, "0");
    const hours = Math.floor(total / 3600);
    const minutes = Math.floor(total / 60) % 60;
    if (!hours) return `${minutes}:${two(total % 60)}`;
    const time = `${hours % 24}:${two(minutes)}:${two(total % 60)}`;
    return hours < 24 ? time : `${Math.floor(hours / 24)} d ${time}`;
  }

  /** A moment, given in seconds since the epoch, in the reader's time zone: 25 Nov 2025, 01:28:03 UTC. */
  function moment(timestamp) {
    const options = { dateStyle: "medium", timeStyle: "long" };
    return new Intl.DateTimeFormat("en-GB", options).format(new Date(timestamp * 1000));
  }

  /** 1 shard, 8 shards. */
  const count = (amount, noun, plural = `${noun}s`) => `${whole(amount)} ${amount === 1 ? noun : plural}`;

  return { DASH, number, whole, percent, seconds, clock, moment, count };
})();
