/*
 * heatmap.js - the layer by expert map: one canvas, one focus.
 *
 * Cells are held in typed arrays and drawn one by one, only those whose colour changed, in one
 * animation frame; colours glide to new values unless the reader wants stillness. The cell under
 * pointer or keyboard is a box over the canvas, so moving it draws nothing.
 */
class HeatMap {
  /* onPick(layer index, expert or -1, by keyboard) tells which cell is looked at. */
  constructor(root, canvas, cursor, onPick) {
    this.root = root;
    this.canvas = canvas;
    this.cursor = cursor;
    this.onPick = onPick;
    this.context = canvas.getContext('2d', {alpha: true});
    this.layers = [];
    this.experts = 0;
    this.target = this.shown = new Float32Array(0);
    this.drawn = new Int16Array(0);
    this.scale = 'share';
    this.row = this.column = 0;
    this.picked = false;
    this.frame = 0;
    new ResizeObserver(() => this.resize()).observe(root);
    this.watchRatio();
    root.addEventListener('pointermove', (event) => this.point(event));
    root.addEventListener('pointerdown', (event) => this.point(event));
    root.addEventListener('pointerleave', () => document.activeElement !== root && this.unpick());
    root.addEventListener('focus', () => root.matches(':focus-visible') && this.pick(this.row, this.column, true));
    root.addEventListener('blur', () => this.unpick());
    root.addEventListener('keydown', (event) => this.press(event));
    theme.listeners.push(() => this.redraw());
  }

  /* Layer numbers and experts per layer; forgets what was shown. */
  setShape(layers, experts) {
    if (experts === this.experts && layers.join() === this.layers.join())
      return;
    this.layers = layers;
    this.experts = experts;
    const cells = layers.length * experts;
    this.target = new Float32Array(cells).fill(-1);
    this.shown = new Float32Array(cells).fill(-1);
    this.drawn = new Int16Array(cells).fill(-2);
    this.root.setAttribute('aria-rowcount', layers.length);
    this.root.setAttribute('aria-colcount', experts);
    this.row = Math.min(this.row, layers.length - 1);
    this.column = Math.min(this.column, experts - 1);
    this.resize();
  }

  /* A place on the scale for each cell, 0 to 1, or -1 for none; taken over, not kept. */
  setValues(values, scale) {
    this.target.set(values);
    const glide = scale === this.scale && !stillness.matches && !document.hidden;
    if (scale !== this.scale)
      this.drawn.fill(-2);
    this.scale = scale;
    this.glideEnd = performance.now() + (glide ? 350 : 0);
    this.wake();
  }

  /* Zoom, or a window moved to another screen, changes the ratio alone. */
  watchRatio() {
    matchMedia(`(resolution: ${devicePixelRatio}dppx)`).addEventListener('change', () => {
      this.resize();
      this.watchRatio();
    }, {once: true});
  }

  resize() {
    const width = this.root.clientWidth, count = this.layers.length;
    if (!width || !count)
      return;
    const ratio = devicePixelRatio || 1;
    this.gutter = 34;
    this.axis = 22;
    this.pitchX = (width - this.gutter) / this.experts;
    this.pitchY = Math.max(18, Math.min(72, Math.floor(480 / count)));
    this.gap = this.pitchX >= 5 ? Math.round(ratio) : 0; /* device pixels between cells */
    const height = this.axis + this.pitchY * count;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.canvas.style.height = `${height}px`;
    document.documentElement.style.setProperty('--row', `${this.pitchY}px`);
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.redraw();
    this.placeCursor();
  }

  redraw() {
    if (!this.layers.length || !this.pitchX)
      return;
    this.drawn.fill(-2);
    this.clean = false;
    this.wake();
  }

  wake() {
    if (!this.frame)
      this.frame = requestAnimationFrame((now) => this.draw(now));
  }

  drawAxes() {
    const {context} = this;
    const style = getComputedStyle(this.root);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.fillStyle = getComputedStyle($('summary')).color;
    context.font = `11px ${style.fontFamily}`;
    context.textBaseline = 'middle';
    context.textAlign = 'right';
    this.layers.forEach((layer, row) => {
      context.fillText(`L${layer}`, this.gutter - 7, this.axis + (row + 0.5) * this.pitchY);
    });
    context.textAlign = 'center';
    const step = [1, 2, 4, 8, 16, 32, 64, 128].find((each) => each * this.pitchX >= 26) ?? 256;
    for (let expert = 0; expert < this.experts; expert += step)
      context.fillText(expert, this.gutter + (expert + 0.5) * this.pitchX, this.axis / 2);
    this.clean = true;
  }

  /* Edges fall on whole device pixels, so that gaps are equally wide. */
  drawCell(cell, level, colours) {
    const {context} = this;
    const ratio = devicePixelRatio || 1;
    const snap = (place) => Math.round(place * ratio) / ratio;
    const row = Math.floor(cell / this.experts), column = cell % this.experts;
    const x = snap(this.gutter + column * this.pitchX), y = snap(this.axis + row * this.pitchY);
    const width = snap(this.gutter + (column + 1) * this.pitchX) - x - this.gap / ratio;
    const height = snap(this.axis + (row + 1) * this.pitchY) - y - Math.round(ratio) / ratio;
    context.clearRect(x, y, width, height);
    if (level >= 0) {
      context.fillStyle = colours[level];
      context.fillRect(x, y, width, height);
    } else if (width >= 3) {
      context.strokeStyle = colours[this.scale === 'change' ? 128 : 40];
      context.lineWidth = 1;
      context.strokeRect(x + 0.5, y + 0.5, width - 1, height - 1);
    }
  }

  draw(now) {
    this.frame = 0;
    if (!this.pitchX)
      return;
    if (!this.clean)
      this.drawAxes();
    const {target, shown, drawn} = this;
    const colours = theme.ramp(this.scale);
    const last = now >= this.glideEnd;
    for (let cell = 0; cell < target.length; cell++) {
      const wanted = target[cell];
      shown[cell] = last || wanted < 0 || shown[cell] < 0 ? wanted : shown[cell] + (wanted - shown[cell]) * 0.22;
      const level = shown[cell] < 0 ? -1 : Math.round(shown[cell] * 255);
      if (level !== drawn[cell]) {
        drawn[cell] = level;
        this.drawCell(cell, level, colours);
      }
    }
    if (!last)
      this.wake();
  }

  point(event) {
    const box = this.root.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - this.gutter) / this.pitchX);
    const row = Math.floor((event.clientY - box.top - this.axis) / this.pitchY);
    if (row < 0 || row >= this.layers.length || column < 0 || column >= this.experts)
      return;
    if (!this.picked || row !== this.row || column !== this.column)
      this.pick(row, column, false);
  }

  press(event) {
    const moves = {
      ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0],
      PageUp: [-this.layers.length, 0], PageDown: [this.layers.length, 0],
      Home: [0, -this.experts], End: [0, this.experts]
    };
    if (event.key === 'Escape')
      this.unpick();
    const move = moves[event.key];
    if (!move || !this.layers.length || event.ctrlKey || event.metaKey || event.altKey)
      return;
    event.preventDefault();
    const clamp = (value, count) => Math.min(count - 1, Math.max(0, value));
    this.pick(clamp(this.row + move[0], this.layers.length), clamp(this.column + move[1], this.experts), true);
  }

  pick(row, column, byKey) {
    if (!this.layers.length)
      return;
    this.picked = true;
    this.row = row;
    this.column = column;
    this.placeCursor();
    this.onPick(row, column, byKey);
  }

  unpick() {
    this.picked = false;
    this.cursor.hidden = true;
    this.onPick(-1, -1, false);
  }

  placeCursor() {
    this.cursor.hidden = !this.picked;
    if (!this.picked)
      return;
    const style = this.cursor.style;
    style.width = `${this.pitchX + 3}px`;
    style.height = `${this.pitchY + 3}px`;
    style.transform = `translate(${this.gutter + this.column * this.pitchX - 2}px, ${this.axis + this.row * this.pitchY - 2}px)`;
  }
}
