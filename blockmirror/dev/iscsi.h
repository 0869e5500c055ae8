/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The inside of an iSCSI device: iscsi_open.c and iscsi_login.c open it, iscsi.c carries out its
 * requests, with the SCSI commands of iscsi_command.c.
 */
#ifndef BM_DEV_ISCSI_H
#define BM_DEV_ISCSI_H

#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>

#include "blockmirror/dev/later.h"

enum {
	ISCSI_SLOTS = 256, /* requests in flight; more wait */
	ISCSI_MAX_SESSIONS = 16,
};

struct iscsi_session {
	struct iscsi *iscsi;
	struct iscsi_context *context; /* NULL once it is destroyed */
	struct bm_watch watch;
	uint64_t load; /* bytes in flight, or what weighs as much */
	bool queued;   /* libiscsi has commands that it has not been told to send */
	bool lost;     /* a command was cancelled or timed out */
};

struct iscsi_io {
	struct iscsi *iscsi;
	struct bm_request *rq;
	struct iscsi_session *session;
	struct scsi_task *task;
	struct scsi_iovec iov;
	struct bm_list link; /* free, flight, limbo, backoff or ended */
	struct bm_timer timer;
	uint64_t weight;   /* its share of session->load */
	uint64_t pos, end; /* what the command in flight covers, in bytes of the disk */
	unsigned tries;
	bool transfers; /* READ or WRITE: short is wrong */
	bool sends;     /* the command takes data from memory */
	bool same;      /* a WRITE SAME … */
	bool unmaps;    /* … with UNMAP */
	bool flushing;  /* the command is the flush that stands for FUA */
	bool answered;
	int status; /* enum scsi_status */
};

struct iscsi {
	struct bm_dev dev;
	char name[256]; /* the URI without secrets, for the log and for errors */
	int lun;
	struct iscsi_session session[ISCSI_MAX_SESSIONS];
	unsigned sessions;
	bool can_fua;        /* DPOFUA */
	bool can_same;       /* WRITE SAME: not refused so far */
	bool can_same_unmap; /* … with UNMAP, and what it unmaps reads as zeros */
	bool can_extents;    /* GET LBA STATUS means something */
	bool hole_is_zero;   /* LBPRZ */
	uint64_t max_same;   /* bytes of one WRITE SAME */
	uint64_t max_unmap;  /* bytes of one UNMAP; 0: none */
	int dead;            /* 0, or how every request ends from now on */
	struct bm_later later;
	struct bm_task deliver, send;
	struct bm_timer tick;
	struct bm_list free, flight, backoff, ended; /* struct iscsi_io */
	struct bm_list limbo; /* struct iscsi_io: failed, and libiscsi may still send their data */
	struct bm_list waiting; /* struct bm_request */
	struct iscsi_io io[ISCSI_SLOTS];
};

/* What an answer means. */
enum iscsi_verdict {
	ISCSI_SUCCESS,
	ISCSI_FAILURE,
	ISCSI_REFUSED,     /* the target does not know the command */
	ISCSI_RETRY,       /* it was not carried out, and there is no reason to wait */
	ISCSI_RETRY_LATER, /* the target is busy */
	ISCSI_FATAL,       /* the unit was reset or is another one now */
};

/* Whether rq's answer, in *result, is known without asking the target. */
bool bm_iscsi_known(const struct iscsi *d, struct bm_request *rq, int *result);

/* Queues the next command of io's request from io->pos on, sets io->end. NULL: not queued. */
struct scsi_task *bm_iscsi_send(struct iscsi_io *io, iscsi_command_cb cb);

/* *error is what to fail with, if it comes to that. */
enum iscsi_verdict bm_iscsi_judge(const struct iscsi_io *io, int *error);

/*
 * The command was refused: neither it nor its like will be sent again. Whether io's request can go
 * on without it.
 */
bool bm_iscsi_do_without(struct iscsi_io *io);

/* A big-endian number in what the target sent; 0 when that is shorter. */
uint64_t bm_iscsi_field(const struct scsi_task *task, size_t offset, size_t bytes);

/* The answer to EXTENTS, from a GET LBA STATUS that succeeded, or without one. */
void bm_iscsi_take_extents(struct iscsi_io *io);
void bm_iscsi_all_data(struct bm_request *rq);

extern const struct bm_dev_ops bm_iscsi_ops;

/* Ends the session where it stands: requests in flight get their callback in here, if any. */
void bm_iscsi_drop(struct iscsi_session *s);

/* A device without sessions, or NULL. */
struct iscsi *bm_iscsi_new(void);

/* Drops the sessions. The device is not started, or has nothing in flight. */
void bm_iscsi_free(struct iscsi *d);

#endif
