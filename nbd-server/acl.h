/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Who may open which export: a file of lines "WHO EXPORT ACCESS" (blockmirror-nbd(8), ACCESS
 * CONTROL). What no line gives is not given. Loop thread; reading blocks as long as a small file
 * does.
 */
#ifndef NBD_SERVER_ACL_H
#define NBD_SERVER_ACL_H

#include "nbd-server/server.h"

struct nbd_acl;

int nbd_acl_open(const char *path, struct nbd_acl **acl, struct bm_error *error);
void nbd_acl_free(struct nbd_acl *acl); /* NULL is allowed */

/* Reads the file again. What is in use stays so when it is not all right. */
int nbd_acl_reload(struct nbd_acl *acl, struct bm_error *error);

/* The most that any line gives. A file that has changed is read again first. */
enum nbd_access nbd_acl_access(struct nbd_acl *acl, const struct bm_identity *who,
			       const char *export);

/* Whether there are lines for clients that have a pre-shared key, or a certificate. */
bool nbd_acl_names_keys(const struct nbd_acl *acl);
bool nbd_acl_names_certificates(const struct nbd_acl *acl);

#endif
