// The page at /claim. It has no build step: the browser gets these texts as they are.

export const pageStyle = `
:root {
  color-scheme: light dark;
  --text: #1b1b1b; --quiet: #55595f; --ground: #f6f7f7; --card: #ffffff; --line: #c9cdd2; --accent: #17603f; --on-accent: #ffffff;
  --bad: #a1251b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --text: #eceeee; --quiet: #a9b0b6; --ground: #141616; --card: #1d2021; --line: #454b50; --accent: #7fd1ae; --on-accent: #10221a;
    --bad: #ff9d92;
  }
}
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0; background: var(--ground); color: var(--text); font: 1rem/1.5 system-ui, sans-serif; }
main { max-width: 40rem; margin: 0 auto; padding: 2rem 1rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 0.5rem; padding: 1.5rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 0.75rem; }
p { margin: 0 0 1rem; }
.quiet { color: var(--quiet); }
.bad { color: var(--bad); }
label { display: block; font-weight: 600; margin-bottom: 0.25rem; }
textarea {
  width: 100%; padding: 0.75rem; border: 1px solid var(--line); border-radius: 0.375rem; resize: none;
  background: var(--ground); color: var(--text); font: 1rem/1.4 ui-monospace, monospace; overflow-wrap: anywhere;
}
button {
  padding: 0.625rem 1.25rem; border: 0; border-radius: 0.375rem; background: var(--accent); color: var(--on-accent);
  font: inherit; font-weight: 600; cursor: pointer;
}
button[disabled] { opacity: 0.6; cursor: default; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 3px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.25rem 1rem; margin: 1rem 0 0; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
.row { display: flex; flex-wrap: wrap; align-items: center; gap: 1rem; margin-top: 0.75rem; }
#said { margin: 0; min-height: 1.5em; }
`;

export const pageScript = `
'use strict';
(() => {
  const $ = (id) => document.getElementById(id);
  const show = (id) => {
    for (const section of document.querySelectorAll('section')) section.hidden = section.id !== id;
  };
  const say = (text) => { $('said').textContent = text; };

  const endings = {
    gone: ['This link no longer works', 'It was used before, has expired or was cancelled. If you did not use it yourself, ' +
      'say so to the sender: somebody else may have. Ask for a new link.'],
    done: ['The key was already shown', 'This page showed the key once and cannot show it again. ' +
      'If you did not save the key, ask the sender for a new link.'],
    empty: ['There is no code in this link', 'Copy the whole link from the message that you got, up to its last character, ' +
      'and open it again.'],
  };
  const end = (kind, moveFocus) => {
    const [title, text] = endings[kind];
    $('end-title').textContent = title;
    $('end-text').textContent = text;
    show('end');
    if (moveFocus) $('end-title').focus();
  };
  /** The state stays over a reload, the code does not stay in the address and the history of the browser. */
  const forgetCode = (kind) => history.replaceState({ latchkey: kind }, '', location.pathname + location.search);

  const complain = (text) => {
    $('trouble').textContent = text;
    $('redeem').disabled = false;
    $('redeem').focus();
  };

  function start() {
    say('');
    $('trouble').textContent = '';
    $('redeem').disabled = false;
    $('key').value = '';
    if (location.hash.length > 1) show('offer');
    else end((history.state && endings[history.state.latchkey]) ? history.state.latchkey : 'empty', false);
  }

  async function redeem() {
    const code = location.hash.slice(1);
    $('redeem').disabled = true;
    $('trouble').textContent = '';
    say('Fetching the key …');
    let reply;
    let body;
    try {
      reply = await fetch('v1/claims/redeem', {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ code }),
        cache: 'no-store',
        credentials: 'omit',
        referrerPolicy: 'no-referrer',
      });
      body = await reply.json();
    } catch {
      say('');
      complain('The service could not be reached, or its reply did not arrive. Check your connection and try again. ' +
        'If the link then no longer works, ask the sender for a new one.');
      return;
    }
    say('');
    if (reply.status === 200) {
      forgetCode('done');
      showKey(body);
    } else if (reply.status === 410 || reply.status === 400) {
      forgetCode('gone');
      end('gone', true);
    } else if (reply.status === 429) {
      const seconds = Number(reply.headers.get('retry-after')) || 60;
      complain('There were too many tries from your network. Try again in ' + seconds + ' seconds.');
    } else {
      complain('The service cannot hand over the key now. Try again in a minute. ' +
        'If the link then no longer works, ask the sender for a new one.');
    }
  }

  const permissions = { read: 'read', write: 'write', read_write: 'read and write' };
  function showKey(claimed) {
    $('key').value = claimed.key;
    const facts = [
      ['From', claimed.organizationName],
      ['For', claimed.partnerEmail],
      ['Permission', permissions[claimed.permission] || claimed.permission],
      ['Expires', claimed.expiresAt && new Date(claimed.expiresAt).toLocaleString()],
      ['Key id', claimed.keyId],
    ];
    $('facts').replaceChildren(...facts.filter(([, value]) => value).flatMap(([name, value]) => {
      const [term, description] = [document.createElement('dt'), document.createElement('dd')];
      term.textContent = name;
      description.textContent = value;
      return [term, description];
    }));
    show('result');
    $('result-title').focus();
  }

  async function copy() {
    try {
      await navigator.clipboard.writeText($('key').value);
      say('The key was copied.');
    } catch {
      $('key').focus();
      $('key').select();
      say('The key is selected. Copy it with Ctrl+C, or ⌘C on a Mac.');
    }
  }

  $('redeem').addEventListener('click', redeem);
  $('copy').addEventListener('click', copy);
  $('key').addEventListener('focus', () => $('key').select());
  addEventListener('hashchange', start);
  // Not shown again by going back.
  addEventListener('pagehide', () => { $('key').value = ''; });
  addEventListener('pageshow', (event) => { if (event.persisted) start(); });
  start();
})();
`;

export const pageHtml = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex, nofollow">
<meta name="referrer" content="no-referrer">
<title>Your API key</title>
<link rel="icon" href="data:,">
<style>${pageStyle}</style>
</head>
<body>
<main>
<noscript><section><h1>This page needs JavaScript</h1><p>Turn it on for this page, and open the link again.</p></section></noscript>
<section id="offer" aria-labelledby="offer-title" hidden>
<h1 id="offer-title">An API key is ready for you</h1>
<p>The key is shown once, and only here. Have a safe place ready for it, such as a secret store or a password manager.</p>
<button type="button" id="redeem">Show the key</button>
<p class="bad" id="trouble" role="alert"></p>
</section>
<section id="result" aria-labelledby="result-title" hidden>
<h1 id="result-title" tabindex="-1">Save this key now</h1>
<p>It is not shown again. The link no longer works.</p>
<label for="key">API key</label>
<textarea id="key" rows="3" readonly spellcheck="false" autocomplete="off"></textarea>
<div class="row"><button type="button" id="copy">Copy the key</button></div>
<dl id="facts"></dl>
</section>
<section id="end" aria-labelledby="end-title" hidden>
<h1 id="end-title" tabindex="-1"></h1>
<p id="end-text"></p>
</section>
<p id="said" role="status" class="quiet"></p>
</main>
<script>${pageScript}</script>
</body>
</html>
`;
