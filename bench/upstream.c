/* A fake OpenAI-compatible server that is never the bottleneck of what is measured: one thread, epoll, keep-alive.
 *
 *   upstream --port P [--chunks 20] [--span-ms 20] [--corrupt N] [--break N]
 *
 * POST /v1/chat/completions answers at once with an 0.8 kB chat completion, or, when the body holds "stream":true,
 * with `chunks` server-sent events spread evenly over `span-ms`, then the usage chunk (when the body asks for it with
 * "include_usage":true) and [DONE] together in one write. GET /v1/models lists one model. Each event is a write of
 * its own and TCP_NODELAY is set, as engines do it. Every answer's text holds the words w00, w01, … in order, so that
 * a load generator can tell wrong bytes. `corrupt N` damages a word of every Nth chat answer and `break N` cuts every
 * Nth off in the middle: they prove that the load generator counts both.
 *
 * With --port 0 the kernel chooses; the port is printed as the first line either way.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_FDS = 65536,
    MAX_CHUNKS = 100,
    /* Larger than any request of the bench; a larger one closes the connection. */
    MAX_REQUEST_BYTES = 1 << 20,
    ANSWER_TEXT_BYTES = 480,
};

struct text {
    char *bytes;
    size_t size;
};

struct connection {
    int fd;
    char *in;
    size_t in_size, in_capacity;
    /* A stream in progress: the next chunk to write and when the first was due. -1 when there is none. */
    int next_chunk;
    uint64_t started_ns;
    bool with_usage, corrupt, cut;
    int heap_slot;
};

static struct connection *connections[MAX_FDS];
static struct connection *heap[MAX_FDS];
static int heap_size;
static int epoll_fd, chunks = 20;
static uint64_t interval_ns = 1000000;
static long corrupt_every, break_every, chat_answers;
static struct text answer, answer_corrupt, models, events[MAX_CHUNKS], event_corrupt, head, usage_and_done, done;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

__attribute__((format(printf, 1, 2))) static struct text format(const char *pattern, ...) {
    struct text made;
    va_list arguments;
    va_start(arguments, pattern);
    int size = vasprintf(&made.bytes, pattern, arguments);
    va_end(arguments);
    if (size < 0) abort();
    made.size = (size_t)size;
    return made;
}

/* One server-sent event as one chunk of chunked transfer coding. */
static struct text http_chunk(struct text event) {
    return format("%zx\r\n%s\r\n", event.size, event.bytes);
}

static struct text json_answer(struct text body) {
    return format("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s", body.size,
                  body.bytes);
}

static struct text chat_answer(void) {
    char text[ANSWER_TEXT_BYTES + 1] = "";
    for (int word = 0; word < chunks && strlen(text) + 6 < sizeof text; word++)
        sprintf(text + strlen(text), "w%02d and ", word);
    size_t used = strlen(text);
    memset(text + used, '.', sizeof text - 1 - used);
    return json_answer(format(
        "{\"id\":\"chatcmpl-bench0000000000000000000001\",\"object\":\"chat.completion\",\"created\":1750000000,"
        "\"model\":\"gpt-4o-mini\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\","
        "\"refusal\":null,\"annotations\":[]},\"logprobs\":null,\"finish_reason\":\"stop\"}],"
        "\"usage\":{\"prompt_tokens\":420,\"completion_tokens\":%d,\"total_tokens\":%d},"
        "\"system_fingerprint\":\"fp_bench\"}",
        text, chunks, 420 + chunks));
}

static struct text chat_event(int index) {
    return http_chunk(format(
        "data: {\"id\":\"chatcmpl-bench0000000000000000000001\",\"object\":\"chat.completion.chunk\","
        "\"created\":1750000000,\"model\":\"gpt-4o-mini\",\"system_fingerprint\":\"fp_bench\",\"choices\":"
        "[{\"index\":0,\"delta\":{%s\"content\":\"w%02d and\"},\"logprobs\":null,\"finish_reason\":%s}],"
        "\"usage\":null}\n\n",
        index ? "" : "\"role\":\"assistant\",", index, index == chunks - 1 ? "\"stop\"" : "null"));
}

static void prepare_answers(void) {
    answer = chat_answer();
    answer_corrupt = format("%s", answer.bytes);
    *strstr(answer_corrupt.bytes, "w00") = 'x';
    models = json_answer(format("{\"object\":\"list\",\"data\":[{\"id\":\"gpt-4o-mini\",\"object\":\"model\","
                                "\"created\":1750000000,\"owned_by\":\"bench\"}]}"));
    head = format("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
                  "transfer-encoding: chunked\r\n\r\n");
    for (int i = 0; i < chunks; i++) events[i] = chat_event(i);
    event_corrupt = format("%s", events[chunks - 1].bytes);
    *strstr(event_corrupt.bytes, "and\"") = 'x';
    *(strstr(event_corrupt.bytes, "xnd\"") - 4) = 'x';
    struct text last = http_chunk(format("data: [DONE]\n\n"));
    done = format("%s0\r\n\r\n", last.bytes);
    struct text usage = http_chunk(format(
        "data: {\"id\":\"chatcmpl-bench0000000000000000000001\",\"object\":\"chat.completion.chunk\","
        "\"created\":1750000000,\"model\":\"gpt-4o-mini\",\"system_fingerprint\":\"fp_bench\",\"choices\":[],"
        "\"usage\":{\"prompt_tokens\":420,\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n",
        chunks, 420 + chunks));
    usage_and_done = format("%s%s", usage.bytes, done.bytes);
}

/* The streams wait in a binary heap by the time of their next chunk. */
static uint64_t due_ns(const struct connection *c) {
    return c->started_ns + (uint64_t)c->next_chunk * interval_ns;
}

static void heap_put(struct connection *c, int slot) {
    heap[slot] = c;
    c->heap_slot = slot;
}

static void heap_fix(int slot) {
    struct connection *c = heap[slot];
    while (slot > 0 && due_ns(c) < due_ns(heap[(slot - 1) / 2])) {
        heap_put(heap[(slot - 1) / 2], slot);
        slot = (slot - 1) / 2;
    }
    for (;;) {
        int child = 2 * slot + 1;
        if (child >= heap_size) break;
        if (child + 1 < heap_size && due_ns(heap[child + 1]) < due_ns(heap[child])) child++;
        if (due_ns(c) <= due_ns(heap[child])) break;
        heap_put(heap[child], slot);
        slot = child;
    }
    heap_put(c, slot);
}

static void heap_remove(struct connection *c) {
    int slot = c->heap_slot;
    struct connection *last = heap[--heap_size];
    c->next_chunk = -1;
    if (last == c) return;
    heap_put(last, slot);
    heap_fix(slot);
}

static void hang_up(struct connection *c) {
    if (c->next_chunk >= 0) heap_remove(c);
    connections[c->fd] = NULL;
    close(c->fd);
    free(c->in);
    free(c);
}

/* Answers are small against the socket's buffer, so a short write means a peer that does not read: it is dropped. */
static bool write_all(struct connection *c, const char *bytes, size_t size) {
    if (send(c->fd, bytes, size, MSG_NOSIGNAL) == (ssize_t)size) return true;
    hang_up(c);
    return false;
}

static bool begin_stream(struct connection *c, bool with_usage) {
    char first[4096];
    memcpy(first, head.bytes, head.size);
    memcpy(first + head.size, events[0].bytes, events[0].size);
    c->with_usage = with_usage;
    if (!write_all(c, first, head.size + events[0].size)) return false;
    c->started_ns = now_ns();
    c->next_chunk = 1;
    heap_put(c, heap_size++);
    heap_fix(heap_size - 1);
    return true;
}

static void continue_stream(struct connection *c) {
    if (c->cut && c->next_chunk >= chunks / 2) {
        hang_up(c);
        return;
    }
    if (c->next_chunk < chunks) {
        struct text event = c->corrupt && c->next_chunk == chunks - 1 ? event_corrupt : events[c->next_chunk];
        if (!write_all(c, event.bytes, event.size)) return;
        c->next_chunk++;
        heap_fix(c->heap_slot);
        return;
    }
    struct text last = c->with_usage ? usage_and_done : done;
    heap_remove(c);
    write_all(c, last.bytes, last.size);
}

/* Whether the text holds `"name":true`, with or without a space after the colon. */
static bool is_true(const char *text, size_t size, const char *name) {
    const char *at = memmem(text, size, name, strlen(name));
    if (!at) return false;
    at += strlen(name);
    while (at < text + size && *at == ' ') at++;
    return (size_t)(text + size - at) >= 4 && memcmp(at, "true", 4) == 0;
}

static bool answer_chat(struct connection *c, const char *body, size_t size) {
    chat_answers++;
    c->corrupt = corrupt_every && chat_answers % corrupt_every == 0;
    c->cut = break_every && chat_answers % break_every == 0;
    if (is_true(body, size, "\"stream\":")) return begin_stream(c, is_true(body, size, "\"include_usage\":"));
    struct text chosen = c->corrupt ? answer_corrupt : answer;
    bool cut = c->cut;
    if (!write_all(c, chosen.bytes, cut ? chosen.size / 2 : chosen.size)) return false;
    if (cut) hang_up(c);
    return !cut;
}

/* Answer one complete request at the front of the input. Returns its size, 0 when more must come, -1 when closed. */
static ssize_t take_request(struct connection *c) {
    char *end = memmem(c->in, c->in_size, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t head_size = (size_t)(end + 4 - c->in), body_size = 0;
    for (char *line = c->in; line < end; line = (char *)memmem(line, (size_t)(end + 2 - line), "\r\n", 2) + 2)
        if (strncasecmp(line, "content-length:", 15) == 0) body_size = strtoul(line + 15, NULL, 10);
    if (head_size + body_size > c->in_size) return 0;
    bool chat = strncmp(c->in, "POST /v1/chat/completions", 25) == 0;
    bool open = chat ? answer_chat(c, c->in + head_size, body_size) : write_all(c, models.bytes, models.size);
    return open ? (ssize_t)(head_size + body_size) : -1;
}

static void read_requests(struct connection *c) {
    if (c->in_capacity - c->in_size < 16384) {
        c->in_capacity = c->in_capacity ? c->in_capacity * 2 : 32768;
        c->in = c->in_capacity > 2 * MAX_REQUEST_BYTES ? NULL : realloc(c->in, c->in_capacity);
        if (!c->in) abort();
    }
    ssize_t got = recv(c->fd, c->in + c->in_size, c->in_capacity - c->in_size, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        hang_up(c);
        return;
    }
    c->in_size += (size_t)got;
    if (c->next_chunk >= 0) return;
    ssize_t used = take_request(c);
    if (used <= 0) return;
    memmove(c->in, c->in + used, c->in_size - (size_t)used);
    c->in_size -= (size_t)used;
}

static void welcome(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        if (fd >= MAX_FDS) {
            close(fd);
            continue;
        }
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct connection *c = calloc(1, sizeof *c);
        if (!c) abort();
        c->fd = fd;
        c->next_chunk = -1;
        connections[fd] = c;
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(fd, (struct sockaddr *)&address, size) || listen(fd, 4096)) {
        perror("upstream: listen");
        exit(1);
    }
    getsockname(fd, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

static void serve(int listener) {
    struct epoll_event ready[512], event = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        uint64_t now = now_ns(), due = heap_size ? due_ns(heap[0]) : 0;
        uint64_t wait_ns = due > now ? due - now : 0;
        struct timespec wait = {.tv_sec = (time_t)(wait_ns / 1000000000u), .tv_nsec = (long)(wait_ns % 1000000000u)};
        int count = epoll_pwait2(epoll_fd, ready, 512, heap_size ? &wait : NULL, NULL);
        for (int i = 0; i < count; i++) {
            if (ready[i].data.fd == listener)
                welcome(listener);
            else if (connections[ready[i].data.fd])
                read_requests(connections[ready[i].data.fd]);
        }
        now = now_ns();
        while (heap_size && due_ns(heap[0]) <= now) continue_stream(heap[0]);
    }
}

int main(int argc, char **argv) {
    int port = 0;
    double span_ms = 20;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--port")) port = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--chunks")) chunks = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--span-ms")) span_ms = atof(argv[i + 1]);
        else if (!strcmp(argv[i], "--corrupt")) corrupt_every = atol(argv[i + 1]);
        else if (!strcmp(argv[i], "--break")) break_every = atol(argv[i + 1]);
        else {
            fprintf(stderr, "upstream: unknown option %s\n", argv[i]);
            return 2;
        }
    }
    if (chunks < 2 || chunks > 50) {
        fprintf(stderr, "upstream: --chunks must be 2 to 50\n");
        return 2;
    }
    interval_ns = (uint64_t)(span_ms * 1e6 / chunks);
    signal(SIGPIPE, SIG_IGN);
    prepare_answers();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    serve(listen_on(port));
}
