/* Bytes to one gateway. libssl is opened when a tls: address is used first; it has a library context of its own, so that
 * providers which the application configured (one may be this module) have no part in it. */
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/ssl.h>

#include "p11.h"

enum { UNHEARD_MS = 20000 };

// clang-format off: several names in a line
#define FUNCTIONS(X) \
    X(OSSL_LIB_CTX_new) X(TLS_client_method) X(SSL_CTX_new_ex) X(SSL_CTX_free) X(SSL_CTX_ctrl) X(SSL_CTX_set_verify) \
    X(SSL_CTX_load_verify_locations) X(SSL_CTX_use_certificate_chain_file) X(SSL_CTX_use_PrivateKey_file) \
    X(SSL_CTX_set_alpn_protos) X(SSL_new) X(SSL_free) X(SSL_ctrl) X(SSL_set1_host) X(SSL_set_fd) X(SSL_connect) \
    X(SSL_read) X(SSL_write) X(SSL_get_error) X(SSL_get0_param) X(X509_VERIFY_PARAM_set1_ip_asc) X(ERR_get_error) \
    X(ERR_error_string_n) X(ERR_clear_error)
// clang-format on

static struct {
// NOLINTNEXTLINE(bugprone-macro-parentheses): a declaration
#define X(name) __typeof__(name) *name;
    FUNCTIONS(X)
#undef X
    OSSL_LIB_CTX *context;
} tls;

static bool load(void) {
    void *library = tls.context != NULL ? NULL : dlopen("libssl.so.3", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        return tls.context != NULL;
    }
#define X(name)                                                                                                        \
    *(void **)&tls.name = dlsym(library, #name);                                                                       \
    if (tls.name == NULL) {                                                                                            \
        return false;                                                                                                  \
    }
    FUNCTIONS(X)
#undef X
    tls.context = tls.OSSL_LIB_CTX_new();
    return tls.context != NULL;
}

static enum p11_progress broken(struct p11_stream *stream, const char *why) {
    if (stream->why[0] == '\0') {
        (void)snprintf(stream->why, sizeof stream->why, "%s", why);
    }
    return P11_BROKEN;
}

static enum p11_progress broken_tls(struct p11_stream *stream, const char *what) {
    char text[120] = "";
    unsigned long error = tls.ERR_get_error();
    if (error != 0) {
        tls.ERR_error_string_n(error, text, sizeof text);
    }
    tls.ERR_clear_error();
    (void)snprintf(stream->why, sizeof stream->why, "%s %s", what, text);
    return P11_BROKEN;
}

static bool begin_tls(struct p11_stream *stream, const char *host) {
    static const unsigned char protocol[] = "\x0ehsmcore-wire/1";
    const struct p11_config *config = &p11_config;
    if (!load()) {
        return broken(stream, "libssl.so.3 cannot be loaded: install OpenSSL 3"), false;
    }
    if (config->tls_ca == NULL) {
        return broken(stream, "a tls: address needs the setting tls = certificate,key,authorities"), false;
    }
    SSL_CTX *context = tls.SSL_CTX_new_ex(tls.context, NULL, tls.TLS_client_method());
    if (context == NULL) {
        return broken_tls(stream, "no memory"), false;
    }
    tls.SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    bool good = tls.SSL_CTX_ctrl(context, SSL_CTRL_SET_MIN_PROTO_VERSION, TLS1_3_VERSION, NULL) == 1 &&
                tls.SSL_CTX_load_verify_locations(context, config->tls_ca, NULL) == 1 &&
                tls.SSL_CTX_use_certificate_chain_file(context, config->tls_cert) == 1 &&
                tls.SSL_CTX_use_PrivateKey_file(context, config->tls_key, SSL_FILETYPE_PEM) == 1 &&
                tls.SSL_CTX_set_alpn_protos(context, protocol, sizeof protocol - 1) == 0;
    stream->ssl = good ? tls.SSL_new(context) : NULL;
    tls.SSL_CTX_free(context);
    if (stream->ssl == NULL) {
        return broken_tls(stream, "the files of the setting tls cannot be used:"), false;
    }
    char *name = config->tls_name != NULL ? config->tls_name : (char *)(uintptr_t)host;
    uint8_t address[16];
    tls.SSL_ctrl(stream->ssl, SSL_CTRL_MODE, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER, NULL);
    if (inet_pton(AF_INET, name, address) == 1 || inet_pton(AF_INET6, name, address) == 1) {
        good = tls.X509_VERIFY_PARAM_set1_ip_asc(tls.SSL_get0_param(stream->ssl), name) == 1;
    } else {
        good = tls.SSL_set1_host(stream->ssl, name) == 1 &&
               tls.SSL_ctrl(stream->ssl, SSL_CTRL_SET_TLSEXT_HOSTNAME, TLSEXT_NAMETYPE_host_name, name) == 1;
    }
    return good && tls.SSL_set_fd(stream->ssl, stream->fd) == 1 ? true : (broken_tls(stream, "TLS:"), false);
}

static void dial(struct p11_stream *stream, const struct sockaddr *address, socklen_t len) {
    stream->fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (stream->fd < 0 || (connect(stream->fd, address, len) != 0 && errno != EINPROGRESS)) {
        (void)broken(stream, strerrordesc_np(errno));
    }
}

/* The host's name may take a server's answer, so it is looked up without the lock; nothing else touches a stream that is
 * being opened, and the addresses stay until C_Finalize, which waits. */
static void dial_tcp(struct p11_stream *stream, const char *address) {
    char host[256];
    const char *port = strrchr(address, ':');
    size_t len = (size_t)(port - address - 4);
    const char *begin = address + 4;
    if (len > 1 && begin[0] == '[' && begin[len - 1] == ']') {
        begin++;
        len -= 2;
    }
    if (snprintf(host, sizeof host, "%.*s", (int)len, begin) >= (int)sizeof host) {
        (void)broken(stream, "the host's name is too long");
        return;
    }
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    (void)pthread_mutex_unlock(&p11_lock);
    int error = getaddrinfo(host, port + 1, &hints, &found);
    (void)pthread_mutex_lock(&p11_lock);
    if (error != 0) {
        (void)broken(stream, gai_strerror(error));
        return;
    }
    dial(stream, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    if (stream->why[0] == '\0') {
        int on = 1;
        int unheard = UNHEARD_MS;
        (void)setsockopt(stream->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        (void)setsockopt(stream->fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unheard, sizeof unheard);
        (void)begin_tls(stream, host);
    }
}

void p11_stream_open(struct p11_stream *stream, const char *address) {
    *stream = (struct p11_stream){.fd = -1, .connecting = true};
    if (strncmp(address, "tls:", 4) == 0) {
        dial_tcp(stream, address);
        return;
    }
    struct sockaddr_un path = {.sun_family = AF_UNIX};
    if (snprintf(path.sun_path, sizeof path.sun_path, "%s", address + 5) >= (int)sizeof path.sun_path) {
        (void)broken(stream, "the socket's path is too long");
        return;
    }
    dial(stream, (const struct sockaddr *)&path, sizeof path);
}

/* libssl writes with write(2): a peer that is gone must not end the application. A SIGPIPE that was pending stays. */
static int quietly(struct p11_stream *stream, int (*call)(struct p11_stream *, void *, int), void *data, int size) {
    sigset_t pipe;
    sigset_t before;
    sigset_t pending;
    (void)sigemptyset(&pipe);
    (void)sigaddset(&pipe, SIGPIPE);
    (void)sigpending(&pending);
    (void)pthread_sigmask(SIG_BLOCK, &pipe, &before);
    int made = call(stream, data, size);
    if (sigismember(&pending, SIGPIPE) == 0) {
        const struct timespec now = {0};
        (void)sigtimedwait(&pipe, NULL, &now);
    }
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    return made;
}

static int shake(struct p11_stream *stream, void *data, int size) {
    (void)data, (void)size;
    return tls.SSL_connect(stream->ssl);
}

static int get(struct p11_stream *stream, void *data, int size) {
    return tls.SSL_read(stream->ssl, data, size);
}

static int put(struct p11_stream *stream, void *data, int size) {
    return tls.SSL_write(stream->ssl, data, size);
}

static enum p11_progress by_tls(struct p11_stream *stream, int (*call)(struct p11_stream *, void *, int), void *data,
                                size_t *size) {
    tls.ERR_clear_error();
    int made = quietly(stream, call, data, (int)(*size < INT32_MAX ? *size : INT32_MAX));
    *size = made > 0 ? (size_t)made : 0;
    int error = made > 0 ? SSL_ERROR_NONE : tls.SSL_get_error(stream->ssl, made);
    switch (error) {
    case SSL_ERROR_NONE:
        return P11_DONE;
    case SSL_ERROR_WANT_READ:
        return P11_WANTS_READ;
    case SSL_ERROR_WANT_WRITE:
        return P11_WANTS_WRITE;
    case SSL_ERROR_ZERO_RETURN:
        return broken(stream, "the gateway closed the connection");
    default:
        return broken_tls(stream, "the connection broke:");
    }
}

enum p11_progress p11_stream_connect(struct p11_stream *stream) {
    int error = 0;
    socklen_t len = sizeof error;
    struct sockaddr_storage peer;
    socklen_t peer_len = sizeof peer;
    size_t nothing = 0;
    if (stream->why[0] != '\0') {
        return P11_BROKEN;
    }
    if (stream->connecting && getpeername(stream->fd, (struct sockaddr *)&peer, &peer_len) != 0) {
        (void)getsockopt(stream->fd, SOL_SOCKET, SO_ERROR, &error, &len);
        return error == 0 ? P11_WANTS_WRITE : broken(stream, strerrordesc_np(error));
    }
    stream->connecting = false;
    return stream->ssl == NULL ? P11_DONE : by_tls(stream, shake, NULL, &nothing);
}

enum p11_progress p11_stream_read(struct p11_stream *stream, uint8_t *data, size_t *size) {
    if (stream->ssl != NULL) {
        return by_tls(stream, get, data, size);
    }
    ssize_t made = recv(stream->fd, data, *size, 0);
    *size = made > 0 ? (size_t)made : 0;
    if (made < 0 && (errno == EAGAIN || errno == EINTR)) {
        return P11_WANTS_READ;
    }
    return made > 0 ? P11_DONE
                    : broken(stream, made == 0 ? "the gateway closed the connection" : strerrordesc_np(errno));
}

enum p11_progress p11_stream_write(struct p11_stream *stream, const uint8_t *data, size_t *size) {
    if (stream->ssl != NULL) {
        return by_tls(stream, put, (void *)(uintptr_t)data, size);
    }
    ssize_t made = send(stream->fd, data, *size, MSG_NOSIGNAL);
    *size = made > 0 ? (size_t)made : 0;
    if (made < 0 && (errno == EAGAIN || errno == EINTR)) {
        return P11_WANTS_WRITE;
    }
    return made >= 0 ? P11_DONE : broken(stream, strerrordesc_np(errno));
}

void p11_stream_close(struct p11_stream *stream, bool inherited) {
    if (stream->ssl != NULL && !inherited) { /* what libssl has is left alone in a child: its locks may be held */
        tls.SSL_free(stream->ssl);
    }
    if (stream->fd >= 0) {
        (void)close(stream->fd);
    }
    *stream = (struct p11_stream){.fd = -1};
}
