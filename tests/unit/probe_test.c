/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Trying out a new image's file system: real ones, beside this program and in memory, and storage
 * that is particular, fails or lies, which is staged between the code under test and the kernel.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { KIB = 1 << 10, MIB = 1 << 20, FLUSHES_AT_MOST = 32 };

/* What is staged; all zero: nothing, the kernel answers. */
struct stage {
	bool on;
	bool no_direct;               /* open() refuses O_DIRECT */
	bool told_nothing, told_none; /* statx() does not speak of it; says that there is none */
	unsigned told, block;         /* what statx() says of its alignment, and what is true */
	int write_error, read_error, flush_error, punch_error, zero_error, cut_error;
	bool punch_idle, zero_idle, cut_idle; /* nothing is done, and that was it */
	bool punch_wide;                      /* a hole of 4 KiB too many */
	bool no_extents;                      /* SEEK_DATA takes holes for data */
	bool tail_from_head;                  /* a read that goes astray */
	bool deaf;                            /* a read that leaves the buffer as it is */
	bool halting;                         /* calls are interrupted, and do but a part */
	uint64_t lost;                        /* writes of this byte do nothing */
	bool bad;                             /* bad_byte is read as another one, after ... */
	uint64_t bad_byte;
	int bad_after; /* ... so many fallocate() calls */
	bool clock;    /* it stands still but while it is written and flushed */
	uint64_t flush_ns[FLUSHES_AT_MOST];
};

static struct stage stage;
static int fallocates, flushes, halts;
/* What was done may be in the cache, whose word is no proof; is on the disk. */
static bool cached, flushed;
static uint64_t image_size, now_ns, first_word;

static int fails(int error)
{
	errno = error;
	return -1;
}

static bool misaligned(int fd, const void *data, size_t length, off_t at)
{
	return stage.block && fcntl(fd, F_GETFL) & O_DIRECT &&
	       ((uintptr_t)data | length | (uint64_t)at) % stage.block;
}

/* Every other call is interrupted; else no more than this can be done. */
static size_t part(size_t length)
{
	if (!stage.halting)
		return length;
	return ++halts % 2 ? 0 : length < 64 * KIB ? length : 64 * KIB;
}

static void change(void)
{
	cached = true;
	flushed = false;
}

static int staged_open(const char *path, int flags)
{
	return stage.no_direct && flags & O_DIRECT ? fails(EINVAL) : open(path, flags);
}

static int staged_statx(int fd, const char *path, int flags, unsigned mask, struct statx *x)
{
	int r = statx(fd, path, flags, mask, x);

	if (stage.told_nothing)
		x->stx_mask &= ~STATX_DIOALIGN;
	if (stage.told || stage.told_none) {
		x->stx_mask |= STATX_DIOALIGN;
		x->stx_dio_offset_align = stage.told;
	}
	return r;
}

static ssize_t staged_pwrite(int fd, const void *data, size_t length, off_t at)
{
	uint64_t begin = (uint64_t)at, end = begin + length;

	assert_true(end <= image_size && !(begin % 512) && !(end % 512));
	assert_true(end <= MIB || begin >= image_size - 64 * KIB);
	now_ns += 1000000000;
	change();
	length = part(length);
	if (!length)
		return fails(EINTR);
	if (!begin)
		memcpy(&first_word, data, sizeof(first_word));
	if (stage.write_error || misaligned(fd, data, length, at))
		return fails(stage.write_error ? stage.write_error : EINVAL);
	if (stage.lost && begin <= stage.lost && stage.lost < end)
		return (ssize_t)length;
	return pwrite(fd, data, length, at);
}

static ssize_t staged_pread(int fd, void *data, size_t length, off_t at)
{
	uint64_t begin = (uint64_t)at;
	ssize_t n;

	assert_false(cached && !(fcntl(fd, F_GETFL) & O_DIRECT));
	length = part(length);
	if (!length)
		return fails(EINTR);
	if (stage.read_error || misaligned(fd, data, length, at))
		return fails(stage.read_error ? stage.read_error : EINVAL);
	if (stage.deaf)
		return (ssize_t)length;
	n = pread(fd, data, length, stage.tail_from_head && at >= MIB ? 0 : at);
	if (stage.bad && fallocates == stage.bad_after && begin <= stage.bad_byte &&
	    stage.bad_byte < begin + length)
		((uint8_t *)data)[stage.bad_byte - begin] ^= 0x10;
	return n;
}

static int staged_fallocate(int fd, int mode, off_t at, off_t length)
{
	int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	bool punches = mode & FALLOC_FL_PUNCH_HOLE;
	int error = punches ? stage.punch_error : stage.zero_error;

	assert_true(mode & FALLOC_FL_KEEP_SIZE && (uint64_t)at + (uint64_t)length <= image_size);
	if (!part(1))
		return fails(EINTR);
	fallocates++;
	change();
	if (error)
		return fails(error);
	if (punches ? stage.punch_idle : stage.zero_idle)
		return 0;
	if (punches && stage.punch_wide)
		length += 4 * KIB;
	/* Not every file system can zero: a staged one can. */
	return fallocate(fd, stage.on ? punch : mode, at, length);
}

static int staged_posix_fadvise(int fd, off_t at, off_t length, int advice)
{
	cached = cached && !(flushed && !at && !length && advice == POSIX_FADV_DONTNEED);
	return posix_fadvise(fd, at, length, advice);
}

static int staged_fdatasync(int fd)
{
	flushed = true;
	assert_true(flushes < FLUSHES_AT_MOST);
	now_ns += stage.flush_ns[flushes++];
	return stage.flush_error ? fails(stage.flush_error) : fdatasync(fd);
}

static int staged_ftruncate(int fd, off_t size)
{
	change();
	if (stage.cut_error)
		return fails(stage.cut_error);
	return stage.cut_idle ? 0 : ftruncate(fd, size);
}

static off_t staged_lseek(int fd, off_t at, int whence)
{
	return stage.no_extents && whence == SEEK_DATA ? 0 : lseek(fd, at, whence);
}

static int staged_clock_gettime(clockid_t clock, struct timespec *t)
{
	if (!stage.clock)
		return clock_gettime(clock, t);
	*t = (struct timespec){(time_t)(now_ns / 1000000000), (long)(now_ns % 1000000000)};
	return 0;
}

/* With nothing staged they do what the kernel does, also for the tests. */
#define open(path, flags)         staged_open(path, flags)
#define statx(f, p, fl, m, x)     staged_statx(f, p, fl, m, x)
#define pwrite(f, d, l, a)        staged_pwrite(f, d, l, a)
#define pread(f, d, l, a)         staged_pread(f, d, l, a)
#define fallocate(f, m, a, l)     staged_fallocate(f, m, a, l)
#define posix_fadvise(f, a, l, v) staged_posix_fadvise(f, a, l, v)
#define fdatasync(f)              staged_fdatasync(f)
#define ftruncate(f, s)           staged_ftruncate(f, s)
#define lseek(f, a, w)            staged_lseek(f, a, w)
#define clock_gettime(c, t)       staged_clock_gettime(c, t)
#include "blockmirror/daemon/probe.c"

static char beside[PATH_MAX], in_memory[] = "/dev/shm/blockmirror-probe.XXXXXX";
static const char *folder; /* one of them */
static char image[PATH_MAX + 16];
static bool direct; /* there is direct I/O beside this program */

static void remove_image(void)
{
	snprintf(image, sizeof(image), "%s/image", folder);
	unlink(image);
}

static void make_image(uint64_t size)
{
	int fd;

	remove_image();
	fd = creat(image, 0600);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	close(fd);
}

static void assert_empty(uint64_t size)
{
	int fd = open(image, O_RDONLY | O_CLOEXEC);
	struct stat st;

	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, size);
	assert_true(!st.st_blocks || (lseek(fd, 0, SEEK_DATA) < 0 && errno == ENXIO));
	close(fd);
}

/* Of a new image, with that on the stage. */
static int probed(const struct stage *s, uint64_t size, struct probe *p, struct bm_error *error)
{
	int r;

	make_image(size);
	if (s)
		stage = *s;
	stage.on = s;
	image_size = size;
	now_ns = 0;
	fallocates = flushes = halts = 0;
	*error = (struct bm_error){0};
	memset(p, 0, sizeof(*p));
	r = probe_image(image, size, p, error);
	stage = (struct stage){0};
	return r;
}

static void assert_probes(const struct stage *s, uint64_t size, struct probe *p)
{
	struct bm_error error;
	int r = probed(s, size, p, &error);

	if (r)
		fail_msg("%ju bytes: %d, %s", (uintmax_t)size, r, error.text);
	assert_empty(size);
}

static void assert_file_system(void)
{
	static const uint64_t sizes[] = {512,       1024,      4096,        12 * KIB,
					 MIB - 512, MIB + 512, 100ull * MIB};

	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		struct probe p;

		assert_probes(NULL, sizes[i], &p);
		assert_true(!p.block || (p.block >= 512 && p.block <= 64 * KIB));
		assert_true(!p.block || !(sizes[i] % p.block));
		assert_true(p.flush_ns > 0 && p.flush_ns < 60000000000ull);
		print_message("# %s, %ju bytes: block %u, punch %d, zero %d, flush %ju ns\n",
			      folder, (uintmax_t)sizes[i], p.block, p.punch, p.zero,
			      (uintmax_t)p.flush_ns);
	}
}

/* cmocka 1.1.5's skip() says "not ok", which tests/run takes for a failure. */
static void left_out(const char *why)
{
	print_message("# left out: %s\n", why);
}

static void a_file_system_is_found_out(void **state)
{
	(void)state;
	assert_file_system();
}

static void so_is_one_in_memory(void **state)
{
	(void)state;
	if (!mkdtemp(in_memory)) {
		left_out("no /dev/shm");
		return;
	}
	folder = in_memory;
	assert_file_system();
}

static void alignment_is_found_by_trying(void **state)
{
	static const struct {
		struct stage stage;
		uint64_t size;
		unsigned block;
	} rows[] = {
		{{.block = 4 * KIB, .told_nothing = true}, MIB, 4 * KIB},
		{{.block = 4 * KIB, .told_nothing = true}, 4 * KIB, 4 * KIB},
		{{.block = 64 * KIB, .told_nothing = true}, MIB + 64 * KIB, 64 * KIB},
		{{.block = 64 * KIB, .told = 1}, 64 * KIB, 64 * KIB},
		{{.block = 8 * KIB, .told = 4 * KIB}, 100 * MIB, 8 * KIB}, /* told too little */
		{{.told = 4 * KIB}, MIB, 4 * KIB},
		/* The page cache is used: direct I/O cannot reach the end, or there is none. */
		{{.block = 4 * KIB, .told_nothing = true}, 512, 0},
		{{.block = 4 * KIB, .told_nothing = true}, MIB + 512, 0},
		{{.told = 4 * KIB}, MIB + 512, 0},
		{{.block = 128 * KIB}, MIB, 0},
		{{.told = 128 * KIB}, MIB, 0},
		{{.told_none = true}, MIB, 0},
		{{.no_direct = true}, MIB, 0},
		{{.no_direct = true}, 512, 0},
	};
	struct probe p;

	(void)state;
	if (!direct) {
		left_out("no direct I/O here");
		return;
	}
	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		assert_probes(&rows[i].stage, rows[i].size, &p);
		if (p.block != rows[i].block)
			fail_msg("row %zu: block %u, not %u", i, p.block, rows[i].block);
		assert_true(p.punch && p.zero);
	}
}

static void what_a_file_system_cannot_do_is_no_failure(void **state)
{
	struct probe p;

	(void)state;
	assert_probes(&(struct stage){.punch_error = EOPNOTSUPP}, MIB, &p);
	assert_true(!p.punch && p.zero);
	assert_probes(&(struct stage){.zero_error = EOPNOTSUPP}, MIB, &p);
	assert_true(p.punch && !p.zero);
	assert_probes(&(struct stage){.no_extents = true}, 100 * MIB, &p); /* it is read */
}

/* Of those that follow the two ends' writes, which may take longer, and of nothing else. */
static void the_middle_flush_is_told(void **state)
{
	struct stage s = {.clock = true, .flush_ns = {900, 900, 500, 100, 990, 300, 700, 200, 800}};
	struct probe p;

	(void)state;
	for (int i = 9; i < FLUSHES_AT_MOST; i++)
		s.flush_ns[i] = 5;
	assert_probes(&s, MIB, &p);
	assert_int_equal(p.flush_ns, 500);
}

static void no_two_trials_write_the_same(void **state)
{
	uint64_t before;
	struct probe p;

	(void)state;
	assert_probes(NULL, MIB, &p);
	before = first_word;
	assert_probes(NULL, MIB, &p);
	assert_true(before && first_word != before);
}

#define BIG    (100ull * MIB)
#define BACK   "does not read back what was written at "
#define ZEROS  "does not read as zeros what was made so at "
#define CANNOT "image: cannot "
static const struct {
	struct stage stage;
	const char *text;
	enum bm_code code;
	bool stays; /* what was written */
} failures[] = {
	{{.bad = true, .bad_byte = 0}, BACK "0", BM_E_IO, false},
	{{.bad = true, .bad_byte = 777777}, BACK "777777", BM_E_IO, false},
	{{.bad = true, .bad_byte = MIB - 1}, BACK "1048575", BM_E_IO, false},
	{{.bad = true, .bad_byte = BIG - 64 * KIB}, BACK "104792064", BM_E_IO, false},
	{{.bad = true, .bad_byte = BIG - 1}, BACK "104857599", BM_E_IO, false},
	{{.lost = 777777}, BACK, BM_E_IO, false},
	{{.lost = BIG - 1}, BACK, BM_E_IO, false}, /* where, is chance: a byte may be right */
	{{.tail_from_head = true}, BACK, BM_E_IO, false},
	{{.deaf = true}, BACK, BM_E_IO, false},
	/* The first hole, and then zeros, from 256 to 768 KiB; what is beside them. */
	{{.bad = true, .bad_byte = 262144, .bad_after = 1}, ZEROS "262144", BM_E_IO, false},
	{{.bad = true, .bad_byte = 786431, .bad_after = 2}, ZEROS "786431", BM_E_IO, false},
	{{.bad = true, .bad_byte = 262143, .bad_after = 1}, BACK "262143", BM_E_IO, false},
	{{.bad = true, .bad_byte = 786432, .bad_after = 2}, BACK "786432", BM_E_IO, false},
	{{.punch_idle = true}, ZEROS "262144", BM_E_IO, false},
	{{.zero_idle = true}, ZEROS "262144", BM_E_IO, false},
	{{.punch_wide = true}, BACK "786432", BM_E_IO, false},
	{{.write_error = EIO}, CANNOT "write", BM_E_IO, false},
	{{.read_error = EIO, .no_direct = true}, CANNOT "read", BM_E_IO, false},
	{{.flush_error = EIO}, CANNOT "flush", BM_E_IO, false},
	{{.punch_error = EIO}, CANNOT "punch a hole", BM_E_IO, false},
	{{.zero_error = EPERM}, CANNOT "make a range zero", BM_E_IO, false},
	{{.write_error = ENOSPC}, "make room", BM_E_ENOSPC, false},
	{{.flush_error = ENOSPC}, "make room", BM_E_ENOSPC, false},
	{{.flush_error = EDQUOT}, "make room", BM_E_ENOSPC, false},
	{{.cut_error = EIO}, CANNOT "cut off", BM_E_IO, true},
	{{.cut_idle = true}, ZEROS "0", BM_E_IO, true},
	{{.cut_idle = true, .bad = true}, BACK "0", BM_E_IO, true}, /* the first is told */
};

static void what_fails_is_told(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(failures) / sizeof(*failures); i++) {
		struct bm_error error;
		struct probe p;
		int r = probed(&failures[i].stage, BIG, &p, &error);
		const char *at = strstr(error.text, failures[i].text);
		size_t length = strlen(failures[i].text);

		if (r >= 0 || error.code != failures[i].code || !at)
			fail_msg("row %zu, %s: %d, %s", i, failures[i].text, r, error.text);
		/* A number that was to be told is told to its end. */
		if (strchr("0123456789", failures[i].text[length - 1]))
			assert_int_equal(at[length], '\0');
		assert_false(p.block || p.punch || p.zero || p.flush_ns);
		if (!failures[i].stays)
			assert_empty(BIG);
	}
}

/* Through a buffer that has in it what ought to be read. */
static void a_read_that_does_nothing_is_noticed(void **state)
{
	struct stage s = {.deaf = true, .punch_error = EOPNOTSUPP, .zero_error = EOPNOTSUPP};
	struct bm_error error;
	struct probe p;

	(void)state;
	assert_int_equal(probed(&s, 4 * KIB, &p, &error), -EIO);
	assert_non_null(strstr(error.text, BACK));
	assert_empty(4 * KIB);
}

static void calls_that_do_a_part_are_gone_on_with(void **state)
{
	struct probe p;

	(void)state;
	assert_probes(&(struct stage){.halting = true}, 100 * MIB, &p);
	assert_true(p.punch && p.zero);
	assert_probes(&(struct stage){.halting = true, .no_direct = true, .no_extents = true}, MIB,
		      &p);
	assert_true(p.punch && p.zero && !p.block);
}

static void assert_refused(const char *path, uint64_t size, enum bm_code code)
{
	struct bm_error error = {0};
	struct probe p;

	assert_true(probe_image(path, size, &p, &error) < 0);
	assert_int_equal(error.code, code);
	assert_non_null(strstr(error.text, path));
	assert_true(probe_image(path, size, &p, NULL) < 0);
}

static void what_is_no_new_image_is_left_alone(void **state)
{
	char path[PATH_MAX + 32], data[1024];
	int fd;

	(void)state;
	make_image(0);
	fd = open(image, O_RDWR | O_CLOEXEC);
	memset(data, 'x', sizeof(data));
	assert_int_equal(write(fd, data, sizeof(data)), sizeof(data));
	assert_refused(image, 512, BM_E_SIZE);
	assert_refused(image, 2048, BM_E_SIZE);
	memset(data, 0, sizeof(data));
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	assert_int_equal(read(fd, data, sizeof(data)), sizeof(data));
	for (size_t i = 0; i < sizeof(data); i++)
		assert_int_equal(data[i], 'x');
	assert_int_equal(ftruncate(fd, 700), 0);
	assert_refused(image, 700, BM_E_SIZE);
	assert_int_equal(ftruncate(fd, 0), 0);
	assert_refused(image, 0, BM_E_SIZE);
	close(fd);
	assert_refused(folder, 512, BM_E_NOT_IMAGE);
	assert_refused("/dev/null", 512, BM_E_NOT_IMAGE);
	snprintf(path, sizeof(path), "%s/nothing", folder);
	assert_refused(path, 512, BM_E_NOT_FOUND);
}

/* In a mount namespace of our own, so that it goes with this process. */
static void a_full_file_system_is_told(void **state)
{
	struct bm_error error;
	struct probe p;
	int r;

	(void)state;
	remove_image();
	if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("none", folder, "tmpfs", 0, "size=64k") < 0) {
		left_out("no mounts of our own");
		return;
	}
	r = probed(NULL, MIB, &p, &error);
	if (r != -ENOSPC || error.code != BM_E_ENOSPC || !strstr(error.text, "make room"))
		fail_msg("%d, %s", r, error.text);
	assert_empty(MIB);
	assert_probes(NULL, 32 * KIB, &p); /* all room is there again */
	assert_int_equal(umount(folder), 0);
}

static int be_beside(void **state)
{
	(void)state;
	folder = beside;
	return 0;
}

static int make_folder(void **state)
{
	ssize_t n = readlink("/proc/self/exe", beside, sizeof(beside) - sizeof(".XXXXXX"));
	struct bm_error error;
	struct probe p;

	if (n < 0)
		return -1;
	strcpy(beside + n, ".XXXXXX");
	if (!mkdtemp(beside))
		return -1;
	be_beside(state);
	direct = !probed(NULL, MIB, &p, &error) && p.block;
	return 0;
}

static int remove_folders(void **state)
{
	folder = in_memory;
	remove_image();
	rmdir(in_memory);
	be_beside(state);
	remove_image();
	return rmdir(beside);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_file_system_is_found_out),
		cmocka_unit_test_setup_teardown(so_is_one_in_memory, NULL, be_beside),
		cmocka_unit_test(alignment_is_found_by_trying),
		cmocka_unit_test(what_a_file_system_cannot_do_is_no_failure),
		cmocka_unit_test(the_middle_flush_is_told),
		cmocka_unit_test(no_two_trials_write_the_same),
		cmocka_unit_test(what_fails_is_told),
		cmocka_unit_test(a_read_that_does_nothing_is_noticed),
		cmocka_unit_test(calls_that_do_a_part_are_gone_on_with),
		cmocka_unit_test(what_is_no_new_image_is_left_alone),
		cmocka_unit_test(a_full_file_system_is_told),
	};

	return cmocka_run_group_tests(tests, make_folder, remove_folders);
}
