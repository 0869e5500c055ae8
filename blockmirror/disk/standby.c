/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What another host may do with a disk of ours that is a standby: its mirror writes to the image,
 * below the gate, over a port of its own, under TLS, by the key that the two hosts have, or by that
 * host's certificate. Nobody else gets in there.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/credentials.h"
#include "blockmirror/base/log.h"
#include "blockmirror/disk/gate.h"
#include "blockmirror/disk/job.h"
#include "blockmirror/disk/standby.h"
#include "nbd-server/acl.h"

#define LOOK 1000000000ull /* ns */
enum { CONNECTIONS = 32 }; /* a mirror has 4, and as many that are not known to be dead yet */

static void wanted(void *arg)
{
	promote(arg, NULL, false);
}

static void refused(void *arg)
{
	struct disk *d = arg;

	if (!d->refused_writes++)
		bm_log(BM_LOG_WARN,
		       "%s: a guest's write is refused: the disk is a standby of host %s", d->name,
		       d->record.peer);
	if (d->rpc)
		bm_rpc_notify(d->rpc, "refused", json_pack("{s:s}", "name", d->name));
}

const struct gate_host standby_gate = {.wanted = wanted, .refused = refused};

/*
 * Also when the time is over, as long as a guest that came before has the disk open: a machine that
 * has moved may write to one of its disks only much later. If it is not to have it, it is told so
 * then, by the host that it asks.
 */
static bool is_armed(const struct disk *d)
{
	bool was_armed = d->gate && gate_get_role(d->gate) == GATE_ARMED;

	return offer_holds(d, d->record.peer) ||
	       (was_armed && d->offer.host && d->offer.until > WITHDRAWN && d->nbd &&
		nbd_server_clients(d->nbd, NULL, 0));
}

enum gate_role standby_gate_role(const struct disk *d)
{
	if (move_fences(d))
		return GATE_FENCED;
	if (d->record.role == BM_ROLE_STANDBY)
		return is_armed(d) ? GATE_ARMED : GATE_STANDBY;
	return d->record.role == BM_ROLE_RETIRED ? GATE_RETIRED : GATE_ACTIVE;
}

static void expired(struct bm_timer *timer)
{
	standby_armed(bm_container(timer, struct disk, offer_timer));
}

void standby_armed(struct disk *d)
{
	uint64_t now = job_realtime();

	bm_timer_clear(d->loop, &d->offer_timer);
	if (d->record.role != BM_ROLE_STANDBY || d->promotion)
		return;
	gate_set_role(d->gate, standby_gate_role(d));
	d->offer_timer.run = expired;
	if (offer_holds(d, NULL))
		(void)bm_timer_set(d->loop, &d->offer_timer,
				   bm_loop_now(d->loop) + (d->offer.until - now));
	else if (is_armed(d))
		(void)bm_timer_set(d->loop, &d->offer_timer, bm_loop_now(d->loop) + LOOK);
}

static enum nbd_access access_of(void *arg, const struct bm_identity *who, const char *export)
{
	const struct disk *d = arg;

	(void)export;
	if (!who || !d->record.peer)
		return NBD_ACCESS_NONE;
	if (d->acl) /* its lines are about hosts, and there are none for keys */
		return nbd_acl_access(d->acl, who, d->record.peer);
	return who->psk && !strcmp(who->psk, d->record.peer) ? NBD_ACCESS_WRITE : NBD_ACCESS_NONE;
}

/* A certificate is for whom that file says, and else for nobody. */
static int open_acl(struct disk *d, const struct disk_options *options, struct bm_error *error)
{
	if (!options->certificates)
		return 0;
	if (!options->acl)
		return bm_fail(error, BM_E_USAGE, "--peer-tls and --peer-acl are said together");
	return nbd_acl_open(options->acl, &d->acl, error);
}

int standby_open(struct disk *d, const struct disk_options *options, struct bm_error *error)
{
	const struct nbd_server_options limits = {
		.max_connections = CONNECTIONS, .access = access_of, .arg = d};
	const struct bm_tls_options tls = {.psk = options->keys,
					   .certificates = options->certificates,
					   .verify_peer = options->certificates};
	const struct nbd_export exported = {.name = d->name, .dev = d->order};
	int r;

	if (d->record.role != BM_ROLE_STANDBY || d->record.shared || !options->data_fd) {
		if (options->data_fd)
			close(options->data_fd);
		return 0;
	}
	d->data = nbd_server_new(d->loop, &limits);
	if (!d->data)
		return bm_fail_errno(error, ENOMEM, "disk %s", d->name);
	r = open_acl(d, options, error);
	if (!r)
		r = nbd_server_add_export(d->data, &exported, error);
	if (!r)
		r = nbd_server_set_tls(d->data, NBD_TLS_REQUIRE, &tls, error);
	return r ? r : nbd_server_listen_fd(d->data, options->data_fd, error);
}
