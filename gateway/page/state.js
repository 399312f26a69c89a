// What is known: the first state is whole, each further one holds what changed. Reading one twice does no harm.

const KEPT = 600;
const REQUESTS = 50;
const BACK = 10; // seconds that the gateway's clock may go back before its seconds begin anew

export class State {
  constructor() {
    this.head = null;
    this.version = null;
    this.began = 0;
    this.models = new Map();
    this.endpoints = new Map();
    this.order = { models: [], endpoints: [] };
    this.seconds = [];
    this.requests = [];
    this.reload = null;
  }

  take(message) {
    if (message.full) {
      this.models.clear();
      this.endpoints.clear();
      this.seconds = [];
      this.requests = [];
      this.version = message.version;
      this.began = message.began;
    }
    this.head = message;
    for (const model of message.models) this.models.set(model.id, model);
    for (const endpoint of message.endpoints) this.endpoints.set(endpoint.id, endpoint);
    if (message.order) this.order = message.order;
    if (message.reload) this.reload = message.reload;
    if (message.at < this.seconds.at(-1)?.[0] - BACK) this.seconds = [];
    const last = this.seconds.at(-1)?.[0] ?? 0;
    this.seconds.push(...message.seconds.filter((row) => row[0] > last));
    if (this.seconds.length > KEPT) this.seconds.splice(0, this.seconds.length - KEPT);
    const newest = this.requests[0]?.n ?? 0;
    const ended = message.requests.filter((request) => request.n > newest).reverse();
    this.requests = [...ended, ...this.requests].slice(0, REQUESTS);
  }

  // The gateway's time of the last state, in seconds since the epoch.
  get now() {
    return this.head.at;
  }

  listModels() {
    return this.order.models.map((id) => this.models.get(id)).filter(Boolean);
  }

  listEndpoints() {
    return this.order.endpoints.map((id) => this.endpoints.get(id)).filter(Boolean);
  }
}
