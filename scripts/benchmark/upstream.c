/* An upstream of chat completions that costs next to nothing, so that what is in front of it is measured.

   upstream PORT BODY_BYTES TOKENS INTERVAL_US

   Port 0 takes a free one; the port is printed. A POST with "stream":true in its first 8 KB is answered with TOKENS
   events, one every INTERVAL_US; any other with a JSON answer of BODY_BYTES. Any GET is answered with 200. Request
   bodies must have a Content-Length; a connection carries one request at a time. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { KEPT = 8192, EVENTS = 512, EVENT_BYTES = 512 };

typedef struct connection {
  int fd;
  size_t kept;          /* bytes of the request in `request`; the rest of a large body is only counted */
  size_t expected;      /* bytes of the request, 0 until its head is whole */
  size_t arrived;
  int tokens_left;      /* of the stream under way */
  bool streaming;
  uint64_t due;         /* when the next event leaves, in microseconds */
  struct connection *before, *after; /* in the order of `due` */
  char *unsent;         /* what the socket did not take */
  size_t unsent_bytes;
  char request[KEPT + 1];
} connection;

static int poller, tokens;
static uint64_t interval;
static char *answer;
static size_t answer_bytes;
static connection *first_due, *last_due;

static const char *STREAM_HEAD =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n";
static const char *EVENT =
    "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"m\","
    "\"choices\":[{\"index\":0,\"delta\":%s,\"logprobs\":null,\"finish_reason\":%s}]}\n\n";

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static void watch(connection *c, int operation, uint32_t events) {
  struct epoll_event event = {.events = events, .data.ptr = c};
  if (epoll_ctl(poller, operation, c->fd, &event)) fail("epoll_ctl");
}

/* All streams have the same interval, so that appending at the end keeps them in order. */
static void enqueue(connection *c, uint64_t due) {
  c->due = last_due && last_due->due > due ? last_due->due : due;
  c->before = last_due;
  c->after = NULL;
  *(last_due ? &last_due->after : &first_due) = c;
  last_due = c;
}

static void dequeue(connection *c) {
  *(c->before ? &c->before->after : &first_due) = c->after;
  *(c->after ? &c->after->before : &last_due) = c->before;
}

static void drop(connection *c) {
  if (c->streaming) dequeue(c);
  close(c->fd);
  free(c->unsent);
  free(c);
}

/* Returns false when the peer has gone; the caller drops the connection. */
static bool put(connection *c, const char *data, size_t bytes) {
  ssize_t sent = c->unsent_bytes ? 0 : send(c->fd, data, bytes, MSG_NOSIGNAL);
  if (sent < 0 && errno != EAGAIN) return false;
  if (sent < 0) sent = 0;
  size_t rest = bytes - (size_t)sent;
  if (!rest) return true;
  if (!c->unsent_bytes) watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
  c->unsent = realloc(c->unsent, c->unsent_bytes + rest);
  if (!c->unsent) fail("realloc");
  memcpy(c->unsent + c->unsent_bytes, data + sent, rest);
  c->unsent_bytes += rest;
  return true;
}

static bool flush(connection *c) {
  ssize_t sent = send(c->fd, c->unsent, c->unsent_bytes, MSG_NOSIGNAL);
  if (sent < 0) return errno == EAGAIN;
  c->unsent_bytes -= (size_t)sent;
  memmove(c->unsent, c->unsent + sent, c->unsent_bytes);
  if (!c->unsent_bytes) watch(c, EPOLL_CTL_MOD, EPOLLIN);
  return true;
}

/* Appends one event in a chunk of its own (RFC 9112 7.1); returns the end. */
static char *event(char *to, const char *delta, const char *finish) {
  char data[EVENT_BYTES];
  int bytes = snprintf(data, sizeof data, EVENT, delta, finish);
  return to + sprintf(to, "%x\r\n%s\r\n", bytes, data);
}

static bool begin_stream(connection *c) {
  char out[2 * EVENT_BYTES];
  char *end = event(stpcpy(out, STREAM_HEAD), "{\"role\":\"assistant\",\"content\":\"\"}", "null");
  c->streaming = true;
  c->tokens_left = tokens;
  enqueue(c, now() + interval);
  return put(c, out, (size_t)(end - out));
}

static bool next_token(connection *c, uint64_t time) {
  char out[4 * EVENT_BYTES], delta[64], *end = out;
  dequeue(c);
  snprintf(delta, sizeof delta, "{\"content\":\" tok%05d\"}", tokens - c->tokens_left);
  end = event(end, delta, "null");
  if (--c->tokens_left > 0) {
    uint64_t soonest = time + interval / 2; /* a stream that was held up catches up, but not in a burst */
    enqueue(c, c->due + interval > soonest ? c->due + interval : soonest);
  } else {
    c->streaming = false;
    end = event(end, "{}", "\"stop\"");
    end += sprintf(end, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
  }
  return put(c, out, (size_t)(end - out));
}

static bool respond(connection *c) {
  char *body = strstr(c->request, "\r\n\r\n");
  bool get = !strncmp(c->request, "GET ", 4);
  bool stream = strstr(body, "\"stream\":true") || strstr(body, "\"stream\": true");
  c->kept = c->arrived = c->expected = 0;
  if (get) {
    static const char healthy[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    return put(c, healthy, sizeof healthy - 1);
  }
  return stream ? begin_stream(c) : put(c, answer, answer_bytes);
}

static bool take(connection *c, const char *data, size_t bytes) {
  size_t kept = bytes < KEPT - c->kept ? bytes : KEPT - c->kept;
  memcpy(c->request + c->kept, data, kept);
  c->kept += kept;
  c->request[c->kept] = 0;
  c->arrived += bytes;
  if (!c->expected) {
    char *end = strstr(c->request, "\r\n\r\n");
    if (!end) return c->kept < KEPT;
    char *length = strcasestr(c->request, "\r\ncontent-length:");
    c->expected = (size_t)(end + 4 - c->request) + (length && length < end ? strtoul(length + 17, NULL, 10) : 0);
  }
  return c->arrived < c->expected || respond(c);
}

static bool read_some(connection *c) {
  static char data[1 << 18];
  ssize_t bytes = recv(c->fd, data, sizeof data, 0);
  if (bytes < 0) return errno == EAGAIN;
  return bytes && take(c, data, (size_t)bytes);
}

static void accept_all(int listener) {
  int fd, yes = 1;
  while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
    connection *c = calloc(1, sizeof *c);
    if (!c) fail("calloc");
    c->fd = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
  }
}

static void send_due(void) {
  uint64_t time = now();
  while (first_due && first_due->due <= time) {
    connection *c = first_due;
    if (!next_token(c, time)) shutdown(c->fd, SHUT_RDWR); /* the end of file is then read, and it is dropped there */
  }
}

static int listen_on(int port) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), yes = 1;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  socklen_t size = sizeof address;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  if (bind(fd, (struct sockaddr *)&address, size) || listen(fd, 4096)) fail("listen");
  if (getsockname(fd, (struct sockaddr *)&address, &size)) fail("getsockname");
  printf("%d\n", ntohs(address.sin_port));
  fflush(stdout);
  return fd;
}

static void make_answer(size_t bytes) {
  static const char *before =
      "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"m\",\"choices\":[{"
      "\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"";
  static const char *after =
      "\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],"
      "\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":64,\"total_tokens\":73}}";
  size_t least = strlen(before) + strlen(after), padding = bytes > least ? bytes - least : 0;
  answer = malloc(bytes + least + 256);
  if (!answer) fail("malloc");
  static const char *head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s";
  char *end = answer + sprintf(answer, head, least + padding, before);
  memset(end, 'x', padding);
  end = stpcpy(end + padding, after);
  answer_bytes = (size_t)(end - answer);
}

int main(int count, char **arguments) {
  if (count != 5) {
    fputs("usage: upstream PORT BODY_BYTES TOKENS INTERVAL_US\n", stderr);
    return 2;
  }
  signal(SIGPIPE, SIG_IGN);
  make_answer(strtoul(arguments[2], NULL, 10));
  tokens = atoi(arguments[3]);
  interval = strtoull(arguments[4], NULL, 10);
  int listener = listen_on(atoi(arguments[1]));
  poller = epoll_create1(0);
  struct epoll_event on_listener = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS];
  epoll_ctl(poller, EPOLL_CTL_ADD, listener, &on_listener);
  for (;;) {
    uint64_t time = now(), wait = first_due && first_due->due > time ? first_due->due - time : 0;
    struct timespec limit = {.tv_sec = (time_t)(wait / 1000000), .tv_nsec = (long)(wait % 1000000) * 1000};
    int ready = epoll_pwait2(poller, events, EVENTS, first_due ? &limit : NULL, NULL);
    for (int i = 0; i < ready; i++) {
      connection *c = events[i].data.ptr;
      if (!c) {
        accept_all(listener);
        continue;
      }
      bool lives = !(events[i].events & EPOLLOUT) || flush(c);
      if (lives && events[i].events & ~(uint32_t)EPOLLOUT) lives = read_some(c);
      if (!lives) drop(c);
    }
    send_due();
  }
}
