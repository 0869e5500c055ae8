/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Cleanup attributes for locals: what a function holds for itself it lets go of on every way out.
 *
 *	bm_free char *text = strdup(name);
 *	bm_close int fd = open(path, O_RDONLY);
 *	return bm_steal(text);            ownership goes to the caller
 *
 * errno survives them.
 */
#ifndef BM_BASE_CLEANUP_H
#define BM_BASE_CLEANUP_H

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static inline void bm_cleanup_free(void *ptr)
{
	free(*(void **)ptr);
}

static inline void bm_cleanup_close(const int *fd)
{
	int saved = errno;

	if (*fd >= 0)
		close(*fd);
	errno = saved;
}

static inline int bm_steal_fd_(int *fd)
{
	int taken = *fd;

	*fd = -1;
	return taken;
}

#define bm_free  __attribute__((cleanup(bm_cleanup_free)))
#define bm_close __attribute__((cleanup(bm_cleanup_close)))

#define bm_steal(ptr)                              \
	({                                         \
		__typeof__(ptr) bm_taken_ = (ptr); \
		(ptr) = NULL;                      \
		bm_taken_;                         \
	})
#define bm_steal_fd(fd) bm_steal_fd_(&(fd))

#endif
