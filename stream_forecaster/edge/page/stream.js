// The one connection. The server sends `health` every second, so silence means that it is gone.

const SILENT_MS = 6000;
const RETRY_MS = 1000;
const FULL_RETRY_MS = 10000; // somebody has to close a page first, and to read why

export class Stream {
  #source = null;
  #query = "";
  #timer = 0;

  /**
   * @param hear event name -> what to do with its data
   * @param tell told how the connection is: "connecting", "live", "lost", "full" or "paused"
   */
  constructor(hear, tell) {
    this.hear = hear;
    this.tell = tell;
    document.addEventListener("visibilitychange", () => this.#open());
    addEventListener("pagehide", () => this.#close());
    addEventListener("pageshow", (event) => event.persisted && this.#open());
  }

  /** Ask for something else; what is asked for already goes on. */
  ask(query) {
    if (query === this.#query) return;
    this.#query = query;
    this.#open();
  }

  #open() {
    this.#close();
    if (!this.#query) return;
    if (document.hidden) return this.tell("paused");
    const source = new EventSource(`/api/stream?${this.#query}`);
    this.#source = source;
    this.#wait(SILENT_MS);
    for (const [name, hear] of Object.entries(this.hear)) {
      source.addEventListener(name, (event) => {
        if (source !== this.#source) return;
        this.#wait(SILENT_MS);
        this.tell("live");
        hear(JSON.parse(event.data));
      });
    }
    source.addEventListener("full", () => source === this.#source && this.#retry("full", FULL_RETRY_MS));
    source.onerror = () => source === this.#source && this.#retry("lost", RETRY_MS);
  }

  #wait(ms) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#retry("lost", RETRY_MS), ms);
  }

  /** Close, say why, and try again: the browser's own retries would not wait, nor say so. */
  #retry(why, ms) {
    this.#close();
    this.tell(why);
    this.#timer = setTimeout(() => this.#open(), ms);
  }

  #close() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }
}
