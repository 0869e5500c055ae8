/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The settled map of a running job, as files (docs/record.md): a page that says what it is, then a
 * bit per granule, 1 = settled. One is in RUN, a tmpfs, and mapped: it outlives this process when
 * that is killed, and not the host. All its memory is allocated before it is mapped: no store to it
 * can fail (SIGBUS). The other one, the checkpoint, is in the disk's folder, and outlives the host.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/disk/disk.h"

enum { HEADER = 4096, VERSION = 2 };

/* Little-endian hosts only, as all that run QEMU guests of interest; the magic tells. */
struct header {
	char magic[8];
	uint32_t version, granule;
	uint64_t size, generation;
	char disk[32];
	uint64_t id;  /* of the checkpoint; 0 in RUN */
	uint64_t sum; /* XXH64 of all before it */
};

static size_t length(const struct disk *d)
{
	return HEADER + bm_mirror_map_bytes(d->record.size, DISK_GRANULE);
}

static struct header header_of(const struct disk *d, uint64_t generation, uint64_t id)
{
	struct header header = {.magic = "BMIRMAP",
				.version = VERSION,
				.granule = DISK_GRANULE,
				.size = d->record.size,
				.generation = generation,
				.id = id};

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
	struct header header = header_of(d, generation, 0);
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
static int read_header(const struct disk *d, int fd, uint64_t generation, struct header *found)
{
	struct header wanted;
	struct stat st;

	if (fstat(fd, &st) < 0 || pread(fd, found, sizeof(*found), 0) < 0)
		return -errno;
	wanted = header_of(d, generation, found->id);
	return st.st_size == (off_t)length(d) && !memcmp(found, &wanted, sizeof(wanted)) ? 0
											 : -ENOENT;
}

uint8_t *mapfile_open(const struct disk *d, uint64_t generation)
{
	struct header found = {.id = 0};
	bm_close int fd = open(d->map_path, O_RDWR | O_CLOEXEC);

	if (fd < 0 || read_header(d, fd, generation, &found) < 0 ||
	    posix_fallocate(fd, 0, (off_t)length(d))) /* a hole is a store that may fail */
		return NULL;
	return map_file(d, fd);
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
	unlink(d->checkpoint_path);
}

/* The checkpoint. It is not mapped: its device may fail, and a page that cannot be read kills. */

int mapfile_save(const struct disk *d, uint64_t generation, uint64_t id, const uint8_t *map)
{
	struct header header = header_of(d, generation, id);
	bm_free uint8_t *all = calloc(1, length(d));
	bm_free char *beside = NULL;
	int r, fd;

	if (!all || asprintf(&beside, "%s.new", d->checkpoint_path) < 0)
		return -ENOMEM;
	memcpy(all, &header, sizeof(header));
	if (map)
		memcpy(all + HEADER, map, length(d) - HEADER);
	r = bm_write_durably(beside, all, length(d));
	if (!r)
		r = bm_rename_durably(beside, d->checkpoint_path);
	if (r < 0)
		return r;
	fd = open(d->checkpoint_path, O_RDWR | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int write_at(int fd, const uint64_t *word, size_t count, uint64_t extent)
{
	off_t at = (off_t)(HEADER + extent * sizeof(*word));
	ssize_t n = pwrite(fd, word, count * sizeof(*word), at);

	if (n < 0)
		return -errno;
	return n == (ssize_t)(count * sizeof(*word)) ? 0 : -EIO;
}

int mapfile_change(int fd, const struct bm_claim *v, unsigned count)
{
	uint64_t word[64];
	int r = 0;

	for (unsigned i = 0; i < count && !r;) {
		unsigned n = 0;

		do
			word[n] = v[i + n].settled;
		while (++n < 64 && i + n < count && v[i + n].extent == v[i].extent + n);
		r = write_at(fd, word, n, v[i].extent);
		i += n;
	}
	return r || !fdatasync(fd) ? r : -errno;
}

/* What the kernel remembers of it is made durable: a process that was killed may have left more. */
static int read_bits(const struct disk *d, int fd, uint8_t *map)
{
	ssize_t n = pread(fd, map, length(d) - HEADER, HEADER);

	if (n < 0 || fdatasync(fd) < 0)
		return -errno;
	return (size_t)n == length(d) - HEADER ? 0 : -EIO;
}

int mapfile_load(const struct disk *d, uint64_t generation, uint64_t *id, uint8_t **map)
{
	bm_close int fd = open(d->checkpoint_path, O_RDWR | O_CLOEXEC);
	bm_free uint8_t *bits = calloc(1, length(d));
	struct header found = {.id = 0};
	int r;

	if (fd < 0 || !bits)
		return fd < 0 ? -errno : -ENOMEM;
	r = read_header(d, fd, generation, &found);
	if (!r)
		r = read_bits(d, fd, bits);
	if (r < 0)
		return r;
	*id = found.id;
	*map = bm_steal(bits);
	return bm_steal_fd(fd);
}
