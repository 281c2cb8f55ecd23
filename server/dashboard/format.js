/*
 * format.js - numbers as people read them, and the few helpers over the document that all other
 * files use. Text goes into the page by textContent alone.
 */
const $ = (id) => document.getElementById(id);

function setText(element, text) {
  if (element.textContent !== text)
    element.textContent = text;
}

function make(name, className, text) {
  const element = document.createElement(name);
  if (className)
    element.className = className;
  if (text !== undefined)
    element.textContent = text;
  return element;
}

/* "two experts": parts of text, those in arrays bold. */
function setParts(element, parts) {
  element.replaceChildren(...parts.map((part) => (Array.isArray(part) ? make('b', '', part[0]) : part)));
}

const wholeFormat = new Intl.NumberFormat('en');
const whole = (number) => wholeFormat.format(number);

/* Three digits that count: 0.0123, 1.23, 12.3, 123, 1,234. */
function short(number) {
  const size = Math.abs(number);
  if (size === 0)
    return '0';
  if (size >= 99.95)
    return whole(Math.round(number));
  return size >= 9.995 ? number.toFixed(1) : size >= 0.9995 ? number.toFixed(2) : number.toPrecision(2);
}

/* [number, unit], the number with three digits that count. */
function scaled(number, step, units) {
  let unit = 0;
  for (; Math.abs(number) >= step * 0.9995 && unit + 1 < units.length; unit++)
    number /= step;
  return [short(number), units[unit]];
}
const bytes = (number) => scaled(number, 1000, ['B', 'kB', 'MB', 'GB', 'TB']);
const duration = (seconds) =>
  seconds >= 1 ? [short(seconds), 's'] : scaled(seconds * 1e6, 1000, ['µs', 'ms']);
const joined = (pair) => pair.join(' ');

const percent = (part) => {
  const value = part * 100;
  return `${value === 0 || value >= 9.95 ? Math.round(value) : value >= 0.095 ? value.toFixed(1) : value.toPrecision(1)} %`;
};

const plural = (count, word) => `${whole(count)} ${word}${count === 1 ? '' : 's'}`;

const stillness = matchMedia('(prefers-reduced-motion: reduce)');

const pause = (milliseconds, signal) => new Promise((resolve, reject) => {
  const stop = () => {
    clearTimeout(timer);
    reject(signal.reason);
  };
  const timer = setTimeout(() => {
    signal?.removeEventListener('abort', stop);
    resolve();
  }, milliseconds);
  if (signal?.aborted)
    stop();
  signal?.addEventListener('abort', stop, {once: true});
});
