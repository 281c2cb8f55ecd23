/*
 * layers.js - one table row per layer beside the map: mean, histogram of experts taken, balance,
 * dead experts, distinct per step, drift from a snapshot.
 */
const svgName = 'http://www.w3.org/2000/svg';

function makeSvg(...paths) {
  const svg = document.createElementNS(svgName, 'svg');
  svg.setAttribute('preserveAspectRatio', 'none');
  svg.setAttribute('aria-hidden', 'true');
  for (const className of paths) {
    const path = document.createElementNS(svgName, 'path');
    path.setAttribute('class', className);
    svg.append(path);
  }
  return svg;
}

class LayerTable {
  constructor(table) {
    this.body = table.tBodies[0];
    this.head = $('histogram-head');
    this.rows = [];
  }

  setShape(layers) {
    this.rows = layers.map((layer) => {
      const row = make('tr'), head = make('th', '', `L${layer}`), svg = makeSvg('bars');
      head.scope = 'row';
      const cells = Array.from({length: 6}, (_, i) => make('td', i === 5 ? 'drift' : ''));
      const label = make('span', 'unseen');
      cells[1].append(svg, label);
      row.append(head, ...cells);
      return {row, cells, svg, label, path: svg.firstChild};
    });
    this.body.replaceChildren(...this.rows.map(({row}) => row));
  }

  /* Bars 1 to widest, the tallest of each layer full. */
  drawBars(parts, layer, widest) {
    const histogram = layer.active_histogram.slice(1, widest + 1);
    const tallest = Math.max(1, ...histogram);
    parts.svg.setAttribute('viewBox', `0 0 ${widest} 1`);
    parts.path.setAttribute('d', histogram.map((tokens, i) => {
      const height = tokens ? Math.max(0.04, tokens / tallest) : 0.012;
      return `M${i + 0.08} 1v${-height}h.84V1z`;
    }).join(''));
    const mode = histogram.indexOf(tallest);
    setText(parts.label, layer.tokens ? `most often ${mode + 1}, at most ${layer.max_active}` : 'none');
    parts.svg.parentNode.title = histogram.map((tokens, i) => tokens ? `${i + 1}: ${whole(tokens)}` : '')
      .filter((text) => text).join('  ·  ');
  }

  show(layers) {
    const widest = Math.max(4, ...layers.map((layer) => layer.max_active));
    setText(this.head, `Taken 1–${widest}`);
    layers.forEach((layer, i) => {
      const parts = this.rows[i], cells = parts.cells, some = layer.tokens > 0;
      setText(cells[0], some ? layer.mean_active.toFixed(2) : '–');
      this.drawBars(parts, layer, widest);
      setText(cells[2], some ? layer.load_balance.toFixed(2) : '–');
      setText(cells[3], some ? String(layer.dead.length) : '–');
      cells[3].className = some && layer.dead.length ? 'has-dead' : '';
      setText(cells[4], some ? layer.distinct_per_step.toFixed(1) : '–');
      setText(cells[5], Number.isFinite(layer.divergence) ? short(layer.divergence) : '–');
    });
  }

  pick(index) {
    this.rows.forEach(({row}, i) => row.classList.toggle('picked', i === index));
  }
}
