// The stream of states, for as long as the page is open.
//
// EventSource asks again by itself when a connection ends, but gives up on an answer that is no stream: a proxy's 502,
// our own 503. Then, and when nothing has come for a while, it is made anew. While the page is hidden for long, nothing
// is asked for.

import { parse } from "./visible.js";

const SILENCE = 5000;
const FIRST = 60000; // the first state is whole: over a slow line it is long on its way
const AGAIN = [1000, 1000, 2000, 3000, 5000];
const HIDDEN = 60000;

export function follow(url, { state, connection }) {
  let source = null;
  let watchdog = 0;
  let retry = 0;
  let tries = 0;
  let lostAt = null;

  // From now on, something is to be heard within a while.
  function heard(within = SILENCE) {
    clearTimeout(watchdog);
    watchdog = setTimeout(() => lost(true), within);
  }

  function stop() {
    clearTimeout(watchdog);
    clearTimeout(retry);
    source?.close();
    source = null;
  }

  function lost(anew) {
    lostAt ??= Date.now();
    connection("lost", lostAt);
    if (!anew) return;
    stop();
    retry = setTimeout(open, AGAIN[Math.min(tries++, AGAIN.length - 1)]);
  }

  function open() {
    stop();
    source = new EventSource(url);
    source.onopen = () => heard(FIRST);
    source.onmessage = (event) => {
      heard();
      tries = 0;
      lostAt = null;
      connection("live", null);
      state(parse(event.data));
    };
    source.onerror = () => {
      heard();
      lost(source.readyState === EventSource.CLOSED);
    };
    heard();
  }

  let hiding = 0;
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiding);
    if (document.hidden) hiding = setTimeout(stop, HIDDEN);
    else if (source === null) open();
  });
  open();
}
