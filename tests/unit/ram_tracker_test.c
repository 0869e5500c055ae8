/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The trackers, against memory that threads write to at random: who copies what is reported, round
 * after round, has an exact copy in the end. Never a page is missed, and when nobody writes between
 * two takes exactly what was written is reported. KVM's is tested against a KVM of our own here,
 * which protects pages and logs writes as the real one does; /dev/kvm is not needed, nor used.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/ram/tracker.h"

enum { REGIONS = 2, LARGE = 700, SMALL = 67, WRITERS = 2, ROUNDS = 12, WORDS = (LARGE + 63) / 64 };

static const uint64_t sizes[REGIONS] = {LARGE * BM_RAM_PAGE, SMALL *BM_RAM_PAGE};

enum kind { ASYNC, SYNC, KVM_PLAIN, KVM_MANUAL, KINDS };

/* A KVM: a write to a page that is protected is logged, and takes the protection away. */
static struct fake {
	pthread_mutex_t lock;
	bool has_manual, manual, logging[REGIONS], protected[REGIONS][LARGE];
	uint64_t log[REGIONS][WORDS];
	unsigned calls;
} fake = {.lock = PTHREAD_MUTEX_INITIALIZER};

struct rig {
	enum kind kind;
	int shared; /* mapped from a memfd */
	struct bm_ram_region region[REGIONS];
	uint8_t *copy[REGIONS];
	uint64_t *bits[REGIONS];
	struct bm_tracker *tracker;
	atomic_bool end;
	unsigned seed;
};

static void fake_protect(unsigned slot, uint64_t first, uint64_t pages, const uint64_t *bits)
{
	for (uint64_t p = first; p < first + pages; p++) {
		if (bits && !(bits[(p - first) / 64] >> (p - first) % 64 & 1))
			continue;
		fake.log[slot][p / 64] &= ~(1ull << p % 64);
		fake.protected[slot][p] = true;
	}
}

static int fake_call(unsigned long request, void *arg)
{
	const struct kvm_userspace_memory_region *set = arg;
	const struct kvm_dirty_log *get = arg;
	const struct kvm_clear_dirty_log *clear = arg;

	switch (request) {
	case KVM_CHECK_EXTENSION:
		return fake.has_manual ? KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE : 0;
	case KVM_ENABLE_CAP:
		fake.manual = true;
		return 0;
	case KVM_SET_USER_MEMORY_REGION:
		fake.logging[set->slot] = set->flags & KVM_MEM_LOG_DIRTY_PAGES;
		fake_protect(set->slot, 0, set->memory_size / BM_RAM_PAGE, NULL);
		return 0;
	case KVM_GET_DIRTY_LOG:
		memcpy(get->dirty_bitmap, fake.log[get->slot], bm_ram_words(sizes[get->slot]) * 8);
		if (!fake.manual)
			fake_protect(get->slot, 0, sizes[get->slot] / BM_RAM_PAGE, NULL);
		return 0;
	case KVM_CLEAR_DIRTY_LOG:
		if (!fake.manual || clear->first_page % 64 ||
		    clear->first_page + clear->num_pages > sizes[clear->slot] / BM_RAM_PAGE)
			return -EINVAL;
		fake_protect(clear->slot, clear->first_page, clear->num_pages, clear->dirty_bitmap);
		return 0;
	default:
		return -ENOTTY;
	}
}

static int fake_ioctl(int fd, unsigned long request, void *arg)
{
	int r;

	/* Every third one is interrupted first. */
	if (fd != 77 || ++fake.calls % 3 == 0) {
		errno = fd != 77 ? EBADF : EINTR;
		return -1;
	}
	pthread_mutex_lock(&fake.lock);
	r = fake_call(request, arg);
	pthread_mutex_unlock(&fake.lock);
	errno = r < 0 ? -r : 0;
	return r < 0 ? -1 : r;
}

/* What a guest does: one write of a few bytes. */
static void poke(struct rig *rig, unsigned region, uint64_t page, uint64_t value)
{
	uint8_t *at = rig->region[region].host + page * BM_RAM_PAGE + value % 511 * 8;
	bool guest = rig->kind >= KVM_PLAIN;

	if (guest)
		pthread_mutex_lock(&fake.lock);
	if (guest && fake.logging[region] && fake.protected[region][page]) {
		fake.log[region][page / 64] |= 1ull << page % 64;
		fake.protected[region][page] = false;
	}
	__atomic_store_n((uint64_t *)(void *)at, value, __ATOMIC_RELAXED);
	if (guest)
		pthread_mutex_unlock(&fake.lock);
}

static void *write_at_random(void *arg)
{
	struct rig *rig = arg;
	unsigned seed = __atomic_add_fetch(&rig->seed, 7919, __ATOMIC_RELAXED);

	while (!rig->end) {
		unsigned region = (unsigned)rand_r(&seed) % REGIONS;
		uint64_t pages = rig->region[region].size / BM_RAM_PAGE;

		/* Some pages often, so that they are written to in the middle of a take. */
		if (rand_r(&seed) % 2)
			pages = 8;
		poke(rig, region, (unsigned)rand_r(&seed) % pages, (unsigned)rand_r(&seed));
	}
	return NULL;
}

static int make_tracker(struct rig *rig, struct bm_error *error)
{
	static const uint64_t guest[REGIONS] = {0, 1 << 30};

	switch (rig->kind) {
	case ASYNC:
		return bm_tracker_new_async(rig->region, REGIONS, &rig->tracker, error);
	case SYNC:
		return bm_tracker_new_sync(rig->region, REGIONS, &rig->tracker, error);
	default:
		fake.has_manual = rig->kind == KVM_MANUAL;
		fake.manual = false;
		return bm_tracker_new_kvm(77, rig->region, REGIONS, guest, NULL, fake_ioctl,
					  &rig->tracker, error);
	}
}

static void *map(uint64_t size, bool shared)
{
	bm_close int fd = shared ? memfd_create("ram", MFD_CLOEXEC) : -1;
	void *at;

	if (shared)
		assert_int_equal(ftruncate(fd, (off_t)size), 0);
	at = mmap(NULL, size, PROT_READ | PROT_WRITE,
		  shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, fd, 0);
	assert_ptr_not_equal(at, MAP_FAILED);
	return at;
}

/* false: this kernel, or this user, cannot; the test says so. */
static bool set_up(struct rig *rig, enum kind kind, bool shared)
{
	struct bm_error error;

	*rig = (struct rig){.kind = kind, .shared = shared, .seed = (unsigned)time(NULL)};
	printf("# kind %d, %s memory, seed %u\n", kind, shared ? "shared" : "private", rig->seed);
	for (unsigned i = 0; i < REGIONS; i++) {
		rig->region[i] = (struct bm_ram_region){i ? "small" : "large",
							map(sizes[i], shared), sizes[i], i};
		rig->copy[i] = calloc(1, sizes[i]);
		rig->bits[i] = calloc(bm_ram_words(sizes[i]), 8);
	}
	if (!make_tracker(rig, &error))
		return true;
	printf("# not run: %s\n", error.text);
	assert_true(kind < KVM_PLAIN && error.code != BM_E_USAGE);
	return false;
}

static void tear_down(struct rig *rig)
{
	bm_tracker_free(rig->tracker);
	for (unsigned i = 0; i < REGIONS; i++) {
		munmap(rig->region[i].host, rig->region[i].size);
		free(rig->copy[i]);
		free(rig->bits[i]);
	}
}

/* Takes, and copies what is reported; returns how many pages that were. */
static unsigned take(struct rig *rig)
{
	struct bm_error error;
	unsigned pages = 0;

	for (unsigned i = 0; i < REGIONS; i++) {
		memset(rig->bits[i], 0, bm_ram_words(sizes[i]) * 8);
		if (rig->tracker->ops->take(rig->tracker, i, rig->bits[i], &error))
			fail_msg("%s", error.text);
		for (uint64_t p = 0; p < bm_ram_words(sizes[i]) * 64; p++) {
			if (!(rig->bits[i][p / 64] >> p % 64 & 1))
				continue;
			assert_true(p < sizes[i] / BM_RAM_PAGE);
			memcpy(rig->copy[i] + p * BM_RAM_PAGE,
			       rig->region[i].host + p * BM_RAM_PAGE, BM_RAM_PAGE);
			pages++;
		}
	}
	return pages;
}

static void start(struct rig *rig)
{
	struct bm_error error;

	if (rig->tracker->ops->start(rig->tracker, &error))
		fail_msg("%s", error.text);
	for (unsigned i = 0; i < REGIONS; i++)
		memcpy(rig->copy[i], rig->region[i].host, sizes[i]);
}

static void assert_same(const struct rig *rig)
{
	for (unsigned i = 0; i < REGIONS; i++)
		assert_memory_equal(rig->copy[i], rig->region[i].host, sizes[i]);
}

static void run_writers(struct rig *rig)
{
	pthread_t thread[WRITERS];
	unsigned pages = 0;

	rig->end = false;
	for (int i = 0; i < WRITERS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, write_at_random, rig), 0);
	start(rig);
	for (int round = 0; round < ROUNDS; round++) {
		usleep(10000);
		pages += take(rig);
	}
	rig->end = true;
	for (int i = 0; i < WRITERS; i++)
		pthread_join(thread[i], NULL);
	pages += take(rig);
	printf("# %u pages in %d rounds\n", pages, ROUNDS + 1);
	assert_true(pages > ROUNDS);
	assert_same(rig);
	assert_int_equal(take(rig), 0);
}

/* Memory that nobody has touched yet, twice: a tracker that was stopped starts anew. */
static void no_page_is_missed(enum kind kind, bool shared)
{
	struct rig rig;

	if (set_up(&rig, kind, shared)) {
		run_writers(&rig);
		rig.tracker->ops->stop(rig.tracker);
		run_writers(&rig);
	}
	tear_down(&rig);
}

static void exactly_what_was_written(enum kind kind, bool shared)
{
	struct rig rig;

	if (!set_up(&rig, kind, shared)) {
		tear_down(&rig);
		return;
	}
	start(&rig);
	take(&rig); /* what was never there may be reported once */
	for (int round = 0; round < 20; round++) {
		uint64_t expected[REGIONS][WORDS] = {{0}};

		for (int i = rand_r(&rig.seed) % 200; i >= 0; i--) {
			unsigned region = (unsigned)rand_r(&rig.seed) % REGIONS;
			uint64_t page = (unsigned)rand_r(&rig.seed) % (sizes[region] / BM_RAM_PAGE);

			expected[region][page / 64] |= 1ull << page % 64;
			poke(&rig, region, page, (unsigned)rand_r(&rig.seed));
		}
		take(&rig);
		for (unsigned i = 0; i < REGIONS; i++)
			assert_memory_equal(rig.bits[i], expected[i], bm_ram_words(sizes[i]) * 8);
		assert_same(&rig);
	}
	tear_down(&rig);
}

static void of_every_kind(void (*test)(enum kind kind, bool shared))
{
	for (enum kind kind = 0; kind < KINDS; kind++) {
		test(kind, false);
		if (kind < KVM_PLAIN)
			test(kind, true);
	}
}

static void who_copies_what_is_reported_has_all(void **state)
{
	(void)state;
	of_every_kind(no_page_is_missed);
}

static void what_is_reported_was_written_to(void **state)
{
	(void)state;
	of_every_kind(exactly_what_was_written);
}

/*
 * Writers that wait for the tracker go on when it is stopped. Taking away the registration does not
 * wake them (Linux 6.18, fs/userfaultfd.c: only those that miss a page).
 */
static void stops_under_writers(enum kind kind, bool shared)
{
	pthread_t thread[WRITERS];
	struct rig rig;

	if (set_up(&rig, kind, shared)) {
		for (int i = 0; i < WRITERS; i++)
			pthread_create(&thread[i], NULL, write_at_random, &rig);
		for (int round = 0; round < 60; round++) {
			start(&rig);
			usleep(1000);
			rig.tracker->ops->stop(rig.tracker);
		}
		rig.end = true;
		alarm(20); /* a writer that is held for ever */
		for (int i = 0; i < WRITERS; i++)
			pthread_join(thread[i], NULL);
		alarm(0);
	}
	tear_down(&rig);
}

static void a_tracker_that_is_stopped_holds_nobody(void **state)
{
	(void)state;
	of_every_kind(stops_under_writers);
}

/* What the kernel writes for the process, and memory that is given back. */
static void other_ways_to_change_memory(void **state)
{
	(void)state;
	for (enum kind kind = ASYNC; kind <= SYNC; kind++) {
		bm_close int zero = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
		struct rig rig;

		if (set_up(&rig, kind, false)) {
			for (unsigned p = 0; p < LARGE; p++)
				poke(&rig, 0, p, p + 1);
			start(&rig);
			take(&rig);
			assert_int_equal(read(zero, rig.region[0].host + 5 * BM_RAM_PAGE, 8192),
					 8192);
			if (kind == ASYNC) /* it alone can know */
				madvise(rig.region[0].host + 64 * BM_RAM_PAGE, 2 * BM_RAM_PAGE,
					MADV_DONTNEED);
			assert_int_equal(take(&rig), kind == ASYNC ? 4 : 2);
			assert_same(&rig);
		}
		tear_down(&rig);
	}
}

static void what_cannot_be_tracked_is_refused(void **state)
{
	uint8_t *ram = map(2 * BM_RAM_PAGE, false);
	const struct bm_ram_region bad[] = {{"odd", ram + 1, BM_RAM_PAGE, 0},
					    {"long", ram, BM_RAM_PAGE + 1, 0},
					    {"empty", ram, 0, 0}};
	const struct bm_ram_region good = {"good", ram, BM_RAM_PAGE, 0};
	struct bm_tracker *tracker = NULL;
	struct bm_error error = {0};
	uint64_t guest = 0;

	(void)state;
	for (int i = 0; i < 3; i++) {
		assert_int_equal(bm_tracker_new(&bad[i], 1, &tracker, &error), -EINVAL);
		assert_int_equal(error.code, BM_E_USAGE);
	}
	assert_int_equal(bm_tracker_new(&good, 0, &tracker, &error), -EINVAL);
	assert_int_equal(bm_tracker_new(&good, BM_RAM_REGIONS + 1, &tracker, &error), -EINVAL);
	/* A KVM that fails says so when it is asked. */
	assert_int_equal(
		bm_tracker_new_kvm(78, &good, 1, &guest, NULL, fake_ioctl, &tracker, &error), 0);
	assert_true(tracker->ops->start(tracker, &error) < 0);
	assert_non_null(strstr(error.text, "dirty log"));
	bm_tracker_free(tracker);
	bm_tracker_free(NULL);
	munmap(ram, 2 * BM_RAM_PAGE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(who_copies_what_is_reported_has_all),
		cmocka_unit_test(what_is_reported_was_written_to),
		cmocka_unit_test(a_tracker_that_is_stopped_holds_nobody),
		cmocka_unit_test(other_ways_to_change_memory),
		cmocka_unit_test(what_cannot_be_tracked_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
