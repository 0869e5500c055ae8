/* SPDX-License-Identifier: BSD-3-Clause */
/* Storage of several hosts, as its name tells. */
#ifndef BM_BASE_SHARED_NAME_H
#define BM_BASE_SHARED_NAME_H

#include <stdbool.h>

/*
 * Whether any host that is let reaches it by the same name: a server's, or on a network file
 * system. The password is not shown, and not known here. Blocks; any thread.
 */
bool bm_shared_by_name(const char *uri);

#endif
