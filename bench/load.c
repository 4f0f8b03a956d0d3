/* A load generator that checks what it gets: one thread, epoll, N keep-alive connections, each with one call at a time.
 *
 *   load --port P --body FILE [--path /v1/chat/completions] [--header "Name: value"]... [--connections 64]
 *        [--seconds 8] [--stream] [--words 20] [--size BYTES] [--events N]
 *   load --port P --cases FILE --floats binary|text [--marker TEXT] [--tolerance 1e-3] [--rate R] [--slo-ms 200]
 *        [--path …] [--type application/octet-stream] [--header …] [--connections N] [--seconds S]
 *
 * An answer is *right* when its status is 200 and its text holds the words w00, w01, … (`words` of them) in order, its
 * body has exactly `size` bytes (when given), and, with --stream, it has exactly `events` events (when given) and ends
 * with the [DONE] event; without --stream it ends with a closing brace. Anything else is *wrong*. An *error* is a call
 * without a whole answer: refused, reset, cut off, or silent for thirty seconds. Prints one line of JSON: calls (answers,
 * right or wrong), wrong, errors, reconnects, calls per second, latency and (with --stream) time to the first event in
 * ms, and the size in bytes and events of the last right answer. `statuses` counts answers other than 200.
 *
 * With --cases there are several requests, taken in turn, each with the numbers that its answer must hold: in binary
 * (32-bit floats, little-endian) the last bytes of the body, as text those that follow the last `marker`. Each may be
 * off by `tolerance`, absolute. The file: the number of cases, then for each the size of the body, the body, the number
 * of floats, the floats; sizes and numbers in 32 bits, little-endian. With --rate calls arrive at that pace whatever
 * the server does (open loop): latency counts from when a call was due, and one that finds all connections busy is
 * *unsent*. `in_time` counts right answers within the SLO; `refused` answers with status 429 or 503, which are wrong.
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
    const struct request *sending;
    size_t sent;
    /* What was received and not yet taken apart, and the body taken out of it so far. */
    char in[65536];
    size_t in_size;
    char *body;
    size_t body_size, rest;
    int status;
    bool close_after;
};

struct request {
    char *bytes;
    size_t size;
    float *expected;
    uint32_t floats;
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
static struct request *requests;
static uint32_t request_count;
static unsigned long next_request;
static const char *marker = "", *content_type = "application/json";
static enum { WORDS, BINARY, TEXT } check = WORDS;
static double tolerance = 1e-3, rate, slo_s = 0.2;
static long right_in_time, in_slo, refused, unsent, due_calls;
/* The connections without a call, in open loop. */
static int *idle, idle_count;

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
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1;
    c->phase = IDLE;
    c->in_size = 0;
    /* A server that accepts nobody for a while must hold up no other call. */
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) {
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

static void be_idle(struct connection *c) {
    if (rate > 0) idle[idle_count++] = (int)(c - connections);
}

/* Send what the socket takes now; the rest when it takes more, so that a busy server holds up no other call. */
static bool send_more(struct connection *c) {
    const struct request *r = c->sending;
    ssize_t done = send(c->fd, r->bytes + c->sent, r->size - c->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (done < 0 && errno != EAGAIN && errno != EINTR) return false;
    bool was_waiting = c->sent > 0;
    if (done > 0) c->sent += (size_t)done;
    bool waiting = c->sent < r->size;
    if (waiting || was_waiting) {
        struct epoll_event event = {.events = waiting ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = c};
        epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
    }
    return true;
}

static void begin_call_at(struct connection *c, double began_s) {
    c->began_s = began_s;
    if (began_s >= ends_s) return;
    if (c->fd < 0 && !open_connection(c)) {
        errors++;
        c->first_s = c->began_s;
        be_idle(c);
        return;
    }
    c->phase = HEAD;
    c->first_s = 0;
    c->body_size = 0;
    c->sent = 0;
    c->sending = &requests[next_request++ % request_count];
    if (!send_more(c)) {
        errors++;
        close_connection(c);
        be_idle(c);
    }
}

/* In closed loop the next call begins when the last has ended; in open loop when it is due. */
static void begin_call(struct connection *c) {
    if (rate > 0) be_idle(c);
    else begin_call_at(c, now_s());
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

static bool is_close(double found, float expected) {
    double off = found - (double)expected;
    return off <= tolerance && off >= -tolerance;
}

static bool has_floats(const struct connection *c) {
    const struct request *r = c->sending;
    if (c->status != 200) return false;
    if (check == BINARY) {
        if (c->body_size < r->floats * sizeof(float)) return false;
        const char *from = c->body + c->body_size - r->floats * sizeof(float);
        for (uint32_t i = 0; i < r->floats; i++) {
            float found;
            memcpy(&found, from + i * sizeof found, sizeof found);
            if (!is_close((double)found, r->expected[i])) return false;
        }
        return true;
    }
    char *at = c->body, *found;
    c->body[c->body_size] = 0;
    while (*marker && (found = strstr(at, marker))) at = found + strlen(marker);
    if (*marker && at == c->body) return false;
    for (uint32_t i = 0; i < r->floats; i++) {
        at += strspn(at, " ,[]\r\n\t");
        double value = strtod(at, &found);
        if (found == at || !is_close(value, r->expected[i])) return false;
        at = found;
    }
    /* No more numbers may follow. */
    at += strspn(at, " ,");
    return *at == 0 || strchr("]}\"", *at);
}

static bool is_right(const struct connection *c, int found_events) {
    if (check != WORDS) return has_floats(c);
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
        refused += c->status == 429 || c->status == 503;
    }
    if (is_right(c, found_events)) {
        right_in_time += now <= ends_s;
        in_slo += now - c->began_s <= slo_s;
        last_size = (long)c->body_size;
        last_events = found_events;
        add_sample(&latencies, now - c->began_s);
        if (stream) add_sample(&firsts, c->first_s - c->began_s);
    } else {
        wrong++;
    }
    c->phase = IDLE;
    /* Who answers before it has the whole request can't be sent another one after it. */
    if (c->close_after || c->sent < c->sending->size) {
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
    if (c->body_size + size >= MAX_ANSWER_BYTES) {
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
        if (rate <= 0 && c->phase == IDLE && now < ends_s && now - c->began_s > RECONNECT_PAUSE_S) begin_call(c);
        if (c->phase != IDLE && now - c->began_s > ANSWER_TIMEOUT_S) {
            fail_call(c);
            be_idle(c);
        }
        in_flight += c->phase != IDLE;
    }
    return in_flight;
}

/* Begin the calls that are due; how many milliseconds there are until the next. */
static int begin_due(double began_s) {
    double now = now_s(), due_s;
    while ((due_s = began_s + (double)due_calls / rate) <= now && due_s < ends_s) {
        due_calls++;
        if (idle_count) begin_call_at(&connections[idle[--idle_count]], due_s);
        else unsent++;
    }
    double wait_ms = (due_s - now) * 1e3;
    return wait_ms > 10 ? 10 : wait_ms > 0 ? (int)wait_ms : 0;
}

static void run(void) {
    struct epoll_event ready[256];
    double began_s = now_s(), looked_s = began_s;
    ends_s = began_s + seconds;
    for (int i = 0; i < connection_count; i++) begin_call(&connections[i]);
    for (;;) {
        int count = epoll_wait(epoll_fd, ready, 256, rate > 0 && looked_s < ends_s ? begin_due(began_s) : 10);
        for (int i = 0; i < count; i++) {
            struct connection *c = ready[i].data.ptr;
            if (c->fd >= 0 && ready[i].events & EPOLLOUT && c->phase != IDLE && !send_more(c)) {
                fail_call(c);
                begin_call(c);
            } else if (c->fd >= 0 && ready[i].events & ~EPOLLOUT) {
                receive(c);
            }
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
           "\"answer_events\": %d, \"right_per_s\": %.3f, \"in_time\": %ld, \"refused\": %ld, \"unsent\": %ld, "
           "\"due\": %ld}\n",
           calls, wrong, errors, reconnects, not_ok, first_bad_status, (double)calls_in_time / seconds,
           quantile_ms(&latencies, 0.5), quantile_ms(&latencies, 0.9), quantile_ms(&latencies, 0.99),
           quantile_ms(&firsts, 0.5), quantile_ms(&firsts, 0.99), bytes, last_size, last_events, (double)right_in_time / seconds, in_slo,
           refused, unsent, due_calls);
}

static void prepare_request(struct request *r, const char *path, const char *headers, const char *body, size_t size) {
    int head_size = asprintf(&r->bytes,
                             "POST %s HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: %s\r\n"
                             "accept: */*\r\n%scontent-length: %zu\r\n\r\n",
                             path, port, content_type, headers, size);
    r->size = (size_t)head_size + size;
    r->bytes = realloc(r->bytes, r->size);
    if (head_size < 0 || !r->bytes) abort();
    memcpy(r->bytes + head_size, body, size);
}

static char *read_file(const char *name, size_t *size) {
    FILE *file = fopen(name, "rb");
    if (!file) {
        perror("load: --body or --cases");
        exit(2);
    }
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    char *content = malloc(*size + 1);
    if (!content || fread(content, 1, *size, file) != *size) abort();
    fclose(file);
    return content;
}

static uint32_t take_number(const char **at) {
    uint32_t number;
    memcpy(&number, *at, sizeof number);
    *at += sizeof number;
    return number;
}

static void prepare_cases(const char *path, const char *headers, const char *file) {
    size_t size;
    const char *at = read_file(file, &size);
    request_count = take_number(&at);
    requests = calloc(request_count, sizeof *requests);
    for (uint32_t i = 0; i < request_count; i++) {
        struct request *r = &requests[i];
        uint32_t body_size = take_number(&at);
        prepare_request(r, path, headers, at, body_size);
        at += body_size;
        r->floats = take_number(&at);
        r->expected = malloc(r->floats * sizeof(float) + 1);
        memcpy(r->expected, at, r->floats * sizeof(float));
        at += r->floats * sizeof(float);
    }
}

static void prepare_body(const char *path, const char *headers, const char *file) {
    size_t size;
    char *body = read_file(file, &size);
    request_count = 1;
    requests = calloc(1, sizeof *requests);
    prepare_request(requests, path, headers, body, size);
}

int main(int argc, char **argv) {
    const char *path = "/v1/chat/completions", *body_file = NULL, *cases_file = NULL;
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
        else if (!strcmp(name, "--cases")) cases_file = value;
        else if (!strcmp(name, "--floats")) check = !strcmp(value, "binary") ? BINARY : TEXT;
        else if (!strcmp(name, "--marker")) marker = value;
        else if (!strcmp(name, "--tolerance")) tolerance = atof(value);
        else if (!strcmp(name, "--rate")) rate = atof(value);
        else if (!strcmp(name, "--slo-ms")) slo_s = atof(value) * 1e-3;
        else if (!strcmp(name, "--type")) content_type = value;
        else if (!strcmp(name, "--header") && strlen(headers) + strlen(value) + 3 < sizeof headers)
            strcat(strcat(headers, value), "\r\n");
        else {
            fprintf(stderr, "load: unknown option %s\n", name);
            return 2;
        }
    }
    if (!port || !(body_file || (cases_file && check != WORDS)) || connection_count < 1 || connection_count > MAX_CONNECTIONS || words > 50) {
        fprintf(stderr, "load: --port and --body (or --cases and --floats) are needed, 1 to %d connections, at most 50 words\n", MAX_CONNECTIONS);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    if (cases_file) prepare_cases(path, headers, cases_file);
    else prepare_body(path, headers, body_file);
    idle = calloc((size_t)connection_count, sizeof *idle);
    connections = calloc((size_t)connection_count, sizeof *connections);
    for (int i = 0; i < connection_count; i++) {
        connections[i].fd = -1;
        connections[i].body = malloc(MAX_ANSWER_BYTES);
    }
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    run();
    report();
}
