/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The settled map of a running job, in RUN (a tmpfs): a page that says what it is, then a bit per
 * granule, 1 = settled (docs/record.md). It outlives this process when that is killed, and not the
 * host. All its memory is allocated before it is mapped: no store to it can fail (SIGBUS).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/disk/disk.h"

enum { HEADER = 4096, VERSION = 1 };

/* Little-endian hosts only, as all that run QEMU guests of interest; the magic tells. */
struct header {
	char magic[8];
	uint32_t version, granule;
	uint64_t size, generation;
	char disk[32];
	uint64_t sum; /* XXH64 of all before it */
};

static size_t length(uint64_t size, unsigned granule)
{
	return HEADER + bm_mirror_map_bytes(size, granule);
}

uint8_t *mapfile_create(const char *path, const struct bm_record *record, unsigned granule)
{
	struct header header = {.magic = "BMIRMAP",
				.version = VERSION,
				.granule = granule,
				.size = record->size,
				.generation = record->generation};
	bm_close int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	uint8_t *map;

	if (fd < 0)
		return NULL;
	memcpy(header.disk, record->disk, sizeof(header.disk));
	header.sum = XXH64(&header, offsetof(struct header, sum), VERSION);
	errno = posix_fallocate(fd, 0, (off_t)length(record->size, granule));
	if (errno || pwrite(fd, &header, sizeof(header), 0) != sizeof(header)) {
		int saved = errno ? errno : EIO;

		unlink(path);
		errno = saved;
		return NULL;
	}
	map = mmap(NULL, length(record->size, granule), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED) {
		unlink(path);
		return NULL;
	}
	return map + HEADER;
}

void mapfile_remove(const char *path, uint8_t *map, uint64_t size, unsigned granule)
{
	if (!map)
		return;
	munmap(map - HEADER, length(size, granule));
	unlink(path);
}
