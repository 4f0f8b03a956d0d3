/* A load generator that checks what it gets: one thread, epoll, N keep-alive connections, each with one call at a time.
 *
 *   load --port P --body FILE [--path /v1/chat/completions] [--header "Name: value"]... [--connections 64]
 *        [--seconds 8] [--stream] [--words 20] [--size BYTES] [--events N]
 *
 * An answer is *right* when its status is 200 and its text holds the words w00, w01, … (`words` of them) in order, its
 * body has exactly `size` bytes (when given), and, with --stream, it has exactly `events` events (when given) and ends
 * with the [DONE] event; without --stream it ends with a closing brace. Anything else is *wrong*. An *error* is a call
 * without a whole answer: refused, reset, cut off, or silent for thirty seconds. Prints one line of JSON: calls (answers,
 * right or wrong), wrong, errors, reconnects, calls per second, latency and (with --stream) time to the first event in
 * ms, and the size in bytes and events of the last right answer. `statuses` counts answers other than 200.
 *
 * When the time is up no call is begun any more and those in flight are waited for, so that the gateway's CPU time
 * over the run belongs to the counted calls and no others.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
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
    MAX_CONNECTIONS = 4096,
    /* Larger than any answer of the bench; a larger one is an error. */
    MAX_ANSWER_BYTES = 1 << 18,
    MAX_ERRORS = 100000,
};
static const double ANSWER_TIMEOUT_S = 30.0;
static const double RECONNECT_PAUSE_S = 0.01;

enum phase { IDLE, HEAD, SIZED, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER };

struct connection {
    int fd;
    enum phase phase;
    double began_s, first_s;
    /* What was received and not yet taken apart, and the body taken out of it so far. */
    char in[65536];
    size_t in_size;
    char *body;
    size_t body_size, rest;
    int status;
    bool close_after;
};

struct samples {
    double *values;
    size_t count, capacity;
};

static struct connection *connections;
static struct samples latencies, firsts;
static int epoll_fd, port, connection_count = 64, words = 20, expected_events = -1, last_events;
static long expected_size = -1, calls, calls_in_time, wrong, errors, reconnects, not_ok, last_size, first_bad_status;
static long long bytes;
static double seconds = 8, ends_s;
static bool stream;
static char *request;
static size_t request_size;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void add_sample(struct samples *s, double value) {
    if (s->count == s->capacity) {
        s->capacity = s->capacity ? s->capacity * 2 : 65536;
        s->values = realloc(s->values, s->capacity * sizeof *s->values);
        if (!s->values) abort();
    }
    s->values[s->count++] = value;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile_ms(const struct samples *s, double q) {
    return s->count ? s->values[(size_t)(q * (double)(s->count - 1) + 0.5)] * 1e3 : 0;
}

static bool open_connection(struct connection *c) {
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1;
    c->phase = IDLE;
    c->in_size = 0;
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) {
        close(c->fd);
        c->fd = -1;
        return false;
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event) == 0;
}

static void close_connection(struct connection *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    c->phase = IDLE;
}

static void begin_call(struct connection *c) {
    c->began_s = now_s();
    if (c->began_s >= ends_s) return;
    if (c->fd < 0 && !open_connection(c)) {
        errors++;
        c->first_s = c->began_s;
        return;
    }
    c->phase = HEAD;
    c->first_s = 0;
    c->body_size = 0;
    if (send(c->fd, request, request_size, MSG_NOSIGNAL) != (ssize_t)request_size) {
        errors++;
        close_connection(c);
    }
}

static void fail_call(struct connection *c) {
    errors++;
    close_connection(c);
    if (errors > MAX_ERRORS) {
        fprintf(stderr, "load: more than %d errors, giving up\n", MAX_ERRORS);
        exit(1);
    }
}

static int count_events(const char *body, size_t size) {
    int count = 0;
    const char *at = body, *end = body + size;
    while ((at = memmem(at, (size_t)(end - at), "data:", 5))) {
        if (at == body || at[-1] == '\n') count++;
        at += 5;
    }
    return count;
}

static bool is_right(const struct connection *c, int found_events) {
    const char *at = c->body, *end = c->body + c->body_size;
    if (c->status != 200 || (expected_size >= 0 && (long)c->body_size != expected_size)) return false;
    for (int i = 0; i < words; i++) {
        const char word[3] = {'w', (char)('0' + i / 10), (char)('0' + i % 10)};
        if (!(at = memmem(at, (size_t)(end - at), word, 3))) return false;
        at += 3;
    }
    if (!stream) return c->body_size > 0 && end[-1] == '}';
    static const char done[] = "data: [DONE]";
    while (end > c->body && (end[-1] == '\n' || end[-1] == '\r')) end--;
    bool is_done = end - c->body >= 12 && memcmp(end - 12, done, 12) == 0;
    return is_done && (expected_events < 0 || found_events == expected_events);
}

static void finish_call(struct connection *c) {
    double now = now_s();
    int found_events = stream ? count_events(c->body, c->body_size) : 0;
    calls++;
    calls_in_time += now <= ends_s;
    bytes += (long long)c->body_size;
    if (c->status != 200) {
        if (!not_ok++) first_bad_status = c->status;
    }
    if (is_right(c, found_events)) {
        last_size = (long)c->body_size;
        last_events = found_events;
        add_sample(&latencies, now - c->began_s);
        if (stream) add_sample(&firsts, c->first_s - c->began_s);
    } else {
        wrong++;
    }
    c->phase = IDLE;
    if (c->close_after) {
        reconnects++;
        close_connection(c);
    }
    begin_call(c);
}

static bool read_head(struct connection *c, size_t *used) {
    char *end = memmem(c->in, c->in_size, "\r\n\r\n", 4);
    if (!end) return false;
    *used = (size_t)(end + 4 - c->in);
    c->status = atoi(c->in + 9);
    c->phase = SIZED;
    c->rest = 0;
    c->close_after = false;
    for (char *line = c->in; line < end; line = (char *)memmem(line, (size_t)(end + 2 - line), "\r\n", 2) + 2) {
        if (strncasecmp(line, "content-length:", 15) == 0) c->rest = strtoul(line + 15, NULL, 10);
        if (strncasecmp(line, "transfer-encoding: chunked", 26) == 0) c->phase = CHUNK_SIZE;
        if (strncasecmp(line, "connection: close", 17) == 0) c->close_after = true;
    }
    return true;
}

/* Move up to `rest` bytes of input into the body. */
static size_t take_body(struct connection *c, const char *from, size_t available) {
    size_t size = available < c->rest ? available : c->rest;
    if (c->body_size + size > MAX_ANSWER_BYTES) {
        c->close_after = true;
        c->body_size = 0;
    }
    memcpy(c->body + c->body_size, from, size);
    c->body_size += size;
    c->rest -= size;
    return size;
}

/* Take the input apart as far as it goes. Returns true when the answer is complete. */
static bool take_apart(struct connection *c) {
    size_t at = 0;
    bool complete = false;
    if (c->phase == HEAD && !read_head(c, &at)) return false;
    while (!complete) {
        size_t available = c->in_size - at;
        if (c->phase == SIZED || c->phase == CHUNK) {
            at += take_body(c, c->in + at, available);
            if (c->rest) break;
            complete = c->phase == SIZED;
            c->phase = CHUNK_END;
            continue;
        }
        char *line = memmem(c->in + at, available, "\r\n", 2);
        if (!line) break;
        if (c->phase == CHUNK_SIZE) c->rest = strtoul(c->in + at, NULL, 16);
        if (c->phase == TRAILER) complete = line == c->in + at;
        if (c->phase == CHUNK_SIZE) c->phase = c->rest ? CHUNK : TRAILER;
        else if (c->phase == CHUNK_END) c->phase = CHUNK_SIZE;
        at = (size_t)(line + 2 - c->in);
    }
    memmove(c->in, c->in + at, c->in_size - at);
    c->in_size -= at;
    return complete;
}

static void receive(struct connection *c) {
    ssize_t got = recv(c->fd, c->in + c->in_size, sizeof c->in - c->in_size, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        if (c->phase == IDLE) {
            reconnects++;
            close_connection(c);
        } else {
            fail_call(c);
            begin_call(c);
        }
        return;
    }
    c->in_size += (size_t)got;
    if (c->phase == IDLE) {
        fail_call(c);
        return;
    }
    bool complete = take_apart(c);
    if (stream && !c->first_s && c->body_size && memmem(c->body, c->body_size, "data:", 5)) c->first_s = now_s();
    if (complete) finish_call(c);
}

/* Begin again where a connection was refused, and give up calls that got no answer. Returns the calls in flight. */
static int look_after(double now) {
    int in_flight = 0;
    for (int i = 0; i < connection_count; i++) {
        struct connection *c = &connections[i];
        if (c->phase == IDLE && now < ends_s && now - c->began_s > RECONNECT_PAUSE_S) begin_call(c);
        if (c->phase != IDLE && now - c->began_s > ANSWER_TIMEOUT_S) fail_call(c);
        in_flight += c->phase != IDLE;
    }
    return in_flight;
}

static void run(void) {
    struct epoll_event ready[256];
    double began_s = now_s(), looked_s = began_s;
    ends_s = began_s + seconds;
    for (int i = 0; i < connection_count; i++) begin_call(&connections[i]);
    for (;;) {
        int count = epoll_wait(epoll_fd, ready, 256, 10);
        for (int i = 0; i < count; i++) {
            struct connection *c = ready[i].data.ptr;
            if (c->fd >= 0) receive(c);
        }
        double now = now_s();
        if (now - looked_s < RECONNECT_PAUSE_S && now < ends_s) continue;
        looked_s = now;
        if (look_after(now) == 0 && now >= ends_s) return;
    }
}

static void report(void) {
    qsort(latencies.values, latencies.count, sizeof(double), ascending);
    qsort(firsts.values, firsts.count, sizeof(double), ascending);
    printf("{\"calls\": %ld, \"wrong\": %ld, \"errors\": %ld, \"reconnects\": %ld, \"not_ok\": %ld, "
           "\"first_bad_status\": %ld, \"calls_per_s\": %.3f, \"p50_ms\": %.4f, \"p90_ms\": %.4f, \"p99_ms\": %.4f, "
           "\"first_p50_ms\": %.4f, \"first_p99_ms\": %.4f, \"bytes\": %lld, \"answer_bytes\": %ld, "
           "\"answer_events\": %d}\n",
           calls, wrong, errors, reconnects, not_ok, first_bad_status, (double)calls_in_time / seconds,
           quantile_ms(&latencies, 0.5), quantile_ms(&latencies, 0.9), quantile_ms(&latencies, 0.99),
           quantile_ms(&firsts, 0.5), quantile_ms(&firsts, 0.99), bytes, last_size, last_events);
}

static void prepare_request(const char *path, const char *body_file, const char *headers) {
    static char body[1 << 20];
    FILE *file = fopen(body_file, "rb");
    if (!file) {
        perror("load: --body");
        exit(2);
    }
    size_t size = fread(body, 1, sizeof body, file);
    fclose(file);
    int head_size = asprintf(&request,
                             "POST %s HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\n"
                             "accept: */*\r\n%scontent-length: %zu\r\n\r\n",
                             path, port, headers, size);
    request_size = (size_t)head_size + size;
    request = realloc(request, request_size);
    if (head_size < 0 || !request) abort();
    memcpy(request + head_size, body, size);
}

int main(int argc, char **argv) {
    const char *path = "/v1/chat/completions", *body_file = NULL;
    char headers[8192] = "";
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(name, "--stream")) {
            stream = true;
            continue;
        }
        i++;
        if (!strcmp(name, "--port")) port = atoi(value);
        else if (!strcmp(name, "--path")) path = value;
        else if (!strcmp(name, "--body")) body_file = value;
        else if (!strcmp(name, "--connections")) connection_count = atoi(value);
        else if (!strcmp(name, "--seconds")) seconds = atof(value);
        else if (!strcmp(name, "--words")) words = atoi(value);
        else if (!strcmp(name, "--size")) expected_size = atol(value);
        else if (!strcmp(name, "--events")) expected_events = atoi(value);
        else if (!strcmp(name, "--header") && strlen(headers) + strlen(value) + 3 < sizeof headers)
            strcat(strcat(headers, value), "\r\n");
        else {
            fprintf(stderr, "load: unknown option %s\n", name);
            return 2;
        }
    }
    if (!port || !body_file || connection_count < 1 || connection_count > MAX_CONNECTIONS || words > 50) {
        fprintf(stderr, "load: --port and --body are needed, 1 to %d connections, at most 50 words\n", MAX_CONNECTIONS);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    prepare_request(path, body_file, headers);
    connections = calloc((size_t)connection_count, sizeof *connections);
    for (int i = 0; i < connection_count; i++) {
        connections[i].fd = -1;
        connections[i].body = malloc(MAX_ANSWER_BYTES);
    }
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    run();
    report();
}
