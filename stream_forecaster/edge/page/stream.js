// The one connection. The server sends `health` every second, so silence means that it is gone.

const SILENT_MS = 6000;
const RETRY_MS = 1000;

export class Stream {
  #source = null;
  #query = "";
  #timer = 0;

  /**
   * @param hear event name -> what to do with its data
   * @param tell told how the connection is: "connecting", "live", "lost" or "paused"
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
    source.onerror = () => source === this.#source && this.#lost();
  }

  #wait(ms) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#lost(), ms);
  }

  #lost() {
    this.#close();
    this.tell("lost");
    this.#timer = setTimeout(() => this.#open(), RETRY_MS);
  }

  #close() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }
}
