/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * iSCSI: sessions, made in a worker's thread. All is asynchronous with a time limit: a target can
 * accept and never answer, and libiscsi's own synchronous calls write to a stack frame that is gone
 * when they time out. Only the resolver may block longer.
 */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/dev/iscsi_open.h"
#include "blockmirror/dev/open.h"

enum {
	TIMEOUT_S = 30, /* of one command */
	ASK_MS = 100,
	MOST_HOPS = 3,             /* redirections */
	LONGEST_URI = 255,         /* what libiscsi has room for */
	LOGIN_FAILED_AUTH = 0x201, /* class and detail of a login response (RFC 7143 11.13.5) */
	LOGIN_FORBIDDEN = 0x202,
	LOGIN_NO_TARGET = 0x203,
};

static uint64_t clock_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void bm_iscsi_limit(struct iscsi_opening *o, uint64_t ns)
{
	o->end = clock_ns() + ns;
}

int bm_iscsi_failed(const struct iscsi_opening *o, enum bm_code code, const char *what)
{
	return bm_fail(o->error, code, "cannot open %s: %s", o->iscsi->name, what);
}

/* What libiscsi says may start with the name of a function and end with a new line. */
static void note_why(struct iscsi_opening *o, struct iscsi_context *context)
{
	const char *text = iscsi_get_error(context);

	if (!strncmp(text, "iscsi_service: ", 15))
		text += 15;
	snprintf(o->why, sizeof(o->why), "%.*s", (int)strcspn(text, "\n"),
		 *text ? text : "the connection is lost");
}

void bm_iscsi_on_answer(struct iscsi_context *context, int status, void *data, void *user)
{
	struct iscsi_opening *o = user;

	(void)data;
	if (o->answered)
		return;
	o->answered = true;
	o->status = status;
	if (status != SCSI_STATUS_GOOD)
		note_why(o, context);
}

int bm_iscsi_wait(struct iscsi_opening *o, struct iscsi_session *s)
{
	const struct bm_open_options *options = o->options;

	while (!o->answered) {
		short events = (short)iscsi_which_events(s->context);
		struct pollfd p = {.fd = events ? iscsi_get_fd(s->context) : -1, .events = events};

		if (options->interrupted && options->interrupted(options->arg))
			return bm_iscsi_failed(o, BM_E_CANCELLED, "interrupted");
		if (clock_ns() >= o->end)
			return bm_iscsi_failed(o, BM_E_UNREACHABLE, "the target does not answer");
		if (poll(&p, 1, ASK_MS) < 0 && errno != EINTR)
			return bm_iscsi_failed(o, BM_E_INTERNAL, strerror(errno));
		if ((iscsi_service(s->context, p.revents) < 0 || iscsi_get_fd(s->context) < 0) &&
		    !o->answered) {
			note_why(o, s->context);
			return bm_iscsi_failed(o, BM_E_UNREACHABLE, o->why);
		}
	}
	return 0;
}

/* Sessions */

/* Takes from the URI what libiscsi's parser finds in it; its errors would show the password. */
static int apply_uri(struct iscsi_opening *o, struct iscsi_context *c)
{
	struct iscsi_url *url = iscsi_parse_full_url(c, o->uri);

	if (!url)
		return bm_fail(o->error, BM_E_URI,
			       "%s is no iSCSI URI: iscsi://[USER%%PASSWORD@]HOST[:PORT]/IQN/LUN",
			       o->iscsi->name);
	o->iscsi->lun = url->lun;
	snprintf(o->given, sizeof(o->given), "%s", url->portal);
	iscsi_set_targetname(c, url->target);
	if (url->user[0])
		iscsi_set_initiator_username_pwd(c, url->user, url->passwd);
	if (url->target_user[0])
		iscsi_set_target_username_pwd(c, url->target_user, url->target_passwd);
	explicit_bzero(url->passwd, sizeof(url->passwd));
	explicit_bzero(url->target_passwd, sizeof(url->target_passwd));
	iscsi_destroy_url(url);
	if (o->iscsi->lun < 0 || o->iscsi->lun > UINT16_MAX)
		return bm_iscsi_failed(o, BM_E_URI, "there is no such number for a logical unit");
	return 0;
}

static int new_context(struct iscsi_opening *o, struct iscsi_session *s)
{
	struct iscsi_context *c;

	s->context = c = iscsi_create_context(o->initiator);
	if (!c)
		return bm_iscsi_failed(o, BM_E_INTERNAL, "out of memory");
	/* Sessions that share an identifier throw each other out (RFC 7143 6.3.5). */
	iscsi_set_isid_random(c, o->isid, (uint32_t)(s - o->iscsi->session));
	iscsi_set_session_type(c, ISCSI_SESSION_NORMAL);
	iscsi_set_noautoreconnect(c, 1);
	iscsi_set_timeout(c, TIMEOUT_S);
	/* A peer that is gone without a word is found out within half a minute. */
	iscsi_set_tcp_keepidle(c, 10);
	iscsi_set_tcp_keepintvl(c, 5);
	iscsi_set_tcp_keepcnt(c, 4);
	iscsi_set_tcp_user_timeout(c, 30000);
	return apply_uri(o, c);
}

int bm_iscsi_not_sent(struct iscsi_opening *o, struct iscsi_session *s)
{
	note_why(o, s->context);
	return bm_iscsi_failed(o, BM_E_UNREACHABLE, o->why);
}

static int connect_portal(struct iscsi_opening *o, struct iscsi_session *s, const char *portal)
{
	int r;

	bm_iscsi_drop(s);
	r = new_context(o, s);
	if (r < 0)
		return r;
	o->answered = false;
	if (iscsi_connect_async(s->context, portal, bm_iscsi_on_answer, o))
		return bm_iscsi_not_sent(o, s);
	r = bm_iscsi_wait(o, s);
	if (!r && o->status != SCSI_STATUS_GOOD)
		r = bm_iscsi_failed(o, BM_E_UNREACHABLE, o->why);
	if (!r)
		bm_abort_on_close(iscsi_get_fd(s->context), true);
	return r;
}

static int login_failed(const struct iscsi_opening *o)
{
	const char *number = strrchr(o->why, '(');
	enum bm_code code = BM_E_UNREACHABLE;

	switch (number ? atoi(number + 1) : 0) {
	case LOGIN_FAILED_AUTH:
	case LOGIN_FORBIDDEN:
		code = BM_E_ACCESS;
		break;
	case LOGIN_NO_TARGET:
		code = BM_E_NOT_FOUND;
		break;
	}
	return bm_iscsi_failed(o, code, o->why);
}

static int login(struct iscsi_opening *o, struct iscsi_session *s)
{
	char portal[sizeof(o->portal)];
	int r;

	for (int hops = 0;; hops++) {
		o->answered = false;
		if (iscsi_login_async(s->context, bm_iscsi_on_answer, o))
			return bm_iscsi_not_sent(o, s);
		r = bm_iscsi_wait(o, s);
		if (r < 0 || o->status == SCSI_STATUS_GOOD)
			return r;
		if (o->status != SCSI_STATUS_REDIRECT || hops == MOST_HOPS)
			return login_failed(o);
		snprintf(portal, sizeof(portal), "%s", iscsi_get_target_address(s->context));
		r = connect_portal(o, s, portal);
		if (r < 0)
			return r;
	}
}

/* libiscsi would try the first address of a name only: this tries them all. */
static int resolve(const struct iscsi_opening *o, struct addrinfo **list)
{
	static const struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
					      .ai_flags = AI_NUMERICSERV};
	bm_free char *copy = strdup(o->given);
	const char *port = "3260";
	char *host = copy, *colon, *close;
	int r;

	if (!copy)
		return bm_iscsi_failed(o, BM_E_INTERNAL, "out of memory");
	colon = strrchr(host, ':');
	close = host[0] == '[' ? strchr(host, ']') : NULL;
	if (close) {
		host++;
		*close = '\0';
		port = close[1] == ':' ? close + 2 : port;
	} else if (colon && strchr(host, ':') == colon) {
		*colon = '\0';
		port = colon + 1;
	}
	r = getaddrinfo(host, port, &hints, list);
	return r ? bm_iscsi_failed(o, BM_E_UNREACHABLE, gai_strerror(r)) : 0;
}

static int connect_first(struct iscsi_opening *o, struct iscsi_session *s)
{
	struct addrinfo *list;
	int r = resolve(o, &list);

	if (r < 0)
		return r;
	for (struct addrinfo *a = list; a; a = a->ai_next) {
		char host[NI_MAXHOST], port[16];

		r = getnameinfo(a->ai_addr, a->ai_addrlen, host, sizeof(host), port, sizeof(port),
				NI_NUMERICHOST | NI_NUMERICSERV);
		if (r) {
			r = bm_iscsi_failed(o, BM_E_UNREACHABLE, gai_strerror(r));
			continue;
		}
		snprintf(o->portal, sizeof(o->portal), strchr(host, ':') ? "[%s]:%s" : "%s:%s",
			 host, port);
		r = connect_portal(o, s, o->portal);
		if (r != -EHOSTUNREACH)
			break;
	}
	freeaddrinfo(list);
	return r;
}

int bm_iscsi_log_in(struct iscsi_opening *o, struct iscsi_session *s)
{
	int r = *o->portal ? connect_portal(o, s, o->portal) : connect_first(o, s);

	return r < 0 ? r : login(o, s);
}

/* Targets let initiators in by name: the host's own one, where it has one. */
static void name_initiator(struct iscsi_opening *o)
{
	FILE *file = fopen("/etc/iscsi/initiatorname.iscsi", "re");
	char line[300], host[HOST_NAME_MAX + 1] = "";

	gethostname(host, sizeof(host) - 1);
	snprintf(o->initiator, sizeof(o->initiator), "iqn.2026-01.org.blockmirror:%s", host);
	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, " InitiatorName = %223s", o->initiator) == 1)
			break;
	if (file)
		fclose(file);
}

/* What libiscsi's parser does not survive, or cuts off. */
static int check_uri(const struct iscsi_opening *o)
{
	const char *query = strchr(o->uri, '?');
	bm_free char *copy = strdup(query ? query + 1 : "");
	char *save;

	if (!copy)
		return bm_iscsi_failed(o, BM_E_INTERNAL, "out of memory");
	if (strlen(o->uri) > LONGEST_URI)
		return bm_iscsi_failed(o, BM_E_URI, "the URI is longer than 255 bytes");
	for (char *word = strtok_r(copy, "&", &save); word; word = strtok_r(NULL, "&", &save))
		if (!strchr(word, '='))
			return bm_iscsi_failed(o, BM_E_URI,
					       "NAME=VALUE is expected after the question mark");
	return 0;
}

/* libiscsi sends data by writev(), which raises SIGPIPE when the target has hung up. */
static void ignore_sigpipe(void)
{
	struct sigaction action;

	if (!sigaction(SIGPIPE, NULL, &action) && action.sa_handler == SIG_DFL)
		signal(SIGPIPE, SIG_IGN);
}

int bm_iscsi_prepare(struct iscsi_opening *o)
{
	struct iscsi_session *s = &o->iscsi->session[0];
	int r = check_uri(o);

	if (r < 0)
		return r;
	name_initiator(o);
	ignore_sigpipe();
	if (getrandom(&o->isid, sizeof(o->isid), 0) < 0)
		o->isid = (uint32_t)clock_ns();
	r = new_context(o, s); /* for what the URI says */
	bm_iscsi_drop(s);
	return r;
}
