/*
 * palette.js - the colours of numbers. Lightness rises or falls all along a scale, so that it is
 * read the same by the colour-blind and in grey. Stops are sRGB and mixed in Oklab, in which equal
 * steps look equal.
 */
const stops = {
  light: {
    share: ['#eaf1ee', '#b4dcd0', '#62b3ae', '#23788f', '#1a3a63'],
    change: ['#8a4f08', '#d9a24e', '#f1efe9', '#6f9fd0', '#1b4b8a'],
    token: ['#f4f3ee', '#cfe9df', '#8fd0c5', '#55acae']
  },
  dark: {
    share: ['#1d2b31', '#1c5266', '#23878a', '#79c99a', '#f3f0b5'],
    change: ['#f0b463', '#8a5a1d', '#20292d', '#2f5f93', '#8fbdf2'],
    token: ['#1a2428', '#17434f', '#1b616a', '#227578']
  }
};

function toOklab(hex) {
  const [r, g, b] = [1, 3, 5].map((at) => {
    const part = parseInt(hex.slice(at, at + 2), 16) / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s
  ];
}

function toRgb([lightness, a, b]) {
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s
  ];
  const channels = linear.map((part) => {
    const value = part <= 0.0031308 ? part * 12.92 : 1.055 * part ** (1 / 2.4) - 0.055;
    return Math.round(Math.min(1, Math.max(0, value)) * 255);
  });
  return `rgb(${channels.join(' ')})`;
}

/* 256 colours from the first stop to the last. */
function ramp(colours) {
  const points = colours.map(toOklab);
  return Array.from({length: 256}, (_, i) => {
    const place = i / 255 * (points.length - 1);
    const from = Math.min(Math.floor(place), points.length - 2);
    const part = place - from;
    return toRgb(points[from].map((value, axis) => value + part * (points[from + 1][axis] - value)));
  });
}

const ramps = {};
for (const [theme, scales] of Object.entries(stops))
  ramps[theme] = Object.fromEntries(Object.entries(scales).map(([name, colours]) => [name, ramp(colours)]));

const darkness = matchMedia('(prefers-color-scheme: dark)');
const theme = {
  choice: localStorage.getItem('xmoe.theme') ?? 'auto',
  listeners: [],
  get name() {
    return this.choice === 'auto' ? (darkness.matches ? 'dark' : 'light') : this.choice;
  },
  /* The 256 colours of scale "share", "change" or "token". */
  ramp(scale) {
    return ramps[this.name][scale];
  },
  colour(scale, part) {
    return this.ramp(scale)[Math.round(Math.min(1, Math.max(0, part)) * 255)];
  },
  apply() {
    document.documentElement.dataset.theme = this.choice;
    setText($('theme'), `Theme: ${this.choice}`);
    this.listeners.forEach((listener) => listener());
  },
  next() {
    const order = ['auto', 'light', 'dark'];
    this.choice = order[(order.indexOf(this.choice) + 1) % order.length];
    localStorage.setItem('xmoe.theme', this.choice);
    this.apply();
  }
};
if (!['auto', 'light', 'dark'].includes(theme.choice))
  theme.choice = 'auto';
darkness.addEventListener('change', () => theme.apply());
$('theme').addEventListener('click', () => theme.next());

function paintRamp(canvas, scale) {
  const context = canvas.getContext('2d');
  theme.ramp(scale).forEach((colour, i) => {
    context.fillStyle = colour;
    context.fillRect(i, 0, 1, 1);
  });
}
