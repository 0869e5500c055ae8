/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Errors as a user sees them: a stable code, and a sentence that says what happened, to what, and
 * what to do. Functions return 0 or -errno, and fill in a struct bm_error where one is asked for.
 */
#ifndef BLOCKMIRROR_ERROR_H
#define BLOCKMIRROR_ERROR_H

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* Stable: names and meanings never change, new ones are added at the end. */
enum bm_code {
	BM_OK,
	BM_E_USAGE,       /* the request itself is not well formed */
	BM_E_URI,         /* unknown scheme, or not a URI of its scheme */
	BM_E_NOT_FOUND,   /* no such image, disk, job or export */
	BM_E_EXISTS,      /* the target exists and overwriting was not asked for */
	BM_E_SAME,        /* target and source are one image */
	BM_E_TOO_SMALL,   /* the target is smaller than the source */
	BM_E_LOCKED,      /* another process has the image open */
	BM_E_OWNED,       /* another state directory's record names the image */
	BM_E_RETIRED,     /* an old copy, left behind by a move */
	BM_E_UNUSABLE,    /* an incomplete copy, left behind by an interrupted move */
	BM_E_ACCESS,      /* permission denied, read-only */
	BM_E_ENOSPC,      /* no space for the target */
	BM_E_SIZE,        /* zero, not a multiple of 512, or changed */
	BM_E_NOT_IMAGE,   /* a directory, a socket … */
	BM_E_BUSY,        /* a job is running, a client is connected */
	BM_E_FINISHED,    /* the job has ended already */
	BM_E_NOT_READY,   /* not in sync yet */
	BM_E_UNSUPPORTED, /* the backend cannot do it */
	BM_E_UNREACHABLE, /* the server refuses, is dead, or does not answer */
	BM_E_RECORD,      /* the record is damaged, foreign, or says otherwise */
	BM_E_INTERRUPTED, /* the process ended while the job ran */
	BM_E_CANCELLED,   /* by the user */
	BM_E_IO,          /* a device reported an error */
	BM_E_COMPARE,     /* a device reported an error while comparing */
	BM_E_INTERNAL,    /* out of memory, descriptors, threads */
	BM_E_DIFFERED,    /* copies that had to be equal were not, before the switch */
	BM_E_FOREIGN,     /* another image is where the target was */
	BM_E_TARGET_LOST, /* the target was away for longer than was allowed */
	BM_E_SPLIT,       /* the machines on both hosts write to a disk */
	BM_E_QMP,         /* QEMU refuses, or who answers is not QEMU, or an old one */
	BM_E_QMP_BUSY,    /* another client has the QMP socket */
	BM_E_LINKED,      /* other images show through this one, or hold its data */
	BM_E_BUDGET,      /* more time, or a longer pause, than was allowed: rolled back */
	BM_E_HOOK,        /* a hook refused, could not be run, or did not end in time */
	BM_E_ID_REUSED,   /* a request's id came before, with another content */
	BM_E_MAINTENANCE, /* the host, or the datastore, is in maintenance */
	BM_E_MEMORY,      /* the other host has too little memory, or commits it by other rules */
	BM_E_CPU,         /* it has too few processors, or they lack features */
	BM_E_HOST,   /* it lacks something else that the machine needs, or is of another kind */
	BM_E_DENIED, /* the configuration lets nothing of that kind go there */
	BM_CODES
};

struct bm_error {
	enum bm_code code;
	char text[480];
};

/* "E_EXISTS" and so on; "OK" for BM_OK. */
const char *bm_code_name(enum bm_code code);

/* The code of that name, or BM_E_INTERNAL. */
enum bm_code bm_code_by_name(const char *name);

/* The exit code a command ends with: 0 … 8 as in blockmirror(1), EXIT STATUS. */
int bm_code_exit(enum bm_code code);

/* Fills in error (NULL is allowed) and returns the -errno that goes with code. */
int bm_fail(struct bm_error *error, enum bm_code code, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/*
 * The same for a failed system call: err (positive or negative) chooses the code and is added to
 * the text. Returns -err.
 */
int bm_fail_errno(struct bm_error *error, int err, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
