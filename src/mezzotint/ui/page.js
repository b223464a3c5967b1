// What the page's Python cannot do: see what somebody does between two answers, and keep it in the browser.
const mezzotint = (() => {
  const FORM = 'mezzotint-form';
  const MOST_MS = 30_000;
  let answer = () => {};
  const asks = [];

  // The form, for a reload: Gradio makes one by itself when the connection was lost. By tab, and gone with it:
  // a new visit begins with the service's own values.
  const kept = () => JSON.parse(sessionStorage.getItem(FORM) || '{}');
  const keep = values => sessionStorage.setItem(FORM, JSON.stringify({...kept(), ...values}));
  let isRestored = false;
  // Gradio tells of nothing that is changed while the line is broken.
  document.addEventListener('input', ({target}) => {
    const block = target.closest('.mz-kept');
    const isNumber = /number|range/.test(target.type);
    if (!block || (isNumber && !target.value)) return;
    const value = target.type === 'checkbox' ? target.checked : isNumber ? +target.value : target.value;
    keep({[block.id.replace('-', '_')]: value});
  }, true);

  // Of a number that was deleted Gradio makes the least that it takes.
  let number = '';
  document.addEventListener('focus', ({target}) => { if (target.type === 'number') number = target.value; }, true);
  document.addEventListener('blur', ({target}) => {
    if (target.type !== 'number' || target.value) return;
    target.value = number;
    target.dispatchEvent(new Event('input', {bubbles: true}));
  }, true);

  // What was just answered comes into view: a notice, the card of what was asked for, an opened picture.
  const seen = new Set();
  const show = shown =>
    shown?.scrollIntoView({block: shown.offsetHeight > innerHeight ? 'start' : 'nearest'});
  const showNews = () => {
    for (const news of document.querySelectorAll('[data-news]')) {
      if (seen.has(news.dataset.news)) continue;
      seen.add(news.dataset.news);
      if (news.dataset.show === '#canvas') sketch = false;
      if (document.hidden) continue;
      // What it is about may be on its way too.
      setTimeout(() => {
        show(news);
        if (news.dataset.show) show(document.querySelector(news.dataset.show));
        if (news.matches('figure')) news.focus({preventScroll: true});
      }, 50);
    }
  };

  // Where the focus goes when what had it is taken away.
  let opener = '';
  let isOpen = false;
  const leaveOpened = () => {
    const was = isOpen;
    isOpen = document.querySelector('.mz-opened') !== null;
    if (was && !isOpen) document.querySelector(opener)?.focus();
  };
  const leaveRemoved = card => {
    // Cards are drawn over in their places: this one will be the next.
    const next = card.nextElementSibling ? card : card.previousElementSibling;
    (next || document.querySelector('#search textarea, #search input')).focus();
  };

  // A picture that did not come is asked for again, unless the service says that it has it no more.
  const pauses = new WeakMap();
  const again = async image => {
    const source = image.getAttribute('src');
    const status = await fetch(source).then(response => response.status, () => 0);
    const thumbnail = image.closest('[data-do=open]');
    if (status === 404) {
      if (thumbnail) answer({...thumbnail.dataset, do: 'gone'});
    } else if (image.isConnected && image.getAttribute('src') === source) image.src = source;
  };
  document.addEventListener('error', event => {
    const image = event.target;
    if (image.tagName !== 'IMG' || !/^p(ictures|reviews)\//.test(image.getAttribute('src'))) return;
    const pause = Math.min(MOST_MS, 2 * (pauses.get(image) || 500));
    pauses.set(image, pause);
    setTimeout(again, pause, image);
  }, true);
  document.addEventListener('load', event => pauses.delete(event.target), true);

  // Whoever paints over a picture wants that redrawn. A sketch on the empty canvas is a picture itself.
  let sketch = false;
  document.addEventListener('pointerdown', event => {
    const editor = event.target.closest?.('#canvas');
    if (!editor || event.target.tagName !== 'CANVAS' || !editor.querySelector('[aria-label=Brush].highlight'))
      return;
    if (editor.querySelector('[aria-label=Undo]').disabled) sketch = true;
    if (!sketch) document.querySelector('#mode input[value=painted]')?.click();
  }, true);
  // Gradio's widgets say nothing of a file that they cannot read.
  const given = event => {
    const widget = event.target.closest?.('#canvas, #followed, #read');
    if (!widget) return;
    if (widget.id === 'canvas') sketch = false;
    for (const file of (event.dataTransfer || event.clipboardData || event.target).files || [])
      createImageBitmap(file).catch(() => answer({do: 'unreadable'}));
  };
  for (const kind of ['change', 'drop', 'paste']) document.addEventListener(kind, given, true);

  // Gradio's accordions do not say whether they are open.
  const tellFolds = () => {
    for (const fold of document.querySelectorAll('button.label-wrap'))
      fold.setAttribute('aria-expanded', fold.classList.contains('open'));
  };

  setInterval(() => {
    for (const wait of document.querySelectorAll('.mz-wait')) {
      const since = wait.dataset.since || (wait.dataset.since = Date.now());
      const left = Math.ceil(wait.dataset.seconds - (Date.now() - since) / 1000);
      wait.textContent = left > 0 ? `Try again in ${left} s.` : 'You can try again now.';
    }
  }, 500);

  return {
    told: stored => ({...stored, page: {form: kept(), minutes: new Date().getTimezoneOffset()}}),
    // values: what the form holds, of these names; then it holds what was kept. Not the server's to answer: it
    // would come late, over what has been typed since.
    restored: (names, values) => {
      isRestored = true;
      const form = kept();
      // The tab as Gradio's Python would answer it.
      const tab = {__type__: 'update', ...(form.tab && {selected: form.tab})};
      return [...names.map((name, i) => form[name] ?? values[i]), tab];
    },
    // Not the server's to answer: see the editor's canvas in its Python. What is undefined stays as it is.
    turned: turn => [turn?.tab && {__type__: 'update', selected: turn.tab}, turn?.canvas].map(each => each ?? undefined),
    // An answer that fills widgets: it leaves what is not as it was when it was asked for, and fills none where one of
    // the first `about` is not. given, now: what they hold, those to be filled last.
    asked: given => asks.push(given.map(each => JSON.stringify(each))) - 1,
    filled: ([ask, fields], now, about) => {
      const stays = now.map((each, i) => JSON.stringify(each) === asks[ask][i]);
      const first = now.length - fields.length;
      return fields.map((field, i) => field && stays[first + i] && stays.slice(0, about).every(Boolean) ? field[0] : undefined);
    },
    // The newest drawing's, and what the notice says: `none`, which is news each time, where there is none yet.
    lastSeed: (stored, none) => {
      const [last] = (stored?.drawings ?? []).filter(({seed}) => seed).sort((one, other) => other.at - one.at);
      return last ? [last.seed, ''] : [undefined, none.replace(/data-news="\d+/, `data-news="${Date.now()}`)];
    },
    // Before that the form holds nothing of anybody's.
    keep: (name, value) => { if (isRestored) keep({[name]: value}); },
    // The list of drawings: what its buttons say goes to the page's Python.
    listen: trigger => {
      answer = trigger;
      const press = (what, card) => {
        if (!what?.do) return;
        if (what.do === 'open') opener = `[data-do=open][data-id="${what.id}"][data-n="${what.n}"]`;
        if (what.do === 'remove') leaveRemoved(card);
        answer(what);
      };
      // News draws cards over in their places: what is let go may be another's button than what was pressed, or none.
      let down = {}, up = -Infinity;
      const button = element => element?.closest?.('#drawings [data-do]');
      document.addEventListener('pointerdown', event => {
        const pressed = event.button ? null : button(event.target);
        down = {x: event.clientX, y: event.clientY, what: {...pressed?.dataset}, card: pressed?.closest('li')};
      }, true);
      document.addEventListener('pointerup', ({clientX, clientY, pointerType, timeStamp}) => {
        up = timeStamp;
        // An unsteady hand may let go elsewhere on the same button.
        const over = JSON.stringify({...button(document.elementFromPoint(clientX, clientY))?.dataset});
        const stays = Math.hypot(clientX - down.x, clientY - down.y) < 10 || over === JSON.stringify(down.what);
        // A mouse is not said to click what is drawn over. Of a finger it is, and not of one that stops the page's moving.
        if (stays && pointerType === 'mouse') press(down.what, down.card);
        if (!stays || pointerType === 'mouse') down = {};
      }, true);
      document.addEventListener('click', ({target, detail, timeStamp}) => {
        const pressed = button(target);
        // By keyboard, or by a program that presses for somebody: with no pointer just before.
        if (!detail || timeStamp - up > 1_000) down = {what: {...pressed?.dataset}, card: pressed?.closest('li')};
        press(down.what, down.card);
        down = {};
      }, true);
      const changed = () => { showNews(); leaveOpened(); tellFolds(); };
      new MutationObserver(changed).observe(document.body, {
        subtree: true, childList: true, attributes: true, attributeFilter: ['data-news', 'class'],
      });
    },
  };
})();
