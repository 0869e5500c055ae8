/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Moving a running machine's memory to another host, for VMMs with no migration of their own. The
 * VMM says where the guest's RAM is, who tells which pages were written to, and how to stop the
 * guest; it opens a control socket, and blockmirror-move (or who speaks docs/precopy.md) does the
 * rest. libblockmirror-precopy(3) has a complete example.
 *
 * The guest runs while its RAM is copied, in rounds: each sends what was written to since the last.
 * When what is left fits the pause, the guest is stopped and the rest is sent. From there it is in
 * one of two states. PAUSED: it runs on by itself, here, when the control connection or the stream
 * drops, or when the pause grows too long. RELEASED: it never runs on without an order; so the
 * machine on the other host may be started. Only an order leads from PAUSED to RELEASED.
 *
 * All functions are for the thread that runs the loop, but bm_precopy_paused() and
 * bm_precopy_dirty(), which any thread may call. A VMM gives the loop a thread of its own.
 */
#ifndef BLOCKMIRROR_PRECOPY_H
#define BLOCKMIRROR_PRECOPY_H

#include "blockmirror/error.h"
#include "blockmirror/loop.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* The unit of tracking and sending, whatever pages the host uses. */
#define BM_RAM_PAGE 4096u

/* A piece of the guest's RAM. Memory that is none of these is not moved. */
struct bm_ram_region {
	const char *name; /* unique, and the same at both hosts */
	uint8_t *host;    /* where it is mapped here; page-aligned, readable and writable */
	uint64_t size;    /* bytes, a multiple of BM_RAM_PAGE */
	uint32_t slot;    /* of KVM: only the KVM tracker looks */
};

/* Trackers: which pages were written to. */

struct bm_tracker;

struct bm_tracker_ops {
	const char *name;
	/* From now on every write is noticed. */
	int (*start)(struct bm_tracker *tracker, struct bm_error *error);
	/*
	 * Sets the bits of the pages of a region that were written to since start() or the last
	 * take(); others are left. A page that is written to after that is in the next take(). So
	 * who reads a page after take() has it as it was, or newer, and then it comes again.
	 */
	int (*take)(struct bm_tracker *tracker, unsigned region, uint64_t *bits,
		    struct bm_error *error);
	/* Writes are not noticed any more, and cost nothing. Twice is once. */
	void (*stop)(struct bm_tracker *tracker);
	void (*free)(struct bm_tracker *tracker); /* stopped */
};

/* The head of any tracker; a VMM may bring its own. */
struct bm_tracker {
	const struct bm_tracker_ops *ops;
};

/*
 * userfaultfd: notices what this process writes through the mapping at host, from any thread, and
 * what the kernel writes there for it; also what a KVM guest writes that has it as its memory. It
 * does not notice pwrite(2) to a memfd, nor writes through another mapping or by another process.
 *
 * async: the kernel notes (UFFD_FEATURE_WP_ASYNC and PAGEMAP_SCAN, Linux 6.7).
 * sync: a thread of the tracker notes; each first write to a page waits for it (Linux 5.7, shared
 * memory 5.19), and it needs the right to handle the kernel's faults (CAP_SYS_PTRACE,
 * /dev/userfaultfd or vm.unprivileged_userfaultfd).
 * bm_tracker_new() takes the first of both that works. The regions are looked at, not kept.
 */
int bm_tracker_new(const struct bm_ram_region *regions, unsigned count, struct bm_tracker **tracker,
		   struct bm_error *error);
int bm_tracker_new_async(const struct bm_ram_region *regions, unsigned count,
			 struct bm_tracker **tracker, struct bm_error *error);
int bm_tracker_new_sync(const struct bm_ram_region *regions, unsigned count,
			struct bm_tracker **tracker, struct bm_error *error);

/* As ioctl(2): -1 and errno. */
typedef int bm_kvm_ioctl(int fd, unsigned long request, void *arg);

/*
 * The dirty log of KVM: what vCPUs write. What the VMM itself writes (its devices) it must say by
 * bm_precopy_dirty(). guest[n] is the guest's physical address of regions[n], flags[n] the slot's
 * flags without KVM_MEM_LOG_DIRTY_PAGES; NULL: all 0. vm_fd stays the caller's. call: instead of
 * ioctl(2), for tests; NULL: ioctl(2).
 */
int bm_tracker_new_kvm(int vm_fd, const struct bm_ram_region *regions, unsigned count,
		       const uint64_t *guest, const uint32_t *flags, bm_kvm_ioctl *call,
		       struct bm_tracker **tracker, struct bm_error *error);

/* Stops it. NULL is allowed. */
void bm_tracker_free(struct bm_tracker *tracker);

/* The machine. */

struct bm_precopy_machine {
	const char *name; /* what kind of machine it is; the same at both hosts */
	uint32_t version; /* of the device state that save() gives */
	uint32_t oldest;  /* the oldest that load() understands */
	const struct bm_ram_region *regions; /* the array and the names outlive the precopy */
	unsigned count;
};

/*
 * What the VMM does. Called in the loop's thread, and none of them may block: a dropped connection
 * is noticed by the same thread.
 */
struct bm_precopy_ops {
	/*
	 * Stop the guest: all vCPUs stand still, no device writes to its RAM, and what disks had in
	 * flight has ended. Then call bm_precopy_paused(), at once or later, from any thread.
	 */
	void (*pause)(void *arg);
	/* The guest runs: on, at the source; for the first time, at the target. */
	void (*resume)(void *arg);
	/* The state of vCPUs and devices while paused: malloc()ed, opaque. 0 or -errno. */
	int (*save)(void *arg, void **state, size_t *length);
	/* At the target: all of RAM is here. The guest must not run yet. */
	int (*load)(void *arg, uint32_t version, const void *state, size_t length,
		    struct bm_error *error);
	/* The vCPUs are to rest for so much of the time; 0: not at all. NULL: it cannot. */
	void (*throttle)(void *arg, unsigned percent);
	/* RELEASED: let go of disks, the machine may be started elsewhere. NULL: nothing. */
	void (*released)(void *arg);
	/* It runs elsewhere: this process may end. */
	void (*quit)(void *arg);
};

enum bm_precopy_state {
	BM_PRECOPY_RUNNING,   /* the guest runs; nothing is going on */
	BM_PRECOPY_COPYING,   /* source: rounds */
	BM_PRECOPY_PAUSING,   /* source: pause() was called */
	BM_PRECOPY_PAUSED,    /* source: stopped; runs on by itself */
	BM_PRECOPY_RELEASED,  /* source: stopped; never runs on without an order */
	BM_PRECOPY_WAITING,   /* target: made to receive, nothing is going on */
	BM_PRECOPY_RECEIVING, /* target */
	BM_PRECOPY_LOADED     /* target: all is here; runs when ordered */
};

/* What to do with a machine that writes faster than its memory can be sent. */
enum bm_precopy_policy {
	BM_PRECOPY_WAIT,    /* go on: it may calm down */
	BM_PRECOPY_CANCEL,  /* give up; it runs on */
	BM_PRECOPY_FORCE,   /* stop it all the same; the pause is as long as it is */
	BM_PRECOPY_THROTTLE /* slow its vCPUs down, more and more */
};

/* One round, or the pause. */
struct bm_precopy_round {
	unsigned round;     /* 0: all of RAM */
	uint64_t pages;     /* sent */
	uint64_t wire;      /* bytes that went over the wire for them */
	uint64_t ns;        /* until the peer had them */
	uint64_t left;      /* pages written to meanwhile */
	uint64_t bandwidth; /* bytes of RAM a second, as estimated then */
	uint64_t predicted; /* ns of pause, had it been made then */
	unsigned throttle;  /* percent */
};

struct bm_precopy;

/*
 * ops and what machine points to outlive it; machine is copied, tracker becomes its own on success.
 * incoming: the guest does not run here, and is going to be received. Once it has been, it can be
 * moved on.
 */
int bm_precopy_new(struct bm_loop *loop, const struct bm_precopy_machine *machine,
		   const struct bm_precopy_ops *ops, void *arg, struct bm_tracker *tracker,
		   bool incoming, struct bm_precopy **precopy, struct bm_error *error);

/* Listens for orders on a unix socket, mode 0660. */
int bm_precopy_listen(struct bm_precopy *precopy, const char *path, struct bm_error *error);

/* Calls nothing any more; a guest that was stopped stays so. NULL is allowed. */
void bm_precopy_free(struct bm_precopy *precopy);

/* The answer to pause(): 0, or -errno when it could not be done: the guest runs. Any thread. */
void bm_precopy_paused(struct bm_precopy *precopy, int result);

/* The VMM wrote to RAM in a way that its tracker does not notice; called after the write. Any
 * thread. */
void bm_precopy_dirty(struct bm_precopy *precopy, unsigned region, uint64_t offset,
		      uint64_t length);

enum bm_precopy_state bm_precopy_state(const struct bm_precopy *precopy);
const char *bm_precopy_state_name(enum bm_precopy_state state);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
