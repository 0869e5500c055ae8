// SPDX-License-Identifier: BSD-3-Clause
/*
 * Tracking by KVM: its dirty log, a bitmap for each slot. Where KVM has
 * KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 the log is read first and cleared by its own call, which
 * protects only what was set; else reading clears. Either way the bits are taken before their
 * pages are read: what is written later is in the next log.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "blockmirror/base/list.h"
#include "blockmirror/ram/tracker.h"

struct kvm {
	struct bm_tracker tracker;
	int vm;
	bool manual, started;
	bm_kvm_ioctl *call;
	unsigned count;
	struct kvm_userspace_memory_region slot[BM_RAM_REGIONS]; /* flags: without logging */
	uint64_t *log[BM_RAM_REGIONS];
};

static struct kvm *of(struct bm_tracker *tracker)
{
	return bm_container(tracker, struct kvm, tracker);
}

static int plain_ioctl(int fd, unsigned long request, void *arg)
{
	return ioctl(fd, request, arg);
}

static int call(struct kvm *k, unsigned long request, void *arg)
{
	int r;

	do {
		r = k->call(k->vm, request, arg);
	} while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : r;
}

static int log_slot(struct kvm *k, unsigned region, bool on)
{
	struct kvm_userspace_memory_region slot = k->slot[region];

	if (on)
		slot.flags |= KVM_MEM_LOG_DIRTY_PAGES;
	return call(k, KVM_SET_USER_MEMORY_REGION, &slot);
}

/* KVM takes whole words of 64 pages, but for the end of a slot. */
static int clear_log(struct kvm *k, unsigned region)
{
	const uint64_t pages = k->slot[region].memory_size / BM_RAM_PAGE;
	struct kvm_clear_dirty_log clear = {
		.slot = k->slot[region].slot,
		.num_pages = (uint32_t)pages,
		.first_page = 0,
		.dirty_bitmap = k->log[region],
	};

	return call(k, KVM_CLEAR_DIRTY_LOG, &clear);
}

static int take(struct bm_tracker *tracker, unsigned region, uint64_t *bits, struct bm_error *error)
{
	struct kvm *k = of(tracker);
	struct kvm_dirty_log log = {.slot = k->slot[region].slot, .dirty_bitmap = k->log[region]};
	const uint64_t words = bm_ram_words(k->slot[region].memory_size);
	int r;

	memset(k->log[region], 0, words * sizeof(*bits));
	r = call(k, KVM_GET_DIRTY_LOG, &log);
	if (!r && k->manual)
		r = clear_log(k, region);
	if (r < 0)
		return bm_fail_errno(error, r, "cannot read KVM's dirty log of slot %u", log.slot);
	for (uint64_t i = 0; i < words; i++)
		bits[i] |= k->log[region][i];
	return 0;
}

static void stop(struct bm_tracker *tracker)
{
	struct kvm *k = of(tracker);

	for (unsigned i = 0; k->started && i < k->count; i++)
		log_slot(k, i, false);
	k->started = false;
}

static int start(struct bm_tracker *tracker, struct bm_error *error)
{
	struct kvm *k = of(tracker);
	int r = 0;

	k->started = true;
	for (unsigned i = 0; !r && i < k->count; i++)
		r = log_slot(k, i, true);
	if (!r)
		return 0;
	stop(tracker);
	return bm_fail_errno(error, r, "cannot switch KVM's dirty log on");
}

static void free_kvm(struct bm_tracker *tracker)
{
	struct kvm *k = of(tracker);

	for (unsigned i = 0; i < k->count; i++)
		free(k->log[i]);
	free(k);
}

static const struct bm_tracker_ops ops = {"kvm", start, take, stop, free_kvm};

/*
 * Without KVM_DIRTY_LOG_INITIALLY_SET: with it the first log has every page and protects none
 * until it is cleared, which saves time on large machines, and round 0 sends all anyway.
 */
static void ask_manual(struct kvm *k)
{
	struct kvm_enable_cap cap = {.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
				     .args = {KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE}};
	int has =
		call(k, KVM_CHECK_EXTENSION, (void *)(uintptr_t)KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);

	k->manual = has > 0 && has & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE &&
		    !call(k, KVM_ENABLE_CAP, &cap);
}

int bm_tracker_new_kvm(int vm_fd, const struct bm_ram_region *regions, unsigned count,
		       const uint64_t *guest, const uint32_t *flags, bm_kvm_ioctl *ioctl_call,
		       struct bm_tracker **tracker, struct bm_error *error)
{
	struct kvm *k;
	int r = bm_ram_check(regions, count, error);

	if (r < 0)
		return r;
	k = calloc(1, sizeof(*k));
	if (!k)
		return bm_fail_errno(error, ENOMEM, "tracker");
	k->tracker.ops = &ops;
	k->vm = vm_fd;
	k->call = ioctl_call ? ioctl_call : plain_ioctl;
	k->count = count;
	for (unsigned i = 0; i < count; i++) {
		k->slot[i] = (struct kvm_userspace_memory_region){
			regions[i].slot, flags ? flags[i] : 0, guest[i], regions[i].size,
			(uintptr_t)regions[i].host};
		k->log[i] = calloc(bm_ram_words(regions[i].size), sizeof(uint64_t));
		if (!k->log[i])
			r = -ENOMEM;
	}
	if (r < 0) {
		free_kvm(&k->tracker);
		return bm_fail_errno(error, r, "tracker");
	}
	ask_manual(k);
	*tracker = &k->tracker;
	return 0;
}
