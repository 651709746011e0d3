// Requests of the page, with the token that the job asks for: a person is asked once, and this tab keeps it.

import { by, html, setText } from "./dom.js";

const KEY = "tidegate-token";
// Pause before a stream that was lost is opened again.
const AGAIN_MS = 1000;

let token = sessionStorage.getItem(KEY);
let asking = null;

// Shows a form, and waits until it has a token other than the one that was refused.
function newToken(refused) {
  if (token !== refused) return Promise.resolve();
  asking ??= new Promise((done) => {
    const input = html("input", { type: "password" });
    input.required = true;
    input.autocomplete = "off";
    const form = html("form", { id: "token-form" }, html("label", {}, "Token of the job ", input), " ",
      html("button", { type: "submit" }, "Enter"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      token = input.value.trim();
      sessionStorage.setItem(KEY, token);
      form.remove();
      asking = null;
      setText(by("connection"), "Connecting …");
      done();
    });
    setText(by("connection"), refused === null ? "The job asks for a token" : "The job refuses the token");
    by("connection").after(form);
    input.focus();
  });
  return asking;
}

// Sends a request; `limit` returns the signal that ends an attempt.
export async function request(path, limit, headers) {
  for (;;) {
    const sent = token;
    const options = { cache: "no-store", signal: limit(), headers: { ...headers } };
    // What a header cannot hold is no token.
    if (sent !== null) options.headers.Authorization = `Bearer ${encodeURI(sent)}`;
    const answer = await fetch(path, options);
    if (answer.status !== 401) return answer;
    await newToken(sent);
  }
}

// Server-sent events, as `EventSource` has them, which cannot send a token. Each listener gets `{ data }`.
export class EventStream {
  #listeners = new Map();
  #abort = new AbortController();
  // `true` once no event follows any more.
  isClosed = false;

  constructor(path) {
    this.#run(path);
  }

  addEventListener(name, listener) {
    this.#listeners.set(name, listener);
  }

  close() {
    this.isClosed = true;
    this.#abort.abort();
  }

  #tell(name, data) {
    this.#listeners.get(name)?.({ data });
  }

  async #run(path) {
    while (!this.isClosed) {
      try {
        const answer = await request(path, () => this.#abort.signal, { Accept: "text/event-stream" });
        if (!answer.ok) this.isClosed = true;
        else await this.#read(answer.body.pipeThrough(new TextDecoderStream()).getReader());
      } catch (error) {
        if (this.#abort.signal.aborted) return;
        console.debug(error);
      }
      if (!this.#abort.signal.aborted) this.#tell("error");
      if (!this.isClosed) await new Promise((done) => setTimeout(done, AGAIN_MS));
    }
  }

  async #read(reader) {
    let pieces = [];
    for (;;) {
      const { done, value } = await reader.read();
      if (done || this.isClosed) return;
      // An empty line ends an event; a long event comes in many pieces, and its end may be between two.
      const last = pieces.length ? pieces[pieces.length - 1] : "";
      if (!value.includes("\n\n") && !(last.endsWith("\n") && value.startsWith("\n"))) {
        pieces.push(value);
        continue;
      }
      const events = (pieces.join("") + value).split("\n\n");
      pieces = [events.pop()].filter(Boolean);
      for (const event of events) {
        const fields = new Map(event.split("\n").map((line) => [line.slice(0, line.indexOf(": ")), line.slice(line.indexOf(": ") + 2)]));
        if (!this.isClosed) this.#tell(fields.get("event") ?? "message", fields.get("data") ?? "");
      }
    }
  }
}
