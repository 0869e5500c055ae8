/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The settled map of a running job, in RUN (a tmpfs): a page that says what it is, then a bit per
 * granule, 1 = settled (docs/record.md). It outlives this process when that is killed, and not the
 * host; a process that ends in good order leaves a copy in its folder that does. All its memory is
 * allocated before it is mapped: no store to it can fail (SIGBUS).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
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

static size_t length(const struct disk *d)
{
	return HEADER + bm_mirror_map_bytes(d->record.size, DISK_GRANULE);
}

static struct header header_of(const struct disk *d, uint64_t generation)
{
	struct header header = {.magic = "BMIRMAP",
				.version = VERSION,
				.granule = DISK_GRANULE,
				.size = d->record.size,
				.generation = generation};

	memcpy(header.disk, d->record.disk, sizeof(header.disk));
	header.sum = XXH64(&header, offsetof(struct header, sum), VERSION);
	return header;
}

static uint8_t *map_file(const struct disk *d, int fd)
{
	uint8_t *map = mmap(NULL, length(d), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	return map == MAP_FAILED ? NULL : map + HEADER;
}

uint8_t *mapfile_create(const struct disk *d, uint64_t generation)
{
	struct header header = header_of(d, generation);
	bm_close int fd = open(d->map_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	uint8_t *map = NULL;
	int saved;

	if (fd < 0)
		return NULL;
	errno = posix_fallocate(fd, 0, (off_t)length(d));
	if (!errno && pwrite(fd, &header, sizeof(header), 0) == sizeof(header))
		map = map_file(d, fd);
	saved = errno ? errno : EIO;
	if (!map)
		unlink(d->map_path);
	errno = saved;
	return map;
}

/* What is not whole, or not this disk's, or not of that record, is no map. */
uint8_t *mapfile_open(const struct disk *d, const char *path, uint64_t generation)
{
	struct header wanted = header_of(d, generation), found;
	bm_close int fd = open(path, O_RDWR | O_CLOEXEC);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0 || st.st_size != (off_t)length(d) ||
	    pread(fd, &found, sizeof(found), 0) != sizeof(found) ||
	    memcmp(&found, &wanted, sizeof(found)) != 0 ||
	    posix_fallocate(fd, 0, (off_t)length(d))) /* a hole is a store that may fail */
		return NULL;
	return map_file(d, fd);
}

void mapfile_stamp(const struct disk *d, uint8_t *map, uint64_t generation)
{
	struct header header = header_of(d, generation);

	memcpy(map - HEADER, &header, sizeof(header));
}

void mapfile_copy(const struct disk *d, uint8_t *to, const uint8_t *from)
{
	memcpy(to, from, length(d) - HEADER);
}

int mapfile_save(const struct disk *d, const uint8_t *map)
{
	return bm_write_durably(d->parked_path, map - HEADER, length(d));
}

void mapfile_close(const struct disk *d, uint8_t *map)
{
	if (map)
		munmap(map - HEADER, length(d));
}

void mapfile_remove(const struct disk *d, uint8_t *map)
{
	if (!map)
		return;
	mapfile_close(d, map);
	unlink(d->map_path);
	unlink(d->parked_path);
}
