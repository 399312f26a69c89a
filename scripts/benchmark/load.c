/* Sends one address the same request over and over, and reports how long the answers took.

   load PORT CONNECTIONS WARM_UP SECONDS REQUESTS_PER_SECOND BODY_FILE

   Each connection is kept alive and asks again when it has its answer; with a rate, it asks at its next turn, and
   latency counts from that turn, so that a stall shows in every request that it holds up. The connections start one
   after the other during the first half of the warm-up. After WARM_UP seconds the line `begin` is printed, and at the
   end the results since then, as JSON. Events of a stream are counted by their empty lines; a stream that does not end
   with [DONE], a status that is not 200, and a connection that breaks are errors. Times are in microseconds. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD = 8192, READY = 512, BINS = 4000000 };
enum body { IN_HEAD, SIZE_LINE, DATA, DATA_END, TRAILER, WHOLE }; /* where in a body it reads (RFC 9112 6.3, 7.1) */

typedef struct {
  int fd;
  bool asking;          /* a request is on its way or its answer is awaited */
  bool opened, stream, chunked, breaks, after_newline;
  size_t sent;
  uint64_t due, last_event;
  enum body place;
  size_t left;          /* bytes of the body, or of its chunk */
  size_t head_bytes;    /* 0 once the head is read */
  char head[HEAD + 1];
  char tail[16];        /* the body's last bytes */
} connection;

typedef struct {
  uint32_t *bins;
  uint64_t count, greatest;
} histogram;

static int poller, port, connections;
static uint64_t turn; /* between two requests of a connection, 0: at once */
static char *request;
static size_t request_bytes;
static histogram latency, first_event, gap;
static uint64_t answers, events, errors, bytes_read;
static uint64_t read_at; /* when the bytes being looked at came */
static bool warm;        /* what is seen before that is not reported */

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static void record(histogram *h, uint64_t value) {
  if (!warm) return;
  h->bins[value < BINS ? value : BINS - 1]++;
  h->count++;
  if (value > h->greatest) h->greatest = value;
}

static uint64_t percentile(const histogram *h, double share) {
  uint64_t rank = (uint64_t)(share * (double)h->count), seen = 0;
  for (uint64_t value = 0; value < BINS; value++)
    if ((seen += h->bins[value]) > rank) return value;
  return 0;
}

static void watch(connection *c, int operation, uint32_t wanted) {
  struct epoll_event event = {.events = wanted, .data.ptr = c};
  if (epoll_ctl(poller, operation, c->fd, &event)) fail("epoll_ctl");
}

static void dial(connection *c) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  int yes = 1;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  c->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  fcntl(c->fd, F_SETFL, O_NONBLOCK);
  c->opened = true;
  watch(c, EPOLL_CTL_ADD, EPOLLIN);
}

static void ended(connection *c, bool well) {
  c->asking = false;
  uint64_t time = now();
  if (well) {
    answers++;
    record(&latency, time - c->due);
  } else {
    errors++;
  }
  if (!well || c->breaks) {
    close(c->fd);
    c->opened = false;
  }
  c->due = turn ? c->due + turn : time;
}

static void write_some(connection *c) {
  ssize_t sent = send(c->fd, request + c->sent, request_bytes - c->sent, MSG_NOSIGNAL);
  if (sent < 0 && errno != EAGAIN) {
    ended(c, false);
    return;
  }
  bool waited = c->sent > 0;
  if (sent > 0) c->sent += (size_t)sent;
  if (c->sent < request_bytes)
    watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
  else if (waited)
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

static void ask(connection *c) {
  if (!c->opened) dial(c);
  c->asking = true;
  c->sent = c->head_bytes = 0;
  c->last_event = 0;
  c->after_newline = false;
  c->place = IN_HEAD;
  memset(c->tail, 0, sizeof c->tail);
  write_some(c);
}

static void content(connection *c, const char *data, size_t bytes) {
  if (!c->stream) return;
  uint64_t found = 0;
  for (const char *at = data, *end = data + bytes; (at = memchr(at, '\n', (size_t)(end - at))); at++)
    found += at > data ? at[-1] == '\n' : c->after_newline;
  c->after_newline = data[bytes - 1] == '\n';
  if (found) {
    if (!c->last_event)
      record(&first_event, read_at - c->due);
    else if (read_at > c->last_event) /* else both came in the same read */
      record(&gap, read_at - c->last_event);
    c->last_event = read_at;
    events += found;
  }
  size_t kept = bytes < sizeof c->tail ? bytes : sizeof c->tail;
  memmove(c->tail, c->tail + kept, sizeof c->tail - kept);
  memcpy(c->tail + sizeof c->tail - kept, data + bytes - kept, kept);
}

/* Reads the head from what came; returns the bytes it took, or 0 if the head is not acceptable. */
static size_t read_head(connection *c, const char *data, size_t bytes) {
  size_t had = c->head_bytes, room = HEAD - had, taken = bytes < room ? bytes : room;
  memcpy(c->head + had, data, taken);
  c->head[c->head_bytes = had + taken] = 0;
  char *end = strstr(c->head, "\r\n\r\n");
  if (!end) return taken == room ? 0 : taken;
  end[2] = 0;
  if (strncmp(c->head, "HTTP/1.1 200", 12)) return 0;
  char *length = strcasestr(c->head, "\r\ncontent-length:");
  c->stream = strcasestr(c->head, "text/event-stream") != NULL;
  c->breaks = strcasestr(c->head, "\r\nconnection: close") != NULL;
  c->left = length ? strtoul(length + 17, NULL, 10) : 0;
  c->chunked = !length;
  c->place = c->chunked ? SIZE_LINE : c->left ? DATA : WHOLE;
  taken = (size_t)(end + 4 - c->head) - had;
  c->head_bytes = 0;
  return taken;
}

/* Reads one piece of a body: a chunk's size, data, or an end of line; returns the bytes it took. */
static size_t read_piece(connection *c, const char *data, size_t bytes) {
  if (c->place == DATA) {
    size_t taken = bytes < c->left ? bytes : c->left;
    content(c, data, taken);
    c->left -= taken;
    if (!c->left) c->place = c->chunked ? DATA_END : WHOLE;
    return taken;
  }
  const char *end = memchr(data, '\n', bytes);
  size_t taken = end ? (size_t)(end - data) + 1 : bytes, room = HEAD - c->head_bytes;
  size_t kept = taken < room ? taken : room;
  memcpy(c->head + c->head_bytes, data, kept);
  c->head[c->head_bytes += kept] = 0;
  if (!end) return taken;
  if (c->place == SIZE_LINE) {
    c->left = strtoul(c->head, NULL, 16);
    c->place = c->left ? DATA : TRAILER;
  } else if (c->place == DATA_END) {
    c->place = SIZE_LINE;
  } else if (c->head_bytes <= 2) {
    c->place = WHOLE;
  }
  c->head_bytes = 0;
  return taken;
}

static void read_some(connection *c) {
  static char data[1 << 18];
  ssize_t got = recv(c->fd, data, sizeof data, 0);
  if (got < 0 && errno == EAGAIN) return;
  if (got <= 0 || !c->asking) {
    if (c->asking) {
      ended(c, false);
    } else { /* closed while idle */
      close(c->fd);
      c->opened = false;
    }
    return;
  }
  read_at = now();
  bytes_read += (uint64_t)got;
  for (size_t at = 0, bytes = (size_t)got; at < bytes;) {
    size_t taken = c->place == IN_HEAD ? read_head(c, data + at, bytes - at) : read_piece(c, data + at, bytes - at);
    if (!taken) {
      ended(c, false);
      return;
    }
    at += taken;
  }
  if (c->place == WHOLE) ended(c, !c->stream || memmem(c->tail, sizeof c->tail, "[DONE]\n\n", 8) != NULL);
}

static const char *ASK =
    "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
    "Authorization: Bearer sk-bench\r\nAccept: */*\r\nContent-Length: %zu\r\n\r\n";

static void read_request(const char *name) {
  FILE *file = fopen(name, "rb");
  if (!file || fseek(file, 0, SEEK_END)) fail(name);
  size_t bytes = (size_t)ftell(file);
  rewind(file);
  request = malloc(bytes + 512);
  if (!request) fail("malloc");
  request_bytes = (size_t)sprintf(request, ASK, port, bytes);
  if (fread(request + request_bytes, 1, bytes, file) != bytes) fail(name);
  request_bytes += bytes;
  fclose(file);
}

static void show(const char *name, const histogram *h) {
  printf(", \"%s\": {\"count\": %ju, \"p50\": %ju, \"p99\": %ju, \"max\": %ju}", name, (uintmax_t)h->count,
         (uintmax_t)percentile(h, 0.5), (uintmax_t)percentile(h, 0.99), (uintmax_t)h->greatest);
}

/* Asks on the connections whose turn has come; returns the microseconds to the next turn. Those that have started, and
   ask again as soon as they have their answer, are skipped: their memory would be fetched at every event. */
static uint64_t ask_due(connection *all, uint64_t end) {
  static int begun;
  uint64_t time = now(), next = end;
  while (!turn && begun < connections && all[begun].due <= time) ask(&all[begun++]);
  int first = turn ? 0 : begun, last = turn ? connections : begun < connections ? begun + 1 : begun;
  for (connection *c = all + first; c < all + last; c++) {
    if (!c->asking && c->due <= time) ask(c);
    if (!c->asking && c->due < next) next = c->due;
  }
  time = now();
  return next <= time ? 0 : next - time;
}

static void run_until(connection *all, uint64_t end) {
  struct epoll_event ready[READY];
  uint64_t wait = 0;
  while (now() < end) {
    struct timespec limit = {.tv_sec = (time_t)(wait / 1000000), .tv_nsec = (long)(wait % 1000000) * 1000};
    int count = epoll_pwait2(poller, ready, READY, &limit, NULL);
    for (int i = 0; i < count; i++) {
      connection *c = ready[i].data.ptr;
      if (c->asking && ready[i].events & EPOLLOUT) write_some(c);
      if (c->opened && ready[i].events & ~(uint32_t)EPOLLOUT) read_some(c);
      if (!turn && !c->asking) ask(c);
    }
    wait = ask_due(all, end);
  }
}

int main(int count, char **arguments) {
  if (count != 7) {
    fputs("usage: load PORT CONNECTIONS WARM_UP SECONDS REQUESTS_PER_SECOND BODY_FILE\n", stderr);
    return 2;
  }
  port = atoi(arguments[1]);
  connections = atoi(arguments[2]);
  uint64_t warm_up = (uint64_t)(atof(arguments[3]) * 1e6), lasts = (uint64_t)(atof(arguments[4]) * 1e6);
  double rate = atof(arguments[5]);
  turn = rate > 0 ? (uint64_t)(1e6 * connections / rate) : 0;
  read_request(arguments[6]);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  histogram *histograms[] = {&latency, &first_event, &gap};
  for (int i = 0; i < 3; i++)
    if (!(histograms[i]->bins = calloc(BINS, sizeof *latency.bins))) fail("calloc");
  connection *all = calloc((size_t)connections, sizeof *all);
  poller = epoll_create1(0);
  uint64_t began = now(), spread = turn ? turn : warm_up / 2;
  for (int i = 0; i < connections; i++) all[i].due = began + spread * (uint64_t)i / (uint64_t)connections;
  run_until(all, began + warm_up);
  warm = true;
  answers = events = errors = bytes_read = 0;
  puts("begin");
  fflush(stdout);
  uint64_t from = now();
  run_until(all, from + lasts);
  double seconds = (double)(now() - from) / 1e6;
  printf("{\"seconds\": %.6f, \"answers\": %ju, \"events\": %ju, \"errors\": %ju, \"bytes\": %ju", seconds,
         (uintmax_t)answers, (uintmax_t)events, (uintmax_t)errors, (uintmax_t)bytes_read);
  show("latency", &latency);
  show("first_event", &first_event);
  show("gap", &gap);
  puts("}");
  return 0;
}
