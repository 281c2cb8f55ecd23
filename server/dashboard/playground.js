/*
 * playground.js - one prompt, two routings side by side, each token coloured by how many experts it
 * took.
 *
 * While a text streams, a token's experts follow from `timings_per_token`: mean_active_experts is
 * the mean over all positions so far, so that its growth from one token to the next is what the
 * token between them took. At the end `routed_experts` gives every position, prompt included, by
 * layer. With `echo` the prompt's tokens come first, so that token i is position i.
 */
const sliderLeast = 0.05;

class Side {
  constructor(name) {
    this.name = name;
    this.root = $('side-template').content.firstElementChild.cloneNode(true);
    for (const part of ['rule', 'slider', 'own', 'least', 'most', 'text', 'dial-value', 'token-readout', 'mean', 'bytes', 'speed', 'time'])
      this[part.replace(/-(.)/, (_, letter) => letter.toUpperCase())] = this.root.querySelector(`.${part}`);
    this.root.id = `side-${name}`;
    setText(this.root.querySelector('h3'), name);
    this.slider.setAttribute('aria-label', `Threshold of ${name}`);
    this.text.setAttribute('aria-label', `Text of ${name}. Arrow keys go from token to token.`);
    this.tokens = [];
    this.picked = -1;
    this.frame = null;
    this.slider.addEventListener('input', () => this.showDial());
    this.rule.addEventListener('change', () => this.setRule());
    this.own.addEventListener('click', () => {
      this.slider.value = this.ownValue();
      this.showDial();
      this.root.dispatchEvent(new Event('dial'));
    });
    for (const control of [this.slider, this.rule, this.least, this.most])
      control.addEventListener('change', () => this.root.dispatchEvent(new Event('dial')));
    this.text.addEventListener('keydown', (event) => this.press(event));
    this.text.addEventListener('pointerover', (event) => event.target.token && this.pick(this.tokens.indexOf(event.target.token), false));
    this.text.addEventListener('blur', () => this.pick(-1, false));
    this.text.addEventListener('scroll', () => {
      this.atEnd = this.text.scrollTop + this.text.clientHeight >= this.text.scrollHeight - 30;
    });
    $('sides').append(this.root);
  }

  /* --- the dial --- */

  /* The model's own routing and the number of experts; part: the dial's first value as a part of the
   * model's own. */
  setModel(router, experts, part) {
    const first = !this.router;
    this.router = router;
    this.experts = experts;
    this.least.max = this.most.max = experts;
    if (first) {
      this.part = part;
      this.setRule();
    } else {
      this.showDial();
    }
  }

  ownValue() {
    return this.rule.value === 'top_k' ? this.router.top_k : this.router.threshold;
  }

  setRule() {
    const rule = this.rule.value, slider = this.slider, byCount = rule === 'top_k';
    slider.min = byCount ? 1 : sliderLeast;
    slider.max = byCount ? this.experts : 1;
    slider.step = byCount ? 1 : 0.01;
    const own = this.ownValue();
    slider.value = own ? own * this.part : byCount ? Math.min(4, this.experts) : 0.9 * this.part;
    slider.disabled = rule === 'dense';
    slider.setAttribute('aria-label', `${byCount ? 'Experts per token' : 'Threshold'} of ${this.name}`);
    this.showDial();
  }

  showDial() {
    const rule = this.rule.value, own = this.ownValue();
    setText(this.dialValue, rule === 'dense' ? `all ${this.experts}` : rule === 'top_k' ? this.slider.value : Number(this.slider.value).toFixed(2));
    this.own.hidden = rule === 'dense' || this.router.type !== rule;
    if (!this.own.hidden) {
      const least = Number(this.slider.min), most = Number(this.slider.max);
      this.own.style.setProperty('--at', Math.max(0, (own - least) / (most - least)));
      setText(this.own, `model’s own ${Number(own.toPrecision(3))}`);
      this.own.title = 'set the dial to what the model was trained with';
    }
  }

  routing() {
    const rule = this.rule.value, router = {type: rule};
    if (rule !== 'dense')
      router[rule] = Number(this.slider.value);
    if (this.least.value)
      router.min_experts = Number(this.least.value);
    if (this.most.value)
      router.max_experts = Number(this.most.value);
    return router;
  }

  describe() {
    const {value} = this.slider;
    return {threshold: `threshold ${Number(value).toFixed(2)}`, top_k: `top ${value}`, dense: 'all experts'}[this.rule.value];
  }

  /* --- the text --- */

  clear() {
    this.tokens = [];
    this.characters = [];
    this.placed = 0; /* tokens whose text is complete */
    this.total = null;
    this.result = null;
    this.atEnd = true;
    this.pick(-1, false);
    this.text.replaceChildren();
    for (const part of [this.mean, this.bytes, this.speed, this.time])
      setText(part, '–');
  }

  /* Scrolls to the newest line, unless the reader has scrolled away; once per frame, for it costs a
   * layout. */
  follow() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      if (this.atEnd)
        this.text.scrollTop = this.text.scrollHeight;
    });
  }

  /* Tokens are given with the offset of their text in characters; text that a token began may come
   * later, when its bytes make whole characters. */
  addTokens(choice) {
    this.characters.push(...Array.from(choice.text));
    const {logprobs} = choice;
    logprobs?.text_offset.forEach((offset, i) => {
      const token = {
        offset, name: logprobs.tokens[i], logprob: logprobs.token_logprobs[i],
        before: new Text(), span: make('span', 'token pending'), after: new Text()
      };
      token.span.token = token;
      this.tokens.push(token);
      this.text.append(token.before, token.span, token.after);
    });
    for (let i = this.placed; i < this.tokens.length; i++) {
      const next = this.tokens[i + 1]?.offset ?? Infinity;
      this.place(this.tokens[i], this.characters.slice(this.tokens[i].offset, next).join(''));
      if (i === this.placed && next <= this.characters.length)
        this.placed++;
    }
  }

  /* White space stays outside of the colour; a token of nothing else gets a sign by style. */
  place(token, text) {
    if (token.text === text)
      return;
    token.text = text;
    const word = text.trim(), blank = text !== '' && word === '';
    token.before.data = blank ? '' : text.slice(0, text.length - text.trimStart().length);
    token.after.data = blank ? text : text.slice(text.trimEnd().length);
    setText(token.span, word);
    token.span.classList.toggle('newline', blank && text.includes('\n'));
    token.span.classList.toggle('space', blank && !text.includes('\n'));
  }

  /* What the token before the newest took: see the head of this file. */
  addTimings(timings) {
    const positions = timings.prompt_n + timings.predicted_n - 1;
    const total = timings.mean_active_experts * positions;
    const token = this.tokens[this.tokens.length - 2];
    if (this.total !== null && token && timings.predicted_n > 1) {
      token.active = total - this.total;
      this.colour(token);
    }
    this.total = total;
    this.showTimings(timings, false);
  }

  /* The choice's end: what each position took, by layer. */
  addRouted(routed) {
    routed.experts.forEach((layers, i) => {
      const token = this.tokens[routed.first_position + i];
      if (!token || layers.includes(null))
        return;
      token.layers = layers.map((experts, m) => ({layer: routed.layers[m], experts}));
      const active = sum(layers.map((experts) => experts.length)) / layers.length;
      const known = Math.abs(token.active - active) < 1e-9;
      token.active = active;
      if (!known)
        this.colour(token);
    });
  }

  markPrompt(count) {
    this.promptTokens = count;
    this.tokens.slice(0, count).forEach(({span}) => span.classList.add('prompt'));
  }

  colour(token) {
    playground.widen(token.active);
    token.span.classList.remove('pending');
    token.span.style.backgroundColor = theme.colour('token', (token.active - 1) / (playground.widest - 1));
  }

  recolour() {
    this.tokens.filter(({active}) => active !== undefined).forEach((token) => this.colour(token));
  }

  showTimings(timings, atEnd) {
    const shown = (element, pair) => setText(element, joined(pair));
    setText(this.mean, timings.mean_active_experts.toFixed(2));
    shown(this.bytes, bytes(timings.expert_bytes_per_token));
    if (timings.predicted_ms > 0)
      setText(this.speed, short((timings.predicted_n - 1) / timings.predicted_ms * 1000));
    shown(this.time, duration((timings.prompt_ms + timings.predicted_ms) / 1000));
    if (atEnd)
      this.result = timings;
  }

  showProblem(message) {
    this.text.append(make('p', 'problem', message));
  }

  /* --- one token's numbers --- */

  press(event) {
    const steps = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -1e9, End: 1e9};
    if (!(event.key in steps) || !this.tokens.length)
      return;
    event.preventDefault();
    this.pick(Math.min(this.tokens.length - 1, Math.max(0, this.picked + steps[event.key])), true);
  }

  pick(index, scroll) {
    this.tokens[this.picked]?.span.classList.remove('picked');
    this.picked = index;
    const token = this.tokens[index];
    setText(this.tokenReadout, token ? this.describeToken(token, index) : this.tokens.length ? 'Point at a token to read its experts.' : '\u00a0');
    token?.span.classList.add('picked');
    if (scroll)
      token?.span.scrollIntoView({block: 'nearest'});
  }

  describeToken(token, index) {
    const text = `“${(token.text || token.name).replaceAll('\n', '↵')}”`;
    const chance = token.logprob === null || index < this.promptTokens ? '' : `, probability ${percent(Math.exp(token.logprob))}`;
    if (token.active === undefined)
      return `${text}${chance}: it was the last and went through no layer.`;
    const layers = token.layers?.length <= 8 ? ` (${token.layers.map(({layer, experts}) => `L${layer}: ${experts.join(' ')}`).join('; ')})` : '';
    return `${text}${chance}: ${token.active.toFixed(2)} experts per layer${layers}`;
  }
}

const playground = {
  sides: [],
  widest: 4, /* experts at the end of the colours */
  runs: new Map(), /* side: AbortController of what runs */

  setModel(router, experts, context) {
    $('max-tokens').max = context;
    this.sides.forEach((side, i) => side.setModel(router, experts, i ? 0.6 : 1));
    this.showLegend();
  },

  widen(active) {
    if (active <= this.widest)
      return;
    this.widest = Math.ceil(active);
    this.sides.forEach((side) => side.recolour());
    this.showLegend();
  },

  showLegend() {
    paintRamp($('token-ramp'), 'token');
    setText($('token-high'), `${this.widest} or more`);
  },

  request(side) {
    return {
      prompt: $('prompt').value, max_tokens: Number($('max-tokens').value),
      temperature: Number($('temperature').value), seed: Number($('seed').value),
      router: side.routing(), stream: true, echo: true, logprobs: 0, cache_prompt: false,
      timings_per_token: true, routed_experts: true, stream_options: {include_usage: true}
    };
  },

  async stream(side, signal) {
    for await (const event of events('v1/completions', {method: 'POST', body: this.request(side), signal})) {
      if (event === '[DONE]')
        return;
      const chunk = JSON.parse(event), choice = chunk.choices?.[0];
      if (chunk.error)
        throw new Refused(0, chunk.error.message);
      if (choice) {
        side.addTokens(choice);
        if (choice.routed_experts)
          side.addRouted(choice.routed_experts);
      }
      if (chunk.usage)
        side.markPrompt(chunk.usage.prompt_tokens);
      if (chunk.timings && choice?.finish_reason)
        side.showTimings(chunk.timings, true);
      else if (chunk.timings)
        side.addTimings(chunk.timings);
      side.follow();
    }
    throw new Unreachable('the answer broke off');
  },

  async runSide(side) {
    this.runs.get(side)?.abort();
    const control = new AbortController();
    this.runs.set(side, control);
    this.showRunning();
    side.clear();
    try {
      await this.stream(side, control.signal);
    } catch (error) {
      if (!(error instanceof Refused || error instanceof Unreachable || control.signal.aborted))
        console.error(error);
      if (!control.signal.aborted)
        side.showProblem(`${error.message[0].toUpperCase()}${error.message.slice(1)}.`);
      if (error instanceof Refused && error.status === 401)
        askForKey();
    } finally {
      if (this.runs.get(side) === control)
        this.runs.delete(side);
      side.pick(-1, false);
      this.showRunning();
    }
  },

  async run() {
    if (!$('prompt-form').reportValidity())
      return;
    this.widest = 4;
    this.showLegend();
    if ($('order').value === 'together') {
      await Promise.all(this.sides.map((side) => this.runSide(side)));
      return;
    }
    this.sides.forEach((side) => side.clear());
    const turn = this.turn = {};
    for (const side of this.sides)
      if (this.turn === turn)
        await this.runSide(side);
  },

  stop() {
    this.turn = null;
    this.runs.forEach((control) => control.abort());
  },

  showRunning() {
    $('stop').disabled = this.runs.size === 0;
    setText($('run'), this.runs.size ? 'Run again' : 'Run');
    setText($('comparison'), this.runs.size ? '' : this.compare());
  },

  /* One sentence on what the second dial changed. */
  compare() {
    const [a, b] = this.sides;
    if (!a.result || !b.result)
      return '';
    const words = (side) => side.tokens.slice(side.promptTokens).map(({name}) => name);
    const first = words(a), second = words(b);
    const same = first.findIndex((name, i) => name !== second[i]);
    const text = same < 0 && first.length === second.length ? 'Both wrote the same text.'
      : same === 0 ? 'Their texts part at the first token.'
      : `Their texts are the same for ${plural(same < 0 ? first.length : same, 'token')}.`;
    if (!a.result.mean_active_experts)
      return text;
    const fewer = (name) => 1 - b.result[name] / a.result[name];
    const change = (part) => `${percent(Math.abs(part))} ${part >= 0 ? 'fewer' : 'more'}`;
    const experts = fewer('mean_active_experts');
    const cost = Math.abs(experts) < 0.0005 ? 'B takes as many experts as A'
      : `B (${b.describe()}) takes ${change(experts)} experts per token than A (${a.describe()})`;
    const speed = ($('order').value === 'turns' && a.result.predicted_n > 1 && b.result.predicted_n > 1)
      ? `, at ${(b.result.predicted_per_second / a.result.predicted_per_second).toFixed(2)} times the speed` : '';
    const hint = speed ? '' : ' They shared every step of the server; let them run one after the other to compare speed.';
    return `${cost}${speed}. ${text}${hint}`;
  }
};

playground.sides = ['A', 'B'].map((name) => new Side(name));
for (const side of playground.sides)
  side.root.addEventListener('dial', () => $('live').checked && $('prompt-form').reportValidity() && playground.runSide(side));
$('prompt-form').addEventListener('submit', (event) => {
  event.preventDefault();
  playground.run();
});
$('prompt').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    playground.run();
  }
});
$('stop').addEventListener('click', () => playground.stop());
theme.listeners.push(() => {
  playground.sides.forEach((side) => side.recolour());
  playground.showLegend();
});
