// Server-sent events over fetch: EventSource cannot send a token. Reconnects by itself and asks for what it missed.

const SILENCE_MS = 40000; // the server says something every 15 s
const LONGEST_LINE = 4 << 20;

export class Stream {
  constructor({ token, message, state }) {
    this.token = token;
    this.message = message;
    this.state = state;
    this.last = "";
    this.attempt = 0;
  }

  start() {
    this.stop();
    this.stopped = false;
    this.run();
  }

  stop() {
    this.stopped = true;
    clearTimeout(this.timer);
    this.abort?.abort();
  }

  async run() {
    const abort = (this.abort = new AbortController());
    const headers = { accept: "text/event-stream" };
    const token = this.token();
    if (token) headers.authorization = `Bearer ${token}`;
    if (this.last) headers["last-event-id"] = this.last;
    try {
      const response = await fetch("/api/events", { headers, signal: abort.signal, cache: "no-store" });
      if (response.status === 401) return this.state("refused");
      if (!response.ok) throw new Error(`status ${response.status}`);
      this.attempt = 0;
      this.state("live");
      await this.read(response.body.getReader(), abort);
    } catch {
      // said below
    }
    if (this.stopped || abort !== this.abort) return undefined;
    this.state("lost");
    const pause = Math.min(500 * 2 ** this.attempt++, 15000) * (0.75 + Math.random() / 2);
    this.timer = setTimeout(() => this.run(), pause);
    return undefined;
  }

  async read(reader, abort) {
    const decoder = new TextDecoder();
    let rest = "";
    for (;;) {
      const silence = setTimeout(() => abort.abort(), SILENCE_MS);
      const { done, value } = await reader.read();
      clearTimeout(silence);
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const blocks = rest.split("\n\n");
      rest = blocks.pop();
      if (rest.length > LONGEST_LINE) throw new Error("too long");
      for (const block of blocks) this.dispatch(block);
    }
  }

  /** `<server>-<count>`: what another server has kept comes whole, so what this page shows of the old one goes. */
  number(text) {
    if (this.last && this.last.split("-")[0] !== text.split("-")[0]) this.message("anew", {});
    this.last = text;
  }

  dispatch(block) {
    let kind = "message", data = "";
    for (const line of block.split("\n")) {
      if (line.startsWith("event: ")) kind = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
      else if (line.startsWith("id: ")) this.number(line.slice(4));
    }
    if (data) this.message(kind, JSON.parse(data));
  }
}
