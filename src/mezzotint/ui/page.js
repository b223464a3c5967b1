// Passes a click on a drawing's button to the page's Python, and counts down the seconds of a refusal.
element.addEventListener('click', event => {
  const pressed = event.target.closest('[data-do]');
  if (pressed) trigger('act', {...pressed.dataset});
});
setInterval(() => {
  for (const wait of element.querySelectorAll('.mz-wait')) {
    const since = wait.dataset.since || (wait.dataset.since = Date.now());
    const left = Math.ceil(wait.dataset.seconds - (Date.now() - since) / 1000);
    wait.textContent = left > 0 ? `Try again in ${left} s.` : 'You can try again now.';
  }
}, 500);
