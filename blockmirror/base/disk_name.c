/* SPDX-License-Identifier: BSD-3-Clause */
/* Names of disks. */
#include "blockmirror/base/disk_name.h"

#include <string.h>

enum { LONGEST = 100 };

int bm_disk_name_check(const char *name, struct bm_error *error)
{
	size_t good =
		strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-");

	if (!*name || name[good] || name[0] == '.' || strlen(name) > LONGEST)
		return bm_fail(
			error, BM_E_USAGE,
			"\"%.200s\": a disk's name is 1 to %d letters, digits, and . _ - and does "
			"not begin with a dot",
			name, LONGEST);
	return 0;
}
