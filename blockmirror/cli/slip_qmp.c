/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * QEMU, for a disk that is slipped under it. A connection that is closed does not say that QEMU has
 * ended: it is opened again before that is believed, and what was asked last is looked up, since
 * the answer alone may be lost.
 */
#include <errno.h>
#include <string.h>

#include "blockmirror/cli/slip.h"

static bool is_lost(int r)
{
	return r == -ECONNRESET || r == -EPIPE;
}

int slip_qmp_again(struct slip *s, struct bm_error *error)
{
	struct bm_qmp *fresh;
	int r;

	if (!s->qmp)
		return bm_fail(error, BM_E_NOT_FOUND, "QEMU has ended");
	if (!bm_qmp_ended(s->qmp))
		return 0;
	r = bm_qmp_connect(slip_text(s, "qmp"), &fresh, error);
	if (r < 0 && r != -ENOENT && r != -ECONNREFUSED)
		return r;
	bm_qmp_close(s->qmp);
	s->qmp = r < 0 ? NULL : fresh;
	return r < 0 ? -ENOENT : 0;
}

static int call_del(struct slip *s, const char *node, struct bm_error *error)
{
	return bm_qmp_call(s->qmp, "blockdev-del", json_pack("{s:s}", "node-name", node), NULL,
			   error);
}

int slip_qmp_remove(struct slip *s, const char *node, struct bm_error *error)
{
	int r;

	if (!s->qmp || !*node)
		return 0;
	r = call_del(s, node, error);
	if (is_lost(r) && !(r = slip_qmp_again(s, error)))
		r = call_del(s, node, error);
	return r == -EPROTO || r == -ENOENT ? 0 : r;
}

static bool is_below(struct slip *s, const char *node)
{
	struct bm_child child = {0};
	bool is = !bm_drive_child(s->qmp, slip_text(s, "node"), &child, NULL) &&
		  !strcmp(child.name, node);

	bm_child_clear(&child);
	return is;
}

int slip_qmp_exchange(struct slip *s, const char *node, bool beside, struct bm_error *error)
{
	struct bm_error other;
	int r;

	bm_qmp_set_guard(s->qmp, beside ? slip_disk_guard_beside : slip_disk_guard, s);
	r = bm_drive_exchange(s->qmp, slip_text(s, "node"), json_object_get(s->plan, "reopen"),
			      node, error);
	bm_qmp_set_guard(s->qmp, NULL, NULL);
	s->doubt = r == -ETIMEDOUT;
	if (is_lost(r)) {
		int again = slip_qmp_again(s, &other);

		s->doubt = again && again != -ENOENT;
		if (!again && is_below(s, node))
			r = 0;
	}
	return r;
}
