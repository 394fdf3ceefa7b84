/* Bytes to one gateway. */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "openssl.h"
#include "p11.h"

enum { UNHEARD_MS = 20000 };

static enum p11_progress broken(struct p11_stream *stream, const char *why) {
    if (stream->why[0] == '\0') {
        (void)snprintf(stream->why, sizeof stream->why, "%s", why);
    }
    return P11_BROKEN;
}

/* Another try would break in the same way. */
static void unusable(struct p11_stream *stream, const char *why) {
    (void)broken(stream, why);
    stream->final = true;
}

static enum p11_progress broken_tls(struct p11_stream *stream, const char *what) {
    char text[120] = "";
    unsigned long error = p11_ssl.ERR_get_error();
    int alert = ERR_GET_REASON(error) - SSL_AD_REASON_OFFSET;
    if (error != 0) {
        p11_ssl.ERR_error_string_n(error, text, sizeof text);
    }
    p11_ssl.ERR_clear_error();
    (void)snprintf(stream->why, sizeof stream->why, "%s %s", what, text);
    /* One end does not trust the certificate of the other. */
    stream->final = (alert >= SSL_AD_BAD_CERTIFICATE && alert <= SSL_AD_ACCESS_DENIED) ||
                    alert == TLS13_AD_CERTIFICATE_REQUIRED || p11_ssl.SSL_get_verify_result(stream->ssl) != X509_V_OK;
    return P11_BROKEN;
}

/* NULL: the files of the setting cannot be used. */
static SSL *new_ssl(void) {
    static const unsigned char protocol[] = "\x0ehsmcore-wire/1";
    SSL_CTX *context = p11_ssl.SSL_CTX_new_ex(p11_ssl.context, NULL, p11_ssl.TLS_client_method());
    if (context == NULL) {
        return NULL;
    }
    p11_ssl.SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    bool good = p11_ssl.SSL_CTX_ctrl(context, SSL_CTRL_SET_MIN_PROTO_VERSION, TLS1_3_VERSION, NULL) == 1 &&
                p11_ssl.SSL_CTX_load_verify_locations(context, p11_config.tls_ca, NULL) == 1 &&
                p11_ssl.SSL_CTX_use_certificate_chain_file(context, p11_config.tls_cert) == 1 &&
                p11_ssl.SSL_CTX_use_PrivateKey_file(context, p11_config.tls_key, SSL_FILETYPE_PEM) == 1 &&
                p11_ssl.SSL_CTX_set_alpn_protos(context, protocol, sizeof protocol - 1) == 0;
    SSL *made = good ? p11_ssl.SSL_new(context) : NULL;
    p11_ssl.SSL_CTX_free(context);
    return made;
}

static void begin_tls(struct p11_stream *stream, char *host) {
    char *name = p11_config.tls_name != NULL ? p11_config.tls_name : host;
    uint8_t address[16];
    if (!p11_ssl_load()) {
        unusable(stream, "libssl.so.3 cannot be loaded: install OpenSSL 3");
    } else if (p11_config.tls_ca == NULL) {
        unusable(stream, "a tls: address needs the setting tls = certificate,key,authorities");
    } else if ((stream->ssl = new_ssl()) == NULL) {
        unusable(stream, "the files of the setting tls cannot be used");
        p11_ssl.ERR_clear_error();
    } else {
        long mode = SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER;
        p11_ssl.SSL_ctrl(stream->ssl, SSL_CTRL_MODE, mode, NULL);
        bool is_ip = inet_pton(AF_INET, name, address) == 1 || inet_pton(AF_INET6, name, address) == 1;
        bool good =
            is_ip ? p11_ssl.X509_VERIFY_PARAM_set1_ip_asc(p11_ssl.SSL_get0_param(stream->ssl), name) == 1
                  : p11_ssl.SSL_set1_host(stream->ssl, name) == 1 &&
                        p11_ssl.SSL_ctrl(stream->ssl, SSL_CTRL_SET_TLSEXT_HOSTNAME, TLSEXT_NAMETYPE_host_name, name);
        if (!good || p11_ssl.SSL_set_fd(stream->ssl, stream->fd) != 1) {
            (void)broken_tls(stream, "TLS:");
        }
    }
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
    bool bare = address[4] == '[' && port[-1] == ']';
    int len = (int)(port - address) - (bare ? 6 : 4);
    if (snprintf(host, sizeof host, "%.*s", len, address + (bare ? 5 : 4)) >= (int)sizeof host) {
        unusable(stream, "the host's name is too long");
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
        begin_tls(stream, host);
    }
}

void p11_stream_open(struct p11_stream *stream, const char *address) {
    *stream = (struct p11_stream){.fd = -1, .connecting = true};
    struct sockaddr_un path = {.sun_family = AF_UNIX};
    if (strncmp(address, "tls:", 4) == 0) {
        dial_tcp(stream, address);
    } else if (snprintf(path.sun_path, sizeof path.sun_path, "%s", address + 5) >= (int)sizeof path.sun_path) {
        unusable(stream, "the socket's path is too long");
    } else {
        dial(stream, (const struct sockaddr *)&path, sizeof path);
    }
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
    return p11_ssl.SSL_connect(stream->ssl);
}

static int get(struct p11_stream *stream, void *data, int size) {
    return p11_ssl.SSL_read(stream->ssl, data, size);
}

static int put(struct p11_stream *stream, void *data, int size) {
    return p11_ssl.SSL_write(stream->ssl, data, size);
}

static enum p11_progress by_tls(struct p11_stream *stream, int (*call)(struct p11_stream *, void *, int), void *data,
                                size_t *size) {
    p11_ssl.ERR_clear_error();
    int made = quietly(stream, call, data, (int)(*size < INT32_MAX ? *size : INT32_MAX));
    *size = made > 0 ? (size_t)made : 0;
    int error = made > 0 ? SSL_ERROR_NONE : p11_ssl.SSL_get_error(stream->ssl, made);
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

/* What a call of the socket came to. */
static enum p11_progress by_socket(struct p11_stream *stream, ssize_t made, enum p11_progress wants, size_t *size) {
    *size = made > 0 ? (size_t)made : 0;
    if (made < 0 && (errno == EAGAIN || errno == EINTR)) {
        return wants;
    }
    return made > 0 ? P11_DONE
                    : broken(stream, made == 0 ? "the gateway closed the connection" : strerrordesc_np(errno));
}

enum p11_progress p11_stream_read(struct p11_stream *stream, uint8_t *data, size_t *size) {
    return stream->ssl != NULL ? by_tls(stream, get, data, size)
                               : by_socket(stream, recv(stream->fd, data, *size, 0), P11_WANTS_READ, size);
}

enum p11_progress p11_stream_write(struct p11_stream *stream, const uint8_t *data, size_t *size) {
    return stream->ssl != NULL ? by_tls(stream, put, (void *)(uintptr_t)data, size)
                               : by_socket(stream, send(stream->fd, data, *size, MSG_NOSIGNAL), P11_WANTS_WRITE, size);
}

void p11_stream_close(struct p11_stream *stream, bool inherited) {
    if (stream->ssl != NULL && !inherited) { /* what libssl has is left alone in a child: its locks may be held */
        p11_ssl.SSL_free(stream->ssl);
    }
    if (stream->fd >= 0) {
        (void)close(stream->fd);
    }
    *stream = (struct p11_stream){.fd = -1};
}
