/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * That a flush of the disk failed, as the next process has to know: a later flush succeeds without
 * what that one lost, so that nothing may be settled by it (docs/mirror.md, F13). It is noted in
 * RUN, for as long as the host lives: what an image holds after a power cut is certain again.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/log.h"
#include "blockmirror/disk/disk.h"

enum { LONGEST = 64 };

/* RUN need not be a tmpfs. NULL: no memory. */
static char *this_boot(void)
{
	char *id = NULL;

	return bm_read_text("/proc/sys/kernel/random/boot_id", LONGEST, &id) < 0 ? strdup("?") : id;
}

bool doubt_found(const struct disk *d)
{
	bm_free char *noted = NULL, *now = this_boot();
	int r = d->doubt_path ? bm_read_text(d->doubt_path, LONGEST, &noted) : -ENOENT;

	/* One that cannot be read, or is half written, may be of now. */
	return r != -ENOENT &&
	       (!now || !noted || strlen(noted) < strlen(now) || !strcmp(noted, now));
}

void doubt_note(const struct disk *d)
{
	bm_free char *now = this_boot();
	bm_close int fd = -1;

	if (!d->doubt_path)
		return;
	fd = open(d->doubt_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || !now || write(fd, now, strlen(now)) < 0)
		bm_log(BM_LOG_ERROR, "%s: that a flush failed cannot be noted in %s: %s", d->name,
		       d->doubt_path, strerror(errno));
}
