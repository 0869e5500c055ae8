/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * By what hosts prove to be themselves: a key that two of them have, or certificates of one
 * authority, in the folder of --tls-dir. Both count at the same port; a host is known by one of
 * them, and not by the other.
 *
 * Certificates are read where they lie, each time: one that was revoked, or replaced, counts from
 * the next connection on. STATE/peers/x509 has links to them by the names that TLS wants, so that
 * what disks' records say of them holds, whatever --tls-dir is next time, and a host needs only one
 * certificate for both sides.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/identity.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/tls_client.h"
#include "blockmirror/daemon/peer.h"

static bool has(const struct peers *p, bool certificates)
{
	bm_list_each(node, &p->list) {
		if (!bm_container(node, struct peer, link)->identity == !certificates)
			return true;
	}
	return false;
}

/*
 * Keys of who has gone must not stay in use: without any, there is no keyring. Certificates that
 * cannot be read keep nobody out who has a key; they are tried again when somebody comes.
 */
void peer_trust_use(struct peers *p)
{
	struct bm_tls_options options = {.psk = has(p, false) ? p->keys : NULL, .only_1_3 = true};
	struct bm_error error;

	bm_keyring_free(p->keyring);
	p->keyring = NULL;
	p->incomplete = false;
	if (has(p, true) && p->certificates) {
		options.certificates = p->links;
		options.verify_peer = true;
		if (bm_keyring_new(&options, &p->keyring, &error) >= 0)
			return;
		bm_log(BM_LOG_ERROR, "no host is let in by a certificate: %s", error.text);
		options.certificates = NULL;
		p->incomplete = true;
	}
	if (options.psk && bm_keyring_new(&options, &p->keyring, &error) < 0)
		bm_log(BM_LOG_ERROR, "no other host is let in: %s", error.text);
}

struct bm_keyring *peer_trust_keyring(void *arg)
{
	struct peers *p = arg;

	if (p->incomplete)
		peer_trust_use(p);
	return p->keyring;
}

/* A key is that of one host. A certificate that is for two hosts is for neither. */
struct peer *peer_of(const struct peers *p, const struct bm_identity *who)
{
	struct peer *found = NULL;

	if (who->psk) {
		found = peer_find(p, who->psk);
		return found && found->key ? found : NULL;
	}
	bm_list_each(node, &p->list) {
		struct peer *peer = bm_container(node, struct peer, link);

		if (!peer->identity || !bm_identity_is(who, peer->identity))
			continue;
		if (found)
			return NULL;
		found = peer;
	}
	return found;
}

int peer_trust_of(const struct peers *p, const struct peer *peer, struct bm_tls_trust *trust,
		  struct bm_error *error)
{
	*trust = (struct bm_tls_trust){.user = p->name, .hex = peer->key};
	if (peer->key)
		return 0;
	trust->certificates = p->links;
	trust->name = peer->identity;
	return p->certificates ? 0
			       : bm_fail(error, BM_E_USAGE,
					 "host %s is known by its certificate: start blockmirrord "
					 "with --tls-dir, where ours is",
					 peer->name);
}

static int link_to(const char *target, const char *path)
{
	bm_free char *beside = NULL;

	if (asprintf(&beside, "%s.new", path) < 0) {
		beside = NULL;
		return -ENOMEM;
	}
	unlink(beside);
	return symlink(target, beside) < 0 ? -errno : bm_rename_durably(beside, path);
}

/* folder/other, when there is no folder/name. */
static int link_one(const struct peers *p, const char *folder, const char *name, const char *other)
{
	bm_free char *target = NULL, *path = NULL;

	if (asprintf(&target, "%s/%s", folder, name) < 0) {
		target = NULL;
		return -ENOMEM;
	}
	if (access(target, F_OK) < 0) {
		bm_free char *first = bm_steal(target);

		if (asprintf(&target, "%s/%s", folder, other) < 0) {
			target = NULL;
			return -ENOMEM;
		}
	}
	if (asprintf(&path, "%s/%s", p->links, name) < 0) {
		path = NULL;
		return -ENOMEM;
	}
	return link_to(target, path);
}

int peer_trust_link(struct peers *p, struct bm_error *error)
{
	static const char *const names[][2] = {
		{"ca-cert.pem", "ca-cert.pem"},         {"ca-crl.pem", "ca-crl.pem"},
		{"server-cert.pem", "server-cert.pem"}, {"server-key.pem", "server-key.pem"},
		{"client-cert.pem", "server-cert.pem"}, {"client-key.pem", "server-key.pem"},
	};
	bm_free char *folder = NULL;
	int r;

	if (!p->certificates)
		return 0;
	folder = realpath(p->certificates, NULL);
	if (!folder)
		return bm_fail_errno(error, errno, "--tls-dir %s", p->certificates);
	r = bm_make_folders(p->links);
	for (size_t i = 0; !r && i < sizeof(names) / sizeof(names[0]); i++)
		r = link_one(p, folder, names[i][0], names[i][1]);
	return r ? bm_fail_errno(error, r, "cannot write %s", p->links) : 0;
}
